"""The fit of one series: a line through its values over an axis, or the curve that fits where a line does not.

Ordinary least squares, for times of cells that took turns round by round (`turn_times`, `paired`). Whole numbers at whole
positions are fitted in whole numbers, so that exact bytes have exact slopes. The intervals of lines come from `intervals` and
`scatter`; `linearity` decides whether a line fits at all.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from capsbench.axes import AxisForm
from capsbench.errors import ConfigurationError
from capsbench.frame import AXIS_COLUMN, BASES_COLUMN, CERTAINTY_COLUMN, POSITION_COLUMN, SAMPLE_COLUMNS
from capsbench.records import Certainty
from capsbench.stats.bases import (
    HALF_A_BYTE,
    Curve,
    Form,
    curves_of,
    declared_curve,
    declared_turns_curve,
    exact_curve,
    near_inverse,
    timed_curve,
    times_fit,
    turns_curve,
)
from capsbench.stats.intervals import Floats, StandardError, half_width, interval
from capsbench.stats.lasting import expected_lasting
from capsbench.stats.least_squares import SlopeFit, fit_slope
from capsbench.stats.linearity import (
    LARGEST_DEVIATION,
    ROUNDING_BYTES,
    Shape,
    bytes_are_linear,
    flat_times_are_linear,
    shape_of,
    times_are_linear,
    turns_are_linear,
)
from capsbench.stats.metrics import Metric
from capsbench.stats.scatter import Points, line_errors
from capsbench.stats.turn_times import Basis, DepthTime, TurnFit, TurnTimes, fit_turns, turn_times


@dataclass(frozen=True)
class LineFit:
    """The line through one metric of a series, and its reliability."""

    fit: SlopeFit
    """The fitted line, whose intervals contain the noise within and between processes, and between replicates."""
    linear: bool
    """True if a line fits at all."""
    turns: TurnFit | None = None
    """The slopes of all rounds, if it is a time of cells that took turns."""
    curve: Curve | None = None
    """The curve that fits where a line does not, or that was declared; its slope is also that of `fit`."""
    declared: AxisForm | None = None
    """The form that was declared, which the positions may be too few for; None if it was found."""
    misfit: float | None = None
    """Largest residual, in bytes or seconds, of a declared form that does not fit; None if it does."""
    certainty: Certainty | None = None
    """The least certainty of its values, if they were predicted."""

    @property
    def basis(self) -> Basis:
        """Origin of the slope."""
        return self.turns.basis if self.turns else "cells"

    @property
    def shape(self) -> Shape:
        """Shape of the values: a line whose slope can be distinguished from 0, or not; or a curve."""
        return self.curve.form if self.curve else shape_of(self.linear, *(self.fit.slope_interval or (None, None)))

    def at(self, position: float) -> float:
        """The fitted value at a position."""
        return self.curve.at(position) if self.curve else self.fit.intercept + self.fit.slope * position

    def bent(self, curve: Curve | None, positions: Floats, values: Floats) -> "LineFit":
        """The fit with a curve through these values in place of the line; the line itself where there is no curve."""
        if curve is None:
            return self
        fit = replace(
            self.fit, slope=curve.slope, slope_interval=curve.slope_interval, intercept=curve.intercept,
            intercept_interval=None, slope_error=None, deviation=curve.deviation, r2=curve.r2(positions, values),
        )  # fmt: skip
        return replace(self, fit=fit, linear=False, curve=curve)


class SeriesKind(NamedTuple):
    """The facts on which the basis of a series' costs depends."""

    axis: str
    """Name of its axis."""
    rounding: float
    """Bytes by which its allocator rounds."""
    declared: AxisForm | None = None
    """The form that was declared for its axis, if any."""

    @property
    def curve(self) -> Form | None:
        """The form that was declared, if it is no line."""
        return None if self.declared is None or self.declared == "line" else self.declared

    def curves_found(self, metric: Metric) -> Sequence[Form]:
        """Forms other than a line that are looked for."""
        return () if self.declared == "line" else curves_of(metric, self.axis)

    @classmethod
    def of(cls, axis: str, device: str, bases: Mapping[str, AxisForm]) -> Self:
        """Return the kind of a series along an axis on a device, where forms were declared for some axes."""
        return cls(axis, ROUNDING_BYTES if device.startswith("cuda") else HALF_A_BYTE, bases.get(axis))

    @classmethod
    def of_rows(cls, cells: pd.DataFrame) -> Self:
        """Return the kind of a series from its rows."""
        known = {
            name: cells[name].iloc[0] for name in (AXIS_COLUMN, "device", BASES_COLUMN) if name in cells.columns and len(cells)
        }
        return cls.of(str(known.get(AXIS_COLUMN, "")), str(known.get("device", "")), known.get(BASES_COLUMN, {}))


def fit_line(cells: pd.DataFrame, metric: Metric) -> LineFit | None:
    """The line through one metric of a series; None with fewer than two positions.

    Args:
        cells: rows of the series that ended well, from `series_of`.
        metric: metric to fit.
    """
    found = fit_in_turn(cells, metric) or fit_points(points_of(cells, metric), metric, SeriesKind.of_rows(cells))
    return found and replace(found, certainty=least_certainty(cells, metric))


def least_certainty(cells: pd.DataFrame, metric: Metric) -> Certainty | None:
    """The least certainty of the values of a metric; None if all of them were measured.

    Args:
        cells: rows of records, those without a value included.
        metric: metric of the values.
    """
    if CERTAINTY_COLUMN not in cells.columns:
        return None
    known = cells.loc[cells[metric.column].notna(), CERTAINTY_COLUMN]
    found: list[Certainty] = [one[metric.column] for one in known if isinstance(one, Mapping) and metric.column in one]
    return max(found, key=_CERTAINTIES.index, default=None)


_CERTAINTIES: tuple[Certainty, ...] = ("exact", "modelled", "guessed")
"""Certainties, the best one first."""


def values_by_position(cells: pd.DataFrame, metric: Metric, line: LineFit | None = None) -> dict[float, float]:
    """The value at each position: the mean over replicates, or that from rounds in which the cells took turns.

    Args:
        cells: rows of a series with values.
        metric: metric of the values.
        line: their line from `fit_line`, if it is known already.
    """
    means = cells[metric.column].astype(float).groupby(cells[POSITION_COLUMN]).mean()
    found = {float(place): float(mean) for place, mean in zip(means.index, means, strict=True)}
    line = line or fit_in_turn(cells, metric)
    return found | {place: one.seconds for place, one in (line.turns.at if line and line.turns else {}).items()}


def fit_in_turn(cells: pd.DataFrame, metric: Metric) -> LineFit | None:
    """The line through a time of cells that took turns; None if these, or enough of them, did not."""
    times = None if metric.is_bytes else turn_times(cells[cells[metric.column].notna()], metric.column)
    turns = fit_turns(times) if times is not None else None
    if times is None or turns is None or len(turns.at) < 2:
        return None
    blocks, values = list(turns.at), [one.seconds for one in turns.at.values()]
    fit = fit_slope(blocks, values)
    slope, ends = turns.slope.value, turns.slope.interval
    heights_at_0 = np.array(values) - slope * np.array(blocks)
    intercept = float(np.average(heights_at_0, weights=_precisions(turns.at.values())))
    part = times.growing if turns.basis == "edges" and times.growing is not None else times.whole
    known = np.isin(times.depths, blocks)
    linear = turns_are_linear(times.depths[known], part[:, known], fit.deviation, _lasting_of_a_cell(times, turns))
    if linear is None:
        linear = times_are_linear(np.array(blocks), np.array(values), fit.deviation)
    taken = replace(
        fit, slope=slope, slope_interval=ends, intercept=intercept, intercept_interval=None, slope_error=None, exact=False,
        points=int(cells[metric.column].notna().sum()),
    )  # fmt: skip
    line, kind = LineFit(taken, linear, turns), SeriesKind.of_rows(cells)
    places, heights = np.array(blocks), np.array(values)
    curve = None
    if kind.curve:
        curve = declared_turns_curve(kind.curve, times.depths[known], part[:, known], values, times.processes)
    elif kind.curves_found(metric) and fit.deviation > LARGEST_DEVIATION:
        curve = turns_curve(times.depths[known], part[:, known], values, times.processes)
    return _against_declared(line.bent(curve, places, heights), places, heights, metric, kind)


_LEAST_ERROR = 1e-3
"""Least error of a time, as a share of the largest one of its line, that its weight distinguishes."""


def _precisions(times: Iterable[DepthTime]) -> Floats:
    """Weights of times in their line: one over the square of their errors, which are large after few rounds.

    A time without an interval counts as twice as uncertain as the least certain one. An interval may have been cut at 0, so that
    its farther end is the measure.
    """
    errors = np.array([max(one.high - one.seconds, one.seconds - one.low) for one in times])
    if np.isnan(errors).all() or not np.nanmax(errors):
        return np.ones(errors.size)
    errors[np.isnan(errors)] = 2 * np.nanmax(errors)
    return np.asarray(1 / np.maximum(errors, _LEAST_ERROR * errors.max()) ** 2)


def _lasting_of_a_cell(times: TurnTimes, turns: TurnFit) -> StandardError | None:
    """The error that a cell's place in memory gives its time, over all processes; None for the parts that grow."""
    if turns.basis == "edges":
        return None
    expected = expected_lasting(float(np.nanmedian(times.whole)))
    return expected._replace(value=expected.value / len(set(times.processes)) ** 0.5)


def points_of(cells: pd.DataFrame, metric: Metric) -> Points:
    """Values of a metric over an axis, NaN where there are none. Bytes repeat: only times have samples."""
    column = SAMPLE_COLUMNS.get(metric.column)
    return Points(
        cells[POSITION_COLUMN].to_numpy(dtype=float),
        cells[metric.column].to_numpy(dtype=float, na_value=np.nan),
        cells["replicate"].to_numpy(dtype=float) if "replicate" in cells.columns else None,
        [one if isinstance(one, Sequence) else None for one in cells[column]] if column in cells.columns else (),
    )


def points_at(points: Points, places: NDArray[np.intp]) -> Points:
    """The values at these indices."""
    return Points(
        points.blocks[places],
        points.values[places],
        None if points.replicates is None else points.replicates[places],
        [points.samples[place] for place in places.tolist()] if points.samples else (),
    )


def fit_bytes(
    positions: Sequence[float],
    nbytes: Sequence[int],
    metric: Metric,
    axis: str,
    *,
    device: str = "cpu",
    declared: AxisForm | None = None,
) -> LineFit:
    """The line or curve through bytes, as a report fits them.

    Args:
        positions: positions on the axis, at least two different ones.
        nbytes: as many numbers of bytes.
        metric: metric of these bytes.
        axis: name of the axis.
        device: name of the device, on which the rounding of its allocator depends.
        declared: form that was declared for the axis, if any.

    Raises:
        ConfigurationError: there are fewer than two positions.
    """
    points = Points(np.array(positions, dtype=float), np.array(nbytes, dtype=float))
    found = fit_points(points, metric, SeriesKind.of(axis, device, {} if declared is None else {axis: declared}))
    if found is None:
        raise ConfigurationError(f"a slope over {len(set(positions))} positions", "a line needs two different positions")
    return found


def fit_points(points: Points, metric: Metric, kind: SeriesKind) -> LineFit | None:
    """The line of `fit_line` for values of which some may be missing."""
    points = points_at(points, np.flatnonzero(~np.isnan(points.values)))
    blocks, values = points.blocks, points.values
    if np.unique(blocks).size < 2:
        return None
    curve = declared_curve(kind.curve, points, relative=not metric.is_bytes) if kind.curve else None
    if curve is None:
        found = _found(points, metric, kind)
    else:
        found = LineFit(fit_slope(blocks.tolist(), values.tolist()), False).bent(curve, blocks, values)
    return _against_declared(found, blocks, values, metric, kind)


def _against_declared(found: LineFit, positions: Floats, values: Floats, metric: Metric, kind: SeriesKind) -> LineFit:
    """A fit with the form that was declared, and its largest residual if it does not fit."""
    if kind.declared is None:
        return found
    span = float(np.ptp(values))
    off = found.fit.deviation * span
    if metric.is_bytes:
        exact = metric.repeats and metric.name != "reserved"
        fits = off <= (kind.rounding if exact else max(ROUNDING_BYTES, LARGEST_DEVIATION * span))
    else:
        fits = times_fit(found.curve, positions, values) if found.curve else found.linear
    # A line in place of a curve that the positions do not determine has a residual of its own.
    as_declared = (found.curve.form if found.curve else "line") == kind.declared
    return replace(found, declared=kind.declared, misfit=off if as_declared and not fits else None)


def _found(points: Points, metric: Metric, kind: SeriesKind) -> LineFit:
    """The line or curve of values, whose basis is found unless a line was declared."""
    blocks, values = points.blocks, points.values
    fit = fit_slope(blocks.tolist(), values.tolist())
    if metric.is_bytes:
        residuals = values - fit.intercept - fit.slope * blocks
        linear = bytes_are_linear(residuals, fit.deviation)
        bent = metric.repeats and not fit.exact and float(np.abs(residuals).max()) > kind.rounding
        forms = kind.curves_found(metric)
        curve = exact_curve(blocks, values, kind.rounding, forms) if bent else None
        if curve is None and not linear and "inverse" in forms:
            curve = near_inverse(points)
    else:
        linear = times_are_linear(blocks, values, fit.deviation)
        curve = timed_curve(points) if kind.curves_found(metric) and not linear else None
    if fit.slope_interval is None or (fit.exact and metric.is_bytes) or curve is not None:
        return LineFit(fit, linear).bent(curve, blocks, values)
    errors = line_errors(points, relative=not metric.is_bytes, exact=fit.exact)
    slope, intercept = (interval(fit.slope, half_width(errors.slope)), interval(fit.intercept, half_width(errors.intercept)))
    found = LineFit(replace(fit, slope_interval=slope, intercept_interval=intercept), linear)
    if found.shape == "no change measurable" and not metric.is_bytes and not flat_times_are_linear(blocks, values):
        return replace(found, linear=False)
    return found
