"""Logs of a run: metrics.jsonl (a line per step and epoch), metrics.csv (per epoch), TensorBoard if it is installed."""

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from capsbench.errors import LostWorkError
from capsbench.system.durable import replacing
from capsbench.training.result import EpochFigures

METRICS_FILE, TABLE, TENSORBOARD = "metrics.jsonl", "metrics.csv", "tensorboard"


@dataclass(frozen=True)
class TrainingStep:
    """Figures of one step."""

    epoch: int
    """Number of the epoch, from 1."""
    step: int
    """Number of the step in its epoch, from 1."""
    steps: int
    """Steps of an epoch; not in a line of metrics.jsonl."""
    images: int
    """Images of this batch, over all processes."""
    loss: float
    """Loss per image."""
    accuracy: float
    """Share of correct answers, 0 to 1."""
    gradient_norm: float
    """Norm of the gradient of all parameters together, before the update."""
    learning_rate: float
    """Learning rate of this step."""
    memory_bytes: int
    """Most bytes that CUDA has allocated so far, or this process's resident set; not in a line of metrics.jsonl."""


class TrainingObserver(Protocol):
    """An object that is informed of the progress of training."""

    def stepped(self, figures: TrainingStep) -> None:
        """Take note of a finished step."""

    def finished(self, figures: EpochFigures) -> None:
        """Take note of a finished epoch, whose checkpoint is on the disk."""

    def notify(self, text: str) -> None:
        """Take note of a message for people."""


class MetricsLog:
    """An observer that writes metrics into a run's folder.

    Args:
        folder: folder of the run.
        epochs: finished epochs of a resumed run.
        step: finished steps of the epoch after them; later lines will be made again, and are removed.
        steps: steps of an epoch.
    """

    def __init__(self, folder: Path, epochs: Sequence[EpochFigures] = (), step: int = 0, steps: int = 0) -> None:
        self.folder = folder
        self._epochs = list(epochs)
        with keeping_run(folder / METRICS_FILE):
            self._begin(step)
            self._file = (folder / METRICS_FILE).open("ab")
        try:
            with keeping_run(folder / TENSORBOARD):
                self._board = _tensorboard(folder / TENSORBOARD, len(self._epochs) * steps + step)
        except LostWorkError:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def stepped(self, figures: TrainingStep) -> None:
        """Write a line for a step."""
        line = asdict(figures)
        del line["steps"], line["memory_bytes"]
        self._append({"kind": "step", **line})
        total = (figures.epoch - 1) * figures.steps + figures.step
        self._draw("step", {"loss": figures.loss, "gradient_norm": figures.gradient_norm}, total)

    def finished(self, figures: EpochFigures) -> None:
        """Write a line for an epoch, and the table of all epochs again."""
        self._epochs.append(figures)
        self._append(_epoch_line(figures))
        with keeping_run(self.folder / TABLE):
            self._write_table()
        self._draw("epoch", figures.model_dump(exclude={"epoch"}, exclude_none=True), figures.epoch)

    def notify(self, text: str) -> None:
        """Do nothing: a message is no metric."""

    def _append(self, line: dict[str, Any]) -> None:
        with keeping_run(self.folder / METRICS_FILE):
            self._file.write(encoded(line))
            self._file.flush()

    def _begin(self, step: int) -> None:
        """Rewrite the finished part: a run may have ended between a checkpoint and the line of its epoch."""
        path = self.folder / METRICS_FILE
        steps = [line for line in read_metrics(self.folder) if line["kind"] == "step"]
        with replacing(path) as file:
            for done in self._epochs:
                file.writelines(encoded(line) for line in steps if line["epoch"] == done.epoch)
                file.write(encoded(_epoch_line(done)))
            under_way = len(self._epochs) + 1
            file.writelines(encoded(line) for line in steps if line["epoch"] == under_way and line["step"] <= step)
        self._write_table()

    def _write_table(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(EpochFigures.model_fields), lineterminator="\n")
        writer.writeheader()
        writer.writerows(one.model_dump() for one in self._epochs)
        with replacing(self.folder / TABLE) as file:
            file.write(text.getvalue().encode())

    def _draw(self, group: str, values: dict[str, float], at: int) -> None:
        if self._board is not None:
            with keeping_run(self.folder / TENSORBOARD):
                for name, value in values.items():
                    self._board.add_scalar(f"{group}/{name}", value, at)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; a line that was cut off is left out."""
    path = folder / METRICS_FILE
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [found for line in lines if (found := parsed(line))]


def _epoch_line(figures: EpochFigures) -> dict[str, Any]:
    return {"kind": "epoch", **figures.model_dump()}


def encoded(line: dict[str, Any]) -> bytes:
    """A line of JSON, without infinities."""
    known = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()}
    return json.dumps(known, allow_nan=False).encode() + b"\n"


def parsed(line: bytes) -> dict[str, Any]:
    """The line that `encoded` wrote; empty if it was cut off."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and {"kind", "epoch"} <= found.keys() else {}


def _tensorboard(folder: Path, done: int) -> Any:
    """A writer of a run's curves; TensorBoard forgets the steps beyond `done`, which will come again."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=done + 1)


@contextmanager
def keeping_run(path: Path) -> Iterator[None]:
    """Turn a failure to write into an error that names what is kept."""
    try:
        yield
    except OSError as error:
        raise LostWorkError(
            f"{path} cannot be written: {error.strerror}; the last checkpoint is kept",
            "make room or check permissions, then run the same command with `resume`",
        ) from None
