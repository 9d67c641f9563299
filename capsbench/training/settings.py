"""The settings that decide how a network is trained."""

from typing import Any, Literal

from pydantic import Field

from capsbench.records import Configuration, Schema

SETTINGS_VERSION = 1
"""Version of the format, raised whenever an older capsbench could not understand new settings."""

TrainingOptimizer = Literal["adam", "ranger21"]
Preprocessing = Literal["paper", "published"]


class TrainingSettings(Schema):
    """Everything that decides what a training run computes: equal settings give the same loss curve on a CPU."""

    settings_version: int = SETTINGS_VERSION
    """Version of the format that the writing capsbench had."""
    network: Configuration
    """The network, data set and device; the batch size is that of one step, over all processes."""
    epochs: int = Field(default=30, ge=1)
    """Passes over the training set (paper: 30 or 60)."""
    optimizer: TrainingOptimizer = "adam"
    """The optimizer (paper: Adam; tables 3 and 5: Ranger21 too)."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Learning rate of the first epoch."""
    decay: float = Field(default=0.96, gt=0, le=1)
    """Factor on Adam's learning rate after each epoch. Ranger21 has a schedule of its own."""
    reconstruction_weight: float = Field(default=5e-4, ge=0)
    """Factor of the squared error of the reconstruction."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of weights, data order and crops. The choice of held-out images does not depend on it."""
    preprocess: Preprocessing = "paper"
    """Way in which images become inputs (`capsbench.data.preprocess`)."""
    validation: float = Field(default=0.1, ge=0)
    """Part of the training set held out to choose the best epoch: a fraction, or from 1 on a number of images; 0 for none."""
    accumulate: int = Field(default=1, ge=1)
    """Number of parts into which a batch is cut, one after the other; gradients are summed."""
    scale: float = Field(default=1.0, gt=0, le=1)
    """The fraction of the training set that is used."""
    gammas: tuple[float, ...] | None = None
    """Momentum terms of MoCapsNet, one for each block; None stands for the network's own, for all."""
    learn_gamma: bool = False
    """True if the momentum terms are trained."""
    convolutions: int | None = None
    """Number of convolutions before the capsules, of networks that leave the choice."""

    def options(self) -> dict[str, Any]:
        """Arguments of the network that are set and not in its configuration."""
        found: dict[str, Any] = {"gamma": self.gammas, "convolutions": self.convolutions}
        found |= {"learn_gamma": True} if self.learn_gamma else {}
        return {name: value for name, value in found.items() if value is not None}


def differences(left: TrainingSettings, right: TrainingSettings) -> dict[str, tuple[Any, Any]]:
    """Fields that differ, with dotted names such as `network.blocks`, and both values."""
    mine, theirs = _flat(left), _flat(right)
    return {name: (value, theirs[name]) for name, value in mine.items() if value != theirs[name]}


def _flat(settings: TrainingSettings) -> dict[str, Any]:
    fields = settings.model_dump()
    network = fields.pop("network")
    return {f"network.{name}": value for name, value in network.items()} | fields
