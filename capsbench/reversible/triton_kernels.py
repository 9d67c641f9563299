"""The exact inverse's passes over memory as Triton kernels, with the steps and the bits of `fixed_point` and `pair`.

x, v and the store are int64, changed in place, x and v in units of 2⁻⁵⁰. A product with n/d keeps what it drops in the store.
Products and sums of floats must each be rounded, so the kernels are compiled without contraction. `scale_bits` has the bits of a
float64, because Triton passes Python's numbers as float32.
"""
# Parameters are Triton's pointers and scalars, for which Python has no types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disable-error-code="arg-type,assignment"

import triton
import triton.language as tl

_kernel = triton.jit(do_not_specialize=["count", "n", "d", "scale_bits"])


@triton.jit
def divided(values, divisor):
    """Quotient, rounded down, and remainder, which is at least 0."""
    quotient = values // divisor
    rest = values - quotient * divisor
    # Triton rounds towards 0.
    below = (rest < 0).to(tl.int64)
    return quotient - below, rest + below * divisor


@triton.jit
def whole(values):
    """Float64 numbers to the nearest integer, halves to the even one, as torch rounds."""
    size = tl.abs(values)
    up: tl.constexpr = 4503599627370496.0  # 2⁵²: the sum of a smaller number with it has no bit below 1
    near = tl.where(size < up, (size + up) - up, size).to(tl.int64)
    return tl.where(values < 0, -near, near)


@triton.jit
def as_float(units, like):
    """Units as numbers of the type of `like`."""
    return (units.to(tl.float64) * 8.8817841970012523e-16).to(like.dtype.element_ty)  # 2⁻⁵⁰


@_kernel
def exact_advance(x, v, store, value, rounded, peaks, count, n, d, scale_bits, SIZE: tl.constexpr):
    """Set v to v·n/d + value and x to x + v; x rounded; each program's largest magnitude of an addend or of x, NaN if one is."""
    here = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    real = here < count
    n, d, scale = n.to(tl.int64), d.to(tl.int64), scale_bits.to(tl.float64, bitcast=True)
    quotient, rest = divided(tl.load(v + here, mask=real, other=0), d)
    left, digit = divided(tl.load(store + here, mask=real, other=0) * d + rest, n)
    given = tl.load(value + here, mask=real, other=0).to(tl.float64)
    now_v = quotient * n + digit + whole(given * scale)
    now_x = tl.load(x + here, mask=real, other=0) + now_v
    tl.store(v + here, now_v, mask=real)
    tl.store(x + here, now_x, mask=real)
    tl.store(store + here, left, mask=real)
    tl.store(rounded + here, as_float(now_x, rounded), mask=real)
    of_x = tl.max(tl.where(real, tl.abs(now_x.to(tl.float64)), 0), 0)
    peak = tl.maximum(tl.max(tl.abs(given), 0) * scale, of_x)
    is_nan = tl.max((given != given).to(tl.int32), 0)
    tl.store(peaks + tl.program_id(0), tl.where(is_nan > 0, float("nan"), peak))


@_kernel
def exact_retreat_x(x, v, rounded, count, SIZE: tl.constexpr):
    """Set x to x − v; the same rounded."""
    here = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    real = here < count
    earlier = tl.load(x + here, mask=real, other=0) - tl.load(v + here, mask=real, other=0)
    tl.store(x + here, earlier, mask=real)
    tl.store(rounded + here, as_float(earlier, rounded), mask=real)


@_kernel
def exact_retreat(x, v, store, value, rounded, count, n, d, scale_bits, SIZE: tl.constexpr):
    """Set v and the store to what `exact_advance` was given, and x to x − v with that v; x rounded."""
    here = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    real = here < count
    n, d, scale = n.to(tl.int64), d.to(tl.int64), scale_bits.to(tl.float64, bitcast=True)
    added = whole(tl.load(value + here, mask=real, other=0).to(tl.float64) * scale)
    quotient, digit = divided(tl.load(v + here, mask=real, other=0) - added, n)
    left, rest = divided(tl.load(store + here, mask=real, other=0) * n + digit, d)
    before = quotient * d + rest
    earlier = tl.load(x + here, mask=real, other=0) - before
    tl.store(x + here, earlier, mask=real)
    tl.store(v + here, before, mask=real)
    tl.store(store + here, left, mask=real)
    tl.store(rounded + here, as_float(earlier, rounded), mask=real)
