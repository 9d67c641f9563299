"""The capsule networks and their loss."""

from capsbench.models.front import FRONTS, resolve_front
from capsbench.models.losses import CapsuleLoss, margin_loss
from capsbench.models.networks import RULES, CapsNet, CapsuleNetwork, CapsuleOutput, MoCapsNet, ResCapsNet

__all__ = [
    "FRONTS",
    "RULES",
    "CapsNet",
    "CapsuleLoss",
    "CapsuleNetwork",
    "CapsuleOutput",
    "MoCapsNet",
    "ResCapsNet",
    "margin_loss",
    "resolve_front",
]
