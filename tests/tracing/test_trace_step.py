"""A step that is followed on shapes has the bytes that the same step has when it is run: all of them, to the byte."""

import gc
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from capsbench.errors import ConfigurationError
from capsbench.measure.step_memory import memory_figures, probed_step
from capsbench.models.front import CHUNKS
from capsbench.pretend import kind_of, pretending
from capsbench.records import Configuration, MemoryFigures
from capsbench.reversible import PLAIN_STRATEGIES, REVERSIBLE_STRATEGIES
from capsbench.routing import compiled
from capsbench.system import garbage
from capsbench.tracing.follow import following
from capsbench.tracing.step_trace import TracedStep, trace_step
from helpers.made import make_configuration
from helpers.strangers import Doubled, Functional, Net, Remembering

needs_compiled = pytest.mark.skipif(not compiled.available(), reason="no compiler here")
KERNELS = ["recompute", pytest.param("compiled", marks=needs_compiled)]
EXACT = ("state_bytes", "gradient_bytes", "optimizer_bytes", "retained_bytes")


def small(model: str, **fields: Any) -> Configuration:
    """A capsule network of few capsules, on few images."""
    return make_configuration(model, 2, **({"batch_size": 2, "capsules": 4} | fields))


def both(configuration: Configuration, **options: Any) -> tuple[TracedStep, MemoryFigures]:
    """One step followed on shapes, and run under a probe."""
    return trace_step(configuration, **options), memory_figures(probed_step(configuration))


def assert_same_bytes(step: TracedStep, measured: MemoryFigures) -> None:
    """Every figure that is called exact; and modules account for all that is retained."""
    assert {name: getattr(step, name) for name in EXACT} == {name: getattr(measured, name) for name in EXACT}
    assert sum(step.retained_by_module.values()) == measured.retained_bytes


def test_the_comparison_itself_notices_a_byte(own):
    step, measured = both(own(OWN["mlp"]))
    for name in EXACT:
        with pytest.raises(AssertionError):
            assert_same_bytes(step, measured.model_copy(update={name: getattr(measured, name) + 1}))


# The networks of the package


@pytest.mark.slow
@pytest.mark.parametrize("memory", PLAIN_STRATEGIES)
@pytest.mark.parametrize(
    ("model", "kernel"),
    [
        ("capsnet", "recompute"),
        ("rescapsnet", "recompute"),
        pytest.param("rescapsnet", "compiled", marks=needs_compiled),
        pytest.param("mocapsnet", "compiled", marks=needs_compiled),
    ],
)
def test_memory_strategies(model, memory, kernel):
    assert_same_bytes(*both(small(model, memory=memory, kernel=kernel, **({"inverse": None} if model == "mocapsnet" else {}))))


@pytest.mark.slow
@pytest.mark.parametrize("inverse", ["float", "exact", "segmented"])
@pytest.mark.parametrize("memory", REVERSIBLE_STRATEGIES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_reversible_stacks(kernel, memory, inverse):
    assert_same_bytes(*both(small("mocapsnet", memory=memory, inverse=inverse, kernel=kernel)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"kernel": "reference"},
        {"kernel": "published"},
        {"front": "chunked", "batch_size": CHUNKS["cpu"] + 1},
        {"routing": "sda"},
        {"routing": "em", "iterations": 1},
        {"optimizer_step": "backward"},
        {"precision": "bf16", "kernel": "reference"},
        {"precision": "fp16", "kernel": "reference"},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_everything_else_that_changes_a_step(fields):
    assert_same_bytes(*both(small("rescapsnet", **fields)))


@pytest.mark.slow
def test_the_published_rule():
    assert_same_bytes(*both(small("mocapsnet", rule="published")))


@pytest.mark.slow
def test_numbers_of_a_graph_that_nobody_needs_are_not_found():
    """EM's last round ends in weights that nothing reads, which `save_on_cpu` keeps in a cycle that the loss does not lead to.

    Two numbers of 8 bytes in each of the stack's four layers are missed.
    """
    step, measured = both(small("rescapsnet", routing="em", kernel="reference", memory="offload"))
    assert measured.retained_bytes - step.retained_bytes == 4 * 2 * 8


@pytest.mark.slow
def fails(*_: object) -> nn.Module:
    raise ValueError("no network")


@pytest.mark.parametrize("by", ["nobody", "somebody", "this package"])
def test_a_trace_leaves_the_garbage_collector_as_it_was(by, monkeypatch):
    monkeypatch.setattr(garbage, "_frozen_for_good", by == "this package")
    gc.unfreeze() if by == "nobody" else gc.freeze()
    try:
        trace_step(small("capsnet"))
        assert (gc.get_freeze_count() > 10_000) == (by != "nobody")
        with pytest.raises(ConfigurationError, match="no network"):
            trace_step(small("capsnet"), build=fails)
        assert (gc.get_freeze_count() > 10_000) == (by != "nobody")
    finally:
        gc.freeze()  # as all tests have it


def test_a_cpu_of_the_name_predicted_is_a_cpu():
    step = trace_step(small("mocapsnet", device="cpu:predicted"))
    assert_same_bytes(step, memory_figures(probed_step(small("mocapsnet"))))


@pytest.mark.slow
@needs_compiled
def test_the_peak_of_the_default_configuration():
    """The scratch memory of libraries is tried out on this machine."""
    configuration = make_configuration("rescapsnet", 1, batch_size=32, front="chunked", kernel="compiled")
    step, measured = both(configuration, try_scratch=True)
    assert_same_bytes(step, measured)
    phases = step.trace.phases()
    assert max(phase.peak for phase in phases.values()) == pytest.approx(measured.peak_allocated_bytes, rel=0.02)
    assert phases["forward"].peak == pytest.approx(measured.peak_forward_bytes, rel=0.02)
    assert step.trace.at_peak().phase == measured.at_peak.phase
    assert step.trace.at_peak().total() == max(phase.peak for phase in phases.values())


# A user's own networks


class Checkpointed(nn.Module):
    """Evaluates its layers again in backward."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.layers, self.reentrant = nn.Sequential(nn.Linear(24, 96), nn.GELU(), nn.Linear(96, 24)), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.layers, x, use_reentrant=self.reentrant)


class OffDevice(nn.Module):
    """A network that keeps its layers' saved tensors in the host's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(24, 96), nn.ReLU(), nn.Linear(96, 24))

    def forward(self, x: Tensor) -> Tensor:
        with save_on_cpu():
            return self.layers(x)


class Tokens(nn.Module):
    """A network that takes features as a sequence."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.unflatten(1, (3, 8))
        found = self.layer(tokens, tokens, tokens)[0] if isinstance(self.layer, nn.MultiheadAttention) else self.layer(tokens)
        return found.flatten(1)


class Twice(nn.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(24, 24)
        self.other = nn.Linear(24, 24)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.one(x).tanh())


class Unused(nn.Module):
    """Has a layer that nothing calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(9, 9)

    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


def convolutional(blocks: int) -> nn.Module:
    """Convolutions with batch normalisation."""
    layers: list[nn.Module] = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    for _ in range(blocks):
        layers += [nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def recurrent() -> nn.Module:
    """A cell that is called four times."""
    cell = nn.GRUCell(24, 24)

    def run(x: Tensor) -> Tensor:
        state = torch.zeros_like(x)
        for _ in range(4):
            state = cell(x, state)
        return state

    module = Functional(run)
    module.cell = cell
    return module


OWN: dict[str, Callable[[int], nn.Module]] = {
    "mlp": lambda blocks: Net(nn.Sequential(*(layer for _ in range(blocks) for layer in (nn.Linear(24, 24), nn.ReLU())))),
    "batch normalisation": convolutional,
    "shared parameters": lambda _: Net(Twice()),
    "dropout": lambda _: Net(nn.Sequential(nn.Linear(24, 24), nn.Dropout(0.5), nn.ReLU())),
    "attention": lambda _: Net(Tokens(nn.MultiheadAttention(8, 2, batch_first=True))),
    "transformer": lambda _: Net(Tokens(nn.TransformerEncoderLayer(8, 2, 32, batch_first=True))),
    "layer normalisation": lambda _: Net(nn.Sequential(nn.LayerNorm(24), nn.GELU(), nn.RMSNorm(24))),
    "recurrent": lambda _: Net(recurrent()),
    "ctx attribute": lambda _: Net(Functional(Doubled.apply)),
    "module attribute": lambda _: Net(Remembering()),
    "checkpoint": lambda _: Net(Checkpointed(reentrant=False)),
    "reentrant checkpoint": lambda _: Net(Checkpointed(reentrant=True)),
    "save_on_cpu": lambda _: Net(OffDevice()),
    "numbers": lambda _: Net(Functional(lambda x: (x * 0.5 + 1) / 3 - x.pow(2))),
    "views": lambda _: Net(Functional(lambda x: x.t()[:, :].t().reshape(-1, 4, 6).transpose(1, 2).reshape(-1, 24).sigmoid())),
    "indices": lambda _: Net(Functional(lambda x: x.topk(24).values.cumsum(1)[:, torch.arange(23, -1, -1)])),
    "frozen": lambda _: Net(nn.Linear(24, 24).requires_grad_(False)),
    "unused parameter": lambda _: Net(Unused()),
    "fft": lambda _: Net(Functional(lambda x: torch.fft.rfft(x).abs().repeat(1, 2)[:, :24])),
    "einsum": lambda _: Net(Functional(lambda x: torch.einsum("bi,bj->bij", x, x).sum(1))),
    "buffer made in construction": lambda _: Net(nn.BatchNorm1d(24, affine=False)),
}


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Configuration]:
    """A configuration whose model is one of `OWN`, here for import."""
    module = ModuleType("own_networks")
    monkeypatch.setitem(sys.modules, "own_networks", module)

    def use(build: Callable[[int], nn.Module], **fields: Any) -> Configuration:
        module.make = lambda in_shape, num_classes, blocks: build(blocks)
        return make_configuration("own_networks:make", 2, **fields)

    return use


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_own_models(name, own):
    assert_same_bytes(*both(own(OWN[name])))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "batch normalisation", "transformer", "ctx attribute"])
def test_own_models_with_autocast(name, own):
    assert_same_bytes(*both(own(OWN[name], precision="bf16")))


# What following changes in torch


def patched() -> tuple[object, ...]:
    """The objects that `following` replaces, and the kind of device that is pretended."""
    return torch.get_rng_state, torch.autograd.graph.save_on_cpu, nn.Module.__call__, kind_of(torch.device("cpu"))


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_following_leaves_torch_as_it_was(kind):
    before = patched()
    with following(kind) as follow:
        made = torch.ones(10, device=follow.blocks.device)
        assert kind_of(made.device) == kind
        assert patched() != before or kind == "cpu"
        assert follow.blocks.alive == 40
        del made
        assert follow.blocks.alive == 0
    assert patched() == before
    assert torch.ones(1).item() == 1


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("where", ["construction", "forward", "backward", "not a module", "wrong shape"])
def test_a_step_that_fails_leaves_torch_as_it_was(kind, where, own):
    def fail(*_: Any) -> Any:
        raise KeyError(where)

    class Fails(torch.autograd.Function):
        forward = staticmethod(lambda ctx, x: x * 2)
        backward = staticmethod(fail)

    builds: dict[str, Callable[[int], Any]] = {
        "construction": fail,
        "forward": lambda _: Net(Functional(fail)),
        "backward": lambda _: Net(Functional(Fails.apply)),
        "not a module": lambda _: 7,
        "wrong shape": lambda _: Net(nn.Flatten()).last,
    }
    before = patched()
    with pytest.raises(ConfigurationError):
        trace_step(own(builds[where], device=f"{kind}:predicted"))
    assert patched() == before
    assert torch.ones(1).item() == 1


def test_pretending_ends_with_an_error():
    cpu = torch.device("cpu")
    with pytest.raises(ZeroDivisionError), pretending("cuda"):
        1 / (kind_of(cpu) != "cuda")
    assert kind_of(cpu) == "cpu"
