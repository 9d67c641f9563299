"""Whether times of two runs differ, when processes, and whole machines, are fast and slow by turns.

Each cell is timed in a process of its own, and processes of one program differ by several percent, now and then by half:
what counts is therefore how ratios of matching cells scatter, not how samples within a process do. Mean and interval are
trimmed (Tukey and McLaughlin 1963, Yuen 1974), so that one odd process in eight neither makes a difference nor hides one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from capsbench.analysis.intervals import CONFIDENCE
from capsbench.analysis.slopes import fit_slope

TRIMMED = 0.2
"""Share of the ratios that is set aside at either end."""

FEWEST_CELLS = 3
"""With two processes nobody knows how much processes differ."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Change:
    """How much a time changed, in seconds or seconds per block."""

    before: float
    after: float
    low: float
    """95 % interval of `after - before`."""
    high: float
    p_value: float
    """Of the hypothesis that nothing changed."""


def level_change(before: Sequence[float], after: Sequence[float]) -> Change | None:
    """The change of a time over all cells of a line: the trimmed geometric mean of the ratios of matching cells.

    Args:
        before: seconds of each cell.
        after: of the matching ones.

    Returns:
        The geometric mean before, the same times the ratio, and Student's t on the logarithms of the ratios;
        None with fewer than three cells.
    """
    if len(before) < FEWEST_CELLS:
        return None
    logs = _log_ratios(before, after)
    aside = int(TRIMMED * logs.size)
    kept = logs.size - 2 * aside
    ordered = np.sort(logs)
    middle = float(ordered[aside : logs.size - aside].mean())
    winsorized = np.clip(logs, ordered[aside], ordered[logs.size - aside - 1])
    error = float(np.sqrt(((winsorized - winsorized.mean()) ** 2).sum() / (kept * (kept - 1))))
    level = float(np.exp(np.log(before).mean()))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, kept - 1)) * error
    low, high = (level * float(np.expm1(middle + sign * reach)) for sign in (-1, 1))
    return Change(level, level * float(np.exp(middle)), low, high, _p_value(middle, error, kept - 1))


def slope_change(blocks: Sequence[int], before: Sequence[float], after: Sequence[float]) -> Change | None:
    """The change of a time's slope over depth, from the standard errors of both least-squares lines.

    The runs are independent: half widths add as squares. Degrees of freedom are those of one line, which errs on the wide side.

    Args:
        blocks: depth of each cell.
        before: its seconds.
        after: those of the matching ones.

    Returns:
        Both slopes and the interval of their difference; None with fewer than three cells or two depths.
    """
    if len(blocks) < FEWEST_CELLS or len(set(blocks)) < 2:
        return None
    old, new = fit_slope(blocks, before), fit_slope(blocks, after)
    error = float(np.hypot(old.slope_error or 0.0, new.slope_error or 0.0))
    difference = new.slope - old.slope
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(blocks) - 2)) * error
    return Change(old.slope, new.slope, difference - reach, difference + reach, _p_value(difference, error, len(blocks) - 2))


def cell_changes(before: Sequence[float], after: Sequence[float]) -> list[Change] | None:
    """The change of each cell, whose noise is how the ratios of its whole line scatter; None with fewer than three cells.

    One process that was slow alone is thus never told from noise: replicates or other depths must bear it out.
    """
    if len(before) < FEWEST_CELLS:
        return None
    logs = _log_ratios(before, after)
    scatter = float(logs.std(ddof=1))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, logs.size - 1)) * scatter
    return [
        Change(
            old,
            new,
            old * float(np.expm1(ratio - reach)),
            old * float(np.expm1(ratio + reach)),
            _p_value(ratio, scatter, logs.size - 1),
        )
        for old, new, ratio in zip(before, after, logs, strict=True)
    ]


def adjusted(p_values: Sequence[float]) -> list[float]:
    """p-values of which those below 0.05 are there by chance in 5 % of cases at most (Benjamini and Hochberg 1995)."""
    return [float(value) for value in stats.false_discovery_control(p_values)] if p_values else []


def _log_ratios(before: Sequence[float], after: Sequence[float]) -> Floats:
    return np.asarray(np.log(np.asarray(after, dtype=float) / np.asarray(before, dtype=float)), dtype=float)


def _p_value(value: float, error: float, degrees: int) -> float:
    """Two-sided. Figures that do not scatter at all are told apart by any difference."""
    if error <= 1e-12 * abs(value):
        return 0.0 if value else 1.0
    return float(2 * stats.t.sf(abs(value) / error, degrees))
