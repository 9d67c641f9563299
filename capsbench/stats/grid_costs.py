"""Costs of the grids of a report: the term that two axes share, and a prediction of any other point.

Each series over several axes has a `surface`. Where its cells took turns, their times are compared within one round, so
that the machine's changes from round to round cancel, and intervals contain the scatter of processes, as those of slopes do.

Every prediction comes with a check: the cell farthest out is left out once and predicted from all others. A peak is the highest
of several moments, each with a cost of its own: outside the grid another one may be highest, so that a surface is no more than a
lower bound of it there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import isfinite
from typing import NamedTuple, Self

import numpy as np
import pandas as pd

from capsbench.axes import AxisForm, shared_unit
from capsbench.errors import ConfigurationError, suggesting
from capsbench.frame import BASES_COLUMN, axes_in, positions, without_axis
from capsbench.stats.bases import HALF_A_BYTE, forms_of
from capsbench.stats.intervals import Floats, StandardError, StandardErrors
from capsbench.stats.line_fit import least_certainty
from capsbench.stats.linearity import ROUNDING_BYTES
from capsbench.stats.metrics import METRICS, Metric
from capsbench.stats.paired import centre
from capsbench.stats.processes import (
    BETWEEN_PROCESSES,
    PRIOR_DEGREES,
    equal_processes,
    moderated,
    process_error,
    rounds_error,
)
from capsbench.stats.slopes import series_columns
from capsbench.stats.surface import ROUNDED_AWAY, PointEstimate, Surface, fit_surface, fitted_terms, row_of
from capsbench.stats.turn_times import CommonRounds, common_rounds

_POSSIBLE = ("a position is a finite number above 0", "a number of blocks is finite, and 0 or above")


class _Grid(NamedTuple):
    """The cells of one series over several axes."""

    series: dict[str, object]
    places: Floats
    """`[cells, axes]`."""
    cells: pd.DataFrame
    rounding: float
    forms: Mapping[str, AxisForm]
    """Forms that were declared, by the axis's name."""


def _grids(frame: pd.DataFrame, axes: Sequence[str]) -> Iterable[_Grid]:
    """The cells that ended well, series by series, with their positions on all axes."""
    good = frame[frame["status"] == "ok"]
    places = pd.DataFrame({axis: positions(good, axis) for axis in axes})
    for axis in axes:
        good = without_axis(good, axis)
    good = good[places.notna().all(axis=1)]
    keys = series_columns(good)
    for values, rows in good.groupby(keys, dropna=False, sort=False):
        rounding = ROUNDING_BYTES if str(rows["device"].iloc[0]).startswith("cuda") else HALF_A_BYTE
        declared = rows[BASES_COLUMN].iloc[0] if BASES_COLUMN in rows.columns else {}
        yield _Grid(dict(zip(keys, values, strict=True)), places.loc[rows.index].to_numpy(dtype=float), rows, rounding, declared)


def _surface(grid: _Grid, metric: Metric, axes: Sequence[str]) -> tuple[Surface, float | None, Floats] | None:
    """The surface of one metric, the share by which it misses the cell farthest out, and that cell's place."""
    known = grid.cells[metric.column].notna().to_numpy()
    places, values = grid.places[known], grid.cells[metric.column][known].to_numpy(dtype=float)
    forms = [forms_of(metric, axis, grid.forms.get(axis)) for axis in axes]
    fit = partial(fit_surface, repeats=metric.repeats, forms=forms, rounding=grid.rounding)
    turns = [] if metric.is_bytes else common_rounds(grid.cells[known], metric.column)
    for one in turns:
        values = relative_to_each_other(values, one)
    found = fit(places, values) if len(values) else None
    if found is None:
        return None
    if turns:
        shared, single = errors_of_turns(turns)
        found = replace(found, shared=shared, single=single)
    farthest = int(np.argmax((places / np.maximum(places.max(axis=0), 1e-300)).sum(axis=1)))
    others = (places != places[farthest]).any(axis=1)
    without = fitted_terms(places[others], values[others], found.terms, relative=not metric.repeats)
    if without is None or not values[farthest]:
        return found, None, places[farthest]
    at_farthest = float(row_of(places[farthest].tolist(), found.terms) @ without.factors)
    off = at_farthest / values[farthest] - 1
    return found, off if abs(off) > ROUNDED_AWAY else 0.0, places[farthest]


def relative_to_each_other(values: Floats, turns: CommonRounds) -> Floats:
    """`[cells]`, times without what drifted between rounds; cells that are not in these keep theirs.

    Args:
        values: `[cells]`, median seconds of each.
        turns: rounds of most cells of a replicate.
    """
    # A slow round multiplies the times of all its cells by one factor, so that logarithms are compared.
    logs = np.log(turns.seconds)
    level = np.median(logs.mean(axis=1))
    found = values.copy()
    found[turns.cells] = np.exp(level + np.median(logs - logs.mean(axis=1, keepdims=True), axis=0))
    return found


def errors_of_turns(turns: Iterable[CommonRounds]) -> tuple[StandardErrors, StandardErrors]:
    """The shares by which all times of common rounds are off, and those of one further process.

    Rounds scatter, and processes by as much as these show and earlier runs did.
    """
    processes = [process for one in turns for process in one.processes]
    levels = np.concatenate([np.exp(np.log(one.seconds).mean(axis=1)) for one in turns])
    shares = levels / np.median(levels)
    ends = centre(shares).interval
    rounds = [] if ends is None else [rounds_error(ends, len(levels))]
    process = moderated([StandardError(BETWEEN_PROCESSES, PRIOR_DEGREES), process_error(shares, processes)])
    mean = process._replace(value=process.value / equal_processes(processes) ** 0.5)
    return (mean, *rounds), (process, *rounds)


def cross_terms(frame: pd.DataFrame) -> pd.DataFrame:
    """The terms that the axes of a grid share: bytes per block *and* sample.

    Args:
        frame: frame from `load`, of reports that vary the same axes.

    Returns:
        A row per series, metric and term: the series' columns, `metric`, `axes`, `unit` (`bytes per block and sample`), `value`,
        `low`, `high` (95 %; equal to the value where every byte lies on the surface), `exact`, `held_out_error`: the share by
        which the cell farthest out is missed if it is predicted from all others, and `certainty`, as in `fitted_slopes`. Empty
        for a sweep over one axis.
    """
    rows = []
    axes = axes_in(frame)
    for grid in _grids(frame, axes) if len(axes) > 1 else ():
        for metric in METRICS.values():
            found = _surface(grid, metric, axes)
            for term in found[0].terms if found else ():
                if found and sum(power != 0 for power in term) > 1:
                    value, ends = found[0].factor(term)
                    low, high = ends or (np.nan, np.nan)
                    unit = f"{'bytes' if metric.is_bytes else 'seconds'} {shared_unit(axes, term)}"
                    row = {
                        "metric": metric.name,
                        "axes": " × ".join(axes),
                        "unit": unit,
                        "value": value,
                        "low": low,
                        "high": high,
                    }
                    checks = {"exact": found[0].exact, "held_out_error": found[1]}
                    rows.append(grid.series | row | checks | {"certainty": least_certainty(grid.cells, metric)})
    return _table(frame, rows, ["metric", "axes"])


def _table(frame: pd.DataFrame, rows: Sequence[Mapping[str, object]], heads: Sequence[str]) -> pd.DataFrame:
    """A table of estimates, which has its columns even if it has no rows."""
    return pd.DataFrame(
        rows, columns=[*series_columns(frame), *heads, "unit", "value", "low", "high", "exact", "held_out_error", "certainty"]
    )


def predicted_at(frame: pd.DataFrame, at: Mapping[str, float]) -> pd.DataFrame:
    """The cost of every series at a point that need not have been measured.

    Args:
        frame: frame from `load`.
        at: position on each axis; axes that the reports vary and that are not named here keep series apart.

    Returns:
        A row per series and metric: the series' columns, `metric`, `unit`, `value`, `low`, `high` (95 % interval of one
        measurement; equal to the value where bytes lie on the surface exactly), `exact`, and `held_out_error` and `certainty`
        as in `cross_terms`. Outside the positions that were measured a peak is known from below alone, since another moment of
        the step may be its highest there: it is not `exact`, and its `high` is NaN. No cost is below 0: intervals end there. A
        `value` that is not known is NaN, and `unknown` says why in words; it is empty for the others.

    Raises:
        ConfigurationError: no axis is named, no record lies on one, all lie at one position of it, or a position is not a number
            above 0 (for blocks, 0 or above).
    """
    axes = list(at)
    if not axes:
        raise ConfigurationError("`at` names no axis", f"give a position on {' and '.join(axes_in(frame))}")
    for axis in axes:
        if positions(frame, axis).isna().all():
            raise ConfigurationError(
                f"no record here lies on the axis '{axis}'",
                suggesting(axis, axes_in(frame), f"the axes here are {', '.join(axes_in(frame))}"),
            )
        if not isfinite(at[axis]) or at[axis] < 0 or (at[axis] == 0 and axis != "blocks"):
            raise ConfigurationError(f"`at` has the position {at[axis]:g} on the axis '{axis}'", _POSSIBLE[axis == "blocks"])
        there = positions(frame[frame["status"] == "ok"], axis).dropna().unique()
        if len(there) == 1:
            raise ConfigurationError(
                f"`at` names the axis '{axis}', which was {there[0]:g} in every cell", "name axes with several measured positions"
            )
    rows = []
    place = [at[axis] for axis in axes]
    for grid in _grids(frame, axes):
        for metric in METRICS.values():
            found = _surface(grid, metric, axes)
            if found is not None:
                estimate = found[0].at(place)
                outside = not _is_among(place, grid, metric)
                from_below = metric.is_highest and outside
                known = _Known.of(estimate, _most_below(place, grid, metric) if from_below and not metric.repeats else -np.inf)
                if (
                    outside and found[0].bent and metric.name != "reserved"
                ):  # segments of 2 MiB lie on no line, and yet follow one
                    known = _Known(np.nan, np.nan, np.nan, "its bytes lie on no line and no curve that was found")
                row = {
                    "metric": metric.name,
                    "unit": "bytes" if metric.is_bytes else "seconds",
                    "value": known.value,
                    "low": known.low,
                    "high": np.nan if from_below else known.high,
                    "unknown": known.reason,
                }
                exact = found[0].exact and not from_below and not known.reason
                checks = {"exact": exact, "held_out_error": found[1]}
                rows.append(grid.series | row | checks | {"certainty": least_certainty(grid.cells, metric)})
    return _table(frame, rows, ["metric", "unknown"])


class _Known(NamedTuple):
    """The knowledge of a cost that an estimate gives, without what no cost is: a number below 0."""

    value: float
    """The cost; NaN where it is not known."""
    low: float
    high: float
    reason: str
    """The reason in words that the cost is not known; empty if it is."""

    @classmethod
    def of(cls, estimate: PointEstimate, least: float) -> Self:
        """Return what is known of a cost that smaller cells show not to be below `least`."""
        low, high = estimate.interval or (np.nan, np.nan)
        reason = ""
        if estimate.value < 0:
            reason = "the fit falls below 0 there"
        elif low <= 0 < estimate.value:
            reason = "its interval reaches 0"
        elif low < least:
            reason = "its interval reaches below what smaller cells have"
        least_known = np.nan if np.isnan(low) or low < least else max(low, 0.0)
        return cls(np.nan if reason else estimate.value, least_known, high if high >= 0 else np.nan, reason)


def _most_below(place: Sequence[float], grid: _Grid, metric: Metric) -> float:
    """The largest value of a metric at the cells that no axis places beyond a point; 0 without one."""
    smaller = (grid.places <= place).all(axis=1)
    return float(np.nanmax(grid.cells[metric.column].to_numpy(dtype=float, na_value=np.nan)[smaller], initial=0.0))


def _is_among(place: Sequence[float], grid: _Grid, metric: Metric) -> bool:
    """Return whether a point lies between the positions on every axis at which a metric is known."""
    known = grid.places[grid.cells[metric.column].notna().to_numpy()]
    return bool((known.min(axis=0) <= place).all() and (place <= known.max(axis=0)).all())
