"""The cost of a block, a sample or a token: straight lines through memory and time over an axis.

Ordinary least squares, for times of cells that took turns round by round (`turns`, `paired`). Whole numbers at whole positions
are fitted in whole numbers, so that exact bytes have exact slopes. The intervals of lines come from `intervals` and `scatter`;
`linearity` decides whether a line fits at all.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from capsbench.axes import BASES, AxisForm, per_unit, term_unit
from capsbench.errors import ConfigurationError
from capsbench.frame import AXIS_COLUMN, BASES_COLUMN, POSITION_COLUMN, ROUNDS_COLUMN, SAMPLE_COLUMNS, SERIES_COLUMNS, along
from capsbench.options import NETWORK_OPTIONS, OPTIONS
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
from capsbench.stats.intervals import Floats, StandardError, half_width, interval, ratio_interval
from capsbench.stats.lasting import expected_lasting
from capsbench.stats.least_squares import SlopeFit, fit_slope
from capsbench.stats.linearity import (
    LARGEST_DEVIATION,
    ROUNDING_BYTES,
    Shape,
    bytes_are_linear,
    shape_of,
    times_are_linear,
    turns_are_linear,
)
from capsbench.stats.metrics import METRICS, Metric
from capsbench.stats.scatter import Points, line_errors
from capsbench.stats.turn_times import Basis, TurnFit, TurnTimes, fit_turns, turn_times, turns_ratio_interval

REFERENCE_MODEL = "rescapsnet"

_OF_A_MODEL = {"model", "source", *(name for name, option in OPTIONS.items() if option.of_model)}
_OF_CAPSULES = set(NETWORK_OPTIONS) - _OF_A_MODEL


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


def series_columns(frame: pd.DataFrame) -> list[str]:
    """The columns of a frame along an axis whose values all positions of one series share."""
    known = ("report", AXIS_COLUMN, *SERIES_COLUMNS, "kind", "source", "environment")
    return [name for name in known if name in frame.columns]


def series_of(frame: pd.DataFrame) -> Iterable[tuple[dict[str, object], pd.DataFrame]]:
    """Each series' common values, and its rows that ended well, by position.

    Args:
        frame: frame from `along`, or from `load`, whose reports then lie along their own axes.
    """
    placed = along(frame)
    for series, rows in by_series(placed[placed["status"] == "ok"]):
        yield series, rows.sort_values(POSITION_COLUMN, kind="stable")


def by_series(table: pd.DataFrame) -> Iterable[tuple[dict[str, object], pd.DataFrame]]:
    """The rows of records, or of slopes, series by series with their common values."""
    keys = series_columns(table)
    for values, rows in table.groupby(keys, dropna=False, sort=False):
        yield dict(zip(keys, values, strict=True)), rows


def fit_line(cells: pd.DataFrame, metric: Metric) -> LineFit | None:
    """The line through one metric of a series; None with fewer than two positions.

    Args:
        cells: rows of the series that ended well, from `series_of`.
        metric: metric to fit.
    """
    return _fit_in_turn(cells, metric) or _fit(_points(cells, metric), metric, _kind_of(cells))


def values_by_position(cells: pd.DataFrame, metric: Metric, line: LineFit | None = None) -> dict[float, float]:
    """The value at each position: the mean over replicates, or that from rounds in which the cells took turns.

    Args:
        cells: rows of a series with values.
        metric: metric of the values.
        line: their line from `fit_line`, if it is known already.
    """
    means = cells[metric.column].astype(float).groupby(cells[POSITION_COLUMN]).mean()
    found = {float(place): float(mean) for place, mean in zip(means.index, means, strict=True)}
    line = line or _fit_in_turn(cells, metric)
    return found | {place: one.seconds for place, one in (line.turns.at if line and line.turns else {}).items()}


def _fit_in_turn(cells: pd.DataFrame, metric: Metric) -> LineFit | None:
    """The line through a time of cells that took turns; None if these, or enough of them, did not."""
    times = None if metric.is_bytes else turn_times(cells[cells[metric.column].notna()], metric.column)
    turns = fit_turns(times) if times is not None else None
    if times is None or turns is None or len(turns.at) < 2:
        return None
    blocks, values = list(turns.at), [one.seconds for one in turns.at.values()]
    fit = fit_slope(blocks, values)
    slope, ends = turns.slope.value, turns.slope.interval
    intercept = fit.intercept + (fit.slope - slope) * float(np.mean(blocks))
    part = times.growing if turns.basis == "edges" and times.growing is not None else times.whole
    known = np.isin(times.depths, blocks)
    linear = turns_are_linear(times.depths[known], part[:, known], fit.deviation, _lasting_of_a_cell(times, turns))
    if linear is None:
        linear = times_are_linear(np.array(blocks), np.array(values), fit.deviation)
    taken = replace(
        fit, slope=slope, slope_interval=ends, intercept=intercept, intercept_interval=None, slope_error=None, exact=False,
        points=int(cells[metric.column].notna().sum()),
    )  # fmt: skip
    line, kind = LineFit(taken, linear, turns), _kind_of(cells)
    places, heights = np.array(blocks), np.array(values)
    curve = None
    if kind.curve:
        curve = declared_turns_curve(kind.curve, times.depths[known], part[:, known], values, times.processes)
    elif kind.curves_found(metric) and fit.deviation > LARGEST_DEVIATION:
        curve = turns_curve(times.depths[known], part[:, known], values, times.processes)
    return _against_declared(line.bent(curve, places, heights), places, heights, metric, kind)


def _lasting_of_a_cell(times: TurnTimes, turns: TurnFit) -> StandardError | None:
    """The error that a cell's place in memory gives its time, over all processes; None for the parts that grow."""
    if turns.basis == "edges":
        return None
    expected = expected_lasting(float(np.nanmedian(times.whole)))
    return expected._replace(value=expected.value / len(set(times.processes)) ** 0.5)


class _Kind(NamedTuple):
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


def _kind_of(cells: pd.DataFrame) -> _Kind:
    """The kind of a series, from its rows."""
    axis, device = (str(cells[name].iloc[0]) if name in cells.columns and len(cells) else "" for name in (AXIS_COLUMN, "device"))
    bases = cells[BASES_COLUMN].iloc[0] if BASES_COLUMN in cells.columns and len(cells) else {}
    return _kind(axis, device, bases)


def _kind(axis: str, device: str, bases: Mapping[str, AxisForm]) -> _Kind:
    return _Kind(axis, ROUNDING_BYTES if device.startswith("cuda") else HALF_A_BYTE, bases.get(axis))


def _points(cells: pd.DataFrame, metric: Metric) -> Points:
    """Values of a metric over an axis, NaN where there are none. Bytes repeat: only times have samples."""
    column = SAMPLE_COLUMNS.get(metric.column)
    return Points(
        cells[POSITION_COLUMN].to_numpy(dtype=float),
        cells[metric.column].to_numpy(dtype=float, na_value=np.nan),
        cells["replicate"].to_numpy(dtype=float) if "replicate" in cells.columns else None,
        [one if isinstance(one, Sequence) else None for one in cells[column]] if column in cells.columns else (),
    )


def _taken(points: Points, places: NDArray[np.intp]) -> Points:
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
    found = _fit(points, metric, _kind(axis, device, {} if declared is None else {axis: declared}))
    if found is None:
        raise ConfigurationError(f"a slope over {len(set(positions))} positions", "a line needs two different positions")
    return found


def _fit(points: Points, metric: Metric, kind: _Kind) -> LineFit | None:
    """The line of `fit_line` for values of which some may be missing."""
    points = _taken(points, np.flatnonzero(~np.isnan(points.values)))
    blocks, values = points.blocks, points.values
    if np.unique(blocks).size < 2:
        return None
    curve = declared_curve(kind.curve, points, relative=not metric.is_bytes) if kind.curve else None
    if curve is None:
        found = _found(points, metric, kind)
    else:
        found = LineFit(fit_slope(blocks.tolist(), values.tolist()), False).bent(curve, blocks, values)
    return _against_declared(found, blocks, values, metric, kind)


def _against_declared(found: LineFit, positions: Floats, values: Floats, metric: Metric, kind: _Kind) -> LineFit:
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


def _found(points: Points, metric: Metric, kind: _Kind) -> LineFit:
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
    return LineFit(replace(fit, slope_interval=slope, intercept_interval=intercept), linear)


def fitted_slopes(frame: pd.DataFrame, axis: str | None = None) -> pd.DataFrame:
    """The slope of every series and metric in a frame from `load`, along every axis that a report varies.

    Args:
        frame: frame with a row per record.
        axis: name of the one axis; by default each report's own.

    Returns:
        A row per axis, series and metric: the series' columns, of which `axis` names the axis and its own one is empty, then

        - `metric`, `unit` (`bytes per block`, `seconds per token`), `slope`, `slope_low`, `slope_high`, `intercept`,
          `intercept_low`, `intercept_high`, `r2`, `points`. The interval of a time's slope contains the scatter of samples, of
          replicates and of medians around the line. Bytes repeat: if all lie on the line, its slope is exact, and its interval
          is that number. Intervals are missing with fewer than three points, unless cells took turns, whose intercepts have none.
        - `basis`: `edges` if the slope is that of the parts that grow along the axis, `turns` if it is that of whole steps (both
          of cells that took turns), `cells` if each cell was measured alone; `rest_low`, `rest_high`: 99 % interval of the slope
          of the rest of the step, which contains 0 where the basis is `edges`; missing where the parts that grow are not known.
        - `term`, `term_low`, `term_high`, `term_unit`: the factor of n² (`bytes per pair of tokens`) where the shape is
          `quadratic`, or of 1/n (`bytes divided by world size`) where it is `inverse`, and its interval
          (`capsbench.stats.bases`); missing for lines.
        - `declared`, `misfit`: the basis that was declared for the axis (`1,n,n²`), and the largest residual from it in bytes or
          seconds where it does not fit; missing where the basis was found, or fits. The shape is another one where the positions
          are too few for it.
        - `linear`: False where a line does not fit; `shape`: one of `capsbench.stats.linearity.Shape`, which distinguishes lines
          whose slope cannot be distinguished from 0; `deviation`: the largest residual over the range of the values.
        - `noise`: disturbances of the times of this series, joined by commas; empty for bytes.
        - `ratio_to_rescapsnet`, `ratio_low`, `ratio_high`: the slope over that of the ResCapsNet with stored activations and
          otherwise the same options in the same report; missing where there is none, or where one of the two is not a line or
          cannot be distinguished from 0.

        A series with fewer than two positions has no row.
    """
    frame = along(frame, axis)
    keys = series_columns(frame)
    rows = []
    # Columns are read once, because there may be thousands of series and metrics.
    good = frame[frame["status"] == "ok"]
    places_on_axis = good[POSITION_COLUMN].to_numpy(dtype=float)
    columns = {metric.name: _points(good, metric) for metric in METRICS.values()}
    disturbed = good[["noise"]] if "noise" in good.columns else None
    in_turn = good[ROUNDS_COLUMN].map(bool).to_numpy() if ROUNDS_COLUMN in good.columns else np.zeros(len(good), dtype=bool)
    turned: list[TurnFit | None] = []
    numbered = good[keys].assign(_place=np.arange(len(good)))
    for values, numbers in numbered.groupby(keys, dropna=False, sort=False)["_place"]:
        series, places = dict(zip(keys, values, strict=True)), numbers.to_numpy()
        order = places[np.argsort(places_on_axis[places], kind="stable")]
        bases = good[BASES_COLUMN].iloc[order[0]] if BASES_COLUMN in good.columns else {}
        kind = _kind(str(series[AXIS_COLUMN]), str(series.get("device", "")), bases)
        noise = "" if disturbed is None else ",".join(noises(disturbed.iloc[order]))
        for metric in METRICS.values():
            found = _fit_in_turn(good.iloc[order], metric) if in_turn[places].any() else None
            found = found or _fit(_taken(columns[metric.name], order), metric, kind)
            if found is not None:
                turned.append(found.turns)
                more = _numbers(found, metric, str(series[AXIS_COLUMN])) | {"noise": "" if metric.is_bytes else noise}
                rows.append(series | {"metric": metric.name} | more)
    heads = [*keys, "metric", "unit", "slope", "slope_low", "slope_high", "intercept", "intercept_low", "intercept_high"]
    table = pd.DataFrame(
        rows,
        columns=[
            *heads, "r2", "points", "linear", "shape", "deviation", "noise", "basis", "rest_low", "rest_high", *_TERM, "declared",
            "misfit",
        ],
    )  # fmt: skip
    references = _references(table, keys)
    ratios = [_ratio(rows, turned, place, references[place]) for place in range(len(rows))]
    return table.join(pd.DataFrame(ratios, columns=["ratio_to_rescapsnet", "ratio_low", "ratio_high"], dtype="float64"))


_TERM = ("term", "term_low", "term_high", "term_unit")


def _numbers(found: LineFit, metric: Metric, axis: str) -> dict[str, object]:
    fit = found.fit
    low, high = fit.slope_interval or (np.nan, np.nan)
    intercept_low, intercept_high = fit.intercept_interval or (np.nan, np.nan)
    rest_low, rest_high = (found.turns and found.turns.rest) or (np.nan, np.nan)
    return {
        "unit": f"{'bytes' if metric.is_bytes else 'seconds'} {per_unit(axis)}",
        "slope": fit.slope,
        "slope_low": low,
        "slope_high": high,
        "intercept": fit.intercept,
        "intercept_low": intercept_low,
        "intercept_high": intercept_high,
        "r2": np.nan if fit.r2 is None else fit.r2,
        "points": fit.points,
        "linear": found.linear,
        "shape": found.shape,
        "deviation": fit.deviation,
        "basis": found.basis,
        "rest_low": rest_low,
        "rest_high": rest_high,
        "declared": found.declared and BASES[found.declared],
        "misfit": np.nan if found.misfit is None else found.misfit,
    } | _further(found.curve, metric, axis)


def _further(curve: Curve | None, metric: Metric, axis: str) -> dict[str, object]:
    """The term of a curve, with its interval and unit; missing for a line."""
    if curve is None:
        return dict.fromkeys(_TERM[:3], np.nan) | {_TERM[3]: None}
    ends, unit = curve.term_interval or (np.nan, np.nan), "bytes" if metric.is_bytes else "seconds"
    return dict(zip(_TERM, (curve.term, *ends, f"{unit} {term_unit(axis, curve.form)}"), strict=True))


def noises(cells: pd.DataFrame) -> list[str]:
    """Names of the disturbances of any of these rows, in the order of first mention."""
    return list(dict.fromkeys(name for names in cells["noise"] for name in names.split(",") if name))


def _ratio(
    rows: Sequence[Mapping[str, Any]], turned: Sequence[TurnFit | None], place: int, reference: int | None
) -> tuple[float, float, float]:
    """Slope of a row over that of its reference, with its interval; NaN where there is none."""
    unknown = float("nan")
    if reference is None:
        return unknown, unknown, unknown
    row, base = rows[place], rows[reference]
    # Noise makes no ratio: both must be lines whose slopes can be distinguished from 0.
    no_interval = not METRICS[row["metric"]].repeats and (pd.isna(row["slope_low"]) or pd.isna(base["slope_low"]))
    if no_interval or not row["shape"] == base["shape"] == "line" or base["slope"] == 0:
        return unknown, unknown, unknown
    own, theirs = ((one["slope"], (one["slope_high"] - one["slope_low"]) / 2) for one in (row, base))
    if place == reference:
        own, theirs = (1.0, 0 * own[1]), (1.0, 0 * own[1])
    # Adding 0 makes -0 a 0.
    ratio = own[0] / theirs[0] + 0.0
    if np.isnan(own[1]) or np.isnan(theirs[1]):
        return ratio, unknown, unknown
    turns, base_turns = turned[place], turned[reference]
    if place != reference and turns is not None and base_turns is not None:
        return ratio, *(turns_ratio_interval(turns, base_turns) or (unknown, unknown))
    return ratio, *(ratio_interval(*own, *theirs) or (unknown, unknown))


def _references(table: pd.DataFrame, keys: list[str]) -> list[int | None]:
    """Index of the one reference series that differs from each row in the model alone; None where there is none."""
    names = ["metric", *keys]
    rows = table[names].astype(object).where(table[names].notna(), None).to_dict("records")
    shared = [name for name in names if name not in _OF_A_MODEL]
    compared = {False: shared, True: [name for name in shared if name not in _OF_CAPSULES]}
    known: dict[tuple[object, ...], list[int]] = {}
    for place, row in enumerate(rows):
        if row["model"] == REFERENCE_MODEL and row["memory"] == "stored":
            for without, columns in compared.items():
                known.setdefault((without, *(row[name] for name in columns)), []).append(place)
    found: list[int | None] = []
    for row in rows:
        without = row["kernel"] is None
        alike = known.get((without, *(row[name] for name in compared[without])), [])
        found.append(alike[0] if len(alike) == 1 else None)
    return found
