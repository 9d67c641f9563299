"""Kernels whose offsets have 32 or 64 bits, to test the check of offsets."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count"])
def narrow(numbers, count):
    """An offset that is a product of 32 bits."""
    tl.store(numbers + tl.program_id(0) * count, 1.0)


@triton.jit(do_not_specialize=["count"])
def narrow_in_a_loop(numbers, count):
    """An offset that is a product of a loop's index."""
    for index in range(count):
        tl.store(numbers + (index * 40).to(tl.int64), 1.0)


@triton.jit(do_not_specialize=["count"])
def wide(numbers, count):
    """Offsets that are products of 64 bits, and one of 32 bits whose factors are known."""
    for index in range(count):
        tl.store(numbers + tl.program_id(0).to(tl.int64) * count + index.to(tl.int64) * 40 + tl.arange(0, 8) * 5, 1.0)
