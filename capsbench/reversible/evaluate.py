"""Evaluation of a residual function in forward, and again in backward together with its vector-Jacobian product.

Any module will do. In forward it is evaluated with gradients enabled, on inputs that are leaves of a graph of its own, and that
graph is examined and dropped at once. A function that asks whether gradients are on computes the same in both directions, and a
tensor that comes from elsewhere, or is kept elsewhere, raises an error instead of losing its gradient.

A module that offers `forward_and_vjp` shares work between its value and its gradients:

    forward_and_vjp(x, grad, kept=()) -> (value, grad_x, grads)
        value has the bits of forward(x); grads are the gradients of (value · grad).sum() for each of the module's parameters,
        None for one that does not require grad or is not used
    forward_keeping(x) -> (value, kept)
        optional: value as above, and tensors that `forward_and_vjp` takes as `kept` to do less

Both run without a graph, draw no random numbers and read nothing but x and parameters of the module.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.parametrize import is_parametrized

from capsbench.errors import ConfigurationError, ShapeError
from capsbench.reversible.context import Arguments
from capsbench.reversible.drift import is_capturing
from capsbench.reversible.graph import Entrance, Foreign, Graph, is_held, sequence_number, walk, without_hooks
from capsbench.reversible.replay import Autocast, Buffers, OtherDraws, RandomState, RefusedDraws, Untouched

Gradients = list[tuple[Tensor, Tensor]]
"""Pairs of a leaf and its gradient."""

_NARROW = (torch.bfloat16, torch.float16)


class SharesWork(Protocol):
    """A module that offers `forward_and_vjp`."""

    def forward_and_vjp(
        self, x: Tensor, grad: Tensor, kept: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor | None, Sequence[Tensor | None]]:
        """Return the value, the gradient of x and that of each parameter."""


class KeepsWork(Protocol):
    """A module that offers `forward_keeping`."""

    def forward_keeping(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the value and the tensors that `forward_and_vjp` takes as `kept`."""


class Evaluation(NamedTuple):
    """One evaluation of a function. No tensor in it has a graph."""

    value: Tensor
    extras: tuple[Tensor, ...]
    """Tensors that the function returned in addition to its value."""
    kept: tuple[Tensor, ...]
    """Tensors that it offered to keep for backward."""
    graph: Graph | None
    """The recorded graph; None for a module that shares work, which records nothing."""
    differentiable: bool
    """True if the value has a gradient, even that of a parameter alone."""


class Vjp(NamedTuple):
    """A value and the gradients of a function."""

    value: Tensor
    grad_x: Tensor | None
    grads_context: tuple[Tensor | None, ...]
    """Gradient of each tensor of the context that requires one."""
    grads: Gradients
    graph: Graph | None


@dataclass
class Caller:
    """A function of a stack, with its name in errors."""

    function: nn.Module
    index: int

    def __str__(self) -> str:
        return f"function {self.index} ({type(self.function).__name__})"

    def in_own_precision(self, x: Tensor) -> Tensor:
        """The state in the precision of the function: narrower if all of its parameters are."""
        own = own_dtype(self.function)
        return x if own is None or own.itemsize >= x.dtype.itemsize else x.to(own)

    def __call__(self, x: Tensor, arguments: Arguments) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the value and the extras of the function, called with x in its own precision.

        Args:
            x: the state, at least float32.
            arguments: further arguments of the function.

        Raises:
            ConfigurationError: the function changed its input, or did not return tensors.
            ShapeError: the value does not have the shape of x.
        """
        given = self.in_own_precision(x)
        watched = (given, *arguments.tensors)
        before = _versions(watched)
        args, kwargs = arguments.rebuild()
        try:
            output = self.function(given, *args, **kwargs)
        except RuntimeError as error:
            # Torch itself refuses to change a leaf or a view of one, before anything has been changed.
            if given.requires_grad and (given.is_leaf or given._is_view()) and "in-place operation" in str(error):
                raise self._changed() from error
            raise
        value, extras = self._split(output)
        if before is not None and _versions(watched) != before:
            raise self._changed()
        if value.shape != x.shape:
            raise ShapeError(
                f"a residual function turned {list(x.shape)} into {list(value.shape)}: {self}",
                "its output must have its input's shape",
            )
        return value, extras

    def _changed(self) -> ConfigurationError:
        return ConfigurationError(
            f"{self} of a momentum stack changes its input in place, as {_in_place(self.function)} does",
            "the stack still needs that input: set inplace=False in the modules that see it first",
        )

    def _split(self, output: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        if isinstance(output, Tensor):
            return output, ()
        value, *extras = output if isinstance(output, tuple | list) and output else (output,)
        for one in (value, *extras):
            if not isinstance(one, Tensor):
                raise ConfigurationError(
                    f"{self} of a momentum stack returned a {type(one).__name__}",
                    "return a tensor, or a tuple (value, *extra) of tensors",
                )
        return value, tuple(extras)


class Layer(NamedTuple):
    """Facts about one function's evaluation that backward needs in addition to saved tensors."""

    caller: Caller
    gamma: float
    wanted: bool
    """True if its x has a gradient."""
    graph: Graph | None
    """The graph recorded in forward; None for a module that shares work."""
    random_state: RandomState | None
    """Random state before the evaluation; None if it drew nothing. A state takes 5 KiB on a CPU."""
    draws: OtherDraws | None
    """States of other generators before the evaluation; None if it did not draw from them."""
    buffers: Buffers | None
    """Buffers before the evaluation, if it wrote into them."""
    untouched: Untouched | None
    """Buffers that it left alone."""
    kept: int
    """Number of tensors that it keeps."""
    extras: int
    """Number of tensors that it returned in addition to its value."""


def evaluate_sharing(caller: Caller, x: Tensor, *, wanted: bool, keeping: bool) -> Evaluation | None:
    """Evaluate a function that is given x alone, if it shares work; None if it does not. The arguments are those of `evaluate`.

    Args:
        caller: the function.
        x: its input, any shape.
        wanted: whether x has a gradient.
        keeping: ask the function for the tensors that it offers to keep.
    """
    function = caller.function
    if not _shares_work(function):
        return None
    given = caller.in_own_precision(x)
    value, kept = function.forward_keeping(given) if keeping and _keeps_work(function) else (caller.function(given), ())
    # Walking through parameters is slow, and from the second function on the answer is nearly always known.
    differentiable = wanted or any(one.requires_grad for one in caller.function.parameters())
    return Evaluation(value, (), kept, None, differentiable)


def evaluate(caller: Caller, x: Tensor, arguments: Arguments, known: dict[int, Tensor], *, wanted: bool) -> Evaluation:
    """Evaluate a function in forward, inside `apart`; nothing of its graph is left.

    Args:
        caller: the function.
        x: its input, any shape.
        arguments: its further arguments.
        known: the parameters of the stack, by their `id`.
        wanted: whether x has a gradient.

    Raises:
        ConfigurationError: a tensor with a gradient came from elsewhere, or is kept elsewhere.
    """
    found, reference = _looked_at(caller, x, arguments, known, wanted)
    if is_held(reference):
        raise ConfigurationError(
            f"{caller} of a reversible stack keeps a tensor that was computed from its input, whose gradient would be lost",
            "return it, as (value, *extra), or keep it detached; a hook on a tensor must not hold that tensor; "
            "memory='stored' takes it as it is",
        )
    return found


def _looked_at(caller: Caller, x: Tensor, arguments: Arguments, known: dict[int, Tensor], wanted: bool) -> tuple[Evaluation, Any]:
    """An evaluation, and a reference to a token of its graph, whose tensors die with this call unless others hold them."""
    since = sequence_number()
    with torch.enable_grad(), RefusedDraws(str(caller)) if is_capturing(x) else nullcontext():
        entrance = Entrance(x, wanted, arguments.differentiable())
        entered, *others = entrance.inputs
        reference = entrance.watch()
        value, extras = caller(entered, arguments.replaced(others))
    graph = walk((value, *extras), entrance.leaves, known, since)
    if graph.foreign is not None:
        raise _foreign_error(caller, graph.foreign, known.values())
    return Evaluation(value.detach(), tuple(one.detach() for one in extras), (), graph, value.requires_grad), reference


def value_and_vjp(
    layer: Layer, x: Tensor, arguments: Arguments, grad: Tensor | None, grads_extras: Sequence[Tensor | None], *,
    kept: tuple[Tensor, ...], autocast: Autocast,
) -> Vjp:  # fmt: skip
    """Evaluate a function again as in forward, inside `apart`, with the gradients of `(f(x) * grad).sum()` and of its extras.

    Args:
        layer: the function f, and the facts about its evaluation in forward.
        x: its input, any shape.
        arguments: its further arguments.
        grad: the gradient of f(x), the same shape; None if no gradient has arrived yet.
        grads_extras: the gradients of the extras of f.
        kept: tensors that `evaluate` returned as kept.
        autocast: state under which f was evaluated.
    """
    caller, function = layer.caller, layer.caller.function
    if grad is not None and layer.graph is None and layer.buffers is None and _shares_work(function):
        with autocast.restore():
            value, grad_x, grads = function.forward_and_vjp(caller.in_own_precision(x), grad, kept)
        return Vjp(value, None if grad_x is None else grad_x.to(x.dtype), (), _paired(caller, grads), None)
    buffers = layer.buffers or Buffers.capture(function)
    # Only the evaluation runs as in forward; backward products choose their own precision, as always in torch.
    with torch.enable_grad(), autocast.restore(), buffers.restore():
        entrance = Entrance(x, layer.wanted, arguments.differentiable())
        entered, *others = entrance.inputs
        value, extras = caller(entered, arguments.replaced(others))
    again = walk((value, *extras), entrance.leaves)
    every = ((value, grad), *zip(extras, grads_extras, strict=True))
    pairs = [(one, of_one.to(one.dtype)) for one, of_one in every if of_one is not None and one.requires_grad]
    if not pairs:
        return Vjp(value.detach(), None, (None,) * len(others), [], again)
    entrances = entrance.leaves if layer.wanted else entrance.leaves[1:]
    with without_hooks(again.leaves):
        found = _gradients(pairs, (*entrances, *again.leaves))
    of_parameters = [(leaf, grad) for leaf, grad in zip(again.leaves, found[len(entrances) :], strict=True) if grad is not None]
    grad_x, *grads_context = found[: len(entrances)] if layer.wanted else (None, *found[: len(entrances)])
    return Vjp(value.detach(), grad_x, tuple(grads_context), of_parameters, again)


def _gradients(pairs: Sequence[tuple[Tensor, Tensor]], leaves: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """The gradients of leaves that require one, from outputs and their gradients; None for a leaf that no output depends on.

    Torch's `autograd.grad` takes as long again for checks of its arguments as the backward pass of a small function. This is
    the call that it makes after them.
    """
    outputs, of_outputs = zip(*pairs, strict=True)
    found: tuple[Tensor | None, ...] = Variable._execution_engine.run_backward(
        outputs, of_outputs, False, False, leaves, allow_unreachable=True, accumulate_grad=False
    )
    return found


def own_dtype(function: nn.Module) -> torch.dtype | None:
    """The half precision of all floating parameters of a function; None if they are wider or there are none."""
    # Walking through all modules takes longer than a small function; most functions have a parameter of their own.
    for first in function._parameters.values():
        if first is not None:
            break
    else:
        first = next(function.parameters(), None)
    if first is None or first.dtype not in _NARROW:
        return None
    floating = {one.dtype for one in function.parameters() if one.is_floating_point()}
    return first.dtype if len(floating) == 1 else None


def parameters_of(module: nn.Module) -> list[nn.Parameter]:
    """A module's `parameters()`, which take three times as long when torch lists them by name."""
    modules = module.modules() if module._modules else (module,)
    return list({id(one): one for each in modules for one in each._parameters.values() if one is not None}.values())


def _paired(caller: Caller, grads: Sequence[Tensor | None]) -> Gradients:
    parameters = parameters_of(caller.function)
    if len(grads) != len(parameters):
        raise ConfigurationError(
            f"forward_and_vjp of {caller} returned {len(grads)} gradients for {len(parameters)} parameters",
            "return one for each of its parameters() in order, None for one that is not used",
        )
    return [(mine, one) for mine, one in zip(parameters, grads, strict=True) if one is not None]


def _versions(tensors: Sequence[Tensor]) -> tuple[int, ...] | None:
    """Version counters of the tensors that have one; None under a compiler, which cannot read them."""
    if torch.compiler.is_compiling():
        return None
    return tuple([one._version for one in tensors if not one.is_inference()])


def _in_place(function: nn.Module) -> str:
    """Name of the module of a function that claims to work in place, for an error."""
    named = (f"{name or 'it'} ({module})" for name, module in function.named_modules() if getattr(module, "inplace", False))
    return next(named, "one of its operators")


def _foreign_error(caller: Caller, foreign: Foreign, known: Iterable[Tensor]) -> ConfigurationError:
    what = (
        f"{caller} of a reversible stack computes with {foreign}, which is neither its input nor a parameter of the stack:"
        " its gradient would be lost"
    )
    hint = "hand it in, as stack(x, context), register it as a parameter, or detach it; memory='stored' takes it as it is"
    if getattr(caller.function, "_is_replica", False):
        hint = "nn.DataParallel replaces parameters by copies: use DistributedDataParallel"
    elif any(hasattr(one, "device_mesh") for one in known):
        hint = "fully_shard of a function replaces its parameters: shard the network as a whole, or use memory='stored'"
    return ConfigurationError(what, hint)


def _shares_work(function: nn.Module) -> TypeGuard[SharesWork]:
    """Return whether `forward_and_vjp` computes what a call of the function does: nothing was put over or around `forward`."""
    # The class is checked, not the object, because a compiled module passes on the attributes of the one inside.
    return _offers(type(function), "forward_and_vjp") and not _is_altered_inside(function)


def _is_altered_inside(function: nn.Module) -> bool:
    """Return whether a function or a module in it is altered; walking through modules is slow, and most have no children."""
    return any(is_altered(module) for module in function.modules()) if function._modules else is_altered(function)


def _keeps_work(function: SharesWork | KeepsWork) -> TypeGuard[KeepsWork]:
    """Return whether a module that shares work offers to keep some."""
    return _offers(type(function), "forward_keeping")


def _offers(kind: type, method: str) -> bool:
    """Return whether a class has the method, no `forward` above it, and the call of all modules."""
    if kind.__call__ is not nn.Module.__call__:
        return False
    for base in kind.__mro__:
        if method in vars(base):
            return True
        if "forward" in vars(base):
            return False
    return False


def is_altered(module: nn.Module) -> bool:
    """Return whether a call does more than the module's class defines.

    Hooks, parametrizations, `Module.compile`, another `forward` and tensors with a gradient in place of parameters make it so.
    """
    if _has_any_global_hook() or module._compiled_call_impl is not None:
        return True
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return True
    # A parametrized module holds its parametrizations as a child.
    if module._modules and is_parametrized(module):
        return True
    held = vars(module)
    # A tensor with a gradient that is no parameter has replaced a parameter, or reaches the module by another way.
    for one in held.values():
        if isinstance(one, Tensor) and one.requires_grad:
            return True
    for parameter in module._parameters.values():
        if parameter is not None and not parameter.is_leaf:
            return True
    return "forward" in held or "_is_replica" in held
