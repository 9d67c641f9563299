"""Measurement of the remaining cells of a plan, each kept before the next one starts."""

import shutil
import signal
import threading
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol

from capsbench.axes import position_in_words
from capsbench.errors import StoreError
from capsbench.options import OPTIONS
from capsbench.records import Cell, Configuration, Plan, Record
from capsbench.report import Report
from capsbench.sizes import MIB
from capsbench.sweep.local import Launcher
from capsbench.timed_rounds import TurnsTaken

ROOM_BYTES = MIB
"""Free bytes below which no cell is started, since its record might not fit."""


class Observer(Protocol):
    """An object that is informed of the progress of a sweep."""

    def started(self, cell: Cell) -> None:
        """Note a cell that is about to be measured."""

    def finished(self, record: Record) -> None:
        """Note a record that is on the disk."""

    def took_turns(self, state: TurnsTaken) -> None:
        """Note a round of cells that take turns, which is on the disk."""


def run_sweep(
    plan: Plan, report: Report, launch: Launcher, observers: Sequence[Observer] = (), timed_later: Container[str] = ()
) -> None:
    """Run the rest of a plan. Records of earlier runs in the report count.

    Args:
        plan: plan of the sweep.
        report: where records go; locked by the caller.
        launch: function that measures a cell.
        observers: objects that are informed of each cell.
        timed_later: keys of cells of which the launcher measures memory alone, because they take turns afterwards.

    Raises:
        StoreError: there is no room, or a record could not be written.
    """
    full = RanOut(plan, report)
    has_memory = report.settled(["memory"])
    for cell in remaining(plan, report):
        if cell.key() in timed_later and ("memory" not in plan.passes or cell.key() in has_memory):
            continue
        check_room(report)
        record = full.skipped(cell)
        if record is None:
            for observer in observers:
                observer.started(cell)
            record = launch(cell)
            if record.status == "oom":
                full.add(cell)
        with uninterrupted():
            report.append(record)
        for observer in observers:
            observer.finished(record)


def check_room(report: Report) -> None:
    """Refuse to start another cell on a disk that has no room for its record.

    Raises:
        StoreError: there is none.
    """
    free = shutil.disk_usage(report.folder).free
    if free < ROOM_BYTES:
        raise StoreError(
            f"{report.folder} has {free} bytes left on its disk, too little for a record",
            "make room and run the same command with `resume`: all earlier records are kept",
        )


def remaining(plan: Plan, report: Report) -> list[Cell]:
    """Return the cells of a plan that have no final record."""
    settled = report.settled(plan.passes)
    return [cell for cell in plan.cells if cell.key() not in settled]


_SeriesKey = tuple[str, str, str | None]
"""Key of a series: its axis, its options, and the source of its network."""


class RanOut:
    """The series in which a cell ran out of memory, whose larger cells are not tried.

    Args:
        plan: plan of the sweep.
        report: its report; cells that ran out of memory in an earlier sweep count.
    """

    def __init__(self, plan: Plan, report: Report) -> None:
        # A larger value of a case's setting may also divide the work.
        self._axes = [axis for axis in plan.axes if axis in OPTIONS and OPTIONS[axis].more_memory]
        self._smallest: dict[_SeriesKey, Configuration] = {}
        for record in report.records:
            if record.status == "oom":
                self.add(record.cell)

    def add(self, cell: Cell) -> None:
        """Note a cell that ran out of memory."""
        for series in self._series_of(cell):
            known = self._smallest.get(series)
            if known is None or _place(cell.configuration, series) < _place(known, series):
                self._smallest[series] = cell.configuration

    def skipped(self, cell: Cell) -> Record | None:
        """Return the record of a cell that is not tried, since a smaller one of its series ran out of memory; else None."""
        for series in self._series_of(cell):
            known = self._smallest.get(series)
            if known is not None and _place(cell.configuration, series) > _place(known, series):
                kind: Literal["measured", "predicted"] = "predicted" if cell.configuration.is_predicted() else "measured"
                message = f"out of memory at {position_in_words(known, series[0])} of this line"
                return Record(kind=kind, cell=cell, status="skipped", message=message)
        return None

    def _series_of(self, cell: Cell) -> list[_SeriesKey]:
        """Keys of the series that a cell belongs to, one along each axis."""
        return [(axis, cell.configuration.series(axis), cell.source) for axis in self._axes]


def _place(configuration: Configuration, series: _SeriesKey) -> float:
    """The place of a configuration on the axis of a series."""
    return configuration.position(series[0]) or 0


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Make Ctrl-C wait until the measurement is on the disk."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A handler, not a signal mask: other threads would take the signal, and Python would raise here all the same.
    arrived: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: arrived.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if arrived:
        raise KeyboardInterrupt
