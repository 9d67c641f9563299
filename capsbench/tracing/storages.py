"""The memory behind tensors: address, size and owner."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def addresses(tensors: Iterable[Tensor]) -> list[int]:
    """Addresses of the storages behind tensors."""
    return [tensor.untyped_storage().data_ptr() for tensor in tensors]


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind tensors, each storage once."""
    storages = {storage._cdata: storage.nbytes() for tensor in tensors if (storage := tensor.untyped_storage()).nbytes()}
    return sum(storages.values())


def state_of(model: nn.Module) -> list[Tensor]:
    """A model's parameters and buffers."""
    return [*model.parameters(), *model.buffers()]


def gradients_of(model: nn.Module) -> list[Tensor]:
    """The gradients that a model's parameters hold now."""
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def optimizer_state(optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    """The tensors of an optimizer's state; none without an optimizer."""
    if optimizer is None:
        return []
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
