"""Figures 3 and 4 of *Momentum Capsule Networks*, from one's own records."""

import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from capsbench import paper
from capsbench.analysis.metrics import MEMORY_METRICS, TIME_METRICS, Metric
from capsbench.analysis.slopes import LineFit, fit_line, lines, noises
from capsbench.catalog import SPECS
from capsbench.errors import ConfigurationError
from capsbench.report.labels import Line, dataset_title, line_label, model_title, on_gpu
from capsbench.report.styles import MODEL_STYLES, LineStyle, line_styles, style_key
from capsbench.report.units import MIB, slope_text

Per = Literal["step", "epoch"]

_LONGEST_TITLE = 36
_LEGEND_WIDTH, _SMALL_LEGEND_WIDTH = 42, 34
"""Characters of a row of a legend, and of one on a printed page."""
_MOST_LINES = 12
"""That a panel draws: more could not be told apart."""
_MOST_INSIDE = 7
"""Rows of a legend that a panel has room for."""
_LEGEND_ROW = 1.35
"""Height of a row of a legend over its font's size."""

STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 3.0,  # room for dashes beside the marker
    "text.parse_math": False,  # names are names, whatever is in them
    "svg.fonttype": "none",
    "pdf.fonttype": 42,  # TrueType, whole: type 3 is refused by many publishers
    "ps.fonttype": 42,
    "axes.titlesize": 9.5,
    "svg.hashsalt": "capsbench",
    "figure.dpi": 100,
    "savefig.dpi": 160,
}


_SMALL: Any = {
    "font.size": 7,
    "axes.titlesize": 6.8,
    "legend.fontsize": 5.8,
    "legend.handlelength": 2.4,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
} | dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6)
"""For a figure of a printed page's width."""

_SMALL_MARKER = 0.6

COLUMN_WIDTH, PAGE_WIDTH = 3.35, 7.0
"""Inches: one column of a paper, and both."""

AxesGrid = NDArray[np.object_]
"""Axes, `[data sets, columns]`."""


def figure3(
    frame: pd.DataFrame,
    *,
    memory: Sequence[str] = ("retained",),
    per: Per = "step",
    with_paper: bool = False,
    ax: Axes | AxesGrid | None = None,
    width: float | None = None,
) -> AxesGrid:
    """Memory, training time and inference time over depth; a row per data set (Momentum Capsule Networks, figure 3).

    Args:
        frame: what `capsbench.load` gave.
        memory: which memory to draw, names of `MEMORY_METRICS`; a column each.
        per: seconds per `step`, or per `epoch` of the set's size in the paper.
        with_paper: the paper's table 4 as a pale line, where the memory drawn is comparable.
        ax: axes to draw on, `[data sets, columns]`; one will do where there is one panel. By default those of a new figure.
        width: of a new figure, in inches; by default 3.7 for each column.

    Returns:
        The axes, `[data sets, columns]`.

    Raises:
        ConfigurationError: `ax` has other than as many axes as there are panels.
    """
    columns = [*(MEMORY_METRICS[name] for name in memory), TIME_METRICS["train"], TIME_METRICS["inference"]]
    return _grid(frame, columns, per=per, with_paper=with_paper, with_fit=False, ax=ax, width=width)


def figure4(
    frame: pd.DataFrame,
    *,
    memory: Sequence[str] = ("retained", "peak"),
    per: Per = "step",
    with_paper: bool = False,
    ax: Axes | AxesGrid | None = None,
    width: float | None = None,
) -> AxesGrid:
    """Memory and training time over depth, with fitted lines and their slopes (Momentum Capsule Networks, figure 4).

    Arguments as `figure3`.
    """
    columns = [*(MEMORY_METRICS[name] for name in memory), TIME_METRICS["train"]]
    return _grid(frame, columns, per=per, with_paper=with_paper, with_fit=True, ax=ax, width=width)


def save(figure: Figure, folder: Path, name: str, kinds: Sequence[str] = ("svg", "png", "pdf")) -> list[Path]:
    """Writes a figure in each format; fonts are embedded in the pdf as TrueType, as publishers ask."""
    paths = [folder / f"{name}.{kind}" for kind in kinds]
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # A name may have signs that no font here has: a box stands for them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        # A column of a paper has no room for three panels with long legends: they are drawn as they are.
        warnings.filterwarnings("ignore", message="constrained_layout not applied", category=UserWarning)
        for path in paths:
            # No date inside: the same records give the same file.
            metadata = {".svg": {"Date": None}, ".png": {"Software": None}, ".pdf": {"CreationDate": None}}[path.suffix]
            figure.savefig(path, metadata=metadata, bbox_inches="tight")
    return paths


def _grid(
    frame: pd.DataFrame,
    columns: Sequence[Metric],
    *,
    per: Per,
    with_paper: bool,
    with_fit: bool,
    ax: Axes | AxesGrid | None,
    width: float | None,
) -> AxesGrid:
    datasets = list(dict.fromkeys(frame["dataset"])) or [""]
    styles = line_styles(frame)
    if width is not None:
        styles = {key: replace(style, size=_SMALL_MARKER * style.size) for key, style in styles.items()}
    shown = [metric for metric in columns if frame[metric.column].notna().any()]
    with mpl.rc_context(STYLE | (_SMALL if width is not None else {})):
        axes = _axes_of(ax, len(datasets), max(1, len(shown)), width)
        below = 0
        for row, dataset in zip(axes, datasets, strict=True):
            part = frame[frame["dataset"] == dataset]
            found = [(line, cells) for line, cells in lines(part) if any(cells[metric.column].notna().any() for metric in shown)]
            more = [_nothing(f"{len(found) - _MOST_LINES} more lines are not drawn")] if len(found) > _MOST_LINES else []
            beneath = 0
            of_row: dict[str, Line2D] = {}
            for panel, metric in zip(row, shown, strict=False):
                handles = _panel(panel, part, found[:_MOST_LINES], metric, styles, per=per, with_fit=with_fit)
                if with_paper and _comparable(part, metric):
                    handles += _draw_paper(panel, dataset)
                panel.set_title(
                    f"{_cut(dataset_title(dataset))}: {_title(metric, frame)}",
                    loc="left",
                    fontsize=mpl.rcParams["axes.titlesize"],
                )
                of_row |= {str(handle.get_label()): handle for handle in handles}
                if with_fit:
                    beneath = max(beneath, _legend(panel, [*handles, *more], may_grow=ax is None))
            if not with_fit:
                # One legend for all panels, whose lines have no slopes to tell.
                for panel in row[1:]:
                    _legend(panel, [], may_grow=ax is None)
                beneath = _legend(row[0], [*of_row.values(), *more], may_grow=ax is None)
            below += beneath
        if not shown:
            why = "every cell ran out of memory" if (frame["status"] == "oom").any() else "no cell was measured"
            axes[0][0].text(0.5, 0.5, why, ha="center", transform=axes[0][0].transAxes)
        if ax is None:
            _finish(axes[0][0].figure, _caption(frame, timed=any(not metric.is_bytes for metric in shown)), below, width)
    return axes


def _finish(figure: Figure, caption: str, below: int, width: float | None) -> None:
    """A new figure's caption, and room for so many rows of legends below its panels."""
    across, height = figure.get_size_inches()
    figure.set_size_inches(across, height + below * _LEGEND_ROW * mpl.rcParams["legend.fontsize"] / 72)
    text = "\n".join(textwrap.wrap(caption, int(22 * (width or 99))))
    figure.supxlabel(text, fontsize=7.5 if width is None else 6, color="#555555")


def _axes_of(ax: Axes | AxesGrid | None, rows: int, columns: int, width: float | None) -> AxesGrid:
    """Axes of a new figure, or those that were given, `[rows, columns]`."""
    if ax is None:
        across = 3.7 * columns if width is None else width
        # Panels keep their shape, but none is too low for its legend.
        height = max(2.3, 3.1 * across / (3.7 * columns))
        return Figure(figsize=(across, height * rows + 0.3), layout="constrained").subplots(rows, columns, squeeze=False)
    given = np.array(ax, dtype=object)
    if given.size != rows * columns:
        raise ConfigurationError(
            f"ax has {given.size} axes for {rows} data sets × {columns} columns",
            f"give plt.subplots({rows}, {columns})[1], or no ax",
        )
    return given.reshape(rows, columns)


def _panel(
    ax: Axes,
    frame: pd.DataFrame,
    drawn: Sequence[tuple[Line, pd.DataFrame]],
    metric: Metric,
    styles: dict[str, LineStyle],
    *,
    per: Per,
    with_fit: bool,
) -> list[Line2D]:
    """One metric over depth, for some of the frame's lines; returns what a legend shows of them."""
    handles = []
    everyone = [line for line, _ in lines(frame)]
    for line, cells in drawn:
        measured = cells[cells[metric.column].notna()]
        if measured.empty:
            continue
        scale = _scale(metric, line, per)
        style = styles[style_key(line)]
        by_depth = measured[metric.column].astype(float).groupby(measured["blocks"])
        mean = by_depth.mean() * scale
        fit = fit_line(line, measured, metric)
        label = _legend_text(line_label(line, everyone), _fit_text(fit, metric, scale) if with_fit and fit else "")
        if with_fit and fit is not None:
            _draw_fit(ax, fit, mean, metric, style, scale)
        ax.errorbar(
            mean.index,
            mean,
            yerr=by_depth.std().fillna(0) * scale if (by_depth.size() > 1).any() else None,
            marker=style.marker,
            linestyle="none" if with_fit else style.dash,
            color=style.colour,
            markerfacecolor="white",
            markeredgewidth=1.2,
            markersize=style.size,
            linewidth=1.2,
            drawstyle=_joined(metric, fit),
            capsize=2,
            label=label,
        )
        _mark_noise(ax, measured, mean, metric, style)
        handles.append(
            Line2D([], [], color=style.colour, marker=style.marker, ls=style.dash, ms=style.size, mfc="white", lw=1, label=label)
        )
        _mark_end(ax, frame, line, mean, style)
    ax.set_xlabel("blocks")
    ax.set_ylabel(_unit(metric, per))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return handles


def _legend(ax: Axes, handles: Sequence[Line2D], *, may_grow: bool) -> int:
    """Room for a legend and, where there is something to name, the legend: inside, or beneath a panel that has no room for it.

    Args:
        ax: the panel.
        handles: what is named.
        may_grow: whether the figure may become higher.

    Returns:
        How many rows lie beneath the panel.
    """
    rows = sum(1 + str(handle.get_label()).count("\n") for handle in handles)
    inside = rows <= _MOST_INSIDE or not may_grow
    _fit_range(ax, entries=min(rows, _MOST_INSIDE) if inside else 0)
    if handles and inside:
        ax.legend(handles=handles, loc="upper left", borderaxespad=0.2).set_in_layout(False)
    elif handles:
        # Under the axis and its name.
        under = ScaledTranslation(0, -3.6 * mpl.rcParams["font.size"] / 72, ax.figure.dpi_scale_trans)
        ax.legend(handles=handles, loc="upper left", borderaxespad=0, bbox_to_anchor=(0, 0), bbox_transform=ax.transAxes + under)
    return 0 if inside else rows + 1


def _nothing(label: str) -> Line2D:
    """What a legend says of nothing that is drawn."""
    return Line2D([], [], ls="none", label=label)


def _fit_text(fit: LineFit, metric: Metric, scale: float) -> str:
    """`8.3 ± 0.4 ms/block`, or that it is not a line."""
    if not fit.linear:
        return "not a line"
    low, high = fit.fit.slope_interval or (fit.fit.slope, fit.fit.slope)
    factor = 1.0 if metric.is_bytes else scale
    return slope_text(factor * fit.fit.slope, factor * low, factor * high, is_bytes=metric.is_bytes) + "/block"


def _draw_fit(ax: Axes, fit: LineFit, mean: pd.Series, metric: Metric, style: LineStyle, scale: float) -> None:
    """The fitted line; where none fits, the points are joined palely."""
    if not fit.linear:
        ax.plot(mean.index, mean, ls=style.dash, drawstyle=_joined(metric, fit), color=style.colour, lw=0.8, alpha=0.4)
        return
    ends = [mean.index.min(), mean.index.max()]
    ax.plot(ends, [scale * (fit.fit.intercept + fit.fit.slope * x) for x in ends], ls=style.dash, color=style.colour, lw=1)


def _joined(metric: Metric, fit: LineFit | None) -> Literal["default", "steps-mid"]:
    """How points are joined: reserved memory comes in segments, and jumps from one depth to the next."""
    return "steps-mid" if metric.name == "reserved" and fit is not None and not fit.linear else "default"


def _mark_noise(ax: Axes, measured: pd.DataFrame, mean: pd.Series, metric: Metric, style: LineStyle) -> None:
    """A cross through the marker of each depth whose times were disturbed."""
    noisy = [] if metric.is_bytes else sorted(set(measured.loc[measured["noise"] != "", "blocks"]))
    if noisy:
        ax.plot(noisy, mean.loc[noisy], "x", color=style.colour, ms=style.size + 3, mew=0.8, zorder=4)


def _legend_text(label: str, fit: str) -> str:
    """A label that matplotlib shows as it is: it hides those that begin with an underscore; a panel has no room for more."""
    width = _LEGEND_WIDTH if mpl.rcParams["legend.fontsize"] == STYLE["legend.fontsize"] else _SMALL_LEGEND_WIDTH
    rows = textwrap.wrap(label + ":" * bool(fit), width, max_lines=2, placeholder="…") or [":" * bool(fit)]
    if fit and len(rows[-1]) + len(fit) < width:
        rows[-1] += f" {fit}"
    elif fit:
        rows.append(fit)
    return "\n".join(rows) if not rows[0].startswith("_") else "\n".join(["\u200b" + rows[0], *rows[1:]])


def _cut(label: str) -> str:
    return label if len(label) <= _LONGEST_TITLE else label[: _LONGEST_TITLE - 1] + "…"


def _fit_range(ax: Axes, entries: int) -> None:
    """A range in which level lines look level, with room above for a legend; the caption says that it may not start at 0."""
    low, high = ax.dataLim.intervaly
    if not high >= low:
        return
    span = max(high - low, 0.05 * high, 1e-12)
    ax.set_ylim(max(0.0, low - 0.25 * span), high + (0.15 + 0.18 * entries) * span)


def _mark_end(ax: Axes, frame: pd.DataFrame, line: Line, mean: pd.Series, style: LineStyle) -> None:
    """Where a line ends because the device was full."""
    same = frame[frame["status"] == "oom"]
    for column, value in line.items():
        same = same[same[column].isna() if pd.isna(value) else same[column] == value]  # type: ignore[call-overload]
    if same.empty:
        return
    at = same["blocks"].min()
    # A deeper network may have had room again: the line is left where it first had none.
    shallower = mean[mean.index <= at]
    start, height = (shallower.index[-1], shallower.iloc[-1]) if len(shallower) else (mean.index[0], mean.iloc[0])
    ax.plot([start, at], [height] * 2, ":", color=style.colour, lw=1)
    early = 2 * at < frame["blocks"].min() + frame["blocks"].max()
    ax.annotate("out of memory", (at, height), color=style.colour, fontsize=7.5, ha="left" if early else "right", va="bottom")


def _comparable(frame: pd.DataFrame, metric: Metric) -> bool:
    """Whether the paper's nvidia-smi readings can stand beside this: device memory, at the paper's batch."""
    same = on_gpu(frame) & (frame["batch_size"] == paper.BATCH_SIZE)
    return metric.name in paper.COMPARABLE_METRICS and bool(same.any())


def _title(metric: Metric, frame: pd.DataFrame) -> str:
    on_cpu = metric.name == "process" and not on_gpu(frame).any()
    return "largest resident set" if on_cpu else metric.title


def _draw_paper(ax: Axes, dataset: str) -> list[Line2D]:
    """Table 4, pale, behind one's own lines."""
    table, drawn = paper.memory(), []
    for model, cells in table[table["dataset"] == dataset].groupby("model"):
        colour, marker, _ = MODEL_STYLES[str(model)]
        drawn += ax.plot(cells["blocks"], cells["bytes"] / MIB, marker=marker, ms=3, lw=1, color=colour, alpha=0.3,
                label=f"paper's {model_title(str(model))} (nvidia-smi)")  # fmt: skip
    return drawn


def _scale(metric: Metric, line: Line, per: Per) -> float:
    if metric.is_bytes:
        return 1 / MIB
    if per == "step":
        return 1.0
    spec = SPECS[str(line["dataset"])]
    return float(ceil(spec.train_size / int(str(line["batch_size"]))))


def _unit(metric: Metric, per: Per) -> str:
    if metric.is_bytes:
        return "MiB"
    return "seconds per step" if per == "step" else "seconds per epoch of the paper's set"


def _caption(frame: pd.DataFrame, *, timed: bool) -> str:
    """What all cells share, and what error bars and crosses are."""
    shared = []
    for column in ("batch_size", "kernel", "precision", "device"):
        values = frame[column].dropna().unique()
        if len(values) == 1:
            shared.append(f"{column.replace('_', ' ')} {values[0]}")
    if "data_source" in frame and (frame["data_source"] == "stand-in").any():
        shared.append("the packaged images stand in for a set that was not on disk")
    if "replicate" in frame and frame["replicate"].nunique() > 1:
        shared.append("bars: standard deviation over replicates")
    if timed and (disturbed := noises(frame)):
        shared.append(f"crossed markers are noisy: {', '.join(disturbed)}")
    return "; ".join([*shared, "axes need not start at 0"])
