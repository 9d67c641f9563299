"""The phases of one training step, for whatever observes it: a clock, a probe, a trace or a close look.

Forward ends where backward is first called, and backward where an optimizer first steps after that. A step of several forward
and backward passes has the phases of its first one: later passes belong to backward until an optimizer steps, and to the
optimizer's phase from there on.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import TracebackType
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
    def following_calls(self, stepping: Callable[[torch.optim.Optimizer], None]) -> Iterator[None]:
        """Find the phases by what the body calls: backward, by any function of torch, and the step of any optimizer of torch.

        Args:
            stepping: function that is called with each optimizer before it steps.
        """
        inside = 0

        def seen(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
            signature = inspect.signature(real)

            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal inside
                given = signature.bind(*args, **kwargs).arguments
                roots = next(iter(given.values()))
                # Gradients that have a graph themselves, such as those of a penalty, are a part of forward.
                if not (inside or (name == "grad" and given.get("create_graph"))):
                    roots_here = [roots] if isinstance(roots, Tensor) else roots
                    self.begin_backward([one for one in roots_here if isinstance(one, Tensor)])
                inside += 1
                try:
                    return real(*args, **kwargs)
                finally:
                    inside -= 1

            return call

        def step(optimizer: torch.optim.Optimizer, *_: object) -> None:
            stepping(optimizer)
            if not inside:
                self.begin_optimizer()

        # A method of tensors calls the function of this name.
        real = {name: getattr(torch.autograd, name) for name in ("backward", "grad")}
        hook = register_optimizer_step_pre_hook(step)
        for name, function in real.items():
            setattr(torch.autograd, name, seen(name, function))
        try:
            yield
        finally:
            for name, function in real.items():
                setattr(torch.autograd, name, function)
            hook.remove()

    def _begin(self, name: str) -> None:
        self._current = name
        self._open.enter_context(self._observer.phase(name))
