"""Which module keeps what: the retained bytes of a forward pass by the module that holds them.

A block of memory that forward leaves alive belongs to the module whose backward saved it first; if none did, to the module that has
it as an attribute, or one of whose autograd functions has; and if nobody is known to hold it, to the module that made it.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import CellType
from typing import Any

import torch
from torch import Tensor, nn

from capsbench.measure.follow import Follow

_DEEPEST = 6
"""How far into lists, tuples, dictionaries and closures tensors are looked for."""

_sequence_number: Callable[[], int] = torch._C._autograd._get_sequence_nr


class Calls:
    """The calls of a network's modules while it is watched.

    Args:
        model: whose modules are meant.
        follow: is told where execution is.
    """

    def __init__(self, model: nn.Module, follow: Follow) -> None:
        self._model, self._follow = model, follow
        self._names = {id(module): name for name, module in model.named_modules()}
        self._spans: list[tuple[int, int, str]] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Notes which module is running. Hooks would do, but a network with hooks may take another way."""
        real, follow = nn.Module.__call__, self._follow

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            name = self._names.get(id(module))
            if name is None:
                return real(module, *args, **kwargs)
            outside, follow.place = follow.place, name
            first = _sequence_number()
            try:
                return real(module, *args, **kwargs)
            finally:
                self._spans.append((first, _sequence_number(), name))
                follow.place = outside

        nn.Module.__call__ = call  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.__call__ = real  # type: ignore[method-assign]

    def holders(self, loss: Tensor, since: int) -> dict[int, str]:
        """After a watched forward pass: each block that it left alive, and the module that made it, or is known to hold it.

        Args:
            loss: what forward returned.
            since: the number of the event that it began with.
        """
        follow = self._follow
        return {block: follow.made_in[block] for block in follow.alive_since(since)} | dict(self._holding(loss))

    def savers(self, forward: Callable[[], Tensor]) -> dict[int, str]:
        """The module whose backward saved a block first, by the block's place among those that a forward pass makes.

        A pass of its own: what hooks are given may live longer than without them.
        """
        follow = self._follow
        found: dict[int, str] = {}
        started = follow.events()

        def pack(tensor: Tensor) -> Tensor:
            for block in follow.blocks_of([tensor]):
                found.setdefault(block, follow.place)
            return tensor

        with self.watched(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            forward()
        return {place: found[block] for place, block in enumerate(follow.made_since(started)) if block in found}

    def _holding(self, loss: Tensor) -> Iterator[tuple[int, str]]:
        """Blocks that are held beside what autograd saved, and the module that does."""
        for node in nodes_of(loss):
            held = getattr(node, "__dict__", None)
            if held:
                name = self._module_of(node._sequence_nr())
                yield from ((block, name) for block in self._follow.blocks_of(_tensors(held)))
        for name, module in self._model.named_modules():
            own = {key: value for key, value in vars(module).items() if key not in ("_parameters", "_buffers", "_modules")}
            yield from ((block, name) for block in self._follow.blocks_of(_tensors(own)))

    def _module_of(self, number: int) -> str:
        """The innermost module that was running when the node of that number was made."""
        around = [(last - first, name) for first, last, name in self._spans if first <= number < last]
        return min(around)[1] if around else ""


def nodes_of(loss: Tensor) -> Iterable[Any]:
    """Every autograd node that a loss depends on."""
    left, seen = [loss.grad_fn], set[Any]()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        left += [before for before, _ in node.next_functions]
    return seen


def _tensors(held: dict[str, Any]) -> Iterator[Tensor]:
    """Tensors in values, and in what those are made of."""
    left, seen = [(held, 0)], set[int]()
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
        return ()  # a module is asked itself, under its own name
    closure = getattr(value, "__closure__", None)
    if closure:
        return [cell.cell_contents for cell in closure if cell != CellType()]
    return vars(value).values() if hasattr(value, "__dict__") else ()
