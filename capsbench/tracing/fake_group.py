"""A group of processes of which there is only one: a step of several processes is traced as the first of them takes it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch.distributed as dist
from torch.utils._python_dispatch import _disable_current_modes

from capsbench.errors import ConfigurationError
from capsbench.parallel import FAKE
from capsbench.records import Configuration


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
            with _shapes_asked_aside():
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
