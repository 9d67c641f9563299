"""Communication of a step: the buffers that are sent and received, and the memory that gloo, which a CPU uses, takes for it."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from capsbench.tracing.operator_calls import Call
from capsbench.tracing.surroundings import replaced

_FUNCTIONS = (
    "all_reduce", "all_gather_into_tensor", "all_gather_single", "reduce_scatter_tensor", "reduce_scatter_single", "broadcast",
)  # fmt: skip
"""Functions of torch.distributed by which DistributedDataParallel and FSDP communicate; the names depend on the release."""

_RELEASE_SECONDS = 0.02
"""Time after each communication for gloo's threads, which let go of its buffers some moments after the result is there."""


def is_collective(call: Call) -> bool:
    """Return whether an operator communicates with other processes."""
    return call.func.namespace == "c10d"


def collective_bytes(call: Call) -> int:
    """Bytes that a collective operation takes on a CPU in addition to its tensors.

    Gloo gathers into one tensor that it copies to the output, and reduces a copy of the input. FSDP pads each gradient whose
    first dimension the number of processes does not divide, all at once, before it copies them into what is reduced.
    """
    name = call.func._schema.name
    if name == "c10d::_allgather_base_":
        return call.tensors[0].nbytes
    if name == "c10d::_reduce_scatter_base_":
        return call.tensors[1].nbytes
    if name == "fsdp::chunk_cat":
        gradients, _, count = call.args[:3]
        return sum(_padded_bytes(one, count) for one in gradients if one.shape[0] % count)
    return 0


def _padded_bytes(tensor: Tensor, count: int) -> int:
    """Bytes of a tensor whose first dimension is padded to a multiple."""
    return tensor.nbytes // tensor.shape[0] * (-(-tensor.shape[0] // count) * count) if tensor.shape[0] else 0


@contextmanager
def resized_storages(see: Callable[[torch.UntypedStorage], None]) -> Iterator[None]:
    """Show `see` each storage after Python has given it another size, as FSDP does to let parameters go."""
    real: Any = torch.UntypedStorage.resize_

    def resize(storage: torch.UntypedStorage, *args: Any, **kwargs: Any) -> Any:
        out = real(storage, *args, **kwargs)
        see(storage)
        return out

    with replaced(torch.UntypedStorage, "resize_", resize):
        yield


@contextmanager
def communicated(see: Callable[[Iterable[Tensor]], None]) -> Iterator[None]:
    """Show `see` the tensors that are sent and received, and those that are gathered, while a step is run."""

    def showing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            see([one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)])
            out = real(*args, **kwargs)
            time.sleep(_RELEASE_SECONDS)
            return out

        return call

    def gathered(storage: torch.UntypedStorage) -> None:
        if storage.nbytes():
            see([torch.empty(0, dtype=torch.uint8).set_(storage)])

    with ExitStack() as entered:
        entered.enter_context(resized_storages(gathered))
        for name in _FUNCTIONS:
            if hasattr(dist, name):
                entered.enter_context(replaced(dist, name, showing(getattr(dist, name))))
        yield
