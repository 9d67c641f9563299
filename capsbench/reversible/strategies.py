"""Memory strategies of a stack of functions under plain autograd.

`stored` keeps every activation; `checkpoint` keeps the input of each segment and evaluates the segment again in backward;
`checkpoint-sqrt` takes segments of ⌈√n⌉ blocks, so that the kept and the repeated activations together grow as √n (Chen
et al. 2016, *Training Deep Nets with Sublinear Memory Cost*); `offload` moves saved tensors to the host's memory and back,
except parameters and buffers, which are alive anyway. On a CPU it has no effect, since the tensors are there already.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.torch_version import TorchVersion
from torch.utils.checkpoint import checkpoint

from capsbench.errors import ConfigurationError
from capsbench.reversible.replay import Restored

_KEEPS_HOOKS = TorchVersion(torch.__version__) >= "2.11"

State = tuple[Tensor, ...]
Step = Callable[..., State]

PLAIN_STRATEGIES = ("stored", "checkpoint", "checkpoint-sqrt", "offload")
"""Strategies that demand nothing of the functions."""

REVERSIBLE_STRATEGIES = ("reversible", "reversible-kept")
"""Strategies that need a rule that can be inverted. `reversible-kept` also keeps what spares a function work in backward."""

STRATEGIES = (*PLAIN_STRATEGIES, *REVERSIBLE_STRATEGIES)
"""All strategies."""


def check_strategy(memory: str, allowed: Sequence[str] = STRATEGIES) -> None:
    """Refuse a memory strategy that is not one of `allowed`.

    Raises:
        ConfigurationError: the strategy is not allowed.
    """
    if memory not in allowed:
        raise ConfigurationError(f"`memory` {memory} is not offered here", f"choose one of {', '.join(allowed)}")


def run_steps(
    steps: Sequence[Step], state: State, memory: str, *, segment: int = 1, modules: Sequence[nn.Module] | None = None
) -> State:
    """Pass `state` through `steps` under plain autograd.

    Args:
        steps: functions from a state to the next one, of the same shapes.
        state: tensors.
        memory: one of `PLAIN_STRATEGIES`.
        segment: with `checkpoint`, number of steps evaluated again together; with `checkpoint-sqrt`, number of steps in a
            block, of which ⌈√n⌉ are evaluated together.
        modules: the module of each step. A step that is evaluated again leaves its buffers alone, and `offload` leaves its
            parameters and buffers where they are.
    """
    if memory != "stored":
        refuse_lost_hooks(memory, modules or ())
    if memory == "offload":
        with Offloading(modules or (), pin_memory=state[0].is_cuda):
            return _chain(steps, *state)
    if memory == "stored":
        return _chain(steps, *state)
    size = segment
    if memory == "checkpoint-sqrt":
        blocks = math.ceil(len(steps) / segment)
        size = segment * math.ceil(math.sqrt(blocks))
    for start in range(0, len(steps), size):
        part = slice(start, start + size)
        state = run_checkpointed(steps[part], state, modules[part] if modules else ())
    return state


def refuse_lost_hooks(memory: str, modules: Sequence[nn.Module]) -> None:
    """Refuse hooks of parameters that torch loses: before 2.11, on what an autograd function saves under hooks of its own."""
    if _KEEPS_HOOKS or torch.compiler.is_compiling():
        return
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter._backward_hooks:
                raise ConfigurationError(
                    f"the parameter {name} has a hook, which torch {torch.__version__} may not call under `memory` {memory}",
                    "use memory='stored' or a reversible strategy, or torch 2.11 or later",
                )


class _Staying(NamedTuple):
    """A saved tensor that is not moved."""

    tensor: Tensor
    version: int
    """Number of changes in place before it was saved."""


class Offloading(torch.autograd.graph.saved_tensors_hooks):
    """Hooks that move saved tensors to the host's memory, except those there already, parameters, buffers, and views of these."""

    def __init__(self, modules: Sequence[nn.Module], *, pin_memory: bool) -> None:
        moving = torch.autograd.graph.save_on_cpu(pin_memory=pin_memory)
        held = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
        alive = {_storage(tensor) for tensor in held if not is_lazy(tensor)}

        def pack(tensor: Tensor) -> Any:
            if _storage(tensor) in alive:
                return _Staying(tensor, tensor._version)
            packed = moving.pack_hook(tensor)
            moved = not any(isinstance(part, Tensor) and _storage(part) == _storage(tensor) for part in packed)
            return packed if moved else _Staying(tensor, tensor._version)

        def unpack(packed: Any) -> Tensor:
            if not isinstance(packed, _Staying):
                return moving.unpack_hook(packed)
            if packed.tensor._version != packed.version:
                # Autograd sees this by itself, except for tensors that hooks have packed.
                raise RuntimeError(
                    "a tensor that memory='offload' left where it was has been changed in place between forward and backward"
                )
            return packed.tensor

        super().__init__(pack, unpack)


def _storage(tensor: Tensor) -> int:
    """The identity of a tensor's storage, which views share."""
    return tensor.untyped_storage()._cdata


def run_checkpointed(steps: Sequence[Step], state: State, modules: Sequence[nn.Module]) -> State:
    """Pass `state` through `steps`, and evaluate them again in backward, with the random numbers and buffers that they had.

    Args:
        steps: functions from one state to the next.
        state: tensors; a single step may take and return anything.
        modules: modules whose buffers are left alone when they are evaluated again.
    """
    options: dict[str, Any] = {}
    # The compiler accepts no such contexts; a function with buffers is then computed without it.
    if any(True for module in modules for _ in module.buffers()) or not torch.compiler.is_compiling():
        # In forward, and again in backward.
        options["context_fn"] = lambda: (nullcontext(), Restored(modules))
    chain = partial(_chain, steps)
    if torch.compiler.is_compiling():
        return checkpoint(chain, *state, use_reentrant=False, **options)
    attempt = _Attempt(chain)
    result: State = checkpoint(attempt, *state, use_reentrant=False, **options)
    attempt.end()
    return result


class _Attempt:
    """A function for `checkpoint` to evaluate, whose error in forward is raised by `end`, after the checkpoint.

    In torch 2.9 to 2.11 an error that passes through `checkpoint` leaves its hooks in force as long as the error is kept:
    other networks' tensors would be saved by them, and backward would compute them by evaluating this function.
    """

    def __init__(self, function: Callable[..., State]) -> None:
        self._function = function
        self._first = True
        self._raised: list[BaseException] = []

    def __call__(self, *state: Tensor) -> State:
        # Later calls evaluate it again, in backward or if the function takes gradients itself; torch stops them by an error.
        first, self._first = self._first, False
        try:
            return self._function(*state)
        except BaseException as error:
            if not first:
                raise
            self._raised.append(error)
            return ()

    def end(self) -> None:
        """Raise the error that forward raised."""
        if self._raised:
            raise self._raised.pop()


def _chain(steps: Sequence[Step], *state: Tensor) -> State:
    for step in steps:
        state = step(*state)
    return state
