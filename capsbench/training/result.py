"""What a training run came to, on disk: a line of metrics.csv per epoch, and result.json."""

from typing import Any

from pydantic import Field

from capsbench.records import Schema
from capsbench.training.settings import TrainingSettings

RESULT_VERSION = 1
"""Raised whenever an older capsbench could not understand a new result."""


class EpochFigures(Schema):
    """One pass over the training set. Losses are per image; accuracies go from 0 to 1."""

    epoch: int = Field(ge=1)
    """From 1."""
    train_loss: float
    """Mean over the epoch's steps, each before its update."""
    train_accuracy: float
    """Likewise: of images as they were trained on."""
    validation_loss: float | None = None
    """Of the held-out images, after the epoch; None where none are held out."""
    validation_accuracy: float | None = None
    """Likewise."""
    learning_rate: float
    """Of the epoch's last step."""
    seconds: float
    """Of its training steps, over every process that worked on it."""
    images_per_second: float
    """Of the training steps."""
    memory_bytes: int
    """Highest so far: CUDA's allocated bytes, or this process's resident set; 0 where the system does not say."""


class Result(Schema):
    """What a run came to."""

    result_version: int = RESULT_VERSION
    """Of the capsbench that wrote it."""
    settings: TrainingSettings
    """What was asked."""
    data_source: str
    """`real`, or `sample`: the packaged images."""
    train_images: int
    """That were trained on."""
    validation_images: int
    """That were held out to choose the best epoch."""
    test_images: int
    """Of the test set."""
    parameters: int
    """Trained numbers."""
    processes: int
    """That trained together."""
    best_epoch: int
    """Whose weights were tested: the best on the held-out images, or the last where none are held out."""
    epochs: list[EpochFigures]
    """All, in order."""
    test_loss: float
    """Per image; the test set is read once, at the end."""
    test_accuracy: float
    """0 to 1."""
    seconds: float
    """Of training steps, over all epochs."""
    command: str | None = None
    """What was typed."""
    environment: dict[str, Any]
    """The machine, as in environment.json."""

    def best(self) -> EpochFigures:
        """The epoch whose weights were tested."""
        return next(one for one in self.epochs if one.epoch == self.best_epoch)
