"""Training to accuracy: `train(settings, folder)`, with checkpoints that lose nothing.

The names below are imported when they are first used, so that reading settings needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capsbench.training.checkpoint import load_checkpoint, load_network, save_checkpoint
    from capsbench.training.result import EpochFigures, Result
    from capsbench.training.settings import TrainingSettings
    from capsbench.training.trainer import train

_HOME = {
    "EpochFigures": "capsbench.training.result",
    "Result": "capsbench.training.result",
    "TrainingSettings": "capsbench.training.settings",
    "load_checkpoint": "capsbench.training.checkpoint",
    "load_network": "capsbench.training.checkpoint",
    "save_checkpoint": "capsbench.training.checkpoint",
    "train": "capsbench.training.trainer",
}

__all__ = ["EpochFigures", "Result", "TrainingSettings", "load_checkpoint", "load_network", "save_checkpoint", "train"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'capsbench.training' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
