"""The scatter of a slope among processes and runs of one program, of which the rounds of one process show nothing.

The layout of memory, for one, is that of a process: its rounds agree about a slope that the next process does not have. Two
processes show this scatter with one degree of freedom, for which Student's t is 12.7. So earlier runs count as a prior: the
variance among processes has a scaled inverse χ² distribution, and its estimate is that of the moderated t (Smyth 2004,
doi:10.2202/1544-6115.1027): the mean of the prior and of what a run shows, weighted by their degrees of freedom, which add up.

What a machine does for minutes, all processes of a run share. So the variance of a run's slope is that which they share, and the
rest of it divided by their number (`error_of_run`), in the interval of a slope as in that of a change between two runs
(`capsbench.gate.paces`). The part that they share depends on the unit. Seventeen runs of `benchmarks.gate` with four processes
each, of two programs on two days, show it in training and inference. In seconds, runs differed by 9.9 and 6.1 %, where their
processes explain 4.7 and 4.1 %: a machine is fast and slow for minutes. In units of the rest of the step they differed by 3.2 and
4.3 %, where processes explain 3.0 and 3.9 %. Ratios of two networks in training differed by less than processes explain.

Lasting effects of cells (`lasting`) are drawn anew by each process, so that their variance is divided by the number of processes.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from capsbench.stats.intervals import Floats, Interval, StandardError, error_beyond, half_width
from capsbench.stats.lasting import Lasting
from capsbench.stats.median import CONFIDENCE
from capsbench.stats.paired import FEWEST_ROUNDS, centre, paired_ratio_interval

BETWEEN_PROCESSES = 0.025
"""Standard deviation of a slope among runs of one program with a process each, as a share of the slope, beyond what their rounds
show. Thirteen runs of `benchmarks.gate` on a quiet day had 2.4 % (1.9 to 3.0) over three networks and two times."""

RATIO_BETWEEN_PROCESSES = 0.015
"""Standard deviation of the ratio of two slopes of one process, as a share of the ratio. Most of what makes a process slow it
does to all networks: the same runs had 1.0 % beyond their rounds, where independent slopes would have 3.4 %."""

PRIOR_DEGREES = 16.0
"""Degrees of freedom that these priors are worth. The runs have eleven, in six series, which vary together (a correlation of 0.7)
and so are worth one and a half."""

SHARED = 0.5
"""Part of the variance of a slope in seconds that the processes of a run share: 0.54 in training and 0.35 in inference."""

SHARED_OF_RATIO = 0.25
"""Part that they share where the unit is another time of the same rounds, so that the speed of the machine drops out. The runs
had 0.1, and are compatible with up to 0.4."""


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
    """Scatter that these processes and their cells showed, without the prior: the error of a single process."""


def pooled_centre(
    values: Floats,
    processes: Sequence[int],
    *,
    share: float = BETWEEN_PROCESSES,
    lasting: Lasting | None = None,
    confidence: float = CONFIDENCE,
) -> PooledCentre:
    """The centre of values from one process or several, whose interval contains the scatter of processes.

    In simulations, where runs of one process scatter by as much as the prior says or less, 93 % of intervals or more hold the
    true value, if the processes of one run share half of the variance or less. Where they scatter by twice as much, 73 % do with
    one process; with four processes, 96 % do if these share nothing, 78 % if they share half of it, and 64 % if they share all.

    Args:
        values: as for `centre`.
        processes: the process of each value.
        share: standard deviation among processes that the prior expects, as a share of the centre.
        lasting: error of a single process by lasting effects of cells; None where values contain none.
        confidence: level of the interval.
    """
    value, of_rounds = centre(values, confidence)
    count, scatter = equal_processes(processes), process_error(values, processes)
    if lasting is None:
        errors = [error_of_run(share * abs(value), [scatter], count)]
    else:
        errors = [error_of_run(share * abs(value), [], count), of_mean(moderated([*lasting, scatter]), count)]
        scatter = moderated([lasting.shown, scatter])
    half = half_width(errors, confidence)
    return PooledCentre(value, of_rounds and widened(value, of_rounds, half), of_rounds, half, scatter)


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
    error = error_of_run(RATIO_BETWEEN_PROCESSES * abs(ratio), [scatter], equal_processes(processes), SHARED_OF_RATIO)
    return widened(ratio, of_rounds, half_width([error]))


def error_of_run(expected: float, shown: Sequence[StandardError], count: float, shared: float = SHARED) -> StandardError:
    """The error that its processes give the value of a run, apart from that of the rounds.

    Args:
        expected: standard deviation among runs of one process, as the prior has it.
        shown: scatter of single processes, as one run or several show it.
        count: number of processes.
        shared: part of the variance of a single process that all processes of a run share.
    """
    apart = moderated([StandardError(expected * (1 - shared) ** 0.5, PRIOR_DEGREES), *shown])
    return apart._replace(value=apart.value * (shared / (1 - shared) + 1 / count) ** 0.5)


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
    return error_beyond(seen, explained, len(parts) - 1)


def moderated(errors: Sequence[StandardError]) -> StandardError:
    """The estimate of one error from several independent estimates: the mean of squares, weighted by degrees of freedom."""
    degrees = sum(one.degrees for one in errors)
    if not degrees:
        return StandardError(0.0, 0.0)
    return StandardError(float((sum(one.degrees * one.value**2 for one in errors) / degrees) ** 0.5), degrees)


def of_mean(one: StandardError, count: float) -> StandardError:
    """The error of the mean of so many independent estimates, from that of a single one."""
    return one._replace(value=one.value / count**0.5)


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


def widened(value: float, ends: Interval, half: float) -> Interval:
    """An interval of a value with a further independent error, half of whose interval is this wide."""
    low, high = ends
    return value - float(np.hypot(value - low, half)), value + float(np.hypot(high - value, half))
