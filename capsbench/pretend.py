"""Which kind of device a tensor stands for, while a step is traced without the device it is for.

A trace runs on tensors that have shapes and no values, and say that they are on a CPU. Code that takes another way on another kind
of device asks here, so that the trace takes the way of the device it is for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_KIND: ContextVar[str | None] = ContextVar("kind", default=None)


def kind_of(device: torch.device) -> str:
    """`cpu`, `cuda`, …: the device's own type, or inside `pretending` that one."""
    return _KIND.get() or device.type


@contextmanager
def pretending(kind: str) -> Iterator[None]:
    """Tensors stand for this kind of device inside."""
    before = _KIND.set(kind)
    try:
        yield
    finally:
        _KIND.reset(before)
