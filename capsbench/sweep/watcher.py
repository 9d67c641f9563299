"""The object that is informed of the progress of a measurement, which by default writes to the log `capsbench`."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from capsbench.records import Cell, Plan, Record
from capsbench.report import Report
from capsbench.sweep.runner import Observer
from capsbench.timed_rounds import TurnsTaken

_LOG = logging.getLogger("capsbench")


class Watcher(Protocol):
    """An object that is informed of the progress of a measurement."""

    def notify(self, text: str) -> None:
        """Take a message for people."""

    def measuring(self, plan: Plan, report: Report, left: Sequence[Cell]) -> AbstractContextManager[Sequence[Observer]]:
        """Return observers of the cells that are about to be measured, as a context for that time."""


class Logged:
    """A watcher that writes its texts to the log `capsbench`, at level INFO."""

    def notify(self, text: str) -> None:
        """Take a message for people."""
        _LOG.info("%s", text)

    @contextmanager
    def measuring(self, plan: Plan, report: Report, left: Sequence[Cell]) -> Iterator[Sequence[Observer]]:
        """Return this object, which observes the cells that are about to be measured."""
        _LOG.info("%d of %d cells to measure into %r", len(left), len(plan.cells), report)
        yield (self,)

    def started(self, cell: Cell) -> None:
        """Take note that a cell is about to be measured."""
        _LOG.info("measuring %s", cell.label())

    def finished(self, record: Record) -> None:
        """Take note of a cell's record, which is on the disk."""
        _LOG.info("%s: %s", record.cell.label(), record.status)

    def took_turns(self, state: TurnsTaken) -> None:
        """Take note of a round of cells that take turns."""
        if state.rounds is None:
            _LOG.info("%d cells take turns on a worker", len(state.cells))
        else:
            _LOG.info("round %d of %d cells", state.rounds, len(state.cells))
