"""The deepest network that fits: traced while growth may change, and extrapolated beyond."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from capsbench.options import DEEPEST
from capsbench.prediction.predict import Prediction
from capsbench.prediction.search import Fit, taken
from capsbench.sizes import mebibytes_text

CHECKED = (8, 16, 24, 32)
"""Depths at which the growth of bytes is examined first."""
EVEN_FROM = 128
"""Least depth that is traced before growth is taken to be constant: a phase that is not yet the highest shows late."""
CHECKED_OF_SEVERAL = (8, 16, 32)
"""`CHECKED` of a step of several processes, each of whose blocks takes several times as long to trace."""
EVEN_FROM_OF_SEVERAL = CHECKED_OF_SEVERAL[-1]
"""`EVEN_FROM` of a step of several processes."""
_CLOSE = 1e-3
"""Largest difference of growths that are taken to be equal, as a share of the larger one."""
_CLOSE_TO_STANDING = 0.02
"""Largest difference of a peak's growth from that of the bytes that it consists of: a GPU's allocator rounds large blocks up."""
_FRAGMENTED = 1.25
"""Largest growth of reserved memory, as a multiple of that of the memory in use, that is no sign of a jump between few blocks."""
DEEPEST_TRACED = 256
"""Depth at which tracing ends, as deeper networks take long; figures of deeper ones are extrapolated."""


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


def deeper(at: Callable[[int], Prediction], known: Mapping[int, Prediction], *, of_several: bool = False) -> Fit:
    """The deepest network that fits, if the deepest of `CHECKED` does.

    Args:
        at: predicts the network of a depth, and keeps what it predicts in `known`.
        known: predictions by depth.
        of_several: predictions are of a step of several processes.
    """
    checked, even_from = (CHECKED_OF_SEVERAL, EVEN_FROM_OF_SEVERAL) if of_several else (CHECKED, EVEN_FROM)
    # Trace until one does not fit, and then those between; or until growth is even, and extrapolate the rest from it.
    for blocks in checked:
        at(blocks)
    fitting, failing, stride = checked[-1], None, 1
    while failing is None or failing - fitting > 1:
        growths = _growths(known, fitting)
        reached = _reached(growths, fitting, at(fitting).room_bytes)
        if failing is not None:
            # Stay off both ends, so that each look narrows the range.
            margin = (failing - fitting) // 8
            guess = min(max(reached, fitting + 1 + margin), failing - 1 - margin)
        elif fitting >= DEEPEST_TRACED or (fitting >= even_from and reached > 2 * fitting and all(one.even for one in growths)):
            return _extrapolated(growths, fitting, reached, taken(at(fitting)))
        elif reached > fitting:
            # An odd stride does not meet a pattern of a few blocks at the same point each time.
            guess = min(reached, fitting + (max(CHECKED[-1], fitting // 2) | 1), DEEPEST_TRACED)
        else:
            # It should not fit; if it does, the extrapolation was too low, and longer strides find the end sooner.
            guess, stride = min(fitting + stride, DEEPEST_TRACED), 2 * stride
        fitting, failing = (guess, failing) if at(guess).fits else (fitting, guess)
    most = max(growth.per_block for growth in _growths(known, fitting))
    reason = f"{failing:,} do not: {at(failing).reason}; a block adds up to {mebibytes_text(most)}"
    return Fit("depth", fitting, taken(at(fitting)), bounded=True, traced=True, reason=reason, looked_at=max(known))


def _reached(growths: Sequence[Growth], deepest: int, room: int | None) -> int:
    """Largest number of blocks that fits if everything grows as it was seen to."""
    if room is None:
        return DEEPEST
    # The step's highest point may lie in another phase at greater depth, whose peak has a line of its own. The first to reach
    # the room ends the search.
    ends = [deepest + int((room - one.nbytes) // one.per_block) for one in growths if one.per_block > 0]
    return max(min([*ends, DEEPEST]), deepest)


def _extrapolated(growths: Sequence[Growth], deepest: int, reached: int, nbytes: int) -> Fit:
    """The result for depths that are not traced: `reached` should fit, and the `deepest` that was traced takes `nbytes`."""
    if any(growth.rising for growth in growths):
        reason = f"each block adds more than the one before, so that more than {deepest} blocks were not looked at"
        return Fit("depth", deepest, nbytes, bounded=False, traced=True, reason=reason, looked_at=deepest)
    largest = max(growths, key=lambda growth: growth.after(reached - deepest))
    reason = f"more than {reached:,} was not looked at"
    if largest.per_block:
        reason = f"each block adds up to {mebibytes_text(largest.per_block)}"
    even = all(growth.even for growth in growths)
    if not even:
        reason += f", and not always the same up to {deepest} blocks"
    nbytes, bounded = max(nbytes, int(largest.after(reached - deepest))), even and reached < DEEPEST
    return Fit("depth", reached, nbytes, bounded=bounded, traced=reached == deepest, reason=reason, looked_at=deepest)


def _growths(known: Mapping[int, Prediction], deepest: int) -> list[Growth]:
    """The growth of every quantity that may fill the device, over the networks traced up to a depth."""
    traced = {blocks: known[blocks] for blocks in sorted(known) if CHECKED[0] <= blocks <= deepest}
    # The bytes at the end of forward or of backward become the highest point in the end, however low they still are. Those
    # that processes exchange at one moment come on top.
    last = max(traced)
    held = {blocks: _standing(one) for blocks, one in traced.items()}
    *_, earlier, standing = (
        max((after - before) / (high - low) for before, after in zip(held[low], held[high], strict=True))
        for low, high in pairwise(held)
    )
    # If they grow evenly, a peak that grows no faster will, too.
    expected = (1 + _CLOSE_TO_STANDING) * standing if abs(standing - earlier) <= _CLOSE * max(abs(standing), abs(earlier)) else 0
    outside = {blocks: taken(one) - (one.memory.peak_allocated_bytes or 0) for blocks, one in traced.items()}
    found = []
    for peak in ("peak_allocated_bytes", "peak_forward_bytes", "peak_backward_bytes"):
        one = _growth({blocks: getattr(prediction.memory, peak) for blocks, prediction in traced.items()})
        # A peak that has begun to grow by those bytes grows no faster than is expected of it.
        found.append(
            one._replace(
                nbytes=one.nbytes + max(outside.values()),
                per_block=max(one.per_block, standing),
                even=one.even or one.per_block <= expected,
                rising=one.rising and one.per_block > expected,
            )
        )
    if len(set(outside.values())) > 1:
        reserved = _reserved({blocks: taken(one) for blocks, one in traced.items()})
        # Close to each other, depths differ by segments more than by growth.
        even = last > CHECKED[-1] or reserved.per_block <= _FRAGMENTED * max(one.per_block for one in found)
        found.append(reserved._replace(nbytes=reserved.nbytes + max(outside.values()) - outside[last], even=even))
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
    # Its segments fill by jumps, so it grows at most as fast as it was seen to between neighbours. A jump says little about
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
    close = _CLOSE * max(abs(earlier), abs(last))
    rising = last - close > max((step.per_block for step in recent[:-1]), default=last)
    return Growth(line[deepest] + int(uneven), most, even=abs(last - earlier) <= close, rising=rising)


def _standing(found: Prediction) -> tuple[int, int]:
    """Bytes alive at the end of forward, and at the end of backward, without the batch, each with those of communication."""
    memory = found.memory
    always = memory.state_bytes + memory.optimizer_bytes + found.communication_bytes
    return always + (memory.retained_bytes or 0), always + memory.gradient_bytes
