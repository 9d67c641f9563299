"""A run between its first step and its test: the loop over epochs, and its checkpoints."""

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import psutil
import torch
from torch import nn

from capsbench.cases.factories import BUILT_IN
from capsbench.cases.foreign import refusing_exit
from capsbench.data.feed import Feed
from capsbench.errors import CapsbenchError, Interrupted, StoreError, TrainingError, error_line
from capsbench.measure.environment import describe
from capsbench.measure.facts import asked
from capsbench.measure.limits import is_out_of_memory
from capsbench.system.durable import replace_file
from capsbench.training.checkpoint import Checkpoint, fill, load_checkpoint, save_checkpoint
from capsbench.training.diagnostics import DiagnosticsLog
from capsbench.training.distributed import Processes
from capsbench.training.draws import random_state, set_random_state
from capsbench.training.log import MetricsLog, TrainingObserver, TrainingStep
from capsbench.training.optimizers import learning_rate, set_learning_rate
from capsbench.training.result import EpochFigures, Result
from capsbench.training.settings import TrainingSettings
from capsbench.training.step import StepOutcome, Stepper
from capsbench.training.whole import load_optimizer_state, local_part, whole_optimizer_state, whole_weights
from capsbench.workload import seed_everything

CHECKPOINT, BEST, RESULT = "checkpoint.pt", "best.pt", "result.json"
"""Files of a run's folder: the checkpoint to resume from, the chosen weights, and the result."""


class Feeds(NamedTuple):
    """The parts of a set, on the device."""

    train: Feed
    held_out: Feed | None
    test: Feed


class Run:
    """A run between two checkpoints: the present state of everything that a checkpoint holds."""

    def __init__(
        self,
        settings: TrainingSettings,
        folder: Path,
        processes: Processes,
        network: nn.Module,
        feeds: Feeds,
        begun: Checkpoint | None,
        checkpoint_minutes: float,
    ) -> None:
        self.settings, self.folder, self.processes, self.network = settings, folder, processes, network
        self.feed, self.held_out, self.test = feeds
        if begun is not None:
            fill(self.network, begun.weights, f"checkpoint {folder / CHECKPOINT}")
        self.stepper = Stepper(self.network, settings, processes, self.feed.steps())
        self.order = torch.Generator().manual_seed(settings.seed)
        self.epochs: list[EpochFigures] = []
        self.best_epoch, self.seconds = 0, 0.0
        # Sums over the present epoch.
        self.step = 0
        self.order_began = self.order.get_state()
        self.loss, self.correct, self.images, self.epoch_seconds = 0.0, 0, 0, 0.0
        # From here on the processes draw different random numbers.
        seed_everything(settings.seed + processes.share.rank)
        if begun is not None:
            self._restore(begun.state)
        self.pace = checkpoint_minutes * 60
        self.saved_at = time.monotonic()
        self.interrupted = threading.Event()
        self.new = begun is None
        self.log: MetricsLog | None = None
        self.observers: list[TrainingObserver] = []

    def start(self) -> None:
        """Open the log, and write the first checkpoint of a new run."""
        if self.processes.first:
            self.log = MetricsLog(self.folder, self.epochs, self.step, self.feed.steps())
            self.observers.append(self.log)
        if self.new:
            self._save()
        elif self.step == 0 and self.best_epoch == len(self.epochs) > 0:
            # The run may have ended between the two files.
            self._save_best()

    def diagnose(self) -> None:
        """Write diagnostics from here on."""
        if self.processes.first:
            weight = self.settings.reconstruction_weight
            self.observers.append(DiagnosticsLog(self.folder, self.network, self.feed, weight, len(self.epochs), self.step))

    def close(self) -> None:
        """Close the open files."""
        if self.log is not None:
            self.log.close()

    def to_the_end(self, observers: Sequence[TrainingObserver], command: str | None) -> Result:
        """Run all remaining epochs and the test."""
        self.observers += observers
        with self._noting_interrupts():
            while len(self.epochs) < self.settings.epochs:
                self._epoch()
                # Ctrl-C was pressed during the evaluation; the epoch's checkpoint is on the disk.
                if self.interrupted.is_set() and not self.processes.several:
                    self._stop(f"after epoch {len(self.epochs)}")
        return self._conclude(command)

    def _epoch(self) -> None:
        """Run one epoch, or the rest of it."""
        set_learning_rate(self.stepper.optimizer, self.settings, len(self.epochs))
        self.order_began = self.order.get_state()
        began = time.perf_counter()
        for batch in self.feed.training(self.order, self.step):
            images = min(self.feed.batch_size, len(self.feed) - self.step * self.feed.batch_size)
            try:
                with naming_faults(self.settings, self.processes):
                    outcome = self.stepper.step(batch, images)
            except TrainingError as error:
                place = f"epoch {len(self.epochs) + 1}, step {self.step + 1}"
                raise TrainingError(f"{place}: {error.what}", error.hint) from None
            now = time.perf_counter()
            self.epoch_seconds, began = self.epoch_seconds + now - began, now
            self._count(outcome, images)
            self._pause()
            began = time.perf_counter()
        self._finish_epoch(None if self.held_out is None else self._evaluated(self.held_out))

    def _evaluated(self, feed: Feed) -> StepOutcome:
        with naming_faults(self.settings, self.processes):
            outcome = self.stepper.evaluate(feed.evaluation())
        if not math.isfinite(outcome.loss):
            place = (
                f"after epoch {len(self.epochs) + 1}" if len(self.epochs) < self.settings.epochs else "with the chosen weights"
            )
            raise TrainingError(
                f"the loss of images that are not trained on is {outcome.loss} {place}",
                "try a lower `learning_rate` in another `out`; the last checkpoint is kept",
            )
        return outcome

    def _count(self, outcome: StepOutcome, images: int) -> None:
        self.step += 1
        self.loss += outcome.loss
        self.correct += outcome.correct
        self.images += images
        figures = TrainingStep(
            epoch=len(self.epochs) + 1,
            step=self.step,
            steps=self.feed.steps(),
            images=images,
            loss=outcome.loss / images,
            accuracy=outcome.correct / images,
            gradient_norm=outcome.gradient_norm,
            learning_rate=learning_rate(self.stepper.optimizer),
            memory_bytes=self._memory(),
        )
        for observer in self.observers:
            observer.stepped(figures)

    def _finish_epoch(self, chosen: StepOutcome | None) -> None:
        """Keep the results of an epoch: figures, a checkpoint, and its weights if they are the best."""
        held = len(self.held_out) if self.held_out is not None else 0
        figures = EpochFigures(
            epoch=len(self.epochs) + 1,
            train_loss=self.loss / self.images,
            train_accuracy=self.correct / self.images,
            validation_loss=chosen.loss / held if chosen else None,
            validation_accuracy=chosen.correct / held if chosen else None,
            learning_rate=learning_rate(self.stepper.optimizer),
            seconds=self.epoch_seconds,
            images_per_second=self.images / self.epoch_seconds,
            memory_bytes=self._memory(),
        )
        # The first of the best epochs on the held-out images or, if none are held out, the last epoch.
        earlier = [one.validation_accuracy for one in self.epochs if one.validation_accuracy is not None]
        if figures.validation_accuracy is None or figures.validation_accuracy > max(earlier, default=-1.0):
            self.best_epoch = figures.epoch
        self.epochs.append(figures)
        self.seconds += self.epoch_seconds
        self.order_began = self.order.get_state()
        self.step = 0
        self.loss, self.correct, self.images, self.epoch_seconds = 0.0, 0, 0, 0.0
        self._save()
        if self.best_epoch == figures.epoch:
            self._save_best()
        for observer in self.observers:
            observer.finished(figures)

    def _conclude(self, command: str | None) -> Result:
        """Test the chosen weights, and keep the result."""
        chosen = self.processes.one_after_the_other(lambda: load_checkpoint(self.folder / BEST))
        fill(self.network, chosen.weights, f"checkpoint {self.folder / BEST}")
        tested = self._evaluated(self.test)
        result = Result(
            settings=self.settings,
            data_source=self.feed.source,
            train_images=len(self.feed),
            validation_images=len(self.held_out) if self.held_out is not None else 0,
            test_images=len(self.test),
            parameters=sum(one.numel() for one in self.network.parameters() if one.requires_grad),
            processes=self.processes.share.of,
            best_epoch=self.best_epoch,
            epochs=self.epochs,
            test_loss=tested.loss / len(self.test),
            test_accuracy=tested.correct / len(self.test),
            seconds=self.seconds,
            command=command,
            environment=describe(),
        )
        if self.processes.first:
            replace_file(self.folder / RESULT, result.model_dump_json(indent=1) + "\n")
        return result

    def _memory(self) -> int:
        if self.processes.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.processes.device)
        return asked(lambda: int(psutil.Process().memory_info().rss)) or 0

    # Checkpoints

    def _pause(self) -> None:
        """Write a checkpoint if it is time for one, or Ctrl-C was pressed; all processes do the same."""
        wishes = [self.interrupted.is_set(), self.processes.first and time.monotonic() - self.saved_at >= self.pace]
        if self.processes.several:
            wishes = self.processes.sum(torch.tensor(wishes, device=self.processes.device, dtype=torch.int32)).tolist()
        interrupted, due = wishes
        if interrupted or (due and self.step < self.feed.steps()):
            self._save()
        if interrupted:
            self._stop(f"in epoch {len(self.epochs) + 1} after step {self.step}")

    def _stop(self, where: str) -> NoReturn:
        raise Interrupted(
            f"interrupted {where}; {self.folder / CHECKPOINT} holds all of it", "run the same command again with `resume`"
        )

    def _save(self) -> None:
        # An update may leave weights that are not finite, which only the next step would show.
        finite = ((name, torch.isfinite(local_part(one)).all()) for name, one in self.network.named_parameters())
        # Each process of a sharded network sees its part alone.
        broken = self.processes.first_known(next((name for name, is_finite in finite if not is_finite), None))
        if broken is not None:
            raise TrainingError(
                f"'{broken}' is not finite after epoch {len(self.epochs)}, step {self.step}",
                "try a lower `learning_rate` in another `out`; the last checkpoint is kept, from before",
            )
        draws = self.processes.gather(random_state(self.processes.device))
        weights, state = whole_weights(self.network), self._state(draws)
        if self.processes.first:
            save_checkpoint(self.folder / CHECKPOINT, self.settings, weights, state)
        self.saved_at = time.monotonic()

    def _save_best(self) -> None:
        weights = whole_weights(self.network)
        if self.processes.first:
            save_checkpoint(self.folder / BEST, self.settings, weights)

    def _state(self, draws: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "epochs": [one.model_dump() for one in self.epochs],
            "best_epoch": self.best_epoch,
            "seconds": self.seconds,
            "step": self.step,
            "order": self.order_began,
            "loss": self.loss,
            "correct": self.correct,
            "images": self.images,
            "epoch_seconds": self.epoch_seconds,
            "first_loss": self.stepper.first_loss,
            "skipped": self.stepper.skipped,
            "optimizer": whole_optimizer_state(self.stepper.optimizer),
            "scaler": self.stepper.scaler.state_dict(),
            "random": draws,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            self.epochs = [EpochFigures.model_validate(one) for one in state["epochs"]]
            self.best_epoch, self.seconds, self.step = state["best_epoch"], state["seconds"], state["step"]
            self.order.set_state(state["order"])
            self.loss, self.correct, self.images = state["loss"], state["correct"], state["images"]
            self.epoch_seconds, self.stepper.first_loss = state["epoch_seconds"], state["first_loss"]
            self.stepper.skipped = state.get("skipped", 0)
            load_optimizer_state(self.stepper.optimizer, state["optimizer"])
            self.stepper.scaler.load_state_dict(state["scaler"])
            draws = state["random"]
            set_random_state(draws[self.processes.share.rank % len(draws)], self.processes.device)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
            raise StoreError(
                f"checkpoint {self.folder / CHECKPOINT} cannot be resumed from: {type(error).__name__}: {error}",
                "restore it, or choose another `out` to begin again",
            ) from None

    @contextmanager
    def _noting_interrupts(self) -> Iterator[None]:
        """Ctrl-C ends the run after the step that is under way, with a checkpoint; a second one ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(*_: object) -> None:
            self.interrupted.set()
            signal.signal(signal.SIGINT, before)
            for observer in self.observers:
                observer.notify("interrupted: keeping a checkpoint after this step")

        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


@contextmanager
def naming_faults(settings: TrainingSettings, processes: Processes) -> Iterator[None]:
    """Report in two lines that memory is short, or the error that a user's own model raised."""
    network = settings.network
    try:
        with refusing_exit():
            yield
    except CapsbenchError:
        raise
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise TrainingError(
                f"there is not enough memory on {processes.device} for batches of {network.batch_size} images",
                "choose a smaller `batch_size`, a larger `accumulate` (the same loss, but for sda), or another `memory`",
            ) from None
        if network.model in BUILT_IN:
            raise
        raise TrainingError(
            f"model '{network.model}' failed: {error_line(error)}",
            "it takes images [B, *in_shape] and returns class scores [B, classes] or a CapsuleOutput",
        ) from error
