"""Following every tensor of a step that is traced without being computed: what is allocated, by whom, and what it would take to compute.

Tensors are torch's fake ones, which have all but values: autograd, autocast and every kernel's choice of algorithm go on as they
would on a CPU, and nothing is allocated. Below them a dispatch mode sees each operator, and follows the storages that it makes.
"""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from capsbench.measure.flops import flop_registry
from capsbench.measure.scratch import scratch_bytes
from capsbench.measure.trace import Category, Trace
from capsbench.pretend import pretending

_READS = "the model reads a tensor's value, for which the trace takes 0"
_MATRIX_PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm}
_WITH_SCRATCH = {torch.ops.aten.convolution, torch.ops.aten.convolution_backward}
"""Operators whose libraries take memory that only the device knows."""


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
        self.place = ""
        """Where execution is: a module's name."""
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._operators = _Operators(self)
        self._workspace = workspace_bytes
        self._look_inside, self._try_scratch = inside, try_scratch
        self._numbered: set[int] = set()
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

    def follow_numbers(self, nodes: Iterable[Any]) -> None:
        """Follows the numbers that autograd nodes keep as tensors: no operator makes them, but a CPU's allocator does."""
        for node in nodes:
            # Asking others what they keep could set off a checkpoint's evaluation.
            number = getattr(node, "_saved_other", None) if node._sequence_nr() in self._numbered else None
            if isinstance(number, Tensor):
                self._follow(number)

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
                        empty = torch.empty_like(tensor)
                        is_parameter = isinstance(tensor, nn.Parameter)
                        replaced[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
                    held[name] = replaced[id(tensor)]
        return model

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs an operator on shapes, and notes what it made."""
        given = [one for one in tree_iter((args, kwargs)) if isinstance(one, Tensor)]
        if given and not any(isinstance(one, FakeTensor) for one in given):
            # A random state, say: it has values, and the program may need them.
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if self.kind == "cpu" and given and given[0].requires_grad and any(isinstance(one, int | float) for one in args):
            # The node of this operator is the last one that was made.
            self._numbered.add(torch._C._autograd._get_sequence_nr() - 1)
        packet = func.overloadpacket
        if packet is torch.ops.aten._local_scalar_dense:
            self.notes[_READS] = None
            return _nothing(given[0].dtype)
        if packet is torch.ops.aten.equal:
            self.notes[_READS] = None
            return True
        if self._workspace and packet in _MATRIX_PRODUCTS:
            self._add(self._workspace)
            self._workspace = 0
        if _is_composite(func):
            # Only inside an operator that is written in torch: elsewhere autograd has taken it apart by now.
            with self._operators:
                return func.decompose(*args, **kwargs)
        before = self.flops
        out = self._inside(func, args, kwargs)
        if out is None:
            out = func(*args, **kwargs)
        if self.flops == before:
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
        with self._operators:
            try:
                return defined._init_fn(*args, **kwargs)
            except Exception:  # what needs values or a device: its shapes are still known
                self.scratch[func._schema.name] = None
                return None

    def _count(self, packet: Any, args: Any, kwargs: Any, given: list[Tensor], out: Any) -> None:
        formula = flop_registry.get(packet)
        if formula is None:
            return
        flops = int(formula(*args, **kwargs, out_val=out))
        self.flops += flops
        # Backward takes one more product of this size for each operand that has a gradient; a bias is none.
        self.needed_flops += flops * (1 + sum(one.requires_grad for one in given if one.dim() > 1))

    def _take_scratch(self, func: Any, args: Any, kwargs: Any) -> None:
        """What a library takes on top of inputs and outputs: tried out where this machine is the device, else only named."""
        nbytes = scratch_bytes(func, args, kwargs) if self.kind == "cpu" and self._try_scratch else None
        if nbytes is None:
            self.scratch[str(func)] = None
        elif nbytes:
            block = self._add(nbytes)
            self._blocks.append(block)
            self._nbytes.append(-nbytes)
            self.alive -= nbytes

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
        self.alive += nbytes
        return block

    def _drop(self, key: int) -> None:
        found = self._known.pop(key, None)
        if found is None:
            return
        _, block, nbytes = found
        self._blocks.append(block)
        self._nbytes.append(-nbytes)
        self.alive -= nbytes


@cache
def _is_composite(func: Any) -> bool:
    """Whether an operator is made of others, as the dispatcher has it."""
    return func.namespace != "prim" and bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), torch._C.DispatchKey.CompositeImplicitAutograd))


class _Operators(TorchDispatchMode):
    """Hands every operator to what follows it."""

    def __init__(self, follow: Follow) -> None:
        super().__init__()
        self._follow = follow

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would wrap every operator's handling for a compiler that does not run here, and import it."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._follow.run(func, args, kwargs or {})


@contextmanager
def _offloading() -> Iterator[None]:
    """Puts something else in the place of `save_on_cpu`: fake tensors say that they are on a CPU already, so that it would move nothing."""

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
