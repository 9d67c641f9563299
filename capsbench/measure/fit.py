"""The deepest network, or the largest batch, that fits a device: by search over traced steps."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from capsbench.catalog import spec_of
from capsbench.measure.predict import Prediction, predict_memory, trace_for
from capsbench.records import Configuration

What = Literal["depth", "batch"]

_TRACEABLE = 256
"""Up to here what was reckoned is traced before it is said."""
DEEPEST = 100_000
"""Where a search for depth ends."""
CHECKED = (8, 16, 24, 32)
"""Depths at which the growth of bytes is looked at. Deeper networks take long to trace: where every block up to here added the
same bytes, more blocks will too."""


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
    """Why one more does not fit, or why the search ended."""


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

    if what == "depth" and at(CHECKED[-1]).fits:
        return _beyond(at)
    most = CHECKED[-1] if what == "depth" else spec_of(configuration.dataset).train_size
    fitting, failing = _neighbours(at, most)
    taken = _taken(at(fitting)) if fitting else None
    if failing is None:
        return Fit(what, fitting, taken, bounded=False, traced=True, reason=f"an epoch has no more than {most:,} images")
    return Fit(what, fitting, taken, bounded=True, traced=True, reason=f"{failing:,} do not: {at(failing).reason}")


def _neighbours(at: Callable[[int], Prediction], most: int) -> tuple[int, int | None]:
    """The largest that fits (0 if none does) and the next that was found not to (None where `most` fits).

    Beyond a hundred the two may be 1 % apart. Bytes grow nearly evenly, so a line through two known values says where to look.
    """
    if not at(1).fits:
        return 0, 1
    fitting, failing = 1, most + 1
    below, above = at(1), at(min(32, most))
    last = (1, min(32, most))
    while failing - fitting > max(1, fitting // 100):
        guess = _on_line(*last, _taken(below), _taken(above), above.room_bytes)
        if failing <= most:
            # Off both ends, so that each look takes something away.
            margin = max(1, (failing - fitting) // 8)
            guess = min(max(guess, fitting + margin), failing - margin)
        else:
            guess = min(max(guess, fitting + 1), 32 * fitting, most)
        found = at(guess)
        fitting, failing = (guess, failing) if found.fits else (fitting, guess)
        low, high = (fitting, failing) if failing <= most else (1, fitting)
        last, below, above = (low, high), at(low), at(high)
    return fitting, failing if failing <= most else None


def _on_line(low: int, high: int, below: int, above: int, room: int | None) -> int:
    """Where a line through two values reaches the room."""
    if room is None or above <= below or high == low:
        return 2 * high
    return low + int((high - low) * (room - below) / (above - below))


def _beyond(at: Callable[[int], Prediction]) -> Fit:
    """Depths that are not traced, where every block adds the same."""
    last, deepest = at(CHECKED[-1]), CHECKED[-1]
    memories = [at(blocks).memory for blocks in CHECKED]
    peaks = [
        [one.peak_allocated_bytes for one in memories],
        [one.peak_forward_bytes for one in memories],
        [one.peak_backward_bytes for one in memories],
    ]
    if any(len({after - before for before, after in pairwise(peak)}) > 1 for peak in peaks):
        reason = f"not every block adds the same bytes, so that more than {deepest} were not looked at"
        return Fit("depth", deepest, _taken(last), bounded=False, traced=True, reason=reason)
    # What is taken grows as fast as it was seen to, at most: an allocator's segments fill unevenly. Deeper, the step's highest
    # point may lie in another phase, whose peak has a line of its own: the first of them to reach the room ends the search.
    reckoned = [
        (line[-1], max(after - before for before, after in pairwise(line)) / (CHECKED[1] - CHECKED[0]))
        for line in ([_taken(at(blocks)) for blocks in CHECKED], *peaks)
    ]
    value, growth = DEEPEST, 0.0
    for nbytes, per_block in reckoned:
        if last.room_bytes is not None and per_block > 0:
            reached = deepest + max(0, int((last.room_bytes - nbytes) // per_block))
            value, growth = (reached, per_block) if reached < value else (value, growth)
    while deepest < value <= _TRACEABLE and not at(value).fits:
        value -= max(1, value // 50)
    traced, bounded = value <= _TRACEABLE, value < DEEPEST
    taken = _taken(at(value)) if traced else int(max(nbytes + per_block * (value - deepest) for nbytes, per_block in reckoned))
    reason = f"each block adds up to {growth:,.0f} bytes" if bounded else f"more than {value} was not looked at"
    return Fit("depth", value, taken, bounded=bounded, traced=traced, reason=reason)


def _taken(found: Prediction) -> int:
    memory = found.memory
    return memory.peak_allocated_bytes if memory.process_bytes is None else memory.process_bytes
