"""Accuracies and the paper's, as a figure."""

import math
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from capsbench.colours import COLOURS
from capsbench.figures.depth import save
from capsbench.figures.styles import MODEL_STYLES, STYLE
from capsbench.stats.seeds import KEY
from capsbench.system.durable import write_csv
from capsbench.words.accuracy import NUMBERED, SETTING_TITLES, accuracy_markdown, length_text, setting_text, system_text
from capsbench.words.labels import dataset_title, model_title


def write_accuracy(rows: pd.DataFrame, folder: Path, name: str, title: str) -> list[Path]:
    """Write CSV, Markdown and the figure of a table, and return their paths.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    csv, markdown = folder / f"{name}.csv", folder / f"{name}.md"
    write_csv(rows, csv)
    markdown.write_text(accuracy_markdown(rows, title), encoding="utf-8")
    return [csv, markdown, *save(accuracy_figure(rows, title), folder, name)]


def accuracy_figure(rows: pd.DataFrame, title: str) -> Figure:
    """Accuracy of every row, with the paper's in a pale colour: over blocks if these vary, else row by row."""
    datasets = list(dict.fromkeys(rows["dataset"]))
    parts = [rows[rows["dataset"] == dataset] for dataset in datasets]
    over_blocks = all(it["blocks"].nunique() > 1 and not it.duplicated(["model", "blocks"]).any() for it in parts)
    with mpl.rc_context(STYLE):
        height = 3.2 if over_blocks else 0.9 + 0.27 * len(rows)
        figure = Figure(figsize=(4.6 * len(datasets), height), layout="constrained")
        axes = figure.subplots(1, len(datasets), squeeze=False)[0]
        for ax, dataset, part in zip(axes, datasets, parts, strict=True):
            (_draw_over_blocks if over_blocks else _draw_rows)(ax, part)
            ax.set_title(dataset_title(dataset), loc="left", fontsize=9.5)
        lengths = sorted({length_text(*found) for found in zip(rows["scale"], rows["epochs"], rows["paper_epochs"], strict=True)})
        note = "" if lengths == ["as the paper"] else f" ({'; '.join(lengths)})"
        figure.suptitle(f"{title}{note}", fontsize=10, x=0.01, ha="left")
    return figure


def _draw_over_blocks(ax: Axes, rows: pd.DataFrame) -> None:
    middle = (rows["model"].nunique() - 1) / 2
    for index, (model, line) in enumerate(rows.groupby("model", sort=False)):
        # Error bars of several models stand next to each other.
        colour, at = _colour(str(model)), line["blocks"] + 0.08 * (index - middle)
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
    varied = [name for name in KEY if name in SETTING_TITLES and rows[name].nunique() > 1]
    labels = []
    for place, row in enumerate(rows.to_dict("records")):
        settings = [
            f"{setting_text(row, name)} {SETTING_TITLES[name]}" if name in NUMBERED else setting_text(row, name)
            for name in varied
        ]
        labels.append(", ".join([system_text(row), *(one for one in settings if not one.startswith("-"))]))
        colour = _colour(str(row["model"]))
        ax.errorbar(row["paper_percent"], place, xerr=_error(row["paper_std_percent"]), color=colour, alpha=0.4, fmt="s", ms=5)
        ax.errorbar(row["accuracy_percent"], place, xerr=_error(row["std_percent"]), color=colour, fmt="o", ms=5, capsize=2)
    ax.set_yticks(range(len(rows)), labels, fontsize=7.5)
    ax.invert_yaxis()
    ax.set_xlabel("test accuracy, %: round here, square and pale in the paper")


def _colour(model: str) -> str:
    return MODEL_STYLES[model][0] if model in MODEL_STYLES else COLOURS[3]


def _error(std: float) -> float | None:
    return None if math.isnan(std) else std
