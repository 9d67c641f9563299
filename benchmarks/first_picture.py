"""The first picture of the README: the memory and the time of a block, as published and here, from the committed reports.

    python -m benchmarks.first_picture            writes the pictures into runs/
    python -m benchmarks.first_picture --write    writes them into docs/images/

Left, the bytes that the blocks keep for backward: retained memory without its value at 0 blocks, on a logarithmic axis with the
level 0 below a break. Right, the time that a block adds to a training step, with its 95 % interval.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

import capsbench
from capsbench.colours import COLOURS, DARK_COLOURS
from capsbench.figures.styles import MODEL_STYLES, STYLE
from capsbench.words.labels import model_title
from capsbench.words.slopes_in_words import row_slope
from capsbench.words.units import bytes_text

ROOT = Path(__file__).parent.parent
PUBLISHED, HERE = "published-cpu", "example-cpu"
FOLDER, NAME = ROOT / "docs" / "images", "cost-of-depth"
SIZE = (8.38, 3.9)
"""Inches; at 100 pixels an inch as wide as the README."""
DEEPEST = 8
_TICKS = [2.0**power for power in range(18, 31, 2)]


@dataclass(frozen=True)
class Theme:
    """Colours of a picture."""

    suffix: str
    paper: str
    ink: str
    soft: str
    grid: str
    colours: tuple[str, ...]

    def colour_of(self, model: str) -> str:
        """The colour of a network."""
        return self.colours[COLOURS.index(MODEL_STYLES[model][0])]


LIGHT = Theme("", "#ffffff", "#1f2328", "#59636e", "#e6e8eb", COLOURS)
DARK = Theme("-dark", "#0d1117", "#f0f6fc", "#9198a1", "#262c36", DARK_COLOURS)


@dataclass(frozen=True)
class Line:
    """A network, as published or as here."""

    model: str
    published: bool
    memory: dict[str, Any]
    """Row of its slope of retained memory."""
    time: dict[str, Any] | None
    """Row of its slope of training time; None if it was not timed."""
    kept: pd.Series
    """Bytes that its blocks keep, by depth."""

    @property
    def title(self) -> str:
        """Name of the network and of its origin."""
        return f"{model_title(self.model)}{', published' if self.published else ''}"


def lines_of(report: capsbench.Report, *, published: bool) -> list[Line]:
    """The lines of a report that has one for each network."""
    frame, found = report.frame, []
    for model, rows in report.slopes.groupby("model", sort=False):
        by_metric = {row["metric"]: row for row in rows.to_dict("records")}
        memory = by_metric["retained"]
        cells = frame[(frame["model"] == model) & (frame["status"] == "ok")]
        kept = cells.groupby("blocks")["retained_bytes"].mean().astype(float) - memory["intercept"]
        found.append(Line(str(model), published, memory, by_metric.get("train"), kept.round()))
    return found


def picture(lines: list[Line], theme: Theme) -> Figure:
    """Draw the picture."""
    soft = dict.fromkeys(("axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), theme.soft)
    paper = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), theme.paper)
    with mpl.rc_context(STYLE | soft | paper | {"text.color": theme.ink, "grid.color": theme.grid}):
        figure = Figure(figsize=SIZE)
        memory = figure.add_axes((0.085, 0.31, 0.345, 0.57))
        zero = figure.add_axes((0.085, 0.18, 0.345, 0.09))
        times = figure.add_axes((0.665, 0.18, 0.32, 0.7))
        _draw_memory(memory, zero, lines, theme)
        _draw_times(times, [line for line in lines if line.time is not None], theme)
        for ax, text in ((memory, "What the blocks keep for backward"), (times, "What a block adds to a step")):
            ax.set_title(text, loc="left", fontsize=10.5, fontweight="bold", color=theme.ink)
        figure.text(0.085, 0.02, _conditions(lines), fontsize=7.5, color=theme.soft)
    return figure


def _draw_memory(memory: Axes, zero: Axes, lines: list[Line], theme: Theme) -> None:
    """Draw the bytes of blocks over depth; what keeps nothing has the level below the break."""
    names: dict[tuple[bool, float], list[Line]] = {}
    for line in lines:
        slope = float(line.memory["slope"])
        names.setdefault((line.published, slope), []).append(line)
        ax = memory if slope > 0 else zero
        colour, (_, marker, size) = theme.colour_of(line.model), MODEL_STYLES[line.model]
        dash = (0, (4, 2)) if line.published else "-"
        first, last = float(line.kept.index.min()), float(line.kept.index.max())
        # Lines that coincide are told apart by a wider one below a narrower one.
        at = np.linspace(first, last, 100)
        ax.plot(at, slope * at, ls=dash, lw=0.35 * size, color=colour, solid_capstyle="butt")
        if last < DEEPEST:
            beyond = np.linspace(last, DEEPEST, 100)
            ax.plot(beyond, slope * beyond, ls=":", lw=1.2, color=colour)
        ax.plot(line.kept.index, line.kept, marker, color=colour, ms=size, mfc=theme.paper, mec=colour, mew=1.3)
    below = np.inf
    for (published, slope), alike in sorted(names.items(), key=lambda one: -one[0][1]):
        ax, height = (memory, DEEPEST * slope) if slope > 0 else (zero, 0.0)
        # Two lines of text are as high as a factor of 3.6.
        if slope > 0:
            height = below = min(height, below / 3.6)
        who = " and ".join(model_title(line.model) for line in alike)
        text = f"{who}{', published' if published else ''}\n{bytes_text(slope)} per block"
        ax.annotate(
            text, (DEEPEST + 0.3, height), (5, 0), textcoords="offset points", va="center", fontsize=8, fontweight="bold",
            color=theme.colour_of(alike[-1].model), annotation_clip=False,
        )  # fmt: skip
    for ax in (memory, zero):
        ax.set_xlim(0.7, DEEPEST + 0.3)
        ax.xaxis.set_major_locator(FixedLocator(range(1, DEEPEST + 1)))
    memory.set_yscale("log")
    memory.set_ylim(_TICKS[0] * 0.6, _TICKS[-1] * 2)
    memory.yaxis.set_major_locator(FixedLocator(_TICKS))
    memory.yaxis.set_minor_locator(NullLocator())
    memory.yaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value).replace(".00", "")))
    memory.spines["bottom"].set_visible(False)
    memory.tick_params(axis="x", length=0, labelbottom=False)
    zero.set_ylim(-1, 1)
    zero.set_yticks([0], ["0"])
    zero.set_xlabel("blocks")
    for ax, at in ((memory, 0.0), (zero, 1.0)):
        # The break of the axis.
        ax.plot([0], [at], marker=[(-1, -0.6), (1, 0.6)], ms=7, color=theme.soft, mew=1, clip_on=False, transform=ax.transAxes)


def _draw_times(ax: Axes, lines: list[Line], theme: Theme) -> None:
    """Draw the slopes of training time with their intervals; one that is not known has words alone."""
    known = [line for line in lines if line.time is not None and line.time["shape"] == "line"]
    highest = [1000 * line.time["slope_high"] for line in known if line.time is not None]
    is_logarithmic = bool(highest) and max(highest) > 20 * min(highest)
    if is_logarithmic:
        ax.set_xscale("log")
        ax.set_xlim(0.5 * min(highest), 2 * max(highest))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        ax.set_xlim(0, 1.75 * max(highest, default=1))
    for row, line in enumerate(lines):
        fit = line.time or {}
        colour, (_, marker, size) = theme.colour_of(line.model), MODEL_STYLES[line.model]
        ax.text(0, row - 0.22, line.title, fontsize=8.5, fontweight="bold", color=colour, transform=ax.get_yaxis_transform())
        if line in known:
            low, middle, high = (1000 * fit[name] for name in ("slope_low", "slope", "slope_high"))
            ax.errorbar([middle], [row + 0.22], xerr=[[middle - low], [high - middle]], color=colour, marker=marker, ms=size,
                mfc=theme.paper, mew=1.3, capsize=3, lw=1.5)  # fmt: skip
            # Words stand on the side where there is more room.
            is_far = is_logarithmic and middle**2 > min(highest) * max(highest)
            ax.annotate(
                row_slope(fit), (low if is_far else high, row + 0.22), (-9 if is_far else 7, 0), textcoords="offset points",
                fontsize=8.5, ha="right" if is_far else "left", va="center", color=theme.ink,
            )  # fmt: skip
        else:
            words = row_slope(fit) if fit.get("shape") == "no change measurable" else str(fit.get("shape"))
            ax.text(0, row + 0.22, words, fontsize=8, va="center", color=theme.soft, transform=ax.get_yaxis_transform())
    ax.set_ylim(len(lines) - 0.4, -0.6)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("milliseconds per block")


def _conditions(lines: list[Line]) -> str:
    batch = {line.memory["batch_size"] for line in lines}
    beyond = any(line.kept.index.max() < DEEPEST for line in lines)
    parts = [f"batch {int(batch.pop())}" if len(batch) == 1 else "", "28 × 28 images", "CPU, two cores", "bars: 95 % intervals"]
    parts += ["dotted: beyond the measured depths"] if beyond else []
    parts += ["published: the paper's code"] if any(line.published for line in lines) else []
    text = "; ".join(filter(None, parts))
    return text[:1].upper() + text[1:]


def write(folder: Path) -> list[Path]:
    """Write the picture for a light page and for a dark one, and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        *lines_of(capsbench.Report(ROOT / "reports" / PUBLISHED), published=True),
        *lines_of(capsbench.Report(ROOT / "reports" / HERE), published=False),
    ]
    paths = []
    for theme in (LIGHT, DARK):
        paths.append(folder / f"{NAME}{theme.suffix}.png")
        with mpl.rc_context({"savefig.facecolor": theme.paper}):
            picture(lines, theme).savefig(paths[-1], dpi=200, metadata={"Software": None})
    return paths


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write into docs/images/")
    given = parser.parse_args(arguments)
    for path in write(FOLDER if given.write else ROOT / "runs"):
        print(path)


if __name__ == "__main__":
    main()
