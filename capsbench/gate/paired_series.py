"""One series in two runs: the figures that can be compared, and their differences."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from capsbench.axes import basis_text, term_unit
from capsbench.gate.comparison import Comparison, Outcome, Scope, Thresholds, Verdict
from capsbench.gate.paces import (
    FEWEST_CELLS,
    Change,
    PairedPace,
    Place,
    cell_changes,
    level_change,
    paired_slope_change,
    slope_change,
)
from capsbench.gate.summarize import curve_of
from capsbench.gate.summary import (
    COMPARED_BYTES,
    COMPARED_TIMES,
    CPU_PEAKS,
    HARDWARE,
    CellSummary,
    ScatterSummary,
    SeriesSummary,
    SlopeSummary,
    Summary,
    same_network,
)
from capsbench.records import FAULTS, Status, adds_up
from capsbench.stats.intervals import StandardError
from capsbench.stats.lasting import expected_lasting
from capsbench.stats.least_squares import fit_slope
from capsbench.stats.median import CONFIDENCE
from capsbench.stats.processes import SHARED_OF_RATIO
from capsbench.words.disturbances import disturbed_by
from capsbench.words.modules import module_changes

PORTABLE = frozenset({"retained", "state", "gradient", "optimizer", "inference-kept"})
"""Bytes that are equal on every machine."""

HELD_BY_MODULES = frozenset({"retained", "peak", "reserved"})
"""Bytes that grow if a module retains more."""

SHARE_IN_TURN = 0.5
"""Threshold of slopes of cells that took turns, over that of other times."""

NO_YARDSTICK = "no yardstick"

CPU_PEAK = "a peak that is predicted for a CPU contains memory of the libraries of the machine that predicts"

CONTRADICTED = (
    "its slope has risen by one measure of the machine's pace and fallen by the other: yardstick and rest of the step contradict "
    "each other"
)

YARDSTICK, REST = "the yardstick", "the rest of the step"
"""Measures of the pace of a machine."""

LOAD = "load"
"""The noise that no statistics see through: processes that share the cores may double a time for long, yardstick included."""

Cells = Sequence[tuple[CellSummary, CellSummary]]
"""Matching cells before and after."""


def _by_module(series: SeriesSummary, cell: CellSummary) -> dict[str, int]:
    """Retained bytes by module; empty if they do not add up to the counted bytes, as in some old baselines."""
    found, counted = cell.retained_by_module, cell.bytes.get("retained")
    trusted = series.kind == "predicted" or counted is None or adds_up(found, counted, series.configuration.device_kind())
    return found if trusted else {}


class PairedSeries:
    """One series in both runs."""

    def __init__(self, old: SeriesSummary, new: SeriesSummary, before: Summary, after: Summary, limits: Thresholds) -> None:
        self.old, self.new, self.limits = old, new, limits
        self.series = old.options()
        self._machines = before.environments, after.environments
        theirs = {(cell.position, cell.replicate): cell for cell in new.cells}
        self.cells = [(cell, theirs.get((cell.position, cell.replicate))) for cell in old.cells]
        ours = {(cell.position, cell.replicate) for cell in old.cells}
        self.added = [cell for key, cell in theirs.items() if key not in ours]

    def outcomes(self) -> Iterator[Outcome]:
        """Cells whose outcome changed or is a fault; none along a further axis, as these cells belong to other series."""
        if self.old.further:
            return
        places = {cell.position for cell in self.new.cells}
        for old, new in self.cells:
            if new is not None:
                verdict = _outcome(old.status, new)
                # A missing pass leaves nothing to compare.
                lost = sorted(old.bytes.keys() & PORTABLE - new.bytes.keys())
                if verdict == "same" and new.status == "ok" and lost:
                    why = f"not measured: {', '.join(lost)}" if new.bytes else "its memory was not measured"
                    yield self._outcome(old.status, None, old, "worse", why)
                elif verdict != "same":
                    yield self._outcome(old.status, new.status, new, verdict, new.message or "")
            elif old.status != "skipped":
                # Fewer replicates of a position give the same result with less certainty.
                verdict = "not comparable" if old.position in places else "worse"
                yield self._outcome(old.status, None, old, verdict, "")
        for new in self.added:
            if new.status in FAULTS:
                yield self._outcome(None, new.status, new, "worse", new.message or "")

    def _outcome(self, before: Status | None, after: Status | None, cell: CellSummary, verdict: Verdict, message: str) -> Outcome:
        return Outcome(self.series, cell.position, cell.replicate, before, after, verdict, message)

    def comparisons(self) -> Iterator[Comparison]:
        """Comparisons of every figure of the series; `_judged`, which knows the number of times, sets the verdicts of times."""
        found = self._comparisons()
        yield from (it for it in found if it.scope == "slope") if self.old.further else found

    def _comparisons(self) -> Iterator[Comparison]:
        both = [(old, new) for old, new in self.cells if new is not None and old.status == new.status == "ok"]
        of_cpu = [it.kind == "predicted" and it.configuration.device_kind() == "cpu" for it in (self.old, self.new)]
        for name in (*COMPARED_BYTES, *COMPARED_TIMES):
            if both and any(of_cpu) and name in CPU_PEAKS:
                yield Comparison(self.series, "slope", name, "not comparable", why=CPU_PEAK)
            elif any(_has(old, name) and not _has(new, name) for old, new in both):
                yield Comparison(self.series, "slope", name, "not comparable", why="not measured this time")
        for name in COMPARED_BYTES:
            yield from self._of(name, [it for it in both if all(name in cell.bytes for cell in it)], self._bytes)
        for name in COMPARED_TIMES:
            timed = [it for it in both if all(name in cell.times and cell.times[name].seconds > 0 for cell in it)]
            yield from self._of(name, timed, self._times)

    def _of(self, name: str, cells: Cells, figures: Callable[[str, Cells], Iterator[Comparison]]) -> Iterator[Comparison]:
        """Comparisons of one quantity, for the cells whose machines allow it."""
        on_any_machine = name in PORTABLE or "predicted" in (self.old.kind, self.new.kind)
        with_reasons = [(it, "" if on_any_machine else self._difference(*it, name)) for it in cells]
        reason = next((reason for _, reason in with_reasons if reason), "")
        if reason:
            yield Comparison(self.series, "slope", name, "not comparable", why=reason)
        yield from figures(name, [it for it, reason in with_reasons if not reason])

    def _bytes(self, name: str, cells: Cells) -> Iterator[Comparison]:
        if len({old.position for old, _ in cells}) > 1:
            yield from self._bytes_slopes(name, cells)
        for old, new in cells:
            yield self._bytes_comparison("cell", name, old.bytes[name], new.bytes[name], (old, new))

    def _bytes_slopes(self, name: str, cells: Cells) -> Iterator[Comparison]:
        """Comparisons of the slope of bytes, or of the terms of their curve: a line through it depends on its positions."""
        axis, device = self.old.axis, self.old.configuration.device
        last, places = max(cells, key=lambda it: it[0].position), [old.position for old, _ in cells]
        sides = [[cell.bytes[name] for cell in side] for side in zip(*cells, strict=True)]
        curves = [
            series.curves.get(name) or curve_of(name, places, side, axis, device)
            for series, side in zip((self.old, self.new), sides, strict=True)
        ]
        forms = {curve.form for curve in curves if curve is not None}
        if not forms:
            before, after = (fit_slope(places, side).slope for side in sides)
            yield self._bytes_comparison("slope", name, before, after, last)
            return
        # A line is a curve whose further term is 0.
        form = min(forms)
        terms = [curve or curve_of(name, places, side, axis, device, form) for curve, side in zip(curves, sides, strict=True)]
        old, new = terms
        if len(forms) > 1 or old is None or new is None:
            why = f"its bytes are not a sum of {basis_text(form)} in both runs, and are compared cell by cell"
            yield Comparison(self.series, "slope", name, "not comparable", why=why)
            return
        scale = min(places) if form == "inverse" else 1 / max(places)
        term = self._bytes_comparison("slope", name, old.term, new.term, last, term_unit(axis, form), scale)
        if form == "quadratic":
            slope = self._bytes_comparison("slope", name, old.slope, new.slope, last)
            at_last = [one.slope + 2 * one.term * max(places) for one in (old, new)]
            if slope.verdict == "worse" and term.verdict == "better" and at_last[1] <= at_last[0]:
                slope = replace(slope, verdict="same", why=f"outweighed by what is saved {term.unit}")
            yield slope
        yield term

    def _bytes_comparison(
        self,
        scope: Scope,
        name: str,
        before: float,
        after: float,
        cells: tuple[CellSummary, CellSummary],
        unit: str = "",
        scale: float = 1.0,
    ) -> Comparison:
        """The comparison of two numbers of bytes; `unit` and `scale` are those of a term of a curve."""
        old, new = cells
        held = _by_module(self.old, old), _by_module(self.new, new)
        compared = name in HELD_BY_MODULES and before != after and all(held)
        modules = tuple(module_changes(*held)) if compared else ()
        matters = self.limits.bytes_matter(before, after, scale)
        verdict = _side(before, after) if matters else "same"
        why = "" if matters or before == after else "within the threshold"
        return Comparison(
            self.series, scope, name, verdict, before, after,
            why=why, position=old.position, replicate=old.replicate, modules=modules, unit=unit,
        )  # fmt: skip

    def _times(self, name: str, cells: Cells) -> Iterator[Comparison]:
        if not cells:
            return
        old, new = self.old.slopes.get(name), self.new.slopes.get(name)
        # Whole steps and the parts that grow have slopes of their own, which differ in one and the same run.
        in_turn = old is not None and new is not None and old.basis == new.basis
        if in_turn and old is not None and new is not None:
            yield self._slope_in_turn(name, old, new, cells)
        yield from self._times_of_cells(name, cells, slopes=not in_turn)

    def _slope_in_turn(self, name: str, old: SlopeSummary, new: SlopeSummary, cells: Cells) -> Comparison:
        """The comparison of slopes of cells that took turns, which are known well enough for a threshold of their own."""
        # Parts that grow are timed without the rest of the step, and have no lasting effects but their own.
        lasting = _expected_lasting(name, cells) if old.basis == "turns" else None
        found = _change_in_turn(old, new, self.limits.time_share, lasting, same_work=self._same_work())
        change = found.change
        half, threshold = (change.high - change.low) / 2, self.limits.time_share * SHARE_IN_TURN
        beyond = abs(change.after - change.before) > threshold * abs(change.before)
        noises = sorted({noise for pair in cells for cell in pair for noise in cell.noise})
        remarks = [found.remark, disturbed_by(noises) if noises else ""]
        significant = change.p_value < 1 - CONFIDENCE
        if not (beyond and significant) and half > self.limits.time_share * abs(change.before) > 0:
            percent = 100 * half / abs(change.before)
            remarks.append(f"known within {percent:.0f} % only" if percent <= 100 else "uncertain by more than its own size")
        last = max(cell.position for cell, _ in cells)
        within = (max(abs(old.low), abs(old.high)), max(abs(new.low), abs(new.high)))
        shown = replace(change, before=old.seconds, after=new.seconds, within=within)
        comparison = self._time_comparison("slope", name, change, shown, found.pace, "; ".join(filter(None, remarks)), last)
        if beyond and significant and found.contradicted:
            # Without a verdict it is none of the times whose p-values are adjusted for each other.
            return replace(comparison, verdict="not comparable", why=CONTRADICTED, p_value=None)
        return replace(comparison, verdict=_side(change.before, change.after) if beyond else "same")

    def _times_of_cells(self, name: str, cells: Cells, *, slopes: bool) -> Iterator[Comparison]:
        """Comparisons of a time from the values of cells: level, slope if it is wanted, and each cell."""
        alone = [pair for pair in cells if not any(LOAD in cell.noise for cell in pair)]
        if len(alone) < min(FEWEST_CELLS, len(cells)):
            shared = f"{len(cells) - len(alone)} of {len(cells)} cells shared the cores with other processes"
            busy = f"{shared}: run again without these"
            yield Comparison(self.series, "level", name, "not comparable", why=busy)
            return
        left_out = [f"{len(cells) - len(alone)} of {len(cells)} cells left out: {LOAD}"] if len(alone) < len(cells) else []
        cells = alone
        before, after, relative = _paces(cells, name)
        pace = YARDSTICK if relative else ""
        seconds = [old.times[name].seconds for old, _ in cells], [new.times[name].seconds for _, new in cells]
        noises = sorted({noise for pair in cells for cell in pair for noise in cell.noise})
        why = "; ".join(left_out + ([] if relative else [NO_YARDSTICK]) + ([disturbed_by(noises)] if noises else []))
        places = [Place(old.position, old.replicate) for old, _ in cells]
        level = level_change(before, after, places)
        if level is None:
            few = f"{len(cells)} matching cells; {FEWEST_CELLS} are needed to know the noise between processes"
            yield Comparison(self.series, "level", name, "not comparable", why=few)
            return
        last = max(old.position for old, _ in cells)
        means = [float(np.exp(np.mean(np.log(side)))) for side in seconds]
        yield self._time_comparison("level", name, level, replace(level, before=means[0], after=means[1]), pace, why, last)
        positions, replicates = [place.blocks for place in places], [place.replicate for place in places]
        slope = slope_change(positions, before, after, replicates) if slopes else None
        shown = slope_change(positions, seconds[0], seconds[1], replicates) if slopes else None
        if slope is not None and shown is not None:
            verdict = _side(slope.before, slope.after) if self._slope_matters(slope, positions, before) else "same"
            yield replace(self._time_comparison("slope", name, slope, shown, pace, why, last), verdict=verdict)
        changes = cell_changes(before, after, places) or ()
        for (old, _), change, here, there in zip(cells, changes, *seconds, strict=True):
            own = replace(change, before=here, after=there)
            yield self._time_comparison("cell", name, change, own, pace, why, old.position, old.replicate)

    def _slope_matters(self, slope: Change, positions: Sequence[float], before: Sequence[float]) -> bool:
        """Return whether a slope of a time changed by more than its threshold, and the step with it.

        If blocks cost little relative to the rest of the network, any two runs differ by more than a tenth of their slope. So a
        change must also amount, from the shallowest network to the deepest, to more than the threshold's share of the deepest
        one's time.
        """
        rise = abs(slope.after - slope.before) * (max(positions) - min(positions))
        last = max(value for place, value in zip(positions, before, strict=True) if place == max(positions))
        return self.limits.time_matters(slope) and rise > self.limits.time_share * last

    def _time_comparison(
        self, scope: Scope, name: str, change: Change, shown: Change, pace: str, why: str, position: float, replicate: int = 0
    ) -> Comparison:
        """The comparison of a time whose difference is taken to be certain.

        Args:
            scope: scope of the figure.
            name: name of the time.
            change: its change at equal pace of the machine.
            shown: the same with the values that the reports have.
            pace: the measure of the pace; empty if there is none.
            why: remark.
            position: position on the axis.
            replicate: replicate of a cell.
        """
        verdict = _side(change.before, change.after) if self.limits.time_matters(change) else "same"
        figures = (shown.before, shown.after, change.low, change.high)
        return Comparison(
            self.series, scope, name, verdict, *figures, why, position, replicate,
            p_value=change.p_value, shapes=shown.shapes, within=shown.within,
            equal_pace=(change.before, change.after) if pace else None, pace=pace,
        )  # fmt: skip

    def _same_work(self) -> bool:
        """Return whether both runs have the same network and options, so that the rest of their steps is the same work."""
        models = self.old.configuration.model, self.new.configuration.model
        return same_network(*models) and self.old.named(models[1]).portable_key() == self.new.portable_key()

    def _difference(self, old: CellSummary, new: CellSummary, name: str) -> str:
        """A difference of two cells that keeps a quantity from being compared; empty if there is none."""
        here, there = self.new.configuration, self.old.configuration
        if here.threads != there.threads:
            return f"{here.threads} threads, {there.threads} before"
        if name in COMPARED_BYTES and old.probe and new.probe and old.probe != new.probe:
            return f"memory counted by {new.probe}, by {old.probe} before"
        if bool(new.tf32) != bool(old.tf32):
            words = {True: "TF32 allowed", False: "TF32 not allowed"}
            return f"{words[bool(new.tf32)]}, {words[bool(old.tf32)]} before"
        before, after = (known.get(cell.environment or "") for known, cell in zip(self._machines, (old, new), strict=True))
        if not before or not after:
            return "not known on which machine it was measured"
        ignored = {"GPU", "driver"} if here.device_kind() == "cpu" else set()
        for name in sorted((before.keys() | after.keys()) - ignored):
            if before.get(name) != after.get(name):
                missing = "unknown" if name in HARDWARE else "not set"
                return f"{name} {after.get(name, missing)}, {before.get(name, missing)} before"
        return ""


class _ChangeInTurn(NamedTuple):
    """The change of a slope of cells that took turns, at equal pace of the machine."""

    change: Change
    pace: str
    """The measure of the pace: `YARDSTICK` or `REST`; empty if there is none."""
    remark: str = ""
    contradicted: bool = False
    """True if the other measure shows a change in the other direction."""


def _change_in_turn(
    old: SlopeSummary, new: SlopeSummary, share: float, lasting: StandardError | None, *, same_work: bool
) -> _ChangeInTurn:
    """The change of a slope, scaled to the pace of the first run.

    The rest of the step is the best measure of a machine's speed, as it was timed in the same rounds. If it has changed itself,
    by more than `share` in units of the yardstick, one of the two does not measure the speed: a change counts if both show it. A
    rest that is slower is seen in the level. The rest of another network's step, or with other options, is other work, and no
    measure of the speed.
    """
    yardsticks = (old.launches, new.launches) if old.launches and new.launches else (old.yardstick, new.yardstick)
    speed = yardsticks[0] / yardsticks[1] if yardsticks[0] and yardsticks[1] else None
    paces = [PairedPace(it.seconds, it.low, it.high, it.rounds, _scatter(it.scatter), it.processes) for it in (old, new)]
    by_yardstick = paired_slope_change(paces[0], paces[1].scaled(speed or 1.0), lasting=lasting)
    if not old.rest or not new.rest or not same_work:
        return _ChangeInTurn(by_yardstick, YARDSTICK if speed else "", "" if speed else NO_YARDSTICK)
    shares = [
        PairedPace(
            one.of_rest or 0.0,
            one.of_rest_low or 0.0,
            one.of_rest_high or 0.0,
            one.rounds,
            _scatter(one.of_rest_scatter),
            one.processes,
        )
        for one in (old, new)
    ]
    by_rest = paired_slope_change(*(one.scaled(old.rest) for one in shares), shared=SHARED_OF_RATIO)
    apart = speed is not None and (by_rest.after > by_rest.before) != (by_yardstick.after > by_yardstick.before)
    if speed and abs(new.rest * speed - old.rest) > share * old.rest:
        measures = ((by_rest, REST), (by_yardstick, YARDSTICK))
        change, pace = max(measures, key=lambda it: it[0].p_value)
        return _ChangeInTurn(change, pace, "the rest of the step has changed too", apart)
    return _ChangeInTurn(by_rest, REST, "", apart)


def _expected_lasting(name: str, cells: Cells) -> StandardError | None:
    """The error that lasting effects are expected to give the slope of whole steps of one process; None for a single position."""
    places = np.array(sorted({old.position for old, _ in cells}), float)
    if places.size < 2:
        return None
    seconds = float(np.median([old.times[name].seconds for old, _ in cells]))
    return expected_lasting(seconds / float(np.linalg.norm(places - places.mean())))


def _scatter(known: ScatterSummary | None) -> StandardError:
    return StandardError(known.deviation, known.degrees) if known else StandardError(0.0, 0.0)


def _paces(cells: Cells, name: str) -> tuple[list[float], list[float], bool]:
    """Seconds before and after, and whether a yardstick scales them to the first machine at its mean speed.

    A time that is the host's in both runs is scaled by launches, which measure the host, and any other by a product of matrices.
    """
    times = [(old.times[name], new.times[name]) for old, new in cells]
    units = [("of_launches" if old.of_launches and new.of_launches else "relative") for old, new in times]
    scaled = [(getattr(old, unit), getattr(new, unit)) for (old, new), unit in zip(times, units, strict=True)]
    if any(value is None for pair in scaled for value in pair):
        return [old.seconds for old, _ in times], [new.seconds for _, new in times], False
    known = [(unit, old.seconds / value) for (old, _), (value, _), unit in zip(times, scaled, units, strict=True) if value]
    speeds = {unit: float(np.exp(np.mean([np.log(speed) for other, speed in known if other == unit]))) for unit, _ in known}
    before, after = (
        [value * speeds.get(unit, 1.0) for value, unit in zip(side, units, strict=True)] for side in zip(*scaled, strict=True)
    )
    return before, after, True


def _has(cell: CellSummary, name: str) -> bool:
    return name in cell.bytes or name in cell.times


def _side(before: float, after: float) -> Verdict:
    return "worse" if after > before else "better"


def _outcome(before: Status, cell: CellSummary) -> Verdict:
    if cell.status in FAULTS:
        return "worse"
    if cell.status == before or before == "skipped":
        return "same"
    if cell.status == "ok":
        return "better"
    return "worse" if before == "ok" else "same"
