"""Observation of the machine while times are sampled: the use of its cores by others, and its clocks."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from capsbench.measure.compiling import compilations
from capsbench.measure.facts import asked
from capsbench.measure.noise import Machine
from capsbench.measure.processes import nvml_handle
from capsbench.system.cores import Cores

_SHORTEST = 0.5
"""Shortest watch in seconds. The system counts core time in steps of 10 ms, so a shorter watch would see phantom load."""

_SLOWED = ("SwPowerCap", "HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
"""NVML's reasons for a clock below the requested one; idleness and a user's own setting do not count."""

SHARED_CORES = 0.2
"""Share of the cores from which on threads that spin while they wait would take more from a step than waking them does."""


def cores_are_shared() -> bool:
    """Look at the cores for most of a second, and return whether other processes use much of them."""
    watch = Watch(torch.device("cpu"))
    time.sleep(1.2 * _SHORTEST)
    others = watch.seen().others
    return others is not None and others > SHARED_CORES


class Watch:
    """An observer, which begins to watch when it is made.

    Args:
        device: device whose clock is observed, in addition to the CPU's.
    """

    def __init__(self, device: torch.device) -> None:
        self._gpu = asked(lambda: _gpu(device)) if device.type == "cuda" else None
        self._clocks: list[float] = []
        self._gpu_throttled = False
        self._cores = asked(Cores)
        self._before = self._account()
        self._compilations = compilations()

    def look(self) -> None:
        """Record the clocks of this moment, which takes some milliseconds at most."""
        # Idle cores are slow, so the fastest one is one that works.
        clock = asked(lambda: max(_clocks(self._cores.indexes if self._cores else ())))
        if clock is not None:
            self._clocks.append(clock)
        if self._gpu is not None and not self._gpu_throttled:
            self._gpu_throttled = bool(asked(lambda: _is_slowed(self._gpu)))

    def seen(self) -> Machine:
        """Observations so far."""
        now = self._account()
        others = now.taken_by_others(self._before, self._cores) if now and self._before and self._cores else None
        return Machine(
            others=others,
            clocks=self._clocks,
            gpu_throttled=self._gpu_throttled,
            compiled=compilations() != self._compilations,
        )

    def _account(self) -> "_Account | None":
        cores = self._cores
        return asked(lambda: _Account.of(cores)) if cores else None


@dataclass(frozen=True)
class _Account:
    """Seconds from some fixed start to a moment."""

    now: float
    busy: float
    """Seconds in which this process's cores did anything."""
    own: float
    """Core seconds that this process used."""
    container: float | None
    """Core seconds that a container with a quota used; None where there is none, or the system does not report them."""

    @classmethod
    def of(cls, cores: Cores) -> "_Account":
        """The account of this moment."""
        own = sum(psutil.Process().cpu_times()[:4])  # user, system, and both for children that ended
        return cls(time.monotonic(), cores.busy_seconds(), own, cores.quota.used_seconds() if cores.quota else None)

    def taken_by_others(self, before: "_Account", cores: Cores) -> float | None:
        """The share that others took since `before` of what this process can get of its cores; None after too short a time.

        Under a quota others on the host disturb only where they leave less of the cores than it allows; others in the same
        container disturb by all that they take of it.
        """
        seconds, own = self.now - before.now, self.own - before.own
        if seconds < _SHORTEST:
            return None
        room = len(cores.indexes) - (self.busy - before.busy - own) / seconds
        taken = cores.capacity - min(room, cores.capacity)
        if self.container is not None and before.container is not None:
            taken = max(taken, (self.container - before.container - own) / seconds)
        return taken / cores.capacity


def _clocks(indexes: Sequence[int]) -> list[float]:
    """The clocks of these cores, or of all where the system's list of clocks differs."""
    every = [core.current for core in psutil.cpu_freq(percpu=True)]
    return [every[index] for index in indexes] if indexes and len(every) > max(indexes) else every


def _gpu(device: torch.device) -> Any:
    import pynvml

    pynvml.nvmlInit()  # for as long as this process lives: starting it at every look would disturb the measurement
    handle = nvml_handle(device)
    try:
        # The clock is that of the whole GPU, of which this may be a slice.
        return pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
    except pynvml.NVMLError:
        return handle


def _is_slowed(gpu: Any) -> bool:
    import pynvml

    reasons = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)
    return any(reasons & getattr(pynvml, f"nvmlClocksThrottleReason{name}") for name in _SLOWED)
