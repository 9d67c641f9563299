"""Times of cells that are compared to each other: measured in turn, in rounds that are kept one by one.

The cells of a group (`groups`) are built in one process, and each takes a step in every round. A round is in the report before
the next one begins. Once the rounds of a group are over, each of its cells gets a record with its turns. A cell that has its
times already may take further turns, so that others can be compared to it: they are added to its record.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from capsbench.measure.noise import Machine, noise_of
from capsbench.measure.processes import available_bytes
from capsbench.measure.timing import MAX_SAMPLES, SECONDS_WORTH_SAMPLING
from capsbench.measure.together import ProcessEnded, Together
from capsbench.measure.turns import Built, Failed, TurnsRequest
from capsbench.measure.variables import wait_is_chosen
from capsbench.measure.watch import cores_are_shared
from capsbench.prediction import apart
from capsbench.records import Cell, Plan, Record, Round, Status
from capsbench.report import Report
from capsbench.stats.paired import FEWEST_ROUNDS
from capsbench.sweep.groups import ends_of, groups_of, halves, left_of, that_fit
from capsbench.sweep.local import Sources, alone_on, not_this_source
from capsbench.sweep.runner import Observer, uninterrupted
from capsbench.sweep.slopes_so_far import SlopesSoFar, slopes_so_far
from capsbench.timed_rounds import TurnsTaken, with_rounds

BUDGET_WORTH_A_LOOK = 10.0
"""Seconds that a group's rounds may take from which on a look at the machine, of most of a second, does not matter."""


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
            left = left_of(group, self._plan, self._report)
            if left:
                cells = self._with_ends(left, group)
                memory = {record.cell.key(): record.memory for record in self._report.records if record.memory is not None}
                free = available_bytes(group[0].configuration.device)
                for fitting in that_fit(cells, memory, free, self._plan.axes):
                    self._time(fitting)
        self._report.forget_rounds()

    def _settled(self) -> set[str]:
        """Keys of the cells that need no further turns."""
        return self._report.settled(self._plan.passes)

    def _with_ends(self, left: Sequence[Cell], group: Sequence[Cell]) -> list[Cell]:
        """Return these cells, and the ends of their series that this machine has timed in an earlier sweep.

        Only times of the same rounds are compared. Cells that are added to a finished series would have a slope of their own, or
        none, if they did not take turns with those that are there.
        """
        axes = self._plan.axes
        series = {(axis, cell.configuration.series(axis)) for cell in left for axis in axes}
        timed = {record.cell.key() for record in self._report.records if record.time and record.environment == self._environment}
        timed &= self._settled()
        related = [cell for cell in group if any((axis, cell.configuration.series(axis)) in series for axis in axes)]
        earlier = ends_of([cell for cell in related if cell.key() in timed], axes)
        keys = {cell.key() for cell in (*left, *earlier)}
        return [cell for cell in group if cell.key() in keys]

    def _time(self, cells: list[Cell]) -> None:
        """Time cells in one process, or, where that cannot be, fewer at a time."""
        settled = self._settled()
        if all(cell.key() in settled for cell in cells):
            return  # all have their times, and are there for others, which are not
        changed = [cell for cell in cells if self._sources.has_changed(cell)]
        for cell in changed:
            self._keep_failure(not_this_source(cell))
        cells = [cell for cell in cells if cell not in changed]
        if not cells:
            return
        apart.close()
        started = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            with alone_on(cells[0].configuration.device, self._notify, folder=self._report.folder, patience=self._patience):
                began = monotonic()
                process, slopes = self._take_rounds(cells)
        except ProcessEnded as ended:
            self._time_after_the_end(cells, ended)
            return
        seconds = (monotonic() - began) / len(cells)
        # Cells that ran out of memory together with others are tried without them.
        full = {key for key, fault in process.failed.items() if fault.status == "oom"} - settled
        too_many = [cell for cell in cells if cell.key() in full] if len(cells) > 1 else []
        known = slopes is not None and slopes.are_known(self._plan.slope_share)
        for cell, record in zip(cells, self._so_far(cells), strict=True):
            fault = process.failed.get(cell.key())
            if cell in too_many:
                continue
            if fault is not None:
                self._fail(cell, fault.status, fault.message, started, seconds)
            elif self._sources.has_changed(cell):
                self._keep_failure(not_this_source(cell))
            else:
                self._keep(self._timed(record, process.built.get(cell.key()), known=known, started=started, seconds=seconds))
        for fewer in [too_many] if len(too_many) < len(cells) else halves(cells, self._plan.axes):
            self._time(fewer)

    def _take_rounds(self, cells: list[Cell]) -> tuple[Together, SlopesSoFar | None]:
        """Take rounds until the slopes are known, or the time budget of these cells is spent.

        Returns:
            The process, which has ended, and what is known of the slopes; None if no cell is left.
        """
        # A sweep that was cut off has spent a part of the budget. Turns that are in records belong to other groups.
        keys, rounds = {cell.key() for cell in cells}, self._rounds_of(cells)
        turns = [turn for one in rounds for turn in one.turns if turn.cell in keys]
        numbers, had = {one.number for one in rounds}, Counter(turn.cell for turn in turns)
        spent = sum(turn.train_step_seconds + turn.inference_seconds for turn in turns)
        budget, next_look = self._plan.budget_seconds * len(cells), 0
        slopes: SlopesSoFar | None = None
        failed: dict[str, Failed] = {}
        parts = self._plan.processes
        for part in range(1, parts + 1):
            # Each process takes its part of the least number of rounds, at least as many as have an interval, and the last one
            # all that are needed beyond it.
            fewest, last = -(-self._plan.samples * part // parts), part == parts
            fewest_of_ends = max(fewest, FEWEST_ROUNDS * part) if parts > 1 else fewest
            alive = [cell for cell in cells if cell.key() not in failed]
            if not alive:
                break
            if not last and not self._lacking(alive, had, fewest, fewest_of_ends):
                continue
            number, process_number = free_numbers(self._report)
            # The place of a cell's weights in memory can make it slower for as long as the process lives. Cells are built in
            # another order in each process, so that such differences do not follow depth.
            request = TurnsRequest(
                cells={cell.key(): cell.configuration for cell in random.sample(alive, len(alive))},
                axes=self._plan.axes,
                data_directory=self._data_directory,
                strict=self._plan.strict,
                channel=0,
                process=process_number,
                shared=self._cores_are_shared(alive[0].configuration.device, budget),
            )
            with Together(request, self._plan.timeout_seconds) as process:
                process.failed |= failed
                while alive := [cell for cell in cells if cell.key() not in process.failed]:
                    lacking = self._lacking(alive, had, fewest, fewest_of_ends)
                    if not lacking and not last:
                        break
                    ended = not lacking and (spent >= budget or len(numbers) >= MAX_SAMPLES)
                    # Looking takes as long as a quick step once there are many rounds; each further look has a tenth more.
                    if last and (ended or len(numbers) >= next_look):
                        next_look = len(numbers) + 1 + len(numbers) // 10
                        records = [*self._so_far(alive), *self._of_their_series(alive)]
                        slopes = slopes_so_far(alive, records, numbers, self._plan.axes)
                        enough = slopes.are_enough(self._plan.slope_share) and spent >= SECONDS_WORTH_SAMPLING
                        if ended or (enough and not lacking):
                            self._say_what_more_would_buy(slopes, len(numbers))
                            return process, slopes
                    order = [cell.key() for cell in lacking or ends_of(alive, self._plan.axes)]
                    random.shuffle(order)
                    taken = process.round(number, order)
                    if taken is not None:
                        with uninterrupted():
                            self._report.append_round(taken)
                        numbers.add(number)
                        had.update(turn.cell for turn in taken.turns)
                        spent += sum(turn.train_step_seconds + turn.inference_seconds for turn in taken.turns)
                    number += 1
                    state = TurnsTaken(alive, len(numbers), max(0.0, budget - spent), slopes.share if slopes else None)
                    for observer in self._observers:
                        observer.took_turns(state)
            failed = process.failed
        return process, None

    def _lacking(self, cells: Sequence[Cell], had: Mapping[str, int], fewest: int, fewest_of_ends: int) -> Sequence[Cell]:
        """The cells of the next round if some have had fewer turns than they should: all, or the ends alone; else none."""
        if any(had[cell.key()] < fewest for cell in cells):
            return cells
        ends = ends_of(cells, self._plan.axes)
        return ends if any(had[cell.key()] < fewest_of_ends for cell in ends) else ()

    def _rounds_of(self, cells: Sequence[Cell]) -> list[Round]:
        """The rounds in which some of these cells had turns that are not in their records yet."""
        keys = {cell.key() for cell in cells}
        return [one for one in self._report.rounds if any(turn.cell in keys for turn in one.turns)]

    def _so_far(self, cells: Sequence[Cell]) -> list[Record]:
        """The records of cells with all turns that they have had; without times if they had none."""
        known = {record.cell.key(): record for record in self._report.records if record.status == "ok"}
        new = [Record(cell=cell, status="ok") for cell in cells if cell.key() not in known]
        known |= {record.cell.key(): record for record in with_rounds(new, self._report.rounds)}
        return [known[cell.key()] for cell in cells]

    def _of_their_series(self, cells: Sequence[Cell]) -> list[Record]:
        """The records of other cells that a report would put into the series of some cells."""
        some, keys = cells[0], {cell.key() for cell in cells}
        return [
            record
            for record in self._report.records
            if record.status == "ok" and record.cell.key() not in keys and record.environment == self._environment
            if (record.cell.replicate, record.cell.source) == (some.replicate, some.source)
        ]

    def _cores_are_shared(self, device: str, budget: float) -> bool:
        """Return whether threads that spin while they wait would be in the way of other work, which is worth a look."""
        return device == "cpu" and budget >= BUDGET_WORTH_A_LOOK and not wait_is_chosen() and cores_are_shared()

    def _say_what_more_would_buy(self, slopes: SlopesSoFar, rounds: int) -> None:
        """Report how well slopes are known, and what a longer run would give."""
        if not slopes.fits:
            return
        share, asked = slopes.share, self._plan.slope_share
        if share is None:
            text = f"{rounds} rounds are too few to know a slope of training time"
        elif share > 2:
            text = f"a slope of training time cannot be distinguished from 0 after {rounds} rounds"
        else:
            text = f"slopes of training time are known within ± {share / 2:.0%} after {rounds} rounds"
            text += f", not ± {asked / 2:.0%}" if share > asked else ""
        if share is not None:
            longer = (
                f"{4 * self._plan.budget_seconds:g} seconds of `time_budget`"
                if share > asked and self._plan.budget_seconds
                else "four times as many"
            )
            # Rounds of an earlier sweep stay as many as they are.
            text += f"; {longer} would narrow the interval by {slopes.narrowed_by(3 * rounds):.0%}"
        if slopes.processes_prevail:
            text += "; processes differ by more than their rounds, so that more `processes` would narrow it"
        self._notify(text)

    def _time_after_the_end(self, cells: list[Cell], ended: ProcessEnded) -> None:
        """Time cells whose process has ended: without the one that it was about, or, out of memory, fewer at a time."""
        if ended.status == "oom" and len(cells) > 1:
            for fewer in halves(cells, self._plan.axes):
                self._time(fewer)
            return
        # A process that ended before any cell was begun would end so for each of them.
        culprits = [cell for cell in cells if cell.key() == ended.cell] or cells
        for culprit in culprits:
            self._fail(culprit, ended.status, ended.message)
        self._time([cell for cell in cells if cell not in culprits])

    def _timed(self, record: Record, built: Built | None, *, known: bool, started: str, seconds: float) -> Record:
        """The record of a cell that has had its turns.

        Args:
            record: what is known of it so far, its turns included.
            built: what its process said of it; None if it ended before.
            known: whether the slopes are known as well as was asked for.
            started: time at which its process was started, ISO 8601.
            seconds: the cell's part of the time that its process took.
        """
        if record.time is None:
            return self._ended(record, "error", "it had no turn", started, seconds)
        # A drift moves all cells of a round alike, so that it does not touch their differences.
        times = record.time
        of_device = times.device_train_step_seconds, times.device_inference_seconds
        seen = noise_of(times.train_step_seconds, times.inference_seconds, Machine(), of_device=of_device)
        noise = [name for name in seen if name == "spread"]
        noise += [name for name in times.noise if name not in ("spread", "host-bound", "unsettled")]
        noise += [name for name in seen if name == "host-bound"] + ([] if known else ["unsettled"])
        notes = [] if built is None else built.notes
        return self._ended(record, "ok", None, started, seconds).model_copy(
            update={
                "time": record.time.model_copy(update={"noise": noise}),
                "data_source": record.data_source or (built.data_source if built else None),
                "tf32": built.tf32 if built else record.tf32,
                "notes": list(dict.fromkeys([*record.notes, *notes])),
            }
        )

    def _ended(self, record: Record, status: Status, message: str | None, started: str | None, seconds: float) -> Record:
        """A record with the outcome of the turns, without their times."""
        return record.model_copy(
            update={
                "status": status,
                "message": message,
                "environment": self._environment,
                "started_at": record.started_at or started,
                "duration_seconds": round((record.duration_seconds or 0.0) + seconds, 3),
                "time": None,
            }
        )

    def _fail(self, cell: Cell, status: Status, message: str, started: str | None = None, seconds: float = 0.0) -> None:
        """Keep the failure of a cell; an end of a series that has its times already keeps them, and its further turns."""
        (record,) = self._so_far([cell])
        if cell.key() not in self._settled():
            self._keep_failure(self._ended(record, status, message, started, seconds))
        elif self._rounds_of([cell]):
            self._keep(record)

    def _keep_failure(self, record: Record) -> None:
        """Keep a record without times, unless the cell has some."""
        if record.cell.key() not in self._settled():
            self._keep(record)

    def _keep(self, record: Record) -> None:
        is_new = record.cell.key() not in self._settled()
        with uninterrupted():
            self._report.append(record)
        if is_new:
            for observer in self._observers:
                observer.finished(record)


def free_numbers(report: Report) -> tuple[int, int]:
    """The first numbers of a round and of a process that a report does not have yet."""
    times, rounds = [record.time for record in report.records if record.time], report.rounds
    numbers = [*(number for one in times for number in one.rounds), *(one.number for one in rounds)]
    processes = [*(number for one in times for number in one.processes), *(one.process for one in rounds)]
    return max(numbers, default=-1) + 1, max(processes, default=-1) + 1
