"""The exact inverse's steps as operators of torch, and numbers at which they are most easily wrong."""

from fractions import Fraction

import torch
from torch import Tensor

from capsbench.reversible.fixed_point import LIMIT, UNITS, Remainders, largest, to_units

RATIOS = [
    Fraction(*pair) for pair in ((9, 10), (1, 2), (1, 3), (99, 100), (1, 2**16), (2**16 - 1, 2**16), (65519, 65521), (2, 3))
]


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    """Assert the same bits, dtypes and strides."""
    for mine, theirs in zip(actual, expected, strict=True):
        assert (mine.dtype, mine.stride()) == (theirs.dtype, theirs.stride())
        assert torch.equal(mine, theirs)


def advanced_by_torch(x: Tensor, v: Tensor, store: Tensor, value: Tensor, ratio: Fraction) -> list[Tensor]:
    """The results of `advance`, from operators of torch."""
    remainders = Remainders(store)
    share = float(1 - ratio)
    next_v = remainders.multiply(v, ratio).add(to_units(value, share))
    next_x = x + next_v
    peak = torch.maximum(largest(value) * (share * UNITS), largest(next_x))
    return [next_x, next_v, remainders.store, rounded_by_torch(next_x, value.dtype), peak]


def rounded_by_torch(units: Tensor, dtype: torch.dtype) -> Tensor:
    """Units as floats, from operators of torch."""
    return (units.to(torch.float64) / UNITS).to(dtype)


def edges(ratio: Fraction) -> Tensor:
    """Multiples of both numbers of a ratio and of powers of two, their neighbours, and the ends of the range, in both signs."""
    n, d = ratio.numerator, ratio.denominator
    whole = {k * 2**bits for bits in range(62) for k in (1, n, d, n * d, d // 2) if k * 2**bits < 2**62}
    whole |= {k * factor for k in (1, 2, 3) for factor in (n, d)} | {2**62 - 1, 2**62 - d, LIMIT - 1}
    near = {sign * (one + by) for one in whole for by in (-1, 0, 1) for sign in (1, -1) if one + by < 2**62}
    return torch.tensor(sorted({0, *near}))


def at_edges(ratio: Fraction, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The values x, v, store and f(x) of a step, with every v at an edge of its product with this ratio."""
    v = edges(ratio)
    store = (v.abs() % (2**63 // ratio.denominator)).flip(0)
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(v.shape, generator=generator, dtype=dtype) * 10.0 ** torch.randint(-15, 3, v.shape, generator=generator)
    return torch.zeros_like(v), v, store, value.to(dtype)


def halves_of_a_unit(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The values x, v, store and f(x) of a step at ratio 1/2: up to 2⁵¹ units a float64 has halves, up to 2⁵⁰ quarters."""
    halves = [sign * (2**bits + k / 4) for bits in range(54) for k in range(-7, 8) for sign in (1, -1)]
    value = (torch.tensor(halves, dtype=torch.float64) / (0.5 * UNITS)).to(dtype)
    zeros = torch.zeros(value.shape, dtype=torch.int64)
    return zeros, zeros, zeros, value
