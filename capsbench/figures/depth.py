"""Figures 3 and 4 of *Momentum Capsule Networks*, from one's own records."""

import io
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from capsbench import paper
from capsbench.colours import CAPTION
from capsbench.errors import ConfigurationError
from capsbench.figures.legends import LEGEND_ROW, nothing_drawn, place_legend
from capsbench.figures.panels import Per, draw_panel, draw_paper, in_turn, lies_around
from capsbench.figures.styles import SMALL_STYLE, STYLE, SeriesStyle, series_styles
from capsbench.frame import AXIS_COLUMN, POSITION_COLUMN, all_square, along_with_levels, axes_in
from capsbench.stats.line_fit import fit_line
from capsbench.stats.metrics import MEMORY_METRICS, TIME_METRICS, Metric
from capsbench.stats.slopes import by_series, noises, series_of
from capsbench.words.along import places_text
from capsbench.words.disturbances import disturbed_by
from capsbench.words.labels import (
    STAND_IN,
    Names,
    Series,
    cut,
    dataset_title,
    images_title,
    is_of_random_images,
    model_title,
    on_gpu,
)
from capsbench.words.units import bytes_text

_LONGEST_TITLE = 36
_MOST_SERIES = 12
"""Largest number of series in a panel: more could not be distinguished."""

_SMALL_MARKER = 0.6

_MOST_WITHOUT_RESULT = 4
"""Largest number of series that a caption names as without a result."""

COLUMN_WIDTH, PAGE_WIDTH = 3.35, 7.0
"""Widths in inches of one column of a paper, and of both."""

_NARROWEST = 2.0
"""Least width of a panel in inches; panels that would be narrower stand below each other."""

AxesGrid = NDArray[np.object_]
"""`[data sets, columns]`, the axes."""


def figure3(
    frame: pd.DataFrame,
    *,
    memory: Sequence[str] = ("retained",),
    per: Per = "step",
    with_paper: bool = False,
    ax: Axes | AxesGrid | None = None,
    width: float | None = None,
    axis: str | None = None,
) -> AxesGrid:
    """Memory, training time and inference time over depth; a row per data set (Momentum Capsule Networks, figure 3).

    Args:
        frame: frame from `capsbench.load`.
        memory: memory figures to draw, names of `MEMORY_METRICS`; a column each.
        per: seconds per `step`, or per `epoch` of the set's size in the paper.
        with_paper: draw the paper's table 4 as a pale line, where the drawn memory is comparable.
        ax: axes to draw on, `[data sets, columns]`, or one for a single panel; by default those of a new figure.
        width: width of a new figure in inches, whose panels stand below each other where one would be narrower than 2 inches; by
            default 3.7 for each column.
        axis: what the figure is drawn over; by default the first axis of the frame's reports.

    Returns:
        The axes, `[data sets, columns]`.

    Raises:
        ConfigurationError: `ax` does not have one axes for each panel, or seconds per epoch are to be drawn over the batch size.
    """
    columns = [*(MEMORY_METRICS[name] for name in memory), TIME_METRICS["train"], TIME_METRICS["inference"]]
    return _grid(frame, columns, per=per, with_paper=with_paper, with_fit=False, ax=ax, width=width, axis=axis)


def figure4(
    frame: pd.DataFrame,
    *,
    memory: Sequence[str] = ("retained", "peak"),
    per: Per = "step",
    with_paper: bool = False,
    ax: Axes | AxesGrid | None = None,
    width: float | None = None,
    axis: str | None = None,
) -> AxesGrid:
    """Memory and training time over depth, with fitted lines and their slopes (Momentum Capsule Networks, figure 4).

    The arguments are those of `figure3`.
    """
    columns = [*(MEMORY_METRICS[name] for name in memory), TIME_METRICS["train"]]
    return _grid(frame, columns, per=per, with_paper=with_paper, with_fit=True, ax=ax, width=width, axis=axis)


def save(figure: Figure, folder: Path, name: str, kinds: Sequence[str] = ("svg", "png", "pdf")) -> list[Path]:
    """Write a figure in each format; fonts are embedded in the pdf as TrueType, as publishers ask."""
    paths = [folder / f"{name}.{kind}" for kind in kinds]
    for path, kind in zip(paths, kinds, strict=True):
        _save(figure, path, kind)
    return paths


def as_svg(figure: Figure) -> bytes:
    """Return a figure as `save` would write it."""
    file = io.BytesIO()
    _save(figure, file, "svg")
    return file.getvalue()


def _save(figure: Figure, file: Path | io.BytesIO, kind: str) -> None:
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # A name may have signs that no font here has; they are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        # A column of a paper has no room for three panels with long legends, which are drawn all the same.
        warnings.filterwarnings("ignore", message="constrained_layout not applied", category=UserWarning)
        # No date, so that the same records give the same file.
        metadata = {"svg": {"Date": None}, "png": {"Software": None}, "pdf": {"CreationDate": None}}[kind]
        figure.savefig(file, format=kind, metadata=metadata, bbox_inches="tight")


def _grid(
    frame: pd.DataFrame, columns: Sequence[Metric], *, per: Per, with_paper: bool, with_fit: bool,
    ax: Axes | AxesGrid | None, width: float | None, axis: str | None,
) -> AxesGrid:  # fmt: skip
    """Panels over an axis: a row for each data set, and a column for each metric that has values."""
    frame = along_with_levels(frame, axis or axes_in(frame)[0])
    if per == "epoch" and (frame[AXIS_COLUMN] == "batch_size").any():
        raise ConfigurationError(
            "`per` epoch is not drawn over the batch size, which changes the number of steps in an epoch", "draw seconds per step"
        )
    parts = _by_dataset(frame)
    styles = series_styles(frame)
    if width is not None:
        styles = {key: replace(style, size=_SMALL_MARKER * style.size) for key, style in styles.items()}
    shown = [metric for metric in columns if frame[metric.column].notna().any()]
    with mpl.rc_context(STYLE | (SMALL_STYLE if width is not None else {})):
        axes = _axes_of(ax, len(parts), max(1, len(shown)), width)
        rows = [
            _draw_row(row, part, shown, styles, per=per, with_fit=with_fit, with_paper=with_paper)
            for row, part in zip(axes, parts.values(), strict=True)
        ]
        drawn = [handles_of for handles_of, _ in rows]
        rows_above = _common_legend(axes[0][0].figure, drawn) if ax is None and not with_fit else 0
        rows_below = _label_panels(axes, parts, shown, drawn, with_legends=not rows_above, is_new=ax is None)
        if not shown:
            why = "every cell ran out of memory" if (frame["status"] == "oom").any() else "no cell was measured"
            axes[0][0].text(0.5, 0.5, why, ha="center", transform=axes[0][0].transAxes)
        if ax is None:
            alone = not with_fit and any(has_points_alone for _, has_points_alone in rows)
            caption = _caption(frame, drawn, timed=any(not metric.is_bytes for metric in shown), points_alone=alone)
            over_depth = bool((frame[AXIS_COLUMN] == "blocks").any())
            if with_paper and over_depth and not any(_has_comparable_memory(part, shown) for part in parts.values()):
                caption += _paper_caption(list(dict.fromkeys(frame["dataset"])))
            _finish(axes[0][0].figure, caption, rows_above + rows_below, width)
    return axes


def _by_dataset(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The cells of each data set, and those of random images in its place, by their title; without any cell, those of none."""
    if frame.empty:
        return {"": frame}
    rows = _inputs_of(frame)
    kinds = [(str(row["dataset"]), is_of_random_images(row)) for row in rows]
    parts: dict[str, pd.DataFrame] = {}
    for kind in dict.fromkeys(kinds):
        mask = [one == kind for one in kinds]
        title = images_title(row for row, is_one in zip(rows, mask, strict=True) if is_one)
        parts[title] = pd.concat([parts[title], frame[mask]]) if title in parts else frame[mask]
    return parts


def _inputs_of(frame: pd.DataFrame) -> list[dict[str, object]]:
    """The options of each row that decide its images."""
    names = [name for name in ("dataset", "image_shape", "classes", AXIS_COLUMN) if name in frame.columns]
    return [dict(zip(names, values, strict=True)) for values in zip(*(frame[name] for name in names), strict=True)]


def _label_panels(
    axes: AxesGrid, parts: Mapping[str, pd.DataFrame], shown: Sequence[Metric], drawn: Sequence[Sequence[Sequence[Line2D]]], *,
    with_legends: bool, is_new: bool,
) -> int:  # fmt: skip
    """Place titles and legends, and return the number of lines that legends below panels add to the height of a new figure."""
    below: dict[int, int] = {}
    for row, (images, part), handles_of in zip(axes, parts.items(), drawn, strict=True):
        for panel, metric, handles in zip(row, shown, handles_of, strict=False):
            count = place_legend(panel, handles if with_legends else [], may_grow=is_new)
            line = panel.get_subplotspec().rowspan.start if is_new else 0
            below[line] = max(below.get(line, 0), count)
            of_a_cpu = metric.name == "process" and not on_gpu(part).any()
            title = f"{cut(images, _LONGEST_TITLE)}: {'largest resident set' if of_a_cpu else metric.title}"
            panel.set_title(title, loc="left", fontsize=mpl.rcParams["axes.titlesize"])
    return sum(below.values())


def _draw_row(
    row: Sequence[Axes], frame: pd.DataFrame, shown: Sequence[Metric], styles: dict[str, SeriesStyle], *,
    per: Per, with_fit: bool, with_paper: bool,
) -> tuple[list[list[Line2D]], bool]:  # fmt: skip
    """Draw the panels of one data set.

    Returns:
        The handles of each one's legend, of which the first has them all without fits; and whether any has points alone.
    """
    every = list(series_of(frame))
    draws_paper = with_paper and _has_comparable_memory(frame, shown)
    names = Names(series for series, _ in every)
    handles_of: list[list[Line2D]] = []
    left: dict[str, int] = {}
    alone = False
    for panel, metric in zip(row, shown, strict=False):
        drawn, more = _drawn(every, metric, shown)
        handles, has_points_alone = draw_panel(panel, frame, drawn, names, metric, styles, per=per, with_fit=with_fit)
        alone = alone or has_points_alone
        if draws_paper and metric.name in paper.COMPARABLE_METRICS:
            handles += draw_paper(panel, str(frame["dataset"].iloc[0]))
        if more and with_fit:
            handles.append(nothing_drawn(f"{more} more lines are not drawn"))
        left[metric.title] = more
        handles_of.append(handles)
    return handles_of if with_fit else [_united(handles_of, left), *([] for _ in handles_of[1:])], alone


def _has_comparable_memory(frame: pd.DataFrame, shown: Sequence[Metric]) -> bool:
    """Return whether the paper's nvidia-smi readings can stand in a panel: with memory of a device at the paper's batch."""
    comparable = on_gpu(frame) & (frame["batch_size"] == paper.BATCH_SIZE) & (frame[AXIS_COLUMN] == "blocks")
    comparable &= np.array([not is_of_random_images(row) for row in _inputs_of(frame)], dtype=bool)
    return bool(comparable.any()) and any(metric.name in paper.COMPARABLE_METRICS for metric in shown)


def _paper_caption(datasets: Sequence[str]) -> str:
    """The paper's memory per block, for a figure in which it cannot be drawn; empty if the paper has none of the data sets."""
    slopes = {
        dataset: [f"{model_title(model)} {bytes_text(slope)}" for model, slope in paper.memory_slopes(dataset).items()]
        for dataset in datasets
    }
    texts = [f"{dataset_title(dataset)}: {', '.join(found)}" for dataset, found in slopes.items() if found]
    return f"; in the paper a block takes (nvidia-smi, batch {paper.BATCH_SIZE}) {'; '.join(texts)}" if texts else ""


def _common_legend(figure: Figure, drawn: Sequence[Sequence[Sequence[Line2D]]]) -> int:
    """Place one legend above all rows of a figure that have the same, and return the number of its lines; 0 if they differ."""
    legends = [handles_of[0] if handles_of else [] for handles_of in drawn]
    if len(legends) < 2 or len({tuple(str(handle.get_label()) for handle in handles) for handles in legends}) > 1:
        return 0
    columns = max(1, min(len(legends[0]), int(figure.get_figwidth() / (0.4 * mpl.rcParams["legend.fontsize"]))))
    figure.legend(handles=legends[0], loc="outside upper left", ncols=columns)
    lines = ceil(len(legends[0]) / columns)
    return lines * max((1 + str(handle.get_label()).count("\n") for handle in legends[0]), default=1) + 1


def _drawn(
    every: Sequence[tuple[Series, pd.DataFrame]], metric: Metric, shown: Sequence[Metric]
) -> tuple[list[tuple[Series, pd.DataFrame]], int]:
    """The series that a panel has room for, those with values for most of the panels first, and the number of further ones."""
    found = [(place, cells) for place, (_, cells) in enumerate(every) if cells[metric.column].notna().any()]
    fullest = sorted(found, key=lambda one: -sum(bool(one[1][other.column].notna().any()) for other in shown))
    return [every[place] for place in sorted(place for place, _ in fullest[:_MOST_SERIES])], max(0, len(found) - _MOST_SERIES)


def _united(handles_of: Sequence[Sequence[Line2D]], left: Mapping[str, int]) -> list[Line2D]:
    """One legend for all panels of a row, whose series have no slopes, with the number of series that each panel leaves out."""
    found: dict[str, Line2D] = {}
    for handle in (handle for handles in handles_of for handle in handles):
        known = found.setdefault(str(handle.get_label()), handle)
        # A line that lies around others in one of the panels does so in the legend.
        found[str(handle.get_label())] = handle if lies_around(handle) else known
    alike = len(set(left.values())) == 1
    notes = {f"{more} more lines{'' if alike else f' of {title}'} are not drawn" for title, more in left.items() if more}
    return [*found.values(), *map(nothing_drawn, sorted(notes))]


def _finish(figure: Figure, caption: str, below: int, width: float | None) -> None:
    """Add the caption of a new figure, and room for this many rows of legends below its panels."""
    across, height = figure.get_size_inches()
    figure.set_size_inches(across, height + below * LEGEND_ROW * mpl.rcParams["legend.fontsize"] / 72)
    text = "\n".join(textwrap.wrap(caption, int(22 * width if width is not None else 17 * across)))
    figure.supxlabel(text, fontsize=7.5 if width is None else 6, color=CAPTION)


def _axes_of(ax: Axes | AxesGrid | None, rows: int, columns: int, width: float | None) -> AxesGrid:
    """`[rows, columns]`, the axes of a new figure, or those that were given."""
    if ax is None:
        across = 3.7 * columns if width is None else width
        # Panels that are too narrow next to each other take further lines of the figure, filled evenly.
        lines = ceil(columns / max(1, min(columns, int(across // _NARROWEST))))
        each = ceil(columns / lines)
        # Panels keep their shape, unless one would be too low for its legend.
        height = max(2.3, 3.1 * across / (3.7 * each))
        figure = Figure(figsize=(across, height * rows * lines + 0.3), layout="constrained")
        drawn = figure.subplots(rows * lines, each, squeeze=False).reshape(rows, lines * each)
        for unused in drawn[:, columns:].flat:
            unused.remove()
        return drawn[:, :columns]
    given = np.array(ax, dtype=object)
    if given.size != rows * columns:
        raise ConfigurationError(
            f"ax has {given.size} axes for {rows} data sets × {columns} columns",
            f"give plt.subplots({rows}, {columns})[1], or no ax",
        )
    return given.reshape(rows, columns)


def _caption(frame: pd.DataFrame, drawn: Sequence[Sequence[Sequence[Line2D]]], *, timed: bool, points_alone: bool) -> str:
    """The settings that all cells share, and the meaning of error bars, crosses, wide lines and points without a line."""
    shared = []
    blocks = frame["blocks"].dropna().unique()
    if len(blocks) == 1 and blocks[0]:
        shared.append(places_text("blocks", blocks))
    for column in ("batch_size", "kernel", "precision", "device"):
        values = frame[column].dropna().unique()
        if len(values) == 1:
            shared.append(f"{column.replace('_', ' ')} {values[0]}")
    if "data_source" in frame and (frame["data_source"] == "stand-in").any():
        shared.append(STAND_IN)
    if "replicate" in frame and frame["replicate"].nunique() > 1:
        shared.append("bars: standard deviation over replicates")
    if in_turn(frame).any():
        shared += _turns_caption(frame) if timed else []
    if timed and (disturbed := noises(frame)):
        shared.append(f"crossed markers: {disturbed_by(disturbed)}")
    shared += _without_result(frame)
    if any(lies_around(handle) for handles_of in drawn for handles in handles_of for handle in handles):
        shared.append("where lines coincide, a wider one with larger markers lies below a narrower one")
    if points_alone:
        shared.append("points without a line: no change measurable")
    return "; ".join([*shared, "axes need not start at 0"])


def _without_result(frame: pd.DataFrame) -> list[str]:
    """The cells of which a figure shows nothing: those that failed, and series that never had the memory."""
    # A cell that was skipped names no machine.
    every = list(by_series(frame[frame["status"] != "skipped"]))
    names = Names(series for series, _ in every)
    found = []
    for series, cells in every:
        nowhere = not (cells["status"] == "ok").any()
        for status, words in (("oom", "out of memory"), ("timeout", "timeout"), ("error", "error")):
            places = sorted(set(cells.loc[cells["status"] == status, POSITION_COLUMN]))
            if places and (nowhere or status != "oom"):
                where = places_text(str(cells[AXIS_COLUMN].iloc[0]), places, square=all_square(cells))
                found.append(f"{cut(names.of(series), _LONGEST_TITLE)} at {where} ({words})")
    more = [f"{len(found) - _MOST_WITHOUT_RESULT} more"] if len(found) > _MOST_WITHOUT_RESULT else []
    return [f"no result: {', '.join([*found[:_MOST_WITHOUT_RESULT], *more])}"] if found else []


def _turns_caption(frame: pd.DataFrame) -> list[str]:
    """The meaning of times of cells that took turns."""
    lines = [line for _, cells in series_of(frame) if in_turn(cells).any() and (line := fit_line(cells, TIME_METRICS["train"]))]
    bases = {line.basis for line in lines} - {"cells"}
    over_depth = (frame[AXIS_COLUMN] == "blocks").all()
    one, several, parts = ("depth", "depths", "blocks") if over_depth else ("position", "positions", "growing parts")
    notes = []
    if bases:
        bars = f"bars: 95 % intervals of differences from the first and last {one}, which a marker hides where they are shorter"
        notes.append(f"times: {several} took turns in rounds; {bars}")
    if "edges" in bases:
        notes.append(
            f"points differ by the time in {parts} and optimizer alone; the rest of a step is its median over all {several}"
        )
    grows = any(line.turns.rest_grows for line in lines if line.turns is not None)
    return [*notes, "where the rest grows too, whole steps are drawn"] if grows else notes
