"""A group of processes of which there is only one: a step of several processes is traced as the first of them takes it."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from capsbench.errors import ConfigurationError
from capsbench.parallel import FAKE
from capsbench.records import Configuration
from capsbench.tracing.surroundings import replaced


@contextmanager
def fake_group(configuration: Configuration) -> Iterator[None]:
    """Let this process be the first of as many as a configuration asks for; without effect where it asks for one.

    Raises:
        ConfigurationError: this torch has no support for several processes, or a group is open already.
    """
    if configuration.parallel is None:
        yield
        return
    if not dist.is_available():
        raise ConfigurationError(
            f"`parallel` {configuration.parallel} needs torch.distributed, which this build of torch lacks",
            "install a build that has it",
        )
    if dist.is_initialized():
        raise ConfigurationError(
            f"`parallel` {configuration.parallel} is predicted in a group of its own, and this process is in one already",
            "call capsbench.predict before init_process_group, or in another process",
        )
    # FSDP's hooks import the compiler; it must not find torch's functions replaced, as they are in a trace.
    import_module("torch._dynamo")
    from torch.testing._internal.distributed.fake_pg import FakeStore

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on a backend that is for tests
        dist.init_process_group(FAKE, rank=0, world_size=configuration.world_size or 1, store=FakeStore())
    try:
        with warnings.catch_warnings():
            # A remark on networks that return views, which training makes, too.
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
            with _shapes_asked_aside(), _own_parts_alone():
                yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _shapes_asked_aside() -> Iterator[None]:
    """Keep out of the trace what DTensor runs on whole shapes in order to know what an operator on parts of them returns.

    Up to torch 2.11 it does so in the mode in which it is called, where its stand-ins would count as tensors of the step.
    """
    propagator: Any = import_module("torch.distributed.tensor._sharding_prop").ShardingPropagator
    name = "_propagate_tensor_meta_non_cached"
    usual = getattr(propagator, name, None)
    if usual is None:
        yield
        return

    def aside(self: Any, *args: Any) -> Any:
        with _disable_current_modes():
            return usual(self, *args)

    setattr(propagator, name, aside)
    try:
        yield
    finally:
        setattr(propagator, name, usual)


@contextmanager
def _own_parts_alone() -> Iterator[None]:
    """Let FSDP cut the first process's part from each parameter, and none for the other processes.

    It cuts as many parts as there are processes and takes one. Each would be followed, twice for every parameter: of 1,024
    processes that is nine tenths of a trace.
    """
    name = "_chunk_with_empty"
    package = "torch.distributed.fsdp._fully_shard"
    with ExitStack() as entered:
        for module in (import_module(f"{package}.{file}") for file in ("_fsdp_common", "_fsdp_param")):
            if hasattr(module, name):
                entered.enter_context(replaced(module, name, _first_of_parts))
        yield


def _first_of_parts(tensor: Tensor, num_chunks: int, dim: int) -> list[Tensor]:
    """The first of the parts of a tensor that as many processes hold, with an empty one in place of each other."""
    first = tensor.narrow(dim, 0, -(-tensor.shape[dim] // num_chunks))
    return [first, *[first.new_empty(0)] * (num_chunks - 1)]
