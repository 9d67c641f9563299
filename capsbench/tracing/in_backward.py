"""Operators that autograd's engine runs in backward, where torch writes into tensors of its own instead of making new ones."""

import sys
from types import FrameType

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward

from capsbench.tracing.blocks import Blocks, current_node
from capsbench.tracing.operator_calls import Call, Operators

_NEW_ZEROS = ("aten::new_zeros", "aten::zeros", "aten::zeros_like")
_WRITTEN_INTO = {
    getattr(getattr(torch.ops.aten, name), overload): (getattr(getattr(torch.ops.aten, f"{name}_"), overload), bases)
    for names, bases in {
        ("index_add", "index_fill", "index_put", "masked_scatter", "put", "scatter", "scatter_add"): _NEW_ZEROS,
        ("masked_fill",): ("aten::where",),
    }.items()
    for name in names
    for overload in getattr(torch.ops.aten, name).overloads()
    if overload in getattr(torch.ops.aten, f"{name}_").overloads()
}
"""Operators by which torch's own backward writes into a new tensor where it is not followed.

Each has the form that writes, and the operators that make such a tensor.
"""


def written_in_place(call: Call, blocks: Blocks) -> Call:
    """Return the call that torch makes in place of one by which a node of its own changes a new tensor: it writes into it.

    Where operators are followed, the backward of an index, of a maximum and of others makes a second tensor.
    """
    found = _WRITTEN_INTO.get(call.func)
    if found is None or current_node() == -1 or not _is_called_by_engine(call.tensors[0]):
        return call
    written_into, bases = found
    makers = {(name, current_node()) for name in bases}
    own = any(blocks.made_by[block] in makers for block in blocks.blocks_of(call.tensors[:1]))
    return Call(written_into, call.args, call.kwargs) if own else call


def sums_gradients(call: Call) -> bool:
    """Return whether autograd itself, not the backward of an operator, adds to a gradient of a tensor that was used twice.

    A view, such as the gradient of a transposed weight, shares its memory with its base, so that nothing is added to it in place.
    """
    if call.func is not torch.ops.aten.add.Tensor or current_node() == -1 or torch.is_grad_enabled():
        return False
    return _is_called_by_engine(call.tensors[0])


def _is_called_by_engine(first: Tensor) -> bool:
    """Return whether autograd's engine, not a function in Python, calls the operator that is running, and not on a view."""
    if first._is_view():
        return False
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not Operators.__torch_dispatch__.__code__:
        frame = frame.f_back
    caller = None if frame is None else frame.f_back
    return caller is None or caller.f_code is _engine_run_backward.__code__
