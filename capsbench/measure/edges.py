"""The edges of the parts of a network that grow with depth, at which the clock is read.

A block may be half a percent of a step, so that its time is lost in the noise of the rest. Between the edges of the modules that
grow, forward and backward, it is not. Which modules these are follows from the operators that each module runs at each depth.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from capsbench.measure.clock import Clock
from capsbench.tracing.attribution import Modules

_COSTED_STEPS = 200

_MOST_PARTS = 32
"""Number of parts beyond which reading the clock at their edges would cost more than it shows."""


@dataclass(frozen=True)
class Structure:
    """The modules of a network, and the operators that each ran in one forward pass."""

    children: Mapping[str, tuple[str, ...]]
    """Names of the direct children of each module, by its name; the network's own name is empty."""
    operators: Mapping[str, Counter[str]]
    """Operators with the shapes of their inputs, by the innermost module that ran them."""
    called: tuple[str, ...]
    """Names of the modules that were called, in the order of their first calls."""

    def all_operators(self, name: str) -> Counter[str]:
        """Return the operators of a module and of everything in it."""
        found = Counter(self.operators.get(name, ()))
        for child in self.children[name]:
            found += self.all_operators(child)
        return found


class _Recorder(TorchDispatchMode):
    """The operators of a forward pass, by the module that is running."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: dict[str, Counter[str]] = {}
        self.called: dict[str, None] = {}
        self._place = ""

    @property
    def place(self) -> str:
        """Name of the running module, which `Modules` keeps up to date."""
        return self._place

    @place.setter
    def place(self, name: str) -> None:
        self._place = name
        self.called.setdefault(name)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = [tuple(one.shape) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        self.operators.setdefault(self._place, Counter())[f"{func} {shapes}"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[Structure]]:
    """Record the structure of a network whose forward pass runs inside; the list holds it afterwards."""
    found: list[Structure] = []
    recorder = _Recorder()
    with Modules(model, recorder).watched(), recorder:
        yield found
    children = {
        name: tuple(f"{name}.{child}" if name else child for child, _ in module.named_children())
        for name, module in model.named_modules(remove_duplicate=False)
    }
    found.append(Structure(children, recorder.operators, tuple(recorder.called)))


def growing_modules(structures: Sequence[Structure]) -> list[list[str]]:
    """Names of modules that hold what differs between networks: choices, of which the first that has all its edges is taken.

    The first choice are modules that are called as a whole, so that nothing inside them meets a hook; the second the smallest
    modules or containers. Operators of a module between the calls of its children, such as the sums of a residual network, go
    with the children. There is no choice if only the whole network differs, or if everything in it does.

    Args:
        structures: the networks of one series, at different places on its axis.
    """
    # Networks with the same modules differ in sizes, and then a container of which everything differs is one part.
    smallest = _growing("", structures, join=_equal(one.children for one in structures))
    if not smallest or "" in smallest or len(smallest) > _MOST_PARTS:
        return []
    called = set(structures[0].called)
    whole = list(dict.fromkeys(_called_around(name, called) or name for name in smallest))
    return [whole] if whole == smallest else [whole, smallest]


def _called_around(name: str, called: Set[str]) -> str:
    """The innermost module around another one, or that one itself, that is called; empty if only the network is."""
    while name and name not in called:
        name = name.rpartition(".")[0]
    return name


def _growing(name: str, structures: Sequence[Structure], *, join: bool) -> list[str]:
    """The smallest parts of a module that differ.

    Args:
        name: name of the module.
        structures: networks that have it.
        join: take a module in place of its parts if all of them that run operators differ.
    """
    if _equal(one.all_operators(name) for one in structures):
        return []
    if not _equal(one.children[name] for one in structures):
        return [name]
    running = [child for child in structures[0].children[name] if any(one.all_operators(child) for one in structures)]
    found = [part for child in running for part in _growing(child, structures, join=join)]
    return [name] if not found or (join and found == running and len(running) > 1) else found


def _equal(values: Iterator[Any]) -> bool:
    first = next(values)
    return all(one == first for one in values)


class Edges:
    """Hooks at the edges of modules, that read the clock there; they are set only while a forward pass runs.

    A module that is called is one part; of a container that is not, such as a `ModuleList`, the part reaches from its first
    called child to its last. The number of readings is therefore the same at every depth.

    Args:
        model: the network.
        modules: names from `growing_modules`.
        structure: the network's structure, which says what is called.
        clock: clock of the network's device.
    """

    def __init__(self, model: nn.Module, modules: Sequence[str], structure: Structure, clock: Clock) -> None:
        self._clock = clock
        self._parts: list[_Part] = []
        for name in modules:
            inside = [one for one in structure.called if one == name or one.startswith(f"{name}.")]
            outermost = [one for one in inside if not any(one.startswith(f"{other}.") for other in inside)]
            if outermost:
                self._parts.append(_Part(clock, [model.get_submodule(one) for one in outermost]))

    @contextmanager
    def forward(self, *, training: bool) -> Iterator[None]:
        """Read the clock at the edges of what is called in the body, and where a backward pass that follows meets them.

        Args:
            training: whether a backward pass follows.
        """
        self._origin = self._clock.stamp()
        with ExitStack() as hooks:
            for part in self._parts:
                hooks.enter_context(part.hooked(training=training))
            yield

    def seconds(self) -> tuple[float, float] | None:
        """Seconds of the parts in the last forward pass, and in the backward pass that followed, if there was one.

        Returns:
            None if an edge was not met, as where backward runs without the tensors that were seen.
        """
        if not self._parts or not all(part.was_met() for part in self._parts):
            return None
        forward, backward = zip(*(part.spans() for part in self._parts), strict=True)
        return self._covered(forward), self._covered(one for one in backward if one is not None)

    def _covered(self, spans: Iterable[tuple[Any, Any]]) -> float:
        """Seconds that spans cover together: parts whose modules are called by turns overlap."""
        offsets = sorted(tuple(self._clock.between(self._origin, one) for one in span) for span in spans)
        total, reached = 0.0, 0.0
        for first, last in offsets:
            total += max(0.0, last - max(first, reached))
            reached = max(reached, last)
        return total


class _Part:
    """The stretch of a step from the call of the first of some modules to the return of the last, and its way back."""

    def __init__(self, clock: Clock, modules: Sequence[nn.Module]) -> None:
        self._clock, self._modules = clock, modules

    @contextmanager
    def hooked(self, *, training: bool) -> Iterator[None]:
        """Forget the step before, and take calls in the body for edges; a checkpoint's calls in backward come after it."""
        self._forward: list[Any] = []
        self._outputs: list[Any] = []
        self._inputs: list[Any] = []
        trained = any(one.requires_grad for module in self._modules for one in module.parameters())
        self._training, self._expects_backward = training, training and trained
        first, last = self._modules[0], self._modules[-1]
        with first.register_forward_pre_hook(self._entered, with_kwargs=True), last.register_forward_hook(self._left):
            yield

    def was_met(self) -> bool:
        """Return whether every edge was met: backward enters by an output, and leaves by an input."""
        return len(self._forward) > 1 and (not self._expects_backward or bool(self._outputs and self._inputs))

    def spans(self) -> tuple[tuple[Any, Any], tuple[Any, Any] | None]:
        """Stamps at the two ends of forward and of backward; None where there is no backward."""
        backward = (self._outputs[0], self._inputs[-1]) if self._expects_backward else None
        return (self._forward[0], self._forward[-1]), backward

    def _entered(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        if not self._forward:
            self._watch((args, kwargs), self._inputs)
            self._forward.append(self._clock.stamp())

    def _left(self, _: nn.Module, args: Any, out: Any) -> None:
        self._forward.append(self._clock.stamp())
        self._watch(out, self._outputs)

    def _watch(self, values: Any, stamps: list[Any]) -> None:
        """Read the clock when backward reaches any of these tensors: outputs before the part, inputs after it."""
        for one in tree_leaves(values) if self._training else ():
            if isinstance(one, Tensor) and one.requires_grad:
                self._expects_backward = True
                one.register_hook(lambda _: stamps.append(self._clock.stamp()))


def optimizer_share(model: nn.Module, modules: Iterable[str], optimizer: torch.optim.Optimizer | None) -> float:
    """Share of an optimizer's parameters, by their bytes, that lie in some modules of a network; 0 without an optimizer.

    An optimizer's step walks once over all parameters, so that its time grows with depth by the time of the modules' own ones.
    To count all of it would put its whole noise into the time of the parts that grow.
    """
    stepped = {parameter for group in optimizer.param_groups for parameter in group["params"]} if optimizer else set()
    inside = {parameter for name in modules for parameter in model.get_submodule(name).parameters()}
    every = sum(parameter.nbytes for parameter in stepped)
    return sum(parameter.nbytes for parameter in stepped & inside) / every if every else 0.0


def hooks_change(model: nn.Module, forward: Callable[[], object], edges: Edges) -> bool:
    """Return whether a network runs other operators under the hooks of edges, as `nn.TransformerEncoderLayer` does in inference.

    Args:
        model: network in evaluation mode.
        forward: function that runs its inference step.
        edges: edges of some of its modules.

    Returns:
        True also if its operators cannot be recorded, as those of a compiled network.
    """
    found: list[Mapping[str, Counter[str]]] = []
    for hooked in (False, True):
        try:
            with edges.forward(training=False) if hooked else nullcontext(), recorded(model) as structures:
                forward()
        except Exception:  # a user's network may raise anything
            return True
        found.append(structures[0].operators)
    return found[0] != found[1]


def edges_cost(clock: Clock, device: torch.device, parts: int) -> float:
    """Seconds that edges add to a training step: a step of a network that does next to nothing, with edges and without."""
    model, values = nn.Sequential(nn.Identity()), torch.ones(1, device=device, requires_grad=True)
    edges = Edges(model, ["0"] * parts, Structure({"": ("0",), "0": ()}, {}, ("", "0")), clock)

    def step(around: AbstractContextManager[None]) -> float:
        began = time.perf_counter()
        with around:
            out = model(values * 1)
        (out * 1).backward()
        return time.perf_counter() - began

    with_edges = median(step(edges.forward(training=True)) for _ in range(_COSTED_STEPS))
    return max(0.0, with_edges - median(step(nullcontext()) for _ in range(_COSTED_STEPS)))
