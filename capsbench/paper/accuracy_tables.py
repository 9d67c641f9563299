"""The paper's accuracy tables, row by row: the trained networks and their accuracies."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from capsbench import paper
from capsbench.errors import ConfigurationError

_FILES = {
    "table1": "table1_accuracy",
    "table2": "table2_accuracy",
    "table3": "table3_cifar10_accuracy",
    "table5": "table5_cifar10_hyperparameters",
}
ACCURACY_TABLES = tuple(_FILES)
"""Names of the tables that training reproduces."""

EPOCHS = {"table1": 30, "table2": 60, "table3": 60, "table5": 100}
"""Numbers of epochs: the paper trains 30 or 60, and 100 for table 5; giving CIFAR the longer ones is this package's reading."""

_ENSEMBLE = "-4ensemble"
# Xi et al. 2017 have no hidden capsule layers: their networks are Sabour's.
_MODELS = {"capsnet-2conv": "capsnet-2conv", "capsnet": "capsnet-1conv"}
_TABLE5 = {"dataset": "cifar10", "blocks": 2, "optimizer": "ranger21"}


@dataclass(frozen=True)
class PrintedRow:
    """One row of one table."""

    dataset: str
    model: str
    """Name of the network for `capsbench train`."""
    blocks: int
    """Depth; 0 if the network has no blocks."""
    optimizer: str
    routing: str
    learning_rate: float
    capsules: int
    batch_size: int
    networks: int
    """Number of networks that decide together: 1, or that of an ensemble."""
    accuracy_percent: float
    std_percent: float | None
    """Standard deviation; None if the paper prints none."""


def accuracy_table(name: str) -> list[PrintedRow]:
    """The rows of one of `ACCURACY_TABLES`, as printed.

    Raises:
        ConfigurationError: there is no such table.
    """
    if name not in _FILES:
        raise ConfigurationError(f"'{name}' is not an accuracy table", f"choose one of {', '.join(ACCURACY_TABLES)}")
    usual = {"dataset": "cifar10", "optimizer": "adam", "routing": "rba"} | (_TABLE5 if name == "table5" else {})
    return [_row({**usual, **row}) for row in paper.table(_FILES[name]).to_dict("records")]


def _row(printed: dict[Any, Any]) -> PrintedRow:
    known = {key: value for key, value in printed.items() if pd.notna(value)}
    model = known["model"].removesuffix(_ENSEMBLE)
    without_blocks = "blocks" not in known
    return PrintedRow(
        dataset=known["dataset"],
        model=_MODELS[model] if without_blocks else model,
        blocks=int(known.get("blocks", 0)),
        optimizer=known["optimizer"],
        routing=known["routing"],
        learning_rate=float(known.get("learning_rate", 1e-3)),
        capsules=int(known.get("capsules", 32)),
        batch_size=int(known.get("batch_size", 128)),
        networks=4 if known["model"].endswith(_ENSEMBLE) else 1,
        accuracy_percent=float(known["accuracy_percent"]),
        std_percent=float(known["std_percent"]) if "std_percent" in known else None,
    )
