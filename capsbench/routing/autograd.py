"""What every kernel's backward has in common."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch.autograd.function import once_differentiable

Backward = Callable[..., Any]


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """No autocast: agreement over many tiny votes would be lost in half precision, also in a backward called under autocast."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def differentiable_once(backward: Backward) -> Backward:
    """A backward that refuses `create_graph=True` at once.

    torch's own decorator refuses later, and only where the incoming gradient has a graph: a gradient penalty would
    otherwise drop out of a larger loss in silence.
    """
    once = once_differentiable(backward)

    @wraps(backward)
    def checked(ctx: Any, *grads: Any) -> Any:
        # Transforms of torch.func always ask for a graph; there torch's decorator has the last word.
        if torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                "this routing kernel cannot be differentiated twice (create_graph=True); use kernel='reference' there"
            )
        return once(ctx, *grads)

    return checked
