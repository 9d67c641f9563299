"""What a stack of functions keeps for backward, when plain autograd runs it.

`stored` keeps every activation; `checkpoint` keeps what enters each segment and evaluates the segment again in backward;
`offload` moves what autograd saves to the host's memory and back.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from capsbench.errors import ConfigurationError

State = tuple[Tensor, ...]
Step = Callable[..., State]

PLAIN_STRATEGIES = ("stored", "checkpoint", "offload")
"""The strategies that need nothing of the functions."""

STRATEGIES = (*PLAIN_STRATEGIES, "reversible")
"""All strategies; `reversible` needs a rule that can be inverted."""


def check_strategy(memory: str, allowed: Sequence[str] = STRATEGIES) -> None:
    """Refuses a memory strategy that is not one of `allowed`.

    Raises:
        ConfigurationError: it is not.
    """
    if memory not in allowed:
        raise ConfigurationError(f"memory '{memory}' is not offered here", f"choose one of {', '.join(allowed)}")


def run_steps(steps: Sequence[Step], state: State, memory: str, *, segment: int = 1) -> State:
    """Passes `state` through `steps` under plain autograd.

    Args:
        steps: functions from a state to the next one, of the same shapes.
        state: tensors.
        memory: one of `PLAIN_STRATEGIES`.
        segment: with `checkpoint`, how many steps are evaluated again together.
    """
    if memory == "checkpoint":
        for start in range(0, len(steps), segment):
            state = checkpoint(_chain, steps[start : start + segment], *state, use_reentrant=False)
        return state
    if memory == "offload":
        with torch.autograd.graph.save_on_cpu(pin_memory=state[0].is_cuda):
            return _chain(steps, *state)
    return _chain(steps, *state)


def _chain(steps: Sequence[Step], *state: Tensor) -> State:
    for step in steps:
        state = step(*state)
    return state
