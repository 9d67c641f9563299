"""The comparison of one figure in two runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from capsbench.gate.paces import Change
from capsbench.gate.summary import COMPARED_BYTES, SeriesSummary
from capsbench.records import Status
from capsbench.stats.linearity import Shape
from capsbench.words.modules import ModuleChange

Verdict = Literal["same", "better", "worse", "not comparable"]
Scope = Literal["slope", "level", "cell"]
"""The scopes of a figure: change per block, or another unit of the axis; a time over all cells of a series; one cell."""


@dataclass(frozen=True)
class Thresholds:
    """Differences from which on a change matters."""

    bytes_share: float = 0.01
    """Share of the figure before."""
    bytes_least: float = 512
    """Bytes, or bytes per unit of the axis; the larger of the two counts."""
    time_share: float = 0.10
    """Share of the time before."""

    def bytes_matter(self, before: float, after: float, scale: float = 1.0) -> bool:
        """Return whether bytes, or bytes per block, differ by more.

        Args:
            before: bytes before.
            after: bytes after.
            scale: factor of the number of bytes, for terms of a curve.
        """
        return abs(after - before) > max(self.bytes_share * abs(before), self.bytes_least * scale)

    def time_matters(self, change: Change) -> bool:
        """Return whether seconds differ by more."""
        return abs(change.after - change.before) > self.time_share * abs(change.before)


@dataclass(frozen=True)
class Comparison:
    """One figure in two runs."""

    series: Mapping[str, object]
    """Values that distinguish its series from others."""
    scope: Scope
    quantity: str
    """A key of `COMPARED_BYTES` or `COMPARED_TIMES`."""
    verdict: Verdict
    before: float | None = None
    """Bytes or seconds as the first report has them, per unit of the axis for a slope."""
    after: float | None = None
    """Bytes or seconds as the second report has them."""
    low: float | None = None
    """95 % interval of the difference; None if figures repeat exactly, or no interval is known."""
    high: float | None = None
    why: str = ""
    """Reason that it is not comparable, or a remark."""
    position: float | None = None
    """Position of a cell on the axis of its series, and otherwise the last that both runs have."""
    replicate: int = 0
    modules: tuple[ModuleChange, ...] = ()
    """Changes of the retained bytes of modules there."""
    p_value: float | None = None
    """P-value of a time, adjusted for the number of times that are compared."""
    shapes: tuple[Shape, Shape] | None = None
    """The shapes of a time over the axis in the first run and in the second."""
    within: tuple[float, float] | None = None
    """Seconds per unit of the axis that the slope of a time exceeds in neither run, whatever its sign."""
    equal_pace: tuple[float, float] | None = None
    """Seconds before and after at equal pace of the machine, which verdict and difference are of; None if it is not known."""
    pace: str = ""
    """The measure of the pace: the yardstick, or the rest of the step."""
    unit: str = ""
    """Unit of a term that only a curve has, such as `per pair of tokens`; empty for a slope, which is per unit of the axis."""

    @property
    def is_bytes(self) -> bool:
        """True for bytes, False for seconds."""
        return self.quantity in COMPARED_BYTES

    @property
    def compared_values(self) -> tuple[float, float] | None:
        """The values that verdict and difference are of: at equal pace, or else as the reports have them; None if not known."""
        if self.before is None or self.after is None:
            return None
        return self.equal_pace or (self.before, self.after)

    @property
    def difference(self) -> float | None:
        """The difference, at equal pace of the machine if that is known; None if there is none."""
        return None if self.compared_values is None else self.compared_values[1] - self.compared_values[0]

    @property
    def differs_by_pace(self) -> bool:
        """Return whether the difference of the reports' values lies outside the interval of that at equal pace."""
        known = (self.before, self.after, self.low, self.high)
        if self.equal_pace is None or None in known:
            return False
        before, after, low, high = (value or 0.0 for value in known)
        return not low <= after - before <= high


@dataclass(frozen=True)
class Outcome:
    """A cell that ended differently from before, or did not end well."""

    series: Mapping[str, object]
    position: float
    replicate: int
    before: Status | None
    """Status before; None if it was not measured."""
    after: Status | None
    verdict: Verdict
    message: str = ""
    """Message of the cell."""


@dataclass(frozen=True)
class Compared:
    """Two runs and their comparisons."""

    comparisons: list[Comparison]
    outcomes: list[Outcome]
    only_before: list[SeriesSummary]
    only_after: list[SeriesSummary]
    across: tuple[str, ...] = ()
    """Differences that the two were compared across: `kernel: compiled in the first, recompute in the second`."""
    ignored: tuple[str, ...] = ()
    """Names of the options that the two were compared across, which distinguish no series here."""

    def __repr__(self) -> str:
        """Return the table of `capsbench compare` and its remarks."""
        from capsbench.gate.verdicts import comparison_text

        return comparison_text(self)
