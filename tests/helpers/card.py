"""The device of tests that need a GPU, and what is asked of it.

A CPU in its place shows that a test does not fail for another reason. Layers are smaller, and run in Triton's interpreter or with
another kernel:

    CAPSBENCH_TEST_DEVICE=cpu TRITON_INTERPRET=1 python -m pytest -m cuda tests/routing
    CAPSBENCH_TEST_DEVICE=cpu python -m pytest -m cuda tests/reversible tests/models tests/test_cells_on_card.py
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TypeVar

import pytest
import torch

DEVICE = torch.device(os.environ.get("CAPSBENCH_TEST_DEVICE", "cuda"))
ON_CARD = DEVICE.type == "cuda"
"""False while a CPU takes the place of the device."""
KERNEL = "triton" if ON_CARD or os.environ.get("TRITON_INTERPRET") == "1" else "recompute"
"""Kernel `triton`, or another one where nothing can run it."""
needs_card = pytest.mark.skipif(ON_CARD and not torch.cuda.is_available(), reason="needs a CUDA device")

_T = TypeVar("_T")


def either(on_card: _T, elsewhere: _T) -> _T:
    """The first on a card, and the second, which is smaller, on a CPU in its place."""
    return on_card if ON_CARD else elsewhere


def synchronize() -> None:
    """Wait for the device."""
    if ON_CARD:
        torch.cuda.synchronize()


@contextmanager
def counting_waits() -> Iterator[SimpleNamespace]:
    """Count, as `waits`, the reads inside for which the host waits for the device; a CPU has none."""
    found = SimpleNamespace(waits=0)
    if not ON_CARD:
        yield found
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found.waits = sum("synchronizing" in str(one.message) for one in caught)


def kernels_of(step: Callable[[], object]) -> int:
    """Number of kernels and copies that a step starts on the device, after one that warms it up; 0 on a CPU."""
    step()
    activity = torch.profiler.ProfilerActivity.CUDA if ON_CARD else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profiled:
        step()
        synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiled.events())


def captured(step: Callable[[], object]) -> Callable[[], object]:
    """A step recorded in a CUDA graph after three that warm it up; on a CPU the step itself."""
    if not ON_CARD:
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def room_for(nbytes: int) -> bool:
    """Return whether the device has that much free memory; a CPU is given little."""
    return not ON_CARD or torch.cuda.mem_get_info()[0] >= nbytes
