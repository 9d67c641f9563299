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


def own_parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Parts, in this process, of tensors that lie in several; other tensors as they are."""
    with torch.no_grad():  # with gradients it would be an operator
        return [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]


def state_of(model: nn.Module) -> list[Tensor]:
    """A model's parameters and buffers, or this process's parts of them."""
    return own_parts([*model.parameters(), *model.buffers()])


def gradients_of(model: nn.Module) -> list[Tensor]:
    """The gradients that a model's parameters hold now, or this process's parts of them."""
    return gradients_in(model.parameters())


def gradients_in(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The gradients that parameters hold now, or this process's parts of them."""
    return own_parts(parameter.grad for parameter in parameters if parameter.grad is not None)


def optimizer_state(optimizers: Iterable[torch.optim.Optimizer]) -> list[Tensor]:
    """The tensors of the states of optimizers, or this process's parts of them."""
    leaves = tree_leaves([list(optimizer.state.values()) for optimizer in optimizers])
    return own_parts(leaf for leaf in leaves if isinstance(leaf, Tensor))
