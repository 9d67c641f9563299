"""The optimizer of a step: the one that a configuration names, or the case's own, and the time at which it steps."""

import inspect
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from capsbench.cases.case import OPTIMIZERS, Case, OptimizerFactory, described
from capsbench.errors import CapsbenchError, ConfigurationError, error_line, unknown_name
from capsbench.options import OPTIONS, Configuration

OPTIMIZER_STEPS = tuple(OPTIONS["optimizer_step"].choices)
"""Times of the optimizer's step: after backward, or for each parameter inside it."""


def chosen_optimizer(configuration: Configuration, case: Case, module: nn.Module) -> Any:
    """The optimizer that a configuration names, or else the case's own; None if there is none.

    Args:
        configuration: configuration of the step.
        case: the case, whose function is called if the configuration names no optimizer.
        module: the network.

    Raises:
        ConfigurationError: nothing can be trained, or the case's function raised, made no optimizer, or one of other parameters.
    """
    parameters = trainable(module, configuration.model)
    named = configuration.optimizer
    factory = OPTIMIZERS[named] if named else case.optimizer
    if factory is None:
        return None
    made = _made(factory, parameters, configuration.model, has_own_step=case.train is not None)
    own = {id(parameter) for parameter in module.parameters()}
    groups = [group for optimizer in optimizers_in(made) for group in optimizer.param_groups]
    if not all(id(one) in own for group in groups for one in group["params"]):
        raise ConfigurationError(
            f"the optimizer of model '{configuration.model}' has parameters that are not parameters of the network",
            "make it of the network's parameters as they are then, such as those that a case's optimizer function is given",
        )
    return made


def _made(factory: OptimizerFactory, parameters: list[nn.Parameter], name: str, *, has_own_step: bool) -> Any:
    """The optimizer that a function makes of parameters; for a step of the case's own it may be several.

    Raises:
        ConfigurationError: the function raised, or made no optimizer that the step can use.
    """
    try:
        made = factory(parameters)
    except CapsbenchError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"model '{name}': its optimizer function raised {error_line(error)}",
            "it is called with a list of all parameters that need gradients, and returns a torch.optim.Optimizer",
        ) from error
    if not optimizers_in(made) or not (has_own_step or isinstance(made, torch.optim.Optimizer)):
        raise ConfigurationError(
            f"model '{name}': its optimizer function returned {described(made)}",
            "it must return a torch.optim.Optimizer: optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1)",
        )
    if not has_own_step and _needs_closure(made):
        raise ConfigurationError(
            f"model '{name}': its optimizer, {type(made).__name__}, calls forward and backward itself",
            "give the case a train function that ends with optimizer.step(closure)",
        )
    return made


def trainable(model: nn.Module, name: str) -> list[nn.Parameter]:
    """The parameters that an optimizer gets.

    Raises:
        ConfigurationError: there are none.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigurationError(
            f"model '{name}' has no parameters to train", "use a network with a parameter that requires a gradient"
        )
    return parameters


def optimizers_in(made: Any) -> list[torch.optim.Optimizer]:
    """The optimizers in tuples, lists and dictionaries, and those that they are made of, each once."""
    found: dict[int, torch.optim.Optimizer] = {}
    left = tree_leaves(made)
    while left:
        one = left.pop(0)
        if isinstance(one, torch.optim.Optimizer) and id(one) not in found:
            found[id(one)] = one
            left += vars(one).values()
    return list(found.values())


def _needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a step of an optimizer cannot be taken without a function that computes loss and gradients."""
    try:
        closure = inspect.signature(optimizer.step).parameters.get("closure")
    except (TypeError, ValueError):  # a function of C
        return False
    return closure is not None and closure.default is closure.empty


def check_optimizer_step(step: str, precision: str, accumulate: int | None = None) -> None:
    """Refuse an unknown time of the optimizer's step, and one that precision or accumulation rule out.

    Raises:
        ConfigurationError: it is none of `OPTIMIZER_STEPS`, or `backward` at fp16 or after several passes.
    """
    if step not in OPTIMIZER_STEPS:
        raise unknown_name("`optimizer_step`", step, OPTIMIZER_STEPS)
    if step == "backward" and precision == "fp16":
        raise ConfigurationError(
            "`optimizer_step` backward is not possible with `precision` fp16: its scaler needs all gradients before the step",
            "choose `precision` fp32 or bf16, or `optimizer_step` after",
        )
    if step == "backward" and (accumulate or 1) > 1:
        raise ConfigurationError(
            f"`optimizer_step` backward is not possible with `accumulate` {accumulate}: it frees the gradients that would be "
            "added up",
            "give `accumulate` 1, or `optimizer_step` after",
        )
