"""The rounds of one group of cells: taken until the slopes are known, or until the time budget is spent."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Self

from capsbench.measure.timing import MAX_SAMPLES, SECONDS_WORTH_SAMPLING
from capsbench.measure.together import Together
from capsbench.measure.turn_messages import Built, Failed, TurnsRequest
from capsbench.measure.variables import wait_is_chosen
from capsbench.measure.watch import cores_are_shared
from capsbench.records import Cell, Plan, Record, Round
from capsbench.report import Report
from capsbench.stats.paired import FEWEST_ROUNDS
from capsbench.sweep.groups import ends_of
from capsbench.sweep.runner import Observer, uninterrupted
from capsbench.sweep.slopes_so_far import SlopesSoFar, slopes_so_far
from capsbench.timed_rounds import TurnsTaken, with_rounds

BUDGET_WORTH_A_LOOK = 10.0
"""Seconds that a group's rounds may take from which on a look at the machine, of most of a second, does not matter."""


class ProcessShare(NamedTuple):
    """The part of a group's rounds that one of its processes takes."""

    fewest: int
    """Least number of turns that every cell has had after it."""
    fewest_of_ends: int
    """Least number of turns that the cells at the ends of a series, which give its slope, have had after it."""
    is_last: bool
    """True for the process that goes on until the slopes are known, or the budget is spent."""

    @classmethod
    def of(cls, process: int, plan: Plan) -> Self:
        """Return the share of a process, of which the first is number 1."""
        fewest, is_last = -(-plan.samples * process // plan.processes), process == plan.processes
        # A process must take as many rounds as have an interval.
        fewest_of_ends = max(fewest, FEWEST_ROUNDS * process) if plan.processes > 1 else fewest
        return cls(fewest, fewest_of_ends, is_last)


class GroupRounds:
    """The rounds of cells that are built in one process, each of which takes a step in every round.

    Args:
        cells: cells of one group.
        plan: plan of the sweep.
        report: where each round goes before the next one begins; what a sweep that was cut off took of them is read from it.
        environment: key of this machine in environment.json.
        data_directory: folder of the real data sets.
        notify: receives texts that a person should know.
        observers: objects that are informed of each round.
    """

    def __init__(
        self, cells: Sequence[Cell], plan: Plan, report: Report, environment: str, data_directory: Path | None = None, *,
        notify: Callable[[str], None] = lambda _: None, observers: Sequence[Observer] = (),
    ) -> None:  # fmt: skip
        self.cells, self._plan, self._report, self._environment = cells, plan, report, environment
        self._data_directory, self._notify, self._observers = data_directory, notify, observers
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        """Time at which the rounds were begun, ISO 8601."""
        self.built: dict[str, Built] = {}
        """The cells that the last process could build, by key."""
        self.failed: dict[str, Failed] = {}
        """The cells that failed, by key."""
        self._slopes: SlopesSoFar | None = None
        self._next_look = 0
        self._budget = plan.budget_seconds * len(cells)
        # A sweep that was cut off has spent a part of the budget. Turns that are in records belong to other groups.
        keys, earlier = {cell.key() for cell in cells}, rounds_of(cells, report)
        turns = [turn for one in earlier for turn in one.turns if turn.cell in keys]
        self._numbers, self._turns = {one.number for one in earlier}, Counter(turn.cell for turn in turns)
        self._spent = sum(turn.train_step_seconds + turn.inference_seconds for turn in turns)

    @property
    def slopes_are_known(self) -> bool:
        """True if the slopes are known as well as the plan asks for."""
        return bool(self._alive) and self._slopes is not None and self._slopes.are_known(self._plan.slope_share)

    def take(self) -> None:
        """Take all rounds, in as many processes as the plan says.

        Raises:
            ProcessEnded: a process has ended before it was asked to, or took too long.
        """
        for process in range(1, self._plan.processes + 1):
            share = ProcessShare.of(process, self._plan)
            if self._alive and (share.is_last or self._lacking(share)):
                self._take_in_one_process(share)
        if self._alive and self._slopes is not None and self._slopes.fits:
            self._notify(what_more_would_buy(self._slopes, len(self._numbers), self._plan))

    @property
    def _alive(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.key() not in self.failed]

    def _take_in_one_process(self, share: ProcessShare) -> None:
        number, process_number = free_numbers(self._report)
        with Together(self._request(process_number), self._plan.timeout_seconds) as process:
            process.failed |= self.failed
            self.built, self.failed = process.built, process.failed
            while self._alive and not self._has_enough(share):
                self._take_one(process, number, self._lacking(share) or ends_of(self._alive, self._plan.axes))
                number += 1

    def _request(self, process_number: int) -> TurnsRequest:
        """The cells as they are sent to a process.

        The place of a cell's weights in memory can make it slower for as long as the process lives. Cells are built in another
        order in each process, so that such differences do not follow depth.
        """
        alive, device = self._alive, self.cells[0].configuration.device
        # Threads that spin while they wait would be in the way of other work.
        looked_at = device == "cpu" and self._budget >= BUDGET_WORTH_A_LOOK and not wait_is_chosen()
        return TurnsRequest(
            cells={cell.key(): cell.configuration for cell in random.sample(alive, len(alive))},
            axes=self._plan.axes,
            data_directory=self._data_directory,
            strict=self._plan.strict,
            channel=0,
            process=process_number,
            shared=looked_at and cores_are_shared(),
        )

    def _lacking(self, share: ProcessShare) -> Sequence[Cell]:
        """The cells of the next round if some have had fewer turns than they should: all, or the ends alone; else none."""
        if any(self._turns[cell.key()] < share.fewest for cell in self._alive):
            return self._alive
        ends = ends_of(self._alive, self._plan.axes)
        return ends if any(self._turns[cell.key()] < share.fewest_of_ends for cell in ends) else ()

    def _has_enough(self, share: ProcessShare) -> bool:
        """Return whether a process has taken its share; for the last one slopes are fitted to know that."""
        lacking = self._lacking(share)
        if not share.is_last:
            return not lacking
        is_spent = not lacking and (self._spent >= self._budget or len(self._numbers) >= MAX_SAMPLES)
        # A fit takes as long as a quick step once there are many rounds; each further one has a tenth more.
        if not is_spent and len(self._numbers) < self._next_look:
            return False
        self._next_look = len(self._numbers) + 1 + len(self._numbers) // 10
        alive = self._alive
        records = [*records_so_far(alive, self._report), *self._records_of_their_series(alive)]
        self._slopes = slopes_so_far(alive, records, self._numbers, self._plan.axes)
        is_enough = self._spent >= SECONDS_WORTH_SAMPLING and self._slopes.are_enough(self._plan.slope_share)
        return is_spent or (is_enough and not lacking)

    def _take_one(self, process: Together, number: int, cells: Sequence[Cell]) -> None:
        """Take one round, in which the cells have their turns in a random order, and keep it."""
        keys = [cell.key() for cell in cells]
        random.shuffle(keys)
        taken = process.round(number, keys)
        if taken is not None:
            with uninterrupted():
                self._report.append_round(taken)
            self._numbers.add(number)
            self._turns.update(turn.cell for turn in taken.turns)
            self._spent += sum(turn.train_step_seconds + turn.inference_seconds for turn in taken.turns)
        share = self._slopes.share if self._slopes else None
        state = TurnsTaken(self._alive, len(self._numbers), max(0.0, self._budget - self._spent), share)
        for observer in self._observers:
            observer.took_turns(state)

    def _records_of_their_series(self, cells: Sequence[Cell]) -> list[Record]:
        """The records of other cells that a report would put into the series of some cells."""
        some, keys = cells[0], {cell.key() for cell in cells}
        return [
            record
            for record in self._report.records
            if record.status == "ok" and record.cell.key() not in keys and record.environment == self._environment
            if (record.cell.replicate, record.cell.source) == (some.replicate, some.source)
        ]


def rounds_of(cells: Sequence[Cell], report: Report) -> list[Round]:
    """The rounds in which some cells had turns that are not in their records yet."""
    keys = {cell.key() for cell in cells}
    return [one for one in report.rounds if any(turn.cell in keys for turn in one.turns)]


_NEARLY_HALF = 0.45
"""Least share by which an interval narrows of which nearly all is due to rounds, if there are four times as many."""


def records_so_far(cells: Sequence[Cell], report: Report) -> list[Record]:
    """The records of cells with all turns that they have had; without times if they had none."""
    known = {record.cell.key(): record for record in report.records if record.status == "ok"}
    new = [Record(cell=cell, status="ok") for cell in cells if cell.key() not in known]
    known |= {record.cell.key(): record for record in with_rounds(new, report.rounds)}
    return [known[cell.key()] for cell in cells]


def free_numbers(report: Report) -> tuple[int, int]:
    """The first numbers of a round and of a process that a report does not have yet."""
    times, rounds = [record.time for record in report.records if record.time], report.rounds
    numbers = [*(number for one in times for number in one.rounds), *(one.number for one in rounds)]
    processes = [*(number for one in times for number in one.processes), *(one.process for one in rounds)]
    return max(numbers, default=-1) + 1, max(processes, default=-1) + 1


def what_more_would_buy(slopes: SlopesSoFar, rounds: int, plan: Plan) -> str:
    """Return in words how well slopes are known after some rounds, and what a longer run would give."""
    share, asked = slopes.share, plan.slope_share
    if share is None:
        text = f"{rounds} rounds are too few to know a slope of training time"
    elif share > 2:
        text = f"a slope of training time cannot be distinguished from 0 after {rounds} rounds"
    else:
        text = f"after {rounds} rounds the 95 % intervals of slopes of training time are up to {share:.0%} of the slope wide"
        text += f", where {asked:.0%} was asked for (`slope_share`)" if share > asked else ""
    if share is not None:
        more_seconds = share > asked and plan.budget_seconds
        longer = f"`time_budget` {4 * plan.budget_seconds:g}" if more_seconds else "four times as many rounds"
        # Rounds of an earlier sweep stay as many as they are.
        narrowed = slopes.narrowed_by(3 * rounds)
        text += f"; with {longer} the widest interval would be about {narrowed:.0%} narrower"
        # Four times as many rounds halve what is due to rounds.
        if narrowed < _NEARLY_HALF and slopes.all_rounds == rounds and not slopes.processes_prevail:
            text += "; more rounds cannot halve it, because they do not reduce the differences between processes"
    if slopes.processes_prevail:
        text += "; processes differ from each other by more than their rounds do, so that more `processes` would help more"
    return text
