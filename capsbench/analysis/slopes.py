"""What a block costs: straight lines through memory and time over depth.

Ordinary least squares with 95 % intervals from Student's t with n − 2 degrees of freedom; the arithmetic is that of scipy's
`linregress`. Slopes of times, and ratios, have intervals from `intervals`; whether a line fits at all is for `linearity` to say.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from capsbench.analysis.intervals import CONFIDENCE, Floats, Interval, interval_of, ratio_interval, slope_draws
from capsbench.analysis.linearity import bytes_are_linear, times_are_linear
from capsbench.analysis.metrics import METRICS, Metric
from capsbench.errors import ConfigurationError
from capsbench.frame import LINE_COLUMNS, SAMPLE_COLUMNS, plain

REFERENCE_MODEL = "rescapsnet"

_OF_A_MODEL = {"model", "memory", "inverse", "rule", "gamma", "source"}
_OF_CAPSULES = {"kernel", "routing", "iterations", "capsules", "front"}


@dataclass(frozen=True)
class SlopeFit:
    """A least-squares line."""

    slope: float
    """Change per block."""
    intercept: float
    """Value at depth 0."""
    slope_interval: Interval | None
    """95 % interval of the slope; None with fewer than three points."""
    intercept_interval: Interval | None
    """95 % interval of the intercept; None with fewer than three points."""
    r2: float | None
    """Share of the variance that the line explains; None where the values do not vary."""
    points: int
    """Number of values."""
    deviation: float = 0.0
    """Largest distance of a value from the line, over the range of the values; 0 where they do not vary."""
    slope_error: float | None = None
    """Standard error of the slope; None with fewer than three points."""


@dataclass(frozen=True)
class LineFit:
    """The line through one metric of a line of records, and how far to trust it."""

    fit: SlopeFit
    """The interval of a time's slope contains the noise within and between processes."""
    linear: bool
    """Whether it is a line at all."""
    draws: Floats | None
    """What the slope might have been; None with fewer than three points."""


def fit_slope(blocks: Sequence[float], values: Sequence[float]) -> SlopeFit:
    """Fits `values` = intercept + slope · `blocks` by ordinary least squares.

    Args:
        blocks: depths; at least two different ones.
        values: as many, finite, in any unit.

    Returns:
        The line, with 95 % intervals where there are three points or more.

    Raises:
        ConfigurationError: the lengths differ, a value is not finite, or there are fewer than two depths.
    """
    x, y = np.asarray(blocks, dtype=float), np.asarray(values, dtype=float)
    if x.shape != y.shape or x.ndim != 1:
        raise ConfigurationError(f"{x.size} blocks for {y.size} values", "give one value for each depth")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ConfigurationError("a depth or value is not finite", "leave out cells that were not measured")
    if np.unique(x).size < 2:
        raise ConfigurationError(f"a slope over {np.unique(x).size} depths", "a line needs two different depths")
    if np.ptp(y) == 0:
        # Exactly level: nothing for r² to explain, and no rounding of a fit to report as a slope.
        level = float(y[0])
        known = x.size > 2
        intervals: tuple[Interval | None, Interval | None] = ((0.0, 0.0), (level, level)) if known else (None, None)
        return SlopeFit(0.0, level, *intervals, None, x.size, slope_error=0.0 if known else None)
    middle = np.mean(x)
    of_x, of_both, _, of_y = np.cov(x, y, bias=True).flat
    share = 0.0 if of_y == 0 else min(1.0, (of_both / np.sqrt(of_x * of_y)) ** 2)
    slope = of_both / of_x
    intercept = np.mean(y) - slope * middle
    if x.size < 3:
        return SlopeFit(float(slope), float(intercept), None, None, float(share), x.size)
    error = np.sqrt((1 - share) * of_y / of_x / (x.size - 2))
    reach = _reach(x.size - 2)
    return SlopeFit(
        slope=float(slope),
        intercept=float(intercept),
        slope_interval=_interval(slope, reach * error),
        intercept_interval=_interval(intercept, reach * (error * np.sqrt(of_x + middle**2))),
        r2=float(share),
        points=x.size,
        deviation=float(np.abs(y - intercept - slope * x).max() / np.ptp(y)),
        slope_error=float(error),
    )


@lru_cache
def _reach(degrees: int) -> float:
    """Of Student's t, half the width of an interval in standard errors."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees))


def line_columns(frame: pd.DataFrame) -> list[str]:
    """The columns of a frame of records whose values all depths of one line share."""
    return [name for name in ("report", *LINE_COLUMNS, "kind", "source", "environment") if name in frame.columns]


def lines(frame: pd.DataFrame) -> Iterable[tuple[dict[str, object], pd.DataFrame]]:
    """Each line's common values, and its rows that ended well, by depth."""
    for line, rows in by_line(frame[frame["status"] == "ok"]):
        yield line, rows.sort_values("blocks", kind="stable")


def by_line(table: pd.DataFrame) -> Iterable[tuple[dict[str, object], pd.DataFrame]]:
    """The rows of records, or of slopes, line by line with the line's common values."""
    keys = line_columns(table)
    for values, rows in table.groupby(keys, dropna=False, sort=False):
        yield dict(zip(keys, values, strict=True)), rows


def _places_by_line(table: pd.DataFrame) -> Iterable[tuple[dict[str, object], NDArray[np.intp]]]:
    """The same with the numbers of the rows."""
    keys = line_columns(table)
    numbered = table[keys].assign(_place=np.arange(len(table)))
    for values, places in numbered.groupby(keys, dropna=False, sort=False)["_place"]:
        yield dict(zip(keys, values, strict=True)), places.to_numpy()


def fit_line(line: Mapping[str, object], cells: pd.DataFrame, metric: Metric) -> LineFit | None:
    """The line through one metric of a line of records; None with fewer than two depths.

    Args:
        line: the line's common values: they seed the draws, so that a line has one interval wherever it is drawn.
        cells: its rows that ended well, as `lines` gives them.
        metric: what to fit.
    """
    values, samples = _column(cells, metric)
    return _fit(line, metric, cells["blocks"].to_numpy(dtype=float), values, samples)


def _column(cells: pd.DataFrame, metric: Metric) -> tuple[Floats, list[object]]:
    """Values of a metric, NaN where there are none, and raw samples. Bytes repeat: only times have samples."""
    column = SAMPLE_COLUMNS.get(metric.column)
    samples = cells[column].tolist() if column in cells.columns else [None] * len(cells)
    return cells[metric.column].to_numpy(dtype=float, na_value=np.nan), samples


def _fit(line: Mapping[str, object], metric: Metric, blocks: Floats, values: Floats, samples: Sequence[object]) -> LineFit | None:
    """`fit_line` of what cells say: depths, values and raw samples."""
    places = np.flatnonzero(~np.isnan(values))
    blocks, values = blocks[places], values[places]
    if len(set(blocks.tolist())) < 2:
        return None
    fit = fit_slope(blocks.tolist(), values.tolist())
    if metric.is_bytes:
        linear = bytes_are_linear(values - fit.intercept - fit.slope * blocks, fit.deviation)
    else:
        linear = times_are_linear(blocks, values, fit.deviation)
    if fit.slope_error is None:
        return LineFit(fit, linear, None)
    # Where records lie, and whether a column is of floats for other lines' sake, changes no interval.
    known = {column: plain(value) for column, value in line.items() if column != "report"}
    name = repr([*((column, str(value)) for column, value in known.items() if value is not None), metric.name])
    random = np.random.default_rng(zlib.crc32(name.encode()))
    raws = [raw if isinstance(raw := samples[place], Sequence) else None for place in places.tolist()]
    draws = slope_draws(blocks, values, fit.slope_error, raws, random)
    return LineFit(fit if metric.is_bytes else replace(fit, slope_interval=interval_of(draws)), linear, draws)


def slopes(frame: pd.DataFrame) -> pd.DataFrame:
    """The slope of every line and metric in what `load` gave.

    Args:
        frame: a row per record.

    Returns:
        A row per line and metric: the line's columns, then

        - `metric`, `unit` (`bytes` or `seconds`, per block), `slope`, `slope_low`, `slope_high`, `intercept`, `intercept_low`,
          `intercept_high`, `r2`, `points`. The interval of a time's slope contains the scatter of samples, of replicates and of
          medians round the line; bytes repeat, and have the least-squares interval alone. Missing with fewer than three points.
        - `linear`: False where a line does not fit; `deviation`: the largest residual over the range of the values.
        - `noise`: what disturbed the times of this line, joined by commas; empty for bytes.
        - `ratio_to_rescapsnet`, `ratio_low`, `ratio_high`: the slope over that of the ResCapsNet with stored activations and
          otherwise the same options in the same report; missing where there is none, where its interval contains 0, or where
          one of the two is not a line.

        A line with fewer than two depths has no row.
    """
    keys = line_columns(frame)
    rows = []
    draws: list[Floats | None] = []
    # Columns once, and not a frame for each line and metric: there may be thousands.
    good = frame[frame["status"] == "ok"]
    blocks = good["blocks"].to_numpy(dtype=float)
    columns = {metric.name: _column(good, metric) for metric in METRICS.values()}
    disturbed = good["noise"].tolist() if "noise" in good.columns else [""] * len(good)
    for line, places in _places_by_line(good):
        order = places[np.argsort(blocks[places], kind="stable")]
        noise = ",".join(_each_once(disturbed[place] for place in order.tolist()))
        for metric in METRICS.values():
            values, samples = columns[metric.name]
            found = _fit(line, metric, blocks[order], values[order], [samples[place] for place in order.tolist()])
            if found is None:
                continue
            draws.append(found.draws)
            row = line | {"metric": metric.name} | _numbers(found, metric) | {"noise": "" if metric.is_bytes else noise}
            rows.append(row)
    heads = [*keys, "metric", "unit", "slope", "slope_low", "slope_high", "intercept", "intercept_low", "intercept_high"]
    table = pd.DataFrame(rows, columns=[*heads, "r2", "points", "linear", "deviation", "noise"])
    references = _references(table, keys)
    ratios = [_ratio(rows, references[place], draws, place) for place in range(len(rows))]
    return table.join(pd.DataFrame(ratios, columns=["ratio_to_rescapsnet", "ratio_low", "ratio_high"], dtype="float64"))


def _numbers(found: LineFit, metric: Metric) -> dict[str, object]:
    fit = found.fit
    low, high = fit.slope_interval or (np.nan, np.nan)
    intercept_low, intercept_high = fit.intercept_interval or (np.nan, np.nan)
    return {
        "unit": "bytes" if metric.is_bytes else "seconds",
        "slope": fit.slope,
        "slope_low": low,
        "slope_high": high,
        "intercept": fit.intercept,
        "intercept_low": intercept_low,
        "intercept_high": intercept_high,
        "r2": np.nan if fit.r2 is None else fit.r2,
        "points": fit.points,
        "linear": found.linear,
        "deviation": fit.deviation,
    }


def noises(cells: pd.DataFrame) -> list[str]:
    """Names of what disturbed any of these rows, in the order of first mention."""
    return _each_once(cells["noise"])


def _each_once(noises: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name for names in noises for name in names.split(",") if name))


def _ratio(
    rows: Sequence[Mapping[str, Any]], reference: int | None, draws: Sequence[Floats | None], place: int
) -> tuple[float, float, float]:
    """Slope of a row over that of its reference, with its interval; NaN where there is none."""
    unknown = float("nan")
    if reference is None or not _can_divide(rows[place], rows[reference]):
        return unknown, unknown, unknown
    own, theirs = draws[place], draws[reference]
    interval = None if own is None or theirs is None else ratio_interval(own, theirs)
    return float(rows[place]["slope"] / rows[reference]["slope"]), *(interval or (unknown, unknown))


def _references(table: pd.DataFrame, keys: list[str]) -> list[int | None]:
    """By row the place of the one reference line that differs from it in the model alone, and None where there is none."""
    names = ["metric", *keys]
    rows = table[names].astype(object).where(table[names].notna(), None).to_dict("records")
    compared = {
        without: [name for name in names if name not in _OF_A_MODEL | (_OF_CAPSULES if without else set())]
        for without in (False, True)
    }
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


def _can_divide(row: Mapping[str, Any], reference: Mapping[str, Any]) -> bool:
    """Whether both are lines, and the reference's slope can be told from 0: noise is nothing to divide by."""
    unknown = reference["unit"] == "seconds" and pd.isna(reference["slope_low"])
    if not (row["linear"] and reference["linear"]):
        return False
    return not (unknown or reference["slope"] == 0 or reference["slope_low"] <= 0 <= reference["slope_high"])


def _interval(centre: float, reach: float) -> Interval:
    return float(centre - reach), float(centre + reach)
