"""Looks at the machine while times are sampled: who else takes its cores, and whether its clocks hold."""

import time
from typing import Any

import psutil
import torch

from capsbench.measure.facts import asked
from capsbench.measure.noise import Machine

_SHORTEST = 0.5
"""Seconds. The system counts cores' time in steps of 10 ms: a shorter watch would see others where there are none."""

_NOT_BUSY = ("idle", "iowait", "guest", "guest_nice")
"""Of the system's account: nothing was done, or it is counted a second time (guests, in user time)."""

_SLOWED = ("SwPowerCap", "HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
"""NVML's reasons for a clock below what was asked for; idleness and a user's own setting are none."""


class Watch:
    """Begins to watch when it is made.

    Args:
        device: whose clock is looked at, beside the CPU's.
    """

    def __init__(self, device: torch.device) -> None:
        self._gpu = asked(lambda: _gpu(device)) if device.type == "cuda" else None
        self._clocks: list[float] = []
        self._gpu_throttled = False
        self._began, self._taken_before = time.monotonic(), asked(_taken_by_others)

    def look(self) -> None:
        """Notes the clocks of this moment; some milliseconds at most."""
        # Idle cores are slow: the fastest one is one that works.
        clock = asked(lambda: max(core.current for core in psutil.cpu_freq(percpu=True)))
        if clock is not None:
            self._clocks.append(clock)
        if self._gpu is not None and not self._gpu_throttled:
            self._gpu_throttled = bool(asked(lambda: _is_slowed(self._gpu)))

    def seen(self) -> Machine:
        """What was seen so far."""
        seconds = time.monotonic() - self._began
        cores, taken = asked(psutil.cpu_count) or 1, asked(_taken_by_others)
        others = None
        if seconds >= _SHORTEST and taken is not None and self._taken_before is not None:
            others = (taken - self._taken_before) / (seconds * cores)
        return Machine(others=others, clocks=self._clocks, gpu_throttled=self._gpu_throttled)


def _taken_by_others() -> float:
    """Seconds of cores that others than this process took since boot, those that the host gave to other machines among them."""
    everyone = psutil.cpu_times()._asdict()
    busy = sum(seconds for name, seconds in everyone.items() if name not in _NOT_BUSY)
    return busy - sum(psutil.Process().cpu_times()[:4])  # user, system, and both of children that ended


def _gpu(device: torch.device) -> Any:
    """NVML's handle of a device, by its identity: NVML does not know CUDA_VISIBLE_DEVICES."""
    import pynvml

    pynvml.nvmlInit()  # for as long as this process lives: starting it at every look would be in the measurement
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")


def _is_slowed(gpu: Any) -> bool:
    import pynvml

    reasons = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)
    return any(reasons & getattr(pynvml, f"nvmlClocksThrottleReason{name}") for name in _SLOWED)
