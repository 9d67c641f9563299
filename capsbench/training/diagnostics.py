"""How the blocks of a network fare while it is trained: diagnostics.jsonl, a line for each block and epoch."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from capsbench.data.feed import Feed
from capsbench.data.preprocess import prepare
from capsbench.durable import replacing
from capsbench.models import CapsuleLoss
from capsbench.training.bundles import checked_network, diagnose
from capsbench.training.log import TrainingStep, encoded, keeping_run, parsed
from capsbench.training.result import EpochFigures

DIAGNOSTICS = "diagnostics.jsonl"
IMAGES = 128
"""Of the training set, the same each time: as many as there are in a batch of the paper."""


class DiagnosticsLog:
    """Diagnoses a network before training and after each epoch, on the same images, in full precision.

    It draws nothing at random and leaves the network as it is: the loss curve is the same with it and without.

    Args:
        folder: of the run.
        network: what is trained.
        feed: what it is trained on.
        reconstruction_weight: of the loss.
        epochs: that are done, of a run that goes on; lines of later ones are done again, and left out.
        step: steps that are done of the epoch after them. With none the network is as the last epoch left it, and is looked
            into again: the run may have ended between the epoch's checkpoint and its lines.

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
        """Blocks are looked into once an epoch."""

    def finished(self, figures: EpochFigures) -> None:
        """A line for each block."""
        self._write(figures.epoch)

    def told(self, text: str) -> None:
        """Not a diagnosis."""

    def _write(self, epoch: int) -> None:
        images, labels, pixels = self._batch
        found = diagnose(self._network, images, labels, lambda out: self._loss(out, labels, pixels))
        with keeping_run(self._path), self._path.open("ab") as file:
            file.writelines(encoded({"kind": "block", "epoch": epoch, **asdict(block)}) for block in found)


def read_diagnostics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's diagnostics.jsonl, none where there is no such file; one that was cut off is left out."""
    path = folder / DIAGNOSTICS
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [found for line in lines if (found := parsed(line))]
