"""Following of every tensor of a step that is traced without being computed: allocations, and the operators that make them.

Tensors are torch's fake ones, which have all but values. Autograd, autocast and the kernels' choices of algorithm work as they
would on a CPU, and nothing is allocated. Below them a dispatch mode sees each operator, and follows the storages that it makes.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

from capsbench.errors import ConfigurationError
from capsbench.pretend import pretending
from capsbench.records import LOWER_BOUND
from capsbench.tracing import fake_cuda
from capsbench.tracing.blocks import Blocks, Recording, current_node
from capsbench.tracing.collectives import collective_bytes, is_collective, resized_storages
from capsbench.tracing.cuda_forms import CudaForms
from capsbench.tracing.fake_cuda import Capability
from capsbench.tracing.fakes import Shapes
from capsbench.tracing.flops import register_formulas
from capsbench.tracing.in_backward import sums_gradients, written_in_place
from capsbench.tracing.kept_numbers import KeptNumbers, may_have_node
from capsbench.tracing.known import MOST_ELEMENTS, Values, host_copy
from capsbench.tracing.operator_calls import Call, Operators, Trait, is_composite, tensors_in, written_in_torch
from capsbench.tracing.outputs import output
from capsbench.tracing.packed import PACK, UNKNOWN_LENGTHS, batch_sizes, packed_data, unpacking
from capsbench.tracing.scratch import may_take, most_bytes, numbers_bytes, scratch_bytes
from capsbench.tracing.sparse import SparseTensors
from capsbench.tracing.surroundings import (
    added_biases,
    arrays,
    calls_noted,
    deep_copies,
    initial_values,
    lengths_as_numbers,
    linear_in_place,
    offloading,
    random_states,
    replaced,
    unseen,
    whole_inputs,
    without_its_log,
)
from capsbench.tracing.work import Work, work_of

register_formulas()

_MOST_READS = 10_000
_READS = "the model reads a tensor's value, for which the trace takes 0"
_ALL_TRUE = "the model asks if all values of a tensor are true, which the trace takes to be so"
_ALL = {torch.ops.aten.all, torch.ops.aten._is_all_true}
"""Operators whose outcome is taken to be true: a program that asks whether all values are as they should be goes on then."""
_MASKS = (
    f"sizes of tensors depend on values, such as a mask's, and the trace chooses nothing: {LOWER_BOUND}, and a run may take more"
)
_MASKED_FILL = {torch.ops.aten.masked_fill, torch.ops.aten.masked_fill_}
_OTHER_WAY = "{} takes another way where values can be read, and other memory: counted as without values"
_READ_IN_BACKWARD = {
    operator
    for name, overloads in {
        "cumprod": ("default",), "prod": ("default", "dim_int"), "max": ("default",), "min": ("default",), "median": ("default",),
        "nanmedian": ("default",),
    }.items()
    for operator in (getattr(getattr(torch.ops.aten, name), overload) for overload in overloads)
}  # fmt: skip
"""Operators whose derivatives look for zeros, or for all places of an extreme."""
_OTHER_FORMS = "CUDA tensors cannot be followed here without a C++ compiler: operators have the forms that they have on a CPU"
_WITHOUT_MEMORY = {torch.ops.aten._efficientzerotensor}
"""Operators whose tensors have no memory anywhere: the zeros of derivatives in forward mode."""
_STATE_SHAPES = {torch.get_rng_state().shape, torch.Size([16])}
"""Shapes of the states of generators on a CPU and on CUDA."""


@contextmanager
def following(kind: str = "cpu", *, capability: Capability | None = None, **options: Any) -> Iterator["Follow"]:
    """Make tensors inside ones without values, and follow their storages.

    Args:
        kind: kind of the device that the step is for, `cpu` or `cuda`.
        capability: the compute capability of a CUDA device; None for that of the present device, or of a common one.
        options: the other arguments of `Follow`.
    """
    follow = Follow(kind, capability=capability, **options)
    with (
        pretending(kind), _forms_of_device(follow, capability), _forms_without_values(follow),
        resized_storages(follow.blocks.resize), follow.shapes, follow,
    ):  # fmt: skip
        yield follow


@contextmanager
def _forms_without_values(follow: "Follow") -> Iterator[None]:
    """Let torch and networks do without values where they would ask for them."""

    def quantile(name: str) -> None:
        follow.unsure[_OTHER_WAY.format(f"torch.{name}")] = None

    with (
        calls_noted(("quantile", "nanquantile"), quantile),
        added_biases(),
        unseen(),
        deep_copies(),
        initial_values(),
        unpacking(),
        lengths_as_numbers(),
        arrays(follow.array),
        without_its_log(),
    ):
        yield


@contextmanager
def _forms_of_device(follow: "Follow", capability: Capability | None) -> Iterator[None]:
    """Let torch take the forms that it has on the device."""
    if follow.kind == "cpu":
        # On a GPU random states stay in the host's memory, which is not followed.
        with random_states(follow.blocks.follow), whole_inputs():
            yield
    elif follow.blocks.device.type == "cuda":
        with fake_cuda.fake_cuda(capability) as known, CudaForms(known, follow.unsure, follow.notes).entered():
            yield
    else:
        with offloading():
            yield


class Follow(Operators):
    """A mode that follows storages from the operator that makes them to their end, inside `following`.

    Args:
        kind: kind of the device that the step is for, `cpu` or `cuda`.
        capability: the compute capability of a CUDA device; None for that of the present device, or of a common one.
        workspace_bytes: bytes that the first matrix product takes for its library, once.
        inside: follow the temporaries of operators that are written in torch, too.
        try_scratch: run each kind of convolution once, if the step is for a CPU, to see its library's memory outside tensors.
    """

    def __init__(
        self, kind: str, *, capability: Capability | None = None, workspace_bytes: int = 0, inside: bool = True,
        try_scratch: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        on_device = kind == "cpu" or fake_cuda.can_follow()
        self.kind = kind
        self.blocks = Blocks(torch.device(kind if on_device else "cpu"))
        """The memory that was made."""
        self.flops = 0
        """Floating-point operations so far."""
        self.needed_flops = 0
        """Floating-point operations that forward has needed so far, with the gradients that its operators need in backward."""
        self.shapes = Shapes(kind, capability)
        """The mode that makes tensors without values."""
        self.values = Values()
        """The values that are known all the same."""
        self.notes: dict[str, None] = {} if on_device else {_OTHER_FORMS: None}
        """Assumptions that were made, each once."""
        self.unsure: dict[str, None] = {}
        """Operators whose own bytes the device alone knows, each once."""
        self.scratch: dict[str, None] = {}
        """Operators that would take scratch memory, each once."""
        self._workspace = workspace_bytes
        self._look_inside, self._try_scratch = inside, try_scratch and kind == "cpu"
        self._sparse = SparseTensors(self.values, self.unsure)
        self.numbers = KeptNumbers(self.blocks)
        """The numbers that nodes keep as tensors, if the step is for a CPU."""
        self._reads = 0
        self._indices = False
        """True while whole numbers keep their values."""
        self.zeros_seen = False
        """True if derivatives in forward mode have made tensors of zeros that take no memory."""
        self._true: Any = WeakTensorKeyDictionary()
        """Outcomes of operators that are taken to be true."""
        self.work: list[Work] = []
        """The work of every operator so far."""
        self._recordings: dict[str, tuple[Recording, int, list[Work]]] = {}
        """Events, floating-point operations and work of operators written in torch."""

    @contextmanager
    def rebuilding_buckets(self) -> Iterator[None]:
        """Let DistributedDataParallel rebuild its buckets by the indices of its parameters, which need values."""
        kind: Any = vars(torch.distributed)["Reducer"]
        real = kind._rebuild_buckets

        def rebuild(reducer: Any) -> Any:
            self._indices = True
            try:
                return real(reducer)
            finally:
                self._indices = False

        with ExitStack() as entered:
            entered.enter_context(replaced(kind, "_rebuild_buckets", rebuild))
            if self.blocks.device.type == "cuda":
                # It would begin to time steps by events of the driver.
                entered.enter_context(replaced(kind, "prepare_for_forward", lambda _: None))
            yield

    def run(self, call: Call) -> Any:
        """Run an operator on shapes, and note what it made."""
        if call.func.namespace == "prim":
            return call.run()  # a query, such as the device of a tensor
        self.zeros_seen |= call.packet is torch.ops.aten._efficientzerotensor
        outside, self.blocks.operator = self.blocks.operator, self.blocks.operator or call.func._schema.name
        try:
            return self._run(call)
        finally:
            self.blocks.operator = outside

    def _run(self, call: Call) -> Any:
        with_values = self._with_values(call)
        if with_values is not None:
            with unset_fake_temporarily():
                return with_values.run()
        if call.packet is torch.ops.aten.lift_fresh and not isinstance(call.tensors[0], FakeTensor):
            return self._lifted(call.tensors[0])
        given = call
        if any(not isinstance(one, FakeTensor) for one in call.tensors):
            call = call.changed(self._without_values)
        call = written_in_place(call, self.blocks)
        if self.kind == "cpu":
            self.numbers.expect(call)
        traits = call.traits
        if Trait.ONE_DTYPE in traits:
            _check_dtypes(call)
        if Trait.READS in traits:
            return self._read(call)
        if self._workspace and Trait.WORKSPACE in traits:
            self.blocks.add(self._workspace)
            self._workspace = 0
        if is_composite(call.func):
            return self._taken_apart(given)
        if call.packet is PACK:
            return self._packed(*call.args)
        return self._with_sparse(call) if self._sparse.has(call) else self._made(call)

    def _with_values(self, call: Call) -> Call | None:
        """The call of an operator that is run as it is, since the program needs what it returns; None of any other."""
        if call.tensors and all(_is_random_state(one) for one in call.tensors):
            return call
        if self._indices and _is_of_indices(call):
            return Call(call.func, call.args, {**call.kwargs, "device": None} if not call.tensors else call.kwargs)
        return None

    def _lifted(self, tensor: Tensor) -> Tensor:
        """The stand-in for a tensor that was just made of numbers, or of an array, whose memory is not the allocator's."""
        lifted = self.values.stand_in(tensor, tensor.device)
        if tensor.untyped_storage().resizable():
            self.blocks.follow(lifted)
        return lifted

    def _taken_apart(self, given: Call) -> Any:
        """Run an operator that is made of others.

        Autograd has taken it apart by now, except under inference mode, and inside an operator written in torch. The form in
        Python that some have would make other tensors than devices do. Tensors with values keep them: it may read those.
        """
        with self:
            out = linear_in_place(*given.args, **given.kwargs) if given.packet is torch.ops.aten.linear else None
            if out is not None:
                return out
            return given.func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *given.args, **given.kwargs)

    def _with_sparse(self, call: Call) -> Any:
        """Run an operator on sparse tensors, whose parts are followed."""
        out, nbytes = self._sparse.run(call, self.blocks.follow)
        if nbytes and self._try_scratch:
            self.blocks.free(self.blocks.add(nbytes), nbytes)
        return out

    def _packed(self, padded: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
        """Packed sequences without values, and the sizes of their batches with values."""
        known = self.values.of(lengths)
        if known is None:
            self.notes[UNKNOWN_LENGTHS] = None
        sizes = batch_sizes(padded, known, batch_first)
        self.blocks.follow(sizes)
        with self:
            return packed_data(padded, sizes, batch_first), sizes

    def _without_values(self, one: Any) -> Any:
        """The stand-in for a tensor that was made outside; anything else is returned as it is."""
        if not isinstance(one, Tensor) or isinstance(one, FakeTensor):
            return one
        shape = self.shapes.from_tensor(one)
        if self.values.of(shape) is None and one.numel() <= MOST_ELEMENTS and not isinstance(one, nn.Parameter):
            self.values.give(shape, host_copy(one))
        return shape

    def _count_read(self) -> None:
        """Count a value that was read, and refuse a step that reads too many.

        Raises:
            ConfigurationError: a loop may be waiting for a value that the trace never gives.
        """
        self._reads += 1
        if self._reads > _MOST_READS:
            raise ConfigurationError(
                f"the step reads values of tensors over {_MOST_READS} times; a trace, which guesses them, may never end",
                "measure it with 'run'",
            )

    def _read(self, call: Call) -> Any:
        """The value of a tensor, or whether two are equal."""
        known = self.values.computed(call)
        if known is not None:
            return known
        if self._true.get(call.tensors[0]):
            if not _is_validation():
                self._count_read()
                self.notes[_ALL_TRUE] = None
            return True
        self._count_read()
        self.notes[_READS] = None
        if call.packet is torch.ops.aten.equal:
            return True
        dtype = call.tensors[0].dtype
        if dtype == torch.bool:
            return False
        return 0.0 if dtype.is_floating_point else 0

    def array(self, tensor: Tensor) -> NDArray[Any]:
        """The values of a tensor as an array, which shares those that are known; any other value that is read is 0."""
        known = self.values.of(tensor)
        with _disable_current_modes():
            if known is not None:
                return known.detach().numpy()
            kind = torch.empty(0, dtype=tensor.dtype).numpy().dtype  # torch refuses types that NumPy lacks
        self._count_read()
        self.notes[_READS] = None
        return np.zeros(tuple(tensor.shape), dtype=kind)

    def _made(self, call: Call) -> Any:
        """Run an operator that is made of no others, and follow what it returns."""
        before, done = self.flops, len(self.work)
        out = self._inside(call)
        if out is None:
            out = self._shaped(call)
        if call.packet in flop_registry:
            # The registry knows this operator, so its own count replaces the one made inside.
            flops = int(flop_registry[call.packet](*call.args, **call.kwargs, out_val=out))
            self.flops = before + flops
            # Backward takes one more product of this size for each operand that has a gradient; a bias has no product.
            if current_node() == -1:
                self.needed_flops += flops * (1 + sum(one.requires_grad for one in call.tensors if one.dim() > 1))
            del self.work[done:]
        if len(self.work) == done:
            work = work_of(call, out, self.flops - before)
            self.work += [] if work is None else [work]
        # A storage that existed before is not made here, even if nothing saw it being made.
        outside = {one.untyped_storage()._cdata for one in call.tensors if not self.blocks.is_followed(one)}
        for one in tensors_in(out) if call.packet not in _WITHOUT_MEMORY else ():
            if one.untyped_storage()._cdata not in outside:
                self.blocks.follow(one)
        if is_collective(call):
            self.blocks.tag("communication", call.tensors)
        self._note_assumptions(call, out)
        if sums_gradients(call):
            self.blocks.follow_sum(call.tensors[0], out)
        self._take_scratch(call)
        return out

    def _note_assumptions(self, call: Call, out: Any) -> None:
        """Note what is assumed of the outcome of an operator, and of its derivative."""
        if (may_have_node(call) and call.func in _READ_IN_BACKWARD) or _fills_with_gradient(call) or _scales_in_place(call):
            self.unsure[_OTHER_WAY.format(f"the derivative of {call.packet}")] = None
        if call.packet in _ALL and isinstance(out, Tensor) and out.numel() == 1:
            self._true[out] = True

    def _inside(self, call: Call) -> Any:
        """Run an operator that is written in torch by its own code, so that its temporaries are followed; None for any other."""
        name = call.func._schema.name
        function = written_in_torch(name) if self._look_inside else None
        if function is None:
            return None
        key = call.signature()
        if key in self._recordings:
            # It need not run again: that takes a hundred times as long.
            out = call.run()
            recording, flops, work = self._recordings[key]
            self.blocks.replay(recording, tensors_in(out))
            self.flops += flops
            self.work += work
            return out
        first, before, done = self.blocks.events(), self.flops, len(self.work)
        with self:
            try:
                out = function(*call.args, **call.kwargs)
            except Exception:  # it needs values or a device; its shapes are still known
                self.scratch[name] = None
                return None
        self._recordings[key] = self.blocks.recording(first, tensors_in(out)), self.flops - before, self.work[done:]
        return out

    def _shaped(self, call: Call) -> Any:
        """The outputs of an operator without values; those that are known are noted."""
        if torch.Tag.dynamic_output_shape in call.func.tags:
            real = self.values.computed(call)
            if real is not None:
                device = call.tensors[0].device
                return tree_map(lambda one: self.values.stand_in(one, device) if isinstance(one, Tensor) else one, real)
            if call.packet is torch.ops.aten.masked_select and self.values.of(call.args[1]) is not None and _is_small(call):
                return self._selected(call)
            if Trait.INDEXES not in call.traits:
                return self._smallest(call)
        if Trait.INDEXES in call.traits:
            chosen = [part for one in call.args[1] for part in self.values.indices(one)]
            if call.packet is torch.ops.aten.index and any(_is_mask(one) for one in chosen):
                self.notes[_MASKS] = None
                chosen = [part for one in chosen for part in (_nothing_chosen(one) if _is_mask(one) else [one])]
            call = Call(call.func, (call.args[0], chosen, *call.args[2:]), call.kwargs)
        out = output(call, kind=self.kind, unsure=self.unsure)
        self.values.follow(call, out)
        return out

    def _selected(self, call: Call) -> Tensor:
        """The elements that a known mask selects."""
        tensor, mask = call.args
        known = self.values.of(mask)
        with unset_fake_temporarily(), torch.no_grad():
            real = Call(call.func, (torch.empty(tensor.shape, dtype=tensor.dtype), known), {})
            count = real.run().numel()
            nbytes = most_bytes(real) if self._try_scratch else 0
        if nbytes:  # which the indices take before there is a result
            self.blocks.free(self.blocks.add(nbytes), nbytes)
        return torch.empty(count, dtype=tensor.dtype, device=tensor.device)

    def _smallest(self, call: Call) -> Any:
        """The outputs of an operator whose sizes depend on values: those that it has where all values are 0."""
        if call.packet is not torch.ops.aten._ctc_loss or len(call.tensors) > 2:  # which has its lengths as numbers
            self.notes[_MASKS] = None
        with unset_fake_temporarily(), torch.no_grad():
            made = call.changed(
                lambda one: torch.zeros((), dtype=one.dtype).expand(one.shape) if isinstance(one, Tensor) else one
            )
            sizes = made.run()
        device = call.tensors[0].device
        return tree_map(
            lambda one: torch.empty(one.shape, dtype=one.dtype, device=device) if isinstance(one, Tensor) else one, sizes
        )

    def _take_scratch(self, call: Call) -> None:
        """Count the memory that a library takes outside tensors: tried where this machine is the device, else only named."""
        nbytes = None
        if Trait.SCRATCH in call.traits:
            nbytes = scratch_bytes(call) if self._try_scratch else None
            if nbytes is None:
                self.scratch[str(call.func)] = None
        elif self._try_scratch and may_take(call):
            with suppress(Exception):  # not every operator takes random numbers
                nbytes = scratch_bytes(call)
        if self.kind == "cpu":
            nbytes = collective_bytes(call) or nbytes
            if Trait.INDEXES in call.traits and not _fills(call):
                nbytes = (nbytes or 0) + sum(self.values.chosen_bytes(one) for one in call.args[1])
            numbers = numbers_bytes(call)
            nbytes = max(nbytes or 0, numbers)
            if numbers:
                nbytes -= self.numbers.bytes_of(call)
        if nbytes:
            self.blocks.free(self.blocks.add(nbytes), nbytes)


def _is_of_indices(call: Call) -> bool:
    """Return whether an operator makes whole numbers, or computes with ones that have values alone."""
    if call.tensors:
        return not any(isinstance(one, FakeTensor) for one in call.tensors)
    return call.kwargs.get("dtype") == torch.int32


def _is_validation() -> bool:
    """Return whether torch checks something, which decides nothing of what it computes.

    A distribution checks its arguments, and TorchScript that what it has traced computes the same again.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(("torch.distributions.", "torch.jit.")):
            return True
        frame = frame.f_back
    return False


def _is_mask(index: Tensor | None) -> bool:
    """Return whether an index chooses elements by its values."""
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def _is_small(call: Call) -> bool:
    """Return whether the tensors of a call have few elements, so that it can be run."""
    return all(one.numel() <= MOST_ELEMENTS for one in call.tensors)


def _fills(call: Call) -> bool:
    """Return whether one number is written wherever one mask is true, for which torch makes no indices of the mask."""
    if call.packet is torch.ops.aten.index or any(call.args[3:4]) or call.args[2].numel() != 1:
        return False
    given = [one for one in call.args[1] if one is not None]
    return len(given) == 1 and _is_mask(given[0])


def _fills_with_gradient(call: Call) -> bool:
    """Return whether a number that needs a gradient is written wherever a mask is true: the derivative chooses by the mask."""
    filled = call.packet in _MASKED_FILL and isinstance(call.args[2], Tensor) and call.args[2].requires_grad
    return filled and torch.is_grad_enabled()


def _scales_in_place(call: Call) -> bool:
    """Return whether a derivative writes into tensors of its own with values, and makes new ones without."""
    if not torch.is_grad_enabled():
        return False
    if call.packet is torch.ops.aten.addcmul:
        return call.kwargs.get("value", 1) != 1 and any(one.requires_grad for one in call.tensors[1:])
    return call.packet is torch.ops.aten.binary_cross_entropy and call.tensors[1].requires_grad


def _nothing_chosen(mask: Tensor | None) -> list[Tensor | None]:
    """Indices by which a mask chooses no element, one for each of its dimensions."""
    return [] if mask is None else [torch.empty(0, dtype=torch.int64, device=mask.device) for _ in range(mask.dim())]


def _is_random_state(tensor: Tensor) -> bool:
    """Return whether a tensor is the state of a generator, which has values that the program may need."""
    return not isinstance(tensor, FakeTensor) and tensor.dtype == torch.uint8 and tensor.shape in _STATE_SHAPES


def _check_dtypes(call: Call) -> None:
    """Refuse tensors of several dtypes, as a device does and shapes alone do not."""
    dtypes = {one.dtype for one in call.tensors}
    if len(dtypes) > 1:
        raise RuntimeError(f"{call.packet} takes tensors of one dtype, and got {', '.join(sorted(map(str, dtypes)))}")
