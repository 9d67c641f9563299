"""The launcher that measures cells on this machine, one at a time on each device, even if several sweeps run."""

import os
import tempfile
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from capsbench.cases.factories import fingerprint_of
from capsbench.cases.fingerprint import Fingerprint
from capsbench.errors import BusyDeviceError, CapsbenchError
from capsbench.measure.cell import measure_cell
from capsbench.measure.forkserver import Forks
from capsbench.measure.processes import device_identity
from capsbench.prediction import apart
from capsbench.prediction.predict import predict_cell
from capsbench.records import Cell, Plan, Record
from capsbench.system.locks import Busy, holding

Launcher = Callable[[Cell], Record]


def local_launcher(
    plan: Plan, environment: str, data_directory: Path | None = None, notify: Callable[[str], None] = lambda _: None, *,
    folder: Path = Path(), patience: float | None = None, sources: "Sources | None" = None, timed_later: Container[str] = (),
    forks: Forks | None = None,
) -> Launcher:  # fmt: skip
    """Make a launcher that measures cells in fresh processes of this machine.

    Two sweeps in two folders take turns on a device, measurement by measurement, since other work disturbs one.

    Args:
        plan: passes, number of samples and time limits.
        environment: key of this machine in environment.json.
        data_directory: folder of the real data sets.
        notify: receives a line when a cell has to wait for another sweep.
        folder: folder of the report, which is shown to a sweep that waits for this one.
        patience: seconds that a cell waits for other sweeps; None for no limit.
        sources: sources of the users' own networks; None to read them.
        timed_later: keys of cells of which memory alone is measured, because they take turns afterwards.
        forks: makes the processes that count bytes on a CPU; by default each of them imports everything itself.
    """
    known, without_time = sources or Sources(plan), plan.model_copy(update={"passes": ["memory"]})

    def launch(cell: Cell) -> Record:
        if cell.configuration.is_predicted():
            # A prediction measures nothing, so that nothing can disturb it.
            return predict_cell(cell)
        if known.has_changed(cell):
            return not_this_source(cell)
        apart.close()
        turn = partial(alone_on, cell.configuration.device, notify, folder=folder, patience=patience)
        passes = without_time if cell.key() in timed_later else plan
        record = measure_cell(cell, passes, environment=environment, data_directory=data_directory, turn=turn, forks=forks)
        return not_this_source(cell) if known.has_changed(cell) else record

    return launch


class Sources:
    """The sources of the users' own networks when a sweep began."""

    def __init__(self, plan: Plan) -> None:
        self._known: dict[str, Fingerprint | None] = {}
        for model in dict.fromkeys(cell.configuration.model for cell in plan.cells if cell.source is not None):
            try:
                self._known[model] = apart.call_for(model, fingerprint_of, model)
            except CapsbenchError:  # it cannot be imported any more, and measuring it will report why
                self._known[model] = None

    def files(self) -> list[str]:
        """Return the paths of all modules of these networks."""
        return sorted({path for known in self._known.values() if known is not None for path in known.files})

    def has_changed(self, cell: Cell) -> bool:
        """Return whether the source of a cell's network has changed since the cell was planned."""
        known = self._known.get(cell.configuration.model)
        return known is not None and (known.digest != cell.source or not known.is_current())


def not_this_source(cell: Cell) -> Record:
    """The record of a cell whose network was changed after the cell was planned."""
    return Record(
        cell=cell,
        status="error",
        message=f"the source of model '{cell.configuration.model}' was changed after this cell was planned - "
        "measure it with the same command and `resume`",
    )


@contextmanager
def alone_on(
    device: str, notify: Callable[[str], None], *, folder: Path = Path(), patience: float | None = None
) -> Iterator[None]:
    """Hold a device against other sweeps while the body runs.

    If the device cannot be locked at all, because no temporary folder can be written to, the body runs without a lock.

    Args:
        device: name of the device in configurations.
        notify: receives a line when this process waits, or other sweeps cannot be kept out.
        folder: folder of the report, which is shown to a sweep that waits for this one.
        patience: seconds to wait; None for no limit.

    Raises:
        BusyDeviceError: another sweep still holds the device.
    """
    # Its number may be another device's in another process.
    path = Path(tempfile.gettempdir()) / f"capsbench-{os.getuid()}-{device_identity(device).replace(':', '')}.lock"

    def waiting(holder: str) -> None:
        notify(f"waiting for another capsbench sweep on {device}: {holder}")

    with ExitStack() as held:
        try:
            held.enter_context(holding(path, folder, patience=patience, waiting=waiting))
        except Busy as busy:
            raise BusyDeviceError(
                f"{device} is still in use by another capsbench sweep after {patience:g} seconds: {busy.holder}",
                "wait longer with `wait`, or end it; all that was measured is kept: add `resume`",
            ) from None
        except OSError as error:
            notify(f"other sweeps on {device} are not kept out: {path} cannot be locked ({error.strerror})")
        yield
