"""Repeating in backward the exact evaluation of a function in forward.

Backward runs outside autocast and with another random state, and a module with statistics (BatchNorm) must not count
the same batch twice. Everything here is kept per call, never on the module.
"""

import pickle
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from capsbench.errors import ConfigurationError
from capsbench.reversible.drift import has_values, is_capturing


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
        """Put the captured state in force.

        The cache of cast weights stays off: an entry made without a graph (forward) would cut the graph of a
        later use (backward, or the rest of the user's network).
        """
        # This is asked for each function, so in a loop, which is faster than `any`.
        for kind, enabled, _ in self.states:
            if enabled or torch.is_autocast_enabled(kind):
                return self._enter()
        return nullcontext()

    @contextmanager
    def _enter(self) -> Iterator[None]:
        with ExitStack() as entered:
            for kind, enabled, dtype in self.states:
                entered.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False))
            yield


@dataclass(frozen=True)
class Modes:
    """Training modes of a network's modules; `eval()` between forward and backward must not change the replay."""

    states: tuple[tuple[nn.Module, bool], ...]

    @classmethod
    def capture(cls, network: nn.Module) -> "Modes":
        """The modes in force now."""
        return cls(tuple((module, module.training) for module in network.modules()))

    @contextmanager
    def restore(self) -> Iterator[None]:
        """Put the captured modes in force, and restore the others on leaving."""
        now = [module.training for module, _ in self.states]
        try:
            # Setting an attribute of a module is slow, and nearly always needless.
            for module, training in self.states:
                if module.training is not training:
                    module.training = training
            yield
        finally:
            for (module, _), training in zip(self.states, now, strict=True):
                if module.training is not training:
                    module.training = training


class Philox(NamedTuple):
    """State of a CUDA device's generator, two numbers in the host's memory."""

    generator: torch.Generator
    seed: int
    offset: int

    @classmethod
    def capture(cls, device: torch.device) -> "Philox | None":
        """The state in force now; None if the device has no such generator, or its state cannot be read during a capture."""
        if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return None
        index = torch.cuda.current_device() if device.index is None else device.index
        generator = torch.cuda.default_generators[index]
        return cls(generator, generator.initial_seed(), generator.get_offset())

    def restore(self) -> None:
        """Put the captured state in force."""
        self.generator.manual_seed(self.seed)
        self.generator.set_offset(self.offset)


@dataclass(frozen=True)
class RandomState:
    """The state of torch's random generators that a function on one device can draw from."""

    device: torch.device
    host: Tensor
    """State of the host's generator, 5 KiB; states between which nothing was drawn from it share one."""
    philox: Philox | None

    @classmethod
    def capture(cls, device: torch.device) -> "RandomState":
        """The state in force now."""
        return cls(device, torch.get_rng_state(), Philox.capture(device))

    def now(self) -> "RandomState":
        """The state in force now, which is this very object if nothing was drawn since."""
        host, philox = torch.get_rng_state(), Philox.capture(self.device)
        if not torch.equal(host, self.host):
            return RandomState(self.device, host, philox)
        return self if philox == self.philox else RandomState(self.device, self.host, philox)

    def restore(self) -> None:
        """Put the captured state in force."""
        torch.set_rng_state(self.host)
        if self.philox is not None:
            self.philox.restore()


class RefusedDraws(TorchDispatchMode):
    """A mode that refuses every operator which draws random numbers: a CUDA graph's generator cannot be set back.

    Args:
        caller: name of the function that runs inside, for the error.

    Raises:
        ConfigurationError: an operator draws.
    """

    def __init__(self, caller: str) -> None:
        super().__init__()
        self._caller = caller

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and _draws(func, args, kwargs or {}):
            raise ConfigurationError(
                f"{self._caller} of a reversible stack draws random numbers ({func}) inside a CUDA graph, where backward "
                "cannot draw them again",
                "use memory='stored' there, or leave the stack out of the graph",
            )
        return func(*args, **(kwargs or {}))


def _draws(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a call of an operator that may draw does; one in evaluation does not, nor a layer without dropout."""
    arguments = func._schema.arguments
    usual = {argument.name: argument.default_value for argument in arguments}
    given = usual | dict(zip(usual, args, strict=False)) | kwargs
    if any(given.get(name) is False for name in _IN_TRAINING):
        return False
    dropped = [given[name] or 0.0 for name in _DROPPED if name in given]
    return not dropped or any(share > 0 for share in dropped)


_IN_TRAINING = ("train", "training")
"""Arguments that are False in evaluation, in which nothing is drawn."""
_DROPPED = ("dropout_p", "dropout")
"""Arguments of attention and of recurrent layers: the share that is dropped. With 0 they draw nothing, unlike dropout itself."""


@dataclass(frozen=True)
class OtherDraws:
    """The state of generators that are not torch's own: Python's `random`, numpy's, and those that modules hold.

    Args:
        python: state of the module `random`.
        numpy: state of `numpy.random`.
        held: generators found as attributes of modules, each with its state.
    """

    python: tuple[Any, ...]
    numpy: dict[str, Any]
    held: tuple[tuple[Any, Any], ...]

    @classmethod
    def capture(cls, network: nn.Module) -> "OtherDraws":
        """Return the states in force now; `network` is searched for generators."""
        found = {id(one): one for module in network.modules() for one in vars(module).values() if type(one) in _GENERATORS}
        held = tuple((one, _state_of(one)) for one in found.values())
        return cls(random.getstate(), np.random.get_state(legacy=False), held)

    def restore(self) -> None:
        """Put the captured states in force."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        for generator, state in self.held:
            _set_state(generator, state)

    def same_as(self, other: "OtherDraws") -> bool:
        """Return whether nothing was drawn between the two."""
        states = zip(_comparable(self), _comparable(other), strict=True)
        return len(self.held) == len(other.held) and all(mine == theirs for mine, theirs in states)


@dataclass(frozen=True)
class AllDraws:
    """The state of all random generators: torch's own and others."""

    own: RandomState
    others: OtherDraws

    @classmethod
    def capture(cls, network: nn.Module, device: torch.device) -> "AllDraws":
        """The states in force now."""
        return cls(RandomState.capture(device), OtherDraws.capture(network))

    def restore(self) -> None:
        """Put the captured states in force."""
        self.own.restore()
        self.others.restore()


@contextmanager
def undisturbed(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Leave all random generators as they were."""
    draws = AllDraws.capture(network, device)
    try:
        yield
    finally:
        draws.restore()


_GENERATORS = frozenset((torch.Generator, random.Random, np.random.Generator, np.random.RandomState))
"""Exact types of generators: every attribute of every module is checked, and torch's `isinstance` takes a microsecond."""


def _state_of(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


def _comparable(draws: OtherDraws) -> list[object]:
    """The states as values that `==` compares as a whole, which it does not do for arrays."""
    states = (state.numpy().tobytes() if isinstance(state, Tensor) else pickle.dumps(state) for _, state in draws.held)
    return [draws.python, pickle.dumps(draws.numpy), *states]


@dataclass(frozen=True)
class Buffers:
    """A function's buffers in their state before it was evaluated."""

    places: tuple[tuple[nn.Module, str, int], ...]
    """Module, name of the buffer in it, and index of its copy: modules may share one."""
    originals: tuple[Tensor, ...]
    copies: tuple[Tensor, ...]
    versions: tuple[int, ...]

    @classmethod
    def capture(cls, function: nn.Module) -> "Buffers":
        """Copies of the buffers, which are few and small."""
        # Walking through modules takes as long as a small function, and most have no children.
        if not function._modules and not function._buffers:
            return _NO_BUFFERS
        places, found = [], dict[int, Tensor]()
        for module in function.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    found[id(buffer)] = buffer
                    places.append((module, name, list(found).index(id(buffer))))
        if not places:
            return _NO_BUFFERS
        originals = tuple(found.values())
        return cls(tuple(places), originals, tuple(b.clone() for b in originals), tuple(b._version for b in originals))

    def changed(self, *, waiting: bool) -> bool:
        """Return whether an evaluation has written into a buffer, or replaced one.

        Args:
            waiting: whether to wait for a device rather than answer yes where it is unknown. To keep copies of a few KiB
                costs less than a wait, and inside a CUDA graph nothing can be read.
        """
        return any(
            (now := _buffer(module, name)) is not self.originals[index]
            or now._version != self.versions[index]
            # Writes through `.data` do not raise the version.
            or is_capturing(now)
            or (not waiting and now.is_cuda and self._are_small())
            or (has_values(now) and not torch.equal(now, self.copies[index]))
            for module, name, index in self.places
        )

    def _are_small(self) -> bool:
        return sum(copy.nbytes for copy in self.copies) <= _SMALL_BUFFERS

    def untouched(self) -> "Untouched | None":
        """The buffers by identity alone; None if there are none."""
        return Untouched(self.places, self.originals, self.versions) if self.places else None

    def rewind(self) -> None:
        """Write the captured values back into the module's own buffers, as if it had not been evaluated."""
        with torch.no_grad():
            for original, copy in zip(self.originals, self.copies, strict=True):
                # A write that changes nothing would spoil what autograd saved of a buffer elsewhere.
                if not torch.equal(original, copy):
                    original.copy_(copy)
        for module, name, index in self.places:
            module._buffers[name] = self.originals[index]

    def restore(self) -> AbstractContextManager[None]:
        """Put the captured buffers in force; later writes go to copies, so that nothing is counted twice."""
        if not self.places:
            return nullcontext()
        return _in_force(self.places, [copy.clone() for copy in self.copies])


_NO_BUFFERS = Buffers((), (), (), ())
_SMALL_BUFFERS = 2**16
"""Bytes of a function's buffers on a device up to which copies are kept rather than compared."""


@dataclass(frozen=True)
class Untouched:
    """A function's buffers that its evaluation left alone; the fields are those of `Buffers`."""

    places: tuple[tuple[nn.Module, str, int], ...]
    originals: tuple[Tensor, ...]
    versions: tuple[int, ...]

    def restore(self) -> AbstractContextManager[None]:
        """Put these buffers in force, if others have taken their place.

        Raises:
            RuntimeError: a buffer was changed in place since.
        """
        for _, name, index in self.places:
            if self.originals[index]._version != self.versions[index]:
                raise RuntimeError(
                    f"the buffer {name} of a residual function was changed in place between forward and backward; "
                    "the function would be computed differently"
                )
        return _in_force(self.places, self.originals)


class Restored(AbstractContextManager[None]):
    """A context that puts buffers and generators of several functions in force as they are now; it can be entered repeatedly.

    Torch's own generators are left out: a checkpoint replays those itself.
    """

    def __init__(self, functions: Iterable[nn.Module]) -> None:
        self._functions = list(functions)
        self._buffers = [Buffers.capture(function) for function in self._functions]
        self._draws = self._draws_now()
        self._entered = ExitStack()

    def __enter__(self) -> None:
        for buffers in self._buffers:
            self._entered.enter_context(buffers.restore())
        self._entered.callback(self._draws_now().restore)
        self._draws.restore()

    def __exit__(self, *error: Any) -> None:
        self._entered.__exit__(*error)

    def _draws_now(self) -> OtherDraws:
        return OtherDraws.capture(nn.ModuleList(self._functions))


@contextmanager
def _in_force(places: Iterable[tuple[nn.Module, str, int]], buffers: Sequence[Tensor]) -> Iterator[None]:
    """Put buffers in their places by index, and the present ones back at the end."""
    now = [(module, name, _buffer(module, name)) for module, name, _ in places]
    try:
        for module, name, index in places:
            module._buffers[name] = buffers[index]
        yield
    finally:
        for module, name, buffer in now:
            module._buffers[name] = buffer


def _buffer(module: nn.Module, name: str) -> Tensor:
    buffer = module._buffers[name]
    if buffer is None:
        raise RuntimeError(f"the buffer {name} of a residual function was removed between forward and backward")
    return buffer
