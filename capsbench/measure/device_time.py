"""The time that a CUDA device alone takes for a step: how fast it would be with a host that is never late.

Samples of a step begin with an empty queue, so that where the host enqueues work more slowly than the device does it, they are
the host's times. Here a kernel that only spins holds the device until the whole step is in its queue.
"""

import time
from collections.abc import Callable

import torch

_SAMPLES = 3
_HEAD_START = 2.0
"""Time for which the device is held, over that which the host took to enqueue the step before."""
_LONGEST_HOLD = 2.0
"""Seconds for which the device is held at most."""
_CYCLES_PER_SECOND = 3e9
"""A rate that no GPU's clock exceeds, so that cycles divided by it last at least a second."""


def device_seconds(step: Callable[[], object], device: torch.device) -> list[float]:
    """Seconds of a few steps on a device that never waits for the host.

    Args:
        step: the step, which has been warmed up.
        device: its device.

    Returns:
        The samples; none on a CPU, and where the device was through with its wait before the step had been enqueued: the step
        waits for the device itself, or has more launches than fit into the queue (about a thousand).
    """
    if device.type != "cuda":
        return []
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    step()
    hold = _HEAD_START * (time.perf_counter() - began)
    found: list[float] = []
    while len(found) < _SAMPLES:
        seconds = _held(step, device, hold) if hold <= _LONGEST_HOLD else None
        if seconds is None:
            return []
        found.append(seconds)
    return found


def _held(step: Callable[[], object], device: torch.device, hold_seconds: float) -> float | None:
    """Seconds of a step that is enqueued while the device is held; None if it was not held for long enough."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    torch.cuda._sleep(int(hold_seconds * _CYCLES_PER_SECOND))
    first.record()
    step()
    last.record()
    was_held = not first.query()
    torch.cuda.synchronize(device)
    return first.elapsed_time(last) / 1e3 if was_held else None
