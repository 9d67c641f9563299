"""Times of cells that took turns: which part of a step grows with depth, by how much, and by how much each depth differs.

A block may be half a percent of a step, and its slope is lost in the noise of the rest. Where the clock was also read at the
edges of the modules that grow, the slope is that of these parts and their share of the optimizer, provided that the rest of the
step does not grow: the interval of its own slope contains 0, at 99 %. At 95 %, one series in twenty would seem to grow by chance.
A cell that is slower in the rest of its step for as long as its process lives does not grow either (`lasting`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from capsbench.frame import (
    AXIS_COLUMN,
    GROWING_AXIS_COLUMN,
    GROWING_COLUMNS,
    POSITION_COLUMN,
    PROCESSES_COLUMN,
    ROUNDS_COLUMN,
    SAMPLE_COLUMNS,
)
from capsbench.stats.intervals import Floats, Interval, StandardError, half_width, interval, ratio_interval
from capsbench.stats.lasting import lasting_effects
from capsbench.stats.median import median_interval
from capsbench.stats.paired import FEWEST_ROUNDS, row_slopes
from capsbench.stats.processes import PooledCentre, pooled_centre, pooled_ratio_interval, widened

REST_CONFIDENCE = 0.99
"""Level of the interval of the rest's slope."""

Basis = Literal["edges", "turns", "cells"]
"""Origin of a slope: the parts that grow, in turn; whole steps, in turn; or values of cells that were each measured alone."""

_FEWEST_CELLS = 3
"""Least number of cells in common rounds: two are no part of a grid."""

RoundKey = tuple[int, int]
"""Replicate and number of a round."""


class TurnTimes(NamedTuple):
    """Seconds of one series whose cells took turns; NaN where a depth did not take part in a round."""

    depths: Floats
    """`[depths]`, in ascending order."""
    turns: list[RoundKey]
    """`[rounds]`, their names."""
    processes: list[int]
    """`[rounds]`, the process that took each."""
    whole: Floats
    """`[rounds, depths]`, seconds of the whole step."""
    growing: Floats | None
    """`[rounds, depths]`, seconds of the parts that grow with depth; None if they are not known for every cell."""


class DepthTime(NamedTuple):
    """The time at one depth, without what drifted between rounds."""

    seconds: float
    low: float
    """One end of its 95 % interval relative to the first and last depth of the same rounds; NaN where there is none."""
    high: float

    def above(self, level: float) -> "DepthTime":
        """The time with this many seconds more."""
        return DepthTime(self.seconds + level, self.low + level, self.high + level)

    def of_a_step(self) -> "DepthTime":
        """The time with an interval of values that a step can take, which are not below 0."""
        return self._replace(low=min(self.seconds, 0.0)) if self.low < 0 else self


@dataclass(frozen=True)
class TurnFit:
    """The slope of a series whose cells took turns, and what it rests on."""

    basis: Literal["edges", "turns"]
    """Origin of the slope."""
    slope: PooledCentre
    """Seconds per block."""
    rest: Interval | None
    """99 % interval of the slope of the rest of the step; None if the parts that grow are not known."""
    at: dict[float, DepthTime]
    """The time at each depth. If the parts that grow are known, the rest of the step is the same at all depths."""
    slopes: dict[RoundKey, float]
    """The slope within each round."""
    processes: dict[RoundKey, int]
    """The process of each round."""
    rest_seconds: float = float("nan")
    """Median seconds of the rest of the step; NaN if the parts that grow are not known."""
    growing: PooledCentre | None = None
    """Seconds per block of the parts that grow, whatever the rest does; None if they are not known."""
    of_rest: PooledCentre | None = None
    """The slope of these parts as a share of the rest in the same round, without the speed of the machine."""

    @property
    def rest_grows(self) -> bool:
        """True if the rest of the step grows with depth too, so that the slope is that of the whole step."""
        return self.rest is not None and not self.rest[0] <= 0 <= self.rest[1]


def turn_times(cells: pd.DataFrame, column: str) -> TurnTimes | None:
    """The times of a series by round and depth; None if fewer than two depths took turns.

    Args:
        cells: rows of one series along an axis.
        column: the time's column.
    """
    if not {ROUNDS_COLUMN, SAMPLE_COLUMNS[column]} <= set(cells.columns):
        return None
    rows = [row for row in cells.to_dict("records") if _filled(row[ROUNDS_COLUMN]) and _filled(row[SAMPLE_COLUMNS[column]])]
    depths = sorted({float(row[POSITION_COLUMN]) for row in rows})
    if len(depths) < 2:
        return None
    process_of: dict[RoundKey, int] = {}
    for row in rows:
        turns = [(int(row.get("replicate", 0)), number) for number in row[ROUNDS_COLUMN]]
        process_of |= dict(zip(turns, row[PROCESSES_COLUMN], strict=True))
    turns = sorted(process_of)
    place = {turn: number for number, turn in enumerate(turns)}
    names = [SAMPLE_COLUMNS[column]]
    if all(_filled(row[GROWING_COLUMNS[column]]) and _grows_along_its_axis(row) for row in rows):
        names.append(GROWING_COLUMNS[column])
    tables = [np.full((len(turns), len(depths)), np.nan) for _ in names]
    for row in rows:
        at, replicate = depths.index(float(row[POSITION_COLUMN])), int(row.get("replicate", 0))
        here = [place[replicate, number] for number in row[ROUNDS_COLUMN]]
        for table, name in zip(tables, names, strict=True):
            table[here, at] = row[name]
    whole, *growing = tables
    return TurnTimes(np.array(depths), turns, [process_of[turn] for turn in turns], whole, growing[0] if growing else None)


class CommonRounds(NamedTuple):
    """Seconds of the cells of one replicate, on any axes, in the rounds in which most of them took part."""

    cells: list[int]
    """`[cells]`, the indices of their rows."""
    seconds: Floats
    """`[rounds, cells]`."""
    processes: list[int]
    """`[rounds]`, the process that took each, numbered over all replicates."""


def common_rounds(rows: pd.DataFrame, column: str) -> list[CommonRounds]:
    """The rounds that most cells of each replicate have in common, if there are six or more, of three cells or more.

    Args:
        rows: rows of one series that have this time.
        column: the time's column.
    """
    if not {ROUNDS_COLUMN, SAMPLE_COLUMNS[column]} <= set(rows.columns):
        return []
    taken: dict[RoundKey, dict[int, float]] = {}
    process_of: dict[RoundKey, int] = {}
    for number, row in enumerate(rows.to_dict("records")):
        if _filled(row[ROUNDS_COLUMN]) and _filled(row[SAMPLE_COLUMNS[column]]):
            turns = [(int(row.get("replicate", 0)), one) for one in row[ROUNDS_COLUMN]]
            process_of |= dict(zip(turns, row[PROCESSES_COLUMN], strict=True))
            for turn, seconds in zip(turns, row[SAMPLE_COLUMNS[column]], strict=True):
                taken.setdefault(turn, {})[number] = seconds
    # Rounds of fewer cells, such as those of the ends of series, show nothing of the others.
    groups: dict[int, dict[tuple[int, ...], list[RoundKey]]] = {}
    for turn, by_cell in taken.items():
        groups.setdefault(turn[0], {}).setdefault(tuple(sorted(by_cell)), []).append(turn)
    names: dict[tuple[int, int], int] = {}
    found = []
    for replicate, of_replicate in sorted(groups.items()):
        cells, turns = max(of_replicate.items(), key=lambda one: (len(one[1]) >= FEWEST_ROUNDS, len(one[0]), len(one[1])))
        if len(turns) >= FEWEST_ROUNDS and len(cells) >= _FEWEST_CELLS:
            seconds = np.array([[taken[turn][cell] for cell in cells] for turn in sorted(turns)])
            processes = [names.setdefault((replicate, process_of[turn]), len(names)) for turn in sorted(turns)]
            found.append(CommonRounds(list(cells), seconds, processes))
    return found


def _grows_along_its_axis(row: Mapping[Any, Any]) -> bool:
    """Return whether the parts that grow were found along the axis of the series: along another one, the rest may grow too."""
    return bool(row.get(GROWING_AXIS_COLUMN, "blocks") == row.get(AXIS_COLUMN, "blocks"))


def _filled(samples: object) -> bool:
    return isinstance(samples, Sequence) and len(samples) > 0


def fit_turns(times: TurnTimes) -> TurnFit | None:
    """The slope of cells that took turns; None with fewer than six rounds of two depths or more."""
    slopes = row_slopes(times.depths, times.whole)
    used = ~np.isnan(slopes)
    if used.sum() < FEWEST_ROUNDS:
        return None
    slopes, whole = slopes[used], times.whole[used]
    turns = [turn for turn, there in zip(times.turns, used.tolist(), strict=True) if there]
    processes = [process for process, there in zip(times.processes, used.tolist(), strict=True) if there]
    of_process = dict(zip(turns, processes, strict=True))
    if times.growing is None:
        return TurnFit(
            "turns", _of_whole_steps(times.depths, whole, processes), None,
            {depth: one.of_a_step() for depth, one in _effects(times, times.whole)},
            dict(zip(turns, slopes.tolist(), strict=True)), of_process,
        )  # fmt: skip
    remaining, growing = whole - times.growing[used], row_slopes(times.depths, times.growing[used])
    rest, speeds = _slope_of_rest(times.depths, remaining, processes), np.nanmedian(remaining, axis=1)
    of_growing = pooled_centre(growing, processes)
    by_edges = rest[0] <= 0 <= rest[1]
    level = float(np.nanmedian(times.whole - times.growing)) if by_edges else 0.0
    return TurnFit(
        "edges" if by_edges else "turns",
        of_growing if by_edges else _of_whole_steps(times.depths, whole, processes),
        rest,
        {depth: one.above(level).of_a_step() for depth, one in _effects(times, times.growing if by_edges else times.whole)},
        dict(zip(turns, (growing if by_edges else slopes).tolist(), strict=True)),
        of_process,
        float(np.median(speeds)),
        of_growing,
        pooled_centre(growing / speeds, processes),
    )


def _of_whole_steps(depths: Floats, whole: Floats, processes: Sequence[int]) -> PooledCentre:
    """The slope of whole steps, in which the rest of a step has lasting effects too."""
    return pooled_centre(row_slopes(depths, whole), processes, lasting=lasting_effects(depths, whole, processes))


def _slope_of_rest(depths: Floats, remaining: Floats, processes: Sequence[int]) -> Interval:
    """The 99 % interval of the slope of the rest of a step."""
    slopes, lasting = row_slopes(depths, remaining), lasting_effects(depths, remaining, processes)
    found = pooled_centre(slopes, processes, share=0.0, lasting=lasting, confidence=REST_CONFIDENCE)
    # So few rounds may have no interval at this level, and their range stands for it.
    return found.interval or widened(found.value, (float(slopes.min()), float(slopes.max())), found.of_processes)


def _effects(times: TurnTimes, part: Floats) -> list[tuple[float, DepthTime]]:
    """The time at each depth: of the first and last from rounds of both, and of any other one from its distance to their line.

    Rounds of the first and last depth alone may be of a slower time, which scales their difference; the distances are not moved.
    A depth that never took turns with both, as when a sweep got a deeper cell later, is placed relative to two depths that did.
    """
    depths, there = times.depths.tolist(), ~np.isnan(part)
    first, last = 0, len(depths) - 1
    together = there[:, first] & there[:, last]
    if not together.any():
        medians = np.nanmedian(part, axis=0).tolist()
        return [(depth, DepthTime(value, np.nan, np.nan)) for depth, value in zip(depths, medians, strict=True)]
    ends = part[together][:, [first, last]]
    level, halves = float(np.median(ends.sum(axis=1) / 2)), (ends[:, 1] - ends[:, 0]) / 2
    half, (low, high) = float(np.median(halves)), median_interval(halves.tolist()) or (np.nan, np.nan)
    found = {first: DepthTime(level - half, level - high, level - low), last: DepthTime(level + half, level + low, level + high)}
    inner = range(1, last)
    distances = {
        place: _distances(times.depths, part, place, (first, last)) for place in inner if (together & there[:, place]).any()
    }
    scatter = _scatter(distances.values())
    found |= {place: _at(own, _on_line(times.depths, place, (first, last), found), scatter) for place, own in distances.items()}
    placed = sorted(found)
    for place in inner:
        if place not in found:
            # The pair of placed depths with the most common rounds, and of these the one that is widest apart.
            pairs = [
                (int((there[:, place] & there[:, a] & there[:, b]).sum()), b - a, (a, b)) for a, b in combinations(placed, 2)
            ]
            common, _, pair = max(pairs)
            if common:
                own = _distances(times.depths, part, place, pair)
                found[place] = _at(own, _on_line(times.depths, place, pair, found), _scatter([own]))
    return [(depths[place], found[place]) for place in sorted(found)]


def _distances(depths: Floats, part: Floats, place: int, pair: tuple[int, int]) -> Floats:
    """The distances of a depth from the line through two others, in the rounds of all three."""
    (a, b), share = pair, _share(depths, place, pair)
    distances = part[:, place] - (1 - share) * part[:, a] - share * part[:, b]
    return np.asarray(distances[~np.isnan(distances)])


def _on_line(depths: Floats, place: int, pair: tuple[int, int], found: Mapping[int, DepthTime]) -> float:
    """The time at a depth on the line through two others, which are placed."""
    (a, b), share = pair, _share(depths, place, pair)
    return (1 - share) * found[a].seconds + share * found[b].seconds


def _share(depths: Floats, place: int, pair: tuple[int, int]) -> float:
    """The share of the way from one depth to another at which a third one lies."""
    a, b = pair
    return float((depths[place] - depths[a]) / (depths[b] - depths[a]))


def _scatter(several: Iterable[Floats]) -> StandardError:
    """The standard deviation of distances about the mean of their own depth, pooled over depths; no degrees if it is unknown."""
    known = [distances for distances in several if distances.size > 1]
    degrees = sum(distances.size - 1 for distances in known)
    squares = sum(float(((distances - distances.mean()) ** 2).sum()) for distances in known)
    return StandardError((squares / degrees) ** 0.5 if degrees else 0.0, float(degrees))


def _at(distances: Floats, on_line: float, scatter: StandardError) -> DepthTime:
    """The time at a depth; the interval of a median distance over few rounds comes from the scatter of all depths."""
    middle = float(np.median(distances))
    ends = median_interval(distances.tolist())
    if ends is None and scatter.degrees:
        # The median of few normal values has at most this deviation.
        error = scatter.value * np.sqrt(np.pi / 2 / distances.size)
        ends = interval(middle, half_width([StandardError(float(error), scatter.degrees)]))
    return DepthTime(middle, *(ends or (np.nan, np.nan))).above(on_line)


def turns_ratio_interval(own: TurnFit, reference: TurnFit) -> Interval | None:
    """The 95 % interval of the ratio of two slopes; None if the reference's may be 0.

    Slopes of the same rounds are compared round by round. Those of series that had no six rounds together are compared by their
    intervals, and so are those of whole steps, as the lasting effects of either's cells are its own.
    """
    common = [turn for turn in own.slopes if turn in reference.slopes]
    if len(common) < FEWEST_ROUNDS or "turns" in (own.basis, reference.basis):
        if own.slope.interval is None or reference.slope.interval is None:
            return None
        halves = [(one[1] - one[0]) / 2 for one in (own.slope.interval, reference.slope.interval)]
        return ratio_interval(own.slope.value, halves[0], reference.slope.value, halves[1])
    values, theirs = (np.array([one.slopes[turn] for turn in common]) for one in (own, reference))
    return pooled_ratio_interval(values, theirs, [own.processes[turn] for turn in common])
