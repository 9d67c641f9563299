"""A case: a network, the inputs that it is given, its loss and its optimizer, which is whatever a user brings.

def gpt2(blocks=4, length=128, batch_size=8, width=256):        # any number that it takes can be varied
...
return capsbench.Case(module, inputs={"input_ids": ids, "labels": ids}, loss=lambda out: out.loss)
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from copy import copy
from dataclasses import KW_ONLY, dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map

from capsbench.errors import ConfigurationError

LEARNING_RATE = 1e-3

OptimizerFactory = Callable[[list[nn.Parameter]], Any]
"""A function that makes an optimizer of parameters; for a step of the case's own it may return several, in any container."""

TrainStep = Callable[[nn.Module, Any, Any], object]
"""A training step of a case's own, of its network, its optimizer and its inputs."""


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Make Adam at 1e-3 (paper, section 4) in its fused form, which needs no temporaries, unless parameters are complex."""
    return torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=_can_be_fused(parameters))


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Make AdamW at 1e-3 with torch's own weight decay, in its fused form unless parameters are complex."""
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=_can_be_fused(parameters))


def _can_be_fused(parameters: list[nn.Parameter]) -> bool:
    """Return whether torch has a fused form of Adam for parameters."""
    return all(parameter.is_floating_point() for parameter in parameters)


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Make SGD at 1e-3 without momentum, which is torch's own choice, and without state."""
    return torch.optim.SGD(parameters, lr=LEARNING_RATE)


OPTIMIZERS: dict[str, OptimizerFactory | None] = {"adam": adam, "adamw": adamw, "sgd": sgd, "none": None}
"""Optimizers that can be chosen by name in place of a case's own."""

_FUNCTIONS = {
    "loss": "loss=lambda out: out.square().mean()",
    "optimizer": "optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1)",
    "train": "def train(module, optimizer, batch): ...",
}
"""Fields of a case that are functions, with an example of each."""

_MOST_PARTS = 6
"""Most arguments of a function, or parts of a container, that an error lists."""


@dataclass(frozen=True)
class CallArguments:
    """Arguments of a call, by position and by name."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A network, the inputs that it is given, its loss and its optimizer.

    Tensors of `inputs`, `inference` and `targets` can lie in tuples, lists, dictionaries, data classes and packed sequences. They
    are moved to the device that is measured.
    """

    module: nn.Module
    """The network."""
    inputs: Any
    """Inputs of a training step: a tensor or packed sequence, a tuple or list of arguments, or a dictionary of them by name."""
    _: KW_ONLY
    loss: Callable[..., Tensor] | None = None
    """Function from the network's output, and `targets` if there are any, to a loss of one element.

    By default the output itself if it has one element, or else its `loss` (an attribute, or a key of a dictionary)."""
    optimizer: OptimizerFactory | None = adam
    """Function that makes an optimizer of the parameters that need gradients; None for a step without an optimizer."""
    accumulate: int = 1
    """Forward and backward passes before each step of the optimizer. Each has all of `inputs`, and its loss is divided by their
    number."""
    train: TrainStep | None = None
    """Training step in place of forward, loss, backward and optimizer: `train(module, optimizer, batch)`.

    It gets what the function `optimizer` made, and `inputs` as its batch. What it returns is not used."""
    targets: Any = None
    """Second argument of `loss`, such as labels; None if it takes the output alone."""
    inference: Any = None
    """Inputs under inference mode; None for those of a training step."""
    loss_under_autocast: bool = True
    """True if `loss` is computed under autocast, as the output is, where the precision asks for autocast."""

    def __post_init__(self) -> None:
        module: object = self.module
        if not isinstance(module, nn.Module):
            raise ConfigurationError(
                f"a case's module is {f'the class {module.__name__}' if isinstance(module, type) else described(module)}",
                "give a torch.nn.Module first, then its inputs: Case(module, inputs)",
            )
        for name, example in _FUNCTIONS.items():
            value = getattr(self, name)
            if not (value is None or callable(value)):
                raise ConfigurationError(f"a case's {name} is {described(value)}, not a function", f"give one such as {example}")
        if type(self.accumulate) is not int or self.accumulate < 1:
            raise ConfigurationError(
                f"a case's accumulate is {self.accumulate!r}", "give the number of forward and backward passes, 1 or more"
            )
        unused = [name for name in ("loss", "targets") if getattr(self, name) is not None]
        unused += ["accumulate"] if self.accumulate > 1 else []
        if self.train is not None and unused:
            raise ConfigurationError(
                f"a case with a train function takes no {' and no '.join(unused)}",
                "leave one of them out: train(module, optimizer, batch) is the whole step, and its batch are the inputs",
            )
        if self.train is not None:
            hint = "train(module, optimizer, batch), with several optimizers in one argument"
            _check_call(self.train, "train function", (self.module, None, self.inputs), hint=hint)
        elif not self.module._forward_pre_hooks:  # which may change the arguments
            hint = "module(*inputs), or module(**inputs) with a dictionary"
            _check_call(self.module.forward, "module", *_call_of(self.inputs), hint=hint)
        self._check_loss()

    def _check_loss(self) -> None:
        """Refuse a loss that cannot be called with the output and the targets."""
        if self.targets is not None and self.loss is None:
            raise ConfigurationError(
                "a case has targets, but no loss that takes them",
                "give a loss of the output and the targets, such as loss=torch.nn.functional.cross_entropy, or leave them out",
            )
        if isinstance(self.loss, type) and issubclass(self.loss, nn.Module):
            raise ConfigurationError(
                f"a case's loss is the class {self.loss.__name__}, not a loss made of it", f"give loss={self.loss.__name__}()"
            )
        if self.loss is not None:
            given = (None,) if self.targets is None else (None, self.targets)
            _check_call(self.loss, "loss function", given, hint="loss(output), or loss(output, targets) of a case with targets")

    def tensors(self) -> list[Tensor]:
        """Return the tensors that the network and the loss are given, each once, without sizes of the batches of sequences."""
        return list({id(leaf): leaf for leaf in self._leaves() if isinstance(leaf, Tensor)}.values())

    def batch_sizes(self) -> list[Tensor]:
        """Return the sizes of the batches of packed sequences, which stay in the host's memory on every device."""
        return [leaf.batch_sizes for leaf in self._leaves() if isinstance(leaf, PackedSequence)]

    def _leaves(self) -> Iterator[Any]:
        """The leaves of all that the network and the loss are given, and the packed sequences among it."""
        return _leaves((_unpacked(self.inputs), self.targets, _unpacked(self.inference)))

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "Case":
        """Return the case with another tensor for each that the network and the loss are given; equal objects stay equal."""
        known: dict[int, Tensor] = {}

        def moved(leaf: Any) -> Any:
            if isinstance(leaf, Tensor) and id(leaf) not in known:
                known[id(leaf)] = function(leaf)
            return known.get(id(leaf), leaf)

        inputs, inference = (
            CallArguments(*_mapped(moved, _unpacked(one))) if isinstance(one, CallArguments) else _mapped(moved, _unpacked(one))
            for one in (self.inputs, self.inference)
        )
        return replace(self, inputs=inputs, inference=inference, targets=_mapped(moved, self.targets))

    def to(self, device: torch.device) -> "Case":
        """Return the case on a device; the network itself is moved."""
        return replace(self.map_tensors(lambda tensor: tensor.to(device)), module=self.module.to(device))

    def output(self, *, training: bool) -> Any:
        """Call the network, and return its output."""
        args, kwargs = _call_of(self.inputs if training or self.inference is None else self.inference)
        return self.module(*args, **kwargs)

    def loss_of(self, output: Any, name: str) -> Tensor:
        """The loss of an output.

        Args:
            output: the network's output.
            name: name of the model, for errors.

        Raises:
            ConfigurationError: there is no loss of one element that depends on a parameter.
        """
        output_is_tensor = isinstance(output, Tensor)
        if self.loss is not None:
            found = self.loss(output) if self.targets is None else self.loss(output, self.targets)
            origin = "its loss function returned"
        else:
            found, origin = _default_loss(output, name), "its output is" if output_is_tensor else "its output has as loss"
        if not isinstance(found, Tensor) or found.numel() != 1:
            right = "give `loss`, a function of the output, such as lambda out: out.mean()"
            raise ConfigurationError(
                f"model '{name}': {origin} {described(found)}, which is not a loss",
                f"a loss is a tensor of one element: {right if self.loss is None else 'sum or average it over the batch'}",
            )
        if torch.is_grad_enabled() and not found.requires_grad:
            raise ConfigurationError(
                f"model '{name}': {origin} a tensor that depends on no parameter that needs a gradient",
                "compute the loss from the network's output, without detach, item or no_grad",
            )
        return found


def check_loss(case: Case) -> None:
    """Refuse a loss with parameters that are not parameters of the network, whose memory would not be counted.

    Raises:
        ConfigurationError: it has some.
    """
    own = {id(parameter) for parameter in case.module.parameters()}
    if isinstance(case.loss, nn.Module) and any(one.requires_grad and id(one) not in own for one in case.loss.parameters()):
        raise ConfigurationError(
            f"a case's loss, {type(case.loss).__name__}, has parameters that are not parameters of the network, and would not be "
            "counted",
            "make it a part of the module, whose output is then the loss",
        )


def check_inputs(case: Case) -> None:
    """Refuse inputs that belong to a graph, which the first backward pass frees.

    Raises:
        ConfigurationError: one does.
    """
    found = next((one for one in case.tensors() if one.requires_grad and not one.is_leaf), None)
    if found is not None:
        raise ConfigurationError(
            f"a case's inputs have {described(found)} that was computed from another one that needs a gradient",
            "detach it, and let it need a gradient itself: detach().requires_grad_()",
        )


def _unpacked(given: Any) -> Any:
    """Inputs as nested tuples, lists and dictionaries, which other mappings are not to `tree_leaves`."""
    if isinstance(given, CallArguments):
        return given.args, dict(given.kwargs)
    return dict(given) if isinstance(given, Mapping) else given


def _is_packed(value: Any) -> bool:
    """Return whether a value is a packed sequence, a tuple of which one part stays in the host's memory."""
    return isinstance(value, PackedSequence)


def _parts(leaf: Any) -> dict[str, Any] | None:
    """The parts of a data class, a mapping or a packed sequence, which are leaves here; None for anything else."""
    if isinstance(leaf, PackedSequence):
        return {name: getattr(leaf, name) for name in ("data", "sorted_indices", "unsorted_indices")}
    if is_dataclass(leaf) and not isinstance(leaf, type):
        return {one.name: getattr(leaf, one.name) for one in fields(leaf) if hasattr(leaf, one.name)}  # some may not be set yet
    return dict(leaf) if isinstance(leaf, Mapping) else None


def _leaves(tree: Any, around: tuple[Any, ...] = ()) -> Iterator[Any]:
    """The leaves of nested tuples, lists, dictionaries and data classes, which may hold themselves, and the packed sequences."""
    for leaf in tree_leaves(tree, is_leaf=_is_packed):
        parts = _parts(leaf)
        if parts is None or _is_packed(leaf):
            yield leaf
        if parts is not None and not any(leaf is one for one in around):
            yield from _leaves(parts, (*around, leaf))


def _mapped(function: Callable[[Any], Any], tree: Any, made: dict[int, Any] | None = None) -> Any:
    """Nested tuples, lists, dictionaries and data classes with another value for each leaf."""
    twins: dict[int, Any] = {} if made is None else made

    def mapped(leaf: Any) -> Any:
        parts = _parts(leaf)
        if parts is None:
            return function(leaf)
        if id(leaf) in twins:  # it holds itself
            return twins[id(leaf)]
        if isinstance(leaf, PackedSequence):
            return PackedSequence(
                batch_sizes=leaf.batch_sizes, **{name: _mapped(function, one, twins) for name, one in parts.items()}
            )
        if isinstance(leaf, Mapping) and not isinstance(leaf, MutableMapping):
            return {name: _mapped(function, value, twins) for name, value in parts.items()}
        twin = twins[id(leaf)] = _copied(leaf)
        for name, value in parts.items():
            if isinstance(leaf, MutableMapping):
                twin[name] = _mapped(function, value, twins)
            else:
                object.__setattr__(twin, name, _mapped(function, value, twins))  # a frozen one, too
        return twin

    return tree_map(mapped, tree, is_leaf=_is_packed)


def _copied(held: Any) -> Any:
    """A copy of a mapping or a data class that shares no dictionary or list with it, as a mapping may keep its items in one."""
    twin = copy(held)
    for name, value in vars(twin).items() if hasattr(twin, "__dict__") else ():
        if isinstance(value, dict | list) and value is vars(held).get(name):
            object.__setattr__(twin, name, copy(value))
    return twin


def _call_of(given: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Arguments by position and by name of a call with these inputs."""
    if isinstance(given, CallArguments):
        return given.args, given.kwargs
    if isinstance(given, Mapping):
        return (), given
    return (tuple(given), {}) if isinstance(given, tuple | list) and not _is_packed(given) else ((given,), {})


def _check_call(
    function: Callable[..., Any], what: str, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None, *, hint: str
) -> None:
    """Refuse arguments that a function of a case does not take, as far as its signature says."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a function of C, or a script
        return
    try:
        signature.bind(*args, **(kwargs or {}))
    except TypeError as error:
        raise ConfigurationError(
            f"a case's {what} does not take its arguments: {error}",
            f"it is called as {hint}, but takes {_names_in(signature)}",
        ) from None


def _names_in(signature: inspect.Signature) -> str:
    """The names of the first arguments of a signature, in brackets."""
    stars: dict[object, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    names = [f"{stars.get(one.kind, '')}{one.name}" for one in signature.parameters.values()]
    return f"({', '.join([*names[:_MOST_PARTS], *(['…'] if len(names) > _MOST_PARTS else [])])})"


def _default_loss(output: Any, name: str) -> Any:
    """The loss that an output is or holds."""
    if isinstance(output, Tensor):
        return output
    found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if found is None:
        raise ConfigurationError(
            f"model '{name}' returned {described(output)}, which is not a loss and has no `loss`",
            "give the case a loss, such as Case(module, inputs, loss=lambda out: out.logits.logsumexp(-1).sum())",
        )
    return found


def described(value: Any) -> str:
    """A short description of a value for an error: its type, and the shape of a tensor."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return "None" if value is None else type(value).__name__


def described_parts(value: Any) -> str:
    """A short description of a value for an error, with the parts of a tuple, a list or a dictionary."""
    if type(value) is dict:
        parts = [f"{name!r}: {described(one)}" for name, one in value.items()]
        left, right = "{", "}"
    elif type(value) in (tuple, list):
        parts = [described(one) for one in value]
        left, right = ("(", ")") if type(value) is tuple else ("[", "]")
    else:
        return described(value)
    return f"{left}{', '.join([*parts[:_MOST_PARTS], *(['…'] if len(parts) > _MOST_PARTS else [])])}{right}"
