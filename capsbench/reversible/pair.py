"""The pair (x, v) of the momentum rule, and the ways to take it forward and back again.

float       rounds in both directions: nothing is kept but the last pair, and it drifts (`drift`)
segmented   float, and keeps the pair every k functions: the drift is that of k functions, and is checked
exact       fixed point, and keeps the bits that a product with γ drops (`fixed_point`): no drift at any depth
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import torch
from torch import Tensor

from capsbench.errors import ConfigurationError
from capsbench.reversible.drift import DRIFT_BOUND, LIPSCHITZ, bound_of, check_drift, has_values, segment_length
from capsbench.reversible.fixed_point import LIMIT, Remainders, from_units, largest, largest_in_units, ratio_of, to_units
from capsbench.reversible.momentum import Gamma, check_gamma, each, previous_velocity, spread, step

INVERSES = ("auto", "float", "exact", "segmented")
"""How a reversible stack inverts itself. `auto` is one of the others (`resolve_inverse`)."""


class Pair(Protocol):
    """The state of a stack between two functions; it moves in place and holds no graph."""

    @property
    def x(self) -> Tensor:
        """What the next function is given, or in backward the last one was given."""

    @property
    def v(self) -> Tensor:
        """The velocity, in the dtype of x."""

    def advance(self, value: Tensor, gamma: float) -> None:
        """Past a function, with `value` = f(x) and that function's γ."""

    def retreat_x(self) -> None:
        """Take x to before the last function: half of the way back, after which that function can be evaluated."""

    def retreat_v(self, value: Tensor, gamma: float) -> None:
        """Take v to before the last function, with `value` = f(x) and the γ that it came with: the other half."""

    def saved(self) -> tuple[tuple[Tensor, ...], "Rebuild"]:
        """All tensors that backward needs, and what makes the pair of them again (as often as it is asked to)."""

    def finish(self) -> None:
        """Back at the start, where v was 0: says so if it is not."""


Rebuild = Callable[[Sequence[Tensor]], Pair]


class OutOfRange(ConfigurationError):
    """A value that the exact inverse cannot hold."""


@dataclass
class FloatPair:
    """x and v in floating point. `x` any shape, `v` the same."""

    x: Tensor
    v: Tensor
    bound: float = field(default=DRIFT_BOUND, kw_only=True)
    """The drift that is accepted, relative to the largest |x|."""
    later: Tensor | None = field(default=None, kw_only=True)
    """On the way back, x after the function that is being undone."""

    @classmethod
    def start(cls, x: Tensor, bound: float = DRIFT_BOUND) -> Self:
        """Before the first function."""
        return cls(x, torch.zeros_like(x), bound=bound)

    def advance(self, value: Tensor, gamma: float) -> None:
        """See `Pair`."""
        self.x, self.v = step(self.x, self.v, value, gamma)

    def retreat_x(self) -> None:
        """See `Pair`."""
        self.later, self.x = self.x, self.x - self.v

    def retreat_v(self, value: Tensor, gamma: float) -> None:
        """See `Pair`."""
        self.v = previous_velocity(self.v, value, gamma)

    def saved(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        """See `Pair`."""
        bound = self.bound

        def rebuild(tensors: Sequence[Tensor]) -> FloatPair:
            x, v = tensors
            return FloatPair(x, v, bound=bound)

        return (self.x, self.v), rebuild

    def finish(self) -> None:
        """See `Pair`."""
        self._check(self.v, inverse="float", depth=0)

    def _check(self, difference: Tensor, *, inverse: str, depth: int) -> None:
        # An input of zeros has no size; what rounded was the x that it led to.
        sizes = [largest(x) for x in (self.x, self.later) if x is not None]
        check_drift(largest(difference), torch.stack(sizes).amax(), inverse=inverse, depth=depth, bound=self.bound)


@dataclass
class SegmentedPair(FloatPair):
    """A `FloatPair` that keeps itself before every `length`-th function, and returns to what it kept."""

    length: int
    position: int = 0
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def start_segmented(cls, x: Tensor, length: int, bound: float) -> Self:
        """Before the first function."""
        return cls(x, torch.zeros_like(x), length, bound=bound)

    def advance(self, value: Tensor, gamma: float) -> None:
        """See `Pair`."""
        if self.position % self.length == 0:
            self.kept.append((self.x, self.v))
        super().advance(value, gamma)
        self.position += 1

    def retreat_x(self) -> None:
        """See `Pair`. At a kept pair the function is evaluated at the x that it had."""
        super().retreat_x()
        self.position -= 1
        if self.position % self.length == 0:
            rebuilt, self.x = self.x, self.kept[-1][0]
            self._check(rebuilt - self.x, inverse="segmented", depth=self.position)

    def retreat_v(self, value: Tensor, gamma: float) -> None:
        """See `Pair`."""
        super().retreat_v(value, gamma)
        if self.position % self.length == 0:
            rebuilt, self.v = self.v, self.kept.pop()[1]
            self._check(rebuilt - self.v, inverse="segmented", depth=self.position)

    def saved(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        """See `Pair`. The first v is 0 and not kept."""
        length, position, bound = self.length, self.position, self.bound
        (first, _), *rest = self.kept

        def rebuild(tensors: Sequence[Tensor]) -> SegmentedPair:
            x, v, first, *rest = tensors
            kept = [(first, torch.zeros_like(first)), *zip(rest[::2], rest[1::2], strict=True)]
            return SegmentedPair(x, v, length, position, kept, bound=bound)

        return (self.x, self.v, first, *(tensor for pair in rest for tensor in pair)), rebuild

    def finish(self) -> None:
        """See `Pair`. All has been checked."""


@dataclass
class FixedPair:
    """x and v in units of `fixed_point`, with the remainders of all products: backwards bit for bit.

    The input is rounded to a unit first, and that is the stack's input. A function is given x rounded to `dtype`, the same
    in both directions. The largest magnitudes are looked at when the pair is saved, so that a device is asked once.

    Raises (`saved`):
        OutOfRange: a value left the range, or was not a number.
    """

    units_x: Tensor
    units_v: Tensor
    remainders: Remainders
    dtype: torch.dtype
    peaks: list[Tensor] = field(default_factory=list)

    @classmethod
    def start(cls, x: Tensor) -> Self:
        """Before the first function."""
        units = to_units(x)
        zeros = torch.zeros_like(units)
        return cls(units, zeros, Remainders(zeros), x.dtype, [largest_in_units(x)])

    @property
    def x(self) -> Tensor:
        """See `Pair`."""
        return from_units(self.units_x, self.dtype)

    @property
    def v(self) -> Tensor:
        """See `Pair`."""
        return from_units(self.units_v, self.dtype)

    def advance(self, value: Tensor, gamma: float) -> None:
        """See `Pair`."""
        ratio = ratio_of(gamma)
        share = float(1 - ratio)
        self.units_v = self.remainders.multiply(self.units_v, ratio).add(to_units(value, share))
        self.units_x = self.units_x + self.units_v
        # While x and what is added to v are below 2⁶¹, v is a difference of two x below 2⁶² and no sum wraps round.
        self.peaks.append(torch.maximum(largest_in_units(value, share), largest(self.units_x)))

    def retreat_x(self) -> None:
        """See `Pair`."""
        self.units_x = self.units_x - self.units_v

    def retreat_v(self, value: Tensor, gamma: float) -> None:
        """See `Pair`."""
        ratio = ratio_of(gamma)
        self.units_v = self.remainders.undo(self.units_v - to_units(value, float(1 - ratio)), ratio)

    def saved(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        """See `Pair`."""
        self._check_range()
        kept, rebuild_remainders = self.remainders.saved()
        dtype = self.dtype

        def rebuild(tensors: Sequence[Tensor]) -> FixedPair:
            x, v, *remainders = tensors
            return FixedPair(x, v, rebuild_remainders(remainders), dtype)

        return (self.units_x, self.units_v, *kept), rebuild

    def finish(self) -> None:
        """See `Pair`."""
        # Integers come back to the bit, or a function gave another value than in forward.
        check_drift(largest(self.units_v), largest(self.units_x), inverse="exact", depth=0, bound=0)

    def _check_range(self) -> None:
        if not has_values(self.units_x):
            return
        peaks = torch.stack(self.peaks).tolist()
        for place, peak in enumerate(peaks):
            if not peak < LIMIT:  # NaN neither
                where = f"after function {place - 1}" if place else "in the stack's input"
                size = "NaN" if math.isnan(peak) else f"{peak / LIMIT:.3g} times too large"
                raise OutOfRange(
                    f"a value {where} is {size} for the exact inverse, which holds magnitudes below 2048",
                    "choose inverse float or segmented, or keep the activations smaller",
                )


def start_pair(
    inverse: str, x: Tensor, gammas: Sequence[float], lipschitz: float, precision: torch.dtype = torch.float32
) -> tuple[Pair, list[float]]:
    """The pair (x, 0), and the γ of each function that it computes with: `exact` has ratios.

    Args:
        inverse: one of `INVERSES` but not `auto`.
        x: any shape.
        gammas: of each function.
        lipschitz: assumed of the functions.
        precision: the narrowest type that functions compute in, which decides what counts as drift.
    """
    bound = bound_of(precision)
    if inverse == "exact":
        return FixedPair.start(x), [float(ratio_of(gamma)) for gamma in gammas]
    length = segment_length(min(gammas), lipschitz)
    if inverse == "segmented" and length is not None:
        return SegmentedPair.start_segmented(x, length, bound), list(gammas)
    return FloatPair.start(x, bound), list(gammas)


def check_inverse(inverse: str, gamma: Gamma, *, learnt: bool = False) -> None:
    """Refuse an inverse that is not one of `INVERSES`, and a γ that it cannot compute with.

    Raises:
        ConfigurationError: it is not, or cannot.
    """
    if inverse not in INVERSES:
        raise ConfigurationError(f"inverse '{inverse}' is not known", f"choose one of {', '.join(INVERSES)}")
    if inverse != "exact":
        return
    if learnt:
        raise ConfigurationError(
            "inverse 'exact' cannot be had with a gamma that is learnt: it computes with a ratio of small integers",
            "choose inverse auto, float or segmented, or fix gamma",
        )
    for one in each(gamma):
        ratio_of(one)


def resolve_inverse(
    inverse: str,
    functions: int,
    gamma: Gamma,
    *,
    lipschitz: float = LIPSCHITZ,
    dtype: torch.dtype = torch.float32,
    learnt: bool = False,
) -> str:
    """What `auto` is for a stack: `float` while it cannot drift past the bound, else what keeps less, `exact` or `segmented`.

    Args:
        inverse: one of `INVERSES`; all but `auto` are returned as they are.
        functions: how many the stack has.
        gamma: the momentum term, above 0, or that of each function; the smallest decides how far `float` may go.
        lipschitz: what the functions are assumed to be.
        dtype: of x. Fixed point has float32's precision, so `auto` is never `exact` for float64.
        learnt: whether γ is a parameter, with which `auto` is never `exact`.

    Raises:
        ConfigurationError: as `check_inverse`, or γ is out of range.
    """
    check_inverse(inverse, gamma, learnt=learnt)
    if inverse != "auto":
        return inverse
    check_gamma(gamma, invertible=True)
    offered = ("float", "segmented") if learnt or dtype == torch.float64 else ("float", "exact", "segmented")
    return min(offered, key=lambda name: retained_bits(name, functions, gamma, lipschitz))


def retained_bits(inverse: str, functions: int, gamma: Gamma, lipschitz: float = LIPSCHITZ) -> float:
    """Bits per element that a float32 stack keeps; infinite where the inverse would not hold what it promises.

    Arguments as `resolve_inverse`.
    """
    gammas = spread(gamma, functions)
    length = segment_length(min(gammas, default=1), lipschitz)
    if inverse == "float":
        return 64 if length is None or functions <= length else math.inf
    if inverse == "segmented":
        return 32 + 64 * math.ceil(functions / length) if length else 64
    try:
        return 128 - sum(count * math.log2(ratio_of(one)) for one, count in Counter(gammas).items())
    except ConfigurationError:
        return math.inf
