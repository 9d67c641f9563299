"""Memory strategies of the members of a network's own lists, such as the layers of a transformer.

A strategy is that of the longest list, or of the lists that it names: `checkpoint:encoder.layers`, `offload:layer3+layer4`.
`checkpoint` evaluates each member again in backward, so that its inputs alone are kept; `offload` moves what a member saves to
the host's memory and back. The network is changed in place: each member gets another `forward`, and all names stay. Where no
gradients are computed, nothing changes.
"""

from collections.abc import Iterator, Mapping
from functools import update_wrapper
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from capsbench.errors import ConfigurationError
from capsbench.reversible.strategies import REVERSIBLE_STRATEGIES, Offloading, refuse_lost_hooks, run_checkpointed

MEMBER_STRATEGIES = ("stored", "checkpoint", "offload")
"""Strategies that the members of any list can have."""

_MOST_NAMES = 12
"""Largest number of lists that an error names."""

_TENSOR = object()
"""The place of a tensor among arguments."""


class KeptLess:
    """The forward of a member that keeps less for its backward.

    Args:
        member: module whose own forward this calls.
        memory: `checkpoint` or `offload`.
        named: name of its list, if the list was chosen by name.
    """

    def __init__(self, member: nn.Module, memory: str, named: str = "") -> None:
        self._member, self._own, self.memory, self.named = member, member.forward, memory, named
        update_wrapper(self, self._own)
        self.called = False
        """True once it has been called with gradients."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the member's own forward."""
        if not torch.is_grad_enabled():
            return self._own(*args, **kwargs)
        self.called = True
        refuse_lost_hooks(self.memory, [self._member])
        leaves, structure = _flat((args, kwargs))
        tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
        if self.memory == "offload":
            with Offloading([self._member], pin_memory=any(one.is_cuda for one in tensors)):
                return self._own(*args, **kwargs)
        others = [_TENSOR if isinstance(leaf, Tensor) else _without_cache(leaf) for leaf in leaves]
        objects = _Objects(others)

        def evaluated(*state: Tensor) -> Any:
            if objects.changed():
                raise self._refusal("is given an object that is changed before backward")
            left = iter(state)
            again = [next(left) if other is _TENSOR else other for other in others]
            positional, named = tree_unflatten(again, structure)
            out = self._own(*positional, **named)
            # Lists and dictionaries are copies, so that a change would be lost, and an object would be changed once more.
            after, made = _flat((positional, named))
            if made != structure or any(one is not other for one, other in zip(after, again, strict=True)):
                raise self._refusal("changes a list or dictionary that it is given")
            if objects.changed():
                raise self._refusal("changes an object that it is given")
            return out

        # All tensors are inputs of the checkpoint, wherever they lie, or a change of one in place would go unnoticed.
        return run_checkpointed([evaluated], tensors, [self._member])

    def _refusal(self, what: str) -> ConfigurationError:
        """The error of a member that another evaluation would not repeat."""
        return ConfigurationError(
            f"layer {type(self._member).__name__} {what}, which a checkpoint cannot repeat", "use `memory` stored or offload"
        )


class _Objects:
    """The attributes of objects among arguments, and of the objects that these hold, to find changes of them.

    Modules and what has no `__dict__`, such as an iterator, are not followed; nothing is, while the compiler traces, which
    takes no such changes into the graph of a checkpoint.

    Args:
        objects: arguments.
    """

    def __init__(self, objects: list[Any]) -> None:
        self._objects = [] if torch.compiler.is_compiling() else [one for one in objects if _has_parts(one)]
        self._before = self._found()

    def changed(self) -> bool:
        """Return whether an attribute is another object than before, or a tensor was changed in place."""
        now = self._found()
        return len(now) != len(self._before) or any(
            one is not other or version != earlier for (one, version), (other, earlier) in zip(now, self._before, strict=True)
        )

    def _found(self) -> list[tuple[Any, int]]:
        """All that is held, each with the number of its changes in place."""
        found: list[tuple[Any, int]] = []
        left, seen = list(self._objects), set()
        while left:
            one = left.pop()
            is_counted = isinstance(one, Tensor) and not one.is_inference()
            found.append((one, one._version if is_counted else 0))
            if _has_parts(one) and id(one) not in seen:
                seen.add(id(one))
                parts = dict(enumerate(one)) if isinstance(one, set) else vars(one)
                # Names are found, too, for one may be added whose value is an empty list.
                left += [*parts, *_flat(list(parts.values()))[0]]
        return found


def _has_parts(one: Any) -> bool:
    """Return whether the parts of an argument are followed."""
    whole = Tensor | nn.Module | type | FunctionType | MethodType | ModuleType
    return isinstance(one, set) or (hasattr(one, "__dict__") and not isinstance(one, whole))


def _flat(tree: Any) -> tuple[list[Any], TreeSpec]:
    """The leaves and the structure of arguments, of which a cache of keys and values is a leaf."""
    return tree_flatten(tree, is_leaf=lambda one: hasattr(one, "get_seq_length"))


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
            f"`memory` checkpoint cannot evaluate a layer again that has a cache of {length()} tokens, since it would add to it",
            "give no cache (past_key_values) in training, or use `memory` stored or offload",
        )
    return None


def named_lists(memory: str) -> tuple[str, tuple[str, ...]]:
    """The strategy and the names of lists in a memory strategy: `checkpoint:encoder+decoder`; no names for the longest list."""
    strategy, _, names = memory.partition(":")
    return strategy, tuple(dict.fromkeys(name for name in names.split("+") if name))


def check_members_strategy(memory: str) -> None:
    """Refuse a memory strategy that the members of a list cannot have.

    Raises:
        ConfigurationError: it is none of `MEMBER_STRATEGIES`, or has names without effect.
    """
    strategy, names = named_lists(memory)
    if strategy in REVERSIBLE_STRATEGIES:
        raise ConfigurationError(
            f"`memory` {memory} needs functions that can be inverted, which arbitrary layers are not",
            "put the residual functions of the network into a capsbench.MomentumStack, which is reversible by itself",
        )
    if strategy not in MEMBER_STRATEGIES:
        raise ConfigurationError(
            f"`memory` {memory} is not offered for the members of a list", f"choose one of {', '.join(MEMBER_STRATEGIES)}"
        )
    if strategy == "stored" and names:
        raise ConfigurationError(f"`memory` {memory} has no effect on the lists that it names", "give stored alone")


def keep_less(module: nn.Module, memory: str) -> None:
    """Let the members of lists of a network keep less for backward.

    Without names these are the members of its longest list, and those of other lists with members of the same class.

    Args:
        module: network, which is changed in place.
        memory: one of `MEMBER_STRATEGIES`, which the names of lists may follow; with `stored` nothing changes.

    Raises:
        ConfigurationError: there is no list of like members, or none of a name, or the strategy needs a `MomentumStack`.
    """
    check_members_strategy(memory)
    strategy, names = named_lists(memory)
    if strategy == "stored":
        return
    lists = _lists_of_names(module, memory, names) if names else longest_lists(module)
    if not lists:
        raise ConfigurationError(
            f"`memory` {memory} finds no list of layers in {type(module).__name__}",
            "put layers of one class into an nn.ModuleList or nn.Sequential, or use `memory` stored",
        )
    for name, container in lists.items():
        for member in container.children():
            if not isinstance(vars(member).get("forward"), KeptLess):  # a list may hold one module twice
                vars(member)["forward"] = KeptLess(member, strategy, name if names else "")


def lists_kept_less(module: nn.Module) -> dict[str, int]:
    """The number of members that keep less, by the name of their list."""
    found = {
        name: sum(isinstance(vars(member).get("forward"), KeptLess) for member in container.children())
        for name, container in _containers(module)
    }
    return {name: count for name, count in found.items() if count}


def refuse_uncalled(module: nn.Module) -> None:
    """Refuse a network none of whose members that keep less was called with gradients, as if another method computes them.

    Raises:
        ConfigurationError: the network has such members, and none of them, or none of a list that was named, was called.
    """
    kept = [(one, forward) for one in module.modules() if isinstance(forward := vars(one).get("forward"), KeptLess)]
    called = {forward.named for _, forward in kept if forward.called}
    unseen = next(((member, forward) for member, forward in kept if forward.named not in called), None)
    if unseen is not None:
        member, forward = unseen
        of = f" of '{forward.named}'" if forward.named else ""
        raise ConfigurationError(
            f"`memory` {forward.memory} has no effect: no layer {type(member).__name__}{of} is called, as in layer(x)",
            "call the layers themselves rather than another of their methods, or use `memory` stored",
        )


def _containers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Lists of modules, by name."""
    for name, container in module.named_modules():
        members = list(container.children())
        scripted = any(isinstance(member, torch.jit.ScriptModule) for member in members)
        if isinstance(container, nn.ModuleList | nn.Sequential) and members and not scripted:
            yield name, container


def _lists(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Lists of modules of one class, by name."""
    return ((name, one) for name, one in _containers(module) if len({type(member) for member in one.children()}) == 1)


def _lists_of_names(module: nn.Module, memory: str, names: tuple[str, ...]) -> Mapping[str, nn.Module]:
    """The lists of these names.

    Raises:
        ConfigurationError: there is none of a name, or one lies inside another.
    """
    by_name = module.named_modules(remove_duplicate=False)  # a list may have several names
    lists = {id(container) for _, container in _containers(module)}
    known = {name: container for name, container in by_name if name and id(container) in lists}
    for name in names:
        if name not in known:
            # The lists that are most likely meant come first.
            longest = sorted(known, key=lambda one: (one.count("."), -len(known[one]._modules)))
            shown = ", ".join(longest[:_MOST_NAMES]) + (", …" if len(longest) > _MOST_NAMES else "")
            raise ConfigurationError(
                f"`memory` {memory}: {type(module).__name__} has no list of layers '{name}'",
                f"it has {shown}" if known else "it has none with a name: leave the name out, or use `memory` stored",
            )
        outer = next((other for other in names if _is_inside(name, other)), None)
        if outer is not None:
            raise ConfigurationError(
                f"`memory` {memory}: the list '{name}' lies inside '{outer}', whose layers are evaluated as a whole",
                f"name one of the two: {memory.partition(':')[0]}:{outer}",
            )
    return {name: known[name] for name in names}


def longest_lists(module: nn.Module) -> Mapping[str, nn.Module]:
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
    if kind is nn.Sequential:  # a class of any contents
        return {longest: found[longest]}
    alike = {name: container for name, container in found.items() if _kind(container) is kind}
    # A member may have lists of its own class inside, which it evaluates as a whole.
    return {name: container for name, container in alike.items() if not any(_is_inside(name, other) for other in alike)}


def _kind(container: nn.Module) -> type:
    return type(next(container.children()))


def _is_inside(name: str, other: str) -> bool:
    return name != other and (other == "" or name.startswith(f"{other}."))
