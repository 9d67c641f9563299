"""Several processes that train one network together, as `torchrun` starts them; or one.

Each has a copy of the network (`ddp`), or a part of every parameter, gradient and state of the optimizer (`fsdp`).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from capsbench.data.feed import Share
from capsbench.errors import ConfigurationError, error_line
from capsbench.parallel import shard

Parallel = Literal["ddp", "fsdp"]


class Processes:
    """The position of this process among those that train together.

    Args:
        device: device of this process.
        share: its share of the work; all by default.
        parallel: what each process holds: a copy (`ddp`), or a part of everything (`fsdp`).
    """

    def __init__(self, device: torch.device, share: Share | None = None, parallel: Parallel = "ddp") -> None:
        self.device, self.share = device, share or Share()
        self.sharded = self.several and parallel == "fsdp"
        """True if the network's parameters are in parts, so that every pass through it needs all processes."""

    @property
    def first(self) -> bool:
        """Return whether this is the process that writes and reports."""
        return self.share.rank == 0

    @property
    def several(self) -> bool:
        """Return whether there are others."""
        return self.share.of > 1

    def wrap(self, network: nn.Module, *, all_used: bool) -> nn.Module:
        """The network with its gradients summed over processes, since the loss is a sum over the batch.

        Args:
            network: network on this process's device; sharded in place with `fsdp`, so that its parameters are other ones then.
            all_used: whether every parameter takes part in every step.

        Raises:
            ConfigurationError: it cannot be sharded.
        """
        if not self.several:
            return network
        if self.sharded:
            return self._shard(network)
        parallel = DistributedDataParallel(network, find_unused_parameters=not all_used)
        # A lambda has no annotations, of which torch would refuse any but its own class, which type checkers do not know.
        parallel.register_comm_hook(None, lambda _, bucket: _added_up(bucket))
        return parallel

    def _shard(self, network: nn.Module) -> nn.Module:
        from torch.distributed.fsdp import FSDPModule

        try:
            shard(network, self.device.type, self.share.of)
        except Exception as error:  # torch refuses by errors of many types
            raise ConfigurationError(
                f"the network cannot be sharded: {error_line(error)}", "change what it names, or train with `parallel` ddp"
            ) from error
        for module in network.modules():
            if isinstance(module, FSDPModule):
                # A mean by default. Only NCCL can scale within a collective, so that the sum is asked for by itself.
                module.set_force_sum_reduction_for_comms(True)
                module.set_gradient_divide_factor(1.0)
        return network

    def sum(self, values: Tensor) -> Tensor:
        """Sum values over processes, in place."""
        if self.several:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        if not self.several:
            return [value]
        found: list[Any] = [None] * self.share.of
        dist.all_gather_object(found, value)
        return found

    def first_known(self, value: str | None) -> str | None:
        """The value of the first process that has one."""
        return next((one for one in self.gather(value) if one is not None), None)

    def one_after_the_other(self, do: Callable[[], Any]) -> Any:
        """Let the first process go first, for the files that it leaves on the disk."""
        made = do() if self.first else None
        if self.several:
            dist.barrier()
        return made if self.first else do()


def is_first() -> bool:
    """Return whether this process is alone, or the first that `torchrun` started: the one that reports."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def process_group(device: str, parallel: Parallel = "ddp") -> Iterator[Processes]:
    """Join the other processes, if `torchrun` has set that there are some.

    Args:
        device: `cpu` or `cuda:N`; each of several processes takes the GPU of its own rank.
        parallel: what each of several processes holds: a copy of the network, or a part of it.

    Raises:
        ConfigurationError: WORLD_SIZE was not set by `torchrun`, there are fewer GPUs than processes, or the network is to be
            divided over a single process that `torchrun` has not started.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if parallel == "fsdp" and "WORLD_SIZE" not in os.environ:
        raise ConfigurationError(
            "`parallel` fsdp divides a network over several processes, and this one is alone",
            "start it with torchrun, or leave `parallel` out",
        )
    if world == 1:
        yield Processes(torch.device(device))
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigurationError(
            f"WORLD_SIZE is {world}, and {', '.join(missing)} not set", "start with torchrun, or leave WORLD_SIZE out"
        )
    rank, kind = int(os.environ["RANK"]), device.partition(":")[0]
    if kind == "cuda" and int(os.environ["LOCAL_RANK"]) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"{os.environ.get('LOCAL_WORLD_SIZE', world)} processes for {torch.cuda.device_count()} GPUs",
            "give torchrun's --nproc-per-node the number of GPUs",
        )
    own = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(device)
    if kind == "cuda":
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield Processes(own, Share(rank, world), parallel)
    finally:
        dist.destroy_process_group()


def without_exchange(network: nn.Module) -> AbstractContextManager[None]:
    """Keep the gradients of backward in this process; they are exchanged with those of the last part of a batch."""
    if isinstance(network, DistributedDataParallel):
        return network.no_sync()
    return _without_sharding(network) if is_sharded(network) else nullcontext()


@contextmanager
def _without_sharding(network: Any) -> Iterator[None]:
    """Keep whole gradients in this process."""
    network.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        network.set_requires_gradient_sync(True)


def is_sharded(network: nn.Module) -> bool:
    """Return whether each process holds a part of a network's parameters."""
    if not dist.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(network, FSDPModule)


def _added_up(bucket: Any) -> torch.futures.Future[Tensor]:
    future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return future.then(lambda done: done.value()[0])
