"""An observer of a training step that knows the gradients around it."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from capsbench.phases import StepObserver
from capsbench.tracing.storages import gradients_in, storage_bytes, storages_of


class GradientObserver(StepObserver):
    """An observer of the gradients of a network's parameters, to subclass.

    Args:
        model: the network, before the step.
    """

    def __init__(self, model: nn.Module) -> None:
        # FSDP has others in the place of some between forward and backward.
        self._parameters = list(model.parameters())
        self._before = storages_of(gradients_in(self._parameters))
        self.gradient_bytes = 0
        """Bytes of the gradients that are alive after backward."""
        self.freed_gradients: list[int] = []
        """Bytes of each gradient of the step before that forward freed."""

    def after_forward(self, roots: Sequence[Tensor]) -> None:
        """Find the gradients that are gone."""
        still = storages_of(gradients_in(self._parameters))
        self.freed_gradients = [nbytes for storage, nbytes in self._before.items() if storage not in still]

    def after_backward(self) -> None:
        """Count the gradients that are alive."""
        gradients = gradients_in(self._parameters)
        self.gradient_bytes = storage_bytes(gradients)
        self.see_gradients(gradients)

    def see_gradients(self, gradients: Iterable[Tensor]) -> None:
        """Look at the gradients that are alive after backward."""
