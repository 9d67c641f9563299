"""Slopes of training time while cells take turns: what a report would say of them, and whether that is enough."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import hypot
from typing import NamedTuple

from capsbench.frame import along, to_frame
from capsbench.measure.noise import is_settled
from capsbench.records import Cell, Record
from capsbench.stats.turn_times import TurnFit, fit_turns, turn_times

ROUNDS_BEFORE_KNOWN = 12
"""Least number of rounds before slopes count as known: an interval of few rounds, looked at after each, may be narrow by luck."""

NEARLY_ALL = 0.85
"""Share of an interval from which the scatter of processes is nearly all of it."""


@dataclass(frozen=True)
class SlopesSoFar:
    """The slopes of training time of some series, after a number of rounds.

    They are fitted by the function that a report uses, so that they have its basis: the parts of a step that grow with depth, or
    the whole step if the rest of it grows too.
    """

    fits: Sequence[TurnFit | None]
    """The slope of each series of two depths or more; None for one that has too few rounds."""
    fewest_rounds: int
    """Least number of rounds of these cells that went into a slope."""
    medians_are_known: bool
    """True if there is no slope, and the median step of every cell is known within 2 %."""

    @property
    def all_rounds(self) -> int:
        """Least number of rounds that went into a slope, those of earlier sweeps included."""
        return min((len(fit.slopes) if fit else 0 for fit in self.fits), default=0)

    @property
    def share(self) -> float | None:
        """Width of the widest 95 % interval, as a share of its slope; None without a slope, or if one has no interval yet."""
        return self._widest.share if self._widest else None

    @property
    def processes_prevail(self) -> bool:
        """True if the scatter of processes gives the widest interval more of its width than that of rounds does."""
        return self._widest is not None and self._widest.of_processes > self._widest.of_rounds

    def narrowed_by(self, further: int) -> float:
        """The share by which so many further rounds of these processes would narrow the widest interval; 0 if there is none.

        The part of the rounds shrinks with the root of their number, that of the processes does not.
        """
        if self._widest is None:
            return 0.0
        left = self.all_rounds / (self.all_rounds + further)
        return 1 - self._widest.with_rounds(left**0.5) / self._widest.with_rounds(1.0)

    def are_known(self, share: float) -> bool:
        """Return whether no interval of a slope is wider than this share of it; without a slope, whether medians are known."""
        if not self.fits:
            return self.medians_are_known
        return self.share is not None and self.share <= share and self.fewest_rounds >= ROUNDS_BEFORE_KNOWN

    def are_enough(self, share: float) -> bool:
        """Return whether timing may end: slopes are known, or as well as rounds can make them known.

        No round narrows the scatter of processes. Where it is nearly all of an interval that is too wide, the part of the rounds
        alone is held to the share.
        """
        if not self.fits:
            return self.medians_are_known
        return self.fewest_rounds >= ROUNDS_BEFORE_KNOWN and all(
            one is not None and (one.share <= share or (one.of_rounds <= share and one.of_processes >= NEARLY_ALL * one.share))
            for one in self._widths
        )

    @property
    def _widths(self) -> list["_Width | None"]:
        """Widths of the interval of each slope; None for one that has no interval yet."""
        return [_width(fit) for fit in self.fits]

    @property
    def _widest(self) -> "_Width | None":
        widths = self._widths
        known = [one for one in widths if one is not None]
        return max(known, key=lambda one: one.share) if known and len(known) == len(widths) else None


class _Width(NamedTuple):
    """Widths of the interval of a slope, as shares of the slope."""

    share: float
    """Width of the interval."""
    of_rounds: float
    """Width that the scatter of rounds alone gives it."""
    of_processes: float
    """Width that the scatter of processes alone gives it."""

    def with_rounds(self, factor: float) -> float:
        """The width if that of the rounds were multiplied."""
        return hypot(factor * self.of_rounds, self.of_processes)


def slopes_so_far(
    cells: Sequence[Cell], records: Iterable[Record], rounds: Collection[int], axes: Sequence[str] = ("blocks",)
) -> SlopesSoFar:
    """Fit the slope of every series that some cells belong to, along each axis.

    Args:
        cells: cells that take turns.
        records: their records as a report would have them now, and those of other cells of their series.
        rounds: numbers of the rounds that these cells have taken for this sweep.
        axes: axes of the plan.
    """
    positions: dict[tuple[str, str], set[float | None]] = {}
    for cell in cells:
        for axis in axes:
            positions.setdefault((axis, cell.configuration.series(axis)), set()).add(cell.configuration.position(axis))
    of_series: dict[tuple[str, str], list[Record]] = {key: [] for key, several in positions.items() if len(several) > 1}
    samples: dict[str, Sequence[float]] = {cell.key(): [] for cell in cells}
    for record in records:
        if record.time is not None:
            for axis in axes:
                of_series.get((axis, record.cell.configuration.series(axis)), []).append(record)
            if record.cell.key() in samples:
                samples[record.cell.key()] = record.time.train_step_seconds
    fits = [_fit(several, axis) for (axis, _), several in of_series.items()]
    taken = [sum(number in rounds for _, number in fit.slopes) if fit else 0 for fit in fits]
    return SlopesSoFar(fits, min(taken, default=0), not fits and all(map(is_settled, samples.values())))


def _fit(records: Sequence[Record], axis: str) -> TurnFit | None:
    frame = along(to_frame((("", record) for record in records), [(axis,)] * len(records)))
    times = turn_times(frame, "train_step_seconds")
    return None if times is None else fit_turns(times)


def _width(fit: TurnFit | None) -> _Width | None:
    if fit is None or fit.slope.interval is None or fit.slope.of_rounds is None or not fit.slope.value:
        return None
    (low, high), (lowest, highest) = fit.slope.interval, fit.slope.of_rounds
    widths = (high - low, highest - lowest, 2 * fit.slope.of_processes)
    return _Width(*(width / abs(fit.slope.value) for width in widths))
