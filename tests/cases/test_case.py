"""Cases: networks that nobody here wrote, measured and predicted to the byte; inputs, losses and optimizers; and wrong use."""

import json
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import EntryPoint
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import capsbench
from capsbench import Case
from capsbench.cases import factories
from capsbench.cases.case import CallArguments
from capsbench.cases.configured import build_case, case_on_device
from capsbench.cases.factories import facts_of
from capsbench.cases.foreign import settings_of
from capsbench.catalog import OWN_INPUTS
from capsbench.errors import ConfigurationError
from capsbench.measure.step_memory import memory_figures, probed_step
from capsbench.options import Configuration
from capsbench.prediction.predict import predict_memory, trace_for
from capsbench.records import Cell, MemoryFigures
from capsbench.sweep.asked import Sweep
from capsbench.sweep.plan import expand
from capsbench.tracing.step_trace import TracedStep
from capsbench.tracing.storages import state_of, storage_bytes
from capsbench.workload import Workload
from helpers import networks_of_others as others
from helpers.commands import assert_refused
from helpers.comparing import bytes_other_than, kept_bytes, tensors_within
from helpers.held import Held

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.usefixtures("warm"),
]

FIGURES = (
    "state_bytes", "gradient_bytes", "optimizer_bytes", "retained_bytes", "peak_allocated_bytes", "inference_peak_bytes",
    "inference_kept_bytes",
)  # fmt: skip
PEAKS = {"peak_allocated_bytes", "inference_peak_bytes"}

NUMBER = 8
"""Bytes of a number that a tensor is multiplied by: autograd keeps it as a tensor, which hooks do not see."""
NUMBERS = {"swin": 2, "gpt2": 6, "gpt2_checkpointed": 6, "t5": 1, "detector": 6}
"""Such numbers: of attention's scale, of GELU's formula, of the scale before T5's last layer, of the focal loss."""
CHECKPOINTS = {"gpt2_checkpointed": 2}
"""Blocks that are computed again: each keeps the state of the random numbers that it began with."""

READ_VALUES = {"detector": "reads a tensor's value"}
"""Networks that depend on values, so that no figure is called exact, with the note that says why."""


class Seen(NamedTuple):
    """A case that was measured and traced."""

    workload: Workload
    measured: MemoryFigures
    traced: TracedStep
    predicted: MemoryFigures


def configured(name: str, **settings: Any) -> Configuration:
    """The configuration of a case, as a sweep would make it for one thread."""
    (cell,) = cells_of(name, **settings)
    return cell.configuration


def cells_of(name: str, **settings: Any) -> list[Cell]:
    """The cells of a case, of two blocks if it has any."""
    return expand(Sweep((name,), [2], "cpu", depths_chosen=False, settings=settings, threads=1))


@cache
def seen(name: str) -> Seen:
    """A network of others, measured and traced."""
    if name in others.PACKAGES:
        pytest.importorskip(others.PACKAGES[name])
    model = f"helpers.networks_of_others:{name}"
    configuration = configured(model)
    step = probed_step(configuration)
    traced = trace_for(configuration, inference=True)
    return Seen(step.workload, memory_figures(step), traced, predict_memory(configuration, traced).memory)


def figures_of(name: str, **settings: Any) -> tuple[MemoryFigures, MemoryFigures]:
    """The measured and the predicted figures of a case."""
    configuration = configured(name, **settings)
    predicted = predict_memory(configuration, trace_for(configuration, inference=True)).memory
    return memory_figures(probed_step(configuration)), predicted


def tensors_of(function: object) -> Iterator[Tensor]:
    """The tensors that a function has from around it."""
    cells = getattr(function, "__closure__", None) or ()
    return (cell.cell_contents for cell in cells if isinstance(cell.cell_contents, Tensor))


# Networks of others


@pytest.mark.parametrize("name", others.NETWORKS)
def test_retained_bytes_are_those_that_autograd_keeps(name):
    load, measured, *_ = seen(name)
    kept = kept_bytes(load.forward, [*state_of(load.model), *load.given, *tensors_of(load.case.loss)])
    numbers, states = NUMBER * NUMBERS.get(name, 0), CHECKPOINTS.get(name, 0) * torch.get_rng_state().nbytes
    assert measured.retained_bytes == kept + numbers + states


@pytest.mark.parametrize("name", others.NETWORKS)
def test_a_prediction_has_every_byte_of_the_measurement(name):
    _, measured, traced, predicted = seen(name)
    # What a detector keeps of its boxes in inference depends on their scores.
    known = [one for one in FIGURES if name != "detector" or not one.startswith("inference")]
    assert {one: getattr(predicted, one) for one in known} == {one: getattr(measured, one) for one in known}
    assert sum(traced.retained_by_module.values()) == measured.retained_bytes
    if name in READ_VALUES:
        assert READ_VALUES[name] in " ".join(traced.notes)
        assert set(predicted.certainty.values()) == {"guessed"}
    else:
        assert (traced.notes, traced.unsure) == ((), ())
        exact = {one for one, certainty in predicted.certainty.items() if certainty == "exact"}
        assert exact == set(FIGURES) - PEAKS


@pytest.mark.parametrize("name", others.NETWORKS)
def test_inference_keeps_its_outputs(name):
    load, measured, *_ = seen(name)
    with load.evaluating():
        output = load.inference()
    kept = bytes_other_than(tensors_within(output), [*state_of(load.model), *load.given])
    if name == "scripted":  # TorchScript keeps what its backward would need even where there are no gradients
        assert measured.inference_kept_bytes >= kept
    else:
        assert measured.inference_kept_bytes == kept
    assert measured.inference_peak_bytes >= measured.state_bytes + measured.inference_kept_bytes


@pytest.mark.parametrize("blocks", [1, 3])
def test_a_cache_of_keys_and_values_grows_by_its_width_in_each_layer(blocks):
    pytest.importorskip("transformers")
    batch_size, width, kept = 3, 16, {}
    for length in (1, 2, 33):
        sizes = {"length": length, "batch_size": batch_size, "width": width}
        (cell,) = expand(Sweep((f"{others.__name__}:gpt2_generating",), [blocks], "cpu", settings=sizes, threads=1))
        measured = memory_figures(probed_step(cell.configuration))
        predicted = predict_memory(cell.configuration, trace_for(cell.configuration, inference=True)).memory
        for field in ("inference_peak_bytes", "inference_kept_bytes"):
            assert getattr(predicted, field) == getattr(measured, field)
        kept[length] = measured.inference_kept_bytes
    per_token = 2 * blocks * width * batch_size * torch.float32.itemsize
    assert (kept[2] - kept[1], kept[33] - kept[1]) == (per_token, 32 * per_token)


def test_a_peak_of_inference_has_weights_and_batch_but_no_optimizer():
    measured, predicted = figures_of(f"{__name__}:simple")
    # Two layers, of which the second needs the output of the first.
    weights, batch, output = 2 * 4 * (8 * 8 + 8), 4 * (4 * 8), 4 * (4 * 8)
    assert measured.optimizer_bytes > 2 * weights
    for found in (measured, predicted):
        assert (found.inference_peak_bytes, found.inference_kept_bytes) == (weights + batch + 2 * output, output)


def gru(layers=1, length=5, both_ways=0):
    layer = nn.GRU(24, 24, layers, batch_first=True, bidirectional=bool(both_ways))
    return Case(layer, torch.ones(4, length, 24), loss=lambda out: out[0].sum())


@pytest.mark.parametrize("settings", [{}, {"both_ways": 1}, {"layers": 2, "length": 8}])
def test_inference_adds_biases_in_place_as_it_does_with_values(settings):
    measured, predicted = figures_of(f"{__name__}:gru", **settings)
    assert {one: getattr(predicted, one) for one in FIGURES} == {one: getattr(measured, one) for one in FIGURES}


def test_an_inference_that_fails_leaves_a_note_and_the_training_step():
    configuration = configured(f"{__name__}:trains_alone")
    step, traced = probed_step(configuration), trace_for(configuration, inference=True)
    measured, predicted = memory_figures(step), predict_memory(configuration, traced).memory
    assert measured.retained_bytes == predicted.retained_bytes > 0
    assert predicted.certainty["retained_bytes"] == "exact"
    for found, notes in ((measured, step.workload.notes()), (predicted, traced.inference.notes)):
        assert found.inference_peak_bytes is found.inference_kept_bytes is None
        assert list(notes) == ["the memory of an inference step is not known: RuntimeError: it only trains"]
    assert step.workload.model.training


def test_what_inference_assumes_is_no_guess_of_the_training_step():
    """The network reads a value where it is evaluated alone."""
    configuration = configured(f"{__name__}:reads_in_inference")
    traced = trace_for(configuration, inference=True)
    assert traced.notes == ()
    assert any("reads a tensor's value" in note for note in traced.inference.notes)
    certainty = predict_memory(configuration, traced).memory.certainty
    assert certainty["inference_kept_bytes"] == certainty["inference_peak_bytes"] == "guessed"
    assert certainty["retained_bytes"] == "exact"


@pytest.mark.slow
def test_a_compiled_case_is_measured_and_its_prediction_is_guessed():
    _, measured, traced, predicted = seen("compiled")
    assert measured.state_bytes == predicted.state_bytes
    assert measured.retained_bytes <= predicted.retained_bytes
    assert "torch.compile" in " ".join(traced.notes)
    assert set(predicted.certainty.values()) == {"guessed"}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "axis"), [("gpt2", "length"), ("lstm", "length"), ("graph", "nodes"), ("unet", "size")])
def test_any_number_that_a_case_takes_changes_its_bytes(name, axis):
    if name in others.PACKAGES:
        pytest.importorskip(others.PACKAGES[name])
    sizes = [
        trace_for(configured(f"helpers.networks_of_others:{name}", **{axis: value})).retained_bytes for value in (16, 32, 64)
    ]
    assert sizes == sorted(set(sizes))


# Inputs


class Adds(nn.Module):
    """Adds what it is given, and remembers how it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.saw: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.saw.append((args, kwargs))
        leaves, _ = torch.utils._pytree.tree_flatten((args, dict(kwargs)))
        return self.scale * sum(leaf.sum() for leaf in leaves if isinstance(leaf, Tensor))


ONE, TWO = torch.ones(2), torch.full((2,), 2.0)
INPUTS = {
    "tensor": (ONE, 1, ()),
    "tuple": ((ONE, TWO), 2, ()),
    "list": ([ONE, TWO], 2, ()),
    "dictionary": ({"x": ONE, "y": TWO}, 0, ("x", "y")),
    "mapping": (Held(x=ONE, y=TWO), 0, ("x", "y")),
    "nested": (({"x": ONE, "more": [TWO, (ONE,)]},), 1, ()),
    "arguments": (CallArguments((ONE,), {"y": TWO}), 1, ("y",)),
}


@pytest.mark.parametrize(("given", "positional", "named"), INPUTS.values(), ids=INPUTS)
def test_inputs_are_given_by_position_or_by_name(given, positional, named):
    case = Case(Adds(), given).map_tensors(lambda tensor: tensor * 10)
    assert case.output(training=True).item() in (20, 60, 80)
    ((args, kwargs),) = case.module.saw
    assert (len(args), tuple(kwargs)) == (positional, named)
    assert {id(tensor) for tensor in Case(Adds(), given).tensors()} <= {id(ONE), id(TWO)}


def test_a_tensor_that_is_given_twice_is_moved_once():
    ids = torch.ones(2)
    case = Case(Adds(), {"input_ids": ids, "labels": ids}, loss=lambda out, _: out, targets=(ids,), inference=(ids,))
    assert case.tensors() == [ids]
    moved = case.map_tensors(lambda tensor: tensor + 1)
    assert moved.inputs["input_ids"] is moved.inputs["labels"] is moved.targets[0] is moved.inference[0] is not ids
    assert case.inputs["labels"] is ids, "the case itself is left as it is"


def test_a_case_is_moved_with_its_network():
    case = Case(Adds(), (torch.ones(1, 2), 3), loss=lambda out, _: out, targets={"labels": torch.ones(1)}).to(
        torch.device("meta")
    )
    assert {tensor.device.type for tensor in [*case.tensors(), *case.module.parameters()]} == {"meta"}
    assert case.inputs[1] == 3


def test_inference_has_inputs_of_its_own():
    case = Case(Adds(), (ONE, TWO), inference=(TWO,))
    assert case.output(training=True).item() == 6
    assert case.output(training=False).item() == 4
    assert Case(Adds(), (ONE,)).output(training=False).item() == 2


# Losses and optimizers


class Output(NamedTuple):
    """An output with a loss."""

    loss: Tensor
    logits: Tensor


class Returns(nn.Module):
    """A network whose output is a function of its parameter."""

    def __init__(self, function) -> None:
        super().__init__()
        self.weight, self.function = nn.Parameter(torch.full((3,), 2.0)), function

    def forward(self, _: Tensor) -> Any:
        return self.function(self.weight)


LOSSES = {
    "output": (lambda w: w.sum(), {}, 6),
    "one element": (lambda w: w.sum().reshape(1, 1), {}, 6),
    "attribute": (lambda w: Output(w.sum(), w), {}, 6),
    "key": (lambda w: {"loss": w.sum()}, {}, 6),
    "function": (lambda w: (w, None), {"loss": lambda out: out[0].mean()}, 2),
    "targets": (lambda w: w, {"loss": lambda out, given: (out * given).sum(), "targets": torch.ones(3)}, 6),
}


@pytest.mark.parametrize(("output", "options", "expected"), LOSSES.values(), ids=LOSSES)
def test_losses(output, options, expected):
    case = Case(Returns(output), ONE, **options)
    assert case.loss_of(case.output(training=True), "mine").item() == expected


NO_LOSSES = {
    "of a batch": (lambda w: w, {}, "a tensor of shape [3], which is not a loss"),
    "none": (lambda w: None, {}, "None, which is not a loss and has no `loss`"),
    "no loss inside": (lambda w: {"logits": w}, {}, "returned dict, which is not a loss and has no `loss`"),
    "a number": (lambda w: w, {"loss": lambda out: out.sum().item()}, "returned float, which is not a loss"),
    "detached": (lambda w: w, {"loss": lambda out: out.detach().sum()}, "depends on no parameter"),
}


@pytest.mark.parametrize(("output", "options", "words"), NO_LOSSES.values(), ids=NO_LOSSES)
def test_what_is_no_loss_is_refused(output, options, words):
    case = Case(Returns(output), ONE, **options)
    with pytest.raises(ConfigurationError) as raised:
        case.loss_of(case.output(training=True), "mine")
    assert "'mine'" in raised.value.what
    assert words in raised.value.what
    assert raised.value.hint


def test_optimizers():
    def stepped(**options: Any) -> Workload:
        load = Workload(configured(CASE_NAME), case=Case(Returns(Tensor.sum), ONE, **options))
        load.train_step()
        assert all(parameter.grad is None for parameter in load.model.parameters())
        return load

    assert isinstance(stepped().optimizer, torch.optim.Adam)
    own = stepped(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5))
    assert own.model.weight.tolist() == [1.5] * 3
    none = stepped(optimizer=None)
    assert none.optimizer is None
    assert none.model.weight.tolist() == [2.0] * 3


def test_an_optimizer_function_that_returns_none_is_refused():
    case = Case(Returns(Tensor.sum), ONE, optimizer=lambda parameters: None)
    with pytest.raises(ConfigurationError, match=r"optimizer function returned None\nit must return a torch.optim.Optimizer"):
        Workload(configured(CASE_NAME), case=case)


# Functions that make cases

CASE_NAME = f"{__name__}:simple"


def simple(blocks=1, batch_size=4, width=8, rate=0.5, bias=True, kind="mean"):
    layers = [nn.Linear(width, width, bias=bias) for _ in range(blocks)]
    if width == 13:
        raise ValueError("13 brings bad luck")
    return Case(nn.Sequential(*layers), torch.ones(batch_size, width), loss=getattr(Tensor, kind))


class InTraining(nn.Module):
    """A layer that does something else in evaluation."""

    def __init__(self, otherwise) -> None:
        super().__init__()
        self.layer, self.otherwise = nn.Linear(8, 8), otherwise

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if self.training else self.otherwise(self.layer(x))


def trains_alone():
    def refuse(_: Tensor) -> Tensor:
        raise RuntimeError("it only trains")

    return Case(InTraining(refuse), torch.ones(4, 8), loss=Tensor.sum)


def reads_in_inference():
    return Case(InTraining(lambda out: out * out.mean().item()), torch.ones(4, 8), loss=Tensor.sum)


def returns_a_module(blocks=1):
    return nn.Linear(blocks, 1)


def does_not_fit(width=8):
    return Case(nn.Linear(width, 1), torch.ones(2, width + 1), loss=Tensor.sum)


def lacks_an_argument(width=8):
    return Case(nn.Bilinear(width, width, 1), torch.ones(2, width), loss=Tensor.sum)


def test_a_case_has_the_settings_of_its_function():
    assert facts_of(CASE_NAME).settings == {
        "blocks": 1, "batch_size": 4, "width": 8, "rate": 0.5, "bias": True, "kind": "mean"
    }  # fmt: skip
    found = configured(CASE_NAME, width=16)
    assert (found.dataset, found.blocks, found.batch_size) == ("own", 2, 4)
    assert dict(found.settings) == {"width": 16, "rate": 0.5, "bias": True, "kind": "mean"}
    case, source = case_on_device(found)
    assert source is None
    assert case.inputs.shape == (4, 16)


def test_settings_with_several_values_multiply_a_sweep():
    sweep = Sweep((CASE_NAME,), [1, 2], "cpu", batch_size=[1, 2], settings={"width": [8, 16], "bias": False})
    found = [cell.configuration for cell in expand(sweep)]
    assert {(one.blocks, one.batch_size, dict(one.settings)["width"]) for one in found} == set(product([1, 2], [1, 2], [8, 16]))
    assert len(found) == 8
    assert all(dict(one.settings)["bias"] is False for one in found)


def refused(function, *arguments, **options) -> ConfigurationError:
    """The error of a call, which has two lines."""
    with pytest.raises(ConfigurationError) as raised:
        function(*arguments, **options)
    assert len(str(raised.value).splitlines()) == 2
    return raised.value


def test_a_function_that_makes_no_case_is_refused():
    name = f"{__name__}:returns_a_module"
    found = refused(build_case, configured(name), torch.device("cpu"))
    assert "returned Linear" in found.what
    assert "capsbench.Case" in found.hint


@pytest.mark.slow
@pytest.mark.parametrize("name", ["does_not_fit", "lacks_an_argument"])
def test_inputs_that_do_not_fit_are_a_result(name):
    found = capsbench.predict(f"{__name__}:{name}", device="cpu")
    (record,) = found.records
    assert record.status == "error"
    assert name in record.message
    assert "Traceback" not in record.message


def test_settings_that_make_no_sense_are_refused():
    found = refused(configured, CASE_NAME, length=3)
    assert found.what == f"model '{CASE_NAME}' takes no length"
    assert found.hint == "it takes blocks, batch_size, width, rate, bias, kind"
    for name, value in (("width", 2.5), ("width", True), ("width", "wide"), ("bias", 1), ("kind", 3), ("rate", "fast")):
        assert f"{name} {value!r} is not of the type of its default" in refused(configured, CASE_NAME, **{name: value}).what
    assert dict(configured(CASE_NAME, rate=2).settings)["rate"] == 2
    assert "depth" in refused(configured, CASE_NAME, blocks=3).hint
    assert "takes no settings" in refused(expand, Sweep(("rescapsnet",), [1], "cpu", settings={"width": 3})).what
    assert "takes no blocks" in refused(expand, Sweep((f"{__name__}:does_not_fit",), [1, 2], "cpu")).what


@pytest.mark.slow
def test_a_value_that_makes_no_network_is_recorded_and_the_sweep_goes_on():
    records = capsbench.predict(CASE_NAME, depths=1, settings={"width": [8, 13, 16]}, device="cpu").records
    assert [record.status for record in records] == ["ok", "error", "ok"]
    assert "13 brings bad luck" in records[1].message


@pytest.mark.slow
def test_networks_with_and_without_settings_share_a_sweep():
    names = ["rescapsnet", CASE_NAME]
    records = capsbench.predict(names, depths=[1, 2], device="cpu", batch_size=2).records
    found = {(record.cell.configuration.model, record.cell.configuration.blocks) for record in records if record.status == "ok"}
    assert found == {(name, blocks) for name in names for blocks in (1, 2)}


# Names

SOURCE = """
import torch
from torch import nn
from capsbench import Case
from beside_it import WIDTH

def tiny(blocks=1, width=WIDTH, batch_size=2):
    layers = [nn.Linear(width, width) for _ in range(blocks)]
    return Case(nn.Sequential(*layers), torch.ones(batch_size, width), loss=torch.Tensor.sum)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Another folder than that in which commands run, with a case in a file."""
    there = tmp_path / "elsewhere"
    there.mkdir()
    (there / "my_case.py").write_text(SOURCE, encoding="utf-8")
    (there / "beside_it.py").write_text("WIDTH = 4\n", encoding="utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield there
    for name in ("my_case", "beside_it"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_a_file_of_another_folder_is_a_name(command, folder):
    options = ("--depth", "1-3", "--set", "width=6", "--device", "cpu", "--json")
    result = command("predict", "--models", "elsewhere/my_case.py:tiny", *options)
    assert result.status == 0, result.stderr
    records = json.loads(result.stdout)
    assert [record["cell"]["configuration"]["blocks"] for record in records] == [1, 2, 3]
    states = [record["memory"]["state_bytes"] for record in records]
    assert states == [blocks * (6 * 6 + 6) * 4 for blocks in (1, 2, 3)]


def test_a_file_that_is_not_there_is_refused(command):
    result = command("predict", "--models", "nowhere/my_case.py:tiny", "--device", "cpu")
    assert_refused(result, "there is no file", "nowhere/my_case.py", "package.module:name")


@pytest.mark.parametrize("text", ["", "raise ValueError('not today')", "def tiny(:"])
def test_a_file_without_the_function_is_refused(command, folder, text):
    (folder / "my_case.py").write_text(text, encoding="utf-8")
    assert_refused(command("predict", "--models", "elsewhere/my_case.py:tiny", "--device", "cpu"), "my_case", "tiny")


def test_a_file_with_the_name_of_another_module_is_refused(folder):
    (folder / "json.py").write_text(SOURCE, encoding="utf-8")
    found = refused(facts_of, f"{folder / 'json.py'}:tiny")
    assert "another module is imported as json" in found.what
    assert "rename the file" in found.hint


def test_an_entry_point_is_a_name(monkeypatch):
    point = EntryPoint("mine", CASE_NAME, "capsbench.models")
    monkeypatch.setattr(factories, "entry_points", lambda group: [point] if group == "capsbench.models" else [])
    assert facts_of("mine").settings == facts_of(CASE_NAME).settings


WRONG = {
    "twice": (["--set", "width=1,2", "--set", "width=3"], "--set width is given twice"),
    "no value": (["--set", "width"], "--set 'width' is not a name with values"),
    "no values": (["--set", "width="], "--set 'width=' is not a name with values"),
    "no name": (["--set", "=3"], "--set '=3' is not a name with values"),
    "unknown": (["--set", "length=3"], "takes no length"),
    "another type": (["--set", "width=wide"], "'wide' is not of the type of its default 8"),
}


@pytest.mark.parametrize(("typed", "words"), WRONG.values(), ids=WRONG)
def test_wrong_settings_are_refused_on_the_command_line(command, typed, words):
    assert_refused(command("predict", "--models", CASE_NAME, "--device", "cpu", *typed), words)


# Faults that a reader of the code found.


def views(blocks=1):
    tokens = torch.randint(50, (4, 33))
    net = nn.Sequential(nn.Embedding(50, 16), *[nn.Linear(16, 16) for _ in range(blocks)], nn.Linear(16, 50))
    return Case(
        net, tokens[:, :-1], loss=lambda out, given: cross_entropy(out.flatten(0, 1), given.flatten()), targets=tokens[:, 1:]
    )


def captured(blocks=1):
    labels = torch.randint(5, (4,))
    return Case(
        nn.Sequential(*[nn.Linear(8, 8) for _ in range(blocks)]), torch.rand(4, 8), loss=lambda out: cross_entropy(out, labels)
    )


class Slope(nn.Module):
    """A network whose loss contains the gradient at its input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            out = self.net(x).sum()
            (slope,) = torch.autograd.grad(out, x, create_graph=True) if x.requires_grad else (x,)
        return slope.square().sum()


def informed():
    return Case(Slope(), torch.rand(9, 2, requires_grad=True), inference=torch.rand(9, 2))


def without_optimizer(blocks=1):
    net = nn.Sequential(*[nn.Linear(8, 8) for _ in range(blocks)])
    return Case(net, torch.rand(4, 8), loss=lambda out: out.square().mean(), optimizer=None)


@pytest.mark.parametrize(
    ("name", "fields"), [("views", {}), ("informed", {}), ("without_optimizer", {"optimizer_step": "backward"})]
)
def test_inputs_that_share_memory_or_need_gradients_are_predicted_to_the_byte(name, fields):
    asked = Configuration(
        model=f"{__name__}:{name}", blocks=0, dataset=OWN_INPUTS, batch_size=None, settings=(), device="cpu", threads=1, **fields
    )
    traced = trace_for(asked)
    predicted, step = predict_memory(asked, traced).memory, probed_step(asked)
    measured = memory_figures(step)
    for field in ("state_bytes", "gradient_bytes", "retained_bytes", "peak_allocated_bytes"):
        assert getattr(predicted, field) == getattr(measured, field), field
    assert traced.batch_bytes == storage_bytes(step.workload.given)
    # Nothing is left over for the next step.
    assert all(one.grad is None for one in [*step.workload.model.parameters(), *step.workload.given])


def test_tensors_that_a_loss_holds_are_on_the_predicted_device():
    asked = Configuration(
        model=f"{__name__}:captured",
        blocks=1,
        dataset=OWN_INPUTS,
        batch_size=None,
        settings=(),
        device="cuda:predicted",
        gpu="h100",
    )
    assert trace_for(asked).retained_bytes > 0


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda shape=(1, 28, 28), classes=10, depth=1: None, None),
        (lambda in_shape=(1, 28, 28), num_classes=10: None, None),
        (lambda a, b, c: None, None),
        (lambda *all_of_them: None, None),
        (lambda length=3, **more: None, {"length": 3}),
    ],
)
def test_a_function_of_classifiers_is_told_from_one_of_cases(function, expected):
    assert settings_of(function) == expected
