"""Cells on this machine, one at a time on each device."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from capsbench.measure.cell import measure_cell
from capsbench.records import Cell, Plan, Record

Launcher = Callable[[Cell], Record]


def local_launcher(plan: Plan, environment: str, data_directory: Path | None) -> Launcher:
    """Measures cells in fresh processes of this machine.

    Two sweeps in two folders take turns on a device, cell by cell: what runs beside a measurement is in it.
    """

    def launch(cell: Cell) -> Record:
        with _device_lock(cell.configuration.device):
            return measure_cell(cell, plan, environment=environment, data_directory=data_directory)

    return launch


def _device_lock(device: str) -> FileLock:
    name = f"capsbench-{os.getuid()}-{device.replace(':', '')}.lock"
    return FileLock(Path(tempfile.gettempdir()) / name)
