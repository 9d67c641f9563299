"""Which kind of device a tensor stands for, while a step is traced without the device it is for.

A trace runs on tensors that have shapes and no values, and say that they are on a CPU. Code that takes another way on another
kind of device asks here, so that the trace takes the way of the device it is for.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# A plain name, no context variable: the compiler takes the code that asks.
_kind: str | None = None


def kind_of(device: torch.device) -> str:
    """`cpu`, `cuda`, …: the device's own type, or inside `pretending` that one."""
    return device.type if _kind is None else _kind


@contextmanager
def pretending(kind: str) -> Iterator[None]:
    """Tensors stand for this kind of device inside."""
    global _kind
    before, _kind = _kind, kind
    try:
        yield
    finally:
        _kind = before
