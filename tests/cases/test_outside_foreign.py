"""Networks that nobody here wrote: compiled, scripted, lazy and wrapped ones, and records whose trace is of another step."""

import json
import sys
import warnings
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from capsbench.cases.configured import classifier_case
from capsbench.cases.foreign import takes_labels
from capsbench.data.preprocess import Batch
from capsbench.gate.paired_series import _by_module
from capsbench.gate.summarize import summarize
from capsbench.measure import worker
from capsbench.measure.worker import memory_pass
from capsbench.records import Cell, Record, StepFigures
from capsbench.report import Report
from capsbench.testing import memory_slope
from capsbench.tracing import step_trace
from capsbench.tracing.step_trace import trace_step
from capsbench.training import TrainingSettings, train
from capsbench.workload import Workload
from helpers.made import make_configuration, make_frame, make_record

BATCH = 8
PER_BLOCK = BATCH * 32 * 4
"""Bytes that a block below keeps: ReLU's output, 32 numbers for each image."""

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::DeprecationWarning")


class Net(nn.Module):
    """Blocks that retain `PER_BLOCK` each, compiled or not."""

    def __init__(self, blocks: int, activation=torch.relu) -> None:
        super().__init__()
        self.first = nn.Linear(784, 32)
        self.blocks = nn.ModuleList(nn.Linear(32, 32) for _ in range(blocks))
        self.last = nn.Linear(32, 10)
        self.activation = activation

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images.flatten(1))
        for block in self.blocks:
            x = self.activation(block(x))
        return self.last(x)


class Blocks(nn.Module):
    """The network in a form that TorchScript takes."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        blocks_and_relus = [layer for _ in range(blocks) for layer in (nn.Linear(32, 32), nn.ReLU())]
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), *blocks_and_relus, nn.Linear(32, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def compiled(_in_shape, _classes, blocks):
    return torch.compile(Net(blocks))


def compiled_in_place(_in_shape, _classes, blocks):
    net = Net(blocks)
    net.compile()
    return net


def compiled_blocks(_in_shape, _classes, blocks):
    net = Net(blocks)
    for index, block in enumerate(net.blocks):
        net.blocks[index] = torch.compile(block)
    return net


def compiled_function(_in_shape, _classes, blocks):
    return Net(blocks, torch.compile(torch.relu))


def compiled_in_forward(_in_shape, _classes, blocks):
    return Net(blocks, lambda x: torch.compile(torch.relu)(x))


def compiled_and_wrapped(_in_shape, _classes, blocks):
    return nn.DataParallel(torch.compile(Net(blocks)))


COMPILED = [compiled, compiled_in_place, compiled_blocks, compiled_function, compiled_in_forward, compiled_and_wrapped]


@pytest.mark.slow
@pytest.mark.parametrize("make", COMPILED)
def test_a_compiled_network_is_traced_as_its_eager_form_and_is_not_exact(make):
    found = memory_slope(make, depths=(1, 2, 3), batch_size=BATCH)
    assert found.retained_per_block == found.worst_step() == PER_BLOCK
    (note,) = found.notes
    assert found.in_words.startswith("≈ ")
    assert "torch.compile" in note


@pytest.mark.slow
def test_what_nobody_compiled_is_exact_and_the_compiler_is_left_as_it_was():
    real = torch.compile
    found = memory_slope(lambda _s, _c, blocks: Net(blocks), depths=(1, 2), batch_size=BATCH)
    assert (found.retained_per_block, found.notes) == (PER_BLOCK, ())
    assert torch.compile is real
    torch.compiler.set_stance("default")
    assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item() == 2


@pytest.mark.slow
def test_a_predicted_compiled_network_has_no_exact_figure(command, own_model):
    name = own_model(
        "import torch\nfrom torch import nn\n"
        "def make(in_shape, classes, blocks):\n"
        "    hidden = [layer for _ in range(blocks) for layer in (nn.Linear(32, 32), nn.ReLU())]\n"
        "    return torch.compile(nn.Sequential(nn.Flatten(), nn.Linear(784, 32), *hidden, nn.Linear(32, 10)))\n"
    )
    result = command("predict", "--models", name, "--depth", "1,2", "--batch-size", BATCH, "--device", "cpu", "--json")
    assert result.status == 0, result.stderr
    one, two = (record["memory"] for record in json.loads(result.stdout))
    assert two["retained_bytes"] - one["retained_bytes"] == PER_BLOCK
    assert "exact" not in one["certainty"].values()


@pytest.mark.slow
def test_a_guard_of_a_compiled_network_fails_where_it_grows_and_warns(pytester, session_in_fork):
    pytester.makepyfile("""
        import pytest, torch
        from torch import nn

        def make(in_shape, classes, blocks):
            hidden = [layer for _ in range(blocks) for layer in (nn.Linear(32, 32), nn.ReLU())]
            return torch.compile(nn.Sequential(nn.Flatten(), nn.Linear(784, 32), *hidden, nn.Linear(32, classes)))

        @pytest.mark.memory_slope(max_bytes_per_block=0)
        def test_it(memory_slope):
            memory_slope(make, depths=(1, 2))
    """)
    result = session_in_fork(pytester.path)
    result.assert_outcomes(failed=1, warnings=1)
    result.stdout.fnmatch_lines([f"*a block retains {PER_BLOCK} bytes, and may 0*"])


@pytest.mark.parametrize(
    "make",
    [
        lambda blocks: torch.jit.script(Blocks(blocks)),
        lambda blocks: torch.jit.trace(Blocks(blocks), torch.zeros(2, 1, 28, 28)),
        lambda blocks: nn.Sequential(torch.jit.script(Blocks(blocks))),
    ],
    ids=["scripted", "traced", "within"],
)
def test_torchscript_is_predicted_as_it_is_measured(make, monkeypatch):
    monkeypatch.setattr("capsbench.cases.factories.resolve_model", lambda _: lambda _s, _c, blocks: make(blocks))
    configuration = make_configuration("own:make", 2, batch_size=BATCH)
    predicted = trace_step(configuration).retained_bytes
    assert memory_pass(configuration).memory.retained_bytes == predicted


@pytest.mark.parametrize(("device", "count"), [("cpu:predicted", 0), ("cuda:predicted", 1)])
def test_torchscript_is_exact_on_a_cpu_alone(device, count):
    step = trace_step(make_configuration("own:make", device=device), build=lambda: nn.Sequential(torch.jit.script(Blocks(1))))
    assert len(step.notes) == count


# Labels.


class Labelled(nn.Module):
    """A network that keeps its labels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(784, 10)
        self.register_buffer("seen", torch.zeros(1, dtype=torch.int64))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is not None:
            self.seen = labels
        return self.layer(images.flatten(1))


class Second(Labelled):
    """A network with another argument before the labels."""

    def forward(self, images: Tensor, mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        assert mask is None
        if labels is not None:
            self.seen = labels
        return self.layer(images.flatten(1))


class HandsOn(nn.Module):
    """An adapter, as users write them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


WRAPPERS = {
    "compiled": torch.compile,
    "data parallel": nn.DataParallel,
    "adapter": HandsOn,
    "scripted": torch.jit.script,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "nested": lambda net: HandsOn(nn.DataParallel(torch.compile(net))),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("kind", [Labelled, Second])
def test_a_wrapper_hands_the_labels_on(wrap, kind):
    inner = kind()
    assert takes_labels(wrap(inner))
    with torch.compiler.set_stance("force_eager"):
        configuration, wrapped = make_configuration("own:make", batch_size=4), wrap(inner)
        batch = Batch(torch.rand(4, 1, 28, 28), torch.arange(4), torch.rand(4, 1, 28, 28))
        load = Workload(configuration, case=classifier_case(configuration, wrapped, batch))
        load.forward()
    seen = {name.rpartition(".")[2]: one for name, one in wrapped.named_buffers()}["seen"]
    assert seen.tolist() == Batch(*load.case.targets).labels.tolist()


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, HandsOn, torch.jit.script])
def test_a_wrapper_of_a_network_without_labels_gets_none(wrap):
    assert not takes_labels(wrap(Blocks(1)))


# Lazy networks.


class Lazy(nn.Module):
    def __init__(self, blocks: int, *more: nn.Module) -> None:
        super().__init__()
        hidden = [layer for _ in range(blocks) for layer in (nn.LazyLinear(32), nn.LazyBatchNorm1d(), nn.ReLU())]
        self.layers = nn.Sequential(nn.Flatten(), *hidden, nn.LazyLinear(10))
        self.unused = nn.Sequential(*more)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def eager_twin(blocks):
    sizes = [784] + [32] * blocks
    hidden = [layer for size in sizes[:-1] for layer in (nn.Linear(size, 32), nn.BatchNorm1d(32), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(32, 10))


@pytest.mark.slow
def test_a_lazy_network_is_predicted_and_measured_like_the_same_with_its_sizes(monkeypatch):
    lazy = memory_slope(lambda _s, _c, blocks: Lazy(blocks), depths=(1, 2), batch_size=BATCH)
    sized = memory_slope(lambda _s, _c, blocks: eager_twin(blocks), depths=(1, 2), batch_size=BATCH)
    assert lazy.retained_bytes == sized.retained_bytes
    monkeypatch.setattr("capsbench.cases.factories.resolve_model", lambda _: lambda _s, _c, blocks: Lazy(blocks))
    reply = memory_pass(make_configuration("own:make", 2, batch_size=BATCH))
    assert reply.memory.retained_bytes == lazy.retained_bytes[1]
    assert reply.step.agrees is True


def test_a_lazy_layer_that_forward_never_reaches_is_named():
    with pytest.raises(Exception, match=r"lazy parameter 'unused\.0\.weight'.*\n.*remove that layer, or give its sizes"):
        memory_slope(lambda _s, _c, blocks: Lazy(blocks, nn.LazyLinear(3)), depths=(1, 2))


@pytest.mark.parametrize(
    "source",
    [
        "nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(classes))",
        "torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(784, classes)))",
        "torch.jit.trace(nn.Sequential(nn.Flatten(), nn.Linear(784, classes)), torch.zeros(2, 1, 28, 28))",
    ],
    ids=["lazy", "scripted", "traced"],
)
def test_they_are_trained(own_model, tmp_path, monkeypatch, source):
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    name = own_model(f"import torch\nfrom torch import nn\ndef make(in_shape, classes, blocks):\n    return {source}\n")
    settings = TrainingSettings(network=make_configuration(name, batch_size=64), epochs=1, scale=0.1, learning_rate=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = train(settings, tmp_path / "run")
    assert result.parameters > 0
    assert result.epochs[0].train_loss > 0


# A record that knows when its trace is of another step.


class Forgetful(nn.Module):
    """A network that takes another path under a trace: it keeps twice as much when it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(784, 784)
        self.last = nn.Linear(784, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        for _ in range(1 if type(x) is not Tensor else 2):
            x = self.layer(x).sigmoid()
        return self.last(x)


@pytest.fixture
def contradicting(monkeypatch) -> Record:
    monkeypatch.setattr("capsbench.cases.factories.resolve_model", lambda _: lambda _s, _c, _b: Forgetful())
    configuration = make_configuration("own:make", 1, batch_size=BATCH)
    reply = memory_pass(configuration)
    return Record(cell=Cell(configuration=configuration), status="ok", memory=reply.memory, step=reply.step, notes=reply.notes)


def test_a_trace_that_does_not_agree_with_the_count_is_not_believed(contradicting):
    record = contradicting
    assert record.step.retained_bytes != record.memory.retained_bytes
    assert record.step.agrees is False
    assert record.believed_step() is None
    (note,) = record.notes
    assert str(record.memory.retained_bytes) in note
    assert str(record.step.retained_bytes) in note
    assert "the count is used" in note
    (row,) = make_frame([record]).to_dict("records")
    assert row["retained_bytes"] == record.memory.retained_bytes
    assert pd.isna(row["flops"])
    assert "the count is used" in row["notes"]


def test_no_module_of_it_is_named(contradicting):
    from capsbench.page.cells import Texts
    from capsbench.page.steps import modules_data

    assert modules_data([contradicting], Texts())["of"] == [-1]
    (line,) = summarize([Report.of([contradicting], "made")])[0].lines
    assert line.cells[0].retained_by_module == {}


def test_records_and_baselines_of_earlier_versions_are_looked_through():
    record = make_record().model_copy(update={"step": StepFigures(retained_by_module={"a": 7}), "schema_version": 3})
    assert record.believed_step() is None
    held = {"a": record.memory.retained_bytes}
    agreeing = record.model_copy(update={"step": StepFigures(retained_by_module=held)})
    assert agreeing.believed_step().retained_by_module == held
    (line,) = summarize([Report.of([agreeing], "made")])[0].lines
    assert _by_module(line, line.cells[0]) == held
    stale = line.cells[0].model_copy(update={"retained_by_module": {"a": 7}})
    assert _by_module(line, stale) == {}
    read = Record.model_validate_json(agreeing.model_dump_json(exclude={"step": {"retained_bytes", "agrees"}}))
    assert read.believed_step().agrees is None


@pytest.mark.slow
@pytest.mark.parametrize("model", ["rescapsnet", "mocapsnet"])
def test_the_packages_own_networks_agree(model):
    reply = memory_pass(make_configuration(model, 1))
    assert reply.step.agrees is True
    assert reply.notes == []


@pytest.mark.slow
def test_on_cuda_both_are_rounded_by_the_same_allocator(monkeypatch):
    """Bytes as asked for are fewer than the allocator hands out: compared with each other, no trace would be believed."""
    configuration = make_configuration("rescapsnet", 1, device="cuda:0", kernel="recompute")
    step = trace_step(configuration, inside=False)
    counted = step_trace.step_figures(configuration, step).retained_bytes
    assert counted % 512 == 0
    assert step.retained_bytes < counted
    figures = make_record().memory.model_copy(update={"retained_bytes": counted})
    monkeypatch.setattr(
        worker,
        "probed_step",
        lambda *_: SimpleNamespace(
            workload=SimpleNamespace(data_source=None, notes=list), probe=SimpleNamespace(notes=list), gradient_bytes=0
        ),
    )
    monkeypatch.setattr(worker, "memory_figures", lambda _: figures)
    assert memory_pass(configuration).step.agrees is True
