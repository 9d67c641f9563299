"""What a CPU's libraries take beside inputs and outputs: tried out, since nothing says it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._pytree import tree_map

from capsbench.measure import counting

_KNOWN: dict[str, int | None] = {}
_MOST_BYTES = 2 * 2**30
"""Larger operators are not tried: that would take the memory that a trace is there to spare."""


def scratch_bytes(func: Callable[..., Any], args: Any, kwargs: Any) -> int | None:
    """The most that one call of an operator held beside its inputs and outputs; None where nothing can count it.

    The call is made on new tensors of the same shapes and layouts, once for each.

    Args:
        func: an operator.
        args: its arguments; tensors may be fake.
        kwargs: likewise.
    """
    if counting.installed() is None:
        return None
    key = repr((func, tree_map(signature, (args, kwargs)), torch.get_num_threads()))
    if key not in _KNOWN:
        with unset_fake_temporarily(), torch.no_grad():
            _KNOWN[key] = _tried(func, args, kwargs)
    return _KNOWN[key]


def _tried(func: Callable[..., Any], args: Any, kwargs: Any) -> int | None:
    sizes = [one.untyped_storage().nbytes() for one in args if isinstance(one, Tensor)]
    if sum(sizes) > _MOST_BYTES:
        return None
    real_args, real_kwargs = tree_map(_real, (args, kwargs))
    func(*real_args, **real_kwargs)  # what a library makes once, and keeps, is no scratch
    log = counting.Log()
    out = func(*real_args, **real_kwargs)
    events = log.close()
    alive = events[:, 1].cumsum()
    del out
    return max(0, int(alive.max(initial=0) - alive[-1])) if len(alive) else 0


def signature(one: Any) -> Any:
    """What an operator's memory depends on: a tensor's shape, strides and dtype; any other argument itself."""
    return (tuple(one.shape), tuple(one.stride()), one.dtype) if isinstance(one, Tensor) else one


def _real(one: Any) -> Any:
    return torch.empty_strided(one.shape, one.stride(), dtype=one.dtype).normal_() if isinstance(one, Tensor) else one
