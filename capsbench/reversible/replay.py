"""Evaluating a function again in backward exactly as it was evaluated in forward.

Backward runs outside autocast and with another random state; and a module with statistics (BatchNorm) must not count
the same batch twice. Everything here is kept per call, never on the module.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Autocast:
    """The autocast state of one device type and of the CPU."""

    states: tuple[tuple[str, bool, torch.dtype], ...]

    @classmethod
    def capture(cls, device: torch.device) -> "Autocast":
        """The state in force now."""
        kinds = [kind for kind in dict.fromkeys((device.type, "cpu")) if torch.amp.is_autocast_available(kind)]
        return cls(tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds))

    def restore(self) -> AbstractContextManager[object]:
        """Puts the captured state in force.

        The cache of cast weights stays off: an entry made without a graph (forward) would cut the graph of a
        later use (backward, or the rest of the user's network).
        """
        if not any(enabled or torch.is_autocast_enabled(kind) for kind, enabled, _ in self.states):
            return nullcontext()
        return self._enter()

    @contextmanager
    def _enter(self) -> Iterator[None]:
        with ExitStack() as entered:
            for kind, enabled, dtype in self.states:
                entered.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False))
            yield


@dataclass(frozen=True)
class Modes:
    """Which modules of a network were training; `eval()` between forward and backward must not change the replay."""

    states: tuple[tuple[nn.Module, bool], ...]

    @classmethod
    def capture(cls, network: nn.Module) -> "Modes":
        """The modes in force now."""
        return cls(tuple((module, module.training) for module in network.modules()))

    @contextmanager
    def restore(self) -> Iterator[None]:
        """Puts the captured modes in force, and back again."""
        now = [module.training for module, _ in self.states]
        try:
            # Setting an attribute of a module is slow, and nearly always there is nothing to set.
            for module, training in self.states:
                if module.training is not training:
                    module.training = training
            yield
        finally:
            for (module, _), training in zip(self.states, now, strict=True):
                if module.training is not training:
                    module.training = training


@dataclass(frozen=True)
class RandomState:
    """The state of the random generators that a function on one device can draw from."""

    device: torch.device
    states: tuple[Tensor, ...]

    @classmethod
    def capture(cls, device: torch.device) -> "RandomState":
        """The state in force now."""
        states = [torch.get_rng_state()]
        if device.type == "cuda":
            states.append(torch.cuda.get_rng_state(device))
        return cls(device, tuple(states))

    def restore(self) -> None:
        """Puts the captured state in force."""
        torch.set_rng_state(self.states[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(self.states[1], self.device)

    def same_as(self, other: "RandomState") -> bool:
        """Whether nothing was drawn between the two."""
        return all(torch.equal(mine, theirs) for mine, theirs in zip(self.states, other.states, strict=True))


@dataclass(frozen=True)
class Buffers:
    """A function's buffers as they were before it was evaluated."""

    places: tuple[tuple[nn.Module, str, int], ...]
    """Module, name of the buffer in it, and which of the copies it is: modules may share one."""
    originals: tuple[Tensor, ...]
    copies: tuple[Tensor, ...]
    versions: tuple[int, ...]

    @classmethod
    def capture(cls, function: nn.Module) -> "Buffers":
        """Copies of the buffers, which are few and small."""
        places, found = [], dict[int, Tensor]()
        for module in function.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    found[id(buffer)] = buffer
                    places.append((module, name, list(found).index(id(buffer))))
        originals = tuple(found.values())
        return cls(tuple(places), originals, tuple(b.clone() for b in originals), tuple(b._version for b in originals))

    def changed(self) -> bool:
        """Whether an evaluation wrote into a buffer since, or put another in its place."""
        return any(
            (now := _buffer(module, name)) is not self.originals[index] or now._version != self.versions[index]
            for module, name, index in self.places
        )

    @contextmanager
    def restore(self) -> Iterator[None]:
        """Puts the buffers in force as they were; what is written then goes to copies, so nothing is counted twice."""
        now = [_buffer(module, name) for module, name, _ in self.places]
        again = [copy.clone() for copy in self.copies]
        try:
            for module, name, index in self.places:
                module._buffers[name] = again[index]
            yield
        finally:
            for (module, name, _), buffer in zip(self.places, now, strict=True):
                module._buffers[name] = buffer


class RestoredBuffers(AbstractContextManager[None]):
    """Puts the buffers of several functions in force as they are now; can be entered again and again."""

    def __init__(self, functions: Iterable[nn.Module]) -> None:
        self._buffers = [Buffers.capture(function) for function in functions]
        self._entered = ExitStack()

    def __enter__(self) -> None:
        for buffers in self._buffers:
            self._entered.enter_context(buffers.restore())

    def __exit__(self, *error: Any) -> None:
        self._entered.__exit__(*error)


def _buffer(module: nn.Module, name: str) -> Tensor:
    buffer = module._buffers[name]
    if buffer is None:
        raise RuntimeError(f"the buffer {name} of a residual function was removed between forward and backward")
    return buffer
