"""The driver of a sweep whose cells are measured elsewhere, many at once.

It submits tasks to an engine, takes what comes back in any order, and alone writes into the report. What it writes is what a
sweep on one device would have written: a cell that follows a smaller one that ran out of memory is skipped, even if it was
already being measured, and rounds of different workers have different numbers.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from capsbench.cases.fingerprint import package_digest
from capsbench.errors import ConfigurationError
from capsbench.records import Cell, Pass, Plan, Record, Round
from capsbench.report import Report
from capsbench.sweep.estimate import Estimate
from capsbench.sweep.group_rounds import free_numbers
from capsbench.sweep.groups import compared, groups_of, left_of
from capsbench.sweep.launchers.protocol import Done, Engine, Findings, Lost, Task
from capsbench.sweep.local import Sources, not_this_source
from capsbench.sweep.runner import Observer, RanOut, check_room, remaining, uninterrupted
from capsbench.timed_rounds import TurnsTaken

MOST_TRIES = 3
"""Number of workers that may be lost over a task before its cells end in an error; several lost machines count as one."""

_LOOK_SECONDS = 5.0
"""Seconds after which the driver looks up from its wait, so that it hears Ctrl-C whatever the engine does."""


class Driver:
    """The driver's side of a sweep.

    Args:
        plan: plan of the sweep; its predicted cells are left out.
        report: where records go; locked by the caller.
        engine: where tasks are measured; closed by the caller.
        sources: sources of the users' own networks.
        data_directory: folder of the real data sets.
        notify: receives texts that a person should know.
        patience: seconds that a cell waits for other sweeps on its device; None for no limit.
        observers: objects that are informed of each cell.
    """

    def __init__(
        self, plan: Plan, report: Report, engine: Engine, sources: Sources, data_directory: Path | None = None,
        notify: Callable[[str], None] = lambda _: None, *, patience: float | None = None, observers: Sequence[Observer] = (),
    ) -> None:  # fmt: skip
        measured = [cell for cell in plan.cells if not cell.configuration.is_predicted()]
        self._plan, self._report, self._engine = plan.model_copy(update={"cells": measured}), report, engine
        self._sources, self._data_directory, self._notify = sources, data_directory, notify
        self._patience, self._observers = patience, observers
        self._groups = groups_of(self._plan)
        self._order = {cell.key(): place for place, cell in enumerate(measured)}
        self._full = RanOut(self._plan, report)
        self._package = package_digest()
        self._count = 0
        self._in_flight: dict[int, Task] = {}
        """Tasks that have been submitted and have not come back, in the order of submission."""
        self._tries: dict[int, float] = {}
        """Tries that each task has cost, by its number."""
        self._losses: Counter[int] = Counter()
        """Workers that were lost over each task."""
        self._shown = 0
        self._homes: dict[tuple[object, ...], str] = {}
        """Key of the environment that cells which are compared to each other must have, by the values that they share."""
        self._seen: dict[tuple[object, ...], list[str]] = {}
        """Keys of the environments that have measured such cells, in the order in which they were seen."""

    def run(self, *, between: Callable[[], None] = lambda: None) -> None:
        """Measure the rest of the plan: cells by themselves, and then the times of those that take turns.

        Args:
            between: called once no cell is measured by itself any more.

        Raises:
            ConfigurationError: no machine can measure a cell.
            StoreError: there is no room, or a record could not be written.
            KeyboardInterrupt: Ctrl-C, after everything that had come back was kept.
        """
        try:
            with uninterrupted():
                self._take_left_behind()
                tasks = self._tasks_alone()
            self._complete(tasks)
            between()
            with uninterrupted():
                tasks = self._tasks_in_turn()
            self._complete(tasks)
        except KeyboardInterrupt:
            self._take_all([outcome for outcome in self._engine.wait(0) if isinstance(outcome, Done)])
            raise
        self._report.forget_rounds()

    def note_unused_gpus(self) -> None:
        """Report that workers have GPUs, where this machine, which has none, chose the device."""
        cell = next((cell for cell in self._plan.cells if cell.configuration.device == "cpu"), None)
        if cell is None:
            return
        on_gpu = cell.configuration.model_copy(update={"device": "cuda:0", "threads": None})
        if self._engine.room(self._task([Cell(configuration=on_gpu)], self._plan.passes)):
            self._notify("note: this machine has no GPU, so that `device` auto is cpu; give `device` cuda for the workers' GPUs")

    def _take_left_behind(self) -> None:
        """Take what workers have found for an earlier driver, as far as it is not in the report."""
        cells = {cell.key() for cell in self._plan.cells}
        for task, findings in self._engine.left_behind():
            settled = self._report.settled(task.plan.passes)
            keys = {record.cell.key() for record in findings.records}
            if keys <= cells and not keys <= settled and task.package == self._package:
                self._take(task, findings)

    def _tasks_alone(self) -> list[Task]:
        """Tasks of the cells that are measured by themselves, each with its passes, but for those that need not be tried."""
        in_turn = {cell.key() for group in self._groups for cell in group}
        has_memory, tasks = self._report.settled(["memory"]), []
        for cell in remaining(self._plan, self._report):
            later = cell.key() in in_turn
            if later and ("memory" not in self._plan.passes or cell.key() in has_memory):
                continue
            skipped = self._full.skipped(cell)
            if skipped is not None:
                self._keep(skipped)
            elif self._sources.has_changed(cell):
                self._keep(not_this_source(cell))
            else:
                tasks.append(self._task([cell], ["memory"] if later else self._plan.passes))
        return tasks

    def _tasks_in_turn(self) -> list[Task]:
        """Tasks of the cells that take turns, one for each group that has cells without times."""
        tasks = []
        for group in self._groups:
            left = left_of(group, self._plan, self._report)
            for cell in [cell for cell in left if self._sources.has_changed(cell)]:
                self._keep(not_this_source(cell))
                left.remove(cell)
            if left:
                tasks.append(self._in_turn(group))
        return tasks

    def _in_turn(self, group: Sequence[Cell]) -> Task:
        """A task of cells that take turns, with all that is known of them."""
        keys = {cell.key() for cell in group}
        known = [record for record in self._report.written if record.cell.key() in keys]
        rounds = [one for one in self._report.rounds if any(turn.cell in keys for turn in one.turns)]
        task = self._task(group, self._plan.passes)
        return task.model_copy(update={"in_turn": True, "known": known, "rounds": rounds})

    def _task(self, cells: Iterable[Cell], passes: Sequence[Pass]) -> Task:
        self._count += 1
        return Task(
            number=self._count,
            plan=self._plan.model_copy(update={"cells": list(cells), "passes": list(passes)}),
            data_directory=self._data_directory,
            folder=self._report.folder,
            patience=self._patience,
            package=self._package,
        )

    # Tasks in flight

    def _complete(self, tasks: Sequence[Task]) -> None:
        """Submit tasks, and take what comes back until all have ended."""
        if not tasks:
            return
        check_room(self._report)
        for observer in self._observers:
            if isinstance(observer, Estimate):
                observer.at_once = max(1.0, self._engine.room(tasks[0]))
        self._submit(tasks)
        while self._in_flight:
            self._show()
            self._take_all(self._engine.wait(_LOOK_SECONDS))

    def _submit(self, tasks: Sequence[Task]) -> None:
        sent = [task.model_copy(update={"kind": self._kind_for(task)}) for task in tasks]
        self._in_flight |= {task.number: task for task in sent}
        self._engine.submit(sent)

    def _take_all(self, outcomes: Iterable[Done | Lost]) -> None:
        """Take what came back, all of it before Ctrl-C or a worker's refusal ends the sweep, and submit lost tasks again."""
        with uninterrupted():
            again, why = list[Task](), ""
            for outcome in sorted(outcomes, key=_is_refusal):
                task = self._in_flight.pop(outcome.number, None)
                if task is None:  # it was cancelled meanwhile
                    continue
                if isinstance(outcome, Done):
                    self._take(task, outcome.findings)
                elif self._may_be_tried_again(outcome):
                    again.append(task)
                    why = outcome.why
                else:
                    self._give_up(task, outcome)
            self._try_again(again, why)

    def _take(self, task: Task, findings: Findings) -> None:
        """Take what was found for a task."""
        if findings.refusal:
            raise ConfigurationError(*findings.refusal)
        for text in findings.texts:
            self._notify(text)
        check_room(self._report)
        self._report.add_environment(findings.environment, dict(findings.description))
        self._note_machine(task, findings)
        records, rounds = renumbered(findings, task, self._report) if task.in_turn else (findings.records, [])
        for one in rounds:
            self._report.append_round(one)
        for record in records:
            kept = not_this_source(record.cell) if self._sources.has_changed(record.cell) else record
            self._keep(kept, alone=not task.in_turn)

    def _may_be_tried_again(self, lost: Lost) -> bool:
        """Count a lost worker, and return whether its task may be given to another one."""
        # A cell that takes all memory of one machine may find more on the next.
        self._tries[lost.number] = self._tries.get(lost.number, 0.0) + lost.counts
        self._losses[lost.number] += lost.counts > 0
        return self._tries[lost.number] < MOST_TRIES

    def _try_again(self, lost: Sequence[Task], why: str) -> None:
        """Submit tasks again whose workers were lost, but for cells that have become too large meanwhile."""
        tasks, count = [], 0
        for task in lost:
            skipped = None if task.in_turn else self._full.skipped(task.cells()[0])
            if skipped is not None:
                self._keep(skipped)
            else:
                tasks.append(task)
                count += len(task.cells())
        if tasks:
            cells = "1 cell is" if count == 1 else f"{count} cells are"
            self._notify(f"note: {cells} measured again, since a worker was lost: {why}")
            self._submit(tasks)

    def _give_up(self, task: Task, lost: Lost) -> None:
        """End the cells of a task that no worker has survived."""
        losses = self._losses[task.number]
        known = {record.cell.key(): record for record in self._report.records}
        for cell in left_of(task.cells(), self._plan, self._report) if task.in_turn else task.cells():
            record = known.get(cell.key()) or Record(cell=cell, status="error")
            message = f"{losses} workers were lost while they measured it, the last one because {lost.why}"
            self._keep(
                record.model_copy(update={"status": lost.status, "message": message, "time": None}), alone=not task.in_turn
            )

    def _keep(self, record: Record, *, alone: bool = True) -> None:
        """Keep a record; if its cell ran out of memory by itself, skip the larger ones of its series."""
        self._report.append(record)
        for observer in self._observers:
            observer.finished(record)
        if record.status == "oom" and alone:
            self._full.add(record.cell)
            self._skip_after(record.cell)

    def _skip_after(self, cell: Cell) -> None:
        """Skip the cells that a sweep on one device would not have tried after one that ran out of memory."""
        alone = {task.cells()[0].key(): number for number, task in self._in_flight.items() if not task.in_turn}
        known = {record.cell.key(): record for record in self._report.records}
        for later in self._plan.cells[self._order[cell.key()] + 1 :]:
            skipped, record = self._full.skipped(later), known.get(later.key())
            if skipped is None:
                continue
            if later.key() in alone:
                number = alone[later.key()]
                del self._in_flight[number]
                self._engine.cancel([number])
                self._keep(skipped)
            elif record is not None and record.status in ("oom", "skipped") and record.message != skipped.message:
                self._keep(skipped)  # it was tried, or skipped for a larger one, only because cells end in any order

    def _show(self) -> None:
        """Name what has been in flight for longest."""
        task = next(iter(self._in_flight.values()))
        if task.number == self._shown:
            return
        self._shown = task.number
        for observer in self._observers:
            if task.in_turn:
                cells = left_of(task.cells(), self._plan, self._report)
                observer.took_turns(TurnsTaken(cells, None, self._plan.budget_seconds * len(cells), None))
            else:
                observer.started(task.cells()[0])

    # Machines

    def _kind_for(self, task: Task) -> str | None:
        """The kind of machine on which a task is measured: one for all cells that are compared to each other."""
        kinds = self._engine.kinds(task)
        if len(kinds) < 2:
            return None
        shared = compared(task.cells()[0], self._plan)
        if self._homes.get(shared) not in kinds:
            self._homes[shared] = self._earlier_home(shared, kinds) or self._free_kind(kinds)
        return self._homes[shared]

    def _earlier_home(self, shared: tuple[object, ...], kinds: Mapping[str, float]) -> str | None:
        """The kind of machine that has measured most of these cells in an earlier sweep, if there is one now."""
        had = Counter(
            record.environment for record in self._report.records
            if record.environment in kinds and compared(record.cell, self._plan) == shared
        )  # fmt: skip
        return had.most_common(1)[0][0] if had else None

    def _free_kind(self, kinds: Mapping[str, float]) -> str:
        """The kind of machine with the most room for each of its homes."""
        homes = Counter(self._homes.values())
        return max(kinds, key=lambda kind: (kinds[kind] / (1 + homes[kind]), kind))

    def _note_machine(self, task: Task, findings: Findings) -> None:
        """Report cells that are compared to each other but were measured on several kinds of machines."""
        here, shared = findings.environment, compared(task.cells()[0], self._plan)
        if shared not in self._seen:
            earlier = (record for record in self._report.records if compared(record.cell, self._plan) == shared)
            self._seen[shared] = [key for key in dict.fromkeys(record.environment for record in earlier) if key]
        seen = self._seen[shared]
        if here in seen:
            return
        seen.append(here)
        if len(seen) > 1:
            known = self._report.environments
            first, second = (machine_in_words(known.get(key, {})) for key in (seen[0], here))
            self._notify(
                "warning: cells that are compared to each other were measured on two kinds of machines: on "
                f"{first}, and on {second}{' in another state' if first == second else ''}; each has series of its own"
            )


def _is_refusal(outcome: Done | Lost) -> bool:
    return isinstance(outcome, Done) and bool(outcome.findings.refusal)


def machine_in_words(description: Mapping[str, Any]) -> str:
    """Return the GPU of a machine, or else its processor, with its torch."""
    cuda, cpu, packages = (description.get(name) or {} for name in ("cuda", "cpu", "packages"))
    devices = cuda.get("devices") or [{}]
    name = devices[0].get("name") or cpu.get("model") or "a machine of unknown kind"
    return f"{name} with torch {packages['torch']}" if packages.get("torch") else str(name)


def renumbered(findings: Findings, task: Task, report: Report) -> tuple[list[Record], list[Round]]:
    """Return records and rounds of a worker with numbers of rounds and processes that no others of the report have.

    Args:
        findings: what the worker found.
        task: its task; numbers that it was given stay what they are.
        report: report of the sweep.
    """
    given = [one.time for one in task.known if one.time], task.rounds
    had_rounds = {number for one in given[0] for number in one.rounds} | {one.number for one in given[1]}
    had_processes = {number for one in given[0] for number in one.processes} | {one.process for one in given[1]}
    times = [one.time for one in findings.records if one.time]
    new_rounds = {number for one in times for number in one.rounds} | {one.number for one in findings.rounds}
    new_processes = {number for one in times for number in one.processes} | {one.process for one in findings.rounds}
    free = free_numbers(report)
    rounds = {number: free[0] + place for place, number in enumerate(sorted(new_rounds - had_rounds))}
    processes = {number: free[1] + place for place, number in enumerate(sorted(new_processes - had_processes))}

    def with_numbers(record: Record) -> Record:
        if record.time is None:
            return record
        numbers = {
            "rounds": [rounds.get(number, number) for number in record.time.rounds],
            "processes": [processes.get(number, number) for number in record.time.processes],
        }
        return record.model_copy(update={"time": record.time.model_copy(update=numbers)})

    left = [one for one in findings.rounds if one.number not in had_rounds]
    return (
        [with_numbers(record) for record in findings.records],
        [
            one.model_copy(update={"number": rounds[one.number], "process": processes.get(one.process, one.process)})
            for one in left
        ],
    )
