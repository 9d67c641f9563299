"""Looks at the machine while times are sampled: who else takes its cores, and whether its clocks hold."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from capsbench.measure.cores import Cores
from capsbench.measure.facts import asked
from capsbench.measure.noise import Machine
from capsbench.measure.processes import nvml_handle

_SHORTEST = 0.5
"""Seconds. The system counts cores' time in steps of 10 ms: a shorter watch would see others where there are none."""

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
        self._cores = asked(Cores)
        self._before = self._account()

    def look(self) -> None:
        """Notes the clocks of this moment; some milliseconds at most."""
        # Idle cores are slow: the fastest one is one that works.
        clock = asked(lambda: max(_clocks(self._cores.indexes if self._cores else ())))
        if clock is not None:
            self._clocks.append(clock)
        if self._gpu is not None and not self._gpu_throttled:
            self._gpu_throttled = bool(asked(lambda: _is_slowed(self._gpu)))

    def seen(self) -> Machine:
        """What was seen so far."""
        now = self._account()
        others = now.taken_by_others(self._before, self._cores) if now and self._before and self._cores else None
        return Machine(others=others, clocks=self._clocks, gpu_throttled=self._gpu_throttled)

    def _account(self) -> "_Account | None":
        cores = self._cores
        return asked(lambda: _Account.of(cores)) if cores else None


@dataclass(frozen=True)
class _Account:
    """Seconds until a moment."""

    now: float
    busy: float
    """Of this process's cores, in which they did anything."""
    own: float
    """Of cores that this process used."""
    container: float | None
    """Of cores that a container with a quota used; None where there is none, or the system does not say."""

    @classmethod
    def of(cls, cores: Cores) -> "_Account":
        """The account of this moment."""
        own = sum(psutil.Process().cpu_times()[:4])  # user, system, and both of children that ended
        return cls(time.monotonic(), cores.busy_seconds(), own, cores.quota.used_seconds() if cores.quota else None)

    def taken_by_others(self, before: "_Account", cores: Cores) -> float | None:
        """The share of what this process can get of its cores that others took since; None after too short a time.

        Under a quota others on the host disturb only where they leave less of the cores than it allows, and others in the same
        container by all that they take of it.
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
    """The clocks of these cores; of all where the system's list of clocks is another one."""
    every = [core.current for core in psutil.cpu_freq(percpu=True)]
    return [every[index] for index in indexes] if indexes and len(every) > max(indexes) else every


def _gpu(device: torch.device) -> Any:
    """NVML's handle of a device."""
    import pynvml

    pynvml.nvmlInit()  # for as long as this process lives: starting it at every look would be in the measurement
    return nvml_handle(device)


def _is_slowed(gpu: Any) -> bool:
    import pynvml

    reasons = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)
    return any(reasons & getattr(pynvml, f"nvmlClocksThrottleReason{name}") for name in _SLOWED)
