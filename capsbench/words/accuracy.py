"""Accuracy tables compared with the paper's, as text: their cells, and Markdown."""

import math
from typing import Any

import pandas as pd

from capsbench.stats.seeds import KEY
from capsbench.words.labels import dataset_title, model_title

_HEADS = ("runs", "here", "paper", "difference", "within both", "trained on")
NUMBERED = ("blocks", "learning_rate", "capsules", "batch_size")
"""Settings that are printed as a number and the noun that it counts."""
SETTING_TITLES = {
    "blocks": "blocks",
    "optimizer": "optimizer",
    "routing": "routing",
    "learning_rate": "rate",
    "capsules": "capsules",
}
SETTING_TITLES |= {"batch_size": "batch"}

NOTE = "± is one standard deviation over seeds; within both: the difference is no larger than either deviation"


def accuracy_markdown(rows: pd.DataFrame, title: str) -> str:
    """Rows of `stats.seeds.compared_with_paper` as Markdown."""
    heads, lines = accuracy_cells(rows)
    table = [heads, ["---"] * len(heads), *lines]
    return "\n".join([f"# {title}", "", *(f"| {' | '.join(line)} |" for line in table), "", NOTE, ""])


def accuracy_cells(rows: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Column heads and rows; columns that are constant are left out, except data set, model and blocks."""
    varied = [name for name in KEY if name in SETTING_TITLES and (name == "blocks" or rows[name].nunique() > 1)]
    heads = ["data set", "model", *(SETTING_TITLES[name] for name in varied), *_HEADS]
    lines = []
    for row in rows.to_dict("records"):
        line = [dataset_title(row["dataset"]), system_text(row), *(setting_text(row, name) for name in varied)]
        line += [str(row["runs"]), _spread(row["accuracy_percent"], row["std_percent"])]
        line += [_spread(row["paper_percent"], row["paper_std_percent"])]
        line += ["-" if math.isnan(row["difference"]) else f"{row['difference']:+.2f}"]
        line += [{True: "yes", False: "no"}.get(row["within"], "-")]
        lines.append([*line, length_text(row["scale"], row["epochs"], row["paper_epochs"])])
    return heads, lines


def length_text(scale: float, epochs: int, paper_epochs: int) -> str:
    """Text `as the paper`, or the shares of data and epochs that were used."""
    if scale == 1 and epochs == paper_epochs:
        return "as the paper"
    data = "all data" if scale == 1 else f"{100 * scale:.3g} % of data"
    return f"{data}, {epochs} of {paper_epochs} epochs"


def system_text(row: dict[Any, Any]) -> str:
    """Name of a row's network, and the number of networks that decide together."""
    several = f", {row['networks']} as one" if row["networks"] > 1 else ""
    return model_title(row["model"]) + several


def setting_text(row: dict[Any, Any], name: str) -> str:
    """Return a setting of a row as it is printed."""
    value = row[name]
    if name == "blocks" and value == 0:
        return "-"
    return f"{value:g}" if name in NUMBERED else str(value)


def _spread(mean: float, std: float) -> str:
    if math.isnan(mean):
        return "-"
    return f"{mean:.2f}" if math.isnan(std) else f"{mean:.2f} ± {std:.2f}"
