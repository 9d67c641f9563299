"""Times of cells that are compared to each other: measured in turn, in rounds that are kept one by one."""

import random
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from capsbench.measure.noise import Machine, is_settled, noise_of
from capsbench.measure.processes import available_bytes
from capsbench.measure.timing import MAX_SAMPLES, SECONDS_WORTH_SAMPLING
from capsbench.measure.together import ProcessEnded, Together
from capsbench.measure.turns import Built, Failed, TurnsRequest
from capsbench.prediction import apart
from capsbench.records import Cell, Plan, Record, Round, Status, Turn
from capsbench.report import Report
from capsbench.stats.paired import PairedSlope, paired_slope
from capsbench.sweep.groups import ends_of, groups_of, halves, that_fit
from capsbench.sweep.local import Sources, alone_on, not_this_source
from capsbench.sweep.runner import Observer, uninterrupted
from capsbench.timed_rounds import TurnsTaken, times_of

ROUNDS_BEFORE_KNOWN = 12
"""Least number of rounds before slopes count as known: an interval of few rounds, looked at after each, may be narrow by luck."""


class Timekeeper:
    """A keeper of the times of all cells of a plan that take turns.

    Args:
        plan: plan of the sweep.
        report: where rounds and records go; locked by the caller.
        environment: key of this machine in environment.json.
        data_directory: folder of the real data sets.
        notify: receives texts that a person should know.
        patience: seconds that cells wait for other sweeps; None for no limit.
        sources: sources of the users' own networks; None to read them.
        observers: objects that are informed of each round, and of each cell's record.
    """

    def __init__(
        self, plan: Plan, report: Report, environment: str, data_directory: Path | None = None,
        notify: Callable[[str], None] = lambda _: None, *, patience: float | None = None,
        sources: Sources | None = None, observers: Sequence[Observer] = (),
    ) -> None:  # fmt: skip
        self._plan, self._report, self._environment, self._data_directory = plan, report, environment, data_directory
        self._notify, self._patience, self._observers = notify, patience, observers
        self._sources = sources or Sources(plan)
        self._groups = groups_of(plan)
        self.cells = frozenset(cell.key() for group in self._groups for cell in group)
        """Keys of the cells that take turns."""

    def run(self) -> None:
        """Time every cell that has no times yet, and whose memory pass, if there was one, ended well."""
        for group in self._groups:
            known = {record.cell.key(): record for record in self._report.records}
            rounds = {turn.cell for one in self._report.rounds for turn in one.turns}
            settled = self._report.settled(self._plan.passes)
            left = [cell for cell in group if cell.key() not in settled and self._may_be_timed(known.get(cell.key()))]
            # Cells that had turns in a sweep that was cut off take further ones with the others of their group.
            if not any(cell.key() in rounds for cell in left):
                left = [cell for cell in left if known.get(cell.key()) is None or known[cell.key()].time is None]
            memory = {key: record.memory for key, record in known.items() if record.memory is not None}
            for cells in that_fit(left, memory, available_bytes(group[0].configuration.device)) if left else ():
                self._time(cells)
        self._report.forget_rounds()

    def _may_be_timed(self, record: Record | None) -> bool:
        """Return whether the memory pass ended well, or was not asked for."""
        if "memory" not in self._plan.passes:
            return True
        return record is not None and record.status == "ok" and record.memory is not None

    def _time(self, cells: list[Cell]) -> None:
        """Time cells in one process, or, where that cannot be, fewer at a time."""
        changed = [cell for cell in cells if self._sources.has_changed(cell)]
        for cell in changed:
            self._keep(not_this_source(cell))
        cells = [cell for cell in cells if cell not in changed]
        if not cells:
            return
        apart.close()
        device = cells[0].configuration.device
        started = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            with alone_on(device, self._notify, folder=self._report.folder, patience=self._patience):
                began = monotonic()
                failed, process = self._take_rounds(cells)
        except ProcessEnded as ended:
            self._retry(cells, ended)
            return
        rounds = self._rounds_of(cells)
        known = is_known(cells, rounds, self._plan.slope_share)
        too_many = [cell for cell in cells if cell.key() in failed and failed[cell.key()].status == "oom" and len(cells) > 1]
        for cell in cells:
            if cell in too_many:
                continue
            seconds = (monotonic() - began) / len(cells)
            fault = failed.get(cell.key())
            if fault is not None:
                self._fail(cell, fault.status, fault.message, started, seconds)
            elif self._sources.has_changed(cell):
                self._keep(not_this_source(cell))
            else:
                built = process.built.get(cell.key())
                self._keep(self._timed(cell, rounds, built, known=known, started=started, seconds=seconds))
        for fewer in [too_many] if len(too_many) < len(cells) else halves(cells):
            self._time(fewer)

    def _take_rounds(self, cells: list[Cell]) -> tuple[Mapping[str, Failed], Together]:
        """Take rounds until the slopes are known or the time budget is spent."""
        earlier = self._report.rounds
        numbers = [number for record in self._report.records if record.time for number in record.time.rounds]
        number = max([*numbers, *(one.number for one in earlier)], default=-1) + 1
        processes = [number for record in self._report.records if record.time for number in record.time.processes]
        request = TurnsRequest(
            cells={cell.key(): cell.configuration for cell in cells},
            data_directory=self._data_directory,
            strict=self._plan.strict,
            channel=0,
            process=max([*processes, *(one.process for one in earlier)], default=-1) + 1,
        )
        budget = self._plan.budget_seconds * len(cells)
        looked, share, known = 0, None, False
        with Together(request, self._plan.timeout_seconds) as process:
            while True:
                alive = [cell for cell in cells if cell.key() not in process.failed]
                rounds = self._rounds_of(alive)
                spent = sum(turn.train_step_seconds + turn.inference_seconds for one in rounds for turn in one.turns)
                few = self._too_few(alive, rounds)
                # Looking takes as long as a quick step once there are many rounds; each further look has a tenth more of them.
                if len(rounds) >= looked:
                    looked = len(rounds) + 1 + len(rounds) // 10
                    share, known = slopes_share(alive, rounds), is_known(alive, rounds, self._plan.slope_share)
                ended = spent >= budget or len(rounds) >= MAX_SAMPLES or (known and spent >= SECONDS_WORTH_SAMPLING)
                if not alive or (ended and not few):
                    break
                order = [cell.key() for cell in (alive if few else ends_of(alive))]
                random.shuffle(order)
                taken = process.round(number, order)
                number += 1
                if taken is not None:
                    with uninterrupted():
                        self._report.append_round(taken)
                state = TurnsTaken(alive, len(rounds) + 1, max(0.0, budget - spent), share)
                for observer in self._observers:
                    observer.took_turns(state)
        self._say_what_more_would_buy(alive)
        return process.failed, process

    def _say_what_more_would_buy(self, cells: Sequence[Cell]) -> None:
        """Report how well slopes are known, and what a longer run would give: intervals shrink as the root of the rounds."""
        rounds = self._rounds_of(cells)
        if not _slopes(cells, rounds):
            return
        share, asked, count = slopes_share(cells, rounds), self._plan.slope_share, len(rounds)
        longer = f"{4 * self._plan.budget_seconds:g} seconds of `time_budget`"
        if share is None:
            text = f"{count} rounds are too few to know a slope of training time"
        elif share > 2:
            text = (
                f"a slope of training time cannot be distinguished from 0 after {count} rounds; {longer} would halve its interval"
            )
        elif share > asked:
            known = f"slopes of training time are known within ± {share / 2:.0%} after {count} rounds, not ± {asked / 2:.0%}"
            text = f"{known}; {longer} would halve their intervals"
        else:
            known = f"slopes of training time are known within ± {share / 2:.0%} after {count} rounds"
            text = f"{known}; four times as many would halve that"
        self._notify(text)

    def _rounds_of(self, cells: Sequence[Cell]) -> list[Round]:
        keys = {cell.key() for cell in cells}
        return [one for one in self._report.rounds if any(turn.cell in keys for turn in one.turns)]

    def _too_few(self, cells: Sequence[Cell], rounds: Sequence[Round]) -> bool:
        """Return whether a cell has had fewer turns than the plan's least number of samples."""
        had = [turn.cell for one in rounds for turn in one.turns]
        return any(had.count(cell.key()) < self._plan.samples for cell in cells)

    def _retry(self, cells: list[Cell], ended: ProcessEnded) -> None:
        """Go on after the process has ended: without the cell that it was about, or, out of memory, with fewer at a time."""
        if ended.status == "oom" and len(cells) > 1:
            for fewer in halves(cells):
                self._time(fewer)
            return
        # A process that ended before any cell was begun would end so for each of them.
        culprits = [cell for cell in cells if cell.key() == ended.cell] or cells
        for culprit in culprits:
            self._fail(culprit, ended.status, ended.message)
        self._time([cell for cell in cells if cell not in culprits])

    def _timed(
        self, cell: Cell, rounds: Sequence[Round], built: Built | None, *, known: bool, started: str, seconds: float
    ) -> Record:
        """The record of a cell that has had its turns."""
        times = times_of(rounds, cell.key())
        if times is None:
            return self._record(cell, "error", "it had no turn", started, seconds)
        # A drift moves all cells of a round alike, so that it does not touch their differences.
        seen = noise_of(times.train_step_seconds, times.inference_seconds, Machine())
        noise = [name for name in seen if name == "spread"] + times.noise + ([] if known else ["unsettled"])
        record = self._record(cell, "ok", None, started, seconds)
        notes = [] if built is None else built.notes
        return record.model_copy(
            update={
                "time": times.model_copy(update={"noise": noise}),
                "data_source": record.data_source or (built.data_source if built else None),
                "notes": list(dict.fromkeys([*record.notes, *notes])),
            }
        )

    def _record(
        self, cell: Cell, status: Status, message: str | None, started: str | None = None, seconds: float = 0.0
    ) -> Record:
        """A record with the outcome of the turns, and what the memory pass has found."""
        before = next((one for one in self._report.records if one.cell.key() == cell.key() and one.status == "ok"), None)
        if before is None:
            before = Record(cell=cell, status=status, started_at=started)
        taken = round((before.duration_seconds or 0.0) + seconds, 3)
        found = {"status": status, "message": message, "environment": self._environment, "duration_seconds": taken}
        return before.model_copy(update={**found, "time": None})

    def _fail(self, cell: Cell, status: Status, message: str, started: str | None = None, seconds: float = 0.0) -> None:
        """Keep the failure of a cell, unless it has its times already: an end of a series may be in several groups."""
        if cell.key() not in self._report.settled(self._plan.passes):
            self._keep(self._record(cell, status, message, started, seconds))

    def _keep(self, record: Record) -> None:
        with uninterrupted():
            self._report.append(record)
        for observer in self._observers:
            observer.finished(record)


def slopes_share(cells: Sequence[Cell], rounds: Sequence[Round]) -> float | None:
    """The width of the widest interval of a slope of training time, as a share of the slope; None if one is not known."""
    shares = [_share(one) for one in _slopes(cells, rounds)]
    known = [one for one in shares if one is not None]
    return max(known) if known and len(known) == len(shares) else None


def _share(slope: PairedSlope | None) -> float | None:
    if slope is None or slope.low is None or slope.high is None or not slope.slope:
        return None
    return (slope.high - slope.low) / abs(slope.slope)


def is_known(cells: Sequence[Cell], rounds: Sequence[Round], share: float) -> bool:
    """Return whether all slopes of training time are known within this share; without a slope, all medians within 2 %."""
    slopes = _slopes(cells, rounds)
    if slopes:
        return all(one is not None and one.rounds >= ROUNDS_BEFORE_KNOWN and one.known_within(share) for one in slopes)
    by_cell: dict[str, list[float]] = {cell.key(): [] for cell in cells}
    for one in rounds:
        for turn in one.turns:
            if turn.cell in by_cell:
                by_cell[turn.cell].append(turn.train_step_seconds)
    return all(is_settled(samples) for samples in by_cell.values())


def _slopes(cells: Sequence[Cell], rounds: Sequence[Round]) -> list[PairedSlope | None]:
    """The slope of each series that has two depths or more; None for one that is not known yet."""
    of_series: dict[str, dict[str, int]] = {}
    for cell in cells:
        of_series.setdefault(cell.configuration.series(), {})[cell.key()] = cell.configuration.blocks
    return [_slope(depths, rounds) for depths in of_series.values() if len(set(depths.values())) > 1]


def _slope(depths: Mapping[str, int], rounds: Sequence[Round]) -> PairedSlope | None:
    turns = [[turn for turn in one.turns if turn.cell in depths] for one in rounds]
    at_edges = all(turn.growing_train_step_seconds is not None for taken in turns for turn in taken)
    seconds = [{float(depths[turn.cell]): _seconds(turn, at_edges=at_edges) for turn in taken} for taken in turns]
    return paired_slope(sorted(map(float, set(depths.values()))), seconds)


def _seconds(turn: Turn, *, at_edges: bool) -> float:
    growing = turn.growing_train_step_seconds
    return growing if at_edges and growing is not None else turn.train_step_seconds
