"""Lasting effects of cells: what makes one of them slower than its neighbours in every round of a process.

A process builds its cells once, and a cell's weights lie where they lie in memory for as long as the process lives. Its rounds
agree about it, so that a slope over a few cells looks certain and is an accident of their places. Every process builds its cells
in another order, so that these effects neither follow depth nor repeat. Their size shows in the distances of the cells of a
process from a line, and in the scatter of slopes among processes. Two depths of one process show neither of them: what earlier
runs showed is all that is known there, and a growth within its interval cannot be distinguished from such effects.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from capsbench.stats.intervals import Floats, StandardError, error_beyond
from capsbench.stats.median import median_error
from capsbench.stats.paired import row_weights

LASTING = 0.008
"""Standard deviation of these effects, as a share of the time of a step. In the rest of a step, beyond what rounds explain,
thirteen runs of `benchmarks.gate` with one process each had 0.5 to 0.7 %, six with four processes each 1.1 to 1.3 %, and two runs
at batch size 128 had 0.8 %. On a machine whose memory others used too, five runs had 4 to 6 %."""

LASTING_DEGREES = 6.0
"""Degrees of freedom that this is worth: few, as machines differ in it. Effects of up to 1.5 % are within its 99 % interval."""

_FEWEST_ROUNDS = 3
"""Least number of rounds of all cells of a process that show how far these are from a line."""


def expected_lasting(seconds: float) -> StandardError:
    """The error of a slope by what earlier runs showed.

    Args:
        seconds: deviation of the slope if each cell's own deviation were the time of a step.
    """
    return StandardError(LASTING * seconds, LASTING_DEGREES)


class Lasting(NamedTuple):
    """The error that lasting effects give the slope of a single process."""

    expected: StandardError
    """Error by what earlier runs showed."""
    shown: StandardError
    """Error by what these processes show."""


def lasting_effects(depths: Floats, values: Floats, processes: Sequence[int]) -> Lasting:
    """The error of slopes by lasting effects of the cells.

    The mean square of the cells' distances from the line of their process, less what the scatter of rounds explains. Each process
    shows it with two degrees of freedom fewer than it has depths. Both are medians, as a few long samples show no lasting effect.

    Args:
        depths: `[depths]`.
        values: `[rounds, depths]`, seconds; NaN where a depth did not take part.
        processes: `[rounds]`, the process of each round.
    """
    of, seen, degrees, errors = np.asarray(processes), 0.0, 0, []
    for one in np.unique(of):
        taken = values[of == one]
        there = ~np.isnan(taken).all(axis=0)
        complete = taken[:, there][~np.isnan(taken[:, there]).any(axis=1)]
        if there.sum() > 2 and len(complete) >= _FEWEST_ROUNDS:
            shares = complete / np.median(complete, axis=1, keepdims=True)
            line = np.column_stack([np.ones(there.sum()), depths[there]])
            medians = np.median(shares, axis=0)
            seen += float(((medians - line @ np.linalg.lstsq(line, medians)[0]) ** 2).sum())
            degrees += medians.size - 2
            errors += [median_error(samples) for samples in shares.T.tolist()]
    weights = row_weights(depths, ~np.isnan(values))
    # Effects of 1 on all cells give a slope this deviation: nearly that of the rounds with the most weight.
    weight = float(np.sqrt(np.nanmean((weights**2).sum(axis=1))))
    seconds = weight * float(np.nanmedian(values))
    shown = error_beyond(seen / degrees, float(np.median(errors)) ** 2, degrees) if degrees else StandardError(0.0, 0.0)
    return Lasting(expected_lasting(seconds), shown._replace(value=seconds * shown.value))
