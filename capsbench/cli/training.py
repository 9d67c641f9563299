"""The output of `capsbench train`: the progress of a run, and its result."""

import json
import time
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.text import Text

from capsbench.cli.command import echo, echo_json
from capsbench.terminal.live import Display
from capsbench.training.log import TrainingStep
from capsbench.training.loop import RESULT
from capsbench.training.result import EpochFigures, Result
from capsbench.training.settings import TrainingSettings
from capsbench.words.units import bytes_text, duration_text

_EPOCHS = 8
_PACE_STEPS = 20
"""Number of steps over which the pace is averaged, to follow the machine without trembling."""


class TrainingProgress(Display):
    """A display of a run: live on a terminal, a line per epoch elsewhere.

    Args:
        console: console to draw on.
        settings: settings of the run.
    """

    def __init__(self, console: Console, settings: TrainingSettings) -> None:
        super().__init__(console, per_second=2)
        self._epochs = settings.epochs
        self._lines: list[Text] = []
        self._now: TrainingStep | None = None
        self._ticks: list[tuple[float, int]] = []

    def stepped(self, figures: TrainingStep) -> None:
        """Show a finished step."""
        self._now = figures
        self._ticks = [*self._ticks[-_PACE_STEPS:], (time.monotonic(), figures.images)]

    def finished(self, figures: EpochFigures) -> None:
        """Show a finished epoch."""
        parts = [f"epoch {figures.epoch}/{self._epochs}: loss {figures.train_loss:.4g}, accuracy {figures.train_accuracy:.2%}"]
        if figures.validation_accuracy is not None:
            parts.append(f"held-out {figures.validation_accuracy:.2%}")
        parts.append(f"{figures.images_per_second:.0f} images/s, {bytes_text(figures.memory_bytes)}")
        line = Text(", ".join([*parts, duration_text(figures.seconds)]))
        self._lines.append(line)
        if not self._console.is_terminal:
            left = figures.seconds * (self._epochs - figures.epoch)
            self._console.print(Text(f"{line.plain}; about {duration_text(left)} left"), soft_wrap=True)

    def notify(self, text: str) -> None:
        """Show a message."""
        self._console.print(Text(text), soft_wrap=True)

    def _render(self) -> RenderableType:
        return Group(*self._lines[-_EPOCHS:], Text(self._head(), style="bold"))

    def _head(self) -> str:
        now = self._now
        if now is None:
            return f"epoch 1/{self._epochs}"
        parts = [f"epoch {now.epoch}/{self._epochs}", f"step {now.step}/{now.steps}"]
        parts += [f"loss {now.loss:.4g}", f"accuracy {now.accuracy:.1%}"]
        if len(self._ticks) > 1:
            passed = self._ticks[-1][0] - self._ticks[0][0]
            images = sum(count for _, count in self._ticks[1:])
            steps = (self._epochs - now.epoch) * now.steps + now.steps - now.step
            parts.append(f"{images / passed:.0f} images/s")
            parts.append(bytes_text(now.memory_bytes))
            parts.append(f"about {duration_text(steps * passed / (len(self._ticks) - 1))} left")
        return ", ".join(parts)


def print_result(result: Result, folder: Path, *, as_json: bool) -> None:
    """Print the result on standard output, in words or as JSON."""
    if as_json:
        echo_json(json.loads(result.model_dump_json()))
        return
    chosen = result.best().validation_accuracy
    echo(f"test accuracy {result.test_accuracy:.2%} of {result.test_images:,} images, loss {result.test_loss:.4g}")
    why = "the last"
    if chosen is not None:
        why = f"the best of {len(result.epochs)} on {result.validation_images:,} held-out images ({chosen:.2%})"
    echo(f"with the weights of epoch {result.best_epoch}, {why}, after {duration_text(result.seconds)} of training")
    if result.data_source == "sample":
        echo("the packaged sample is small: this shows that training works, not how well the model does")
    echo(f"wrote {folder / RESULT}")
