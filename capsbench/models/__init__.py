"""The capsule networks and their loss."""

from capsbench.models.ensemble import Ensemble
from capsbench.models.front import FRONTS, resolve_front
from capsbench.models.losses import CapsuleLoss, margin_loss
from capsbench.models.networks import RULES, CapsNet, CapsuleNetwork, CapsuleOutput, MoCapsNet, ResCapsNet
from capsbench.models.sabour import SabourCapsNet, capsnet_2conv

__all__ = [
    "FRONTS",
    "RULES",
    "CapsNet",
    "CapsuleLoss",
    "CapsuleNetwork",
    "CapsuleOutput",
    "Ensemble",
    "MoCapsNet",
    "ResCapsNet",
    "SabourCapsNet",
    "capsnet_2conv",
    "margin_loss",
    "resolve_front",
]
