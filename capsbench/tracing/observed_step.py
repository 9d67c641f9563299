"""One training step phase by phase, under an observer: a probe, a trace, or a close look."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from capsbench.tracing.storages import gradients_of, storage_bytes
from capsbench.workload import Workload


class StepObserver:
    """An observer of one training step, to subclass: every method does nothing."""

    def phase(self, name: str) -> AbstractContextManager[object]:
        """Return the context in which a phase runs.

        Args:
            name: `forward`, `backward` or `optimizer`.
        """
        return nullcontext()

    def end_forward(self, loss: Tensor) -> None:
        """Look at the step at the end of forward, inside its phase."""

    def after_forward(self, loss: Tensor) -> None:
        """Look at the step between forward and backward."""

    def after_backward(self, gradients: Iterable[Tensor]) -> None:
        """Look at the step between backward and the optimizer's step.

        Args:
            gradients: gradients of the parameters that are alive.
        """


def run_step(workload: Workload, observer: StepObserver) -> int:
    """Run forward, backward and the optimizer's step of a workload under an observer.

    Returns:
        Bytes of the gradients that are alive after backward.
    """
    with observer.phase("forward"):
        loss = workload.forward()
        observer.end_forward(loss)
    observer.after_forward(loss)
    with observer.phase("backward"):
        workload.backward(loss)
    gradients = gradients_of(workload.model)
    observer.after_backward(gradients)
    gradient_bytes = storage_bytes(gradients)
    with observer.phase("optimizer"):
        del loss, gradients
        workload.optimize()
    return gradient_bytes
