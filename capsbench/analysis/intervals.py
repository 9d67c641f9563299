"""Intervals that contain the noise: a slope of times, and a ratio of slopes, drawn again and again from what was measured."""

from collections.abc import Sequence
from functools import lru_cache
from statistics import median

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
DRAWS = 4000

Floats = NDArray[np.float64]
Interval = tuple[float, float]


def slope_draws(
    blocks: Floats, values: Floats, error: float, samples: Sequence[Sequence[float] | None], random: np.random.Generator
) -> Floats:
    """What the slope through medians might have been.

    Within a process samples scatter: each cell's median is that of a bootstrap resample, and where a depth has replicates
    they are resampled too. Between processes medians scatter more than their samples say (memory's layout, clocks): the line's
    standard error, which knows the distance of each median from the line, is added times a draw from Student's t with n − 2
    degrees of freedom. Noise that shows in both ways counts twice, so that the interval errs on the wide side.

    Args:
        blocks: `[n]`, depths; at least two different ones among at least three.
        values: `[n]`, medians.
        error: standard error of the least-squares slope.
        samples: raw samples of each value; None where there are none, and it is taken as it is.
        random: where draws come from.

    Returns:
        `[DRAWS]`, slopes.
    """
    count = len(blocks)
    medians = np.broadcast_to(values, (DRAWS, count)).copy()
    for place, raw in enumerate(samples):
        if raw is not None and len(raw) > 1 and (middle := median(raw)):
            # Relative, so that a value that was scaled since keeps its noise.
            medians[:, place] *= resampled_medians(raw, random) / middle
    centred = blocks - blocks.mean()
    slopes = _with_replicates(blocks, medians, random) @ centred / (centred @ centred)
    return slopes + error * random.permutation(_student(count - 2))


def resampled_medians(samples: Sequence[float], random: np.random.Generator) -> Floats:
    """`[DRAWS]`: medians of bootstrap resamples.

    A resample's median is a sample whose rank is that of an order statistic of uniform numbers, which has a Beta distribution
    (Maritz and Jarrett 1978): drawing the rank spares drawing the resample.
    """
    ordered = np.sort(np.asarray(samples, dtype=float))
    count = ordered.size
    half = (count + 1) // 2
    lower = random.beta(half, count - half + 1, size=DRAWS)
    upper = lower if count % 2 else lower + (1 - lower) * random.beta(1, count - half, size=DRAWS)
    first, second = (ordered[np.minimum((ranks * count).astype(int), count - 1)] for ranks in (lower, upper))
    return (first + second) / 2


def median_interval(samples: Sequence[float]) -> Interval | None:
    """The 95 % interval of a median: the samples at the ranks where a resample's median lies (see `resampled_medians`).

    Args:
        samples: in any order.

    Returns:
        Its ends, or None with fewer than three samples.
    """
    count = len(samples)
    if count < 3:
        return None
    low, high = _median_ranks(count)
    ordered = sorted(samples)
    return float(ordered[low]), float(ordered[high])


@lru_cache
def _median_ranks(count: int) -> tuple[int, int]:
    """Of so many samples, the places in ascending order at which the interval of their median ends."""
    half = (count + 1) // 2
    # Of an even number the middle two share the median: the lower one's low end, and the upper one's high end.
    low = stats.beta.ppf((1 - CONFIDENCE) / 2, half, count - half + 1)
    high = 1 - low
    return int(low * count), min(int(high * count), count - 1)


def interval_of(draws: Floats) -> Interval:
    """Where the middle 95 % of draws lie."""
    low, high = np.percentile(draws, (50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)))
    return float(low), float(high)


def ratio_interval(slopes: Floats, references: Floats) -> Interval | None:
    """The 95 % interval of a ratio; None where a reference might be 0."""
    if not references.all():
        return None
    return interval_of(slopes / references)


def _with_replicates(blocks: Floats, medians: Floats, random: np.random.Generator) -> Floats:
    """Draws whose replicates at each depth are drawn from among them, with replacement."""
    depths = np.unique(blocks)
    if depths.size == blocks.size:
        return medians
    found = medians.copy()
    for depth in depths:
        places = np.flatnonzero(blocks == depth)
        if places.size > 1:
            chosen = places[random.integers(places.size, size=(len(medians), places.size))]
            found[:, places] = np.take_along_axis(medians, chosen, axis=1)
    return found


@lru_cache
def _student(degrees: int) -> Floats:
    """`[DRAWS]`: quantiles of Student's t, evenly spread: fewer are needed than of random draws."""
    return np.asarray(stats.t.ppf((np.arange(DRAWS) + 0.5) / DRAWS, degrees), dtype=float)
