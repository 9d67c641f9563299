"""The phases of one training step, for whatever observes it: a clock, a probe, a trace or a close look.

Forward ends where backward is first called, and backward where an optimizer first steps after that. A step of several forward
and backward passes has the phases of its first one: later passes belong to backward until an optimizer steps, and to the
optimizer's phase from there on.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook


class StepObserver:
    """An observer of one training step, to subclass: every method does nothing."""

    def phase(self, name: str) -> AbstractContextManager[object]:
        """Return the context in which a phase runs.

        Args:
            name: `forward`, `backward` or `optimizer`.
        """
        return nullcontext()

    def before_backward(self, roots: Sequence[Tensor]) -> None:
        """Look at the step before each call of backward, inside the phase that is running; before the first one it is forward.

        Args:
            roots: tensors from which backward starts, such as the loss.
        """

    def after_forward(self, roots: Sequence[Tensor]) -> None:
        """Look at the step between forward and backward."""

    def after_backward(self) -> None:
        """Look at the step between backward and the optimizer's step."""


UNOBSERVED = StepObserver()
"""The observer of a step that nobody looks at."""


class Phases:
    """The phases of a step that runs in the context; each ends where the next one begins.

    Args:
        observer: observer of the step.
    """

    def __init__(self, observer: StepObserver) -> None:
        self._observer = observer
        self._open = ExitStack()
        self._current = ""
        self.passes = 0
        """Calls of backward so far, without those inside another one."""
        self.parts_of_loss = 0
        """Gradients so far that have a graph themselves, such as those of a penalty."""

    def __enter__(self) -> "Phases":
        self._begin("forward")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.begin_optimizer()  # a step without an optimizer has nothing in this phase
        self._open.__exit__(kind, error, trace)

    def begin_backward(self, roots: Sequence[Tensor]) -> None:
        """Note a call of backward, the first of which ends forward.

        Args:
            roots: tensors from which backward starts, such as the loss.
        """
        self.passes += 1
        self._observer.before_backward(roots)
        if self._current == "forward":
            self._open.close()
            self._observer.after_forward(roots)
            self._begin("backward")

    def begin_optimizer(self) -> None:
        """Note a step of an optimizer, the first of which after backward ends that phase."""
        if self._current == "backward":
            self._open.close()
            self._observer.after_backward()
            self._begin("optimizer")

    @contextmanager
    def following_calls(self, stepping: Callable[[torch.optim.Optimizer], None], *, with_graphs: bool = False) -> Iterator[None]:
        """Find the phases by what the body calls: backward, by any function of torch, and the step of any optimizer of torch.

        Args:
            stepping: function that is called with each optimizer before it steps.
            with_graphs: let gradients that have a graph themselves be backward, too, not a part of forward.
        """
        real = torch.autograd._make_grads

        # `backward` and `grad` call it first, by whatever name a user knows them.
        def gradients_of(roots: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            if not _inside_backward():
                if _has_graph(sys._getframe(1)) and not with_graphs:
                    self.parts_of_loss += 1
                else:
                    self.begin_backward([one for one in roots if isinstance(one, Tensor)])
            return real(roots, *args, **kwargs)

        def step(optimizer: torch.optim.Optimizer, *_: object) -> None:
            stepping(optimizer)
            if not _inside_backward():
                self.begin_optimizer()

        hook = register_optimizer_step_pre_hook(step)
        setattr(torch.autograd, real.__name__, gradients_of)
        try:
            yield
        finally:
            setattr(torch.autograd, real.__name__, real)
            hook.remove()

    def _begin(self, name: str) -> None:
        self._current = name
        self._open.enter_context(self._observer.phase(name))


def _inside_backward() -> bool:
    """Return whether backward is running, which may call hooks, and a checkpoint's own backward."""
    return torch._C._current_graph_task_id() != -1


def _has_graph(call: FrameType) -> bool:
    """Return whether a call of `grad` computes gradients that have a graph themselves, such as those of a penalty."""
    return call.f_code.co_name == "grad" and bool(call.f_locals.get("create_graph"))
