"""The scatter of a slope among processes of one program, of which the rounds of one process show nothing.

The layout of memory, for one, is that of a process: its rounds agree about a slope that the next process does not have. Two
processes show this scatter with one degree of freedom, for which Student's t is 12.7. So earlier runs count as a prior: the
variance among processes has a scaled inverse χ² distribution, and its estimate is that of the moderated t (Smyth 2004,
doi:10.2202/1544-6115.1027): the mean of the prior and of what a run shows, weighted by their degrees of freedom, which add up.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from capsbench.stats.intervals import Floats, Interval, StandardError, half_width
from capsbench.stats.median import CONFIDENCE
from capsbench.stats.paired import FEWEST_ROUNDS, centre, paired_ratio_interval

BETWEEN_PROCESSES = 0.025
"""Standard deviation of a slope among processes of one program, as a share of the slope, beyond what its rounds show. Thirteen
runs of `benchmarks.gate` with a process each had 2.4 % (1.9 to 3.0) over three networks and two times."""

RATIO_BETWEEN_PROCESSES = 0.015
"""Standard deviation of the ratio of two slopes of one process, as a share of the ratio. Most of what makes a process slow it
does to all networks: the same runs had 1.0 % beyond their rounds, where independent slopes would have 3.4 %."""

PRIOR_DEGREES = 16.0
"""Degrees of freedom that these priors are worth. The runs have eleven, in six series, which vary together (a correlation of 0.7)
and so are worth one and a half."""


class PooledCentre(NamedTuple):
    """The centre of symmetric values from one process or several."""

    value: float
    """Median of the values' Walsh averages."""
    interval: Interval | None
    """95 % interval, which contains the scatter of rounds and of processes; None for too few values."""
    of_rounds: Interval | None
    """95 % interval from the scatter of rounds alone."""
    of_processes: float
    """Half the width of the 95 % interval from the scatter of processes alone, which no further round makes narrower."""
    scatter: StandardError
    """Scatter that these processes showed, without the prior: the error of a single one."""


def pooled_centre(values: Floats, processes: Sequence[int], share: float = BETWEEN_PROCESSES) -> PooledCentre:
    """The centre of values from one process or several, whose interval contains the scatter of processes.

    In simulations, where processes scatter by as much as the prior says or less, 95 % of intervals or more hold the true value.
    Where they scatter by twice as much, 72 % do with one process, 79 % with two and 83 % with four, since the prior still counts.

    Args:
        values: as for `centre`.
        processes: the process of each value.
        share: standard deviation among processes that the prior expects, as a share of the centre.
    """
    value, of_rounds = centre(values)
    scatter = process_error(values, processes)
    half = _half_of_mean(moderated([StandardError(share * abs(value), PRIOR_DEGREES), scatter]), processes)
    return PooledCentre(value, of_rounds and _widened(value, of_rounds, half), of_rounds, half, scatter)


def pooled_ratio_interval(values: Floats, reference: Floats, processes: Sequence[int]) -> Interval | None:
    """The 95 % interval of the ratio of two centres, which contains the scatter of the ratio among processes.

    Args:
        values: those of the dividend.
        reference: those of the divisor in the same rounds.
        processes: the process of each round.

    Returns:
        The ends; None where `paired_ratio_interval` has none.
    """
    of_rounds = paired_ratio_interval(values, reference)
    if of_rounds is None:
        return None
    divisor = centre(reference).value
    ratio = centre(values).value / divisor
    scatter = process_error((values - ratio * reference) / divisor, processes)
    prior = StandardError(RATIO_BETWEEN_PROCESSES * abs(ratio), PRIOR_DEGREES)
    return _widened(ratio, of_rounds, _half_of_mean(moderated([prior, scatter]), processes))


def process_error(values: Floats, processes: Sequence[int]) -> StandardError:
    """The error that its process gives the centre of a single one, as far as these processes show it.

    The variance of their centres, less that which their rounds explain; its degrees of freedom are those of a difference of
    variances (Satterthwaite 1946): few, where rounds explain most of it, and none, where processes agree or there is one.

    Args:
        values: as for `centre`.
        processes: the process of each value. Those with fewer than six values show nothing.
    """
    of = np.asarray(processes)
    parts = [values[of == one] for one, count in Counter(processes).items() if count >= FEWEST_ROUNDS]
    if len(parts) < 2:
        return StandardError(0.0, 0.0)
    centres = [centre(part) for part in parts]
    seen = float(np.var([one.value for one in centres], ddof=1))
    errors = [rounds_error(one.interval, len(part)) for one, part in zip(centres, parts, strict=True) if one.interval]
    explained = float(np.mean([one.value**2 for one in errors]))
    left = seen - explained
    return StandardError(left**0.5, (len(parts) - 1) * (left / seen) ** 2) if left > 0 else StandardError(0.0, 0.0)


def moderated(errors: Sequence[StandardError]) -> StandardError:
    """The estimate of one error from several independent estimates: the mean of squares, weighted by degrees of freedom."""
    degrees = sum(one.degrees for one in errors)
    return StandardError(float((sum(one.degrees * one.value**2 for one in errors) / degrees) ** 0.5), degrees)


def equal_processes(processes: Sequence[int]) -> float:
    """The number of processes with equally many rounds whose mean is known as well as that of these rounds.

    Args:
        processes: the process of each round.
    """
    return len(processes) ** 2 / sum(count**2 for count in Counter(processes).values())


def rounds_error(interval: Interval, count: int) -> StandardError:
    """The standard error of a centre, from its 95 % interval and the number of its values."""
    degrees = count - 1.0
    return StandardError((interval[1] - interval[0]) / 2 / float(special.stdtrit(degrees, (1 + CONFIDENCE) / 2)), degrees)


def _half_of_mean(one: StandardError, processes: Sequence[int]) -> float:
    """Half the width of the interval of the mean over processes, from the error of a single one."""
    return half_width([StandardError(one.value / equal_processes(processes) ** 0.5, one.degrees)])


def _widened(value: float, ends: Interval, half: float) -> Interval:
    """An interval of a value with a further independent error, half of whose interval is this wide."""
    low, high = ends
    return value - float(np.hypot(value - low, half)), value + float(np.hypot(high - value, half))
