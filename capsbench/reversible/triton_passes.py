"""The exact inverse's passes on CUDA, one launch each (`triton_kernels`), as implementations of the operators of `passes`."""

import importlib.util
import struct
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_SIZE = 1024
"""Number of elements of a program."""
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
"""Options of the kernels' compilation. Fused, a product and a sum would be rounded once, and give other bits."""


@cache
def is_installed() -> bool:
    """Return whether there is a Triton to compile the kernels."""
    return importlib.util.find_spec("triton") is not None


def advance(x: Tensor, v: Tensor, store: Tensor, value: Tensor, n: int, d: int, scale: float) -> tuple[Tensor, Tensor]:
    """Implement `passes.advance`; the largest magnitudes are those of each program, `[programs]`."""
    rounded, peaks = advance_shapes(x, v, store, value)
    _launch("exact_advance", x, v, store, value, rounded, peaks, x.numel(), n, d, _bits(scale))
    return rounded, peaks


def advance_shapes(x: Tensor, _v: Tensor, _store: Tensor, value: Tensor, *_: float) -> tuple[Tensor, Tensor]:
    """New tensors for the results of `advance`."""
    return torch.empty_like(value), x.new_empty(_programs(x), dtype=torch.float64)


def retreat_x(x: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """Implement `passes.retreat_x`."""
    rounded = torch.empty_like(x, dtype=dtype)
    _launch("exact_retreat_x", x, v, rounded, x.numel())
    return rounded


def retreat(x: Tensor, v: Tensor, store: Tensor, value: Tensor, n: int, d: int, scale: float) -> Tensor:
    """Implement `passes.retreat`."""
    rounded = torch.empty_like(value)
    _launch("exact_retreat", x, v, store, value, rounded, x.numel(), n, d, _bits(scale))
    return rounded


def _bits(number: float) -> int:
    """The bits of a float64 as an integer."""
    (bits,) = struct.unpack("<q", struct.pack("<d", number))
    return int(bits)


def _programs(x: Tensor) -> int:
    return -(-x.numel() // _SIZE)


def _launch(name: str, x: Tensor, *arguments: Tensor | int) -> None:
    """Start a kernel; its tensors all lie in memory as `x` does, but for the peaks."""
    if isinstance(x, FakeTensor) or x.numel() == 0:
        return
    from capsbench.reversible import triton_kernels

    kernel: Any = getattr(triton_kernels, name)
    with torch.cuda.device_of(x):
        kernel[(_programs(x),)](x, *arguments, SIZE=_SIZE, **OPTIONS)
