"""The common part of every kernel's backward."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Backward = Callable[..., Any]

_TWICE = "this routing kernel cannot be differentiated twice (create_graph=True); use kernel='reference' there"


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off: agreement over many tiny votes would be lost in half precision, also in a backward under autocast."""
    # Entering takes as long as a small layer's sums, so it is done only if needed.
    if is_autocasting(device):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def is_autocasting(device: torch.device) -> bool:
    """Return whether autocast is on for this kind of device, of which some have none."""
    if torch.compiler.is_compiling():  # the compilers of torch 2.9 to 2.11 stop at the question below
        return device.type != "meta" and torch.is_autocast_enabled(device.type)
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


class _Once(torch.autograd.Function):
    """The identity of the first arguments, whose derivative by any of the arguments raises an error."""

    @staticmethod
    def forward(count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def setup_context(*_: Any) -> None:
        """Keep nothing, since `backward` refuses."""

    @staticmethod
    def backward(*_: Any) -> None:
        raise RuntimeError(_TWICE)


def differentiable_once(backward: Backward) -> Backward:
    """Make a backward refuse `create_graph=True` at once, and second derivatives of `torch.func` where they are taken.

    torch's own decorator refuses later, and only if the incoming gradient has a graph: a gradient penalty would
    otherwise drop out of a larger loss silently.
    """
    once = once_differentiable(backward)

    @wraps(backward)
    def checked(ctx: Any, *grads: Any) -> Any:
        transformed = torch._C._are_functorch_transforms_active()
        if torch.is_grad_enabled() and not transformed:
            raise RuntimeError(_TWICE)
        found = once(ctx, *grads)
        if not transformed:
            return found
        # Transforms always ask for a graph; only one that uses it is refused.
        present = [one for one in found if isinstance(one, Tensor)]
        given = [one for one in (*ctx.saved_tensors, *grads) if isinstance(one, Tensor)]
        guarded = iter(_Once.apply(len(present), *present, *given))
        return tuple(next(guarded) if isinstance(one, Tensor) else one for one in found)

    return checked
