"""The kind of device that a tensor stands for, while a step is traced without its device.

A trace runs on tensors that have shapes and no values, and report that they are on a CPU. Code that takes another path on another
kind of device asks here, so that the trace takes that device's path.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# A plain name, no context variable, because the compiler accepts the code that reads it.
_kind: str | None = None


def kind_of(device: torch.device) -> str:
    """Kind of a device, such as `cpu` or `cuda`: the device's own type, or inside `pretending` the pretended one."""
    return device.type if _kind is None else _kind


@contextmanager
def pretending(kind: str) -> Iterator[None]:
    """Let tensors stand for this kind of device inside."""
    global _kind
    before, _kind = _kind, kind
    try:
        yield
    finally:
        _kind = before
