"""Devices that are not here: what is asked of them, and in which order."""

from types import SimpleNamespace

import torch


class FakeCuda:
    """A device that logs the calls, whose counters change as a step would change them.

    Args:
        monkeypatch: pytest's.
        history: events of its allocator; None if it keeps none.
        counters: names of the counters that its allocator has (`allocated`, `requested`, `reserved`).
        held: whether the device is still held when a step has been enqueued.
    """

    def __init__(self, monkeypatch, history=None, *, counters=("allocated", "requested", "reserved"), held=True):
        self.asked = []
        self.history = history
        self.held = held
        self._counters = counters
        self._phases = iter(
            [
                # Allocated before, after and at most; reserved at most.
                (100, 250, 400, 1000),
                (250, 120, 300, 900),
                (120, 120, 350, 950),
                (120, 120, 360, 700),
            ]
        )
        self._phase, self._after = (0, 100, 0, 900), False
        answers = {
            "synchronize": self._synchronize,
            "empty_cache": lambda: None,
            "current_device": lambda: 1,
            "reset_peak_memory_stats": self._reset,
            "memory_stats": self._stats,
            "get_allocator_backend": lambda: "native",
            "_sleep": lambda: None,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, self._asking(name, answer))
        monkeypatch.setattr(torch.cuda, "Event", self._event)
        monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", self._record)
        monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: {"device_traces": [[], list(self.history)]})
        self.time = 0

    def waits(self):
        """Number of times that the host has waited for the device so far."""
        return self.asked.count("synchronize")

    def _asking(self, name, answer):
        def ask(*_arguments):
            self.asked.append(name)
            return answer()

        return ask

    def _synchronize(self):
        self._after = True

    def _reset(self):
        self._phase, self._after = next(self._phases), False

    def _stats(self):
        before, after, peak, reserved = self._phase
        now = after if self._after else before
        all_counters = {"allocated": (now, peak), "requested": (now - 1, peak - 2), "reserved": (900, reserved)}
        return {
            f"{name}_bytes.all.{which}": value if name in self._counters else 0
            for name, values in all_counters.items()
            for which, value in zip(("current", "peak"), values, strict=True)
        }

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

        return SimpleNamespace(at=at, record=record, query=lambda: not self.held, elapsed_time=lambda later: float(later.at - at))


class NVMLError(Exception):
    """A stand-in for pynvml's error."""


def fake_nvml(processes=(), init_fails=False, asking_fails=False, reason="", free=None, slices=()):
    """A pynvml for one GPU, and how often it is open.

    Args:
        processes: number and bytes of the processes on it.
        init_fails: whether NVML cannot be opened, as without a driver.
        asking_fails: whether it answers no question about the GPU.
        reason: text of its errors.
        free: free bytes; None if it does not report them.
        slices: names of the GPU's slices, for which alone it has answers, if there are any.
    """
    state = SimpleNamespace(open=0, asked=[])

    def init():
        if init_fails:
            raise NVMLError(reason)
        state.open += 1

    def shutdown():
        state.open -= 1

    def handle(uuid):
        state.asked.append(uuid)
        if slices and uuid not in slices:
            raise NVMLError("Not Found")
        return f"handle of {uuid}"

    def ask(handle):
        assert handle in {"handle of GPU-1234", *(f"handle of {name}" for name in slices)}
        if asking_fails:
            raise NVMLError(reason)
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in processes]

    def memory(handle):
        ask(handle)
        if free is None:
            raise NVMLError("Not Supported")
        return SimpleNamespace(free=free)

    module = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=init,
        nvmlShutdown=shutdown,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetComputeRunningProcesses=ask,
        nvmlDeviceGetMemoryInfo=memory,
    )
    return module, state
