"""The memory behind tensors: address, size and owner."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from capsbench.tracing.cuda_allocator import SMALLEST

_PARTS: dict[torch.layout, tuple[str, ...]] = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}
"""Methods that return the dense tensors of a sparse one, by its layout."""


def dense_parts(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """The dense tensors that tensors are made of: those of a sparse one have its indices and values."""
    for tensor in tensors:
        names = _PARTS.get(tensor.layout)
        yield from [tensor] if names is None else [getattr(tensor, name)() for name in names]


def addresses(tensors: Iterable[Tensor]) -> list[int]:
    """Addresses of the storages behind tensors."""
    return [tensor.untyped_storage().data_ptr() for tensor in dense_parts(tensors)]


def storages_of(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes of the storages behind tensors, by the number of each."""
    storages = (tensor.untyped_storage() for tensor in dense_parts(tensors))
    return {storage._cdata: storage.nbytes() for storage in storages if storage.nbytes()}


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind tensors, each storage once."""
    return sum(storages_of(tensors).values())


def handed_out_bytes(tensors: Iterable[Tensor], device_kind: str) -> int:
    """Bytes of the blocks behind tensors on a device, each once: on CUDA its allocator rounds each up."""
    multiple = SMALLEST if device_kind == "cuda" else 1
    return sum(-(-nbytes // multiple) * multiple for nbytes in storages_of(tensors).values())


def state_of(model: nn.Module) -> list[Tensor]:
    """A model's parameters and buffers."""
    return [*model.parameters(), *model.buffers()]


def gradients_of(model: nn.Module) -> list[Tensor]:
    """The gradients that a model's parameters hold now."""
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def optimizer_state(optimizers: Iterable[torch.optim.Optimizer]) -> list[Tensor]:
    """The tensors of the states of optimizers."""
    leaves = tree_leaves([list(optimizer.state.values()) for optimizer in optimizers])
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
