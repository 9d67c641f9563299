"""The result of a training run on disk: a line of metrics.csv per epoch, and result.json."""

from typing import Any

from pydantic import Field

from capsbench.records import Schema
from capsbench.training.settings import TrainingSettings

RESULT_VERSION = 1
"""Version of the format, raised whenever an older capsbench could not understand a new result."""


class EpochFigures(Schema):
    """One pass over the training set. Losses are per image; accuracies go from 0 to 1."""

    epoch: int = Field(ge=1)
    """Number of the epoch, from 1."""
    train_loss: float
    """Mean loss of the epoch's steps, each before its update."""
    train_accuracy: float
    """Mean accuracy of the epoch's steps, on images as they were trained on."""
    validation_loss: float | None = None
    """Loss on the held-out images after the epoch; None if none are held out."""
    validation_accuracy: float | None = None
    """Accuracy on the held-out images after the epoch; None if none are held out."""
    learning_rate: float
    """Learning rate of the epoch's last step."""
    seconds: float
    """Seconds of its training steps, over every process that worked on it."""
    images_per_second: float
    """Images of the training steps per second."""
    memory_bytes: int
    """Highest value so far of CUDA's allocated bytes, or of this process's resident set; 0 if the system does not report it."""


class Result(Schema):
    """The result of a run."""

    result_version: int = RESULT_VERSION
    """Version of the format that the writing capsbench had."""
    settings: TrainingSettings
    """The settings of the run."""
    data_source: str
    """Source of the images: `real`, or `sample` for the packaged ones."""
    train_images: int
    """Number of images that were trained on."""
    validation_images: int
    """Number of images that were held out to choose the best epoch."""
    test_images: int
    """Number of images of the test set."""
    parameters: int
    """Number of trained parameters."""
    processes: int
    """Number of processes that trained together."""
    best_epoch: int
    """Epoch whose weights were tested: the best on the held-out images, or the last if none are held out."""
    epochs: list[EpochFigures]
    """All epochs, in order."""
    test_loss: float
    """Loss per image of the test set, which is read once, at the end."""
    test_accuracy: float
    """Accuracy on the test set, 0 to 1."""
    seconds: float
    """Seconds of training steps, over all epochs."""
    command: str | None = None
    """The command that was typed."""
    environment: dict[str, Any]
    """The machine, as in environment.json."""

    def best(self) -> EpochFigures:
        """The epoch whose weights were tested."""
        return next(one for one in self.epochs if one.epoch == self.best_epoch)
