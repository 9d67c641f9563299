"""The runs of an accuracy table of the paper: the remaining ones are trained one after the other."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from capsbench.data.datasets import load_parts
from capsbench.data.feed import Feed
from capsbench.errors import TrainingError
from capsbench.models import Ensemble
from capsbench.paper.accuracy_tables import PrintedRow
from capsbench.system.durable import replacing
from capsbench.tf32 import without_tf32
from capsbench.training.checkpoint import load_network
from capsbench.training.loop import BEST, CHECKPOINT
from capsbench.training.result import Result
from capsbench.training.settings import TrainingSettings, differences
from capsbench.training.trainer import MAY_DIFFER, read_result

Configure = Callable[[PrintedRow, int], TrainingSettings]
"""A function from a row and a seed to the settings of the row's network."""

Train = Callable[[TrainingSettings, Path, bool], Result]
"""A function that trains into a folder; the last argument is True to resume there."""

_BATCH = 128


@dataclass(frozen=True)
class Member:
    """One network of a table."""

    row: PrintedRow
    seed: int
    settings: TrainingSettings
    folder: Path

    def result(self) -> Result | None:
        """The member's result; None if it is not done."""
        found = read_result(self.folder)
        return found if found is not None and differences(self.settings, found.settings).keys() <= MAY_DIFFER else None


@dataclass(frozen=True)
class Trial:
    """One row with one seed: a network, or several that decide together."""

    row: PrintedRow
    seed: int
    members: tuple[Member, ...]


def trials_of(rows: Sequence[PrintedRow], seeds: int, configure: Configure, folder: Path) -> list[Trial]:
    """All trials of a table, seed by seed, so that a table that is cut off has all of its rows.

    Args:
        rows: rows of the table.
        seeds: number of seeds for each row; ensembles share no network with each other, but do with other rows.
        configure: function that makes the settings of a row's network.
        folder: folder of the runs.
    """

    def member(row: PrintedRow, seed: int) -> Member:
        settings = configure(row, seed)
        return Member(row, seed, settings, folder / _name(settings))

    return [
        Trial(row, seed, tuple(member(row, seed * row.networks + place) for place in range(row.networks)))
        for seed in range(seeds)
        for row in rows
    ]


def networks_of(trials: Sequence[Trial]) -> list[Member]:
    """Every network once."""
    return list({member.folder: member for trial in trials for member in trial.members}.values())


def run_members(members: Sequence[Member], train: Train) -> Iterator[tuple[Member, Result | TrainingError]]:
    """Train every network that is not done, each in its folder, and resume those that were cut off.

    A run that ends in a `TrainingError` yields that error, and the others continue.
    """
    for member in members:
        found = member.result()
        if found is None:
            try:
                found = train(member.settings, member.folder, (member.folder / CHECKPOINT).exists())
            except TrainingError as error:
                yield member, error
                continue
        yield member, found


def accuracy_of(trial: Trial, data_directory: Path | None = None) -> float | None:
    """The test accuracy of a trial, 0 to 1; None while a network of it is not done. An ensemble runs on its networks' device."""
    results = [member.result() for member in trial.members]
    if any(one is None for one in results):
        return None
    if len(results) == 1:
        return results[0].test_accuracy if results[0] else None
    return _known_together(trial, [one.test_loss for one in results if one], data_directory)


def line_of(trial: Trial, accuracy: float | None, paper_epochs: int) -> dict[str, Any]:
    """A row for `capsbench.stats.seeds.compared_with_paper`."""
    row, settings = trial.row, trial.members[0].settings
    return {
        **{name: getattr(row, name) for name in ("dataset", "model", "networks", "blocks", "optimizer", "routing")},
        **{name: getattr(row, name) for name in ("learning_rate", "capsules", "batch_size")},
        "scale": settings.scale,
        "epochs": settings.epochs,
        "paper_epochs": paper_epochs,
        "seed": trial.seed,
        "accuracy_percent": float("nan") if accuracy is None else 100 * accuracy,
        "paper_percent": row.accuracy_percent,
        "paper_std_percent": float("nan") if row.std_percent is None else row.std_percent,
    }


def _known_together(trial: Trial, losses: list[float], data_directory: Path | None) -> float:
    """The accuracy of several networks as one, computed once and kept beside their folders, and again if one of them changes."""
    first = trial.members[0].folder
    path = first.with_name(f"{first.name}-and-{len(trial.members) - 1}-more.json")
    networks = [[member.folder.name, loss] for member, loss in zip(trial.members, losses, strict=True)]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(path.read_bytes())
        if known["networks"] == networks:
            return float(known["test_accuracy"])
    accuracy = _together(trial, data_directory)
    # A failure to write loses nothing, since the value can be computed again.
    with contextlib.suppress(OSError), replacing(path) as file:
        file.write(json.dumps({"networks": networks, "test_accuracy": accuracy}, indent=1).encode() + b"\n")
    return accuracy


def _together(trial: Trial, data_directory: Path | None) -> float:
    """Evaluate the test set once more, with several networks as one."""
    settings = trial.members[0].settings
    device = settings.network.device
    loaded = [load_network(member.folder / BEST, device) for member in trial.members]
    test = load_parts(settings.network.dataset, data_directory).test
    ensemble = Ensemble(network for network, _ in loaded).eval()
    feed = Feed(test, torch.device(device), _BATCH, settings.preprocess)
    with torch.inference_mode(), without_tf32():
        right = [(ensemble(batch.images).lengths.argmax(1) == batch.labels).sum() for batch in feed.evaluation()]
    return float(torch.stack(right).sum()) / len(test.images)


def _name(settings: TrainingSettings) -> str:
    """Name of a run's folder, which distinguishes the networks of one table."""
    it = settings.network
    numbers = f"lr{settings.learning_rate:g}-c{it.capsules or 32}-b{it.batch_size}"
    return f"{it.dataset}-{it.model}-{it.blocks}-{settings.optimizer}-{it.routing}-{numbers}-seed{settings.seed}"
