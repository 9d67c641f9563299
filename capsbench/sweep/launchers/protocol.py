"""The protocol between the driver of a sweep and the queue in which its tasks wait.

Tasks and findings travel as JSON, so that a worker with another version can say so, where a pickled object would fail.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict

from capsbench.records import SCHEMA_VERSION, Cell, Plan, Record, Round


class Task(BaseModel):
    """Cells that one worker measures on one device: a single one, or all that take turns."""

    model_config = ConfigDict(extra="forbid")

    number: int
    """Number of the task, which no other task of the sweep has."""
    plan: Plan
    """Cells and passes of the task, number of samples and time limits. Each cell is measured by itself, unless `in_turn`."""
    in_turn: bool = False
    """True if the cells take turns in one process. Their memory has been counted by earlier tasks."""
    known: list[Record] = []
    """Records of cells that take turns, as far as there are any: their memory, and turns of an earlier sweep."""
    rounds: list[Round] = []
    """Rounds of these cells that are in no record yet."""
    data_directory: Path | None = None
    """Folder of the real data sets, where a worker has it."""
    folder: Path = Path()
    """Folder of the report, which is shown to other sweeps that wait for a device."""
    patience: float | None = None
    """Seconds that a cell waits for other sweeps on its device; None for no limit."""
    package: str
    """Digest of the driver's capsbench, which a worker must have too."""
    schema_version: int = SCHEMA_VERSION
    kind: str | None = None
    """Key of the environment in which the task must be measured; None for any."""

    def cells(self) -> list[Cell]:
        """The cells of the task."""
        return self.plan.cells

    def needs_gpu(self) -> bool:
        """Return whether the task needs a GPU for itself."""
        return self.plan.cells[0].configuration.device_kind() == "cuda"

    def threads(self) -> int:
        """Number of CPU threads that the task computes with."""
        return max(cell.configuration.threads or 1 for cell in self.plan.cells)

    def takes_times(self) -> bool:
        """Return whether neighbours on the same machine would disturb the task."""
        return "time" in self.plan.passes


class Findings(BaseModel):
    """The result of a task, as its worker sends it."""

    model_config = ConfigDict(extra="forbid")

    records: list[Record] = []
    rounds: list[Round] = []
    """Rounds of cells that took turns with turns that are in no record."""
    environment: str = ""
    """Key of the worker's environment."""
    description: dict[str, object] = {}
    """The environment, as in environment.json."""
    node: str = ""
    """Name of the worker's machine, for messages alone."""
    texts: list[str] = []
    """Messages for people."""
    refusal: list[str] = []
    """The two lines of an error for which no task can be measured there; empty where there is none."""


class Done(BaseModel):
    """A task that has come back."""

    number: int
    findings: Findings


class Lost(BaseModel):
    """A task whose worker has died, or cannot be reached."""

    number: int
    why: str
    """The reason in words."""
    status: Literal["error", "oom"] = "error"
    """Status of its cells if no worker can measure them; `oom` if the machine had no memory left."""
    counts: float = 1.0
    """Part of a try that it costs: 1 if a worker died; less if all of its machine did, which is seldom due to the task; 0 if the
    task was never begun, so that it may be given to another worker without limit."""


class Engine(Protocol):
    """A queue of tasks, and workers that take them from it.

    Each task is measured by one worker at a time, with one GPU for itself if it needs one. Nothing is tried again: a task that
    is lost is reported, and the driver submits it again under the same number.
    """

    def kinds(self, sample: Task) -> Mapping[str, float]:
        """Return the number of tasks that each kind of machine can take at once, by the key of its environment.

        Nothing where machines are not known beforehand. Tasks with one of these keys as their `kind` are measured there.

        Args:
            sample: a task, which tells what the others need.

        Raises:
            ConfigurationError: a machine can measure none, since it lacks this package.
        """

    def room(self, sample: Task) -> float:
        """Return the number of tasks like this one that can be measured at once, as far as it is known; 1 if it is not."""

    def left_behind(self) -> list[tuple[Task, Findings]]:
        """Return what workers have found for a driver of the same report that was killed, and end what they still do for it."""

    def submit(self, tasks: Sequence[Task]) -> None:
        """Add tasks to the end of the queue.

        Raises:
            ConfigurationError: no machine can ever take one of them.
        """

    def wait(self, seconds: float) -> list[Done | Lost]:
        """Return tasks that have ended, as soon as there is one, or nothing after this time."""

    def cancel(self, numbers: Sequence[int]) -> None:
        """Take tasks out of the queue, and end those that are being measured; they are not reported any more."""

    def close(self) -> None:
        """End all tasks, and release every worker."""
