"""What a block costs: straight lines through memory and time over depth.

Ordinary least squares with 95 % intervals from Student's t with n − 2 degrees of freedom; the arithmetic is scipy's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from capsbench.analysis.metrics import METRICS
from capsbench.errors import ConfigurationError
from capsbench.frame import LINE_COLUMNS

CONFIDENCE = 0.95
REFERENCE_MODEL = "rescapsnet"

Interval = tuple[float, float]

_OF_A_MODEL = {"model", "memory", "inverse", "rule", "gamma"}
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
        return SlopeFit(0.0, level, (0.0, 0.0) if known else None, (level, level) if known else None, None, x.size)
    fit = stats.linregress(x, y)
    if x.size < 3:
        return SlopeFit(float(fit.slope), float(fit.intercept), None, None, float(fit.rvalue**2), x.size)
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, x.size - 2)
    return SlopeFit(
        slope=float(fit.slope),
        intercept=float(fit.intercept),
        slope_interval=_interval(fit.slope, reach * fit.stderr),
        intercept_interval=_interval(fit.intercept, reach * fit.intercept_stderr),
        r2=float(fit.rvalue**2),
        points=x.size,
    )


def line_columns(frame: pd.DataFrame) -> list[str]:
    """The columns of a frame of records whose values all depths of one line share."""
    return [name for name in ("report", *LINE_COLUMNS, "kind", "environment") if name in frame.columns]


def lines(frame: pd.DataFrame) -> Iterable[tuple[dict[str, object], pd.DataFrame]]:
    """Each line's common values, and its rows that ended well, by depth."""
    for line, rows in by_line(frame[frame["status"] == "ok"]):
        yield line, rows.sort_values("blocks", kind="stable")


def by_line(table: pd.DataFrame) -> Iterable[tuple[dict[str, object], pd.DataFrame]]:
    """The rows of records, or of slopes, line by line with the line's common values."""
    keys = line_columns(table)
    for values, rows in table.groupby(keys, dropna=False, sort=False):
        yield dict(zip(keys, values, strict=True)), rows


def slopes(frame: pd.DataFrame) -> pd.DataFrame:
    """The slope of every line and metric in what `load` gave.

    Args:
        frame: a row per record.

    Returns:
        A row per line and metric: the line's columns, then `metric`, `unit` (`bytes` or `seconds`, per block), `slope`,
        `slope_low`, `slope_high`, `intercept`, `intercept_low`, `intercept_high`, `r2`, `points`, and `ratio_to_rescapsnet`:
        the slope over that of the ResCapsNet with stored activations and otherwise the same options in the same report;
        missing where there is none, or where its interval contains 0. A line with fewer than two depths has no row.
    """
    keys = line_columns(frame)
    rows = []
    for line, cells in lines(frame):
        for metric in METRICS.values():
            measured = cells[["blocks", metric.column]].dropna()
            if measured["blocks"].nunique() < 2:
                continue
            fit = fit_slope(measured["blocks"].tolist(), measured[metric.column].astype(float).tolist())
            low, high = fit.slope_interval or (np.nan, np.nan)
            intercept_low, intercept_high = fit.intercept_interval or (np.nan, np.nan)
            unit = "bytes" if metric.is_bytes else "seconds"
            rows.append(
                line
                | {"metric": metric.name, "unit": unit, "slope": fit.slope, "slope_low": low, "slope_high": high}
                | {"intercept": fit.intercept, "intercept_low": intercept_low, "intercept_high": intercept_high}
                | {"r2": np.nan if fit.r2 is None else fit.r2, "points": fit.points}
            )
    columns = [*keys, "metric", "unit", "slope", "slope_low", "slope_high", "intercept", "intercept_low"]
    table = pd.DataFrame(rows, columns=[*columns, "intercept_high", "r2", "points"])
    table["ratio_to_rescapsnet"] = [_ratio(row, table, keys) for _, row in table.iterrows()]
    return table


def _ratio(row: pd.Series, table: pd.DataFrame, keys: list[str]) -> float:
    """Slope of a row over that of the reference line that differs in the model alone.

    NaN where there is no such line, or where its slope cannot be told from 0: noise is nothing to divide by.
    """
    stored = (table["model"] == REFERENCE_MODEL) & (table["memory"] == "stored")
    reference = table[stored & (table["metric"] == row["metric"])]
    ignored = _OF_A_MODEL | (_OF_CAPSULES if pd.isna(row["kernel"]) else set())
    for column in set(keys) - ignored:
        same = reference[column].isna() if pd.isna(row[column]) else reference[column] == row[column]
        reference = reference[same]
    if len(reference) != 1:
        return float("nan")
    one = reference.iloc[0]
    unknown = one["unit"] == "seconds" and pd.isna(one["slope_low"])
    if unknown or one["slope"] == 0 or one["slope_low"] <= 0 <= one["slope_high"]:
        return float("nan")
    return float(row["slope"] / reference["slope"].iloc[0])


def _interval(centre: float, reach: float) -> Interval:
    return float(centre - reach), float(centre + reach)
