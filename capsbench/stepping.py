"""An optimizer that steps inside backward, so that gradients never live together."""

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from capsbench.errors import ConfigurationError


def step_in_backward(optimizer: torch.optim.Optimizer) -> list[RemovableHandle]:
    """Let an optimizer step for each parameter as soon as its gradient is accumulated, and free the gradient.

    After `loss.backward()` the step is done and no parameter has a gradient: call neither `step` nor `zero_grad`. The
    optimizer stays what it is (`state_dict`, learning rate schedules), and may be any one that treats each parameter by
    itself, as Adam and SGD do: the weights are those of an ordinary step, bit for bit. A parameter that is used in
    several places steps once, with the sum.

    Excluded is what needs all gradients before the step: a gradient scaler, clipping by the norm of all, gradients
    summed over several backward passes, or averaged over several processes.

    Args:
        optimizer: optimizer with all of its parameters.

    Returns:
        The hooks, one for each parameter; after `remove()` of all the optimizer is an ordinary one again.

    Raises:
        ConfigurationError: several processes train together; each would step before gradients are averaged.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise ConfigurationError(
            f"{torch.distributed.get_world_size()} processes train together, and would step before gradients are averaged",
            "let the optimizer step after backward",
        )

    def step(parameter: Tensor) -> None:
        groups = optimizer.param_groups
        group = groups[place[parameter]]  # looked up here, since loading a state replaces the groups
        alone = {**group, "params": [parameter]}
        # Step with this parameter alone: a loop over all of them each time would be quadratic in depth.
        optimizer.param_groups = [alone]
        try:
            optimizer.step()
        finally:
            optimizer.param_groups = groups
            group.update((name, value) for name, value in alone.items() if name != "params")
        parameter.grad = None

    place = {parameter: index for index, group in enumerate(optimizer.param_groups) for parameter in group["params"]}
    return [parameter.register_post_accumulate_grad_hook(step) for parameter in place if parameter.requires_grad]
