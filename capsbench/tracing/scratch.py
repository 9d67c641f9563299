"""Memory that a CPU's libraries take and return beside the result, found by trial since nothing documents it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._pytree import tree_iter, tree_map

from capsbench.tracing import counting

Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype, int]
"""A tensor's shape, strides and dtype, and the bytes behind it, which may be more."""

_KNOWN: dict[str, int | None] = {}
_RETURNED: dict[str, list[Layout] | None] = {}
_MOST_BYTES = 2 * 2**30
"""Largest operator in bytes that is tried: more would take the memory that a trace is there to save."""


def scratch_bytes(func: Callable[..., Any], args: Any, kwargs: Any) -> int | None:
    """The most memory that one call of an operator held beside inputs and outputs; None where nothing can count it.

    The call is made on new tensors of the same shapes and layouts, once for each.

    Args:
        func: an operator.
        args: its arguments; tensors may be fake.
        kwargs: its keyword arguments; tensors may be fake.
    """
    if counting.installed() is None:
        return None
    key = repr((func, tree_map(signature, (args, kwargs)), torch.get_num_threads(), torch.is_grad_enabled()))
    if key not in _KNOWN:
        with unset_fake_temporarily():
            _KNOWN[key] = _tried(func, args, kwargs)
    return _KNOWN[key]


def _tried(func: Callable[..., Any], args: Any, kwargs: Any) -> int | None:
    if _bytes_of(args) > _MOST_BYTES:
        return None
    real_args, real_kwargs = tree_map(_real, (args, kwargs))
    func(*real_args, **real_kwargs)  # a library's lasting buffers are made once, and are no scratch
    log = counting.Log()
    out = func(*real_args, **real_kwargs)
    events = log.close()
    alive = events[:, 1].cumsum()
    del out
    return max(0, int(alive.max(initial=0) - alive[-1])) if len(alive) else 0


def returned(func: Callable[..., Any], args: Any, kwargs: Any) -> list[Layout] | None:
    """Layouts of the tensors that an operator returns; None where a trial takes too much.

    Args:
        func: an operator on a CPU.
        args: its arguments; tensors may be fake.
        kwargs: its keyword arguments; tensors may be fake.
    """
    # It returns what it keeps for backward where gradients are on, even if no argument needs one.
    key = repr((func, tree_map(signature, (args, kwargs)), torch.is_grad_enabled()))
    if key not in _RETURNED:
        _RETURNED[key] = None
        if _bytes_of(args) <= _MOST_BYTES:
            with unset_fake_temporarily():
                real_args, real_kwargs = tree_map(_real, (args, kwargs))
                out = func(*real_args, **real_kwargs)
            _RETURNED[key] = [layout(one) for one in tree_iter(out) if isinstance(one, Tensor)]
    return _RETURNED[key]


def layout(tensor: Tensor) -> Layout:
    """The memory layout of a tensor."""
    return tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.untyped_storage().nbytes()


def signature(one: Any) -> Any:
    """The part of an argument that memory depends on: a tensor's shape, strides and dtype; any other argument itself."""
    return (tuple(one.shape), tuple(one.stride()), one.dtype) if isinstance(one, Tensor) else one


def _bytes_of(args: Any) -> int:
    return sum(one.untyped_storage().nbytes() for one in tree_iter(args) if isinstance(one, Tensor))


def _real(one: Any) -> Any:
    if not isinstance(one, Tensor):
        return one
    size = sum((side - 1) * stride for side, stride in zip(one.shape, one.stride(), strict=True)) + 1 if one.numel() else 0
    made = torch.empty(size, dtype=one.dtype)
    # 0 is valid for every index and every offset.
    return (made.normal_() if one.dtype.is_floating_point else made.zero_()).as_strided(one.shape, one.stride())
