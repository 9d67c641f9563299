"""The origin of a loss or gradient that is not finite."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from capsbench.training.whole import local_part


def where_it_began(
    network: nn.Module, again: Callable[[], None], first_known: Callable[[str | None], str | None] = lambda found: found
) -> str:
    """The first layer, in the order of computation, whose output or gradient is not finite, in words.

    Args:
        network: network in its state before the step.
        again: function that repeats forward and backward of the step, and leaves the gradients in the parameters.
        first_known: function that returns the finding of the first of several processes that has one; each has its own images.
    """
    weights = (name for name, parameter in network.named_parameters() if not _finite([parameter]))
    broken = first_known(next(weights, None))
    if broken is not None:
        return f"the weights: '{broken}' is not finite"
    found: list[str] = []
    # The parts of a module finish before the module itself, so that the first one found is the innermost.
    hooks = [
        module.register_forward_hook(_watch(name or type(network).__name__, found)) for name, module in network.named_modules()
    ]
    try:
        again()
    finally:
        for hook in hooks:
            hook.remove()
    # Backward goes through a network from its end.
    parameters = network.named_parameters()
    gradients = [name for name, parameter in parameters if parameter.grad is not None and not _finite([parameter.grad])]
    network.zero_grad(set_to_none=True)
    first = found[0] if found else f"the gradient of '{gradients[-1]}'" if gradients else None
    return first_known(first) or "a step that was finite when it was repeated"


def _watch(name: str, found: list[str]) -> Callable[[nn.Module, object, object], None]:
    def look_at_gradient(gradient: Tensor) -> None:
        if not _finite([gradient]):
            found.append(f"layer '{name}': the gradient of its output is not finite")

    def look(_: nn.Module, __: object, output: object) -> None:
        tensors = [one for one in (output if isinstance(output, tuple) else (output,)) if isinstance(one, Tensor)]
        if not _finite(tensors):
            found.append(f"layer '{name}': its output is not finite")
        for one in tensors:
            if one.requires_grad:
                one.register_hook(look_at_gradient)

    return look


def _finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(torch.isfinite(local_part(one)).all()) for one in tensors if one.is_floating_point())
