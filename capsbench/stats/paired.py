"""Slopes of cells that took turns: least squares within a round, and a robust centre over rounds.

What the machine did in a round, it did to all of the round's cells, so that it drops out of the slope over the depths of one
round. Over rounds, the centre is the Hodges–Lehmann estimator with the exact interval of Wilcoxon's signed-rank test. This asks
of the rounds' slopes that they are independent and scatter symmetrically about the true one, whatever the width of each: rounds of
all depths and rounds of the first and last alone may be mixed, and a few disturbed rounds hardly move it. Samples of times have a
long tail to the right, but it hits deep and shallow cells alike, so that it makes differences wider, and not skewed.

Theil and Sen's estimator pairs every two values, hence most often two of different rounds, between which the machine drifts; a
bootstrap has too narrow an interval for as few rounds as there are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
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
    """Ends of the 95 % interval; None for fewer than six values."""


@dataclass(frozen=True)
class PairedSlope:
    """The slope of a series whose cells took turns, in seconds per block."""

    slope: float
    """Centre of the slopes of all rounds."""
    low: float | None
    """One end of the 95 % interval; None with fewer than six rounds."""
    high: float | None
    """The other end."""
    rounds: int
    """Number of rounds with at least two depths."""

    def known_within(self, share: float) -> bool:
        """Return whether the interval is no wider than this share of the slope."""
        return self.low is not None and self.high is not None and self.high - self.low <= share * abs(self.slope)


def paired_slope(blocks: Sequence[float], rounds: Sequence[Mapping[float, float]]) -> PairedSlope | None:
    """The slope over depth from rounds in which the depths of one series took turns.

    Args:
        blocks: depths of the series.
        rounds: for each round, seconds by depth. Not every depth need be in every round.

    Returns:
        The slope with its interval; None if no round has two depths.
    """
    slopes = round_slopes(blocks, rounds)
    if not slopes.size:
        return None
    value, interval = centre(slopes)
    low, high = interval or (None, None)
    return PairedSlope(value, low, high, slopes.size)


def round_slopes(blocks: Sequence[float], rounds: Sequence[Mapping[float, float]]) -> Floats:
    """The least-squares slope of each round with at least two depths."""
    depths = sorted(set(blocks))
    values = np.array([[one.get(depth, np.nan) for depth in depths] for one in rounds]).reshape(len(rounds), len(depths))
    there = ~np.isnan(values)
    there &= there.sum(axis=1, keepdims=True) > 1
    kept = there.any(axis=1)
    there, values = there[kept], np.where(there, values, 0.0)[kept]
    x = np.where(there, np.array(depths), 0.0)
    count = there.sum(axis=1, keepdims=True)
    centred = np.where(there, x - x.sum(axis=1, keepdims=True) / count, 0.0)
    # The sum of `centred` is 0 but for rounding, which a common offset would magnify.
    values = np.where(there, values - values.sum(axis=1, keepdims=True) / count, 0.0)
    return np.asarray((centred * values).sum(axis=1) / (centred**2).sum(axis=1))


def centre(values: Sequence[float] | Floats) -> Centre:
    """The Hodges–Lehmann estimate of a centre of symmetry, and its interval (Hodges and Lehmann 1963).

    Args:
        values: at least one, independent, in any order.

    Returns:
        The median of the averages of all pairs (each value with itself included), and those two of the averages at which Wilcoxon's
        signed-rank test would no longer reject.
    """
    given = np.asarray(values, dtype=float)
    places = np.triu_indices(given.size)
    averages = np.sort((given[places[0]] + given[places[1]]) / 2)
    beyond = _averages_beyond(given.size)
    ends = None if beyond is None else (float(averages[beyond]), float(averages[-1 - beyond]))
    return Centre(float(np.median(averages)), ends)


@cache
def _averages_beyond(count: int) -> int | None:
    """Number of Walsh averages on each side of the 95 % interval; None if so few values have no interval."""
    tail = (1 - CONFIDENCE) / 2
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
