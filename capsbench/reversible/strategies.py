"""What a stack of functions keeps for backward, when plain autograd runs it.

`stored` keeps every activation; `checkpoint` keeps what enters each segment and evaluates the segment again in backward;
`checkpoint-sqrt` takes segments of ⌈√n⌉ blocks, with which what is kept and what is evaluated again together grow as √n (Chen
et al. 2016, *Training Deep Nets with Sublinear Memory Cost*); `offload` moves what autograd saves to the host's memory and back.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from capsbench.errors import ConfigurationError
from capsbench.reversible.replay import Restored

State = tuple[Tensor, ...]
Step = Callable[..., State]

PLAIN_STRATEGIES = ("stored", "checkpoint", "checkpoint-sqrt", "offload")
"""The strategies that need nothing of the functions."""

REVERSIBLE_STRATEGIES = ("reversible", "reversible-kept")
"""Those that need a rule that can be inverted. `reversible-kept` also keeps what spares a function work in backward."""

STRATEGIES = (*PLAIN_STRATEGIES, *REVERSIBLE_STRATEGIES)
"""All strategies."""


def check_strategy(memory: str, allowed: Sequence[str] = STRATEGIES) -> None:
    """Refuses a memory strategy that is not one of `allowed`.

    Raises:
        ConfigurationError: it is not.
    """
    if memory not in allowed:
        raise ConfigurationError(f"memory '{memory}' is not offered here", f"choose one of {', '.join(allowed)}")


def run_steps(
    steps: Sequence[Step], state: State, memory: str, *, segment: int = 1, modules: Sequence[nn.Module] | None = None
) -> State:
    """Passes `state` through `steps` under plain autograd.

    Args:
        steps: functions from a state to the next one, of the same shapes.
        state: tensors.
        memory: one of `PLAIN_STRATEGIES`.
        segment: with `checkpoint`, how many steps are evaluated again together; with `checkpoint-sqrt`, how many make a
            block, of which ⌈√n⌉ are.
        modules: of each step, the module whose buffers it may write; a step that is evaluated again leaves them alone.
    """
    if memory == "offload":
        with torch.autograd.graph.save_on_cpu(pin_memory=state[0].is_cuda):
            return _chain(steps, *state)
    if memory == "stored":
        return _chain(steps, *state)
    size = segment
    if memory == "checkpoint-sqrt":
        blocks = math.ceil(len(steps) / segment)
        size = segment * math.ceil(math.sqrt(blocks))
    for start in range(0, len(steps), size):
        part = slice(start, start + size)
        state = _checkpoint(steps[part], state, modules[part] if modules else ())
    return state


def _checkpoint(steps: Sequence[Step], state: State, modules: Sequence[nn.Module]) -> State:
    options: dict[str, Any] = {}
    # The compiler takes no such contexts; a function with buffers is then computed without it.
    if any(True for module in modules for _ in module.buffers()) or not torch.compiler.is_compiling():
        options["context_fn"] = partial(_contexts, modules)
    chain = partial(_chain, steps)
    if torch.compiler.is_compiling():
        return checkpoint(chain, *state, use_reentrant=False, **options)
    attempt = _Attempt(chain)
    result: State = checkpoint(attempt, *state, use_reentrant=False, **options)
    attempt.end()
    return result


class _Attempt:
    """A function for `checkpoint` to evaluate, whose error in forward is raised by `end`, after the checkpoint.

    In torch 2.9 to 2.11 an error that passes through `checkpoint` leaves its hooks in force for as long as the error is kept:
    other networks' tensors would be saved by them, and backward would compute them by evaluating this function.
    """

    def __init__(self, function: Callable[..., State]) -> None:
        self._function = function
        self._ended = False
        self._raised: list[BaseException] = []

    def __call__(self, *state: Tensor) -> State:
        try:
            return self._function(*state)
        except BaseException as error:
            if self._ended:
                raise
            self._raised.append(error)
            return ()

    def end(self) -> None:
        """Raises what forward raised. From here on, which is backward, errors are raised where they happen."""
        self._ended = True
        if self._raised:
            raise self._raised.pop()


def _contexts(modules: Sequence[nn.Module]) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What a checkpoint evaluates its function in: in forward, and again in backward."""
    return nullcontext(), Restored(modules)


def _chain(steps: Sequence[Step], *state: Tensor) -> State:
    for step in steps:
        state = step(*state)
    return state
