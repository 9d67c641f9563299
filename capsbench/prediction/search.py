"""The search for the largest size that fits, whatever the size is of."""

from collections.abc import Callable
from dataclasses import dataclass

from capsbench.prediction.predict import Prediction

Looking = Callable[[str, int], None]
"""Function that is called with the name of an axis and the size on it that is traced next."""


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
    lower_bound: bool = False
    """True if the bytes are a lower bound, since sizes of tensors depend on values: less may fit."""


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
    below, above, room = taken(small), taken(large), large.room_bytes
    if room is None or above <= below or high == low:
        return 2 * high
    return low + int((high - low) * (room - below) / (above - below))


def taken(found: Prediction) -> int:
    """Bytes that the process of a prediction takes: on a CPU the highest point of the step."""
    memory = found.memory
    return (memory.peak_allocated_bytes or 0) if memory.process_bytes is None else memory.process_bytes
