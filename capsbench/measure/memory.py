"""Probes that say how many bytes are alive and how many were at most, phase by phase.

`ProfilerProbe` reads the CPU allocator's own events: exact to the byte on every run and for every number of threads,
kernels' scratch included. `CudaProbe` reads the caching allocator's counters and the driver.
"""

import bisect
import contextlib
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

_PREFIX = "capsbench phase: "


@dataclass(frozen=True)
class Phase:
    """Bytes in one phase of a step."""

    start: int
    """Alive when it began."""
    end: int
    """Alive when it ended."""
    peak: int
    """Alive at most."""


class MemoryProbe(Protocol):
    """Counts from `__enter__` on: enter it before anything is built, or what was built is not counted."""

    name: str

    def __enter__(self) -> "MemoryProbe":
        """Starts counting."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        """Stops counting."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Names a part of the step; phases follow one another."""

    def phases(self) -> dict[str, Phase]:
        """What was counted, after the probe has been left."""

    def peak_reserved(self) -> int | None:
        """Most bytes held by a caching allocator during the phases, or None where there is none."""

    def process_bytes(self) -> int | None:
        """What the system says of this process: device memory (CUDA), largest resident set (CPU); None if unknown."""


class ProfilerProbe:
    """Allocation events of `torch.profiler` on a CPU."""

    name = "profiler"

    def __init__(self) -> None:
        # Shapes and stacks would add gigabytes to the resident set and nothing to the bytes counted.
        self._profile = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, record_shapes=False
        )
        self._process_bytes: int | None = None

    def __enter__(self) -> "ProfilerProbe":
        """Starts counting."""
        self._profile.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        """Stops counting."""
        # Before the profiler lays out its events, which take memory of their own.
        self._process_bytes = largest_resident_set()
        self._profile.stop()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Names a part of the step."""
        with torch.profiler.record_function(_PREFIX + name):
            yield

    def phases(self) -> dict[str, Phase]:
        """What was counted."""
        profiler: Any = self._profile.profiler
        return phases_of(profiler.kineto_results.events())

    def peak_reserved(self) -> int | None:
        """None: a CPU has no caching allocator."""
        return None

    def process_bytes(self) -> int | None:
        """The largest resident set, the profiler's own buffers included."""
        return self._process_bytes


def phases_of(events: Iterable[Any]) -> dict[str, Phase]:
    """The phases in a profiler's events, from its allocations' sizes in the order of their time."""
    changes, spans = [], {}
    for event in events:
        if event.name() == "[memory]" and event.device_type() == torch.profiler.DeviceType.CPU:
            changes.append((event.start_ns(), event.nbytes()))
        elif event.name().startswith(_PREFIX):
            spans[event.name().removeprefix(_PREFIX)] = (event.start_ns(), event.end_ns())
    changes.sort(key=lambda change: change[0])
    times = [at for at, _ in changes]
    alive = [0]
    for _, nbytes in changes:
        alive.append(alive[-1] + nbytes)
    found = {}
    for name, (start, end) in spans.items():
        # alive[i] is what i events leave: here those before the phase, and those up to its end.
        first, last = bisect.bisect_left(times, start), bisect.bisect_right(times, end)
        found[name] = Phase(alive[first], alive[last], max(alive[first : last + 1]))
    return found


class CudaProbe:
    """Counters of the CUDA caching allocator: reset peak → synchronise → phase → synchronise → read."""

    name = "cuda"

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._phases: dict[str, Phase] = {}
        self._reserved = 0
        self._process_bytes: int | None = None

    def __enter__(self) -> "CudaProbe":
        """Starts from an empty cache."""
        torch.cuda.empty_cache()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        """Asks the driver while everything is still there."""
        self._process_bytes = nvml_process_bytes(self._device)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Names a part of the step."""
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        start = torch.cuda.memory_allocated(self._device)
        yield
        torch.cuda.synchronize(self._device)
        end = torch.cuda.memory_allocated(self._device)
        self._phases[name] = Phase(start, end, torch.cuda.max_memory_allocated(self._device))
        self._reserved = max(self._reserved, torch.cuda.max_memory_reserved(self._device))

    def phases(self) -> dict[str, Phase]:
        """What was counted."""
        return dict(self._phases)

    def peak_reserved(self) -> int | None:
        """The most the allocator held."""
        return self._reserved

    def process_bytes(self) -> int | None:
        """This process's memory on the device, as NVML says; None where it does not (containers, some drivers)."""
        return self._process_bytes


def probe_for(device: torch.device) -> MemoryProbe:
    """The probe of a device."""
    return CudaProbe(device) if device.type == "cuda" else ProfilerProbe()


def nvml_process_bytes(device: torch.device) -> int | None:
    """Device memory of this process, context and cache included, in bytes; None where the driver does not say."""
    import os

    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        # NVML does not know CUDA_VISIBLE_DEVICES: go by the device's identity, not its number.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
    return next((process.usedGpuMemory for process in running if process.pid == os.getpid()), None)


def largest_resident_set() -> int | None:
    """Bytes of this process's largest resident set.

    From /proc where there is one: getrusage counts what the parent had before this program was started in its place.
    """
    found = _own_status("VmHWM")
    if found is None:
        with contextlib.suppress(ImportError):
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, which has no /proc
    return found


def data_bytes() -> int:
    """Bytes of this process's data segments, what RLIMIT_DATA counts; 0 where the system does not say."""
    return _own_status("VmData") or 0


def _own_status(field: str) -> int | None:
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind tensors, each storage once."""
    storages = {storage.data_ptr(): storage.nbytes() for tensor in tensors if (storage := tensor.untyped_storage()).nbytes()}
    return sum(storages.values())


def state_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers."""
    return storage_bytes([*model.parameters(), *model.buffers()])


def gradient_bytes(model: nn.Module) -> int:
    """Bytes of the gradients that a model's parameters hold now."""
    return storage_bytes(parameter.grad for parameter in model.parameters() if parameter.grad is not None)


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of an optimizer's state."""
    return storage_bytes(value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))
