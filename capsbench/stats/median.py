"""The interval of a median, for noise of any shape, and what the medians of two times say together."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
"""Level of every interval that the program prints."""

_WAITS = 0.10
"""Share of a step in which a device waits for its host, from which the step is the host's."""


def median_interval(samples: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of a median: that of the sign test, between two of the samples (`scipy.stats.quantile_test`).

    Args:
        samples: in any order.

    Returns:
        The ends; None with fewer than six samples, since even the range of five contains the median in less than 95 % of cases.
    """
    ranks = _ranks(len(samples))
    if ranks is None:
        return None
    ordered = sorted(samples)
    return float(ordered[ranks[0]]), float(ordered[ranks[1]])


def median_error(samples: Sequence[float]) -> float:
    """The standard error of a median (Price and Bonett 2001): the width of the sign test's interval over that of a normal one.

    A few odd samples do not move it. For fewer than six samples the range stands for the interval, at the level that it has; for
    one sample it is 0, as nothing is known.
    """
    if len(samples) < 2:
        return 0.0
    low, high = _ranks(len(samples)) or (0, len(samples) - 1)
    ordered = sorted(samples)
    return float(ordered[high] - ordered[low]) / _normal_width(len(samples), low)


def is_host_bound(samples: Sequence[float], of_device: Sequence[float]) -> bool:
    """Return whether a step takes longer than its device needs for it, because that waits for the host.

    Args:
        samples: seconds of the step.
        of_device: seconds that the device alone takes; empty where they are not known.
    """
    return bool(samples and of_device) and bool(np.median(of_device) < (1 - _WAITS) * np.median(samples))


@cache
def _ranks(count: int) -> tuple[int, int] | None:
    """Indices of the interval's two ends in the sorted samples, which depend on the number of samples alone."""
    if count == 0:
        return None
    found: Any = stats.quantile_test(np.arange(count), p=0.5)
    low, high = found.confidence_interval(CONFIDENCE)
    return None if math.isnan(low) or math.isnan(high) else (int(low), int(high))


@cache
def _normal_width(count: int, low: int) -> float:
    """The width, in standard errors, of a normal interval with the coverage of that between two of `count` samples."""
    outside = float(stats.binom.cdf(low, count, 0.5))
    return float(-2 * stats.norm.ppf(outside))
