"""The memory probe of a CUDA device: figures from the caching allocator's counters and the driver, blocks from its history."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from capsbench.measure.facts import asked
from capsbench.measure.processes import nvml_process_bytes
from capsbench.tracing.cuda_allocator import SMALLEST
from capsbench.tracing.storages import addresses
from capsbench.tracing.trace import INFERENCE, Phase, Trace, trace_of

NO_CACHE = "PYTORCH_NO_CUDA_MEMORY_CACHING"
"""The variable that turns the caching allocator off, whatever its value."""

_SETTLING_STEPS = 5


class LaterSteps(NamedTuple):
    """Bytes of steps after the one that was counted phase by phase; None where they are not counted, or steps do not change."""

    warm_peak: int | None = None
    """Most bytes handed out in a step after several more."""
    reserved: int | None = None
    """Most bytes held by the caching allocator in a step that begins with an empty cache."""


class CudaProbe:
    """Counters of the CUDA caching allocator: reset peak → synchronise → phase → synchronise → read.

    The trace is made from its history of blocks, with requested and rounded sizes: a remainder that could
    not be split off a block is in the counters alone.
    """

    name = "cuda"

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._phases: dict[str, Phase] = {}
        self._requested: dict[str, Phase] = {}
        self._reserved: dict[str, int] = {}
        self._process_bytes: int | None = None
        self._context_bytes: int | None = None
        self._notes: list[str] = []
        self._spans: dict[str, tuple[int, int]] = {}
        self._tags: list[tuple[int, str, list[int]]] = []
        self._marks: list[int] = []
        self._remembers = False
        self._events: list[tuple[int, int]] = []

    def __enter__(self) -> "CudaProbe":
        """Start from an empty cache."""
        torch.cuda.empty_cache()
        self._remembers = _record(True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        """Query the driver while everything is still there."""
        self._process_bytes, why_unknown = nvml_process_bytes(self._device)
        if self._process_bytes is None:
            self._notes.append(f"the memory of this process on {self._device} is not known: {why_unknown}")
        elif self.counts():
            self._context_bytes = self._process_bytes - self._counter("reserved", "current")
        if self._phases and not self.counts():
            self._notes.append(f"bytes on {self._device} were not counted: {_why_not_counted()}")
        if self._remembers:
            self._events = self._history()
            _record(False)
        if self._marks:
            # The last event of the history is the last one counted; events before the history began are not in it.
            before = self._counted() - len(self._events)
            self._marks = [mark - before for mark in self._marks]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Name a part of the step."""
        first = self._count()
        self._restart_peaks()
        allocated, requested = self._counter("allocated", "current"), self._counter("requested", "current")
        yield
        torch.cuda.synchronize(self._device)
        self._phases[name] = Phase(allocated, self._counter("allocated", "current"), self._counter("allocated", "peak"))
        self._requested[name] = Phase(requested, self._counter("requested", "current"), self._counter("requested", "peak"))
        self._reserved[name] = self._counter("reserved", "peak")
        self._spans[name] = first, self._count()

    def tag(self, word: str, tensors: Iterable[Tensor]) -> None:
        """Record the purpose of these tensors' memory."""
        self._tags.append((self._count(), word, addresses(tensors)))

    def mark(self) -> None:
        """Set a mark by the allocator's counters, because the history takes too long to read at every operator."""
        self._marks.append(self._counted())

    def phases(self) -> dict[str, Phase]:
        """Bytes of each phase."""
        return dict(self._phases)

    def counts(self) -> bool:
        """Return whether the allocator counts at all: no step runs without any byte."""
        return any(phase.peak for phase in self._phases.values())

    def requested(self) -> dict[str, Phase] | None:
        """Bytes of each phase as they were requested; None where the allocator does not report it."""
        return dict(self._requested) if any(phase.peak for phase in self._requested.values()) else None

    def trace(self) -> Trace | None:
        """Every allocation; None where the allocator keeps no history."""
        # With its cache turned off the allocator's history stays empty.
        known = self._remembers and (self.counts() or not self._phases)
        return trace_of(self._events, self._spans, self._tags, self._marks) if known else None

    def peak_reserved(self) -> int | None:
        """Most bytes that the allocator held until the end of a training step, its cache from before included."""
        of_step = [nbytes for name, nbytes in self._reserved.items() if name != INFERENCE]
        return max(of_step, default=0) if self.counts() else None

    def process_bytes(self) -> int | None:
        """Memory of this process on the device, as NVML reports it; None where it does not (containers, some drivers)."""
        return self._process_bytes

    def context_bytes(self) -> int | None:
        """The part of it that the allocator does not hold: the driver's context, and the kernels that have been loaded so far."""
        return self._context_bytes

    def notes(self) -> list[str]:
        """The reasons that figures are not known."""
        return self._notes

    def later_steps(self, step: Callable[[], None]) -> LaterSteps:
        """Bytes of a step after several more, when libraries have settled on their algorithms, and of one with an empty cache."""
        if not self.counts():
            return LaterSteps()
        for _ in range(_SETTLING_STEPS):
            step()
        self._restart_peaks()
        step()
        torch.cuda.synchronize(self._device)
        warm_peak = self._counter("allocated", "peak")
        torch.cuda.empty_cache()
        self._restart_peaks()
        step()
        torch.cuda.synchronize(self._device)
        return LaterSteps(warm_peak, self._counter("reserved", "peak"))

    def _restart_peaks(self) -> None:
        """Restart the counters' peaks once all work so far is done."""
        torch.cuda.synchronize(self._device)
        with contextlib.suppress(RuntimeError):  # an allocator without counters
            torch.cuda.reset_peak_memory_stats(self._device)

    def _counter(self, what: str, which: str) -> int:
        """A counter in bytes; 0 where the allocator does not have it."""
        return int((asked(lambda: torch.cuda.memory_stats(self._device)) or {}).get(f"{what}_bytes.all.{which}", 0))

    def _counted(self) -> int:
        """Number of times that the allocator has handed out or taken back a block so far."""
        blocks = torch.cuda.memory_stats_as_nested_dict(self._device)["allocation"]["all"]
        return int(blocks["allocated"] + blocks["freed"])

    def _count(self) -> int:
        return len(self._history()) if self._remembers else 0

    def _history(self) -> list[tuple[int, int]]:
        """Address of each block with its rounded bytes, negative where it was freed."""
        index = torch.cuda.current_device() if self._device.index is None else self._device.index
        signs = {"alloc": 1, "free_requested": -1}
        return [
            (event["addr"], signs[event["action"]] * -(-event["size"] // SMALLEST) * SMALLEST)
            for event in torch.cuda.memory._snapshot()["device_traces"][index]
            if event["action"] in signs
        ]


def _why_not_counted() -> str:
    """The reason that the allocator does not count."""
    if NO_CACHE in os.environ:
        return f"{NO_CACHE} turns off the allocator that counts them"
    return f"allocator '{asked(torch.cuda.get_allocator_backend)}' does not count them"


def _record(on: bool) -> bool:
    """Switch the allocator's history, which is no public interface and not always there, and return whether it keeps one."""
    try:
        torch.cuda.memory._record_memory_history("all" if on else None, context=None)
    except (AttributeError, TypeError, RuntimeError):
        return False
    return on
