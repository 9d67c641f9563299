"""capsbench measures what depth costs: memory and time per block of capsule networks.

The names below are imported when they are first used, so that the command line starts without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capsbench.inference import classify
    from capsbench.models import CapsNet, CapsuleLoss, CapsuleOutput, MoCapsNet, ResCapsNet
    from capsbench.page.notebook import slopes
    from capsbench.report import Report, load
    from capsbench.stats.least_squares import SlopeFit, fit_slope
    from capsbench.sweep.verbs import predict, run

_HOME = {
    "CapsNet": "capsbench.models",
    "CapsuleLoss": "capsbench.models",
    "CapsuleOutput": "capsbench.models",
    "MoCapsNet": "capsbench.models",
    "Report": "capsbench.report",
    "ResCapsNet": "capsbench.models",
    "SlopeFit": "capsbench.stats.least_squares",
    "classify": "capsbench.inference",
    "fit_slope": "capsbench.stats.least_squares",
    "load": "capsbench.report",
    "predict": "capsbench.sweep.verbs",
    "run": "capsbench.sweep.verbs",
    "slopes": "capsbench.page.notebook",
}

__all__ = [
    "CapsNet",
    "CapsuleLoss",
    "CapsuleOutput",
    "MoCapsNet",
    "Report",
    "ResCapsNet",
    "SlopeFit",
    "classify",
    "fit_slope",
    "load",
    "predict",
    "run",
    "slopes",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'capsbench' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
