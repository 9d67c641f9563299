"""Cells on this machine, one at a time on each device."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from capsbench.measure import apart
from capsbench.measure.cell import measure_cell
from capsbench.measure.predict import predict_cell
from capsbench.records import Cell, Plan, Record

Launcher = Callable[[Cell], Record]


def local_launcher(
    plan: Plan, environment: str, data_directory: Path | None = None, notify: Callable[[str], None] = lambda _: None
) -> Launcher:
    """Measures cells in fresh processes of this machine.

    Two sweeps in two folders take turns on a device, cell by cell: what runs beside a measurement is in it.

    Args:
        plan: which passes, how many samples, how long at most.
        environment: key of this machine in environment.json.
        data_directory: where real data sets lie.
        notify: is told when a cell has to wait for another sweep.
    """

    def launch(cell: Cell) -> Record:
        if cell.configuration.is_predicted():
            # Nothing is measured, so that nothing can disturb it.
            return predict_cell(cell)
        apart.close()
        with alone_on(cell.configuration.device, notify):
            return measure_cell(cell, plan, environment=environment, data_directory=data_directory)

    return launch


@contextmanager
def alone_on(device: str, notify: Callable[[str], None]) -> Iterator[None]:
    """Holds a device against other sweeps; `notify` is told if it has to be waited for."""
    lock = FileLock(Path(tempfile.gettempdir()) / f"capsbench-{os.getuid()}-{device.replace(':', '')}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        notify(f"waiting for another capsbench sweep on {device}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
