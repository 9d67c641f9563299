"""The test of whether the cost of depth is a line at all: reserved memory jumps, and a cache that overflows bends a time."""

from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from capsbench.stats.intervals import Floats, StandardError
from capsbench.stats.scatter import noise_levels

LARGEST_DEVIATION = 0.02
"""Largest residual over the range of the values that is always called a line."""

ROUNDING_BYTES = 512.0
"""Granularity of the caching allocator: smaller differences carry no information on depth."""

BENT_BY_CHANCE = 0.01
_FEWEST_DEPTHS = 5

FLAT_BY_CHANCE = 0.1
"""Probability below which three or four times that rise or fall throughout are no line, if their line has no slope to speak of:
times that grow tenfold must not be called without a measurable change because a curve through them makes the interval wide."""

APART = 0.1
"""Standard deviation of the time of a step among processes that ran one after the other, as a share of it: what ratios of two
such processes vary by on machines that others use too. It is the measure where nothing in a series shows its scatter."""

_APART_DEGREES = 6.0
"""Degrees of freedom that this is worth: few, as machines differ in it."""


Shape = Literal["line", "quadratic", "inverse", "no change measurable", "not a line"]
"""The shape of values over an axis. A slope that cannot be distinguished from 0 makes them `no change measurable`: it has no sign
and no ratio, and no line is drawn for it. An exact slope of 0 is a line. `quadratic` has a square in addition to the line, and
`inverse` is divided by the axis (`bases`)."""

CURVES: tuple[Shape, ...] = ("quadratic", "inverse")
"""The shapes with a term that a line does not have."""


def shape_of(linear: bool, low: float | None, high: float | None) -> Shape:
    """The shape of values over depth.

    Args:
        linear: whether a line fits.
        low: one end of the interval of its slope; None or NaN where there is none.
        high: the other end.
    """
    if not linear:
        return "not a line"
    if low is None or high is None or pd.isna(low) or pd.isna(high):
        return "line"
    return "no change measurable" if low <= 0 <= high and low < high else "line"


def bytes_are_linear(residuals: Floats, deviation: float) -> bool:
    """Return whether no residual of bytes, which repeat and need no statistics, exceeds 512 bytes or 2 % of the range."""
    return bool(np.abs(residuals).max() <= ROUNDING_BYTES or deviation <= LARGEST_DEVIATION)


def times_are_linear(blocks: Floats, values: Floats, deviation: float) -> bool:
    """Return whether chance explains the distance of times from their line (p ≥ 0.01), or none is 2 % of the range.

    With replicates the scatter among them is the measure (lack-of-fit test); without, a parabola must not fit better than the
    line (F-test of the quadratic term), for which there must be five depths. Three or four that rise or fall throughout
    may lie as far from the line as processes that ran one after the other usually differ (`APART`); others always lie on it.
    """
    if deviation <= LARGEST_DEVIATION:
        return True
    depths = np.unique(blocks).size
    spare = blocks.size - depths
    if spare > 0 and depths > 2:
        of_depth = {depth: values[blocks == depth].mean() for depth in set(blocks.tolist())}
        means = np.array([of_depth[depth] for depth in blocks.tolist()])
        return _chance(_squares(blocks, values, 1), ((values - means) ** 2).sum(), depths - 2, spare) >= BENT_BY_CHANCE
    if depths >= _FEWEST_DEPTHS:
        spare = blocks.size - 3
        return _chance(_squares(blocks, values, 1), _squares(blocks, values, 2), 1, spare) >= BENT_BY_CHANCE
    return depths < 3 or not _steady(blocks, values) or _apart_by_chance(blocks, values, BENT_BY_CHANCE)


def flat_times_are_linear(blocks: Floats, values: Floats) -> bool:
    """Return whether times whose line has no measurable slope lie on it, by a stricter test than that of other lines.

    It is for single values at three or four depths that rise or fall throughout, and true of all others (`FLAT_BY_CHANCE`).
    """
    few = 2 < blocks.size < _FEWEST_DEPTHS and np.unique(blocks).size == blocks.size
    return not few or not _steady(blocks, values) or _apart_by_chance(blocks, values, FLAT_BY_CHANCE)


def _steady(blocks: Floats, values: Floats) -> bool:
    """Return whether values rise throughout, or fall."""
    steps = np.diff(values[np.argsort(blocks)])
    return bool((steps > 0).all() or (steps < 0).all())


def _apart_by_chance(blocks: Floats, values: Floats, least: float) -> bool:
    """Return whether usual differences between processes explain the distances of times from their line, with at least this p."""
    if values.min() <= 0:
        return True
    # As noise is a share of a time, so are the distances that the line makes small: else noise of large times bends it.
    fitted = np.polynomial.Polynomial.fit(blocks, values, 1, w=1 / values)(blocks)
    shares = (values - fitted) / noise_levels(fitted, values)
    lack = float((shares**2).sum()) / (blocks.size - 2)
    return float(stats.f.sf(lack / APART**2, blocks.size - 2, _APART_DEGREES)) >= least


def turns_are_linear(positions: Floats, rounds: Floats, deviation: float, lasting: StandardError | None = None) -> bool | None:
    """Return whether chance explains the distance of cells in turn from their line (p ≥ 0.01), or none is 2 % of the range.

    The test is that of lack of fit in randomised blocks: the rounds in which all cells took part are the blocks, whose own time
    drops out, and the scatter that cells and rounds leave is the measure.

    Args:
        positions: `[n]`, ascending, all different.
        rounds: `[rounds, n]`, seconds; NaN where a cell did not take part.
        deviation: largest residual over the range of the values.
        lasting: error of each cell that all of its rounds share; None if they share none.

    Returns:
        The answer; None with fewer than two rounds of all cells, or fewer than three cells, which test nothing.
    """
    whole = rounds[~np.isnan(rounds).any(axis=1)]
    count, cells = whole.shape
    if count < 2 or cells < 3:
        return None
    if deviation <= LARGEST_DEVIATION:
        return True
    means = whole.mean(axis=0)
    spare = (count - 1) * (cells - 1)
    scatter = float(((whole - whole.mean(axis=1, keepdims=True) - means + means.mean()) ** 2).sum()) / spare / count
    lack = _squares(positions, means, 1) / (cells - 2)
    errors = [(scatter, float(spare))] + ([(lasting.value**2, lasting.degrees)] if lasting else [])
    error = sum(square for square, _ in errors)
    if error == 0:
        return lack == 0
    # The degrees of freedom of a sum of squares, after Welch and Satterthwaite.
    degrees = error**2 / sum(square**2 / own for square, own in errors)
    return float(stats.f.sf(lack / error, cells - 2, degrees)) >= BENT_BY_CHANCE


def cubic_is_better(positions: Floats, values: Floats) -> bool:
    """Return whether a cubic fits times better than a parabola does, beyond chance (p < 0.01); for which there must be six."""
    if np.unique(positions).size < _FEWEST_DEPTHS + 1:
        return False
    spare = positions.size - 4
    return _chance(_squares(positions, values, 2), _squares(positions, values, 3), 1, spare) < BENT_BY_CHANCE


def inverse_is_enough(positions: Floats, values: Floats) -> bool:
    """Return whether n and 1/n fit times no better than 1/n, within chance (p ≥ 0.01); true of fewer than five positions."""
    if np.unique(positions).size < _FEWEST_DEPTHS:
        return True
    terms = np.column_stack([np.ones_like(positions), 1 / positions, positions])
    squares = [float(((values - some @ np.linalg.lstsq(some, values)[0]) ** 2).sum()) for some in (terms[:, :2], terms)]
    return _chance(squares[0], squares[1], 1, positions.size - 3) >= BENT_BY_CHANCE


def _chance(line: float, better: float, terms: int, spare: int) -> float:
    """Probability that a model with this many more terms leaves this much smaller a sum of squares if the line is true."""
    gained = max(line - better, 0.0) / terms
    if gained == 0:
        return 1.0
    return float(stats.f.sf(gained / (better / spare), terms, spare)) if better > 0 else 0.0


def _squares(blocks: Floats, values: Floats, degree: int) -> float:
    """Sum of squared residuals of a polynomial."""
    fitted = np.polynomial.Polynomial.fit(blocks, values, degree)
    return float(((values - fitted(blocks)) ** 2).sum())
