"""One metric over an axis as one panel of a figure: points, fitted lines, the end of a series, and the paper's own values."""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, inf
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, ScalarFormatter
from numpy.typing import NDArray

from capsbench import paper
from capsbench.axes import in_doubles, per_unit, term_unit
from capsbench.catalog import SPECS
from capsbench.colours import PALE
from capsbench.figures.legends import legend_text
from capsbench.figures.styles import MODEL_STYLES, SeriesStyle, style_key
from capsbench.frame import AXIS_COLUMN, POSITION_COLUMN, ROUNDS_COLUMN, lacking
from capsbench.sizes import BYTE_UNITS, MEBIBYTES, MIB, SECOND_UNITS, Unit
from capsbench.stats.bases import Curve
from capsbench.stats.intervals import Interval
from capsbench.stats.line_fit import LineFit, fit_line, values_by_position
from capsbench.stats.metrics import Metric
from capsbench.words.along import axis_label
from capsbench.words.labels import Names, Series, model_title
from capsbench.words.slopes_in_words import inexact_mark, within_text
from capsbench.words.units import quantity_text, slope_text

Per = Literal["step", "epoch"]


_ALIKE = 0.03
"""Largest difference of values that lie on each other, as a share of the range of all values of a panel."""
_INSIDE, _OUTERMOST, _INNERMOST = 0.8, 1.5, 0.7
"""Largest size of a marker over that around it with which both are seen, and factors of the sizes that are used otherwise."""
_LEAST_OF_UNIT = 0.1
"""Least share of a panel's unit that its largest value is."""
_SECONDS_IN_WORDS = {"s": "seconds", "ms": "milliseconds", "µs": "microseconds"}
_UNCROWDED = 20
"""Number of points of a series beyond which their markers are smaller."""
_MOST_TICKS, _CLOSEST_TICKS = 8, 1 / 15
"""Largest number of positions that all have ticks, and their least distance, as a share of the range."""
_WIDTH = 1.0
"""Width of a line in points."""
_WIDER, _MOST_WIDER = 2.0, 4.4
"""Points by which a line is wider than the next one inside it, and by which it is wider than the innermost, at most."""


class DrawnPoints(NamedTuple):
    """The points of one series in a panel."""

    series: Series
    cells: pd.DataFrame
    """Rows that have a value."""
    fit: LineFit | None
    values: pd.Series
    """Values by position, in the panel's unit."""
    bars: NDArray[np.float64] | None
    """Lengths of error bars, `[2, values]`: downwards and upwards."""
    scale: float
    """Factor from bytes or seconds of a step to values in the panel's unit."""
    steps: float
    """Number of steps that a time is of."""


def _unit_of(drawn: Sequence[tuple[Series, pd.DataFrame]], metric: Metric, per: Per) -> Unit:
    """The unit of a panel: MiB or seconds, or a smaller one if the largest value is less than a tenth of that."""
    values = [float(cells[metric.column].max()) * _steps(series, metric, per) for series, cells in drawn]
    largest = max((value for value in values if value > 0), default=inf)
    units = BYTE_UNITS[BYTE_UNITS.index(MEBIBYTES) :] if metric.is_bytes else SECOND_UNITS
    return next((unit for unit in units if largest >= _LEAST_OF_UNIT * unit.size), units[-1])


def _points(series: Series, cells: pd.DataFrame, metric: Metric, per: Per, unit: Unit) -> DrawnPoints | None:
    """The points of a series; None if it has no values."""
    measured = cells[cells[metric.column].notna()]
    if measured.empty:
        return None
    steps = _steps(series, metric, per)
    scale = steps / unit.size
    fit = fit_line(measured, metric)
    by_position = measured[metric.column].astype(float).groupby(measured[POSITION_COLUMN])
    if fit is not None and fit.turns is not None:
        values = pd.Series(values_by_position(measured, metric, fit)).sort_index()
        at = fit.turns.at
        ends = [
            (one.seconds - one.low, one.high - one.seconds) if (one := at.get(place)) else (0.0, 0.0) for place in values.index
        ]
        return DrawnPoints(series, measured, fit, values * scale, np.nan_to_num(np.array(ends).T) * scale, scale, steps)
    values, deviations = by_position.mean() * scale, by_position.std().fillna(0) * scale
    # No bytes or seconds are below 0.
    bars = np.array([np.minimum(values, deviations), deviations]) if (by_position.size() > 1).any() else None
    return DrawnPoints(series, measured, fit, values, bars, scale, steps)


class DrawnPanel(NamedTuple):
    """One panel after it was drawn."""

    handles: list[Line2D]
    """Handles for a legend."""
    has_points_alone: bool
    """True if some series has points without a line, since no change is measurable."""


class _Nested(NamedTuple):
    """The look of a series where others have the same values: it lies inside those before it."""

    size: float
    """Size of its markers."""
    wider: float
    """Points that are added to the width of its lines."""


def _nested(drawn: Sequence[pd.Series], sizes: Sequence[float]) -> list[_Nested]:
    """A look for each series, in the order in which they are drawn: where values agree, each lies inside those before it.

    Args:
        drawn: values of each series by position.
        sizes: sizes of their markers.
    """
    span = max(one.max() for one in drawn) - min(one.min() for one in drawn) if drawn else 0.0
    groups: list[list[int]] = []
    for number, values in enumerate(drawn):
        group = next((group for group in groups if _agree(drawn[group[0]], values, _ALIKE * span)), None)
        if group is None:
            groups.append([number])
        else:
            group.append(number)
    looks = [_Nested(size, 0.0) for size in sizes]
    for group in groups:
        own = [sizes[number] for number in group]
        if any(inner > _INSIDE * outer for outer, inner in pairwise(own)):
            own = np.linspace(_OUTERMOST * max(own), _INNERMOST * max(own), len(own)).tolist()
        each = min(_WIDER, _MOST_WIDER / max(1, len(group) - 1))
        for place, (number, size) in enumerate(zip(group, own, strict=True)):
            looks[number] = _Nested(size, each * (len(group) - 1 - place))
    return looks


def _agree(one: pd.Series, other: pd.Series, most: float) -> bool:
    """Return whether two series have positions in common, and there values that differ by no more than this."""
    differences = (one - other).abs().dropna()
    return len(differences) > 0 and bool((differences <= most).all())


def lies_around(handle: Line2D) -> bool:
    """Return whether a handle of a legend is of a series that lies around others with the same values."""
    return handle.get_marker() != "None" and float(handle.get_linewidth()) > _WIDTH


def in_turn(frame: pd.DataFrame) -> pd.Series:
    """The rows of cells that took turns, as a mask."""
    return frame[ROUNDS_COLUMN].map(bool) if ROUNDS_COLUMN in frame.columns else pd.Series(False, index=frame.index)


def draw_panel(
    ax: Axes, frame: pd.DataFrame, drawn: Sequence[tuple[Series, pd.DataFrame]], names: Names, metric: Metric,
    styles: dict[str, SeriesStyle], *, per: Per, with_fit: bool,
) -> DrawnPanel:  # fmt: skip
    """Draw one metric over an axis for some series of a frame along it; `with_fit` names slopes, and joins are pale."""
    axis = str(frame[AXIS_COLUMN].iloc[0]) if len(frame) else "blocks"
    unit = _unit_of(drawn, metric, per)
    points = [one for series, cells in drawn if (one := _points(series, cells, metric, per, unit)) is not None]
    found = [one for one in points if not lacking(one.cells).any()]
    levels = [one for one in points if lacking(one.cells).any()]
    frame = frame[~lacking(frame)] if found else frame
    positions = sorted(set(frame[POSITION_COLUMN].dropna()))
    if in_doubles(axis, positions):
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_locator(NullLocator())
    of_series = [styles[style_key(one.series)] for one in found]
    nested = _nested([one.values for one in found], [style.size for style in of_series])
    handles: list[Line2D] = []
    for (series, measured, fit, mean, bars, scale, steps), style, look in zip(found, of_series, nested, strict=True):
        label = legend_text(names.of(series), _fit_text(fit, metric, steps, axis) if with_fit and fit else "")
        crowded = min(1.0, _UNCROWDED / len(mean))
        points_alone = fit is not None and fit.shape == "no change measurable"
        joined = "none" if with_fit or (fit is not None and fit.shape != "not a line") else style.dash
        if fit is not None and joined == "none":
            _draw_fit(ax, fit, mean, metric, style, scale, look.wider)
        ax.errorbar(
            mean.index, mean, bars, marker=style.marker, color=style.colour, mfc="white", mew=1.2 * crowded**0.5,
            ms=look.size * crowded, label=label, lw=1.2 + look.wider, ls=joined, drawstyle=_joined(metric, fit),
            capsize=2 + look.wider,
        )  # fmt: skip
        _mark_noise(ax, measured, mean, metric, style.colour, look.size * crowded)
        # Without slopes a legend is of all panels, and a series may have a line in another one.
        dash = "none" if points_alone and with_fit else style.dash
        handle = Line2D([], [], color=style.colour, marker=style.marker, ls=dash, mfc="white", label=label)
        handle.set(markersize=look.size, linewidth=_WIDTH + look.wider)
        handles.append(handle)
        _mark_end(ax, frame, series, mean, style)
    handles += [_draw_level(ax, one, names, axis, styles[style_key(one.series)]) for one in levels]
    ax.set_xlabel(axis_label(axis))
    of_what = "step" if per == "step" else "epoch of the paper's set"
    ax.set_ylabel(unit.name if metric.is_bytes else f"{_SECONDS_IN_WORDS[unit.name]} per {of_what}")
    _place_ticks(ax, positions)
    alone = any(one.fit is not None and one.fit.shape == "no change measurable" for one in found)
    return DrawnPanel(handles, alone)


def _place_ticks(ax: Axes, positions: Sequence[float]) -> None:
    """Place the ticks at the positions, if they are few and no two are close to each other; or else at whole numbers."""
    shown = np.log2(positions).tolist() if ax.get_xscale() == "log" else list(positions)
    span = shown[-1] - shown[0] if shown else 0
    apart = all(after - before >= _CLOSEST_TICKS * span for before, after in pairwise(shown))
    if apart and 0 < len(positions) <= _MOST_TICKS:
        ax.xaxis.set_major_locator(FixedLocator(positions))
    elif ax.get_xscale() != "log" and all(float(position).is_integer() for position in positions):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_level(ax: Axes, level: DrawnPoints, names: Names, axis: str, style: SeriesStyle) -> Line2D:
    """Draw the value of a network that lacks the axis as a level across the panel, and return its handle."""
    label = legend_text(names.of(level.series), f"no {axis.replace('_', ' ')}")
    return ax.axhline(float(level.values.iloc[0]), color=style.colour, ls=style.dash, lw=1, alpha=0.7, label=label)


def _fit_text(fit: LineFit, metric: Metric, factor: float, axis: str) -> str:
    """Text `8.3 ± 0.4 ms per block`, a note that no change is measurable, or one that the values are not a line."""
    if fit.shape == "not a line":
        return fit.shape
    slope, low, high = (factor * one for one in (fit.fit.slope, *(fit.fit.slope_interval or (fit.fit.slope, fit.fit.slope))))
    mark = inexact_mark(fit.certainty)
    if fit.shape == "no change measurable":
        return f"{mark}{fit.shape} {within_text(max(abs(low), abs(high)), is_bytes=metric.is_bytes)} {per_unit(axis)}"
    if fit.curve is not None:
        return mark + _curve_text(fit.curve, metric, factor, axis) + _off_text(fit, metric, factor)
    alone = " (no interval)" if fit.fit.slope_interval is None and not metric.repeats else ""
    return (
        f"{mark}{slope_text(slope, low, high, is_bytes=metric.is_bytes)} {per_unit(axis)}{alone}{_off_text(fit, metric, factor)}"
    )


def _curve_text(curve: Curve, metric: Metric, factor: float, axis: str) -> str:
    """Text `12.3 KiB per token, 48 B per pair of tokens`, or `8.00 GiB divided by world size`."""

    def text(value: float, ends: Interval | None) -> str:
        low, high = ends or (value, value)
        return slope_text(factor * value, factor * low, factor * high, is_bytes=metric.is_bytes)

    term = f"{text(curve.term, curve.term_interval)} {term_unit(axis, curve.form)}"
    ends = curve.slope_interval
    without_line = curve.form == "inverse" or (ends is not None and ends[0] <= 0 <= ends[1])
    return term if without_line else f"{text(curve.slope, curve.slope_interval)} {per_unit(axis)}, {term}"


def _off_text(fit: LineFit, metric: Metric, factor: float) -> str:
    """Text ` (off by up to 12.00 KiB)` of a declared basis that does not fit."""
    if fit.misfit is None:
        return ""
    return f" (off by up to {quantity_text(factor * fit.misfit, is_bytes=metric.is_bytes)})"


def _draw_fit(ax: Axes, fit: LineFit, mean: pd.Series, metric: Metric, style: SeriesStyle, scale: float, wider: float) -> None:
    """Draw the fitted line or curve; if none fits, join the points palely, and if no change is measurable, draw nothing."""
    if fit.shape == "no change measurable":
        return
    if fit.shape == "not a line":
        ax.plot(
            mean.index, mean, ls=style.dash, drawstyle=_joined(metric, fit), color=style.colour, lw=0.8 + wider, alpha=0.4
        )  # fmt: skip
        return
    ends = [mean.index.min(), mean.index.max()]
    in_curve = np.geomspace if ax.get_xscale() == "log" else np.linspace
    at = ends if fit.curve is None and ax.get_xscale() != "log" else in_curve(ends[0], ends[1], 60).tolist()
    ax.plot(at, [scale * fit.at(x) for x in at], ls=style.dash, color=style.colour, lw=_WIDTH + wider)


def _joined(metric: Metric, fit: LineFit | None) -> Literal["default", "steps-mid"]:
    """Style in which points are joined: reserved memory comes in segments, and jumps from one position to the next."""
    return "steps-mid" if metric.name == "reserved" and fit is not None and not fit.linear else "default"


def _mark_noise(ax: Axes, measured: pd.DataFrame, mean: pd.Series, metric: Metric, colour: str, size: float) -> None:
    """Draw a cross through the marker of each position whose times were disturbed."""
    noisy = [] if metric.is_bytes else sorted(set(measured.loc[measured["noise"] != "", POSITION_COLUMN]))
    if noisy:
        ax.plot(noisy, mean.loc[noisy], "x", color=colour, ms=size + 3, mew=0.8, zorder=4)


def _mark_end(ax: Axes, frame: pd.DataFrame, series: Series, mean: pd.Series, style: SeriesStyle) -> None:
    """Mark the end of a series that the device's memory sets."""
    same = frame[frame["status"] == "oom"]
    for column, value in series.items() if len(same) else ():
        same = same[same[column].isna() if pd.isna(value) else same[column] == value]  # type: ignore[call-overload]
    if same.empty:
        return
    at = same[POSITION_COLUMN].min()
    # A larger step may have had room again; the mark stands where there was first none.
    shallower = mean[mean.index <= at]
    start, height = (shallower.index[-1], shallower.iloc[-1]) if len(shallower) else (mean.index[0], mean.iloc[0])
    ax.plot([start, at], [height] * 2, ":", color=style.colour, lw=1)
    early = 2 * at < frame[POSITION_COLUMN].min() + frame[POSITION_COLUMN].max()
    ax.annotate("out of memory", (at, height), color=style.colour, fontsize=7.5, ha="left" if early else "right", va="bottom")


def draw_paper(ax: Axes, dataset: str) -> list[Line2D]:
    """Draw table 4, pale, behind one's own lines, and return the handles for a legend: one for all networks."""
    table, drawn = paper.memory(), False
    for model, cells in table[table["dataset"] == dataset].groupby("model"):
        colour, marker, _ = MODEL_STYLES[str(model)]
        label, drawn = f"paper's {model_title(str(model))} (nvidia-smi)", True
        ax.plot(cells["blocks"], cells["bytes"] / MIB, marker=marker, ms=3, lw=1, color=colour, alpha=0.3, label=label)
    pale = Line2D([], [], color=PALE, alpha=0.5, marker="o", ms=3, lw=1, label="pale: the paper (nvidia-smi)")
    return [pale] if drawn else []


def _steps(series: Series, metric: Metric, per: Per) -> float:
    """Number of steps that a value is of: bytes are those of one."""
    if metric.is_bytes or per == "step":
        return 1.0
    if series["dataset"] not in SPECS:
        return float("nan")  # inputs of a case have no epoch
    return float(ceil(SPECS[str(series["dataset"])].train_size / int(str(series["batch_size"]))))
