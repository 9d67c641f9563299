"""Straight lines by ordinary least squares, in whole numbers where all numbers are whole."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from scipy import special

from capsbench.errors import ConfigurationError
from capsbench.stats.intervals import Floats, Interval, interval
from capsbench.stats.median import CONFIDENCE


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
    exact: bool = False
    """True if every value lies on the line, to the precision of numbers of this size."""


def fit_slope(blocks: Sequence[float], values: Sequence[float]) -> SlopeFit:
    """Fit `values` = intercept + slope · `blocks` by ordinary least squares.

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
    if (depths := len(set(x.tolist()))) < 2:
        raise ConfigurationError(f"a slope needs two depths; got {depths}", "give values of two depths or more")
    if np.ptp(y) == 0:
        # The values are exactly level, and r² has nothing to explain.
        level = float(y[0])
        known = x.size > 2
        intervals: tuple[Interval | None, Interval | None] = ((0.0, 0.0), (level, level)) if known else (None, None)
        return SlopeFit(0.0, level, *intervals, None, x.size, slope_error=0.0 if known else None, exact=True)
    slope, intercept, exact = _line(x, y)
    middle, of_x = float(np.mean(x)), float(np.var(x))
    residuals = y - intercept - slope * x
    share = 1.0 if exact else max(0.0, 1 - float(residuals @ residuals) / (x.size * float(np.var(y))))
    fit = SlopeFit(slope, intercept, None, None, share, x.size, exact=exact)
    if x.size < 3:
        return fit
    error = 0.0 if exact else float(np.sqrt(residuals @ residuals / (x.size - 2) / (x.size * of_x)))
    half = float(special.stdtrit(x.size - 2, (1 + CONFIDENCE) / 2)) * error
    return replace(
        fit,
        slope_interval=interval(slope, half),
        intercept_interval=interval(intercept, half * float(np.sqrt(of_x + middle**2))),
        deviation=0.0 if exact else float(np.abs(residuals).max() / np.ptp(y)),
        slope_error=error,
    )


_WHOLE = 2.0**53
"""Largest number up to which floating-point numbers hold whole numbers exactly."""
_ROUNDING = 16 * np.finfo(float).eps
"""Distance from a line, as a share of the largest value, that rounding alone may leave."""


def _line(x: Floats, y: Floats) -> tuple[float, float, bool]:
    """Slope and intercept, and whether every value lies on the line.

    Whole numbers are fitted in rational arithmetic, because rounding errors of an exact line look like noise, with a sign.
    """
    if all((np.floor(one) == one).all() and np.abs(one).max() <= _WHOLE for one in (x, y)):
        return _whole_line([int(one) for one in x.tolist()], [int(one) for one in y.tolist()])
    centred = x - np.mean(x)
    slope = float(centred @ (y - np.mean(y)) / (centred @ centred))
    rounding = _ROUNDING * max(np.abs(y).max(), abs(slope) * np.abs(x).max())
    if abs(slope) * np.ptp(x) <= rounding:
        slope = 0.0
    intercept = float(np.mean(y) - slope * np.mean(x))
    return slope, intercept, bool(np.abs(y - intercept - slope * x).max() <= rounding)


def _whole_line(x: list[int], y: list[int]) -> tuple[float, float, bool]:
    count, of_x, of_y = len(x), sum(x), sum(y)
    rise = count * sum(map(int.__mul__, x, y)) - of_x * of_y
    run = count * sum(one * one for one in x) - of_x * of_x
    start = of_y * run - rise * of_x
    exact = all(count * run * value == start + count * rise * depth for depth, value in zip(x, y, strict=True))
    return float(Fraction(rise, run)), float(Fraction(start, count * run)), exact
