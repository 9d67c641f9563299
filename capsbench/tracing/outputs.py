"""Outputs that a device makes with another size or memory layout than torch's tensors without values have."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._pytree import tree_map

from capsbench.tracing.collectives import is_collective
from capsbench.tracing.cuda_forms import ATTENTION, ONLY_DEVICE_KNOWS, PLAIN_ATTENTION, SHAPES
from capsbench.tracing.operator_calls import Call, tensors_in
from capsbench.tracing.scratch import Layout, layout, returned, run_on_host

_LOSSES = {getattr(torch.ops.aten, name) for name in ("mse_loss", "smooth_l1_loss", "soft_margin_loss", "binary_cross_entropy")}
"""Operators that keep one number in the memory of all elements, on every device; torch sums in place."""
_SIZED_BY_LIBRARY = {
    getattr(torch.ops.aten, name) for name in ("_embedding_bag", "_embedding_bag_forward_only", "col2im", "mkldnn_rnn_layer")
}
"""Operators whose outputs on a CPU differ in size from torch's fake tensors."""
_AS_ON_A_CPU = "torch knows the outputs of {} only where it runs: counted as on a CPU"
_GROUP_NORM = torch.ops.aten.native_group_norm
_NORMALISATIONS = {
    getattr(torch.ops.aten, name)
    for name in ("native_layer_norm", "native_batch_norm", "_native_batch_norm_legit", "native_group_norm")
}
"""Operators that return a mean and another statistic in addition to the normalised values."""
_CONTIGUOUS_GRADIENTS = {torch.ops.aten.native_layer_norm_backward, torch.ops.aten.native_group_norm_backward}


def output(call: Call, *, kind: str, unsure: dict[str, None]) -> Any:
    """The outputs of an operator, without values.

    Args:
        call: the operator with its arguments.
        kind: kind of the device that tensors stand for.
        unsure: receives a note of each operator whose bytes the device alone knows.
    """
    packet = call.packet
    try:
        out = SHAPES.get(packet, call.func)(*call.args, **call.kwargs)
    except (DataDependentOutputException, DynamicOutputShapeException):
        raise
    except Exception:  # torch's form without values knows fewer types and devices than the operator itself
        out = _tried_on_host(call)
        if out is None:
            raise
        if kind != "cpu" and not is_collective(call):  # which returns its own tensors everywhere
            unsure[_AS_ON_A_CPU.format(packet)] = None
        return out
    if packet in _CORRECTED:
        return _CORRECTED[packet](packet, call.tensors, out, kind)
    if packet in _SIZED_BY_LIBRARY and kind == "cpu":
        return _as_returned(call, out, unsure)
    if packet in ONLY_DEVICE_KNOWS:
        unsure[f"only the device knows what {packet} keeps for its library"] = None
    elif packet is PLAIN_ATTENTION and kind == "cuda":
        unsure[ATTENTION.format("plain")] = None
    return out


def _tried_on_host(call: Call) -> Any:
    """The outputs that an operator has on a CPU with any values; None if it does not run there."""
    if len({one.device for one in call.tensors}) != 1:
        return None
    try:
        tried = run_on_host(call)
    except Exception:  # as it is refused everywhere
        return None
    if tried is None:
        return None
    given, out = tried
    known = {id(real): one for real, one in zip(given.tensors, call.tensors, strict=True)}
    storages = {real.untyped_storage()._cdata for real in given.tensors}
    if any(id(one) not in known and one.untyped_storage()._cdata in storages for one in tensors_in(out)):
        return None  # a view has to be one of its own tensor
    device = call.tensors[0].device

    def without_values(one: Any) -> Any:
        return known.get(id(one), _laid(layout(one), device)) if isinstance(one, Tensor) else one

    return tree_map(without_values, out)


def _as_returned(call: Call, out: Any, unsure: dict[str, None]) -> Any:
    """Outputs with the size that the operator gives them, where torch's fake tensors do not know it."""
    real = returned(call)
    if real is None:
        unsure[f"only a run knows how much {call.packet} keeps for its library"] = None
        return out
    outputs = [out] if isinstance(out, Tensor) else out
    sized = tuple(
        fake if made is None or layout(fake) == made else _laid(made, fake.device)
        for fake, made in zip(outputs, real, strict=True)
    )
    return sized[0] if isinstance(out, Tensor) else sized


def _wide_statistics(packet: Any, given: list[Tensor], out: Any, kind: str) -> Any:
    """Statistics of narrow inputs as devices keep them; torch's fake ones are as narrow as the inputs."""
    narrow = given[0].dtype in (torch.bfloat16, torch.float16)
    mixed = any(one.dtype == torch.float32 for one in given)
    if not narrow or not (mixed or (kind == "cuda" and packet is not _GROUP_NORM)):
        return out
    return out[0], *(torch.empty_like(one, dtype=torch.float32) for one in out[1:])


def _whole_loss(_packet: Any, given: list[Tensor], out: Tensor, _kind: str) -> Tensor:
    """A single number in the memory of all elements."""
    if out.dim() > 0:
        return out
    count = torch.broadcast_shapes(*(one.shape for one in given[:2])).numel()
    return _laid(((), (), out.dtype, count * out.dtype.itemsize), out.device)


def _in_rows(_packet: Any, _given: list[Tensor], out: Any, _kind: str) -> Any:
    """Gradients in the layout in which kernels write them; torch's fake ones have that of the incoming gradient."""
    return out if out[0] is None else (out[0].contiguous(), *out[1:])


def _laid(made: Layout, device: torch.device) -> Tensor:
    """A tensor without values with the memory layout of another."""
    shape, strides, dtype, nbytes = made
    return torch.empty(nbytes // dtype.itemsize, dtype=dtype, device=device).as_strided(shape, strides)


_CORRECTED: dict[Any, Callable[[Any, list[Tensor], Any, str], Any]] = {
    **dict.fromkeys(_NORMALISATIONS, _wide_statistics),
    **dict.fromkeys(_LOSSES, _whole_loss),
    **dict.fromkeys(_CONTIGUOUS_GRADIENTS, _in_rows),
}
