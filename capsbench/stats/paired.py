"""Slopes of cells that took turns: least squares within a round, and a robust centre over rounds.

What the machine did in a round, it did to all of the round's cells, so that it drops out of the slope over the depths of one
round. Over rounds, the centre is the Hodges–Lehmann estimator with the exact interval of Wilcoxon's signed-rank test. This asks
of the rounds' slopes that they are independent and scatter symmetrically about the true one, whatever the width of each:
rounds of all depths and rounds of the first and last alone may be mixed, and a few disturbed rounds hardly move it. Samples of
times have a long tail to the right, but it hits deep and shallow cells alike, and so makes differences wider, but not skewed.

What the rounds of one process share, they do not show: `processes` adds it.

Theil and Sen's estimator pairs every two values, hence most often two of different rounds, between which the machine drifts; a
bootstrap has too narrow an interval for as few rounds as there are.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from capsbench.stats.intervals import Floats, Interval
from capsbench.stats.median import CONFIDENCE

FEWEST_ROUNDS = 6
"""Least number of rounds that have an interval: of five, even the range contains the centre in less than 95 % of cases."""

_EXACT_ROUNDS = 50
"""Number of rounds up to which the distribution of Wilcoxon's statistic is counted out."""


class Centre(NamedTuple):
    """The centre of symmetric values."""

    value: float
    """Median of the values' Walsh averages."""
    interval: Interval | None
    """Interval of the centre; None for too few values (fewer than six, at 95 %)."""


def row_slopes(depths: Floats, values: Floats) -> Floats:
    """The least-squares slope of each row.

    Args:
        depths: `[depths]`, all different.
        values: `[rounds, depths]`, NaN where a depth did not take part.

    Returns:
        `[rounds]`, NaN for rounds with fewer than two depths.
    """
    there = ~np.isnan(values)
    # Weights add up to 0 but for rounding, which a common offset would magnify.
    above = np.where(there, values - _row_means(np.where(there, values, 0.0), there), 0.0)
    return np.asarray((row_weights(depths, there) * above).sum(axis=1))


def row_weights(depths: Floats, there: NDArray[np.bool_]) -> Floats:
    """`[rounds, depths]`, the factors by which the values of a round give its slope; NaN for rounds with fewer than two depths.

    Args:
        depths: `[depths]`, all different.
        there: `[rounds, depths]`, true where a depth took part.
    """
    centred = np.where(there, depths - _row_means(np.where(there, depths, 0.0), there), 0.0)
    squares = np.where(there.sum(axis=1) > 1, (centred**2).sum(axis=1), np.nan)
    return np.asarray(centred / squares[:, None])


def _row_means(values: Floats, there: NDArray[np.bool_]) -> Floats:
    """`[rounds, 1]`, the mean of each row, of which values that are not there are 0."""
    return np.asarray(values.sum(axis=1, keepdims=True) / np.maximum(there.sum(axis=1, keepdims=True), 1))


def centre(values: Sequence[float] | Floats, confidence: float = CONFIDENCE) -> Centre:
    """The Hodges–Lehmann estimate of a centre of symmetry, and its interval (Hodges and Lehmann 1963).

    Args:
        values: at least one, independent, in any order.
        confidence: level of the interval.

    Returns:
        The median of the averages of all pairs (each value with itself included), and those two of the averages at which
        Wilcoxon's signed-rank test would no longer reject.
    """
    given = np.asarray(values, dtype=float)
    places = np.triu_indices(given.size)
    averages = np.sort((given[places[0]] + given[places[1]]) / 2)
    beyond = _averages_beyond(given.size, confidence)
    ends = None if beyond is None else (float(averages[beyond]), float(averages[-1 - beyond]))
    return Centre(float(np.median(averages)), ends)


def paired_ratio_interval(values: Floats, reference: Floats) -> Interval | None:
    """The 95 % interval of the ratio of two centres, from values that were taken in pairs.

    Args:
        values: those of the dividend.
        reference: those of the divisor in the same rounds.

    Returns:
        The ends of the range of all r at which the centre of values − r · reference may be 0 (Fieller's argument, with
        Wilcoxon's test in place of Student's); None for fewer than six pairs, or if the divisor's centre may be 0.
    """
    beyond = _averages_beyond(len(values), CONFIDENCE)
    divisor = centre(reference).interval
    if beyond is None or divisor is None or divisor[0] <= 0 <= divisor[1]:
        return None
    places = np.triu_indices(len(values))
    own, theirs = ((one[places[0]] + one[places[1]]) / 2 for one in (values, reference))
    own, theirs = own[theirs != 0], theirs[theirs != 0]
    # A pair's average of the difference changes its sign at this ratio, downwards where the reference is positive.
    order = np.argsort(own / theirs)
    ratios, down = (own / theirs)[order], (theirs > 0)[order]
    # Numbers of positive averages between each two neighbouring ratios, from left to right, and outside all.
    positive = np.concatenate([[down.sum()], down.sum() + np.cumsum(np.where(down, -1, 1))])
    accepted = np.flatnonzero((positive > beyond) & (positive < ratios.size - beyond))
    if not accepted.size or accepted[0] == 0 or accepted[-1] == ratios.size:
        return None
    return float(ratios[accepted[0] - 1]), float(ratios[accepted[-1]])


@cache
def _averages_beyond(count: int, confidence: float) -> int | None:
    """Number of Walsh averages on each side of an interval; None if so few values have no interval."""
    tail = (1 - confidence) / 2
    if count > _EXACT_ROUNDS:
        pairs = count * (count + 1) / 2
        deviation = np.sqrt(pairs * (2 * count + 1) / 12)
        return int(np.floor(pairs / 2 - 0.5 + float(special.ndtri(tail)) * deviation))
    # Number of sets of ranks with each sum, of all sets that the signs of the values may pick.
    sets = np.ones(1)
    for rank in range(1, count + 1):
        sets = np.pad(sets, (0, rank)) + np.pad(sets, (rank, 0))
    chances = np.cumsum(sets) / 2.0**count
    rejected = int(np.searchsorted(chances, tail, side="right"))
    # A statistic of k rejects all centres up to the k-th average, and 0 is the least that can.
    return rejected - 1 if rejected else None
