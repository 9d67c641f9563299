"""The memory probe of a CUDA device: figures from the caching allocator's counters and the driver, blocks from its history."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType

import torch
from torch import Tensor

from capsbench.measure.processes import nvml_process_bytes
from capsbench.tracing.cuda_allocator import SMALLEST
from capsbench.tracing.storages import addresses
from capsbench.tracing.trace import Phase, Trace, trace_of


class CudaProbe:
    """Counters of the CUDA caching allocator: reset peak → synchronise → phase → synchronise → read.

    The trace is made from its history of blocks, with requested and rounded sizes: a remainder that could
    not be split off a block is in the counters alone.
    """

    name = "cuda"

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._phases: dict[str, Phase] = {}
        self._reserved = 0
        self._process_bytes: int | None = None
        self._context_bytes: int | None = None
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
        self._process_bytes = nvml_process_bytes(self._device)
        if self._process_bytes is not None:
            self._context_bytes = self._process_bytes - torch.cuda.memory_reserved(self._device)
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
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        start = torch.cuda.memory_allocated(self._device)
        yield
        torch.cuda.synchronize(self._device)
        end = torch.cuda.memory_allocated(self._device)
        self._phases[name] = Phase(start, end, torch.cuda.max_memory_allocated(self._device))
        self._reserved = max(self._reserved, torch.cuda.max_memory_reserved(self._device))
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

    def trace(self) -> Trace | None:
        """Every allocation; None where the allocator keeps no history."""
        return trace_of(self._events, self._spans, self._tags, self._marks) if self._remembers else None

    def peak_reserved(self) -> int | None:
        """Most bytes that the allocator held."""
        return self._reserved

    def process_bytes(self) -> int | None:
        """Memory of this process on the device, as NVML reports it; None where it does not (containers, some drivers)."""
        return self._process_bytes

    def context_bytes(self) -> int | None:
        """The part of it that the allocator does not hold: the driver's context, and libraries' workspaces of their own."""
        return self._context_bytes

    def warm_peak(self, step: Callable[[], None]) -> int | None:
        """Most bytes in a step after several more, when libraries have settled on their algorithms."""
        for _ in range(5):
            step()
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        step()
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device)

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


def _record(on: bool) -> bool:
    """Switch the allocator's history, which is no public interface and not always there, and return whether it keeps one."""
    try:
        torch.cuda.memory._record_memory_history("all" if on else None, context=None)
    except (AttributeError, TypeError, RuntimeError):
        return False
    return on
