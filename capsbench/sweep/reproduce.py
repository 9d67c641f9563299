"""The paper's memory and time experiments, by the names they have there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from capsbench.options import STACKED
from capsbench.records import BOTH, Cell, Pass
from capsbench.sweep.plan import Sweep, expand


@dataclass(frozen=True)
class Experiment:
    """One figure or table of *Momentum Capsule Networks*."""

    datasets: tuple[str, ...]
    """Data sets that it shows."""
    passes: tuple[Pass, ...]
    """What has to be measured for it."""


_ALL = ("mnist", "svhn", "cifar10")
EXPERIMENTS = {
    "figure3": Experiment(_ALL, BOTH),
    "figure4": Experiment(("cifar10",), BOTH),
    "table4": Experiment(_ALL, ("memory",)),
}
"""Figure 3: memory, training and inference time. Figure 4: slopes. Table 4: memory."""


def cells_of(
    experiment: Experiment, *, depths: Sequence[int], datasets: tuple[str, ...] | None = None, **machine: Any
) -> list[Cell]:
    """The cells of an experiment: as published (kernel, rule and front), and beside them the fast ones with the paper's rule.

    Args:
        experiment: one of `EXPERIMENTS`.
        depths: blocks.
        datasets: instead of the experiment's own.
        machine: further arguments of `Sweep`: device, batch_size, threads, capacity, repeats.

    Raises:
        ConfigurationError: a value is out of range.
    """
    cells = []
    for kernel, rule, front in (("published", "published", "plain"), ("auto", "paper", "auto")):
        what: dict[str, Any] = {"dataset": datasets or experiment.datasets, "kernel": kernel, "rule": rule, "front": front}
        cells += expand(Sweep(tuple(STACKED), depths, **what, **machine))
    return sorted(cells, key=lambda cell: (cell.replicate, cell.configuration.blocks))
