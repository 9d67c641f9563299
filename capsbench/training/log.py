"""How a run goes on: metrics.jsonl (a line per step and epoch), metrics.csv (per epoch), TensorBoard where it is installed."""

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from capsbench.durable import replacing
from capsbench.errors import LostWorkError
from capsbench.training.result import EpochFigures

METRICS, TABLE, TENSORBOARD = "metrics.jsonl", "metrics.csv", "tensorboard"


@dataclass(frozen=True)
class TrainingStep:
    """One step."""

    epoch: int
    """From 1."""
    step: int
    """Of its epoch, from 1."""
    steps: int
    """Of an epoch; not in a line of metrics.jsonl."""
    images: int
    """Of this batch, over all processes."""
    loss: float
    """Per image."""
    accuracy: float
    """0 to 1."""
    gradient_norm: float
    """Of all parameters together, before the update."""
    learning_rate: float
    """Of this step."""
    memory_bytes: int
    """CUDA's allocated bytes at most so far, or this process's resident set; not in a line of metrics.jsonl."""


class TrainingObserver(Protocol):
    """Is told how training goes on."""

    def stepped(self, figures: TrainingStep) -> None:
        """A step is done."""

    def finished(self, figures: EpochFigures) -> None:
        """An epoch is done, and its checkpoint is on the disk."""

    def told(self, text: str) -> None:
        """Something that a person should know."""


class MetricsLog:
    """Writes metrics into a run's folder.

    Args:
        folder: of the run.
        epochs: those that are done, of a run that goes on.
        step: steps that are done of the epoch after them; what was written beyond them is done again, and left out.
        steps: that an epoch has.
    """

    def __init__(self, folder: Path, epochs: Sequence[EpochFigures] = (), step: int = 0, steps: int = 0) -> None:
        self.folder = folder
        self._epochs = list(epochs)
        with keeping_run(folder / METRICS):
            self._begin(step)
            self._file = (folder / METRICS).open("ab")
        try:
            with keeping_run(folder / TENSORBOARD):
                self._board = _tensorboard(folder / TENSORBOARD, len(self._epochs) * steps + step)
        except LostWorkError:
            self._file.close()
            raise

    def close(self) -> None:
        """Ends the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def stepped(self, figures: TrainingStep) -> None:
        """A line for a step."""
        line = asdict(figures)
        del line["steps"], line["memory_bytes"]
        self._append({"kind": "step", **line})
        total = (figures.epoch - 1) * figures.steps + figures.step
        self._draw("step", {"loss": figures.loss, "gradient_norm": figures.gradient_norm}, total)

    def finished(self, figures: EpochFigures) -> None:
        """A line for an epoch, and the table of all again."""
        self._epochs.append(figures)
        self._append(_epoch_line(figures))
        with keeping_run(self.folder / TABLE):
            self._write_table()
        values = figures.model_dump(exclude={"epoch"}, exclude_none=True)
        self._draw("epoch", values, figures.epoch)

    def told(self, text: str) -> None:
        """Not a metric."""

    def _append(self, line: dict[str, Any]) -> None:
        with keeping_run(self.folder / METRICS):
            self._file.write(encoded(line))
            self._file.flush()

    def _begin(self, step: int) -> None:
        """Writes again what is done: a run may have ended between a checkpoint and the line of its epoch."""
        path = self.folder / METRICS
        steps = [line for line in read_metrics(self.folder) if line["kind"] == "step"]
        with replacing(path) as file:
            for done in self._epochs:
                file.writelines(encoded(line) for line in steps if line["epoch"] == done.epoch)
                file.write(encoded(_epoch_line(done)))
            under_way = len(self._epochs) + 1
            file.writelines(encoded(line) for line in steps if line["epoch"] == under_way and line["step"] <= step)
        self._write_table()

    def _write_table(self) -> None:
        with replacing(self.folder / TABLE) as file:
            file.write(_table(self._epochs).encode())

    def _draw(self, group: str, values: dict[str, float], at: int) -> None:
        if self._board is not None:
            with keeping_run(self.folder / TENSORBOARD):
                for name, value in values.items():
                    self._board.add_scalar(f"{group}/{name}", value, at)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; a line that was cut off is left out."""
    path = folder / METRICS
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [found for line in lines if (found := parsed(line))]


def _epoch_line(figures: EpochFigures) -> dict[str, Any]:
    return {"kind": "epoch", **figures.model_dump()}


def encoded(line: dict[str, Any]) -> bytes:
    """A line of JSON, which has no infinity."""
    known = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()}
    return json.dumps(known, allow_nan=False).encode() + b"\n"


def parsed(line: bytes) -> dict[str, Any]:
    """What `encoded` wrote; nothing where it was cut off."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and {"kind", "epoch"} <= found.keys() else {}


def _table(epochs: Sequence[EpochFigures]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(EpochFigures.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(one.model_dump() for one in epochs)
    return text.getvalue()


def _tensorboard(folder: Path, done: int) -> Any:
    """A writer of a run's curves; TensorBoard forgets the steps beyond those that are done, which come again."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=done + 1)


@contextmanager
def keeping_run(path: Path) -> Iterator[None]:
    """Turns a failure to write into an error that says what is kept."""
    try:
        yield
    except OSError as error:
        raise LostWorkError(
            f"{path} cannot be written: {error.strerror}; the last checkpoint is kept",
            "make room or check permissions, then run the same command with `resume`",
        ) from None
