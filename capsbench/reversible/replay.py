"""Evaluating a function again in backward exactly as it was evaluated in forward.

Backward runs outside autocast and with another random state; and a module with statistics (BatchNorm) must not count
the same batch twice. Everything here is kept per call, never on the module.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Autocast:
    """The autocast state of one device type and of the CPU."""

    states: tuple[tuple[str, bool, torch.dtype], ...]

    @classmethod
    def capture(cls, device: torch.device) -> "Autocast":
        """The state in force now."""
        kinds = dict.fromkeys((device.type, "cpu"))
        return cls(tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds))

    @contextmanager
    def restore(self) -> Iterator[None]:
        """Puts the captured state in force.

        The cache of cast weights stays off: an entry made without a graph (forward) would cut the graph of a
        later use (backward, or the rest of the user's network).
        """
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
            for module, training in self.states:
                module.training = training
            yield
        finally:
            for (module, _), training in zip(self.states, now, strict=True):
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

    copies: dict[str, Tensor]
    versions: dict[str, int]

    @classmethod
    def capture(cls, function: nn.Module) -> "Buffers":
        """Copies of the buffers, which are few and small."""
        found = dict(function.named_buffers())
        return cls({name: buffer.clone() for name, buffer in found.items()}, {name: b._version for name, b in found.items()})

    def changed(self, function: nn.Module) -> bool:
        """Whether an evaluation wrote into a buffer since."""
        return any(buffer._version != self.versions[name] for name, buffer in function.named_buffers())

    def replay(self, function: nn.Module, x: Tensor) -> Tensor:
        """`function(x)` with the buffers as they were; what it writes goes to copies, so nothing is counted twice."""
        if not self.copies:
            return function(x)
        copies = {name: buffer.clone() for name, buffer in self.copies.items()}
        return torch.func.functional_call(function, copies, (x,))
