"""Slopes of training time while cells take turns: what a report would say of them, and whether that is enough."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from capsbench.frame import along, to_frame
from capsbench.measure.noise import is_settled
from capsbench.records import Cell, Record
from capsbench.stats.turn_times import TurnFit, fit_turns, turn_times

ROUNDS_BEFORE_KNOWN = 12
"""Least number of rounds before slopes count as known: an interval of few rounds, looked at after each, may be narrow by luck."""


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
    def processes_differ(self) -> bool:
        """True if processes disagree about a slope, so that its interval contains their scatter."""
        return any(fit is not None and fit.processes_differ for fit in self.fits)

    @property
    def share(self) -> float | None:
        """Width of the widest 95 % interval, as a share of its slope; None without a slope, or if one has no interval yet."""
        widths = [_width(fit) for fit in self.fits]
        known = [one for one in widths if one is not None]
        return max(known) if known and len(known) == len(widths) else None

    def are_known(self, share: float) -> bool:
        """Return whether no interval of a slope is wider than this share of it; without a slope, whether medians are known."""
        if not self.fits:
            return self.medians_are_known
        return self.share is not None and self.share <= share and self.fewest_rounds >= ROUNDS_BEFORE_KNOWN


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


def _width(fit: TurnFit | None) -> float | None:
    if fit is None or fit.slope.interval is None or not fit.slope.value:
        return None
    low, high = fit.slope.interval
    return (high - low) / abs(fit.slope.value)
