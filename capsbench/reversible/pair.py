"""The pair (x, v) of the momentum rule, and the ways to take it forward and back again.

float       rounds in both directions: nothing is kept but the last pair, and it drifts (`drift`)
segmented   float, and keeps the pair every k functions: the drift is that of k functions, and is checked
exact       fixed point, and keeps the bits that a product with γ drops (`fixed_point`): no drift at any depth
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import torch
from torch import Tensor

from capsbench.errors import ConfigurationError
from capsbench.reversible.drift import LIPSCHITZ, check_drift, has_values, segment_length
from capsbench.reversible.fixed_point import LIMIT, Remainders, from_units, largest, largest_in_units, ratio_of, to_units
from capsbench.reversible.momentum import check_gamma, previous_velocity, step

INVERSES = ("auto", "float", "exact", "segmented")
"""How a reversible stack inverts itself. `auto` is one of the others (`resolve_inverse`)."""


class Pair(Protocol):
    """The state of a stack between two functions; it moves in place and holds no graph."""

    @property
    def gamma(self) -> float:
        """The momentum term that it computes with."""

    @property
    def x(self) -> Tensor:
        """What the next function is given, or in backward the last one was given."""

    def advance(self, value: Tensor) -> None:
        """Past a function, with `value` = f(x)."""

    def retreat_x(self) -> None:
        """Takes x to before the last function: half of the way back, after which that function can be evaluated."""

    def retreat_v(self, value: Tensor) -> None:
        """Takes v to before the last function, with `value` = f(x): the other half."""

    def saved(self) -> tuple[tuple[Tensor, ...], "Rebuild"]:
        """All tensors that backward needs, and what makes the pair of them again (as often as it is asked to)."""

    def finish(self) -> None:
        """Back at the start, where v was 0: says so if it is not."""


Rebuild = Callable[[Sequence[Tensor]], Pair]


@dataclass
class FloatPair:
    """x and v in floating point. `x` any shape, `v` the same."""

    x: Tensor
    v: Tensor
    gamma: float
    later: Tensor | None = field(default=None, kw_only=True)
    """On the way back, x after the function that is being undone."""

    @classmethod
    def start(cls, x: Tensor, gamma: float) -> Self:
        """Before the first function."""
        return cls(x, torch.zeros_like(x), gamma)

    def advance(self, value: Tensor) -> None:
        """See `Pair`."""
        self.x, self.v = step(self.x, self.v, value, self.gamma)

    def retreat_x(self) -> None:
        """See `Pair`."""
        self.later, self.x = self.x, self.x - self.v

    def retreat_v(self, value: Tensor) -> None:
        """See `Pair`."""
        self.v = previous_velocity(self.v, value, self.gamma)

    def saved(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        """See `Pair`."""
        gamma = self.gamma

        def rebuild(tensors: Sequence[Tensor]) -> FloatPair:
            x, v = tensors
            return FloatPair(x, v, gamma)

        return (self.x, self.v), rebuild

    def finish(self) -> None:
        """See `Pair`."""
        self._check(self.v, inverse="float", depth=0)

    def _check(self, difference: Tensor, *, inverse: str, depth: int) -> None:
        # An input of zeros has no size; what rounded was the x that it led to.
        sizes = [largest(x) for x in (self.x, self.later) if x is not None]
        check_drift(largest(difference), torch.stack(sizes).amax(), inverse=inverse, depth=depth)


@dataclass
class SegmentedPair(FloatPair):
    """A `FloatPair` that keeps itself before every `length`-th function, and returns to what it kept."""

    length: int
    position: int = 0
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def start_segmented(cls, x: Tensor, gamma: float, length: int) -> Self:
        """Before the first function."""
        return cls(x, torch.zeros_like(x), gamma, length)

    def advance(self, value: Tensor) -> None:
        """See `Pair`."""
        if self.position % self.length == 0:
            self.kept.append((self.x, self.v))
        super().advance(value)
        self.position += 1

    def retreat_x(self) -> None:
        """See `Pair`. At a kept pair the function is evaluated at the x that it had."""
        super().retreat_x()
        self.position -= 1
        if self.position % self.length == 0:
            rebuilt, self.x = self.x, self.kept[-1][0]
            self._check(rebuilt - self.x, inverse="segmented", depth=self.position)

    def retreat_v(self, value: Tensor) -> None:
        """See `Pair`."""
        super().retreat_v(value)
        if self.position % self.length == 0:
            rebuilt, self.v = self.v, self.kept.pop()[1]
            self._check(rebuilt - self.v, inverse="segmented", depth=self.position)

    def saved(self) -> tuple[tuple[Tensor, ...], Rebuild]:
        """See `Pair`. The first v is 0 and not kept."""
        gamma, length, position = self.gamma, self.length, self.position
        (first, _), *rest = self.kept

        def rebuild(tensors: Sequence[Tensor]) -> SegmentedPair:
            x, v, first, *rest = tensors
            kept = [(first, torch.zeros_like(first)), *zip(rest[::2], rest[1::2], strict=True)]
            return SegmentedPair(x, v, gamma, length, position, kept)

        return (self.x, self.v, first, *(tensor for pair in rest for tensor in pair)), rebuild

    def finish(self) -> None:
        """See `Pair`. All has been checked."""


@dataclass
class FixedPair:
    """x and v in units of `fixed_point`, with the remainders of all products: backwards bit for bit.

    The input is rounded to a unit first, and that is the stack's input. A function is given x rounded to `dtype`, the same
    in both directions. The largest magnitudes are looked at when the pair is saved, so that a device is asked once.

    Raises (`saved`):
        ConfigurationError: a value left the range, or was not a number.
    """

    units_x: Tensor
    units_v: Tensor
    remainders: Remainders
    dtype: torch.dtype
    peaks: list[Tensor] = field(default_factory=list)

    @classmethod
    def start(cls, x: Tensor, gamma: float) -> Self:
        """Before the first function."""
        units = to_units(x)
        zeros = torch.zeros_like(units)
        return cls(units, zeros, Remainders(ratio_of(gamma), zeros), x.dtype, [largest_in_units(x)])

    @property
    def gamma(self) -> float:
        """See `Pair`: the ratio that stands for γ."""
        return float(self.remainders.ratio)

    @property
    def x(self) -> Tensor:
        """See `Pair`."""
        return from_units(self.units_x, self.dtype)

    def advance(self, value: Tensor) -> None:
        """See `Pair`."""
        self.units_v = self.remainders.multiply(self.units_v).add(to_units(value, self._share))
        self.units_x = self.units_x + self.units_v
        # While x and what is added to v are below 2⁶¹, v is a difference of two x below 2⁶² and no sum wraps round.
        self.peaks.append(torch.maximum(largest_in_units(value, self._share), largest(self.units_x)))

    def retreat_x(self) -> None:
        """See `Pair`."""
        self.units_x = self.units_x - self.units_v

    def retreat_v(self, value: Tensor) -> None:
        """See `Pair`."""
        self.units_v = self.remainders.undo(self.units_v - to_units(value, self._share))

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
        check_drift(largest(self.units_v), largest(self.units_x), inverse="exact", depth=0)

    @property
    def _share(self) -> float:
        """1 − γ: how much of f(x) is added to v."""
        return float(1 - self.remainders.ratio)

    def _check_range(self) -> None:
        if not has_values(self.units_x):
            return
        peaks = torch.stack(self.peaks).tolist()
        for place, peak in enumerate(peaks):
            if not peak < LIMIT:  # NaN neither
                where = f"after function {place - 1}" if place else "in the stack's input"
                size = "NaN" if math.isnan(peak) else f"{peak / LIMIT:.3g} times too large"
                raise ConfigurationError(
                    f"a value {where} is {size} for the exact inverse, which holds magnitudes below 2048",
                    "choose inverse float or segmented, or keep the activations smaller",
                )


def start_pair(inverse: str, x: Tensor, gamma: float, lipschitz: float) -> Pair:
    """The pair (x, 0); `inverse` is one of `INVERSES` but not `auto`."""
    if inverse == "exact":
        return FixedPair.start(x, gamma)
    length = segment_length(gamma, lipschitz)
    if inverse == "segmented" and length is not None:
        return SegmentedPair.start_segmented(x, gamma, length)
    return FloatPair.start(x, gamma)


def check_inverse(inverse: str, gamma: float) -> None:
    """Refuses an inverse that is not one of `INVERSES`, and a γ that it cannot compute with.

    Raises:
        ConfigurationError: it is not, or cannot.
    """
    if inverse not in INVERSES:
        raise ConfigurationError(f"inverse '{inverse}' is not known", f"choose one of {', '.join(INVERSES)}")
    if inverse == "exact":
        ratio_of(gamma)


def resolve_inverse(
    inverse: str, functions: int, gamma: float, *, lipschitz: float = LIPSCHITZ, dtype: torch.dtype = torch.float32
) -> str:
    """What `auto` is for a stack: `float` while it cannot drift past the bound, else what keeps less, `exact` or `segmented`.

    Args:
        inverse: one of `INVERSES`; all but `auto` are returned as they are.
        functions: how many the stack has.
        gamma: the momentum term, above 0.
        lipschitz: what the functions are assumed to be.
        dtype: of x. Fixed point has float32's precision, so `auto` is never `exact` for float64.

    Raises:
        ConfigurationError: as `check_inverse`, or γ is out of range.
    """
    check_inverse(inverse, gamma)
    if inverse != "auto":
        return inverse
    check_gamma(gamma, invertible=True)
    offered = ("float", "segmented") if dtype == torch.float64 else ("float", "exact", "segmented")
    return min(offered, key=lambda name: retained_bits(name, functions, gamma, lipschitz))


def retained_bits(inverse: str, functions: int, gamma: float, lipschitz: float = LIPSCHITZ) -> float:
    """Bits per element that a float32 stack keeps; infinite where the inverse would not hold what it promises."""
    length = segment_length(gamma, lipschitz)
    if inverse == "float":
        return 64 if length is None or functions <= length else math.inf
    if inverse == "segmented":
        return 32 + 64 * math.ceil(functions / length) if length else 64
    try:
        return 128 + functions * -math.log2(ratio_of(gamma))
    except ConfigurationError:
        return math.inf
