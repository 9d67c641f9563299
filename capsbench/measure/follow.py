"""Following every tensor of a step that is traced without being computed: what is allocated, and by whom.

Tensors are torch's fake ones, which have all but values: autograd, autocast and every kernel's choice of algorithm go on as they
would on a CPU, and nothing is allocated. Below them a dispatch mode sees each operator, and follows the storages that it makes.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.flop_counter import flop_registry

import capsbench.measure.flops  # noqa: F401  (its formulas are in torch's registry from here on)
from capsbench.errors import ConfigurationError
from capsbench.measure.scratch import scratch_bytes, signature
from capsbench.measure.trace import Category, Trace
from capsbench.pretend import pretending

_MOST_READS = 10_000
_READS = "the model reads a tensor's value, for which the trace takes 0"
_READING = {torch.ops.aten._local_scalar_dense, torch.ops.aten.equal}
_MATRIX_PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm}
_WITH_SCRATCH = {torch.ops.aten.convolution, torch.ops.aten.convolution_backward}
"""Operators whose libraries take memory that only the device knows."""
_GROUP_NORM = torch.ops.aten.native_group_norm
_NORMALISATIONS = {
    torch.ops.aten.native_layer_norm,
    torch.ops.aten.native_batch_norm,
    torch.ops.aten._native_batch_norm_legit,
    _GROUP_NORM,
}
"""Operators that return a mean and another statistic beside what they normalise."""


class Follow:
    """Follows storages from the operator that makes them to their end. Enter it, and build and run inside.

    Args:
        kind: of the device that the step is for, `cpu` or `cuda`.
        workspace_bytes: what the first matrix product takes for its library, once.
        inside: follow the temporaries of operators that are written in torch, too.
        try_scratch: run each kind of convolution once, if the step is for a CPU, to see what its library takes beside tensors.
    """

    def __init__(self, kind: str = "cpu", *, workspace_bytes: int = 0, inside: bool = True, try_scratch: bool = False) -> None:
        self.kind = kind
        self.alive = 0
        """Bytes in storages now."""
        self.flops = 0
        """Floating-point operations so far."""
        self.needed_flops = 0
        """What forward needs so far, with the gradients that its operators need in backward."""
        self.notes: dict[str, None] = {}
        """What had to be assumed, each once."""
        self.scratch: dict[str, None] = {}
        """Operators that would take scratch memory, each once."""
        self.made_in: dict[int, str] = {}
        """Of each block, the place where it was made: whatever `place` was."""
        self.made_by: dict[int, tuple[str, int]] = {}
        """Of each block, the operator that was running, and the number of the autograd node that ran it: see `current_node`."""
        self.place = ""
        """Where execution is: a module's name."""
        self.operator = ""
        """The operator that is running, as autograd called it: not those that it is made of."""
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._operators = Operators(self)
        self._workspace = workspace_bytes
        self._look_inside, self._try_scratch = inside, try_scratch
        self._numbered: set[int] = set()
        self._reads = 0
        self._recordings: dict[str, _Recording] = {}
        self._blocks: list[int] = []
        self._nbytes: list[int] = []
        self._spans: dict[str, tuple[int, int]] = {}
        self._tags: dict[Category, set[int]] = {}
        self._known: dict[int, tuple[weakref.ref[Any], int, int]] = {}
        self._entered = ExitStack()

    def __enter__(self) -> Self:
        """Tensors made from here on are fake, and followed."""
        with ExitStack() as entered:
            entered.enter_context(pretending(self.kind))
            # On a GPU numbers and random states stay in the host's memory, which is not what is followed.
            entered.enter_context(self._random_states() if self.kind == "cpu" else _offloading())
            entered.enter_context(self._fake)
            entered.enter_context(self._operators)
            self._entered = entered.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        """Tensors are real again."""
        self._entered.__exit__(*error)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Names a part of the step."""
        first = len(self._blocks)
        yield
        self._spans[name] = (first, len(self._blocks))

    def tag(self, category: Category, tensors: Iterable[Tensor]) -> None:
        """Says what the storages behind tensors hold."""
        self._tags.setdefault(category, set()).update(self.blocks_of(tensors))

    def blocks_of(self, tensors: Iterable[Tensor]) -> list[int]:
        """The blocks behind tensors; none for what was made outside."""
        keys = [tensor.untyped_storage()._cdata for tensor in tensors]
        return [self._known[key][1] for key in keys if key in self._known]

    def made_since(self, first: int) -> list[int]:
        """The blocks that were made since event number `first`, in their order."""
        return [block for block in self.made_in if block >= first]

    def alive_since(self, first: int) -> dict[int, int]:
        """Bytes of each block that was made since event number `first` and is alive."""
        return {block: nbytes for _, block, nbytes in self._known.values() if block >= first}

    def follow_numbers(self, nodes: Iterable[Any], module_of: Callable[[int], str]) -> None:
        """Follows the numbers that autograd nodes keep as tensors: no operator makes them, but a CPU's allocator does.

        Args:
            nodes: of a graph.
            module_of: the module that made the node of a number.
        """
        for node in nodes:
            # Asking others what they keep could set off a checkpoint's evaluation.
            number = getattr(node, "_saved_other", None) if node._sequence_nr() in self._numbered else None
            if isinstance(number, Tensor):
                self.place = module_of(node._sequence_nr())
                self._follow(number)
        self.place = ""

    def events(self) -> int:
        """How many there were so far; a block's number is that of the event that made it."""
        return len(self._blocks)

    def trace(self) -> Trace:
        """All that was followed."""
        blocks, nbytes = (np.array(one, dtype=np.int64) for one in (self._blocks, self._nbytes))
        return Trace(blocks, nbytes, dict(self._spans), {name: set(found) for name, found in self._tags.items()})

    def made_fake(self, model: nn.Module) -> nn.Module:
        """The same network with fake parameters and buffers in place of those that were made outside."""
        replaced: dict[int, Any] = {}
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if tensor is None or isinstance(tensor, FakeTensor):
                        continue
                    if id(tensor) not in replaced:
                        # By its sizes: an operator on a tensor that is real would be run for real.
                        empty = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
                        is_parameter = isinstance(tensor, nn.Parameter)
                        replaced[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
                    held[name] = replaced[id(tensor)]
        return model

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs an operator on shapes, and notes what it made."""
        outside, self.operator = self.operator, self.operator or func._schema.name
        try:
            return self._run(func, args, kwargs)
        finally:
            self.operator = outside

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        given = [one for one in tree_iter((args, kwargs)) if isinstance(one, Tensor)]
        if given and not any(isinstance(one, FakeTensor) for one in given):
            # A random state, say: it has values, and the program may need them.
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if self.kind == "cpu" and given and given[0].requires_grad and any(isinstance(one, int | float) for one in args):
            # The node of this operator is the last one that was made.
            self._numbered.add(torch._C._autograd._get_sequence_nr() - 1)
        packet = func.overloadpacket
        _check_dtypes(packet, given)
        if packet in _READING:
            self._reads += 1
            if self._reads > _MOST_READS:
                raise ConfigurationError(
                    f"the step reads values of tensors over {_MOST_READS} times; a trace, which takes 0 for each, may never end",
                    "measure it with 'run'",
                )
            self.notes[_READS] = None
            return _nothing(given[0].dtype) if packet is torch.ops.aten._local_scalar_dense else True
        if self._workspace and packet in _MATRIX_PRODUCTS:
            self._add(self._workspace)
            self._workspace = 0
        if _is_composite(func):
            # Only inside an operator that is written in torch: elsewhere autograd has taken it apart by now.
            with self._operators:
                return func.decompose(*args, **kwargs)
        return self._made(func, args, kwargs, given)

    def _made(self, func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> Any:
        """Runs an operator that is made of no others, and follows what it returns."""
        packet = func.overloadpacket
        before = self.flops
        out = self._inside(func, args, kwargs)
        if out is None:
            out = func(*args, **kwargs)
        if packet in _NORMALISATIONS:
            out = self._with_wide_statistics(packet, given, out)
        if packet in flop_registry:
            # Whatever was counted inside: not all that is there is in the registry.
            self.flops = before
            self._count(packet, args, kwargs, given, out)
        for one in tree_iter(out):
            if isinstance(one, Tensor):
                self._follow(one)
        if packet in _WITH_SCRATCH:
            self._take_scratch(func, args, kwargs)
        return out

    @contextmanager
    def _random_states(self) -> Iterator[None]:
        """Follows random states too, which are real tensors and made by no operator."""
        real = torch.get_rng_state

        def followed() -> Tensor:
            state = real()
            self._follow(state)
            return state

        torch.get_rng_state = followed
        try:
            yield
        finally:
            torch.get_rng_state = real

    def _inside(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs an operator that is written in torch itself as it is written, so that its own temporaries are followed."""
        defined = OPDEFS.get(func._schema.name) if self._look_inside else None
        if defined is None:
            return None
        key = repr((func, tree_map(signature, (args, kwargs))))
        if key in self._recordings:
            return self._replayed(self._recordings[key], func(*args, **kwargs))
        first, flops = len(self._blocks), self.flops
        with self._operators:
            try:
                out = defined._init_fn(*args, **kwargs)
            except Exception:  # what needs values or a device: its shapes are still known
                self.scratch[func._schema.name] = None
                return None
        made = [one for one in tree_iter(out) if isinstance(one, Tensor)]
        events = list(zip(self._blocks[first:], self._nbytes[first:], strict=True))
        self._recordings[key] = _Recording(events, self.blocks_of(made), self.flops - flops)
        return out

    def _replayed(self, recording: "_Recording", out: Any) -> Any:
        """The same events again, as an operator of the same shapes had them; the first time takes a hundred times as long."""
        made = dict(zip(recording.outputs, (one for one in tree_iter(out) if isinstance(one, Tensor)), strict=True))
        blocks: dict[int, int] = {}
        for block, nbytes in recording.events:
            if block in made:
                self._follow(made[block])
            elif block not in blocks:
                blocks[block] = self._add(nbytes)
            else:
                self._free(blocks[block], -nbytes)
        self.flops += recording.flops
        return out

    def _with_wide_statistics(self, packet: Any, given: list[Tensor], out: Any) -> Any:
        """Statistics of narrow inputs as devices keep them: torch's fake tensors have them as narrow as the inputs."""
        narrow = given[0].dtype in (torch.bfloat16, torch.float16)
        mixed = any(one.dtype == torch.float32 for one in given)
        if not narrow or not (mixed or (self.kind == "cuda" and packet is not _GROUP_NORM)):
            return out
        return out[0], *(torch.empty_like(one, dtype=torch.float32) for one in out[1:])

    def _count(self, packet: Any, args: Any, kwargs: Any, given: list[Tensor], out: Any) -> None:
        flops = int(flop_registry[packet](*args, **kwargs, out_val=out))
        self.flops += flops
        # Backward takes one more product of this size for each operand that has a gradient; a bias is none.
        self.needed_flops += flops * (1 + sum(one.requires_grad for one in given if one.dim() > 1))

    def _take_scratch(self, func: Any, args: Any, kwargs: Any) -> None:
        """What a library takes on top of inputs and outputs: tried out where this machine is the device, else only named."""
        nbytes = scratch_bytes(func, args, kwargs) if self.kind == "cpu" and self._try_scratch else None
        if nbytes is None:
            self.scratch[str(func)] = None
        elif nbytes:
            self._free(self._add(nbytes), nbytes)

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes()
        known = self._known.get(key)
        if known is not None:
            if known[2] == nbytes:
                return
            self._drop(key)  # it was given another size
        block = self._add(nbytes)
        self._known[key] = (weakref.ref(storage, lambda _: self._drop(key)), block, nbytes)

    def _add(self, nbytes: int) -> int:
        block = len(self._blocks)
        self._blocks.append(block)
        self._nbytes.append(nbytes)
        self.made_in[block] = self.place
        self.made_by[block] = self.operator, current_node()
        self.alive += nbytes
        return block

    def _drop(self, key: int) -> None:
        found = self._known.pop(key, None)
        if found is not None:
            self._free(*found[1:])

    def _free(self, block: int, nbytes: int) -> None:
        self._blocks.append(block)
        self._nbytes.append(-nbytes)
        self.alive -= nbytes


def current_node() -> int:
    """The number of the autograd node whose backward is running, as sequence numbers go; -1 if none is."""
    node = torch._C._current_autograd_node()
    return -1 if node is None else node._sequence_nr()


@dataclass(frozen=True)
class _Recording:
    """What an operator written in torch did, for its next call with the same shapes."""

    events: list[tuple[int, int]]
    """Block and bytes."""
    outputs: list[int]
    """The blocks behind what it returned."""
    flops: int


def _check_dtypes(packet: Any, given: list[Tensor]) -> None:
    """Refuses what a device refuses, and shapes alone do not: products of tensors of several types.

    Raises:
        RuntimeError: as the device does.
    """
    if packet in _MATRIX_PRODUCTS or packet is torch.ops.aten.convolution:
        dtypes = {one.dtype for one in given}
        if len(dtypes) > 1:
            raise RuntimeError(f"{packet} takes tensors of one dtype, and got {', '.join(sorted(map(str, dtypes)))}")


@cache
def _is_composite(func: Any) -> bool:
    """Whether an operator is made of others, as the dispatcher has it."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return func.namespace != "prim" and bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key))


class Runs(Protocol):
    """Runs operators for `Operators`."""

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs one, and returns what it returned."""


class Operators(TorchDispatchMode):
    """Hands every operator that autograd calls to somebody who runs it."""

    def __init__(self, runs: Runs) -> None:
        super().__init__()
        self._runs = runs

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would wrap every operator's handling for a compiler that does not run here, and import it."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._runs.run(func, args, kwargs or {})


@contextmanager
def _offloading() -> Iterator[None]:
    """Puts another in the place of `save_on_cpu`, which would move nothing: fake tensors say that they are on a CPU."""

    class OffDevice(torch.autograd.graph.saved_tensors_hooks):
        """What is saved leaves the device, and comes back as something new."""

        def __init__(self, pin_memory: bool = False, device_type: str = "cuda") -> None:
            super().__init__(_away, _back)

    real = torch.autograd.graph.save_on_cpu
    torch.autograd.graph.save_on_cpu = OffDevice  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        torch.autograd.graph.save_on_cpu = real  # type: ignore[misc]


def _away(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.size(), tensor.stride(), tensor.dtype


def _back(saved: tuple[Any, ...]) -> Tensor:
    size, stride, dtype = saved
    return torch.empty_strided(size, stride, dtype=dtype)


def _nothing(dtype: torch.dtype) -> bool | int | float:
    if dtype == torch.bool:
        return False
    return 0.0 if dtype.is_floating_point else 0
