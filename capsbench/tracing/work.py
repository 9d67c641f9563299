"""The work of a step's operators: arithmetic, and bytes that are read and written. Their time can be modelled from it."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from capsbench.tracing.collectives import is_collective
from capsbench.tracing.operator_calls import Call, tensors_in, written

_HALF = {torch.bfloat16, torch.float16}

_OF_ROWS = {getattr(torch.ops.aten, name) for name in ("embedding", "gather", "index", "index_select")}
"""Operators that read some rows of their first tensor alone."""


class Work(NamedTuple):
    """The work of one call of an operator."""

    flops: int
    """Floating-point operations, as torch counts them; element-wise work counts nothing."""
    nbytes: int
    """Bytes of the tensors that it reads and writes, each once."""
    half: bool
    """True if it computes in half precision."""


def work_of(call: Call, out: Any, flops: int = 0) -> Work | None:
    """The work of a call; None for one that moves no data inside the device: views, memory that is not filled, communication.

    Args:
        call: the call.
        out: its outputs.
        flops: its floating-point operations.
    """
    if call.func.is_view or "empty" in call.func._schema.name or is_collective(call):
        return None
    storages = {one.untyped_storage()._cdata for one in call.tensors}
    made = [one for one in tensors_in(out) if one.untyped_storage()._cdata not in storages]
    # Batch normalisation updates two vectors, and counts as changing all that it is given.
    changed = [] if "batch_norm" in call.func._schema.name else written(call)
    if not made and not changed:
        return None
    read = call.tensors
    if call.packet in _OF_ROWS:
        read = [*call.tensors[1:], *made]
    half = bool(call.tensors) and all(one.dtype in _HALF for one in call.tensors if one.is_floating_point())
    return Work(flops, _nbytes(read) + _nbytes([*made, *changed]), half)


def _nbytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors; one that is expanded has those of its storage."""
    return sum(min(one.nbytes, one.untyped_storage().nbytes()) for one in tensors)
