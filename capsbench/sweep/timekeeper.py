"""Times of cells that are compared to each other: measured in turn, in rounds that are kept one by one.

The cells of a group (`groups`) are built in one process, and each takes a step in every round. A round is in the report before
the next one begins. Once the rounds of a group are over, each of its cells gets a record with its turns. A cell that has its
times already may take further turns, so that others can be compared to it: they are added to its record.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic

from capsbench.measure.noise import Machine, noise_of
from capsbench.measure.processes import available_bytes
from capsbench.measure.together import ProcessEnded
from capsbench.prediction import apart
from capsbench.records import Cell, Plan, Record, Status, TimeFigures
from capsbench.report import Report
from capsbench.sweep.group_rounds import GroupRounds, records_so_far, rounds_of
from capsbench.sweep.groups import ends_of, groups_of, halves, left_of, that_fit
from capsbench.sweep.local import Sources, alone_on, not_this_source
from capsbench.sweep.runner import Observer, uninterrupted


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
        cells = self._of_this_source(cells)
        if not cells:
            return
        apart.close()
        rounds = GroupRounds(
            cells, self._plan, self._report, self._environment, self._data_directory,
            notify=self._notify, observers=self._observers,
        )  # fmt: skip
        try:
            with alone_on(cells[0].configuration.device, self._notify, folder=self._report.folder, patience=self._patience):
                began = monotonic()
                rounds.take()
        except ProcessEnded as ended:
            self._time_after_the_end(cells, ended)
            return
        seconds = (monotonic() - began) / len(cells)
        # Cells that ran out of memory together with others are tried without them.
        full = {key for key, fault in rounds.failed.items() if fault.status == "oom"} - settled
        too_many = [cell for cell in cells if cell.key() in full] if len(cells) > 1 else []
        for record in records_so_far([cell for cell in cells if cell not in too_many], self._report):
            self._keep_outcome(record, rounds, seconds)
        for fewer in [too_many] if len(too_many) < len(cells) else halves(cells, self._plan.axes):
            self._time(fewer)

    def _of_this_source(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells whose network is still the one that the plan has, and keep the failure of all others."""
        changed = [cell for cell in cells if self._sources.has_changed(cell)]
        for cell in changed:
            self._keep_failure(not_this_source(cell))
        return [cell for cell in cells if cell not in changed]

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

    def _keep_outcome(self, record: Record, rounds: GroupRounds, seconds: float) -> None:
        """Keep the record of a cell whose rounds are over.

        Args:
            record: what is known of it so far, its turns included.
            rounds: the rounds in which it had them.
            seconds: the cell's part of the time that its process took.
        """
        fault = rounds.failed.get(record.cell.key())
        if fault is not None:
            self._fail(record.cell, fault.status, fault.message, rounds.started, seconds)
        elif self._sources.has_changed(record.cell):
            self._keep_failure(not_this_source(record.cell))
        elif record.time is None:
            self._keep(self._ended(record, "error", "it had no turn", rounds.started, seconds))
        else:
            self._keep(self._timed(record, record.time, rounds, seconds))

    def _timed(self, record: Record, times: TimeFigures, rounds: GroupRounds, seconds: float) -> Record:
        """The record of a cell that has had turns, with these times."""
        built = rounds.built.get(record.cell.key())
        noise, notes = noise_in_turn(times, slopes_are_known=rounds.slopes_are_known), [] if built is None else built.notes
        return self._ended(record, "ok", None, rounds.started, seconds).model_copy(
            update={
                "time": times.model_copy(update={"noise": noise}),
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
        (record,) = records_so_far([cell], self._report)
        if cell.key() not in self._settled():
            self._keep_failure(self._ended(record, status, message, started, seconds))
        elif rounds_of([cell], self._report):
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


def noise_in_turn(times: TimeFigures, *, slopes_are_known: bool) -> list[str]:
    """Reasons not to trust the times of a cell that took turns: names of `NOISES`, those of its rounds included."""
    of_device = times.device_train_step_seconds, times.device_inference_seconds
    # A drift moves all cells of a round alike, so that it does not touch their differences.
    seen = noise_of(times.train_step_seconds, times.inference_seconds, Machine(), of_device=of_device)
    of_rounds = [name for name in times.noise if name not in ("spread", "host-bound", "unsettled")]
    found = [*(["spread"] if "spread" in seen else []), *of_rounds, *(["host-bound"] if "host-bound" in seen else [])]
    return found if slopes_are_known else [*found, "unsettled"]
