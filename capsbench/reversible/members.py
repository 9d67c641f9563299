"""Memory strategies of the members of a network's own list, such as the layers of a transformer.

`checkpoint` evaluates each member again in backward, so that its inputs alone are kept; `offload` moves what a member saves to
the host's memory and back. The network is changed in place: each member gets another `forward`, and all names stay. Where no
gradients are computed, nothing changes.
"""

from collections.abc import Iterator, Mapping
from functools import update_wrapper
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_flatten, tree_unflatten

from capsbench.errors import ConfigurationError
from capsbench.reversible.strategies import REVERSIBLE_STRATEGIES, Offloading, refuse_lost_hooks, run_checkpointed

MEMBER_STRATEGIES = ("stored", "checkpoint", "offload")
"""Strategies that the members of any list can have."""

_TENSOR = object()
"""The place of a tensor among arguments."""


class KeptLess:
    """The forward of a member that keeps less for its backward.

    Args:
        member: module whose own forward this calls.
        memory: `checkpoint` or `offload`.
    """

    def __init__(self, member: nn.Module, memory: str) -> None:
        self._member, self._own, self.memory = member, member.forward, memory
        update_wrapper(self, self._own)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the member's own forward."""
        if not torch.is_grad_enabled():
            return self._own(*args, **kwargs)
        refuse_lost_hooks(self.memory, [self._member])
        leaves, structure = tree_flatten((args, kwargs), is_leaf=lambda one: hasattr(one, "get_seq_length"))
        tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
        if self.memory == "offload":
            with Offloading([self._member], pin_memory=any(one.is_cuda for one in tensors)):
                return self._own(*args, **kwargs)
        others = [_TENSOR if isinstance(leaf, Tensor) else _without_cache(leaf) for leaf in leaves]

        def evaluated(*state: Tensor) -> Any:
            left = iter(state)
            again = [next(left) if other is _TENSOR else other for other in others]
            positional, named = tree_unflatten(again, structure)
            return self._own(*positional, **named)

        # All tensors are inputs of the checkpoint, wherever they lie, or a change of one in place would go unnoticed.
        return run_checkpointed([evaluated], tensors, [self._member])


def _without_cache(argument: Any) -> Any:
    """None for an empty cache of keys and values, into which an evaluation in backward would write once more.

    Raises:
        ConfigurationError: the cache is not empty.
    """
    length = getattr(argument, "get_seq_length", None)
    if length is None:
        return argument
    if length():
        raise ConfigurationError(
            f"memory 'checkpoint' cannot evaluate a layer again that has a cache of {length()} tokens, since it would add to it",
            "give no cache (past_key_values) in training, or use memory 'stored' or 'offload'",
        )
    return None


def check_members_strategy(memory: str) -> None:
    """Refuse a memory strategy that the members of a list cannot have.

    Raises:
        ConfigurationError: it is none of `MEMBER_STRATEGIES`.
    """
    if memory in REVERSIBLE_STRATEGIES:
        raise ConfigurationError(
            f"memory '{memory}' needs functions that can be inverted, and any layers cannot",
            "put the residual functions of the network into a capsbench.MomentumStack, which is reversible by itself",
        )
    if memory not in MEMBER_STRATEGIES:
        raise ConfigurationError(
            f"memory '{memory}' is not offered for the members of a list", f"choose one of {', '.join(MEMBER_STRATEGIES)}"
        )


def keep_less(module: nn.Module, memory: str) -> None:
    """Let the members of a network's longest list keep less for backward; lists of the same class of members go along.

    Args:
        module: network, which is changed in place.
        memory: one of `MEMBER_STRATEGIES`; with `stored` nothing changes.

    Raises:
        ConfigurationError: there is no list of like members, or the strategy needs a `MomentumStack`.
    """
    check_members_strategy(memory)
    if memory == "stored":
        return
    lists = _longest_lists(module)
    if not lists:
        raise ConfigurationError(
            f"memory '{memory}' finds no list of layers in {type(module).__name__}",
            "put layers of one class into an nn.ModuleList or nn.Sequential, or use memory 'stored'",
        )
    for container in lists.values():
        for member in container.children():
            if not isinstance(vars(member).get("forward"), KeptLess):  # a list may hold one module twice
                vars(member)["forward"] = KeptLess(member, memory)


def lists_kept_less(module: nn.Module) -> dict[str, int]:
    """The number of members that keep less, by the name of their list."""
    found = {
        name: sum(isinstance(vars(member).get("forward"), KeptLess) for member in container.children())
        for name, container in _lists(module)
    }
    return {name: count for name, count in found.items() if count}


def _lists(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Lists of modules of one class, by name."""
    for name, container in module.named_modules():
        members = list(container.children())
        alike = len({type(member) for member in members}) == 1
        if isinstance(container, nn.ModuleList | nn.Sequential) and alike and not isinstance(members[0], torch.jit.ScriptModule):
            yield name, container


def _longest_lists(module: nn.Module) -> Mapping[str, nn.Module]:
    """The longest list of modules that are made of others, or else of any, and those of the same class of members."""
    found = dict(_lists(module))
    if not found:
        return {}

    def worth(container: nn.Module) -> tuple[bool, int, int]:
        composed = any(True for _ in next(container.children()).children())
        parameters = (one.numel() for one in container.parameters() if not is_lazy(one))
        return composed, len(container._modules), sum(parameters)

    longest = max(found, key=lambda name: worth(found[name]))
    kind = _kind(found[longest])
    if kind is nn.Sequential:  # a class that says nothing of what is inside
        return {longest: found[longest]}
    alike = {name: container for name, container in found.items() if _kind(container) is kind}
    # A member may have lists of its own class inside, which it evaluates as a whole.
    return {name: container for name, container in alike.items() if not any(_is_inside(name, other) for other in alike)}


def _kind(container: nn.Module) -> type:
    return type(next(container.children()))


def _is_inside(name: str, other: str) -> bool:
    return name != other and (other == "" or name.startswith(f"{other}."))
