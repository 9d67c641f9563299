"""The pair (x, v) of the momentum rule, and the ways to move it forward and back.

float       rounds in both directions: only the last pair is kept, and it drifts (`drift`)
segmented   float, and keeps the pair every k functions: the drift is that of k functions, and is checked
exact       fixed point, and keeps the bits that a product with γ drops (`fixed_point`): no drift at any depth
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Protocol, Self

import torch
from torch import Tensor

from capsbench.errors import ConfigurationError, unknown_name
from capsbench.reversible import passes
from capsbench.reversible.drift import DRIFT_BOUND, LIPSCHITZ, bound_of, check_drift, has_values, is_capturing, segment_length
from capsbench.reversible.fixed_point import (
    LIMIT,
    UNITS,
    Remainders,
    from_units,
    largest,
    largest_in_units,
    ratio_of,
    share_of,
    to_units,
)
from capsbench.reversible.momentum import Gamma, check_gamma, each, previous_velocity, spread, step

INVERSES = ("auto", "float", "exact", "segmented")
"""Inverses of a reversible stack. `auto` stands for one of the others (`resolve_inverse`)."""


class Pair(Protocol):
    """The state of a stack between two functions; it moves in place and holds no graph."""

    @property
    def x(self) -> Tensor:
        """Input of the next function or, in backward, of the last one."""

    @property
    def v(self) -> Tensor:
        """The velocity, in the dtype of x."""

    def advance(self, value: Tensor, gamma: float) -> None:
        """Move past a function, with `value` = f(x) and that function's γ."""

    def retreat_x(self) -> None:
        """Move x back before the last function, which is half of the way; then that function can be evaluated."""

    def retreat_v(self, value: Tensor, gamma: float) -> None:
        """Move v back before the last function, with `value` = f(x) and the function's γ: the other half."""

    def saved(self) -> tuple[tuple[Tensor, ...], "Rebuild"]:
        """All tensors that backward needs, and a function that makes the pair from them, any number of times."""

    def finish(self) -> None:
        """Warn at the start if v, which was 0 there, is not 0."""


Rebuild = Callable[[Sequence[Tensor]], Pair]


class OutOfRange(ConfigurationError):
    """A value that the exact inverse cannot hold."""

    def __init__(self, where: str, peak: float) -> None:
        """The place of a value, and its magnitude in units."""
        self.finite = math.isfinite(peak)
        """False for a value that no inverse could undo."""
        size = "NaN" if math.isnan(peak) else f"{peak / LIMIT:.3g} times too large"
        super().__init__(
            f"a value {where} is {size} for the exact inverse, which holds magnitudes below 2048",
            "choose inverse float or segmented, or keep the activations smaller",
        )


@dataclass
class FloatPair:
    """x and v in floating point. `x` any shape, `v` the same."""

    x: Tensor
    v: Tensor
    bound: float = field(default=DRIFT_BOUND, kw_only=True)
    """Accepted drift, relative to the largest |x|."""
    later: Tensor | None = field(default=None, kw_only=True)
    """Value of x after the function that is being undone, on the way back."""

    def advance(self, value: Tensor, gamma: float) -> None:
        """Implement `Pair.advance`."""
        self.x, self.v = step(self.x, self.v, value, gamma)

    def retreat_x(self) -> None:
        """Implement `Pair.retreat_x`."""
        self.later, self.x = self.x, self.x - self.v

    def retreat_v(self, value: Tensor, gamma: float) -> None:
        """Implement `Pair.retreat_v`."""
        self.v = previous_velocity(self.v, value, gamma)

    def saved(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        """Implement `Pair.saved`."""
        bound = self.bound

        def rebuild(tensors: Sequence[Tensor]) -> FloatPair:
            x, v = tensors
            return FloatPair(x, v, bound=bound)

        return (self.x, self.v), rebuild

    def finish(self) -> None:
        """Implement `Pair.finish`."""
        self._check(self.v, inverse="float", depth=0)

    def _check(self, difference: Tensor, *, inverse: str, depth: int) -> None:
        # An input of zeros has no magnitude; the x that followed from it was rounded.
        states = [x for x in (self.x, self.later) if x is not None]
        check_drift(difference, states, inverse=inverse, depth=depth, bound=self.bound)


@dataclass
class SegmentedPair(FloatPair):
    """A `FloatPair` that keeps itself before every `length`-th function, and returns to the kept values."""

    length: int
    position: int = 0
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def advance(self, value: Tensor, gamma: float) -> None:
        """Implement `Pair.advance`."""
        if self.position % self.length == 0:
            self.kept.append((self.x, self.v))
        super().advance(value, gamma)
        self.position += 1

    def retreat_x(self) -> None:
        """Implement `Pair.retreat_x`. At a kept pair the function is evaluated at the x that it had."""
        super().retreat_x()
        self.position -= 1
        if self.position % self.length == 0:
            rebuilt, self.x = self.x, self.kept[-1][0]
            self._check(rebuilt - self.x, inverse="segmented", depth=self.position)

    def retreat_v(self, value: Tensor, gamma: float) -> None:
        """Implement `Pair.retreat_v`."""
        super().retreat_v(value, gamma)
        if self.position % self.length == 0:
            rebuilt, self.v = self.v, self.kept.pop()[1]
            self._check(rebuilt - self.v, inverse="segmented", depth=self.position)

    def saved(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        """Implement `Pair.saved`. The first v is 0 and not kept."""
        length, position, bound = self.length, self.position, self.bound
        (first, _), *rest = self.kept

        def rebuild(tensors: Sequence[Tensor]) -> SegmentedPair:
            x, v, first, *rest = tensors
            kept = [(first, torch.zeros_like(first)), *zip(rest[::2], rest[1::2], strict=True)]
            return SegmentedPair(x, v, length, position, kept, bound=bound)

        return (self.x, self.v, first, *(tensor for pair in rest for tensor in pair)), rebuild

    def finish(self) -> None:
        """Implement `Pair.finish`, with nothing left to check."""


@dataclass
class FixedPair:
    """The values x and v in units of `fixed_point`, with the remainders of all products, which go back bit for bit.

    The input is rounded to a unit first, and the result is the stack's input. A function gets x rounded to `dtype`, the same
    in both directions. The largest magnitudes are checked when the pair is saved, so that the device is read once.

    Raises (`saved`):
        OutOfRange: a value left the range, or was not a number.
        ConfigurationError: a CUDA graph is captured.
    """

    units_x: Tensor
    units_v: Tensor
    remainders: Remainders
    dtype: torch.dtype
    peaks: list[Tensor] = field(default_factory=list)
    rounded: Tensor | None = None
    """x as a float, if it is known."""
    ahead: bool = False
    """True if x is already before the function that is undone next."""
    has_passes: bool = field(init=False)
    """True if passes of their own move these numbers."""

    def __post_init__(self) -> None:
        self.has_passes = passes.has_passes(self.units_x, self.dtype)

    @classmethod
    def start(cls, x: Tensor) -> Self:
        """The pair before the first function."""
        units = to_units(x)
        # Passes change each of the three in place.
        return cls(units, torch.zeros_like(units), Remainders(torch.zeros_like(units)), x.dtype, [largest_in_units(x)])

    @property
    def x(self) -> Tensor:
        """Implement `Pair.x`."""
        if self.rounded is None:
            self.rounded = from_units(self.units_x, self.dtype)
        return self.rounded

    @property
    def v(self) -> Tensor:
        """Implement `Pair.v`."""
        return from_units(self.units_v, self.dtype)

    def advance(self, value: Tensor, gamma: float) -> None:
        """Implement `Pair.advance`."""
        ratio, share = ratio_of(gamma), share_of(gamma)
        self.rounded = None
        if self._passes(value, ratio):
            self.remainders.make_room(ratio)
            given = (self.units_x, self.units_v, self.remainders.store, value, ratio, share * UNITS, self.dtype)
            self.rounded, peak = passes.advance(*given)
        else:
            self.units_v = self.remainders.multiply(self.units_v, ratio).add(to_units(value, share))
            self.units_x = self.units_x + self.units_v
            peak = torch.maximum(largest_in_units(value, share), largest(self.units_x))
        # While x and the addend of v are below 2⁶¹, v is a difference of two x below 2⁶² and no sum overflows.
        self.peaks.append(peak)

    def retreat_x(self) -> None:
        """Implement `Pair.retreat_x`."""
        if self.ahead:
            self.ahead = False
        elif self.has_passes:
            self.rounded = passes.retreat_x(self.units_x, self.units_v, self.dtype)
        else:
            self.units_x, self.rounded = self.units_x - self.units_v, None

    def retreat_v(self, value: Tensor, gamma: float) -> None:
        """Implement `Pair.retreat_v`."""
        ratio, share = ratio_of(gamma), share_of(gamma)
        if self._passes(value, ratio):
            self.remainders.take_back()
            given = (self.units_x, self.units_v, self.remainders.store, value, ratio, share * UNITS, self.dtype)
            self.rounded = passes.retreat(*given)
            self.ahead = True
        else:
            self.units_v = self.remainders.undo(self.units_v - to_units(value, share), ratio)

    def _passes(self, value: Tensor, ratio: Fraction) -> bool:
        """Return whether passes of their own, in place of operators of torch, move past a function with this value."""
        # Comparing fractions takes a microsecond.
        return ratio.numerator < ratio.denominator and self.has_passes and passes.takes(value, self.dtype)

    def saved(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        """Implement `Pair.saved`."""
        self._check_range()
        kept, rebuild_remainders = self.remainders.saved()
        dtype = self.dtype

        def rebuild(tensors: Sequence[Tensor]) -> FixedPair:
            x, v, *remainders = tensors
            # Passes change them in place, and the saved ones may be needed again.
            return FixedPair(x.clone(), v.clone(), rebuild_remainders(remainders), dtype)

        return (self.units_x, self.units_v, *kept), rebuild

    def finish(self) -> None:
        """Implement `Pair.finish`."""
        # Integers come back bit for bit, unless a function gave another value than in forward.
        check_drift(self.units_v, [self.units_x], inverse="exact", depth=0, bound=0)

    def _check_range(self) -> None:
        if not has_values(self.units_x):
            return
        if is_capturing(self.units_x):
            raise ConfigurationError(
                "`inverse` exact reads the largest magnitude of its values, which is impossible inside a CUDA graph",
                "choose `inverse` auto, float or segmented",
            )
        for place, peak in enumerate(self._largest()):
            if not peak < LIMIT:  # this catches NaN too
                raise OutOfRange(f"after function {place - 1}" if place else "in the stack's input", peak)

    def _largest(self) -> list[float]:
        """The largest magnitude of each function, of which a device gives parts, by one read of the device."""
        parts = [peak.reshape(-1) for peak in self.peaks]
        together = torch.cat(parts).cpu()
        if len(together) == len(parts):
            peaks: list[float] = together.tolist()
            return peaks
        return [part.amax().item() for part in together.split([len(part) for part in parts])]


def start_pair(
    inverse: str, x: Tensor, gammas: Sequence[float], lipschitz: float, precision: torch.dtype = torch.float32
) -> tuple[Pair, list[float]]:
    """The pair (x, 0), and the γ of each function that it computes with: `exact` uses ratios.

    Args:
        inverse: one of `INVERSES`, except `auto`.
        x: any shape.
        gammas: γ of each function.
        lipschitz: Lipschitz constant that the functions are assumed to have.
        precision: the narrowest type that functions compute in, which decides what counts as drift.
    """
    bound = bound_of(precision)
    if inverse == "exact":
        return FixedPair.start(x), [float(ratio_of(gamma)) for gamma in gammas]
    length = segment_length(min(gammas), lipschitz)
    if inverse == "segmented" and length is not None:
        return SegmentedPair(x, torch.zeros_like(x), length, bound=bound), list(gammas)
    return FloatPair(x, torch.zeros_like(x), bound=bound), list(gammas)


def check_inverse(inverse: str, gamma: Gamma, *, learnt: bool = False) -> None:
    """Refuse an inverse that is not one of `INVERSES`, and a γ that it cannot compute with.

    Raises:
        ConfigurationError: the inverse is unknown, or cannot compute with γ.
    """
    if inverse not in INVERSES:
        raise unknown_name("`inverse`", inverse, INVERSES)
    if inverse != "exact":
        return
    if learnt:
        raise ConfigurationError(
            "`inverse` exact cannot compute with a gamma that is learnt: it needs a ratio of small integers",
            "choose `inverse` auto, float or segmented, or fix `gamma`",
        )
    for one in each(gamma):
        ratio_of(one)


def resolve_inverse(
    inverse: str, functions: int, gamma: Gamma, *, lipschitz: float = LIPSCHITZ, dtype: torch.dtype = torch.float32,
    learnt: bool = False,
) -> str:  # fmt: skip
    """Resolve `auto` for a stack: `float` while it cannot drift past the bound, else the one of the others that keeps less.

    Args:
        inverse: one of `INVERSES`; all but `auto` are returned as they are.
        functions: number of functions of the stack.
        gamma: the momentum term, above 0, or that of each function; the smallest limits the depth of `float`.
        lipschitz: Lipschitz constant that the functions are assumed to have.
        dtype: dtype of x. Fixed point has float32's precision, so `auto` is never `exact` for float64.
        learnt: whether γ is a parameter, with which `auto` is never `exact`.

    Raises:
        ConfigurationError: the inverse is unknown or cannot compute with γ, or γ is out of range.
    """
    check_inverse(inverse, gamma, learnt=learnt)
    if inverse != "auto":
        return inverse
    check_gamma(gamma, invertible=True)
    offered = ("float", "segmented") if learnt or dtype == torch.float64 else ("float", "exact", "segmented")
    return _least_kept(offered, functions, tuple(gamma) if isinstance(gamma, Sequence) else gamma, lipschitz)


@lru_cache
def _least_kept(offered: tuple[str, ...], functions: int, gamma: float | tuple[float, ...], lipschitz: float) -> str:
    """The inverse that keeps the least of those offered."""
    return min(offered, key=lambda name: retained_bits(name, functions, gamma, lipschitz))


def retained_bits(inverse: str, functions: int, gamma: Gamma, lipschitz: float = LIPSCHITZ) -> float:
    """Bits per element that a float32 stack keeps; infinite if the inverse would not keep its promise.

    The arguments are those of `resolve_inverse`.
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
