"""Devices that are not here: what is asked of them, and in which order."""

from types import SimpleNamespace

import torch


class FakeCuda:
    """A device that logs the calls and raises its counters with each. `history` has its allocator's events, if it keeps any."""

    def __init__(self, monkeypatch, history=None):
        self.asked = []
        self.history = history
        self.allocated = iter([100, 250, 250, 120])
        self.peaks = iter([(400, 1000), (300, 900), (350, 950)])
        answers = {
            "synchronize": lambda: None,
            "empty_cache": lambda: None,
            "current_device": lambda: 1,
            "reset_peak_memory_stats": self._reset,
            "memory_allocated": lambda: next(self.allocated),
            "memory_reserved": lambda: 900,
            "max_memory_allocated": lambda: self.peak[0],
            "max_memory_reserved": lambda: self.peak[1],
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, self._asking(name, answer))
        monkeypatch.setattr(torch.cuda, "Event", self._event)
        monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", self._record)
        monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: {"device_traces": [[], list(self.history)]})
        self.time = 0

    def _asking(self, name, answer):
        def ask(*_arguments):
            self.asked.append(name)
            return answer()

        return ask

    def _reset(self):
        self.peak = next(self.peaks)

    def _record(self, enabled, context):
        assert context is None
        if self.history is None:
            raise RuntimeError("this allocator keeps no history")
        if enabled is None:
            self.history.clear()  # as torch does

    def _event(self, *, enable_timing):
        assert enable_timing
        self.time += 1
        at = self.time**2

        def record():
            self.asked.append("record")

        return SimpleNamespace(at=at, record=record, elapsed_time=lambda later: float(later.at - at))


class NVMLError(Exception):
    """A stand-in for pynvml's error."""


def fake_nvml(processes=(), init_fails=False, asking_fails=False):
    """A pynvml for one GPU, and how often it is open."""
    state = SimpleNamespace(open=0)

    def init():
        if init_fails:
            raise NVMLError
        state.open += 1

    def shutdown():
        state.open -= 1

    def ask(handle):
        assert handle == "handle of GPU-1234"
        if asking_fails:
            raise NVMLError
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in processes]

    module = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=init,
        nvmlShutdown=shutdown,
        nvmlDeviceGetHandleByUUID=lambda uuid: f"handle of {uuid}",
        nvmlDeviceGetComputeRunningProcesses=ask,
    )
    return module, state
