"""Fixed-point numbers whose product with γ can be undone bit for bit.

A number is an int64 in units of 2⁻⁵⁰, of magnitude below 2¹¹. γ is a ratio n/d of small integers, and a product v·n/d drops
log2(d/n) bits: `Remainders` keeps them (Maclaurin, Duvenaud and Adams 2015, *Gradient-based Hyperparameter Optimization
through Reversible Learning*, algorithm 3), which is the least that information theory allows: 0.152 bit per product at γ = 0.9.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from capsbench.errors import ConfigurationError

FRACTION_BITS = 50
"""Number of bits after the point, in a unit of 2⁻⁵⁰: float32 numbers from 2⁻²⁷ up have no smaller bit, and are exact."""

LIMIT = 2**61
"""Bound in units on the magnitudes of x and of the addend of v, which leaves their sums room in an int64."""

MAX_DENOMINATOR = 2**16
"""Largest d of the ratio n/d, which is at most 2⁻¹⁷/d away from γ, and equals a γ that is a short decimal.

The bits from the store move a product by less than n units, so a larger d would cost the precision that it brings.
"""

UNITS = 2.0**FRACTION_BITS
"""Number of units in 1."""

_WORD_BITS = 32
_WORD_OFFSET = 2 ** (_WORD_BITS - 1)
_STORE_LIMIT = 2**63


@lru_cache
def ratio_of(gamma: float) -> Fraction:
    """The ratio of small integers nearest to γ, with which exact arithmetic computes.

    Raises:
        ConfigurationError: γ is so near to 0 or 1 that the ratio would be another γ.
    """
    ratio = Fraction(gamma).limit_denominator(MAX_DENOMINATOR)
    if abs(ratio - Fraction(gamma)) > Fraction(1, 1000) * min(Fraction(gamma), 1 - Fraction(gamma)):
        raise ConfigurationError(
            f"`gamma` {gamma} is too near to 0 or 1 for the exact inverse, which would compute with {float(ratio):g}",
            "choose a `gamma` from 0.01 to 0.99, or `inverse` float or segmented",
        )
    return ratio


@lru_cache
def share_of(gamma: float) -> float:
    """The share 1 - n/d of a function's value in the velocity."""
    return float(1 - ratio_of(gamma))


def to_units(values: Tensor, scale: float = 1.0) -> Tensor:
    """Convert `values · scale` to units, rounded to the nearest; the result is meaningless if it is not below `LIMIT`."""
    return (values.to(torch.float64) * (scale * UNITS)).round_().to(torch.int64)


def largest_in_units(values: Tensor, scale: float = 1.0) -> Tensor:
    """The largest magnitude of `values · scale` in units, to compare with `LIMIT`; NaN if there is one."""
    return largest(values) * (scale * UNITS)


def from_units(units: Tensor, dtype: torch.dtype) -> Tensor:
    """The number as a float, rounded to `dtype`."""
    return (units.to(torch.float64) / UNITS).to(dtype)


def largest(values: Tensor) -> Tensor:
    """The largest magnitude, float64 and without dimensions; NaN if there is one, 0 of nothing."""
    if not values.numel():
        return values.new_zeros((), dtype=torch.float64)
    low, high = torch.aminmax(values)
    return torch.maximum(-low.to(torch.float64), high.to(torch.float64))


@dataclass
class Remainders:
    """The bits that products with ratios n/d, above 0 and at most 1, dropped: one store per element of the multiplied tensor.

    The store is an integer below `bound`, which is known without reading it: it grows by d/n with each product. Before it
    could leave an int64, its low 32 bits go to a list of words.

    Args:
        store: int64, the shape of the multiplied tensor; zeros at first.
    """

    store: Tensor
    bound: int = 1
    products: int = 0
    words: list[tuple[int, Tensor]] = field(default_factory=list)
    """Words, each with the number of products before it was moved out."""

    def multiply(self, v: Tensor, ratio: Fraction) -> Tensor:
        """Multiply v by n/d to an int64 of magnitude at most |v| + n; the dropped bits go to the store."""
        n, d = ratio.numerator, ratio.denominator
        self.make_room(ratio)
        if n == d:
            return v
        quotient, remainder = _divide(v, d)
        self.store, digit = _divide(self.store.mul(d).add_(remainder), n)
        return torch.add(digit, quotient, alpha=n)

    def make_room(self, ratio: Fraction) -> None:
        """Count a product with `ratio`, after which the store is below `bound`; move out what would not fit."""
        n, d = ratio.numerator, ratio.denominator
        if self.bound * d > _STORE_LIMIT:
            self._move_out()
        self.products += 1
        self.bound = -(-self.bound * d // n)

    def undo(self, v: Tensor, ratio: Fraction) -> Tensor:
        """The tensor that `multiply` was given with `ratio` when it returned `v`; the last product first."""
        n, d = ratio.numerator, ratio.denominator
        self.take_back()
        if n == d:
            return v
        quotient, digit = _divide(v, n)
        self.store, remainder = _divide(self.store.mul(n).add_(digit), d)
        return torch.add(remainder, quotient, alpha=d)

    def take_back(self) -> None:
        """Uncount the last product; put back what was moved out after it."""
        while self.words and self.words[-1][0] == self.products:
            _, word = self.words.pop()
            self.store = (self.store << _WORD_BITS) + (word.to(torch.int64) + _WORD_OFFSET)
        self.products -= 1

    def saved(self) -> tuple[tuple[Tensor, ...], Callable[[Sequence[Tensor]], "Remainders"]]:
        """All tensors that must be kept, in the narrowest types, and a function that makes the remainders from them."""
        if self.bound > _WORD_OFFSET:
            self._move_out()
        bound, products, marks = self.bound, self.products, [mark for mark, _ in self.words]

        def rebuild(tensors: Sequence[Tensor]) -> "Remainders":
            store, *words = tensors
            return Remainders(store.to(torch.int64, copy=True), bound, products, list(zip(marks, words, strict=True)))

        types = (torch.uint8, torch.int16, torch.int32)
        narrowest = next((dtype for dtype in types if bound - 1 <= torch.iinfo(dtype).max), torch.int64)
        return (self.store.to(narrowest), *(word for _, word in self.words)), rebuild

    def _move_out(self) -> None:
        low = self.store & (2**_WORD_BITS - 1)
        self.words.append((self.products, (low - _WORD_OFFSET).to(torch.int32)))
        self.store = self.store >> _WORD_BITS
        self.bound = ((self.bound - 1) >> _WORD_BITS) + 1


def _divide(values: Tensor, divisor: int) -> tuple[Tensor, Tensor]:
    """Quotient, rounded down, and remainder, from 0 to `divisor` - 1."""
    if divisor == 1:
        return values, torch.zeros_like(values)
    quotient = torch.div(values, divisor, rounding_mode="floor")
    return quotient, torch.sub(values, quotient, alpha=divisor)
