"""Clocks that wait for a device: CUDA events, or a monotonic clock on a CPU."""

import time
from itertools import pairwise
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """A clock that takes marks now and computes the seconds between them later, when that disturbs nothing."""

    name: str

    def mark(self) -> None:
        """Set a mark in the device's work."""

    def laps(self) -> list[float]:
        """Seconds between each mark and the next, for all marks since the last call; waits for the device."""

    def stamp(self) -> Any:
        """Return this moment of the device's work, independently of the marks."""

    def between(self, first: Any, last: Any) -> float:
        """Seconds between two stamps that `laps` has waited for since."""


class CpuClock:
    """`time.perf_counter`: monotonic, and CPU work is done when its call returns."""

    name = "monotonic"

    def __init__(self) -> None:
        self._marks: list[float] = []

    def mark(self) -> None:
        """Set a mark."""
        self._marks.append(time.perf_counter())

    def laps(self) -> list[float]:
        """Seconds between marks."""
        marks, self._marks = self._marks, []
        return [after - before for before, after in pairwise(marks)]

    def stamp(self) -> float:
        """Return this moment."""
        return time.perf_counter()

    def between(self, first: float, last: float) -> float:
        """Seconds between two stamps."""
        return last - first


class CudaClock:
    """Events on the current stream, read after the device has caught up."""

    name = "cuda events"

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[torch.cuda.Event] = []

    def mark(self) -> None:
        """Set a mark in the stream; the first one follows a synchronisation, so that no earlier work is counted."""
        if not self._marks:
            torch.cuda.synchronize(self._device)
        self._marks.append(self.stamp())

    def laps(self) -> list[float]:
        """Seconds between marks."""
        torch.cuda.synchronize(self._device)
        marks, self._marks = self._marks, []
        return [self.between(before, after) for before, after in pairwise(marks)]

    def stamp(self) -> torch.cuda.Event:
        """Return an event in the stream, which waits for nothing."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: torch.cuda.Event, last: torch.cuda.Event) -> float:
        """Seconds between two events that the device has passed."""
        return first.elapsed_time(last) / 1e3


def clock_for(device: torch.device) -> Clock:
    """The clock of a device."""
    return CudaClock(device) if device.type == "cuda" else CpuClock()
