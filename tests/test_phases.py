"""Phases of a step: where they begin and end, for a plain step, one that accumulates, and a user's own."""

from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from capsbench.errors import ConfigurationError
from capsbench.phases import Phases, StepObserver


class Log(StepObserver):
    """An observer that notes everything that it receives."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextmanager
    def phase(self, name):
        self.said.append(name)
        try:
            yield
        finally:
            self.said.append(f"/{name}")

    def before_backward(self, roots):
        self.said.append(f"roots {[tuple(root.shape) for root in roots]}")

    def after_forward(self, roots):
        self.said.append("between")

    def after_backward(self):
        self.said.append("gradients")


WHOLE = ["forward", "roots [()]", "/forward", "between", "backward", "/backward", "gradients", "optimizer", "/optimizer"]


def logged(body) -> tuple[list[str], int]:
    """Notes of an observer of a step, and the number of its passes."""
    log = Log()
    with Phases(log) as phases, phases.following_calls(lambda _: None):
        body()
    return log.said, phases.passes


def weight() -> nn.Parameter:
    return nn.Parameter(torch.ones(3))


def test_phases_that_are_begun_by_hand():
    log = Log()
    with Phases(log) as phases:
        for _ in range(3):
            phases.begin_backward([torch.zeros(())])
        phases.begin_optimizer()
        phases.begin_optimizer()
    assert log.said == [*WHOLE[:5], *WHOLE[1:2] * 2, *WHOLE[5:]]
    assert phases.passes == 3


def test_an_error_ends_the_phase_that_is_open():
    log = Log()

    def body():
        with Phases(log) as phases:
            phases.begin_backward([torch.zeros(())])
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        body()
    assert log.said == WHOLE[:6]


W, V = weight(), weight()
CALLS = {
    "backward of a tensor": lambda: W.sum().backward(),
    "backward": lambda: torch.autograd.backward([W.sum()]),
    "grad": lambda: torch.autograd.grad(W.sum(), W),
    "backward with a graph": lambda: W.square().sum().backward(create_graph=True),
    "grad by keywords": lambda: torch.autograd.grad(outputs=W.sum(), inputs=W),
    "backward by keywords": lambda: torch.autograd.backward(tensors=W.sum()),
    "grad of several": lambda: torch.autograd.grad(W.sum(), [W, V], allow_unused=True),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_backward_by_any_function_ends_forward(call):
    real = torch.autograd._engine_run_backward
    assert logged(call) == (WHOLE, 1)
    assert torch.autograd._engine_run_backward is real


def test_a_gradient_with_a_graph_is_a_part_of_forward():
    def body():
        (slope,) = torch.autograd.grad(W.square().sum(), W, create_graph=True)
        slope.square().sum().backward()

    assert logged(body) == (WHOLE, 1)
    assert logged(lambda: torch.autograd.grad(W.square().sum(), W, create_graph=True)) == (["forward", "/forward"], 0)


class Nested(torch.autograd.Function):
    """A function whose backward calls backward."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        with torch.enable_grad():
            V.sum().backward()
        return gradient


def test_a_call_inside_backward_is_none():
    assert logged(lambda: Nested.apply(W).sum().backward()) == (WHOLE, 1)


def test_an_optimizer_ends_backward():
    optimizer, seen = torch.optim.SGD([W], lr=0.1), []
    log = Log()
    with Phases(log) as phases, phases.following_calls(seen.append):
        W.sum().backward()
        assert log.said[-1] == "backward"
        optimizer.step()
        assert log.said[-1] == "optimizer"
        W.sum().backward()
        optimizer.step()
    assert log.said == [*WHOLE[:8], WHOLE[1], WHOLE[8]]
    assert phases.passes == 2
    assert seen == [optimizer] * 2
    optimizer.step()
    assert len(seen) == 2, "the hook is gone"


def test_an_optimizer_that_steps_in_forward_or_inside_backward_ends_nothing():
    optimizer = torch.optim.SGD([W], lr=0.1)
    hook = W.register_post_accumulate_grad_hook(lambda _: optimizer.step())

    def body():
        optimizer.step()
        W.sum().backward()

    try:
        assert logged(body) == (WHOLE, 1)
    finally:
        hook.remove()


def test_what_checks_an_optimizer_can_refuse_it():
    def refuse(_):
        raise ConfigurationError("not this one", "another")

    log, optimizer = Log(), torch.optim.SGD([W], lr=0.1)

    def body():
        with Phases(log) as phases, phases.following_calls(refuse):
            W.sum().backward()
            optimizer.step()

    with pytest.raises(ConfigurationError, match="not this one"):
        body()
    assert log.said == WHOLE[:6]
