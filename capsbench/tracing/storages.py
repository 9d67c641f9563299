"""The memory behind tensors: address, size and owner."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from capsbench.tracing.cuda_allocator import SMALLEST


def addresses(tensors: Iterable[Tensor]) -> list[int]:
    """Addresses of the storages behind tensors."""
    return [tensor.untyped_storage().data_ptr() for tensor in tensors]


def storages_of(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes of the storages behind tensors, by the number of each."""
    return {storage._cdata: storage.nbytes() for tensor in tensors if (storage := tensor.untyped_storage()).nbytes()}


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
