"""Diagnostics of the blocks of a network during training: diagnostics.jsonl, a line for each block and epoch."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from capsbench.data.feed import Feed
from capsbench.data.preprocess import prepare
from capsbench.models import CapsuleLoss
from capsbench.system.durable import replacing
from capsbench.training.bundles import checked_network, diagnose
from capsbench.training.log import TrainingStep, encoded, keeping_run, parsed
from capsbench.training.result import EpochFigures

DIAGNOSTICS = "diagnostics.jsonl"
IMAGES = 128
"""Number of training images, always the same ones, that are diagnosed: as many as a batch of the paper has."""


class DiagnosticsLog:
    """An observer that diagnoses a network before training and after each epoch, on the same images, in full precision.

    It draws no random numbers and leaves the network as it is, so that the loss curve is the same with it and without.

    Args:
        folder: folder of the run.
        network: network that is trained.
        feed: feed of its training images.
        reconstruction_weight: factor in the loss.
        epochs: finished epochs of a resumed run; lines of later epochs will be made again, and are removed.
        step: finished steps of the epoch after them. With none the network is as the last epoch left it, and is diagnosed
            again: the run may have ended between the epoch's checkpoint and its lines.

    Raises:
        ConfigurationError: the network has no blocks that diagnostics know.
        LostWorkError: the file cannot be written.
    """

    def __init__(
        self, folder: Path, network: nn.Module, feed: Feed, reconstruction_weight: float, epochs: int, step: int = 0
    ) -> None:
        self._path = folder / DIAGNOSTICS
        self._network = checked_network(network)
        self._batch = prepare(feed.images[:IMAGES], feed.labels[:IMAGES], feed.style, feed.spec.name)
        self._loss = CapsuleLoss(reconstruction_weight=reconstruction_weight)
        known = epochs if step else epochs - 1
        kept = [line for line in read_diagnostics(folder) if line["epoch"] <= known]
        with keeping_run(self._path), replacing(self._path) as file:
            file.writelines(encoded(line) for line in kept)
        if not step:
            self._write(epochs)

    def stepped(self, figures: TrainingStep) -> None:
        """Do nothing: blocks are diagnosed once an epoch."""

    def finished(self, figures: EpochFigures) -> None:
        """Write a line for each block."""
        self._write(figures.epoch)

    def notify(self, text: str) -> None:
        """Do nothing: a message is no diagnosis."""

    def _write(self, epoch: int) -> None:
        images, labels, pixels = self._batch
        found = diagnose(self._network, images, labels, lambda out: self._loss(out, labels, pixels))
        with keeping_run(self._path), self._path.open("ab") as file:
            file.writelines(encoded({"kind": "block", "epoch": epoch, **asdict(block)}) for block in found)


def read_diagnostics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's diagnostics.jsonl, without one that was cut off; none if there is no such file."""
    path = folder / DIAGNOSTICS
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [found for line in lines if (found := parsed(line))]
