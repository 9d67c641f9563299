"""The deepest network, or the largest batch, that fits a device: by search over traced steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from capsbench.measure.predict import Prediction, predict_memory, trace_for
from capsbench.records import Configuration

What = Literal["depth", "batch"]

TRACED_BLOCKS = 64
"""Deeper networks take long to trace; where bytes grow by the same amount with every block up to here, they go on to do so."""
MOST = {"depth": 100_000, "batch": 2**20}
_CHECKED = (16, 32, 48, 64)
"""Depths at which growth is looked at."""


@dataclass(frozen=True)
class Fit:
    """What fits, and why no more does."""

    what: What
    value: int
    """Blocks, or images; 0 where not even one fits."""
    memory_bytes: int | None
    """What the process takes there: context and reserved memory on a GPU, the highest point of the step on a CPU."""
    bounded: bool
    """Whether one more would not fit; otherwise the search ended at its limit."""
    traced: bool
    """Whether that step was traced; otherwise its bytes follow from how they grow."""
    reason: str
    """Why one more does not fit."""


def largest(configuration: Configuration, what: What) -> Fit:
    """The largest depth or batch of a configuration that fits the device it names.

    Raises:
        ConfigurationError: as `trace_step`.
    """
    name = "blocks" if what == "depth" else "batch_size"
    known: dict[int, Prediction] = {}

    def at(value: int) -> Prediction:
        if value not in known:
            changed = configuration.model_copy(update={name: value})
            known[value] = predict_memory(changed, trace_for(changed))
        return known[value]

    fitting, failing = _bracket(at, TRACED_BLOCKS if what == "depth" else MOST[what])
    if failing is None and what == "depth":
        return _beyond(at)
    if failing is None:
        return Fit(what, fitting, _taken(at(fitting)), bounded=False, traced=True, reason="")
    fitting, failing = _narrowed(at, fitting, failing, at(failing).room_bytes or 0)
    taken = _taken(at(fitting)) if fitting else None
    return Fit(what, fitting, taken, bounded=True, traced=True, reason=at(failing).reason)


def _bracket(at: Callable[[int], Prediction], most: int) -> tuple[int, int | None]:
    """The largest power of two that fits (or 0), and the next one, which does not (None where `most` fits)."""
    fitting, value = 0, 1
    while value <= most:
        if not at(value).fits:
            return fitting, value
        fitting, value = value, 2 * value
    return fitting, None


def _narrowed(at: Callable[[int], Prediction], fitting: int, failing: int, room: int) -> tuple[int, int]:
    """Two neighbours, of which the second does not fit: by bytes' growth between them, never slower than by halves twice over."""
    while failing - fitting > 1:
        guess = (fitting + failing) // 2
        if fitting:
            low, high = _taken(at(fitting)), _taken(at(failing))
            if high > low:
                guess = fitting + int((failing - fitting) * (room - low) / (high - low))
        # Away from the ends, so that each step takes something off.
        margin = max(1, (failing - fitting) // 8)
        guess = min(max(guess, fitting + margin), failing - margin)
        if at(guess).fits:
            fitting = guess
        else:
            failing = guess
    return fitting, failing


def _beyond(at: Callable[[int], Prediction]) -> Fit:
    """Depths that are not traced, where every block adds the same."""
    allocated = [at(blocks).memory.peak_allocated_bytes for blocks in _CHECKED]
    steps = {after - before for before, after in zip(allocated, allocated[1:], strict=False)}
    last = at(_CHECKED[-1])
    per_block = (allocated[-1] - allocated[0]) / (_CHECKED[-1] - _CHECKED[0])
    if len(steps) > 1:
        return Fit(
            "depth", _CHECKED[-1], _taken(last), bounded=False, traced=True,
            reason=f"a block does not always add the same, so that deeper networks than {_CHECKED[-1]} blocks were not looked at",
        )  # fmt: skip
    # What the allocator holds beside what is allocated does not grow with depth; the most that was seen stays free.
    slack = max(_taken(at(blocks)) - at(blocks).memory.peak_allocated_bytes for blocks in _CHECKED)
    room = None if last.room_bytes is None else last.room_bytes - slack - allocated[-1]
    more = int(room // per_block) if room is not None and per_block > 0 else MOST["depth"]
    value = min(_CHECKED[-1] + max(0, more), MOST["depth"])
    taken = int(allocated[-1] + per_block * (value - _CHECKED[-1]) + slack)
    bounded = value < MOST["depth"]
    reason = f"each block adds {per_block:.0f} bytes" if bounded else ""
    return Fit("depth", value, taken, bounded=bounded, traced=value == _CHECKED[-1], reason=reason)


def _taken(found: Prediction) -> int:
    memory = found.memory
    return memory.peak_allocated_bytes if memory.process_bytes is None else memory.process_bytes

