"""The state of a sharded network and of its optimizer, as a single process would have it.

A checkpoint holds whole tensors in one file, so that any number of processes can resume from it, one included.
`torch.distributed.checkpoint` is not used: it takes a step of an optimizer that has no state yet in order to know its shape,
and Adam would count that step.
"""

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer


def whole_weights(network: nn.Module) -> dict[str, Tensor]:
    """The network's `state_dict`; every process of a sharded one has to ask for it."""
    return {name: _whole(value) for name, value in network.state_dict().items()}


def whole_optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's `state_dict`; every process of a sharded network has to ask for it."""
    found = optimizer.state_dict()
    return found | {"state": {index: _each(_whole, values) for index, values in found["state"].items()}}


def load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put whole weights into a network, of which each process may hold a part."""
    own = network.state_dict()
    network.load_state_dict({name: _like(own[name], value) for name, value in weights.items()})


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Put a whole state into an optimizer, of which each process may hold a part."""
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    parts = {
        index: _each(lambda value, like=parameters[index]: _like(like, value), values) for index, values in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": parts})


def local_part(value: Tensor) -> Tensor:
    """The part of a tensor that this process has: all of it unless it is sharded."""
    part: Any = value
    return part.to_local() if _is_in_parts(value) else value


def _each(change: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: change(value) for name, value in values.items()}


def _whole(value: Any) -> Any:
    return value.full_tensor() if _is_in_parts(value) else value


def _is_in_parts(value: object) -> bool:
    """Return whether a tensor is sharded. What shards it has imported DTensor, which takes a process half a second."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def _like(own: Any, value: Any) -> Any:
    """A value of a checkpoint; this process's part of it if its tensor here is in parts, too."""
    if not _is_in_parts(own) or not isinstance(value, Tensor) or value.shape != own.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    # Every process has read the whole tensor, and takes its part without the others.
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
