"""The graph that autograd records of one evaluation: the leaves in which it ends, and any other holder of it.

A reversible stack drops each function's graph and makes it again in backward. That is right only if the graph ends in the
function's inputs and in parameters of the stack, and if only the function's outputs are taken from it: any other tensor
would lose its gradient silently.
"""

import gc
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import parametrize

_LEAF = "AccumulateGrad"
_UNNAMED = "CppFunction"
"""Class of nodes whose name only the node itself knows, such as those of operators in C++ extensions."""


class _Token:
    """An object that lives as long as the graph that it was given to."""


class Entrance:
    """The inputs of one evaluation as leaves of a graph of its own.

    Args:
        x: any shape.
        wanted: whether x has a gradient in plain autograd, which a function may ask.
        others: further inputs, which have a gradient.
    """

    def __init__(self, x: Tensor, wanted: bool, others: Sequence[Tensor]) -> None:
        self.leaves = (x.detach().requires_grad_(wanted), *(one.detach().requires_grad_() for one in others))
        # The whole of a tensor is a view that has its strides and version counter and is no leaf.
        self.inputs: tuple[Tensor, ...] = tuple([leaf[...] for leaf in self.leaves])
        """Inputs that the function gets in place of the leaves."""

    def watch(self) -> weakref.ref[_Token]:
        """A reference that dies with the last tensor that is computed from the inputs."""
        token = _Token()
        nodes: list[Any] = [one.grad_fn for one in self.inputs if one.grad_fn is not None]
        for node in nodes:
            node.metadata[_Token] = token
        return weakref.ref(token)


def is_held(reference: weakref.ref[_Token]) -> bool:
    """Return whether a tensor computed from the inputs is still alive. Reference cycles that are garbage do not count."""
    if reference() is None:
        return False
    gc.collect()
    return reference() is not None


@contextmanager
def apart() -> Iterator[None]:
    """Evaluate functions apart from their surroundings: without hooks on saved tensors and without cached parametrizations.

    Code that counts or moves saved tensors has no use for a graph that is dropped at once. A parametrized weight is computed
    anew, since a cached one has a graph that was made outside, or none at all.
    """
    hooks: Any = torch._C._autograd
    taken = []
    while (top := hooks._top_saved_tensors_default_hooks(False)) is not None:
        hooks._pop_saved_tensors_default_hooks()
        taken.append(top)
    enabled, parametrize._cache_enabled = parametrize._cache_enabled, 0
    try:
        yield
    finally:
        parametrize._cache_enabled = enabled
        for pack, unpack in reversed(taken):
            hooks._push_saved_tensors_default_hooks(pack, unpack)


def without_hooks(leaves: Iterable[Tensor]) -> AbstractContextManager[None]:
    """Take the hooks off parameters, since autograd runs them when it adds the gradients that a stack returns."""
    hooks = [one._backward_hooks for one in leaves if one._backward_hooks]
    return _emptied(hooks) if hooks else nullcontext()


@contextmanager
def _emptied(hooks: Sequence[dict[Any, Any]]) -> Iterator[None]:
    kept = [dict(one) for one in hooks]
    for one in hooks:
        one.clear()
    try:
        yield
    finally:
        for one, before in zip(hooks, kept, strict=True):
            one.update(before)


class Foreign(NamedTuple):
    """A tensor in a graph that is neither an input, nor a known leaf, nor made from these."""

    shape: tuple[int, ...] | None
    """Shape of a leaf; None if only the operator that made the tensor is known."""
    operator: str | None
    """The name of that operator's node; None for a leaf."""

    def __str__(self) -> str:
        if self.operator is None:
            return f"a leaf of shape {list(self.shape or ())}"
        return f"the result of {self.operator}"


@dataclass(frozen=True)
class Graph:
    """The parts of the graph of one evaluation."""

    leaves: tuple[Tensor, ...]
    """Known leaves in which it ends, each once, in the order in which they were found."""
    foreign: Foreign | None
    """The first tensor that came from elsewhere."""
    structure: int
    """A hash of the names of its nodes, in which evaluations that took other paths differ."""

    def same_as(self, other: "Graph") -> bool:
        """Return whether both evaluations took the same path and used the same leaves."""
        if self.structure != other.structure:
            return False
        mine, theirs = ([id(leaf) for leaf in one.leaves] for one in (self, other))
        return mine == theirs or set(mine) == set(theirs)


def sequence_number() -> int:
    """A number not above that of any node that this thread makes from here on, and above those of earlier nodes."""
    return torch._C._autograd._get_sequence_nr()


def walk(outputs: Iterable[Tensor], entrances: Iterable[Tensor], known: dict[int, Tensor] | None = None, since: int = 0) -> Graph:
    """Walk through the graph behind outputs.

    Args:
        outputs: outputs of an evaluation; those without a graph are left out.
        entrances: leaves made for the evaluation, which are not reported.
        known: the leaves that may be reached, by their `id`; None if it does not matter.
        since: `sequence_number()` before the evaluation. Nodes that were made earlier are foreign.
    """
    own = {id(one) for one in entrances}
    waiting: list[Any] = [output.grad_fn for output in outputs if output.grad_fn is not None]
    leaves = {id(output): output for output in outputs if output.requires_grad and output.grad_fn is None}
    seen: set[Any] = set(waiting)
    names: list[str] = []
    # Small functions spend much of their time here: each attribute of a node is a call into torch, and its name the slowest.
    while waiting:
        node = waiting.pop()
        kind = type(node).__name__
        names.append(node.name() if kind == _UNNAMED else kind)
        if kind == _LEAF:
            leaf = node.variable
            leaves[id(leaf)] = leaf
            continue
        if since and node._sequence_nr() < since:
            return Graph((), Foreign(None, node.name()), 0)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    found = [leaf for key, leaf in leaves.items() if key not in own]
    foreign = None
    if known is not None:
        foreign = next((Foreign(tuple(leaf.shape), None) for leaf in found if id(leaf) not in known), None)
    return Graph(tuple(found), foreign, hash(tuple(names)))
