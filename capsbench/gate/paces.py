"""Tests of whether times of two runs differ, although processes and whole machines are fast and slow by turns.

Each cell is timed in a process of its own, and processes of one program differ by several percent, now and then by half:
therefore the scatter of the ratios of matching cells counts, not that of samples within a process. Mean and interval are
trimmed (Tukey and McLaughlin 1963, Yuen 1974), so that one odd process in eight neither makes a difference nor hides one.
Cells of one depth may share an error, and so may cells of one replicate: the means of depths give the scatter, and the
differences of whole replicates are added.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from capsbench.stats.intervals import Floats, StandardError, half_width, p_value
from capsbench.stats.least_squares import fit_slope
from capsbench.stats.linearity import Shape, shape_of, times_are_linear
from capsbench.stats.processes import BETWEEN_PROCESSES, SHARED, error_of_run, moderated, of_mean, rounds_error
from capsbench.stats.scatter import Points, line_errors

TRIMMED = 0.2
"""Share of the ratios that is set aside at either end."""

FEWEST_TRIMMED = 6
"""Least number of ratios that is trimmed: of five, the three that remain have an interval with too little coverage."""

FEWEST_CELLS = 3
"""Least number of cells that is compared: two processes do not show how much processes differ."""


class Place(NamedTuple):
    """Position of a cell in its series."""

    blocks: float
    replicate: int = 0


@dataclass(frozen=True)
class Change:
    """The change of a time, in seconds or seconds per block."""

    before: float
    after: float
    low: float
    """Lower end of the 95 % interval of `after - before`."""
    high: float
    p_value: float
    """P-value of the hypothesis that nothing changed."""
    shapes: tuple[Shape, Shape] | None = None
    """Shapes of the times over depth before and after, for a slope."""
    within: tuple[float, float] | None = None
    """Largest absolute value that each slope may have, for a slope."""


def level_change(before: Sequence[float], after: Sequence[float], places: Sequence[Place] | None = None) -> Change | None:
    """The change of a time over all cells of a series: the trimmed geometric mean of the ratios of matching cells.

    Args:
        before: seconds of each cell.
        after: seconds of the matching cells.
        places: depth and replicate of each cell; by default each has a depth of its own.

    Returns:
        The geometric mean before, that mean times the ratio, and Student's t on the logarithms of the ratios;
        None with fewer than three cells.
    """
    if len(before) < FEWEST_CELLS:
        return None
    logs, places = _log_ratios(before, after), places or [Place(number) for number in range(len(before))]
    depths = _means(logs, [place.blocks for place in places])
    middle, own = _trimmed(depths if depths.size >= FEWEST_CELLS else logs)
    errors = [own]
    if depths.size > 1:
        errors += _between(logs, places, share=True)
    level, half = float(np.exp(np.log(before).mean())), half_width(errors)
    low, high = (level * float(np.expm1(middle + sign * half)) for sign in (-1, 1))
    return Change(level, level * float(np.exp(middle)), low, high, p_value(middle, errors))


def slope_change(
    blocks: Sequence[float], before: Sequence[float], after: Sequence[float], replicates: Sequence[int] | None = None
) -> Change | None:
    """The change of a time's slope over depth, from the standard errors of both lines, which are independent.

    Args:
        blocks: depth of each cell.
        before: seconds of each cell.
        after: seconds of the matching cells.
        replicates: replicate of each cell; by default all belong to one.

    Returns:
        Both slopes and the interval of their difference; None with fewer than three cells or two depths.
    """
    if len(blocks) < FEWEST_CELLS or len(set(blocks)) < 2:
        return None
    depths, sides = np.array(blocks, dtype=float), [np.array(side, dtype=float) for side in (before, after)]
    of = None if replicates is None else np.array(replicates, dtype=float)
    fits = [fit_slope(blocks, side.tolist()) for side in sides]
    errors = [
        line_errors(Points(depths, side, of), relative=True, exact=fit.exact).slope for fit, side in zip(fits, sides, strict=True)
    ]
    halves = [half_width(one) for one in errors]
    shapes = [
        shape_of(times_are_linear(depths, side, fit.deviation), fit.slope - half, fit.slope + half)
        for fit, side, half in zip(fits, sides, halves, strict=True)
    ]
    old, new = (fit.slope for fit in fits)
    half = half_width([*errors[0], *errors[1]])
    return Change(
        old, new, new - old - half, new - old + half, p_value(new - old, [*errors[0], *errors[1]]),
        (shapes[0], shapes[1]), (abs(old) + halves[0], abs(new) + halves[1]),
    )  # fmt: skip


class PairedPace(NamedTuple):
    """The slope of one run, of cells that took turns."""

    slope: float
    """Slope in any unit that is common to both runs."""
    low: float
    """Lower end of its 95 % interval from the scatter of rounds."""
    high: float
    """Upper end."""
    rounds: int
    """Number of its rounds."""
    scatter: StandardError = StandardError(0.0, 0.0)
    """The error that its process gives the slope of a single one, as far as its processes showed it."""
    processes: float = 1
    """Number of its processes."""

    def scaled(self, factor: float) -> "PairedPace":
        """The slope in another unit."""
        scatter = self.scatter._replace(value=factor * self.scatter.value)
        return self._replace(slope=factor * self.slope, low=factor * self.low, high=factor * self.high, scatter=scatter)


def paired_slope_change(
    before: PairedPace, after: PairedPace, *, shared: float = SHARED, lasting: StandardError | None = None
) -> Change:
    """The change of the slope of cells that took turns in either run, whose processes show together how much they scatter.

    Args:
        before: slope of the first run, in seconds per block.
        after: slope of the second, scaled to the speed of the first.
        shared: part of the variance of a single process that all processes of a run share.
        lasting: error that lasting effects of cells are expected to give the slope of a single process; None where it has none.
    """
    expected = BETWEEN_PROCESSES * float(np.hypot(before.slope, after.slope)) / 2**0.5
    shown = [before.scatter, after.scatter]
    errors = [rounds_error((one.low, one.high), one.rounds) for one in (before, after)]
    for one in (before, after):
        errors.append(error_of_run(expected, [] if lasting else shown, one.processes, shared))
        if lasting:
            errors.append(of_mean(moderated([lasting, *shown]), one.processes))
    change, half = after.slope - before.slope, half_width(errors)
    shapes = shape_of(True, before.low, before.high), shape_of(True, after.low, after.high)
    return Change(
        before.slope, after.slope, change - half, change + half, p_value(change, errors), shapes,
        (max(abs(before.low), abs(before.high)), max(abs(after.low), abs(after.high))),
    )  # fmt: skip


def cell_changes(before: Sequence[float], after: Sequence[float], places: Sequence[Place] | None = None) -> list[Change] | None:
    """The change of each cell, with the scatter of ratios in its series as noise; None with fewer than three cells.

    A single slow process thus never stands out from noise: replicates or other depths must confirm it.
    """
    if len(before) < FEWEST_CELLS:
        return None
    logs, places = _log_ratios(before, after), places or [Place(number) for number in range(len(before))]
    depths = len({place.blocks for place in places})
    degrees = float(depths if depths >= FEWEST_CELLS else logs.size) - 1
    errors = [StandardError(float(logs.std(ddof=1)), degrees)]
    if depths > 1:
        errors += _between(logs, places, share=False)
    half = half_width(errors)
    return [
        Change(old, new, old * float(np.expm1(ratio - half)), old * float(np.expm1(ratio + half)), p_value(ratio, errors))
        for old, new, ratio in zip(before, after, logs.tolist(), strict=True)
    ]


def _trimmed(values: Floats) -> tuple[float, StandardError]:
    """The trimmed mean, and its standard error from the winsorized values."""
    ordered, aside = np.sort(values), int(TRIMMED * values.size) if values.size >= FEWEST_TRIMMED else 0
    kept = values.size - 2 * aside
    winsorized = np.clip(values, ordered[aside], ordered[values.size - aside - 1])
    squares = float(((winsorized - winsorized.mean()) ** 2).sum())
    return float(ordered[aside : values.size - aside].mean()), StandardError((squares / (kept * (kept - 1))) ** 0.5, kept - 1.0)


def _between(logs: Floats, places: Sequence[Place], *, share: bool) -> list[StandardError]:
    """Errors that the cells of a replicate share, of the mean over replicates or of each; empty for a single replicate."""
    of_depth = [place.blocks for place in places]
    depths, means = sorted(set(of_depth)), _means(logs, of_depth)
    left = logs - means[np.searchsorted(depths, of_depth)]
    replicates = _means(left, [place.replicate for place in places])
    if replicates.size < 2:
        return []
    scatter = float(replicates.std(ddof=1))
    return [StandardError(scatter / replicates.size**0.5 if share else scatter, replicates.size - 1.0)]


def _means(values: Floats, groups: Sequence[float]) -> Floats:
    """The mean of each group, in ascending order of the groups."""
    places, counts = _grouped(tuple(groups))
    return np.asarray(np.bincount(places, weights=values) / counts, dtype=float)


@lru_cache(maxsize=1024)
def _grouped(groups: tuple[float, ...]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The place of each value's group in ascending order, and the number of values in each group."""
    _, places, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return places, counts


def adjusted(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted so that those below 0.05 are due to chance in 5 % of cases at most (Benjamini and Hochberg 1995)."""
    return [float(value) for value in stats.false_discovery_control(p_values)] if p_values else []


def _log_ratios(before: Sequence[float], after: Sequence[float]) -> Floats:
    return np.asarray(np.log(np.asarray(after, dtype=float) / np.asarray(before, dtype=float)), dtype=float)
