"""Standard errors of a least-squares line that hold where noise grows with the value and where cells are alike.

Three things make a textbook's standard error too small for measured times. Noise is a share of the time, so it grows along the
line. Replicates of one depth may share an error, such as the layout of memory, so they are worth less than independent values.
And all cells of one replicate may share the speed of the machine at that moment. Therefore residuals are taken relative to the
line, the means of depths give the scatter, and the differences of whole replicates are added. The scatter of samples within a
process is added too, although the medians show most of it: medians that lie on a line by luck do not prove that noise is absent.
"""

from collections.abc import Sequence
from functools import lru_cache
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from capsbench.stats.intervals import Floats, StandardError, StandardErrors
from capsbench.stats.median import median_error


class Points(NamedTuple):
    """Values over depth, and how they were measured."""

    blocks: Floats
    """`[n]`, the depths."""
    values: Floats
    """`[n]`, the values in any unit."""
    replicates: Floats | None = None
    """`[n]`, the replicate of each value; None if all belong to one."""
    samples: Sequence[Sequence[float] | None] = ()
    """Samples of which each value is the median; empty if no value has any."""


class LineErrors(NamedTuple):
    """Standard errors of a least-squares line, by source."""

    slope: StandardErrors
    intercept: StandardErrors


def line_errors(points: Points, *, relative: bool, exact: bool = False) -> LineErrors:
    """Standard errors of the least-squares line through all values.

    Args:
        points: three values or more, at two depths or more: fewer do not show the noise.
        relative: whether noise is a share of the value, as it is of times; otherwise it is constant.
        exact: whether all values lie on the line, apart from rounding.
    """
    scatter = [] if exact else [_residual_errors(points, relative=relative), *_shared_errors(points, relative=relative)]
    sources = [*scatter, *_sample_errors(points)]
    return LineErrors(tuple(slope for slope, _ in sources), tuple(intercept for _, intercept in sources))


ErrorPair = tuple[StandardError, StandardError]
"""The errors of slope and intercept that one source causes."""


def _residual_errors(points: Points, *, relative: bool) -> ErrorPair:
    """Errors from the distances to the line, of the means of depths if there are three depths."""
    blocks, counts, places, roots, contrasts, left = _weighted(tuple(points.blocks.tolist()))
    values = points.values if places is None else np.bincount(places, weights=points.values) / counts
    slope, intercept = contrasts @ (roots * values)
    fitted = slope * blocks + intercept
    levels = noise_levels(fitted, points.values) if relative else np.ones(blocks.size)
    # Residuals as shares of their levels are this matrix times the shares of noise, of which they are fewer (Satterthwaite 1946).
    spread = left * levels / levels[:, None]
    squares = spread @ spread.T
    expected = float(np.trace(squares))
    noise = np.linalg.norm(roots * (values - fitted) / levels) / np.sqrt(expected)
    degrees = expected**2 / float((squares**2).sum())
    of_slope, of_intercept = (float(noise * np.linalg.norm(contrast * levels)) for contrast in contrasts)
    return StandardError(of_slope, degrees), StandardError(of_intercept, degrees)


class _Weighted(NamedTuple):
    """The part of a least-squares line that depends on its depths alone."""

    blocks: Floats
    """`[m]`, the depths of the fitted values: of means, if there are three depths with several values."""
    counts: Floats
    """`[m]`, their weights: the numbers of values."""
    places: NDArray[np.intp] | None
    """`[n]`, the index of the mean that each value is part of; None where the values themselves are fitted."""
    roots: Floats
    """`[m]`, the square roots of the weights."""
    contrasts: Floats
    """`[2, m]`, factors that give slope and intercept from the weighted values."""
    left: Floats
    """`[m, m]`, the matrix that leaves the weighted residuals of weighted values."""


@lru_cache(maxsize=64)
def _weighted(blocks: tuple[float, ...]) -> _Weighted:
    """The fit for these depths, which many series share."""
    fitted = np.array(blocks)
    depths, means, counts = np.unique(fitted, return_inverse=True, return_counts=True)
    # The line through the means, weighted by their numbers of values, is the line through all values.
    of_means = 2 < depths.size < fitted.size
    fitted, weights = (depths, counts.astype(float)) if of_means else (fitted, np.ones(fitted.size))
    roots = np.sqrt(weights)
    design = roots[:, None] * np.column_stack([fitted, np.ones(fitted.size)])
    contrasts = np.linalg.pinv(design)
    left = np.eye(fitted.size) - design @ contrasts
    for shared in (fitted, weights, means, roots, contrasts, left):
        shared.setflags(write=False)
    return _Weighted(fitted, weights, means if of_means else None, roots, contrasts, left)


def _shared_errors(points: Points, *, relative: bool) -> list[ErrorPair]:
    """Errors that all values of a replicate share: a share of the line, or a constant shift."""
    if points.replicates is None or (replicates := np.unique(points.replicates)).size < 2:
        return []
    slope, intercept = _contrasts(points.blocks) @ points.values
    fitted = slope * points.blocks + intercept
    distances = (points.values - fitted) / (noise_levels(fitted, points.values) if relative else 1.0)
    means = np.array([distances[points.replicates == one].mean() for one in replicates])
    error, degrees = float(means.std(ddof=1) / np.sqrt(means.size)), means.size - 1.0
    moved = (abs(slope), abs(intercept)) if relative else (0.0, 1.0)
    return [(StandardError(moved[0] * error, degrees), StandardError(moved[1] * error, degrees))]


def _sample_errors(points: Points) -> list[ErrorPair]:
    """Errors from the scatter of samples within each process."""
    if not any(points.samples):
        return []
    errors, degrees = sample_errors_of(points)
    slope, intercept = (error_of_sum((contrast * errors) ** 2, degrees) for contrast in _contrasts(points.blocks))
    return [(slope, intercept)]


def sample_errors_of(points: Points) -> tuple[Floats, Floats]:
    """`[n]`, the standard errors of values that are medians of samples, and their degrees of freedom."""
    samples = [one if one else (0.0,) for one in points.samples]
    # Relative, so that a value that was scaled later keeps its noise.
    errors = points.values * np.array([median_error(one) / (median(one) or 1.0) for one in samples])
    return errors, np.array([max(len(one) - 1.0, 1.0) for one in samples])


def error_of_sum(squares: Floats, degrees: Floats) -> StandardError:
    """The error of a sum of independent values, from their variances and degrees of freedom (Satterthwaite 1946)."""
    total = float(squares.sum())
    return StandardError(float(np.sqrt(total)), total**2 / float((squares**2 / degrees).sum()) if total else 1.0)


def _contrasts(blocks: Floats) -> Floats:
    """`[2, n]`, the factors that give slope and intercept of the least-squares line from the values."""
    centred = blocks - blocks.mean()
    slope = centred / (centred @ centred)
    return np.stack([slope, 1 / blocks.size - blocks.mean() * slope])


def noise_levels(fitted: Floats, values: Floats) -> Floats:
    """Levels that noise is a share of: the height of the line, but at least the lowest value, as noise may have bent the line."""
    least = float(values.min())
    return np.maximum(fitted, least) if least > 0 else np.ones(fitted.size)
