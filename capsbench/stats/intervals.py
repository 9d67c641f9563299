"""Intervals of slopes and of their ratios, from the standard errors of every known source of noise."""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from capsbench.stats.median import CONFIDENCE

Floats = NDArray[np.float64]
Interval = tuple[float, float]


class StandardError(NamedTuple):
    """The standard error that one source of noise gives an estimate."""

    value: float
    """Value in the unit of the estimate."""
    degrees: float
    """Degrees of freedom of its Student's t, not always a whole number."""


StandardErrors = tuple[StandardError, ...]
"""Standard errors of independent sources."""


def interval(centre: float, half: float) -> Interval:
    """The interval of an estimate from half its width."""
    return float(centre - half), float(centre + half)


def half_width(errors: Iterable[StandardError], confidence: float = CONFIDENCE) -> float:
    """Half the width of an interval: half widths of independent sources add as squares, which errs on the wide side.

    Their degrees of freedom are not averaged: an error with one degree of freedom is small by chance now and then, and the
    average would let another source's degrees shrink the interval.

    Args:
        errors: one per source.
        confidence: level of the interval.
    """
    return math.hypot(*(one.value * _quantile(one.degrees, confidence) for one in errors if one.value))


@lru_cache(maxsize=4096)
def _quantile(degrees: float, confidence: float) -> float:
    """The end of the interval of Student's t at this level."""
    return float(special.stdtrit(degrees, (1 + confidence) / 2))


def error_beyond(seen: float, explained: float, degrees: float) -> StandardError:
    """The error that is left of a variance when another source explains a part of it.

    Its degrees of freedom are those of a difference of variances (Satterthwaite 1946): few, where the other source explains
    most of it, and none, where it explains all.

    Args:
        seen: variance of estimates.
        explained: variance that the other source gives them.
        degrees: degrees of freedom of the first.
    """
    left = seen - explained
    return StandardError(left**0.5, degrees * (left / seen) ** 2) if left > 0 else StandardError(0.0, 0.0)


def p_value(estimate: float, errors: Sequence[StandardError]) -> float:
    """The two-sided p-value of an estimate, below 5 % where its interval does not contain 0.

    Figures without scatter differ as soon as their values do.
    """
    half = half_width(errors)
    if half <= 1e-12 * abs(estimate):
        return 0.0 if estimate else 1.0
    degrees = min(one.degrees for one in errors if one.value)
    within = abs(estimate) / half * _quantile(degrees, CONFIDENCE)
    return float(2 * special.stdtr(degrees, -within))


def ratio_interval(slope: float, half: float, reference: float, reference_half: float) -> Interval | None:
    """The 95 % interval of a ratio of two slopes (Fieller 1954): every ratio r for which slope − r · reference may be 0.

    Args:
        slope: the dividend.
        half: half the width of its interval.
        reference: the divisor.
        reference_half: half the width of its interval.

    Returns:
        The ends of the interval; None where the divisor's interval contains 0, so that the ratio may be anything.
    """
    divisor = (reference - reference_half) * (reference + reference_half)
    if divisor <= 0:
        return None
    if not half and not reference_half:
        return (slope / reference + 0.0,) * 2
    middle = slope * reference
    root = math.sqrt(max(middle**2 - divisor * (slope - half) * (slope + half), 0.0))
    return (middle - root) / divisor, (middle + root) / divisor
