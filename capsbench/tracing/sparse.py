"""Sparse tensors of a step that is followed without being computed, such as the gradients of an embedding.

A sparse tensor is made of two dense ones: indices, which say where it has values, and these values. Torch's sparse tensors
without values lose both, so that they are kept here. An operator on sparse tensors is tried on this machine with tensors of the
same sizes. Its outputs may depend on the indices: known ones are used, and for unknown ones it is tried with indices that all
differ and with ones that are all alike.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from capsbench.errors import ConfigurationError
from capsbench.tracing import counting
from capsbench.tracing.known import Values
from capsbench.tracing.operator_calls import Call, tensors_in
from capsbench.tracing.scratch import layout, real_like

_MAKES = torch.ops.aten._sparse_coo_tensor_with_dims_and_tensors
_INDICES = {torch.ops.aten._indices, torch.ops.aten.indices}
_VALUES = {torch.ops.aten._values, torch.ops.aten.values}
_OF_BAGS, _SPARSE = torch.ops.aten._embedding_bag_backward, 9
"""The one operator of which a sparse tensor may come, and the index of the argument that asks for one."""
_MOST_BYTES = 2**31
"""Largest operator in bytes that is tried."""
_REPEATED = "the number of different indices of a sparse tensor depends on their values, and the trace takes all to be different"


class _Parts(NamedTuple):
    """The tensors that a sparse one is made of, without values."""

    indices: Tensor
    values: Tensor
    coalesced: bool


class _Trial(NamedTuple):
    """An operator that was run on tensors with values."""

    given: list[Tensor]
    """Tensors among its arguments."""
    before: list[list[Tensor]]
    """The dense tensors that each of them was made of before."""
    out: Any
    scratch: int
    """Most bytes that it held in addition to its results."""

    def sizes(self) -> list[object]:
        """All that memory depends on."""
        return [self.scratch, *([layout(part) for part in _parts_of(one)] for one in (*tensors_in(self.out), *self.given))]


class SparseTensors:
    """The sparse tensors of a step.

    Args:
        values: the values that are known.
        unsure: receives the assumption on the number of different indices.
    """

    def __init__(self, values: Values, unsure: dict[str, None]) -> None:
        self._values, self._unsure = values, unsure
        self._parts: Any = WeakTensorKeyDictionary()

    @staticmethod
    def has(call: Call) -> bool:
        """Return whether a call makes a sparse tensor, or is given one."""
        made = call.packet is _MAKES or (call.packet is _OF_BAGS and call.args[_SPARSE])
        return made or any(one.layout is torch.sparse_coo for one in call.tensors)

    def run(self, call: Call, follow: Callable[[Tensor], None]) -> tuple[Any, int]:
        """Run an operator on sparse tensors.

        Args:
            call: the operator with its arguments, which have no values.
            follow: receives each dense tensor that it makes.

        Returns:
            Its outputs without values, and the most bytes that it holds in addition to them on a CPU.

        Raises:
            ConfigurationError: it cannot be tried.
        """
        if call.packet is _MAKES:
            return self._made(call), 0
        first = self._parts.get(call.tensors[0])
        if first is not None and call.packet is torch.ops.aten.clone and _is_taken_over(first):
            return self._holding(first, call.tensors[0].shape), 0
        if first is not None and call.packet in _INDICES:
            return self._alias(first.indices), 0
        if first is not None and call.packet in _VALUES:
            return self._alias(first.values), 0
        if first is not None and call.packet is torch.ops.aten._nnz:
            return first.indices.shape[1], 0
        if first is not None and call.packet is torch.ops.aten.is_coalesced:
            return first.coalesced, 0
        sparse = [parts for one in call.tensors if (parts := self._parts.get(one)) is not None]
        trial = self._tried(call, sparse)
        known = bool(sparse) and all(self._values.of(one.indices) is not None for one in sparse)
        return self._without_values(call, trial, follow, known=known), trial.scratch

    def _made(self, call: Call) -> Tensor:
        """A sparse tensor of indices and values."""
        _, _, size, indices, values = call.args
        return self._holding(_Parts(self._alias(indices), values.detach(), bool(call.kwargs.get("is_coalesced"))), size)

    def _holding(self, parts: _Parts, size: torch.Size) -> Tensor:
        """A sparse tensor of these parts, which it would keep in memory if it were made of them."""
        dims, device = len(parts.indices), parts.values.device
        indices = torch.empty((dims, 0), dtype=torch.int64, device=device)
        values = torch.empty((0, *size[dims:]), dtype=parts.values.dtype, device=device)
        made: Tensor = _MAKES(
            dims, len(size) - dims, size, indices, values, dtype=values.dtype, layout=torch.sparse_coo, device=device,
            is_coalesced=parts.coalesced,
        )  # fmt: skip
        self._parts[made] = parts
        return made

    def _alias(self, tensor: Tensor) -> Tensor:
        """Another object for a tensor, with its values if they are known."""
        alias, known = tensor.detach(), self._values.of(tensor)
        if known is not None:
            self._values.give(alias, known)
        return alias

    def _tried(self, call: Call, sparse: Sequence[_Parts]) -> _Trial:
        """A trial of a call; if it has unknown indices, with the most different ones."""
        nbytes = sum(part.nbytes for one in sparse for part in (one.indices, one.values))
        nbytes += sum(one.nbytes for one in call.tensors if one.layout is torch.strided)
        if nbytes > _MOST_BYTES:
            raise ConfigurationError(
                f"{call.packet} on a sparse tensor has {nbytes} bytes, too many to try it, and its memory is not known",
                "measure the step with 'run', or make its layers with sparse=False",
            )
        with unset_fake_temporarily(), torch.no_grad():
            found = _trial(call, partial(self._real, repeated=False))
            unknown = any(self._values.of(one.indices) is None for one in sparse)
            if unknown and _trial(call, partial(self._real, repeated=True)).sizes() != found.sizes():
                self._unsure[_REPEATED] = None
        return found

    def _real(self, one: Any, *, repeated: bool) -> Any:
        """A tensor with values in place of one without."""
        if isinstance(one, torch.device):
            return torch.device("cpu")
        parts = self._parts.get(one) if isinstance(one, Tensor) else None
        if parts is None:
            return real_like(one)
        indices = self._values.of(parts.indices)
        if indices is None:
            indices = (
                torch.zeros(parts.indices.shape, dtype=torch.int64) if repeated else _different(parts.indices.shape, one.shape)
            )
        return torch.sparse_coo_tensor(
            indices.clone(), real_like(parts.values), one.shape, check_invariants=False,
            is_coalesced=parts.coalesced and not repeated,
        )  # fmt: skip

    def _without_values(self, call: Call, trial: _Trial, follow: Callable[[Tensor], None], *, known: bool) -> Any:
        """Outputs without values, which share memory with the arguments as the real ones do."""
        dense = _Stand(call.tensors[0].device, follow)
        for before, one in zip(trial.before, call.tensors, strict=True):
            own = self._parts.get(one)
            for part, fake in zip(before, [one] if own is None else [own.indices, own.values], strict=True):
                dense.share(part, fake)
        fakes = {id(real): one for real, one in zip(trial.given, call.tensors, strict=True)}
        for real, one in zip(trial.given, call.tensors, strict=True):
            if one in self._parts:  # it may have been written into
                self._parts[one] = self._stand_in(real, dense, known=known)

        def without_values(one: Any) -> Any:
            if not isinstance(one, Tensor) or id(one) in fakes:
                return fakes.get(id(one), one)
            if one.layout is torch.strided:
                return dense.of(one)
            return self._holding(self._stand_in(one, dense, known=known), one.shape)

        return tree_map(without_values, trial.out)

    def _stand_in(self, real: Tensor, dense: "_Stand", *, known: bool) -> _Parts:
        """The parts of a sparse tensor, without values."""
        with unset_fake_temporarily(), torch.no_grad():
            own, coalesced = _parts_of(real), real.is_coalesced()
            copied = own[0].clone()
        indices, values = (dense.of(part) for part in own)
        same = self._values.of(dense.shared(own[0]))
        if known:
            self._values.give(indices, copied)
        elif same is not None and same.numel() == copied.numel():
            with unset_fake_temporarily():
                self._values.give(indices, same.reshape(copied.shape))
        return _Parts(indices, values, coalesced)


class _Stand:
    """Dense tensors without values in place of real ones, which share memory as these do."""

    def __init__(self, device: torch.device, follow: Callable[[Tensor], None]) -> None:
        self.device, self._follow = device, follow
        self._known: dict[int, Tensor] = {}

    def share(self, real: Tensor, fake: Tensor) -> None:
        """Let a tensor stand for all that share memory with a real one, which begins where its memory does."""
        self._known[real.untyped_storage()._cdata] = fake

    def shared(self, real: Tensor) -> Tensor:
        """The tensor that stands for all that share memory with a real one."""
        return self._known[real.untyped_storage()._cdata]

    def of(self, real: Tensor) -> Tensor:
        """The tensor without values in place of a real one."""
        key = real.untyped_storage()._cdata
        if key not in self._known:
            self._known[key] = torch.empty(real.untyped_storage().nbytes() // real.itemsize, dtype=real.dtype, device=self.device)
            self._follow(self._known[key])
        base = self._known[key]
        return base.as_strided(real.shape, real.stride(), base.storage_offset() + real.storage_offset()).detach()


def _trial(call: Call, real: Callable[[Any], Any]) -> _Trial:
    """A run of an operator on tensors with values."""
    made = call.changed(real)
    before = [_parts_of(one) for one in made.tensors]
    log = counting.Log() if counting.installed() is not None else None
    out = made.run()
    scratch = 0
    if log:
        alive = log.close()[:, 1].cumsum()
        scratch = max(0, int(alive.max() - alive[-1])) if len(alive) else 0
    return _Trial(made.tensors, before, out, scratch)


def _parts_of(tensor: Tensor) -> list[Tensor]:
    """The dense tensors that a tensor with values is made of."""
    return [tensor._indices(), tensor._values()] if tensor.layout is torch.sparse_coo else [tensor]


def _is_taken_over(parts: _Parts) -> bool:
    """Return whether autograd takes a gradient of these parts as it is, where it copies it because operators are followed.

    It takes over a first gradient whose parts nobody else has as tensors, and which are contiguous.
    """
    node = torch._C._current_autograd_node()
    at_leaf = node is not None and node.name().endswith("AccumulateGrad")
    return at_leaf and parts.indices.is_contiguous() and parts.values.is_contiguous()


def _different(shape: torch.Size, size: torch.Size) -> Tensor:
    """Indices of this shape, of which as many differ as those of a sparse tensor of this size can."""
    dims, count = shape
    return torch.stack(torch.unravel_index(torch.arange(count) % size[:dims].numel(), size[:dims]))
