"""The deepest network, or the largest batch or value of any other axis, that fits a device: by search over traced steps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from capsbench.axes import IMAGE_SIZE
from capsbench.catalog import spec_of
from capsbench.errors import CapsbenchError, ConfigurationError, suggesting
from capsbench.options import AXES_OF_FIELDS, DEEPEST, OPTIONS, OWN_INPUTS
from capsbench.prediction.predict import Prediction, predict_memory, trace_for
from capsbench.records import Configuration, MemoryFigures

_MOST_SAMPLES = 100_000
"""Largest batch of a case that is looked at; that of images is an epoch."""
_MOST_ON_AXIS = 2**20
"""Largest value of any other axis that is looked at."""
_STRIDES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Distances of values that are tried: a width may have to be a multiple of the number of heads."""

CHECKED = (8, 16, 24, 32)
"""Depths at which the growth of bytes is examined first."""
EVEN_FROM = 128
"""Least depth that is traced before growth is taken to be constant: a phase that is not yet the highest shows late."""
DEEPEST_TRACED = 256
"""Depth at which tracing ends, as deeper networks take long; figures of deeper ones are extrapolated."""


@dataclass(frozen=True)
class Fit:
    """The largest size that fits, and the reason that no larger one does."""

    what: str
    """Name of what was searched for: `depth`, `batch`, or the name of another axis."""
    value: int
    """Blocks, images, or the value of the axis; 0 if not even one fits."""
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


def largest_fit(configuration: Configuration, what: str) -> Fit:
    """The largest depth, batch or value of another axis of a configuration that fits the device it names.

    Args:
        configuration: configuration, whose value of another axis is the one that the search begins with.
        what: `depth`, `batch`, or the name of an axis: a whole number that a case takes, an option, or `image_size`.

    Raises:
        ConfigurationError: the network cannot be made, or followed without values, or does not take the axis.
    """
    if what not in ("depth", "batch"):
        return _largest_on_axis(configuration, what)
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


def _largest_on_axis(configuration: Configuration, axis: str) -> Fit:
    """The largest value of an axis that fits."""
    start, known = _value_on(configuration, axis), dict[int, Prediction | str]()

    def at(value: int) -> Prediction | str:
        """The prediction of a value, or the reason that it makes no network."""
        if value not in known:
            changed = _changed(configuration, axis, value)
            try:
                known[value] = predict_memory(changed, trace_for(changed))
            except CapsbenchError as error:
                if value == start:
                    raise
                known[value] = error.what
        return known[value]

    first = at(start)
    stride = next((one for one in _STRIDES if not isinstance(at(start + one), str)), start)
    larger = next((one for one in (at(2 * start), at(start + stride)) if not isinstance(one, str)), None)
    if isinstance(first, Prediction) and larger is not None and larger.memory == first.memory:
        raise ConfigurationError(
            f"`fit` {axis}: it changes nothing of the memory of model '{configuration.model}'",
            f"search for one that does: {', '.join(axes_to_fit(configuration))}",
        )
    doubles = stride == start > 1 and isinstance(at(3 * start), str) and not isinstance(at(2 * start), str)
    odd, below = start // (start & -start or 1), (start - 1) % stride + 1 - stride

    def value_of(number: int) -> int:
        """The value of a number from 1: the smallest of the same steps, or of the same doubles, is that of 1."""
        return odd << (number - 1) if doubles else below + number * stride

    most = (_MOST_ON_AXIS // odd).bit_length() if doubles else (_MOST_ON_AXIS - below) // stride
    first_number = (start // odd).bit_length() if doubles else (start - below) // stride
    value, failing = neighbours(lambda number: at(value_of(number)), most, first=first_number)
    fitting = value_of(value) if value else 0
    reason = f"no more than {_MOST_ON_AXIS:,} was looked at"
    if failing is not None:
        beyond = at(value_of(failing))
        why = f"makes no network: {beyond}" if isinstance(beyond, str) else f"does not: {beyond.reason}"
        reason = f"{value_of(failing):,} {why}"
    if doubles:
        reason += f"; of values that double, as {3 * start:,} makes no network"
    elif stride > 1:
        reason += f"; in steps of {stride:,}, as {start + 1:,} makes no network"
    found = at(fitting) if fitting else ""
    taken = None if isinstance(found, str) else _taken(found)
    return Fit(axis, fitting, taken, bounded=failing is not None, traced=True, reason=reason, looked_at=max(known))


def axes_to_fit(configuration: Configuration) -> list[str]:
    """Names of all that can be searched for in a configuration."""
    taken = [name for name, value in configuration.settings or () if type(value) is int]
    if configuration.dataset != OWN_INPUTS:
        fields = [name for name in AXES_OF_FIELDS if name not in ("blocks", "batch_size", "image_shape", "threads")]
        positions = {name: configuration.position(name) for name in fields if OPTIONS[name].networks.have(configuration.model)}
        taken += [name for name, place in positions.items() if place is not None and place.is_integer()] + [IMAGE_SIZE]
    named = {"depth": configuration.blocks, "batch": configuration.batch_size}
    return [*(name for name, value in named.items() if value), *taken]


def check_axis(configuration: Configuration, axis: str) -> None:
    """Refuse an axis other than depth and batch on which a configuration has no whole number.

    Raises:
        ConfigurationError: it has none.
    """
    known = axes_to_fit(configuration)
    if axis not in known:
        raise ConfigurationError(
            f"`fit` {axis}: model '{configuration.model}' takes no whole number of this name",
            suggesting(axis, known, f"search for one of {', '.join(known)}"),
        )


def _value_on(configuration: Configuration, axis: str) -> int:
    """The value of a configuration on an axis."""
    check_axis(configuration, axis)
    if axis == IMAGE_SIZE and axis not in dict(configuration.settings or ()):
        return configuration.spec().shape[1]
    return max(1, int(configuration.position(axis) or 1))


def _changed(configuration: Configuration, axis: str, value: int) -> Configuration:
    """The configuration with another value on an axis."""
    if axis in dict(configuration.settings or ()):
        made = tuple((name, value if name == axis else one) for name, one in configuration.settings or ())
        return configuration.model_copy(update={"settings": made})
    if axis == IMAGE_SIZE:
        return configuration.model_copy(update={"image_shape": f"{configuration.spec().shape[0]}x{value}x{value}"})
    return configuration.model_copy(update={axis: value})


def neighbours(
    at: Callable[[int], Prediction | str], most: int, *, first: int = 1, share: float = 0.01
) -> tuple[int, int | None]:
    """The largest size that fits (0 if none does) and the next that was found not to (None if `most` fits).

    Args:
        at: predicts a size, and remembers what it predicted; a text is the reason that there is none of this size.
        most: largest size that is looked at.
        first: size to begin with.
        share: distance of the two sizes, as a share of the smaller, at which the search ends; 0 to look at every one between.
    """
    fitting, failing = (first, most + 1) if _fits(at(first)) else (0, first)
    # Bytes grow nearly evenly, so a line through two known values gives the next guess.
    known, stride, halved = {first, min(first + 31, most)}, 1, True
    while (width := failing - fitting) > max(1, int(fitting * share)):
        bounded = failing <= most
        low = max((size for size in known if size <= fitting), default=min(known))
        high = min((size for size in known if size >= failing and size != low), default=max(known))
        # Before any that does not fit, the last two that were looked at: the first ones may have grown faster.
        guess = _on_line(at, low if low < high else max((size for size in known if size < high), default=high), high)
        if bounded:
            # Stay off both ends, so that each look narrows the range, and take the middle after one that did not halve it.
            margin = max(1, int(fitting * share), width // 16)
            guess = min(max(guess, fitting + margin), failing - margin) if halved else (fitting + failing) // 2
        else:
            if guess <= fitting:
                # It should not fit; if it does, the line was too steep, and longer strides find the end sooner.
                guess, stride = fitting + stride, 2 * stride
            guess = min(guess, 32 * max(fitting, 1), most)
        fitting, failing = (guess, failing) if _fits(at(guess)) else (fitting, guess)
        halved = not bounded or 2 * (failing - fitting) <= width
        known.add(guess)
    return fitting, failing if failing <= most else None


def _fits(found: Prediction | str) -> bool:
    return not isinstance(found, str) and found.fits


def _on_line(at: Callable[[int], Prediction | str], low: int, high: int) -> int:
    """The size at which a line through two values reaches the room; the middle where one of them has no value."""
    small, large = at(low), at(high)
    if isinstance(small, str) or isinstance(large, str):
        return (low + high) // 2
    below, above, room = _taken(small), _taken(large), large.room_bytes
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
    outside = {blocks: _taken(one) - (one.memory.peak_allocated_bytes or 0) for blocks, one in traced.items()}
    found = []
    for peak in ("peak_allocated_bytes", "peak_forward_bytes", "peak_backward_bytes"):
        one = _growth({blocks: getattr(prediction.memory, peak) for blocks, prediction in traced.items()})
        found.append(one._replace(nbytes=one.nbytes + max(outside.values()), per_block=max(one.per_block, standing)))
    if len(set(outside.values())) > 1:
        reserved = _reserved({blocks: _taken(one) for blocks, one in traced.items()})
        found.append(reserved._replace(nbytes=reserved.nbytes + max(outside.values()) - outside[last]))
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
