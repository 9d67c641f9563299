"""Probes that count bytes alive and their peaks, phase by phase, and the purpose of each block.

`AllocatorProbe` reads the log of a CPU allocator of our own, `ProfilerProbe` the events of torch's: both exact to the byte on
every run and for every number of threads, kernels' scratch included. `CudaProbe` is in `cuda_memory`.
"""

import bisect
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor

from capsbench.measure.cuda_memory import CudaProbe, LaterSteps
from capsbench.measure.processes import largest_resident_set
from capsbench.tracing import counting
from capsbench.tracing.storages import addresses
from capsbench.tracing.surroundings import counted_copies
from capsbench.tracing.trace import Phase, Trace, trace_of

_PHASE, _TAG, _MARK = "capsbench phase: ", "capsbench tag: ", "capsbench mark"


class MemoryProbe(Protocol):
    """A probe that counts from `__enter__` on: enter it before anything is built, or what was built is not counted."""

    name: str

    def __enter__(self) -> "MemoryProbe":
        """Start counting."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        """Stop counting."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Name a part of the step; phases follow one another."""

    def tag(self, word: str, tensors: Iterable[Tensor]) -> None:
        """Record the present purpose of these tensors' memory: a category, or any other word."""

    def mark(self) -> None:
        """Set a mark after the events so far; the trace has it."""

    def phases(self) -> dict[str, Phase]:
        """Bytes of each phase, after the probe has been left."""

    def counts(self) -> bool:
        """Return whether these bytes were counted at all."""
        return True

    def requested(self) -> dict[str, Phase] | None:
        """Bytes of each phase as they were requested, where an allocator hands out more; None where it does not report it."""
        return None

    def trace(self) -> Trace | None:
        """Every allocation, after the probe has been left; None where this torch does not distinguish them."""

    def peak_reserved(self) -> int | None:
        """Most bytes held by a caching allocator during the phases; None where there is none."""
        return None

    def process_bytes(self) -> int | None:
        """Memory of this process as the system reports it: device memory (CUDA), largest resident set (CPU); None if unknown."""

    def context_bytes(self) -> int | None:
        """The device memory of the process that the caching allocator does not hold; None if there is none, or unknown."""
        return None

    def notes(self) -> list[str]:
        """The reasons that figures are not known, after the probe has been left."""
        return []

    def later_steps(self, step: Callable[[], None]) -> LaterSteps:
        """Bytes of further steps, which this runs once the probe has been left; unknown where steps do not change."""
        return LaterSteps()


class _CpuProbe(MemoryProbe):
    """The common part of both probes on a CPU, which has no caching allocator, and where all steps are alike."""

    _process_bytes: int | None = None
    _trace: Trace | None = None

    @abstractmethod
    def _made(self) -> Trace:
        """Every allocation."""

    def phases(self) -> dict[str, Phase]:
        return self.trace().phases()

    def trace(self) -> Trace:
        if self._trace is None:
            self._trace = self._made()
        return self._trace

    def process_bytes(self) -> int | None:
        """The largest resident set, the probe's own log included."""
        return self._process_bytes


class AllocatorProbe(_CpuProbe):
    """The log of a CPU allocator of our own, which must be there (`counting.installed`)."""

    name = "allocator"

    def __init__(self) -> None:
        self._spans: dict[str, tuple[int, int]] = {}
        self._tags: list[tuple[int, str, list[int]]] = []
        self._marks: list[int] = []

    def __enter__(self) -> "AllocatorProbe":
        """Start counting."""
        self._copies = counted_copies()
        self._copies.__enter__()
        self._log = counting.Log()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        """Stop counting."""
        self._process_bytes = largest_resident_set()
        self._log.close()
        self._copies.__exit__(None, None, None)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Name a part of the step."""
        first = len(self._log)
        yield
        self._spans[name] = first, len(self._log)

    def tag(self, word: str, tensors: Iterable[Tensor]) -> None:
        """Record the purpose of these tensors' memory."""
        self._tags.append((len(self._log), word, addresses(tensors)))

    def mark(self) -> None:
        """Set a mark."""
        self._marks.append(len(self._log))

    def _made(self) -> Trace:
        return trace_of(self._log.close().tolist(), self._spans, self._tags, self._marks)


class ProfilerProbe(_CpuProbe):
    """Allocation events of `torch.profiler` on a CPU."""

    name = "profiler"

    def __init__(self) -> None:
        # Shapes and stacks would add gigabytes to the resident set, and nothing to the counts.
        self._profile = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, record_shapes=False
        )
        self._tags: list[tuple[str, list[int]]] = []

    def __enter__(self) -> "ProfilerProbe":
        """Start counting."""
        self._profile.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        """Stop counting."""
        # Read the resident set before the profiler lays out its events, which take memory of their own.
        self._process_bytes = largest_resident_set()
        self._profile.stop()

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Name a part of the step."""
        return torch.profiler.record_function(_PHASE + name)

    def tag(self, word: str, tensors: Iterable[Tensor]) -> None:
        """Record the purpose of these tensors' memory."""
        with torch.profiler.record_function(f"{_TAG}{len(self._tags)}"):
            self._tags.append((word, addresses(tensors)))

    def mark(self) -> None:
        """Set a mark."""
        with torch.profiler.record_function(_MARK):
            pass

    def _made(self) -> Trace:
        profiler: Any = self._profile.profiler
        return trace_of_profile(profiler.kineto_results.experimental_event_tree(), self._tags)


def trace_of_profile(tree: Iterable[Any], tags: list[tuple[str, list[int]]]) -> Trace:
    """The trace in a profiler's tree of events, in the order of their time.

    Args:
        tree: the roots.
        tags: categories or other words, and addresses, in the order in which the tree names them.
    """
    changes, spans, marks = [], {}, []
    left = list(tree)
    while left:
        event = left.pop()
        left += event.children
        if event.tag == torch._C._profiler._EventType.Allocation:
            if event.extra_fields.device.type == "cpu":
                changes.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size))
        elif event.name == _MARK:
            marks.append(event.start_time_ns)
        elif event.name.startswith((_PHASE, _TAG)):
            spans[event.name] = event.start_time_ns, event.end_time_ns
    changes.sort(key=lambda change: change[0])
    times = [at for at, *_ in changes]
    # Numbers of the events before a phase, and of those up to its end.
    found = {name: (bisect.bisect_left(times, start), bisect.bisect_right(times, end)) for name, (start, end) in spans.items()}
    return trace_of(
        [(address, nbytes) for _, address, nbytes in changes],
        {name.removeprefix(_PHASE): span for name, span in found.items() if name.startswith(_PHASE)},
        [(found[f"{_TAG}{index}"][0], word, held) for index, (word, held) in enumerate(tags)],
        [bisect.bisect_left(times, at) for at in sorted(marks)],
    )


def probe_for(device: torch.device) -> MemoryProbe:
    """The probe of a device; on a CPU the allocator, or the profiler if there is no compiler."""
    if device.type == "cuda":
        return CudaProbe(device)
    return ProfilerProbe() if counting.installed() is None else AllocatorProbe()
