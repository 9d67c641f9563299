"""Adam as in the paper, and Ranger21 from `pytorch-optimizer`."""

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import nn

from capsbench.errors import ConfigurationError
from capsbench.training.settings import TrainingSettings


def make_optimizer(settings: TrainingSettings, parameters: Sequence[nn.Parameter], steps_per_epoch: int) -> torch.optim.Optimizer:
    """The optimizer of some settings.

    Args:
        settings: settings that name the optimizer.
        parameters: parameters to train.
        steps_per_epoch: batches of an epoch; Ranger21's warm-up and warm-down span all epochs (the published code gave it
            the batch size instead).

    Raises:
        ConfigurationError: its package is not installed.
    """
    check_optimizer(settings)
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=settings.learning_rate, fused=True)
    from pytorch_optimizer import Ranger21

    return Ranger21(parameters, num_iterations=settings.epochs * steps_per_epoch, lr=settings.learning_rate)


def check_optimizer(settings: TrainingSettings) -> None:
    """Refuse an optimizer that is not installed.

    Raises:
        ConfigurationError: its package is not installed.
    """
    if settings.optimizer == "ranger21" and find_spec("pytorch_optimizer") is None:
        raise ConfigurationError(
            "`optimizer` ranger21 needs the package pytorch-optimizer, which is not installed",
            "install it with: pip install pytorch-optimizer, or install capsbench[train]",
        )


def set_learning_rate(optimizer: torch.optim.Optimizer, settings: TrainingSettings, epoch: int) -> None:
    """Set the learning rate to its initial value · decay^epoch (paper, section 4), epochs from 0. Ranger21 has its own."""
    if settings.optimizer == "adam":
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * settings.decay**epoch


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of the last step."""
    return float(getattr(optimizer, "current_lr", optimizer.param_groups[0]["lr"]))
