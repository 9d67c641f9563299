"""Files that are drawn from a report's records and written into its folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from capsbench.durable import write_csv
from capsbench.figures.accuracy import accuracy_figure
from capsbench.figures.depth import PAGE_WIDTH, figure3, figure4, save
from capsbench.figures.panels import Per
from capsbench.paths import expanded
from capsbench.stats.slopes import slopes
from capsbench.terminal.table4 import table4
from capsbench.words.accuracy import accuracy_markdown
from capsbench.words.labels import on_gpu


def write_report(
    frame: pd.DataFrame,
    folder: Path,
    *,
    memory: Sequence[str] | None = None,
    per: Per = "step",
    with_paper: bool = False,
    only: Sequence[str] = ("figure3", "figure4"),
) -> list[Path]:
    """Write slopes.csv and the figures of one report (svg and png; pdf at a printed page's width), and return their paths.

    Args:
        frame: records of the report, from `capsbench.load`.
        folder: folder to write into.
        memory: memory figures to draw; by default `retained` in figure 3, `retained` and `peak` in figure 4.
        per: seconds per `step` or `epoch`.
        with_paper: draw the paper's table 4 where comparable.
        only: figures to draw.

    Raises:
        OSError: a file cannot be written.
    """
    folder = expanded(folder)
    paths = [write_csv(slopes(frame), folder / "slopes.csv")]
    for name, draw, usual in (("figure3", figure3, ("retained",)), ("figure4", figure4, ("retained", "peak"))):
        if name in only:
            for kinds, width in ((("svg", "png"), None), (("pdf",), PAGE_WIDTH)):
                axes = draw(frame, memory=memory or usual, per=per, with_paper=with_paper, width=width)
                paths += save(axes[0][0].figure, folder, name, kinds)
    return paths


@dataclass(frozen=True)
class PaperReport:
    """The form of a figure or table of the paper when it is drawn from one's own records."""

    memory: tuple[str, ...]
    """Memory drawn on a GPU, where the paper's values can stand beside it."""
    memory_on_cpu: tuple[str, ...]
    """Memory drawn on a CPU, whose resident set cannot be compared with the paper's."""
    figure: str
    """Name of the figure."""


PAPER_REPORTS = {
    "figure3": PaperReport(("process",), ("retained",), "figure3"),
    "figure4": PaperReport(("retained", "reserved", "process"), ("retained", "peak"), "figure4"),
    "table4": PaperReport(("retained", "peak", "reserved", "process"), ("retained", "peak"), "figure3"),
}
"""Forms by the names that `capsbench reproduce` takes."""


def write_paper_report(name: str, frame: pd.DataFrame, folder: Path) -> list[Path]:
    """Write the paper's figure or table of this name, its values beside one's own, and slopes.csv.

    Args:
        name: a key of `PAPER_REPORTS`.
        frame: records of the report, from `capsbench.load`.
        folder: folder to write into.

    Raises:
        OSError: a file cannot be written.
    """
    report = PAPER_REPORTS[name]
    memory = report.memory if on_gpu(frame).any() else report.memory_on_cpu
    paths = write_report(frame, folder, memory=memory, with_paper=True, only=[report.figure])
    return [*paths, write_csv(table4(frame), expanded(folder) / "table4.csv")] if name == "table4" else paths


def write_accuracy(rows: pd.DataFrame, folder: Path, name: str, title: str) -> list[Path]:
    """Write CSV, Markdown and the figure, and return their paths.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    csv, markdown = folder / f"{name}.csv", folder / f"{name}.md"
    write_csv(rows, csv)
    markdown.write_text(accuracy_markdown(rows, title), encoding="utf-8")
    return [csv, markdown, *save(accuracy_figure(rows, title), folder, name)]
