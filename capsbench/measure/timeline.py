"""The inside of one training step: the memory alive after every allocation, and the origin of the peak.

A measured step runs unwatched, as in `step_memory`. A further one is watched closely, which adds allocations of its own;
the allocations that both have in common tell the origin of each of the first.
"""

import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from capsbench.errors import ConfigurationError
from capsbench.measure.memory import MemoryProbe
from capsbench.measure.step_memory import probed_step
from capsbench.prediction.predict import predict_memory, trace_for
from capsbench.records import Configuration, StepPeak, StepPhase, Timeline
from capsbench.tracing.attribution import Modules, Origin
from capsbench.tracing.blocks import current_node
from capsbench.tracing.cuda_allocator import CachingAllocator
from capsbench.tracing.observed_step import StepObserver, run_step
from capsbench.tracing.operators import Operators
from capsbench.tracing.trace import PHASES, Phase, Trace
from capsbench.workload import Workload

_NOWHERE = Origin("", "")


def predicted_timeline(configuration: Configuration) -> Timeline:
    """The timeline of a step that is traced without its device.

    Raises:
        ConfigurationError: the configuration makes no network, or one that cannot be followed without values.
    """
    step = trace_for(configuration)
    predicted = predict_memory(configuration, step)
    on_cuda = configuration.device_kind() == "cuda"
    trace = step.trace.replay(CachingAllocator()) if on_cuda else step.trace
    notes = [*step.notes, *step.unsure]
    notes += [f"would not fit: {predicted.reason}"] if not predicted.fits else []
    notes += [f"not in the peaks: what libraries take as scratch for {', '.join(step.scratch)}"] if step.scratch else []
    notes += ["bytes by module are as asked for, all others as the allocator rounds them"] if on_cuda else []
    return Timeline(
        kind="predicted",
        configuration=configuration,
        probe=predicted.memory.probe,
        **_figures(trace, trace.phases(), step.origin),
        retained_by_module=step.retained_by_module,
        notes=notes,
    )


def measured_timeline(configuration: Configuration, data_directory: Path | None = None, snapshot: Path | None = None) -> Timeline:
    """Run a step and return its timeline.

    Args:
        configuration: step to run.
        data_directory: folder of the real data sets.
        snapshot: file for the CUDA allocator's own account, for pytorch.org/memory_viz.

    Raises:
        ConfigurationError: the configuration makes no network, or its device's allocator keeps no history.
    """
    seen: list[Witness] = []

    def look(probe: MemoryProbe, workload: Workload) -> None:
        if snapshot is not None and workload.device.type == "cuda":
            torch.cuda.memory._dump_snapshot(str(snapshot))
        seen.append(Witness(probe, workload))
        seen[0].see_step()

    step = probed_step(configuration, data_directory, look)
    trace = step.probe.trace()
    if trace is None:
        raise ConfigurationError(
            f"the allocator of device '{configuration.device}' keeps no history, from which a timeline is made",
            "leave PYTORCH_CUDA_ALLOC_CONF to torch's own allocator, or trace the step with `device` cuda:predicted",
        )
    account = Account(trace, seen[0])
    return Timeline(
        kind="measured",
        configuration=configuration,
        probe=step.probe.name,
        data_source=step.workload.data_source,
        **_figures(trace, step.probe.phases(), account.origin),
        retained_by_module=account.retained_by_module(),
        notes=account.notes,
    )


class Witness:
    """A close observer of a step: the operator and module that run, and the holders of what forward leaves alive.

    Args:
        probe: counter of the bytes; every change of operator or module sets a mark, which tells the origin of each allocation.
        workload: workload whose step is observed.
    """

    def __init__(self, probe: MemoryProbe, workload: Workload) -> None:
        self._probe, self._workload = probe, workload
        self._modules = Modules(workload.model, self)
        self._place = self._operator = ""
        self._node = -1
        self.spans = self._modules.spans
        self.states: list[tuple[str, str, int]] = []
        """The operator, the module, and the number of the autograd node whose backward it is, after each mark."""
        self.first = 0
        """The mark before the step."""
        self.after_forward = 0
        """The mark between forward and backward."""
        self.kept: list[str] = []
        """Modules that kept tensors from the step before; tensors are tagged `kept N` with the module's index."""
        self.held: list[str] = []
        """Modules that hold tensors after forward; tensors are tagged `held N` with the module's index."""
        self.saved: list[str] = []
        """Modules that ran when autograd saved a tensor; tensors are tagged `saved N` with the module's index."""
        self.failure = ""
        """The reason that the step could not be observed."""

    @property
    def place(self) -> str:
        """The module that is running."""
        return self._place

    @place.setter
    def place(self, name: str) -> None:
        self._place = name
        self._mark()

    def see_step(self) -> None:
        """Run the step; one that cannot be observed this closely has been measured all the same."""
        try:
            try:
                self._see_step(torch.autograd.graph.saved_tensors_hooks(self._see_saved, lambda tensor: tensor))
            except RuntimeError as error:
                if "saved tensor hooks" not in str(error):  # transforms of torch.func do not allow them
                    raise
                self._see_step(nullcontext())
        except Exception as error:
            self.failure = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator."""
        outside = self._operator, self._node
        self._operator, self._node = self._operator or func._schema.name, current_node()
        self._mark()
        try:
            return func(*args, **kwargs)
        finally:
            self._operator, self._node = outside
            self._mark()

    def _see_step(self, saving: AbstractContextManager[object]) -> None:
        workload = self._workload
        self._see("kept", self.kept, self._modules.attributes())
        self.first = len(self.states)
        self._mark()
        with self._modules.watched(), Operators(self):
            run_step(workload, _SeenStep(self, saving))

    def see_held(self, loss: Tensor) -> None:
        """Note the holders of the memory that forward left alive."""
        self.after_forward = len(self.states)
        self._mark()
        self._see("held", self.held, self._modules.holding(loss))

    def _see_saved(self, tensor: Tensor) -> Tensor:
        self._see("saved", self.saved, [(self._place, [tensor])])
        return tensor

    def _see(self, word: str, names: list[str], having: Iterable[tuple[str, Iterable[Tensor]]]) -> None:
        """Tag tensors with `word N`, and note the module that has them as number N."""
        for name, tensors in having:
            self._probe.tag(f"{word} {len(names)}", tensors)
            names.append(name)

    def _mark(self) -> None:
        self._probe.mark()
        self.states.append((self._operator, self._place, self._node))


class _SeenStep(StepObserver):
    """The step that a witness sees.

    Args:
        witness: whose step it is.
        saving: the context of forward.
    """

    def __init__(self, witness: Witness, saving: AbstractContextManager[object]) -> None:
        self._witness, self._saving = witness, saving

    def phase(self, name: str) -> AbstractContextManager[object]:
        return self._saving if name == "forward" else nullcontext()

    def after_forward(self, loss: Tensor) -> None:
        self._witness.see_held(loss)


class Account:
    """The origins that a witness saw in one step, applied to the step that was measured before it.

    Args:
        trace: trace of both steps.
        witness: witness of the second step.
    """

    def __init__(self, trace: Trace, witness: Witness) -> None:
        self._trace, self._witness = trace, witness
        self.notes: list[str] = []
        """Facts that could not be determined."""
        self._twins: dict[int, int] = {}
        if witness.failure:
            self.notes.append(f"operators and modules are not known: the step cannot be watched: {witness.failure}")
            return
        measured = self._made(trace.spans[PHASES[0]][0], trace.spans[PHASES[-1]][1])
        seen = self._made(trace.marks[witness.first], len(trace.blocks))
        places = embedded([nbytes for _, nbytes in measured], [nbytes for _, nbytes in seen])
        self._twins = {block: seen[place][0] for (block, _), place in zip(measured, places, strict=False)}
        if len(places) < len(measured):
            self.notes.append(f"operators and modules are known of the first {len(places)} of {len(measured)} allocations alone")

    def origin(self, block: int) -> Origin:
        """The origin of a block."""
        twin = self._twins.get(block)
        if twin is None:
            return _NOWHERE
        operator, module, node = self._witness.states[bisect.bisect_right(self._trace.marks, twin) - 1]
        return Origin(operator, module or self._witness.spans.module_of(node))

    def retained_by_module(self) -> dict[str, int]:
        """Retained bytes by the module that saved them first, or is known to hold them, or made them (see `attribution`).

        Bytes that a module kept from the step before, and frees in forward, are subtracted. The empty name has the bytes that no
        module keeps, and those of unknown owner.
        """
        witness, trace = self._witness, self._trace
        holders = self._named("held", enumerate(witness.held)) | self._named("saved", reversed([*enumerate(witness.saved)]))
        found: Counter[str] = Counter()
        for block, nbytes in trace.retained_blocks().items():
            twin = self._twins.get(block, -1)
            found[holders[twin] if twin in holders else self.origin(block).module] += nbytes
        for name, nbytes in self._let_go().items():
            found[name] -= nbytes
        forward = trace.phases()["forward"]
        found[""] += forward.end - forward.start - found.total()
        return {name: nbytes for name, nbytes in found.items() if nbytes}

    def _let_go(self) -> Counter[str]:
        """Bytes that the observed forward pass freed, by the module that had them."""
        witness, trace = self._witness, self._trace
        found: Counter[str] = Counter()
        if self._twins:
            kept = self._named("kept", enumerate(witness.kept))
            before, after = (trace.alive_blocks(trace.marks[mark]) for mark in (witness.first, witness.after_forward))
            for block in before.keys() - after.keys():
                found[kept.get(block, "")] += before[block]
        return found

    def _named(self, word: str, names: Iterable[tuple[int, str]]) -> dict[int, str]:
        """The module of each block that was tagged `word N`; the last of several."""
        return {block: name for number, name in names for block in self._trace.tags[f"{word} {number}"]}

    def _made(self, first: int, last: int) -> list[tuple[int, int]]:
        """Blocks that were made between two events, and their bytes."""
        events = zip(self._trace.blocks[first:last].tolist(), self._trace.nbytes[first:last].tolist(), strict=True)
        return [(block, nbytes) for block, nbytes in events if nbytes > 0]


def embedded(few: Iterable[int], many: Sequence[int]) -> list[int]:
    """Indices in `many` of the members of `few`, in order and as early as possible, up to the first that is missing."""
    found: list[int] = []
    left = iter(enumerate(many))
    for wanted in few:
        place = next((place for place, one in left if one == wanted), None)
        if place is None:
            break
        found.append(place)
    return found


def _figures(trace: Trace, phases: Mapping[str, Phase], origin: Callable[[int], Origin]) -> dict[str, Any]:
    """The figures of the step alone; events outside it, and those that change nothing, leave no trace."""
    first, last = trace.spans[PHASES[0]][0], trace.spans[PHASES[-1]][1]
    kept = np.flatnonzero(trace.nbytes[first:last]) + 1
    shown = np.concatenate(([0], kept)) + first
    number = {at: int(np.searchsorted(shown, at, side="right")) - 1 for span in trace.spans.values() for at in span}
    phase, at = trace.peak()
    contents = trace.at_peak()
    allocated = max(one.peak for one in phases.values())
    # The highest point comes right after an allocation, unless the step makes none.
    made = origin(int(trace.blocks[at - 1])) if at > trace.spans[phase][0] else Origin("", "")
    return {
        "phases": {
            name: StepPhase(
                first_event=number[trace.spans[name][0]],
                last_event=number[trace.spans[name][1]],
                start_bytes=phases[name].start,
                end_bytes=phases[name].end,
                peak_bytes=phases[name].peak,
            )
            for name in PHASES
        },
        "bytes_by_category": {name: nbytes[shown].tolist() for name, nbytes in trace.stacked().items()},
        "peak": StepPeak(
            event=int(np.searchsorted(shown, at, side="right")) - 1,
            allocated_bytes=allocated,
            operator=made.operator or None,
            module=made.module if made.operator else None,
            contents=contents,
            left_over_bytes=allocated - contents.total(),
        ),
    }
