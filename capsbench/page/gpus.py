"""The sizes of common GPUs, against which the page holds the memory of networks."""

from typing import Any

from capsbench.devices import GIB, GPUS

_SHOWN = ("rtx2080ti", "rtx4090", "a100", "h100", "h200")
"""GPUs of different sizes, the smallest first."""


def gpus_data() -> list[dict[str, Any]]:
    """Title and bytes of each GPU: its memory without CUDA's context."""
    shown = [GPUS[name] for name in _SHOWN]
    return [
        {"title": f"{gpu.name.upper()}, {round(gpu.memory_bytes / GIB)} GiB", "bytes": gpu.memory_bytes - gpu.context_bytes}
        for gpu in shown
    ]
