"""The paper's memory and time experiments, by their names in the paper."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from capsbench.catalog import STACKED
from capsbench.records import BOTH, Cell, Pass
from capsbench.sweep.asked import Sweep
from capsbench.sweep.plan import expand


@dataclass(frozen=True)
class Experiment:
    """One figure or table of *Momentum Capsule Networks*."""

    datasets: tuple[str, ...]
    """Data sets that it shows."""
    passes: tuple[Pass, ...]
    """Passes that have to be measured for it."""


_ALL = ("mnist", "svhn", "cifar10")
EXPERIMENTS = {
    "figure3": Experiment(_ALL, BOTH),
    "figure4": Experiment(("cifar10",), BOTH),
    "table4": Experiment(_ALL, ("memory",)),
}
"""Experiments by name: figure 3 (memory, training and inference time), figure 4 (slopes), table 4 (memory)."""


def cells_of(
    experiment: Experiment, *, depths: Sequence[int], datasets: tuple[str, ...] | None = None, **machine: Any
) -> list[Cell]:
    """The cells of an experiment: as published (kernel, rule and front), and the fast ones with the paper's rule for comparison.

    Args:
        experiment: one of `EXPERIMENTS`.
        depths: depths in blocks.
        datasets: data sets in place of the experiment's own.
        machine: further arguments of `Sweep`: device, batch_size, threads, capacity, repeats.

    Raises:
        ConfigurationError: a value is out of range.
    """
    cells = []
    for kernel, rule, front in (("published", "published", "plain"), ("auto", "paper", "auto")):
        what: dict[str, Any] = {"dataset": datasets or experiment.datasets, "kernel": kernel, "rule": rule, "front": front}
        cells += expand(Sweep(tuple(STACKED), depths, **what, **machine))
    return sorted(cells, key=lambda cell: (cell.replicate, cell.configuration.blocks))
