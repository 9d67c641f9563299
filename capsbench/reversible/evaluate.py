"""Evaluating a residual function in forward, and once more in backward together with its vector-Jacobian product.

Any module will do. One that offers `forward_and_vjp` shares work between its value and its gradients:

    forward_and_vjp(x, grad, kept=()) -> (value, grad_x, grads)
        value has the bits of forward(x); grads are the gradients of (value · grad).sum() for each of the module's parameters,
        None for one that does not require grad
    forward_keeping(x) -> (value, kept)
        offered besides: value as above, and tensors that `forward_and_vjp` takes as `kept` to do less

Both run without a graph.
"""

from typing import Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.parametrize import is_parametrized

from capsbench.reversible.replay import Autocast, Buffers

Gradients = tuple[Tensor | None, ...]


class SharesWork(Protocol):
    """A module that offers `forward_and_vjp`."""

    def forward_and_vjp(self, x: Tensor, grad: Tensor, kept: tuple[Tensor, ...] = ()) -> tuple[Tensor, Tensor | None, Gradients]:
        """See above."""


class KeepsWork(Protocol):
    """A module that offers `forward_keeping`."""

    def forward_keeping(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See above."""


def evaluate(function: nn.Module, x: Tensor, *, keeping: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """f(x) without a graph, and with `keeping` what the function offers to keep (nothing, if it does not)."""
    if keeping and _keeps_work(function):
        return function.forward_keeping(x)
    return function(x), ()


def value_and_vjp(
    function: nn.Module, x: Tensor, grad: Tensor, *, kept: tuple[Tensor, ...], autocast: Autocast, buffers: Buffers | None
) -> tuple[Tensor, Tensor | None, Gradients]:
    """f(x) with the bits of forward, and the gradients of `(f(x) * grad).sum()`; one evaluation of f.

    Args:
        function: f.
        x: its input, any shape.
        grad: the gradient of f(x), the same shape.
        kept: what `evaluate` returned.
        autocast: the state that f was evaluated under.
        buffers: f's buffers before it was evaluated, if that changed them.

    Returns:
        The value, the gradient of x and those of `function.parameters()`; None where there is none.
    """
    if buffers is None and _shares_work(function):
        with autocast.restore():
            return function.forward_and_vjp(x, grad, kept)
    parameters = list(function.parameters())
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    buffers = buffers or Buffers.capture(function)
    # The evaluation alone runs as in forward: backward products choose their own precision, as always in torch.
    with torch.enable_grad(), autocast.restore(), buffers.restore():
        leaf = x.detach().requires_grad_()
        value = function(leaf)
    if not value.requires_grad:
        return value, None, (None,) * len(parameters)
    grad_x, *found = torch.autograd.grad(value, [leaf, *wanted], grad.to(value.dtype), allow_unused=True)
    grads = iter(found)
    return value.detach(), grad_x, tuple(next(grads) if parameter.requires_grad else None for parameter in parameters)


def _shares_work(function: nn.Module) -> TypeGuard[SharesWork]:
    return _stands_for_forward(function, "forward_and_vjp")


def _keeps_work(function: nn.Module) -> TypeGuard[KeepsWork]:
    return _stands_for_forward(function, "forward_and_vjp") and _stands_for_forward(function, "forward_keeping")


def _stands_for_forward(function: nn.Module, method: str) -> bool:
    """Whether calling `method` computes what calling the function would: nothing was put over or around `forward`."""
    # The class is asked, not the object: a compiled module passes on the attributes of the one inside.
    return _offers(type(function), method) and not any(is_altered(module) for module in function.modules())


def _offers(kind: type[nn.Module], method: str) -> bool:
    """Whether a class has the method, and no `forward` above it."""
    for base in kind.__mro__:
        if method in vars(base):
            return True
        if "forward" in vars(base):
            return False
    return False


def is_altered(module: nn.Module) -> bool:
    """Whether hooks, parametrizations, `Module.compile` or another `forward` make a call more than its class says."""
    if _has_any_global_hook():
        return True
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or is_parametrized(module) or "forward" in vars(module) or module._compiled_call_impl is not None
