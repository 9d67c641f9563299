"""Attribution of the bytes that a forward pass retains to the modules that hold them.

A block of memory that forward leaves alive belongs to the module whose backward saved it first; if none did, to the module that
has it as an attribute or holds it in an autograd function; and if no holder is known, to the module that made it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import CellType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from capsbench.tracing.blocks import Blocks
from capsbench.tracing.surroundings import replaced

_DEEPEST = 6
"""Depth to which tensors are searched for in lists, tuples, dictionaries and closures."""

_sequence_number: Callable[[], int] = torch._C._autograd._get_sequence_nr


class Origin(NamedTuple):
    """The origin of a block of memory."""

    operator: str
    """Name that autograd has for the operator; empty outside operators."""
    module: str
    """The module that was running, or whose backward was; empty for the network itself, and outside modules."""


def module_classes(model: nn.Module) -> dict[str, str]:
    """Return the name of the class of each module of a network, by the module's own name."""
    return {name: type(module).__name__ for name, module in model.named_modules()}


class Spans:
    """Ranges of autograd nodes by module: from the first node that was made inside it to the first one after it."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int, str]] = []

    def add(self, first: int, after: int, module: str) -> None:
        """Record a call that has ended."""
        self._spans.append((first, after, module))

    def module_of(self, node: int) -> str:
        """The innermost module that was running when the autograd node of that number was made; empty if there was none."""
        around = [(after - first, module) for first, after, module in self._spans if first <= node < after]
        # If two made the same nodes, the inner one ended first.
        return min(around, key=lambda span: span[0])[1] if around else ""


class Placed(Protocol):
    """An object that is kept informed of the running module."""

    place: str
    """A module's name."""


class Modules:
    """The modules of a network while they are called.

    Args:
        model: the network.
        placed: object whose `place` is kept up to date.
    """

    def __init__(self, model: nn.Module, placed: Placed) -> None:
        self._model, self._placed = model, placed
        self._names = {id(module): name for name, module in model.named_modules()}
        self.spans = Spans()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Follow which module is running. Hooks would do, but a network with hooks may take another way."""
        real, placed = nn.Module.__call__, self._placed

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            name = self._names.get(id(module))
            if name is None:
                return real(module, *args, **kwargs)
            outside, placed.place = placed.place, name
            first = _sequence_number()
            try:
                return real(module, *args, **kwargs)
            finally:
                self.spans.add(first, _sequence_number(), name)
                placed.place = outside

        with replaced(nn.Module, "__call__", call):
            yield

    def holding(self, roots: Sequence[Tensor]) -> Iterator[tuple[str, Iterator[Tensor]]]:
        """Tensors other than those that autograd saved, with the module that holds them, after a watched forward pass.

        Args:
            roots: tensors from which backward starts.
        """
        for node in nodes_of(roots):
            held = getattr(node, "__dict__", None)
            if held:
                yield self.spans.module_of(node._sequence_nr()), _tensors(held)
        yield from self.attributes()

    def attributes(self) -> Iterator[tuple[str, Iterator[Tensor]]]:
        """Each module with its tensors that are neither parameters nor buffers."""
        for name, module in self._model.named_modules():
            own = {key: value for key, value in vars(module).items() if key not in ("_parameters", "_buffers", "_modules")}
            yield name, _tensors(own)


class Calls(Modules):
    """The calls of a network's modules while a step is followed."""

    def __init__(self, model: nn.Module, blocks: Blocks) -> None:
        super().__init__(model, blocks)
        self._blocks = blocks

    def holders(self, roots: Sequence[Tensor], since: int) -> dict[int, str]:
        """The blocks that a watched forward pass left alive, each with the module that is known to hold it, or that made it.

        Args:
            roots: tensors from which backward starts.
            since: number of the event that forward began with.
        """
        made = {block: self._blocks.made_in[block] for block in self._blocks.alive_since(since)}
        return made | {block: name for name, tensors in self.holding(roots) for block in self._blocks.blocks_of(tensors)}

    def savers(self, forward: Callable[[], object]) -> dict[int, str]:
        """The module whose backward saved a block first, by the block's index among those that a forward pass makes.

        This takes a pass of its own, because tensors that hooks are given may live longer than without hooks.
        """
        found: dict[int, str] = {}
        started = self._blocks.events()

        def pack(tensor: Tensor) -> Tensor:
            for block in self._blocks.blocks_of([tensor]):
                found.setdefault(block, self._blocks.place)
            return tensor

        with self.watched(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            forward()
        return {place: found[block] for place, block in enumerate(self._blocks.made_since(started)) if block in found}


def nodes_of(roots: Sequence[Tensor]) -> Iterable[Any]:
    """Every autograd node that tensors depend on."""
    left, seen = [root.grad_fn for root in roots], set[Any]()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        left += [before for before, _ in node.next_functions]
    return seen


def _tensors(held: dict[str, Any]) -> Iterator[Tensor]:
    """Tensors in values, and in what those are made of."""
    left: list[tuple[Any, int]] = [(held, 0)]
    seen = set[int]()
    while left:
        value, deep = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif deep < _DEEPEST:
            left += [(part, deep + 1) for part in _parts(value)]


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list | tuple | set):
        return value
    if isinstance(value, nn.Module | type):
        return ()  # a module is asked under its own name
    if type(value).__module__.startswith("torch.distributed.fsdp"):
        return ()  # a module's part of FSDP leads to those of all others, whose tensors are not the module's
    closure = getattr(value, "__closure__", None)
    if closure:
        return [cell.cell_contents for cell in closure if cell != CellType()]
    return vars(value).values() if hasattr(value, "__dict__") else ()
