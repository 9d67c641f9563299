"""The layout of the kernels of `kernels` over a layer, and their start. Letters as there."""

import struct
from types import ModuleType
from typing import NamedTuple

import numpy
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from capsbench.errors import ConfigurationError


class LaunchPlan(NamedTuple):
    """The layout of a kernel over a layer."""

    programs: int
    """Number of programs along dimensions that are not summed."""
    chunks: int
    """Number of chunks along dimensions that are summed; each writes its own part."""
    slices: int
    """Number of slices along K, if a program cannot hold all of it."""
    span: int
    """Number of input capsules or samples in a chunk."""
    warps: int
    sizes: dict[str, int]
    """Sizes for which the kernel is compiled."""
    registers: int | None = None
    """Registers of a thread; None for `_REGISTERS`."""

    def limiting(self, limited: bool) -> "LaunchPlan":
        """The plan for a kernel that is compiled for votes with or without a limit."""
        return self._replace(sizes=self.sizes | {"LIMITED": limited})

    @property
    def options(self) -> dict[str, int | bool]:
        """Options of the kernel's compilation."""
        return {"num_warps": self.warps, "maxnreg": self.registers or _REGISTERS, "enable_fp_fusion": True}


_ENOUGH_WARPS = 2048
"""Number of warps that fill a large GPU, fixed because the cuts of a sum must not depend on the device."""
_REGISTERS = 128
"""Registers of a thread: the most that 16 warps can have. By itself ptxas spills a few bytes if that lets another warp run."""
FEWER_REGISTERS = 112
"""Registers of a thread of few warps in RBA's gradient, with which the paper's first layer runs at once on an H100.

Its 1,152 programs have two warps. With 128 registers an SM has room for ⌊65,536 / (64·128)⌋ = 8 of them, and 132 SMs for 1,056:
two waves, the second with 96 programs: 55 % of the device. With 112 it has room for 9, and 132 SMs for 1,188: one wave, 97 %.
"""
_LEAST_SPAN = 4
"""Least span of a chunk: a shorter one would spend more on its part than on its sum."""
_ROW_TILE = 128
"""Number of values that a program of a kernel over rows takes: one load of each thread of a warp."""
_SMALL = 64
"""Most input and output capsules of a layer whose rounds are one kernel."""
_MOST_VOTES = 2**13
"""Number of votes that a program holds: 16 for each thread of 16 warps. With 32 a thread, Triton 3.6 spills."""


def over_samples(inputs: Tensor, weight: Tensor, samples: int) -> LaunchPlan:
    """Plan for sums over I; a program takes at most `samples` samples at a time."""
    batch, count, _ = inputs.shape
    warps, sizes = _tile(weight)
    samples = min(samples, _padded(batch))
    if warps == 16 or (sizes["J_PAD"], sizes["D_PAD"]) != (sizes["J"], sizes["D"]):
        samples = min(samples, 4)  # with more, a few bytes of a thread would not fit into its registers
    return _plan(_divided(batch, samples), count, 1, warps, sizes | {"S": samples})


def over_capsules(inputs: Tensor, weight: Tensor, share: int) -> LaunchPlan:
    """Plan for gradients of inputs and weight; a program holds weights of one input capsule and their gradient.

    Each of the two may take one part in `share` of a thread's registers: the more else a kernel holds, the smaller.

    Raises:
        ConfigurationError: an input capsule has 2³¹ weights or more, among which the kernels' offsets have 32 bits.
    """
    batch, count, dim = inputs.shape
    if weight.shape[1:].numel() >= 2**31:
        raise ConfigurationError(
            f"`kernel` triton cannot take {list(weight.shape[1:])} weights for each input capsule",
            "choose `kernel` recompute for 2³¹ and more",
        )
    warps, sizes = _tile(weight)
    held = 32 * warps * _REGISTERS // share
    of_k = max(1, min(_padded(dim), held // (sizes["J_PAD"] * sizes["D_PAD"])))
    return _plan(count, batch, _divided(dim, of_k), warps, sizes | {"SLICE": of_k})


def over_rows(sums: Tensor) -> tuple[LaunchPlan, int]:
    """Plan for the rows of sums `[..., B, J, D]`, one for each output capsule of each sample, and their number."""
    outputs, dim = sums.shape[-2:]
    rows, padded = sums.shape[-3] * outputs, _padded(dim)
    at_a_time = max(1, _ROW_TILE // padded)
    sizes = {"D": dim, "ROWS": at_a_time, "D_PAD": padded}
    return LaunchPlan(_divided(rows, at_a_time), 1, 1, rows, 1, sizes), rows


def for_numbers(numbers: Tensor) -> LaunchPlan:
    """Plan for a kernel that adds up some numbers: one program, a few for each thread at a time."""
    return LaunchPlan(min(1, numbers.numel()), 1, 1, numbers.numel(), 4, {"SIZE": 1024})


def at_once(inputs: Tensor, weight: Tensor) -> LaunchPlan | None:
    """Plan for all rounds of RBA in one kernel, a program for each sample; None if the layer is too large.

    The kernel's offsets among the weights have 32 bits.
    A thread holds up to 16 votes. Where those of all input capsules are more, it computes 8 at a time again in every round.
    """
    batch, count, _ = inputs.shape
    in_dim, outputs, dim = weight.shape[1:]
    plane = _padded(outputs) * _padded(dim)
    if max(count, outputs) > _SMALL or plane > _MOST_VOTES or weight.numel() >= 2**31:
        return None
    tile = _padded(count)
    if tile * plane > _MOST_VOTES:
        tile = max(1, _MOST_VOTES // (2 * plane))
    warps = max(1, min(16, tile * plane // (32 * 8)))
    sizes = {"COUNT": count, "K": in_dim, "J": outputs, "D": dim, "TILE": tile, "J_PAD": _padded(outputs), "D_PAD": _padded(dim)}
    return LaunchPlan(batch, 1, 1, count, warps, sizes)


def launch(name: str, plan: LaunchPlan, inputs: Tensor, *arguments: Tensor | int | None) -> None:
    """Start a kernel of `kernels` without waiting for it.

    Args:
        name: name of the kernel.
        plan: layout over the layer.
        inputs: the first tensor that it takes.
        arguments: its other tensors and numbers, in its order; tensors that it writes must be contiguous.

    Raises:
        ConfigurationError: Triton is missing, or the tensors are not on a CUDA device.
    """
    if isinstance(inputs, FakeTensor):
        return  # on shapes without values there is nothing to write
    if plan.programs == 0:
        return  # no samples
    kernel = getattr(_kernels(inputs.device), name)
    laid = [one.contiguous() if isinstance(one, Tensor) else one for one in (inputs, *arguments)]
    with torch.cuda.device_of(inputs):
        grid = (plan.programs, plan.chunks, plan.slices)
        kernel[grid](*laid, **plan.sizes, **plan.options)


def bits_of(number: float) -> int:
    """The bits of a float64 as an integer: Triton would pass the number as a float32."""
    (bits,) = struct.unpack("<q", struct.pack("<d", number))
    return int(bits)


def _tile(weight: Tensor) -> tuple[int, dict[str, int]]:
    """Number of warps with which each thread holds four neighbouring numbers of a `[J, D]`, one load; and the sizes."""
    _, in_dim, outputs, dim = weight.shape
    padded = {"J_PAD": _padded(outputs), "D_PAD": _padded(dim)}
    return max(1, min(16, padded["J_PAD"] * padded["D_PAD"] // 128)), {"K": in_dim, "J": outputs, "D": dim} | padded


def _plan(programs: int, summed: int, slices: int, warps: int, sizes: dict[str, int]) -> LaunchPlan:
    wanted = max(1, _ENOUGH_WARPS // (warps * max(1, programs * slices)))
    span = max(_LEAST_SPAN, _divided(summed, wanted))
    return LaunchPlan(programs, max(1, _divided(summed, span)), slices, span, warps, sizes)


def _divided(number: int, by: int) -> int:
    return -(-number // by)


def _padded(number: int) -> int:
    """The next power of two."""
    return 1 << max(0, number - 1).bit_length()


def _kernels(device: torch.device) -> ModuleType:
    """The kernels, if they can run there."""
    try:
        import triton
        from triton.runtime.interpreter import InterpretedFunction

        from capsbench.routing.triton import kernels
    except ImportError:
        raise ConfigurationError("`kernel` triton needs Triton, which is not installed", "choose `kernel` recompute") from None
    if isinstance(kernels.coupled_sum, InterpretedFunction):
        check_interpreter(triton.__version__, numpy.__version__)
    elif device.type != "cuda":
        raise ConfigurationError(
            f"`kernel` triton cannot take tensors on '{device}'", "give it CUDA tensors, or choose `kernel` recompute"
        )
    return kernels


def check_interpreter(triton_version: str, numpy_version: str) -> None:
    """Refuse a Triton whose interpreter takes an array of one number for a number, with a NumPy that does not.

    Raises:
        ConfigurationError: the two do not work together.
    """
    if _release(triton_version) < (3, 7) and _release(numpy_version) >= (2, 4):
        raise ConfigurationError(
            f"the interpreter of Triton {triton_version} does not work with NumPy {numpy_version}",
            "install NumPy below 2.4, or Triton 3.7 or later",
        )


def _release(version: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(map(int, version.split(".")[:2]))
