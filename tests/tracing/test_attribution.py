"""Holders of the memory that forward leaves alive: the right module is named, and the modules' bytes add up to the total."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from capsbench.cases.factories import build_model
from capsbench.tracing.attribution import Modules
from capsbench.tracing.step_trace import TracedStep, trace_step
from helpers.made import make_configuration
from helpers.strangers import Doubled, Functional, Net, Remembering

BATCH, WIDTH = 4, 24
ACTIVATION = BATCH * WIDTH * 4
"""Bytes of one activation of `Net`."""


def traced(model: nn.Module, **fields: Any) -> TracedStep:
    """The step of a network that is already there."""
    step = trace_step(make_configuration("own:make", 1, batch_size=BATCH, **fields), build=lambda: model)
    assert sum(step.retained_by_module.values()) == step.retained_bytes
    return step


def test_a_layer_that_saves_its_input():
    step = traced(Net(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))))
    # The images are no part of the step; each layer after the first keeps what came in.
    kept = {name: nbytes for name, nbytes in step.retained_by_module.items() if name}
    assert kept == {"middle.0": ACTIVATION, "middle.1": ACTIVATION, "last": ACTIVATION}


def test_a_convolution_that_saves_its_input():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3 * 24 * 24, 10))
    kept = traced(net).retained_by_module
    assert kept["1"] == BATCH * 2 * 26 * 26 * 4
    assert kept["3"] == BATCH * 3 * 24 * 24 * 4
    assert "0" not in kept


def test_what_two_save_belongs_to_the_first():
    """ReLU keeps its output, which the next layer keeps too."""
    kept = traced(Net(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()))).retained_by_module
    assert kept["middle.1"] == ACTIVATION
    assert "last" not in kept


def test_a_ctx_attribute_belongs_to_the_module_that_called_the_function():
    class Sum(nn.Module):
        """A layer that makes a tensor for a function to keep."""

        def forward(self, x: Tensor) -> Tensor:
            return Doubled.apply(x + 1)

    kept = traced(Net(nn.Sequential(nn.Identity(), Sum()))).retained_by_module
    assert kept["middle.1"] == ACTIVATION


def test_an_attribute_belongs_to_its_module():
    """The tensor of the step before is freed at once and adds nothing; the output that `exp` saves stays its own."""
    kept = traced(Net(nn.Sequential(nn.Identity(), Remembering()))).retained_by_module
    assert kept["middle.1"] == ACTIVATION


def test_attributes_that_pile_up_are_retained():
    class Hoarder(nn.Module):
        """Forgets nothing."""

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(x.detach() * 3)
            return x

    kept = traced(Net(nn.Sequential(nn.Identity(), Hoarder()))).retained_by_module
    assert kept["middle.1"] == ACTIVATION


def test_a_closure_belongs_to_its_module():
    found: list[Tensor] = []

    def remember(x: Tensor) -> Tensor:
        found.append(x.detach() + 1)
        return x

    kept = traced(Net(Functional(remember))).retained_by_module
    assert kept["middle"] == ACTIVATION


class Keeps(torch.autograd.Function):
    """Saves a tensor that it has no use for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, more: Tensor) -> Tensor:
        ctx.save_for_backward(more)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        assert ctx.saved_tensors
        return grad, None


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["stored", "offload"])
@pytest.mark.parametrize("place", [1, 2])
def test_a_seeded_tensor_is_told_of_its_layer(place, memory):
    configuration = make_configuration("rescapsnet", 2, batch_size=2, capsules=4, memory=memory)
    before = trace_step(configuration)

    def build() -> nn.Module:
        net = build_model(configuration)
        make_faulty(net.get_submodule(capsule_layers(net)[place]))
        return net

    after = trace_step(configuration, build=build)
    name = capsule_layers(build_model(configuration))[place]
    grown = {
        key: nbytes - before.retained_by_module.get(key, 0)
        for key, nbytes in after.retained_by_module.items()
        if nbytes != before.retained_by_module.get(key, 0)
    }
    assert grown == {name: 2 * 4 * 8 * 4}
    assert after.retained_bytes - before.retained_bytes == 2 * 4 * 8 * 4


def make_faulty(layer: nn.Module) -> None:
    """A layer after a careless change: one more tensor is kept for backward."""
    kind = type(layer)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        out = kind.forward(self, x)
        return Keeps.apply(out, out.detach() + 1)

    layer.__class__ = type(kind.__name__, (kind,), {"forward": forward})


def capsule_layers(net: nn.Module) -> list[str]:
    """Names of the layers of capsules, in their order."""
    return [name for name, module in net.named_modules() if type(module).__name__ == "CapsuleLayer"]


@pytest.mark.slow
def test_the_same_network_twice_says_the_same():
    configuration = make_configuration("mocapsnet", 2, batch_size=2, capsules=4)
    assert trace_step(configuration).retained_by_module == trace_step(configuration).retained_by_module


def test_calls_are_watched_only_inside():
    class Told:
        place = ""

    real, told = nn.Module.__call__, Told()
    seen = []
    net = nn.Sequential(nn.Linear(3, 3), Functional(lambda x: seen.append(told.place) or x))
    other = nn.Linear(3, 3)
    with Modules(net, told).watched():
        net(torch.ones(1, 3))
        other(torch.ones(1, 3))
        assert told.place == ""
    assert seen == ["1"]
    with pytest.raises(RuntimeError), Modules(net, told).watched():
        net(torch.ones(1, 4))
    assert nn.Module.__call__ is real
    assert told.place == ""
