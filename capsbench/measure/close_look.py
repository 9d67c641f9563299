"""One step watched closely: the operator and the module behind each allocation, and the holders of what forward leaves alive.

Watching adds allocations of its own. Those that the watched step shares with the one measured before it give the origins of
the latter's.
"""

import bisect
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from capsbench.errors import error_line
from capsbench.measure.memory import MemoryProbe
from capsbench.phases import StepObserver
from capsbench.tracing.attribution import Modules, Origin
from capsbench.tracing.blocks import current_node
from capsbench.tracing.operator_calls import Call, Operators
from capsbench.tracing.trace import PHASES, Trace
from capsbench.workload import Workload


class Running(NamedTuple):
    """The code that is running."""

    operator: str = ""
    module: str = ""
    node: int = -1
    """Number of the autograd node whose backward it is."""


class CloseLook(Operators, StepObserver):
    """A step that is watched: every change of the code that is running sets a mark in the probe.

    Args:
        probe: counter of the bytes.
        workload: workload whose step is watched.
    """

    def __init__(self, probe: MemoryProbe, workload: Workload) -> None:
        super().__init__()
        self._probe, self._workload = probe, workload
        self._modules = Modules(workload.model, self)
        self._running = Running()
        self._saving: AbstractContextManager[object] = nullcontext()
        self._in_forward = False
        self.spans = self._modules.spans
        self.running: list[Running] = []
        """The code that is running after each mark."""
        self.began = 0
        """Number of the mark before the step."""
        self.forward_ended = 0
        """Number of the mark between forward and backward."""
        self.kept: dict[str, str] = {}
        """Modules that kept tensors from the step before, by the tag of these."""
        self.held: dict[str, str] = {}
        """Modules that hold tensors after forward, by the tag of these."""
        self.saved: dict[str, str] = {}
        """Modules that ran when autograd saved a tensor, by the tag of it."""
        self.failure = ""
        """The reason that the step could not be watched."""

    @property
    def place(self) -> str:
        """The module that is running."""
        return self._running.module

    @place.setter
    def place(self, name: str) -> None:
        self._go_on(self._running._replace(module=name))

    def run(self, call: Call) -> object:
        """Run an operator."""
        outside = self._running
        self._go_on(Running(outside.operator or call.func._schema.name, outside.module, current_node()))
        try:
            return call.run()
        finally:
            self._go_on(outside)

    def watch(self) -> None:
        """Run the step; one that cannot be watched has been measured all the same."""
        try:
            try:
                self._saving = torch.autograd.graph.saved_tensors_hooks(self._note_saved, lambda tensor: tensor)
                self._watch()
            except RuntimeError as error:
                if "saved tensor hooks" not in str(error):  # transforms of torch.func do not allow them
                    raise
                self._saving = nullcontext()
                self._watch()
        except Exception as error:
            self.failure = error_line(error)

    def _watch(self) -> None:
        self._tag("kept", self.kept, self._modules.attributes())
        self.began = len(self.running)
        self._go_on(self._running)
        self._in_forward = True
        with self._modules.watched(), self._saving, self:
            self._workload.train_step(self)

    def after_forward(self, roots: Sequence[Tensor]) -> None:
        """Note the holders of the memory that forward left alive."""
        self._in_forward = False
        self.forward_ended = len(self.running)
        self._go_on(self._running)
        self._tag("held", self.held, self._modules.holding(roots))

    def _note_saved(self, tensor: Tensor) -> Tensor:
        if self._in_forward:
            self._tag("saved", self.saved, [(self.place, [tensor])])
        return tensor

    def _tag(self, word: str, modules: dict[str, str], having: Iterable[tuple[str, Iterable[Tensor]]]) -> None:
        """Tag the tensors that modules have, and note the module of each tag."""
        for module, tensors in having:
            tag = f"{word} {len(modules)}"
            self._probe.tag(tag, tensors)
            modules[tag] = module

    def _go_on(self, running: Running) -> None:
        """Set a mark, after which other code is running."""
        self._running = running
        self._probe.mark()
        self.running.append(running)


class Origins:
    """The origins of the allocations of a measured step, known from the step after it, which was watched.

    Args:
        trace: trace of both steps.
        look: close look at the second one.
        retained_bytes: bytes that the first one retained.
    """

    def __init__(self, trace: Trace, look: CloseLook, retained_bytes: int) -> None:
        self._trace, self._look, self._retained_bytes = trace, look, retained_bytes
        self.notes: list[str] = []
        """Facts that could not be determined."""
        self._twins: dict[int, int] = {}
        """The block of the watched step for each block of the measured one."""
        if look.failure:
            self.notes.append(f"operators and modules are not known: the step cannot be watched: {look.failure}")
            return
        measured = self._made(trace.spans[PHASES[0]][0], trace.spans[PHASES[-1]][1])
        watched = self._made(trace.marks[look.began], len(trace.blocks))
        indices = embedded([nbytes for _, nbytes in measured], [nbytes for _, nbytes in watched])
        self._twins = {block: watched[index][0] for (block, _), index in zip(measured, indices, strict=False)}
        if len(indices) < len(measured):
            self.notes.append(f"operators and modules are known of the first {len(indices)} of {len(measured)} allocations alone")

    def of(self, block: int) -> Origin:
        """The origin of a block; an empty one where it is not known."""
        if block not in self._twins:
            return Origin("", "")
        mark = bisect.bisect_right(self._trace.marks, self._twins[block]) - 1
        operator, module, node = self._look.running[mark]
        return Origin(operator, module or self._look.spans.module_of(node))

    def retained_by_module(self) -> dict[str, int]:
        """Retained bytes by the module that saved them first, or is known to hold them, or made them (see `attribution`).

        Bytes that a module kept from the step before, and frees in forward, are subtracted. The empty name has the bytes that no
        module keeps, and those of unknown owner.
        """
        look, trace = self._look, self._trace
        # A tensor belongs to the first module that saved it, or else to the last one that holds it.
        holders = self._modules_of(look.held.items()) | self._modules_of(reversed(look.saved.items()))
        found: Counter[str] = Counter()
        for block, nbytes in trace.retained_blocks().items():
            twin = self._twins.get(block, -1)
            found[holders[twin] if twin in holders else self.of(block).module] += nbytes
        if self._twins:
            kept = self._modules_of(look.kept.items())
            before, after = (trace.alive_blocks(trace.marks[mark]) for mark in (look.began, look.forward_ended))
            for block in before.keys() - after.keys() - trace.tags.get("gradient", set()):
                found[kept.get(block, "")] -= before[block]
        found[""] += self._retained_bytes - found.total()
        return {name: nbytes for name, nbytes in found.items() if nbytes}

    def _modules_of(self, tags: Iterable[tuple[str, str]]) -> dict[int, str]:
        """The module of each tagged block; the last of several."""
        return {block: module for tag, module in tags for block in self._trace.tags[tag]}

    def _made(self, first: int, last: int) -> list[tuple[int, int]]:
        """Blocks that were made between two events, and their bytes."""
        events = zip(self._trace.blocks[first:last].tolist(), self._trace.nbytes[first:last].tolist(), strict=True)
        return [(block, nbytes) for block, nbytes in events if nbytes > 0]


def embedded(few: Iterable[int], many: Sequence[int]) -> list[int]:
    """Indices in `many` of the members of `few`, in order and as early as possible, up to the first that is missing."""
    found: list[int] = []
    left = iter(enumerate(many))
    for wanted in few:
        index = next((index for index, one in left if one == wanted), None)
        if index is None:
            break
        found.append(index)
    return found
