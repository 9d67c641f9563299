"""The files that are drawn from a report: slopes.csv and the figures, in the form that its plan asks for."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from capsbench.figures.depth import PAGE_WIDTH, as_svg, save
from capsbench.system.durable import write_csv
from capsbench.terminal.table4 import table4
from capsbench.words.along import over_text
from capsbench.words.labels import on_gpu

if TYPE_CHECKING:
    from capsbench.figures.panels import Per
    from capsbench.report import Report

SLOPES = "slopes.csv"


@dataclass(frozen=True)
class Drawing:
    """The form in which the figures of a report are drawn."""

    figures: tuple[str, ...] = ("figure3", "figure4")
    memory: tuple[str, ...] | None = None
    """Memory drawn on a GPU; None: `retained` in figure 3, `retained` and `peak` in figure 4."""
    memory_on_cpu: tuple[str, ...] | None = None
    """Memory drawn on a CPU, whose resident set cannot be compared with the paper's values."""
    with_paper: bool = False
    """True to draw the paper's table 4 if it is comparable."""


USUAL = Drawing()

AS_IN_PAPER = {
    "figure3": Drawing(("figure3",), ("process",), ("retained",), with_paper=True),
    "figure4": Drawing(("figure4",), ("retained", "reserved", "process"), ("retained", "peak"), with_paper=True),
    "table4": Drawing(("figure3",), ("retained", "peak", "reserved", "process"), ("retained", "peak"), with_paper=True),
}
"""Drawings by the names that `capsbench reproduce` takes."""


def draw_report(
    report: "Report", folder: Path, *, memory: Sequence[str] | None, per: "Per", with_paper: bool, only: Sequence[str] | None,
    along: str | None = None,
) -> list[Path]:  # fmt: skip
    """Write slopes.csv and the figures of a report, and return their paths; the arguments are those of `Report.draw`.

    A figure over a further axis of the report has the axis in its name: `figure4-batch-size.svg`.

    Raises:
        OSError: a file cannot be written.
    """
    asked = bool(memory or with_paper or per != "step" or only)
    experiment = None if asked or report.plan is None else report.plan.experiment
    how = USUAL if experiment is None else AS_IN_PAPER[experiment]
    shown = memory or (how.memory if on_gpu(report.frame).any() else how.memory_on_cpu)
    paths = [write_csv(report.slopes, folder / SLOPES)]
    axes = (along,) if along else report.axes
    for axis, (name, draw) in product(axes, (("figure3", report.figure3), ("figure4", report.figure4))):
        if name in (only or how.figures):
            file = name if axis == axes[0] else f"{name}-{axis.replace('_', '-')}"
            for kinds, width in ((("svg", "png"), None), (("pdf",), PAGE_WIDTH)):
                figure = draw(memory=shown, per=per, with_paper=with_paper or how.with_paper, width=width, along=axis)
                paths += save(figure, folder, file, kinds)
    return [*paths, write_csv(table4(report.frame), folder / "table4.csv")] if experiment == "table4" else paths


def report_html(report: "Report") -> str:
    """Return the slopes of a report as a table, and figure 4, as a notebook shows them."""
    picture = base64.b64encode(as_svg(report.figure4())).decode()
    title = f"<p>{escape(report.name)}: {len(report.records)} records</p>"
    image = f"<img src='data:image/svg+xml;base64,{picture}' alt='memory and time {over_text(report.axes[0])}'>"
    return f"{title}{report.slopes._repr_html_()}{image}"
