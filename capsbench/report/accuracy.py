"""Accuracy tables beside the paper's: for a terminal, as Markdown and CSV, and as a figure."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from capsbench.analysis.accuracy import KEY
from capsbench.report.figures import save
from capsbench.report.labels import dataset_title, model_title
from capsbench.report.styles import COLOURS, MODEL_STYLES, STYLE
from capsbench.report.tables import write_csv

_HEADS = ("runs", "here", "paper", "difference", "within both", "trained on")
_NUMBERED = ("blocks", "learning_rate", "capsules", "batch_size")
_TITLES = {"blocks": "blocks", "optimizer": "optimizer", "routing": "routing", "learning_rate": "rate", "capsules": "capsules"}
_TITLES |= {"batch_size": "batch"}

NOTE = "± is one standard deviation over seeds; within both: the difference is no larger than either deviation"


def accuracy_rich(rows: pd.DataFrame, title: str) -> Table:
    """The rows of `analysis.accuracy.beside_paper` for a terminal."""
    out = Table(title=title, title_justify="left", title_style="bold", box=None)
    heads, lines = _cells(rows)
    for head in heads:
        out.add_column(head, justify="left" if head in ("data set", "model", "optimizer", "routing") else "right", no_wrap=True)
    for line in lines:
        out.add_row(*line)
    return out


def accuracy_markdown(rows: pd.DataFrame, title: str) -> str:
    """The same as Markdown."""
    heads, lines = _cells(rows)
    table = [heads, ["---"] * len(heads), *lines]
    return "\n".join([f"# {title}", "", *(f"| {' | '.join(line)} |" for line in table), "", NOTE, ""])


def accuracy_figure(rows: pd.DataFrame, title: str) -> Figure:
    """Accuracy of every row, the paper's pale beside one's own: over blocks where these vary, else row by row."""
    datasets = list(dict.fromkeys(rows["dataset"]))
    over_blocks = all(_over_blocks(rows[rows["dataset"] == dataset]) for dataset in datasets)
    with mpl.rc_context(STYLE):
        height = 3.2 if over_blocks else 0.9 + 0.27 * len(rows)
        figure = Figure(figsize=(4.6 * len(datasets), height), layout="constrained")
        axes = figure.subplots(1, len(datasets), squeeze=False)[0]
        for ax, dataset in zip(axes, datasets, strict=True):
            part = rows[rows["dataset"] == dataset]
            (_draw_over_blocks if over_blocks else _draw_rows)(ax, part)
            ax.set_title(dataset_title(dataset), loc="left", fontsize=9.5)
        figure.suptitle(f"{title}{_length_note(rows)}", fontsize=10, x=0.01, ha="left")
    return figure


def write_accuracy(rows: pd.DataFrame, folder: Path, name: str, title: str) -> list[Path]:
    """Writes CSV, Markdown and the figure; returns their paths.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    csv, markdown = folder / f"{name}.csv", folder / f"{name}.md"
    write_csv(rows, csv)
    markdown.write_text(accuracy_markdown(rows, title), encoding="utf-8")
    return [csv, markdown, *save(accuracy_figure(rows, title), folder, name)]


def _cells(rows: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Heads and lines; what is the same in all rows is left out, but for data set, model and blocks."""
    told = [name for name in KEY if name in _TITLES and (name == "blocks" or rows[name].nunique() > 1)]
    heads = ["data set", "model", *(_TITLES[name] for name in told), *_HEADS]
    lines = []
    for row in rows.to_dict("records"):
        line = [dataset_title(row["dataset"]), _system(row), *(_setting(row, name) for name in told)]
        within = {True: "yes", False: "no"}.get(row["within"], "-")
        line += [str(row["runs"]), _spread(row["accuracy_percent"], row["std_percent"])]
        line += [
            _spread(row["paper_percent"], row["paper_std_percent"]),
            _signed(row["difference"]),
            within,
            length_text(row["scale"], row["epochs"], row["paper_epochs"]),
        ]
        lines.append(line)
    return heads, lines


def length_text(scale: float, epochs: int, paper_epochs: int) -> str:
    """`as the paper`, or how much of data and epochs."""
    if scale == 1 and epochs == paper_epochs:
        return "as the paper"
    data = "all data" if scale == 1 else f"{100 * scale:.3g} % of data"
    return f"{data}, {epochs} of {paper_epochs} epochs"


def _length_note(rows: pd.DataFrame) -> str:
    lengths = sorted({length_text(*found) for found in zip(rows["scale"], rows["epochs"], rows["paper_epochs"], strict=True)})
    return "" if lengths == ["as the paper"] else f" ({'; '.join(lengths)})"


def _system(row: dict[Any, Any]) -> str:
    several = f", {row['networks']} as one" if row["networks"] > 1 else ""
    return model_title(row["model"]) + several


def _setting(row: dict[Any, Any], name: str) -> str:
    value = row[name]
    if name == "blocks" and value == 0:
        return "-"
    return f"{value:g}" if name in _NUMBERED else str(value)


def _spread(mean: float, std: float) -> str:
    if math.isnan(mean):
        return "-"
    return f"{mean:.2f}" if math.isnan(std) else f"{mean:.2f} ± {std:.2f}"


def _signed(difference: float) -> str:
    return "-" if math.isnan(difference) else f"{difference:+.2f}"


def _over_blocks(rows: pd.DataFrame) -> bool:
    return rows["blocks"].nunique() > 1 and not rows.duplicated(["model", "blocks"]).any()


def _draw_over_blocks(ax: Axes, rows: pd.DataFrame) -> None:
    for offset, (model, line) in zip(_offsets(rows["model"].nunique()), rows.groupby("model", sort=False), strict=True):
        colour, at = _colour(str(model)), line["blocks"] + offset
        label = model_title(str(model))
        ax.errorbar(
            at, line["paper_percent"], line["paper_std_percent"].fillna(0), color=colour, alpha=0.35, fmt="s--", ms=4, lw=1,
            label=f"{label}, paper",
        )  # fmt: skip
        ax.errorbar(
            at, line["accuracy_percent"], line["std_percent"].fillna(0), color=colour, fmt="o-", ms=4.5, lw=1.4, capsize=2,
            label=label,
        )  # fmt: skip
    ax.set_xlabel("blocks")
    ax.set_ylabel("test accuracy, %")
    ax.set_xticks(sorted(set(rows["blocks"])))
    ax.legend(fontsize=7.5)


def _draw_rows(ax: Axes, rows: pd.DataFrame) -> None:
    labels = list(_row_labels(rows))
    places = range(len(rows))
    for place, (_, row) in zip(places, rows.iterrows(), strict=True):
        colour = _colour(str(row["model"]))
        ax.errorbar(row["paper_percent"], place, xerr=_error(row["paper_std_percent"]), color=colour, alpha=0.4, fmt="s", ms=5)
        ax.errorbar(row["accuracy_percent"], place, xerr=_error(row["std_percent"]), color=colour, fmt="o", ms=5, capsize=2)
    ax.set_yticks(list(places), labels, fontsize=7.5)
    ax.invert_yaxis()
    ax.set_xlabel("test accuracy, %: round here, square and pale in the paper")


def _row_labels(rows: pd.DataFrame) -> Iterator[str]:
    told = [name for name in KEY if name in _TITLES and rows[name].nunique() > 1]
    for row in rows.to_dict("records"):
        settings = [f"{_setting(row, name)} {_TITLES[name]}" if name in _NUMBERED else _setting(row, name) for name in told]
        yield ", ".join([_system(row), *(one for one in settings if not one.startswith("-"))])


def _colour(model: str) -> str:
    return MODEL_STYLES[model][0] if model in MODEL_STYLES else COLOURS[3]


def _offsets(count: int) -> list[float]:
    """Error bars of several models beside each other."""
    return [0.08 * (place - (count - 1) / 2) for place in range(count)]


def _error(std: float) -> float | None:
    return None if math.isnan(std) else std
