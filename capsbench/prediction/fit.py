"""The deepest network, or the largest batch, that fits a device: by search over traced steps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from capsbench.catalog import spec_of
from capsbench.options import DEEPEST, OWN_INPUTS
from capsbench.prediction.predict import Prediction, predict_memory, trace_for
from capsbench.records import Configuration, MemoryFigures

What = Literal["depth", "batch"]

_MOST_SAMPLES = 100_000
"""Largest batch of a case that is looked at; that of images is an epoch."""

CHECKED = (8, 16, 24, 32)
"""Depths at which the growth of bytes is examined first."""
EVEN_FROM = 128
"""Least depth that is traced before growth is taken to be constant: a phase that is not yet the highest shows late."""
DEEPEST_TRACED = 256
"""Depth at which tracing ends, as deeper networks take long; figures of deeper ones are extrapolated."""


@dataclass(frozen=True)
class Fit:
    """The largest size that fits, and the reason that no larger one does."""

    what: What
    value: int
    """Blocks, or images; 0 if not even one fits."""
    memory_bytes: int | None
    """Bytes that the process takes there: context and reserved memory on a GPU, the highest point of the step on a CPU."""
    bounded: bool
    """True if one more would not fit; otherwise the search ended early, and at least this many fit."""
    traced: bool
    """True if that step was traced; otherwise its bytes were extrapolated."""
    reason: str
    """The reason that one more does not fit, or that the search ended."""
    looked_at: int
    """The largest size that was traced."""


def largest_fit(configuration: Configuration, what: What) -> Fit:
    """The largest depth or batch of a configuration that fits the device it names.

    Raises:
        ConfigurationError: the network cannot be made, or followed without values.
    """
    name = "blocks" if what == "depth" else "batch_size"
    known: dict[int, Prediction] = {}

    def at(value: int) -> Prediction:
        if value not in known:
            changed = configuration.model_copy(update={name: value})
            known[value] = predict_memory(changed, trace_for(changed))
        return known[value]

    if what == "depth" and at(CHECKED[-1]).fits:
        return _deeper(at, known)
    # A batch of images ends with the epoch, and that of a case nowhere.
    if what == "depth":
        most, bound = CHECKED[-1], ""
    elif configuration.dataset == OWN_INPUTS:
        most, bound = _MOST_SAMPLES, f"no more than {_MOST_SAMPLES:,} were looked at"
    else:
        most = spec_of(configuration.dataset).train_size
        bound = f"an epoch has no more than {most:,} images"
    fitting, failing = neighbours(at, most)
    taken = _taken(at(fitting)) if fitting else None
    reason = bound if failing is None else f"{failing:,} do not: {at(failing).reason}"
    return Fit(what, fitting, taken, bounded=failing is not None, traced=True, reason=reason, looked_at=max(known))


def neighbours(at: Callable[[int], Prediction], most: int, *, first: int = 1, share: float = 0.01) -> tuple[int, int | None]:
    """The largest size that fits (0 if none does) and the next that was found not to (None if `most` fits).

    Args:
        at: predicts a size, and remembers what it predicted.
        most: largest size that is looked at.
        first: size to begin with.
        share: distance of the two sizes, as a share of the smaller, at which the search ends; 0 to look at every one between.
    """
    fitting, failing = (first, most + 1) if at(first).fits else (0, first)
    # Bytes grow nearly evenly, so a line through two known values gives the next guess.
    known = {first, min(first + 31, most)}
    while failing - fitting > max(1, int(fitting * share)):
        low = max((size for size in known if size <= fitting), default=min(known))
        high = min((size for size in known if size >= failing and size != low), default=max(known))
        guess = _on_line(at, low if low < high else min(known), high)
        if failing <= most:
            # Stay off both ends, so that each look narrows the range.
            margin = max(1, (failing - fitting) // 8)
            guess = min(max(guess, fitting + margin), failing - margin)
        else:
            guess = min(max(guess, fitting + 1), 32 * fitting, most)
        fitting, failing = (guess, failing) if at(guess).fits else (fitting, guess)
        known.add(guess)
    return fitting, failing if failing <= most else None


def _on_line(at: Callable[[int], Prediction], low: int, high: int) -> int:
    """The size at which a line through two values reaches the room."""
    below, above, room = _taken(at(low)), _taken(at(high)), at(high).room_bytes
    if room is None or above <= below or high == low:
        return 2 * high
    return low + int((high - low) * (room - below) / (above - below))


class Growth(NamedTuple):
    """The growth of a quantity with depth, beyond the deepest network that was traced."""

    nbytes: int
    """Bytes at that depth, and the largest observed deviation from an even growth."""
    per_block: float
    """Most bytes that one block was seen to add, over many blocks."""
    even: bool
    """True if a block adds as much as before."""
    rising: bool
    """True if each block adds more than the one before."""

    def after(self, blocks: int) -> float:
        """Bytes with this many more blocks."""
        return self.nbytes + self.per_block * blocks


def _deeper(at: Callable[[int], Prediction], known: Mapping[int, Prediction]) -> Fit:
    """The deepest network that fits, if the deepest of `CHECKED` does."""
    # Trace until one does not fit, and then those between; or until growth is even, and extrapolate the rest from it.
    for blocks in CHECKED:
        at(blocks)
    fitting, failing, stride = CHECKED[-1], None, 1
    while failing is None or failing - fitting > 1:
        growths = _growths(known, fitting)
        reached = _reached(growths, fitting, at(fitting).room_bytes)
        if failing is not None:
            # Stay off both ends, so that each look narrows the range.
            margin = (failing - fitting) // 8
            guess = min(max(reached, fitting + 1 + margin), failing - 1 - margin)
        elif fitting >= DEEPEST_TRACED or (fitting >= EVEN_FROM and reached > 2 * fitting and all(one.even for one in growths)):
            return _extrapolated(growths, fitting, reached, _taken(at(fitting)))
        elif reached > fitting:
            # An odd stride does not meet a pattern of a few blocks at the same point each time.
            guess = min(reached, fitting + (max(CHECKED[-1], fitting // 2) | 1), DEEPEST_TRACED)
        else:
            # It should not fit; if it does, the extrapolation was too low, and longer strides find the end sooner.
            guess, stride = min(fitting + stride, DEEPEST_TRACED), 2 * stride
        fitting, failing = (guess, failing) if at(guess).fits else (fitting, guess)
    most = max(growth.per_block for growth in _growths(known, fitting))
    reason = f"{failing:,} do not: {at(failing).reason}; a block adds up to {most:,.0f} bytes"
    return Fit("depth", fitting, _taken(at(fitting)), bounded=True, traced=True, reason=reason, looked_at=max(known))


def _reached(growths: Sequence[Growth], deepest: int, room: int | None) -> int:
    """Largest number of blocks that fits if everything grows as it was seen to."""
    if room is None:
        return DEEPEST
    # The step's highest point may lie in another phase at greater depth, whose peak has a line of its own. The first to reach
    # the room ends the search.
    ends = [deepest + int((room - one.nbytes) // one.per_block) for one in growths if one.per_block > 0]
    return max(min([*ends, DEEPEST]), deepest)


def _extrapolated(growths: Sequence[Growth], deepest: int, reached: int, taken: int) -> Fit:
    """The result for depths that are not traced: `reached` should fit, and the `deepest` that was traced takes `taken` bytes."""
    if any(growth.rising for growth in growths):
        reason = f"each block adds more than the one before, so that more than {deepest} blocks were not looked at"
        return Fit("depth", deepest, taken, bounded=False, traced=True, reason=reason, looked_at=deepest)
    largest = max(growths, key=lambda growth: growth.after(reached - deepest))
    reason = f"more than {reached:,} was not looked at"
    if largest.per_block:
        reason = f"each block adds up to {largest.per_block:,.0f} bytes"
    even = all(growth.even for growth in growths)
    if not even:
        reason += f", and not always the same up to {deepest} blocks"
    taken, bounded = max(taken, int(largest.after(reached - deepest))), even and reached < DEEPEST
    return Fit("depth", reached, taken, bounded=bounded, traced=reached == deepest, reason=reason, looked_at=deepest)


def _growths(known: Mapping[int, Prediction], deepest: int) -> list[Growth]:
    """The growth of every quantity that may fill the device, over the networks traced up to a depth."""
    traced = {blocks: known[blocks] for blocks in sorted(known) if CHECKED[0] <= blocks <= deepest}
    # However low they still are, the bytes at the end of forward or of backward become the highest point in the end.
    *_, before, last = traced
    standing = max(
        (after - earlier) / (last - before)
        for earlier, after in zip(_standing(traced[before].memory), _standing(traced[last].memory), strict=True)
    )
    beside = {blocks: _taken(one) - (one.memory.peak_allocated_bytes or 0) for blocks, one in traced.items()}
    found = []
    for peak in ("peak_allocated_bytes", "peak_forward_bytes", "peak_backward_bytes"):
        one = _growth({blocks: getattr(prediction.memory, peak) for blocks, prediction in traced.items()})
        found.append(one._replace(nbytes=one.nbytes + max(beside.values()), per_block=max(one.per_block, standing)))
    if len(set(beside.values())) > 1:
        reserved = _reserved({blocks: _taken(one) for blocks, one in traced.items()})
        found.append(reserved._replace(nbytes=reserved.nbytes + max(beside.values()) - beside[last]))
    return found


class DepthStep(NamedTuple):
    """The growth from one traced depth to the next."""

    first: int
    blocks: int
    per_block: float


def _steps(line: Mapping[int, int]) -> list[DepthStep]:
    """The steps of a line: bytes by depth, ascending."""
    return [DepthStep(low, high - low, (line[high] - line[low]) / (high - low)) for low, high in pairwise(line)]


def _reserved(line: Mapping[int, int]) -> Growth:
    """The growth with depth of an allocator's reserved memory."""
    # Its segments fill by jumps, so it grows at most as fast as it was seen to between neighbours. A jump tells little of
    # growth: no more than an eighth is added to the growth over the whole range.
    deepest = max(line)
    first = min(blocks for blocks in line if 4 * blocks >= deepest)
    fastest = max(step.per_block for step in _steps(line) if step.blocks >= CHECKED[0])
    over_all = (line[deepest] - line[first]) / (deepest - first)
    return Growth(line[deepest], min(fastest, 1.125 * over_all), even=True, rising=False)


def _growth(line: Mapping[int, int]) -> Growth:
    """The growth of one quantity with depth."""
    deepest, steps = max(line), _steps(line)
    # Early phases have ended by then, and close depths were examined for their own sake.
    recent = [step for step in steps if 4 * step.first >= deepest and step.blocks >= CHECKED[0]] or steps[:1]
    most = max(step.per_block for step in recent)
    uneven = max((most - step.per_block) * step.blocks for step in recent)
    earlier, last = steps[-2].per_block, steps[-1].per_block
    close = 1e-3 * max(abs(earlier), abs(last))  # growth that differs by less is called even
    rising = last - close > max((step.per_block for step in recent[:-1]), default=last)
    return Growth(line[deepest] + int(uneven), most, even=abs(last - earlier) <= close, rising=rising)


def _standing(memory: MemoryFigures) -> tuple[int, int]:
    """Bytes alive at the end of forward, and at the end of backward, without the batch."""
    state, optimizer, retained, gradient = (
        getattr(memory, f"{name}_bytes", None) or 0 for name in ("state", "optimizer", "retained", "gradient")
    )
    return state + optimizer + retained, state + optimizer + gradient


def _taken(found: Prediction) -> int:
    memory = found.memory
    return (memory.peak_allocated_bytes or 0) if memory.process_bytes is None else memory.process_bytes
