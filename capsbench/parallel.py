"""Training on several processes: a network as each of them holds it, by DistributedDataParallel or by FSDP (`fully_shard`).

FSDP gathers a network part by part. The parts are the members of its longest list of layers, and the rest as a whole; a
reversible stack, which computes with its parameters in a function of its own, is one part.
"""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from capsbench.errors import CapsbenchError, ConfigurationError, error_line
from capsbench.reversible import REVERSIBLE_STRATEGIES, MomentumStack, longest_lists

FAKE = "fake"
"""Name of the backend whose group has one process, which communicates with nobody."""


def check_parallel(
    parallel: str | None, world_size: int | None, *, optimizer_step: str | None, compilation: str | None, precision: str
) -> None:
    """Refuse a way to train on several processes without their number, a number without a way, and what neither goes with.

    Raises:
        ConfigurationError: they make no step.
    """
    if parallel in (None, "none"):
        if world_size is not None:
            raise ConfigurationError(
                f"`world_size` {world_size} has no effect on one process", "give `parallel` ddp or fsdp, too"
            )
        return
    if world_size is None:
        raise ConfigurationError(
            f"`parallel` {parallel} needs the number of processes", "give `world_size`, such as 2, or vary world-size=1,2,4"
        )
    early, compiled = optimizer_step == "backward", compilation not in (None, "none")
    refuse_with(
        parallel,
        {
            f"`optimizer_step` {optimizer_step}": early and "the optimizer would step before gradients are averaged",
            f"`compile` {compilation}": compiled and "a compiler decides anew when parameters are gathered",
            f"`precision` {precision}": precision == "fp16" and NO_COMMON_SCALE,
        },
    )


NO_COMMON_SCALE = "processes would have to agree on the scale of the loss"
"""The reason for which fp16 is not possible."""


def refuse_with(parallel: str, reasons: Mapping[str, str | Literal[False]], hint: str | None = None) -> None:
    """Refuse the first option that does not go with a way to train on several processes.

    Args:
        parallel: the way.
        reasons: by the option as a message names it, the reason against it; False where there is none.
        hint: what would be right; by default to leave that option out.

    Raises:
        ConfigurationError: there is a reason.
    """
    for option, why in reasons.items():
        if why:
            name = option.partition(" ")[0]
            raise ConfigurationError(f"{option} is not possible with `parallel` {parallel}: {why}", hint or f"leave {name} out")


def distributed(model: nn.Module, *, name: str, parallel: str, world_size: int, kind: str) -> nn.Module:
    """Return what is called in place of a network: it itself, with its parameters in parts, or a wrapper around it.

    Args:
        model: the network on its device; FSDP changes it in place.
        name: its name, for errors.
        parallel: `ddp` or `fsdp`.
        world_size: number of processes.
        kind: kind of the device.

    Raises:
        ConfigurationError: this process is in no group of that size, or the network cannot be wrapped.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() == world_size):
        raise ConfigurationError(
            f"`parallel` {parallel} needs a group of {world_size} processes, and this process is in none",
            "measure its memory with 'run' and `only` memory, which starts them, or predict it",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on devices that processes choose by their number
            if parallel == "ddp":
                return _in_ddp(model)
            shard(model, kind, world_size)
            return model
    except CapsbenchError:
        raise
    except Exception as error:  # torch refuses by errors of many types
        raise ConfigurationError(
            f"model '{name}' cannot be trained with `parallel` {parallel}: {error_line(error)}",
            "change what it names, or choose another way",
        ) from error


def _in_ddp(model: nn.Module) -> nn.Module:
    """The network in DistributedDataParallel, whose buckets are summed by a function that can be observed."""
    # A group without other processes has nothing to compare with theirs.
    wrapped = nn.parallel.DistributedDataParallel(model, init_sync=dist.get_backend() != FAKE)
    # A lambda has no annotations, of which torch would refuse any but its own class, which type checkers do not know.
    wrapped.register_comm_hook(None, lambda _, bucket: _averaged(bucket))
    return wrapped


def _averaged(bucket: Any) -> torch.futures.Future[torch.Tensor]:
    """The mean of a bucket of gradients over all processes, in place, as DistributedDataParallel takes it by default."""
    buffer = bucket.buffer().div_(dist.get_world_size())
    work = dist.all_reduce(buffer, async_op=True)
    if dist.get_backend() == FAKE:
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(buffer)
        return done
    return work.get_future().then(lambda done: done.value()[0])


def shard(model: nn.Module, kind: str, world_size: int) -> None:
    """Replace the parameters of a network, part by part and then the rest, by this process's parts of them.

    Args:
        model: the network on its device, changed in place.
        kind: kind of the device.
        world_size: number of processes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with _disable_current_modes():  # the mesh is made of numbers, which a trace has not
        mesh = init_device_mesh(kind, (world_size,))
    for part in parts_of(model):
        fully_shard(part if len(part) > 1 else part[0], mesh=mesh)
    fully_shard(model, mesh=mesh)


def reshard(model: Any) -> None:
    """Put the parameters of a sharded network back into parts, as a training step finds them; inference leaves some gathered."""
    model.reshard()


def parts_of(model: nn.Module) -> list[list[nn.Module]]:
    """The parts of a network that are gathered one after another, each a module or several that are called in a row.

    A module with a parameter that is used outside it, too, belongs to the rest.
    """
    stacks = [one for one in model.modules() if isinstance(one, MomentumStack) and one.memory in REVERSIBLE_STRATEGIES]
    inside = {id(one) for stack in stacks for one in stack.modules()}
    found: list[list[nn.Module]] = [[stack] for stack in stacks]
    for container in longest_lists(model).values():
        members = (one for one in container.children() if inside.isdisjoint(id(module) for module in one.modules()))
        found += [list(_called(member)) for member in members]
    users: dict[int, set[int]] = {}
    place = {id(one): index for index, part in enumerate(found) for module in part for one in module.modules()}
    for module in model.modules():
        for parameter in module._parameters.values():
            users.setdefault(id(parameter), set()).add(place.get(id(module), -1))
    own = [{id(parameter) for one in part for parameter in one.parameters()} for part in found]
    shared = {parameter for parameter, parts in users.items() if len(parts) > 1}
    return [part for part, held in zip(found, own, strict=True) if held and held.isdisjoint(shared) and part != [model]]


def _called(module: nn.Module) -> Iterator[nn.Module]:
    """A module that can be called, or else the members that can be."""
    if "forward" in vars(module) or type(module).forward is not nn.Module.forward:
        yield module
    else:
        for member in module.children():
            yield from _called(member)
