"""Following of every tensor of a step that is traced without being computed: allocations, and the operators that make them.

Tensors are torch's fake ones, which have all but values. Autograd, autocast and the kernels' choices of algorithm work as they
would on a CPU, and nothing is allocated. Below them a dispatch mode sees each operator, and follows the storages that it makes.
"""

import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from types import FrameType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.flop_counter import flop_registry

from capsbench.errors import ConfigurationError
from capsbench.pretend import pretending
from capsbench.tracing import fake_cuda
from capsbench.tracing.blocks import Blocks
from capsbench.tracing.cuda_forms import CudaForms
from capsbench.tracing.fake_cuda import Capability
from capsbench.tracing.flops import register_formulas
from capsbench.tracing.known import MOST_ELEMENTS, Values, host_copy
from capsbench.tracing.operators import Operators, Shapes, is_composite
from capsbench.tracing.outputs import output
from capsbench.tracing.scratch import scratch_bytes, signature
from capsbench.tracing.surroundings import deep_copies, initial_values, offloading, random_states, unseen

register_formulas()

_MOST_READS = 10_000
_READS = "the model reads a tensor's value, for which the trace takes 0"
_OTHER_FORMS = "CUDA tensors cannot be followed here without a C++ compiler: operators have the forms that they have on a CPU"
_READING = {torch.ops.aten._local_scalar_dense, torch.ops.aten.equal}
_STATE_SHAPES = {torch.get_rng_state().shape, torch.Size([16])}
"""Shapes of the states of generators on a CPU and on CUDA."""
_MATRIX_PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm}
_READING_STRIDES = _MATRIX_PRODUCTS | {
    getattr(torch.ops.aten, name) for name in ("clone", "copy_", "_to_copy", "cat", "stack", "sum", "mean", "fill_", "zero_")
}
"""Operators that take tensors in any memory layout."""
_POINT_BY_POINT = {torch.Tag.pointwise, torch.Tag.nondeterministic_seeded, torch.Tag.dynamic_output_shape}
_WITH_SCRATCH = {
    torch.ops.aten.convolution,
    torch.ops.aten.convolution_backward,
    torch.ops.aten.mkldnn_rnn_layer,
    torch.ops.aten.mkldnn_rnn_layer_backward,
}
"""Operators whose libraries take memory that the device alone knows."""
_INDEXING = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_, torch.ops.aten._index_put_impl_}
_SHAPED_BY_VALUES = torch.Tag.dynamic_output_shape


class Follow(Blocks):
    """A mode that follows storages from the operator that makes them to their end. Enter it, and build and run inside.

    Args:
        kind: kind of the device that the step is for, `cpu` or `cuda`.
        capability: the compute capability of a CUDA device; None for that of the present device, or of a common one.
        workspace_bytes: bytes that the first matrix product takes for its library, once.
        inside: follow the temporaries of operators that are written in torch, too.
        try_scratch: run each kind of convolution once, if the step is for a CPU, to see its library's memory beside tensors.
    """

    def __init__(
        self,
        kind: str = "cpu",
        *,
        capability: Capability | None = None,
        workspace_bytes: int = 0,
        inside: bool = True,
        try_scratch: bool = False,
    ) -> None:
        on_device = kind == "cpu" or fake_cuda.can_follow()
        super().__init__(torch.device(kind if on_device else "cpu"))
        self.kind = kind
        self.flops = 0
        """Floating-point operations so far."""
        self.needed_flops = 0
        """Floating-point operations that forward has needed so far, with the gradients that its operators need in backward."""
        self.notes: dict[str, None] = {} if on_device else {_OTHER_FORMS: None}
        """Assumptions that were made, each once."""
        self.unsure: dict[str, None] = {}
        """Operators whose own bytes the device alone knows, each once."""
        self.scratch: dict[str, None] = {}
        """Operators that would take scratch memory, each once."""
        self._fake = Shapes(kind)
        self._capability = capability
        self.values = Values()
        """The values that are known all the same."""
        self._operators = Operators(self)
        self._workspace = workspace_bytes
        self._look_inside, self._try_scratch = inside, try_scratch
        self._numbered: set[int] = set()
        self._reads = 0
        self._recordings: dict[str, _Recording] = {}
        self._entered = ExitStack()

    def __enter__(self) -> Self:
        """Make tensors from here on fake, and follow them."""
        with ExitStack() as entered:
            entered.enter_context(pretending(self.kind))
            if self.kind == "cpu":
                # On a GPU random states stay in the host's memory, which is not followed.
                entered.enter_context(random_states(self.follow))
            elif self.device.type == "cuda":
                capability = entered.enter_context(fake_cuda.fake_cuda(self._capability))
                entered.enter_context(CudaForms(capability, self._unsure_of, self._assume).entered())
            else:
                entered.enter_context(offloading())
            entered.enter_context(unseen())
            entered.enter_context(deep_copies())
            entered.enter_context(initial_values())
            entered.enter_context(self._fake)
            entered.enter_context(self._operators)
            self._entered = entered.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        """Make tensors real again."""
        self._entered.__exit__(*error)

    def _unsure_of(self, what: str) -> None:
        self.unsure[what] = None

    def _assume(self, what: str) -> None:
        self.notes[what] = None

    def follow_numbers(self, nodes: Iterable[Any], module_of: Callable[[int], str]) -> None:
        """Follow the numbers that autograd nodes keep as tensors: no operator makes them, but a CPU's allocator does.

        Args:
            nodes: nodes of a graph.
            module_of: function from a node's number to the module that made it.
        """
        for node in nodes:
            # Asking other nodes what they keep could start a checkpoint's evaluation.
            number = getattr(node, "_saved_other", None) if node._sequence_nr() in self._numbered else None
            if isinstance(number, Tensor):
                self.place = module_of(node._sequence_nr())
                self.follow(number)
        self.place = ""

    def made_fake(self, model: nn.Module) -> nn.Module:
        """Return the same network with new parameters and buffers on the device, as `to` moves them.

        They may have been made outside or here; a copy of a tensor without values may differ from what it looks like.
        """
        replaced: dict[int, Any] = {}
        pieces: dict[tuple[int, torch.dtype], Tensor] = {}
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if tensor is None or is_lazy(tensor):
                        continue
                    if id(tensor) not in replaced:
                        replaced[id(tensor)] = self._moved(tensor, pieces)
                    held[name] = replaced[id(tensor)]
        return model

    def _moved(self, tensor: Tensor, pieces: dict[tuple[int, torch.dtype], Tensor]) -> Any:
        """The counterpart of a tensor on the device; on a CPU, where nothing moves, tensors that shared memory still share it.

        Args:
            tensor: a parameter or a buffer.
            pieces: the memory that was made so far, by the storage that it replaces.
        """
        if self.device.type == "cpu":
            storage = tensor.untyped_storage()
            key = storage._cdata, tensor.dtype
            if key not in pieces:
                pieces[key] = torch.empty(storage.nbytes() // tensor.itemsize, dtype=tensor.dtype)
            moved = pieces[key].as_strided(tensor.size(), tensor.stride(), tensor.storage_offset()).detach()
        else:
            # By its sizes, since an operator on a real tensor would be run for real.
            moved = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=self.device)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(moved, tensor.requires_grad)
        if tensor.numel() <= MOST_ELEMENTS:
            known = self.values.of(tensor) if isinstance(tensor, FakeTensor) else host_copy(tensor)
            if known is not None:
                self.values.give(moved, known)
        return moved

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator on shapes, and note what it made."""
        if func.namespace == "prim":
            return func(*args, **kwargs)  # a query, such as the device of a tensor
        outside, self.operator = self.operator, self.operator or func._schema.name
        try:
            return self._run(func, args, kwargs)
        finally:
            self.operator = outside

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        given = _tensors(args, kwargs)
        if given and all(_is_random_state(one) for one in given):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        packet = func.overloadpacket
        if packet is torch.ops.aten.lift_fresh and not isinstance(given[0], FakeTensor):
            return self._lifted(given[0])
        if any(not isinstance(one, FakeTensor) for one in given):
            args, kwargs = tree_map(self._without_values, (args, kwargs))
            given = _tensors(args, kwargs)
        if self.kind == "cpu" and given and given[0].requires_grad and any(isinstance(one, int | float) for one in args):
            # The node of this operator is the last one that was made.
            self._numbered.add(torch._C._autograd._get_sequence_nr() - 1)
        _check_dtypes(packet, given)
        if packet in _READING:
            return self._read(func, args, kwargs, given)
        if self._workspace and packet in _MATRIX_PRODUCTS:
            self.add(self._workspace)
            self._workspace = 0
        if is_composite(func):
            # This happens only inside an operator that is written in torch: elsewhere autograd has taken it apart by now.
            with self._operators:
                return func.decompose(*args, **kwargs)
        return self._made(func, args, kwargs, given)

    def _lifted(self, real: Tensor) -> Tensor:
        """The tensor that `torch.tensor` has made of numbers."""
        lifted = self._shape_of(real, real.device)
        self.follow(lifted)
        return lifted

    def _shape_of(self, real: Tensor, device: torch.device) -> Tensor:
        """A tensor without values in place of one whose values are known."""
        shape = torch.ops.aten.empty_strided.default(real.size(), real.stride(), dtype=real.dtype, device=device)
        self.values.give(shape, real)
        return shape

    def _without_values(self, one: Any) -> Any:
        """The stand-in for a tensor that was made outside; anything else is returned as it is."""
        if not isinstance(one, Tensor) or isinstance(one, FakeTensor):
            return one
        shape = self._fake.from_tensor(one)
        if self.values.of(shape) is None and one.numel() <= MOST_ELEMENTS and not isinstance(one, nn.Parameter):
            self.values.give(shape, host_copy(one))
        return shape

    def _read(self, func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> Any:
        """The value of a tensor, or whether two are equal."""
        known = self.values.computed(func, args, kwargs, given)
        if known is not None:
            return known
        self._reads += 1
        if self._reads > _MOST_READS:
            raise ConfigurationError(
                f"the step reads values of tensors over {_MOST_READS} times; a trace, which takes 0 for each, may never end",
                "measure it with 'run'",
            )
        self.notes[_READS] = None
        return _nothing(given[0].dtype) if func.overloadpacket is torch.ops.aten._local_scalar_dense else True

    def _made(self, func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> Any:
        """Run an operator that is made of no others, and follow what it returns."""
        packet = func.overloadpacket
        before = self.flops
        out = self._inside(func, args, kwargs)
        if out is None:
            out = self._shaped(func, args, kwargs, given)
        if packet in flop_registry:
            # Keep what was counted inside, since the registry does not know every operator.
            self.flops = before
            self._count(packet, args, kwargs, given, out)
        # A storage that existed before is not made here, even if nothing saw it being made.
        outside = {one.untyped_storage()._cdata for one in given if not self.is_followed(one)}
        for one in tree_iter(out):
            if isinstance(one, Tensor) and one.untyped_storage()._cdata not in outside:
                self.follow(one)
        if packet is torch.ops.aten.add and _called_by_engine():
            self.sum_of_gradients(out)
        if packet in _WITH_SCRATCH:
            self._take_scratch(func, args, kwargs)
        elif self._may_copy(func, given):
            self._take_copies(func, args, kwargs)
        return out

    def _shaped(self, func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> Any:
        """The outputs of an operator without values; those that are known are noted."""
        if _SHAPED_BY_VALUES in func.tags:
            real = self.values.computed(func, args, kwargs, given)
            if real is not None:
                return tree_map(lambda one: self._shape_of(one, given[0].device) if isinstance(one, Tensor) else one, real)
        if func.overloadpacket in _INDEXING:
            args = (args[0], [part for one in args[1] for part in self._numbers(one)], *args[2:])
        out = output(func, args, kwargs, kind=self.kind, unsure=self._unsure_of)
        self.values.follow(func, args, kwargs, given, out)
        return out

    def _numbers(self, index: Tensor | None) -> list[Tensor | None]:
        """Indices of the elements that a mask chooses, if it is known; any other index as it is."""
        known = None if index is None or index.dtype not in (torch.bool, torch.uint8) else self.values.of(index)
        if index is None or known is None:
            return [index]
        with unset_fake_temporarily():
            numbers = known.nonzero().unbind(1)
        return [self._shape_of(one, index.device) for one in numbers]

    def _inside(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator that is written in torch by its own code, so that its temporaries are followed."""
        defined = OPDEFS.get(func._schema.name) if self._look_inside else None
        if defined is None:
            return None
        key = repr((func, tree_map(signature, (args, kwargs))))
        if key in self._recordings:
            return self._replayed(self._recordings[key], func(*args, **kwargs))
        first, flops = len(self.block_of_event), self.flops
        with self._operators:
            try:
                out = defined._init_fn(*args, **kwargs)
            except Exception:  # it needs values or a device; its shapes are still known
                self.scratch[func._schema.name] = None
                return None
        made = [one for one in tree_iter(out) if isinstance(one, Tensor)]
        events = list(zip(self.block_of_event[first:], self.bytes_of_event[first:], strict=True))
        self._recordings[key] = _Recording(events, self.blocks_of(made), self.flops - flops)
        return out

    def _replayed(self, recording: "_Recording", out: Any) -> Any:
        """Repeat the events of an operator of the same shapes, since the first run takes a hundred times as long."""
        made = dict(zip(recording.outputs, (one for one in tree_iter(out) if isinstance(one, Tensor)), strict=True))
        blocks: dict[int, int] = {}
        for block, nbytes in recording.events:
            if block in made:
                self.follow(made[block])
            elif block not in blocks:
                blocks[block] = self.add(nbytes)
            else:
                self.free(blocks[block], -nbytes)
        self.flops += recording.flops
        return out

    def _count(self, packet: Any, args: Any, kwargs: Any, given: list[Tensor], out: Any) -> None:
        flops = int(flop_registry[packet](*args, **kwargs, out_val=out))
        self.flops += flops
        # Backward takes one more product of this size for each operand that has a gradient; a bias has no product.
        self.needed_flops += flops * (1 + sum(one.requires_grad for one in given if one.dim() > 1))

    def _may_copy(self, func: Any, given: list[Tensor]) -> bool:
        """Return whether a CPU's kernel may copy its arguments because their memory layout does not suit it."""
        if not self._try_scratch or self.kind != "cpu" or all(one.is_contiguous() for one in given):
            return False
        return not (func.is_view or func.overloadpacket in _READING_STRIDES or _POINT_BY_POINT & set(func.tags))

    def _take_copies(self, func: Any, args: Any, kwargs: Any) -> None:
        try:
            nbytes = scratch_bytes(func, args, kwargs)
        except Exception:  # not every operator takes random numbers
            return
        if nbytes:
            self.free(self.add(nbytes), nbytes)

    def _take_scratch(self, func: Any, args: Any, kwargs: Any) -> None:
        """Count the memory that a library takes beside tensors: tried where this machine is the device, else only named."""
        nbytes = scratch_bytes(func, args, kwargs) if self.kind == "cpu" and self._try_scratch else None
        if nbytes is None:
            self.scratch[str(func)] = None
        elif nbytes:
            self.free(self.add(nbytes), nbytes)


def _called_by_engine() -> bool:
    """Return whether autograd's engine runs an operator by itself, and not a backward that is written in Python."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == "_engine_run_backward"


def _tensors(args: Any, kwargs: Any) -> list[Tensor]:
    return [one for one in tree_iter((args, kwargs)) if isinstance(one, Tensor)]


def _is_random_state(tensor: Tensor) -> bool:
    """Return whether a tensor is the state of a generator, which has values that the program may need."""
    return not isinstance(tensor, FakeTensor) and tensor.dtype == torch.uint8 and tensor.shape in _STATE_SHAPES


@dataclass(frozen=True)
class _Recording:
    """The effects of an operator written in torch, kept for its next call with the same shapes."""

    events: list[tuple[int, int]]
    """Block and bytes of each event."""
    outputs: list[int]
    """The blocks behind the outputs."""
    flops: int


def _check_dtypes(packet: Any, given: list[Tensor]) -> None:
    """Refuse products of tensors of several types, which a device refuses and shapes alone do not.

    Raises:
        RuntimeError: the dtypes differ.
    """
    if packet in _MATRIX_PRODUCTS or packet is torch.ops.aten.convolution:
        dtypes = {one.dtype for one in given}
        if len(dtypes) > 1:
            raise RuntimeError(f"{packet} takes tensors of one dtype, and got {', '.join(sorted(map(str, dtypes)))}")


def _nothing(dtype: torch.dtype) -> bool | int | float:
    if dtype == torch.bool:
        return False
    return 0.0 if dtype.is_floating_point else 0
