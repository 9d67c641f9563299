"""One step of training, and one of evaluation."""

import math
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capsbench.cases.configured import Output, loss_of
from capsbench.cases.factories import BUILT_IN
from capsbench.cases.foreign import takes_labels
from capsbench.cases.step_optimizer import trainable
from capsbench.data.preprocess import Batch
from capsbench.errors import TrainingError
from capsbench.models import CapsuleLoss, CapsuleOutput
from capsbench.parallel import reshard
from capsbench.training.distributed import Processes, without_exchange
from capsbench.training.health import where_it_began
from capsbench.training.optimizers import make_optimizer
from capsbench.training.settings import TrainingSettings
from capsbench.training.whole import local_part
from capsbench.workload import autocast

DIVERGED = 100.0
"""Multiple of the first loss from which a run counts as diverged."""

SKIPPED_AT_MOST = 50
"""Largest number of steps in a row that fp16's scaler may skip while it looks for a scale."""


@dataclass(frozen=True)
class StepOutcome:
    """The outcome of a batch, over all processes."""

    loss: float
    """Loss summed over its images."""
    correct: int
    """Number of images whose class has the longest capsule."""
    gradient_norm: float = math.nan
    """Norm of the gradient of all parameters together."""


class Stepper:
    """A network with its optimizer, on a device.

    Args:
        network: network to train.
        settings: settings of the training.
        processes: processes that train it.
        steps_per_epoch: batches of an epoch.
    """

    def __init__(self, network: nn.Module, settings: TrainingSettings, processes: Processes, steps_per_epoch: int) -> None:
        self.settings, self.configuration, self.processes = settings, settings.network, processes
        self.network = network.to(processes.device).train()
        trainable(network, self.configuration.model)  # refused before other processes wait for this one
        self._parallel = processes.wrap(self.network, all_used=self.configuration.model in BUILT_IN)
        # Those of a sharded network are other ones than before.
        self._parameters = trainable(network, self.configuration.model)
        self.optimizer = make_optimizer(settings, self._parameters, steps_per_epoch)
        # Half precision loses the first gradients unless the loss is scaled up.
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=self.configuration.precision == "fp16")
        self.first_loss: float | None = None
        """Loss per image of the first step, with which later ones are compared."""
        self._takes_labels = takes_labels(network)
        self._loss = CapsuleLoss(reconstruction_weight=settings.reconstruction_weight)
        self.skipped = 0
        """Number of steps in a row that fp16's scaler has skipped."""

    def step(self, batch: Batch, images: int) -> StepOutcome:
        """Run forward, backward and optimizer. Nothing is changed if the loss or a gradient is not finite.

        Args:
            batch: this process's part of the batch.
            images: number of images of the whole batch, over all processes.

        Raises:
            TrainingError: loss or gradient are not finite, or the loss has diverged; the message names the first layer.
        """
        totals = torch.zeros(2, device=self.processes.device, dtype=torch.float64)
        parts = _parts(batch, self.settings.accumulate)
        for number, part in enumerate(parts, start=1):
            with nullcontext() if number == len(parts) else without_exchange(self._parallel):
                totals += self._forward_backward(part)
        norm = self._norm()
        # fp16's gradients are those of a loss that was scaled up.
        loss, correct, norm_value = [*self.processes.sum(totals).tolist(), float(norm) / self.scaler.get_scale()]
        self._check(loss, norm_value, images, batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return StepOutcome(loss, int(correct), norm_value)

    def evaluate(self, batches: Iterable[Batch]) -> StepOutcome:
        """Loss and correct answers over all batches, without gradients."""
        totals = torch.zeros(2, device=self.processes.device, dtype=torch.float64)
        sharded = self.processes.sharded
        self.network.eval()
        try:
            # Parameters that are gathered under inference mode could not take part in a training step.
            with torch.no_grad() if sharded else torch.inference_mode():
                for batch in batches:
                    if len(batch.labels):
                        totals += _stacked(*self._forward(self.network, batch), batch)
                    elif sharded:
                        self._forward(self.network, _blank(batch))
        finally:
            self.network.train()
            if sharded:
                reshard(self.network)
        loss, correct = self.processes.sum(totals).tolist()
        return StepOutcome(loss, int(correct))

    def _forward_backward(self, batch: Batch) -> Tensor:
        """Compute the gradients of a part of a batch; return its loss and correct answers."""
        if not len(batch.labels):
            # Processes wait for each other's gradients: one that has no image left takes a blank one, whose gradient is 0.
            self.scaler.scale(0 * self._forward(self._parallel, _blank(batch))[0]).backward()
            return torch.zeros(2, device=self.processes.device, dtype=torch.float64)
        loss, out = self._forward(self._parallel, batch)
        self.scaler.scale(loss).backward()
        return _stacked(loss, out, batch)

    def _forward(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Output]:
        with autocast(self.processes.device, self.configuration.precision):
            out: Output = network(batch.images, **({"labels": batch.labels} if self._takes_labels else {}))
        return loss_of(out, batch, self.configuration, self._loss), out

    def _check(self, loss: float, norm: float, images: int, batch: Batch) -> None:
        """Refuse to continue from values that are not finite."""
        if not (math.isfinite(loss) and self._is_finite_or_skipped(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            place = where_it_began(self.network, lambda: self._forward_backward_alone(batch), self.processes.first_known)
            what = f"the loss is {loss}" if not math.isfinite(loss) else f"the loss is {loss:.4g}, its gradient {norm}"
            raise TrainingError(f"{what}; it began in {place}", _ADVICE)
        per_image = loss / images
        if self.first_loss is None:
            self.first_loss = per_image
        if per_image > DIVERGED * max(self.first_loss, 1e-3):
            raise TrainingError(
                f"the loss diverges: {per_image:.4g} per image, and {self.first_loss:.4g} at the first step", _ADVICE
            )

    def _is_finite_or_skipped(self, norm: float) -> bool:
        """Return whether the norm is finite, or fp16's scaler skips the step while it looks for a suitable scale."""
        self.skipped = 0 if math.isfinite(norm) else self.skipped + 1
        return self.skipped == 0 or (self.scaler.is_enabled() and self.skipped <= SKIPPED_AT_MOST)

    def _norm(self) -> Tensor:
        """Norm of the gradient of all parameters together."""
        gradients = [one.grad for one in self._parameters if one.grad is not None]
        if not self.processes.sharded:
            return nn.utils.get_total_norm(gradients)
        own = nn.utils.get_total_norm([local_part(one) for one in gradients])
        return self.processes.sum(own.double() ** 2).sqrt()

    def _forward_backward_alone(self, batch: Batch) -> None:
        """Repeat the pass for examination: without the other processes, unless each has a part of the network."""
        if len(batch.labels) or self.processes.sharded:
            part = batch if len(batch.labels) else _blank(batch)
            self.scaler.scale(self._forward(self.network, part)[0]).backward()


_ADVICE = "try a lower `learning_rate`, or `precision` fp32; the last checkpoint is kept, from before this step"


def _parts(batch: Batch, count: int) -> list[Batch]:
    """A batch in parts of nearly equal size, none empty unless the batch is."""
    if count == 1 or len(batch.labels) == 0:
        return [batch]
    return [Batch(*part) for part in zip(*(tensor.tensor_split(min(count, len(batch.labels))) for tensor in batch), strict=True)]


def _blank(batch: Batch) -> Batch:
    """A batch of one black image, as a pass of a process that has no image of a batch."""
    shape = (1, *batch.images.shape[1:])
    return Batch(batch.images.new_zeros(shape), batch.labels.new_zeros(1), batch.pixels.new_zeros(shape))


def _stacked(loss: Tensor, out: Output, batch: Batch) -> Tensor:
    scores = out.lengths if isinstance(out, CapsuleOutput) else out
    correct = (scores.argmax(dim=1) == batch.labels).sum()
    return torch.stack([loss.detach().double(), correct.double()])
