"""How the kernels of `kernels` are laid over a layer, and started. Letters as there."""

from types import ModuleType
from typing import NamedTuple

import numpy
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from capsbench.errors import ConfigurationError


class LaunchPlan(NamedTuple):
    """How a kernel is laid over a layer."""

    programs: int
    """Along what is not summed."""
    chunks: int
    """Along what is summed; each writes its own part."""
    slices: int
    """Along K, where a program cannot hold all of it."""
    span: int
    """Input capsules or samples of a chunk."""
    warps: int
    sizes: dict[str, int]
    """What the kernel is compiled for."""

    @property
    def options(self) -> dict[str, int | bool]:
        """How the kernel is compiled."""
        return {"num_warps": self.warps, "maxnreg": _REGISTERS, "enable_fp_fusion": True}


_ENOUGH_WARPS = 2048
"""About as many as a large GPU runs at once. Not asked of the device: where a sum is cut must not depend on it."""
_REGISTERS = 128
"""Of a thread: the most that 16 warps can have. Left to itself ptxas spills a few bytes where that lets another warp run."""
_LEAST_SPAN = 4
"""Shorter chunks would spend more on their parts than on their sums."""


def over_samples(inputs: Tensor, weight: Tensor, samples: int) -> LaunchPlan:
    """For sums over I; a program takes at most so many samples at a time."""
    batch, count, _ = inputs.shape
    samples = min(samples, _padded(batch))
    warps, sizes = _tile(weight)
    return _plan(_divided(batch, samples), count, 1, warps, sizes | {"S": samples})


def over_capsules(inputs: Tensor, weight: Tensor, share: int) -> LaunchPlan:
    """For gradients of inputs and weight; a program holds weights of one input capsule and their gradient.

    Each of the two may take one part in `share` of a thread's registers: the more else a kernel holds, the smaller.
    """
    batch, count, dim = inputs.shape
    warps, sizes = _tile(weight)
    held = 32 * warps * _REGISTERS // share
    of_k = max(1, min(_padded(dim), held // (sizes["J_PAD"] * sizes["D_PAD"])))
    return _plan(count, batch, _divided(dim, of_k), warps, sizes | {"SLICE": of_k})


def launch(name: str, plan: LaunchPlan, inputs: Tensor, *tensors: Tensor | None) -> None:
    """Starts a kernel of `kernels` and does not wait for it.

    Args:
        name: which.
        plan: how it is laid over the layer.
        inputs: `[B, I, K]`.
        tensors: the other tensors that it takes, in its order; those that it writes must be contiguous.

    Raises:
        ConfigurationError: there is no Triton, or the tensors are not on a CUDA device.
    """
    if isinstance(inputs, FakeTensor):
        return  # shapes without values: what it would write into is there
    kernel = getattr(_kernels(inputs.device), name)
    batch, count, _ = inputs.shape
    laid = [None if tensor is None else tensor.contiguous() for tensor in (inputs, *tensors)]
    with torch.cuda.device_of(inputs):
        grid = (plan.programs, plan.chunks, plan.slices)
        kernel[grid](*laid, batch, count, plan.span, **plan.sizes, **plan.options)


def _tile(weight: Tensor) -> tuple[int, dict[str, int]]:
    """Warps such that each thread holds four neighbouring numbers of a `[J, D]`, one load; and the sizes."""
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
        raise ConfigurationError("kernel 'triton' needs Triton, which is not installed", "choose recompute") from None
    if isinstance(kernels.coupled_sum, InterpretedFunction):
        check_interpreter(triton.__version__, numpy.__version__)
    elif device.type != "cuda":
        raise ConfigurationError(
            f"kernel 'triton' cannot take tensors on '{device}'", "give it CUDA tensors, or choose recompute"
        )
    return kernels


def check_interpreter(triton_version: str, numpy_version: str) -> None:
    """Refuses a Triton whose interpreter takes an array of one number for a number, with a NumPy that does not do so.

    Raises:
        ConfigurationError: they do not work together.
    """
    if _release(triton_version) < (3, 7) and _release(numpy_version) >= (2, 4):
        raise ConfigurationError(
            f"the interpreter of Triton {triton_version} does not work with NumPy {numpy_version}",
            "install NumPy below 2.4, or Triton 3.7 or later",
        )


def _release(version: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(map(int, version.split(".")[:2]))
