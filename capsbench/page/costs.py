"""The costs of series as a table with small charts, which the page begins with."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from capsbench.axes import axis_title, per_unit
from capsbench.figures.sparks import SparkPoints, fitted_points, scale_of, svg, value_ranges
from capsbench.frame import all_square
from capsbench.stats.line_fit import values_by_position
from capsbench.stats.linearity import CURVES
from capsbench.stats.metrics import METRICS, Metric
from capsbench.words.along import places_text
from capsbench.words.disturbances import disturbed_by
from capsbench.words.slopes_in_words import INEXACT_NOTE, NOISY, inexact_mark
from capsbench.words.units import quantity_text

_SHOWN = ("retained", "peak", "train", "inference")
"""The quantities of the table."""
_WIDTH, _HEIGHT = 52, 24
"""Size of a chart in pixels."""


@dataclass(frozen=True)
class Cost:
    """The cost of a series in one quantity."""

    text: str
    """Slope of the quantity, with a `~` if something disturbed its times; empty where no change is measurable.

    A value without a slope stands here only where the head of the column has no unit of a slope.
    """
    unchanged: tuple[str, ...]
    """Lines of a text on a slope that cannot be distinguished from 0; empty for any other."""
    ratio: str
    """The ratio to ResCapsNet's slope; empty where there is none."""
    remark: str
    """Further facts, such as the value of a quantity without a slope."""
    chart: str
    """A small chart as SVG, in the current colour."""


def cost_table(
    page_series: Mapping[int, Mapping[str, Any]], cells: Mapping[int, pd.DataFrame]
) -> tuple[list[str], dict[int, list[Cost | None]]]:
    """The costs of some series: charts of one quantity share their scale, so that level lines look level.

    Args:
        page_series: entries of `series_data` by index.
        cells: their records along their axes, by index.

    Returns:
        The heads of the columns, and the costs of each series in their order; None where it has no value.
    """
    metrics = [METRICS[name] for name in _SHOWN if any(rows[METRICS[name].column].notna().any() for rows in cells.values())]
    axes = {str(series["axis"]) for series in page_series.values()}
    alike = per_unit(axes.copy().pop()) if len(axes) == 1 else ""
    with_unit = {metric.name for metric in metrics if alike and any(metric.name in page_series[index]["fits"] for index in cells)}
    heads = [f"{metric.title} {alike}" if metric.name in with_unit else metric.title for metric in metrics]
    points = {(index, metric.name): _points(rows, metric) for index, rows in cells.items() for metric in metrics}
    scales = {(index, name): scale_of(page_series[index], name) for index, name in points}
    ranges = value_ranges(
        (scales[key], [value for _, value in (*known, *_fitted(page_series[key[0]], key[1], known))])
        for key, known in points.items()
    )
    costs: dict[int, list[Cost | None]] = {index: [] for index in page_series}
    for (index, name), known in points.items():
        series = page_series[index]
        if not known:
            costs[index].append(None)
            continue
        chart = svg(
            known, _fitted(series, name, known), "currentColor", *ranges[scales[index, name]], str(series["axis"]),
            width=_WIDTH, height=_HEIGHT,
        )  # fmt: skip
        costs[index].append(
            _cost(series, METRICS[name], known, chart, named=name not in with_unit, square=all_square(cells[index]))
        )
    return heads, costs


def _points(cells: pd.DataFrame, metric: Metric) -> SparkPoints:
    """Position and value of the cells that ended well."""
    good = cells[(cells["status"] == "ok") & cells[metric.column].notna()]
    return sorted(values_by_position(good, metric).items()) if len(good) else []


def _fitted(series: Mapping[str, Any], metric: str, points: SparkPoints) -> SparkPoints:
    return fitted_points(series["fits"][metric], points, str(series["axis"])) if metric in series["fits"] else []


def _cost(series: Mapping[str, Any], metric: Metric, points: SparkPoints, chart: str, *, named: bool, square: bool) -> Cost:
    """The cost of a series in a quantity; `named` if the head does not name the unit of its axis, `square` of square images."""
    fit, axis = series["fits"].get(metric.name), str(series["axis"])
    if fit is None:
        place, value = points[-1]
        amount = quantity_text(value, is_bytes=metric.is_bytes)
        # A value is no slope, so it cannot stand under the unit of one.
        at = f"at {places_text(axis, [place], square=square)}" if place else _without(axis)
        return Cost(amount, (), "", at, chart) if named else Cost("-", (), "", f"{amount} in all, {at}", chart)
    shape, text = str(fit["shape"]), str(fit["text"]) + (NOISY if fit["noise"] else "")
    remarks = [per_unit(axis)] if named and shape not in CURVES else []
    remarks += ["not a line"] if shape == "not a line" else []
    remarks += ["no interval"] if fit["slope_low"] is None and not metric.repeats else []
    remarks += [fit["declared"]] if fit["declared"] else []
    if shape == "no change measurable":
        unchanged, _, bound = text.partition(shape)
        return Cost("", (unchanged + shape, bound.strip()), "", ", ".join(remarks), chart)
    return Cost(text, (), f"× {fit['ratioText']}" if fit["ratioText"] else "", ", ".join(remarks), chart)


def notes_on(page_series: Iterable[Mapping[str, Any]]) -> str:
    """A sentence on each sign of the table that the costs of these series have: `×`, `≈` and `~`."""
    fits = [fit for series in page_series for name, fit in series["fits"].items() if name in _SHOWN]
    noise = dict.fromkeys(name for fit in fits if fit["noise"] for name in fit["noise"].split(","))
    notes = ["× is the ratio to ResCapsNet’s slope."] if any(fit["ratioText"] for fit in fits) else []
    notes += [f"{INEXACT_NOTE}."] if any(inexact_mark(fit["certainty"]) for fit in fits) else []
    return " ".join([*notes, *([f"{NOISY} {disturbed_by(noise)}."] if noise else [])])


def _without(axis: str) -> str:
    """Text `no blocks` of a network that does not have an axis."""
    return "no blocks" if axis == "blocks" else f"no {axis_title(axis).lower()}"
