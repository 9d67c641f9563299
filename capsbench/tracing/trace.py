"""Allocations of a step in order, from any source: a CPU's allocator, its profiler, CUDA's history, or no device at all.

Every figure of a step's memory follows from one such list: peaks, what is alive at them, the timeline.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from capsbench.records import Contents
from capsbench.tracing.cuda_allocator import Block, CachingAllocator

Integers = NDArray[np.int64]

Category = Literal["state", "gradient", "optimizer", "batch", "retained", "communication", "temporary", "other"]
CATEGORIES: tuple[Category, ...] = ("state", "gradient", "optimizer", "batch", "retained", "temporary", "other")
"""Purposes of a block of memory in a step of one process, in the order in which figures stack them."""

COMMUNICATION: Category = "communication"
"""A further purpose in a step of several processes: gathered parameters, and buffers that are sent and received."""

PHASES = ("forward", "backward", "optimizer")
"""Parts of a step, in their order."""

INFERENCE = "inference"
"""Name of the phase of an inference step, which is no part of a training step."""


@dataclass(frozen=True)
class Phase:
    """Bytes in one phase of a step."""

    start: int
    """Bytes alive when it began."""
    end: int
    """Bytes alive when it ended."""
    peak: int
    """Most bytes alive at one moment."""


@dataclass
class Trace:
    """Events in order. A block is one allocation; its number is never used again."""

    blocks: Integers
    """`[N]`, the block of each event."""
    nbytes: Integers
    """`[N]`, the bytes that each event adds to those alive; negative where a block is freed."""
    spans: dict[str, tuple[int, int]]
    """First event of each phase, and the first one after it."""
    tags: Mapping[str, set[int]] = field(default_factory=dict)
    """Blocks by tag: the category of what they hold, or any other word."""
    marks: Sequence[int] = ()
    """Number of events before each mark that was set, in order; none where they are not known."""

    def alive(self) -> Integers:
        """`[N + 1]`, the bytes alive before the first event and after each."""
        return np.concatenate(([0], np.cumsum(self.nbytes, dtype=np.int64)))

    def phases(self) -> dict[str, Phase]:
        """Bytes of each phase."""
        alive = self.alive()
        return {
            name: Phase(int(alive[first]), int(alive[last]), int(alive[first : last + 1].max()))
            for name, (first, last) in self.spans.items()
        }

    def alive_blocks(self, at: int) -> dict[int, int]:
        """Bytes of each block that is alive before event number `at`."""
        found: dict[int, int] = {}
        for block, nbytes in zip(self.blocks[:at].tolist(), self.nbytes[:at].tolist(), strict=True):
            if nbytes < 0:
                del found[block]
            else:
                found[block] = nbytes
        return found

    def retained_blocks(self) -> dict[int, int]:
        """Bytes of each block that forward made and that is alive at its end."""
        first, last = self.spans["forward"]
        made = set(self.blocks[first:last][self.nbytes[first:last] >= 0].tolist())
        return {block: nbytes for block, nbytes in self.alive_blocks(last).items() if block in made}

    def categories(self) -> dict[int, Category]:
        """The category of every block."""
        start = self.spans["forward"][0]
        found: dict[int, Category] = {}
        for index, block in enumerate(self.blocks.tolist()):
            found.setdefault(block, "other" if index < start else "temporary")
        found |= dict.fromkeys(self.retained_blocks(), "retained")
        # A buffer that was received may become a gradient.
        for category in (COMMUNICATION, *CATEGORIES):
            found |= dict.fromkeys(self.tags.get(category, set()) & found.keys(), category)
        return found

    def purposes(self) -> tuple[Category, ...]:
        """The categories that blocks may have, in the order in which figures stack them."""
        return (*CATEGORIES[:-2], COMMUNICATION, *CATEGORIES[-2:]) if COMMUNICATION in self.tags else CATEGORIES

    def peak(self) -> tuple[str, int]:
        """The phase of the highest point of the step, and the number of events before it."""
        alive = self.alive()
        of_step = {name: span for name, span in self.spans.items() if name in PHASES}
        tops = {name: first + int(alive[first : last + 1].argmax()) for name, (first, last) in of_step.items()}
        name = max(tops, key=lambda name: alive[tops[name]])
        return name, tops[name]

    def at_peak(self) -> Contents:
        """The blocks that are alive at the highest point of the step."""
        phase, at = self.peak()
        categories = self.categories()
        sums = dict.fromkeys(self.purposes(), 0)
        for block, nbytes in self.alive_blocks(at).items():
            sums[categories[block]] += nbytes
        return Contents(phase=phase, **{f"{name}_bytes": nbytes for name, nbytes in sums.items()})

    def stacked(self) -> dict[Category, Integers]:
        """`[N + 1]` bytes alive of each category before the first event and after each: the timeline."""
        categories = self.categories()
        purposes = self.purposes()
        of_event = np.array([purposes.index(categories[block]) for block in self.blocks.tolist()], dtype=np.int64)
        return {
            name: np.concatenate(([0], np.cumsum(np.where(of_event == index, self.nbytes, 0))))
            for index, name in enumerate(purposes)
        }

    def most_communicated(self) -> int:
        """Most bytes of communication that are alive at one moment."""
        return int(self.stacked()[COMMUNICATION].max()) if COMMUNICATION in self.tags else 0

    def replay(self, allocator: CachingAllocator, *, empty_first: bool = False) -> "Trace":
        """Repeat the events on a caching allocator, whose peaks then are those of the step alone.

        Args:
            allocator: the allocator.
            empty_first: let the step begin with an empty cache.

        Returns:
            The same events with the bytes that the allocator handed out for them.

        Raises:
            OutOfMemory: the device that it models is full.
        """
        handed: dict[int, Block | None] = {}
        start = self.spans["forward"][0]
        found = []
        for index, (block, nbytes) in enumerate(zip(self.blocks.tolist(), self.nbytes.tolist(), strict=True)):
            if index == start:
                if empty_first:
                    allocator.empty_cache()
                allocator.reset_peaks()
            before = allocator.allocated
            if nbytes < 0:
                allocator.free(handed.pop(block))
            else:
                handed[block] = allocator.allocate(nbytes)
            found.append(allocator.allocated - before)
        return Trace(self.blocks, np.array(found, dtype=np.int64), self.spans, self.tags, self.marks)


def trace_of(
    events: Iterable[tuple[int, int]],
    spans: Mapping[str, tuple[int, int]],
    tags: Iterable[tuple[int, str, Iterable[int]]],
    marks: Sequence[int] = (),
) -> Trace:
    """A trace of an allocator's events: addresses, which are reused, become blocks, which are not.

    Args:
        events: address, and bytes: positive where it was handed out, negative where it was freed.
        spans: first and past-the-end event of each phase.
        tags: number of events before the tag was set, category or another word, and the tagged addresses.
        marks: number of events before each mark.
    """
    looked = sorted(tags, key=lambda tag: tag[0], reverse=True)
    tagged: dict[str, set[int]] = {}
    at_address: dict[int, int] = {}
    blocks, sizes = [], []

    def look(upto: float) -> None:
        while looked and looked[-1][0] <= upto:
            _, category, addresses = looked.pop()
            tagged.setdefault(category, set()).update(at_address[one] for one in addresses if one in at_address)

    for index, (address, nbytes) in enumerate(events):
        look(index)
        if nbytes >= 0:
            at_address[address] = index
            blocks.append(index)
            sizes.append(nbytes)
        else:
            # A block that was made before counting began is not counted when it is freed.
            known = at_address.pop(address, None)
            blocks.append(index if known is None else known)
            sizes.append(0 if known is None else nbytes)
    look(float("inf"))
    return Trace(np.array(blocks, dtype=np.int64), np.array(sizes, dtype=np.int64), dict(spans), tagged, marks)
