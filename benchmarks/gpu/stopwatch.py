"""Times of a function on a device, by four clocks that do not mean the same.

    step_ms     median over samples, each of which begins with an empty queue: by events on CUDA
    host_ms     median time in which the host issued the work of these samples
    queued_ms   time of one of many calls that were issued one after the other, without a wait
    busy_ms     time in which the device computed, by its own account (CUPTI); None where that is not available
    kernels     kernels that it ran; copies and fills are `copies`

A step is limited by the host where `queued_ms` is more than `busy_ms`. On a CPU there is `step_ms` alone.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.results import Found

Run = Callable[[], object]

FEWEST_WARM = 3
HOST_BOUND = 1.2
"""Ratio of `queued_ms` to `busy_ms` from which on the host is what limits."""


class Profile(NamedTuple):
    """The device's own account of one call."""

    busy_ms: float
    kernels: int
    copies: int
    """Copies and fills."""
    by_kernel: dict[str, tuple[int, float]]
    """Number and milliseconds of each kernel, longest first."""


def timed(run: Run, device: str, *, rounds: int, warm_seconds: float) -> Found:
    """Times of a function, after it has run for a while."""
    warm(run, device, warm_seconds)
    if device != "cuda":
        return {"step_ms": statistics.median(_seconds(run) for _ in range(rounds)) * 1e3}
    steps, host = [], []
    for _ in range(rounds):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        host.append(_seconds(run) * 1e3)
        last.record()
        last.synchronize()
        steps.append(first.elapsed_time(last))
    found: Found = {
        "step_ms": statistics.median(steps),
        "host_ms": statistics.median(host),
        "queued_ms": queued_ms(run, rounds),
    }
    profile = profiled(run)
    if profile is not None:
        found |= {"busy_ms": profile.busy_ms, "kernels": profile.kernels, "copies": profile.copies}
        found["limited by"] = "host" if found["queued_ms"] > HOST_BOUND * profile.busy_ms else "device"
    return found


def queued_ms(run: Run, count: int) -> float:
    """Milliseconds of one of `count` calls on CUDA that are issued without a wait."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) * 1e3 / count


def warm(run: Run, device: str, seconds: float) -> None:
    """Run a function until clocks and libraries have settled."""
    began, count = time.monotonic(), 0
    while count < FEWEST_WARM or time.monotonic() - began < seconds:
        run()
        count += 1
        if device == "cuda":
            torch.cuda.synchronize()


def profiled(run: Run) -> Profile | None:
    """The device's account of one call; None if it gives none."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    return account((event.name, event.device_time) for event in _on_device(seen))


def account(events: Any) -> Profile | None:
    """The account of kernels, copies and fills, from names and microseconds; None if there is no kernel among them."""
    counts: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    copies, busy = 0, 0.0
    for name, microseconds in events:
        busy += microseconds / 1e3
        if name.startswith(("Memcpy", "Memset")):
            copies += 1
            continue
        counts[name] += 1
        spent[name] += microseconds / 1e3
    if not counts:
        return None
    return Profile(busy, counts.total(), copies, {name: (counts[name], ms) for name, ms in spent.most_common()})


def _on_device(seen: Any) -> list[Any]:
    return [event for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]


def _seconds(run: Run) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
