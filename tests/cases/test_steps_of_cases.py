"""Training steps of a user's own, accumulated gradients, and optimizers: measured, predicted, and equal to plain loops."""

import json
import socket
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import capsbench
from capsbench import Case
from capsbench.cases.case import OPTIMIZERS
from capsbench.cases.configured import build_case
from capsbench.cases.foreign import step_error
from capsbench.errors import ConfigurationError
from capsbench.measure.cell import run_pass
from capsbench.measure.compiling import compilations, run_until_compiled
from capsbench.measure.messages import Request
from capsbench.measure.step_memory import probed_step
from capsbench.measure.step_timeline import measured_timeline
from capsbench.measure.timing import measure_time
from capsbench.measure.turn_messages import TurnsRequest
from capsbench.measure.turns import Turns
from capsbench.prediction.predict import predict_memory, trace_for
from capsbench.prediction.timelines import predicted_timeline
from capsbench.records import MemoryFigures
from capsbench.tracing.eager import COMPILED
from capsbench.tracing.storages import state_of
from capsbench.workload import Workload, seed_everything
from helpers import own_steps
from helpers.commands import assert_refused
from helpers.comparing import assert_all_close, kept_bytes
from helpers.forked import in_fork
from helpers.measured import EVERY_FIGURE, Measured, configured, measured
from helpers.own_steps import BACKWARD_CALLS, FIRST_LOSSES, adam, case_of, layers, loss_of

pytestmark = pytest.mark.usefixtures("warm")

CPU = torch.device("cpu")
READS = {"with_a_closure"}
"""Steps that read values, whose predictions are guesses."""


OTHERS = {"adversarial_at_once": 8 + 4 * 7 * own_steps.WIDTH}
"""Bytes other than those that autograd saved: a number that it keeps as a tensor, and an output that the step itself holds."""


def named(name: str) -> str:
    return f"helpers.own_steps:{name}"


@cache
def seen(name: str) -> Measured:
    return measured(configured(named(name)))


def own(name: str) -> str:
    """Name of a case of this file."""
    return f"{__name__}:{name}"


# Steps of a user's own


@pytest.mark.parametrize("name", FIRST_LOSSES)
def test_retained_bytes_are_those_that_autograd_keeps(name):
    load = seen(name).step.workload
    kept = kept_bytes(lambda: FIRST_LOSSES[name](load.model, load.case.inputs), [*state_of(load.model), *load.given])
    assert seen(name).measured.retained_bytes == kept + OTHERS.get(name, 0)


@pytest.mark.parametrize("name", [name for name in FIRST_LOSSES if name not in READS])
def test_a_prediction_has_every_byte_of_the_measurement(name):
    found = seen(name)
    assert found.differing() == {}
    assert sum(found.traced.retained_by_module.values()) == found.measured.retained_bytes
    assert (found.traced.notes, found.traced.unsure) == ((), ())
    assert found.predicted.certainty["retained_bytes"] == "exact"


def test_a_step_that_reads_values_is_measured_and_its_prediction_is_guessed():
    found = seen("with_a_closure")
    assert found.predicted.retained_bytes == found.measured.retained_bytes
    assert "reads a tensor's value" in found.traced.notes[0]
    assert set(found.predicted.certainty.values()) == {"guessed"}


@pytest.mark.parametrize("name", FIRST_LOSSES)
def test_a_step_is_the_user_s_own(name):
    """Every weight is that of a plain loop, bit for bit."""
    load = Workload(configured(named(name)))
    seed_everything()
    plain = build_case(configured(named(name)), CPU)
    made = None if plain.optimizer is None else plain.optimizer(list(plain.module.parameters()))
    for _ in range(3):
        load.train_step()
        plain.train(plain.module, made, plain.inputs)
    assert_all_close(list(load.model.parameters()), list(plain.module.parameters()), relative=0)


@pytest.mark.parametrize("name", FIRST_LOSSES)
def test_several_calls_of_backward_are_said(name):
    calls = BACKWARD_CALLS.get(name, 1)
    load = seen(name).step.workload
    said = [] if calls == 1 else [f"a step calls backward {calls} times: forward, and what it retains, are the first pass's"]
    assert [remark.partition(", and later")[0] for remark in load.remarks()] == said
    if name not in READS:
        assert list(seen(name).traced.remarks) == load.remarks()


def test_gradients_that_forward_frees_are_not_subtracted():
    """A plain step's gradients are gone before forward; here they are freed before, in, or after it, or never."""
    names = ("zeroes_first", "zeroes_between", "zeroes_last", "fills_with_zeros")
    assert len({seen(name).measured.retained_bytes for name in names}) == 1
    assert [bool(seen(name).step.freed_gradients) for name in names] == [True, True, False, False]
    gradients = seen("zeroes_first").measured.gradient_bytes
    peaks = {name: seen(name).measured.peak_forward_bytes for name in names}
    assert peaks["zeroes_between"] - peaks["zeroes_last"] == gradients
    assert seen("zeroes_between").measured.at_peak.gradient_bytes == gradients


def test_gradients_of_a_transform_end_forward():
    """Gradients that have a graph themselves are a part of forward where there are others, as those of a penalty."""
    found = seen("functional")
    assert found.differing() == {}
    assert found.measured.retained_bytes > 0
    assert found.measured.gradient_bytes == sum(one.nbytes for one in found.step.workload.model.parameters())
    assert found.step.workload.remarks() == []


def test_every_optimizer_of_a_step_is_counted():
    found = seen("adversarial")
    assert len(found.step.workload.optimizers) == 2
    parameters = sum(parameter.nbytes for parameter in found.step.workload.model.parameters())
    numbers = 4 * len(list(found.step.workload.model.parameters()))
    assert found.measured.optimizer_bytes == 2 * parameters + numbers


@pytest.mark.parametrize("name", ["zeroes_between", "adversarial"])
def test_timelines_of_a_step_of_ones_own(name):
    configuration = configured(named(name))
    look, traced = measured_timeline(configuration), predicted_timeline(configuration)
    ends = [{name: (it.start_bytes, it.end_bytes) for name, it in found.phases.items()} for found in (look, traced)]
    assert ends[0] == ends[1]
    assert look.peak.contents == traced.peak.contents
    assert look.retained_by_module == traced.retained_by_module
    assert sum(look.retained_by_module.values()) == seen(name).measured.retained_bytes
    assert look.notes == traced.notes == seen(name).step.workload.remarks()


def test_a_step_of_ones_own_is_timed():
    load = Workload(configured(named("in_two_parts")))
    figures = measure_time(load, 5, 0.0)
    assert len(figures.train_step_seconds) == len(figures.inference_seconds) == 5
    assert all(0 < part < whole for part, whole in zip(figures.forward_seconds, figures.train_step_seconds, strict=True))


def test_a_figure_that_differs_is_seen():
    found = seen("zeroes_first")
    for name in EVERY_FIGURE[:-1]:
        value = getattr(found.predicted, name)
        wrong = found._replace(predicted=found.predicted.model_copy(update={name: value + 1}))
        assert wrong.differing() == {name: (value, value + 1)}


def on_cuda(model: str, **options: Any) -> MemoryFigures:
    """Figures that are predicted for a GPU."""
    configuration = configured(model, **options).model_copy(update={"device": "cuda:predicted", "gpu": "h100", "threads": None})
    traced = trace_for(configuration)
    assert (traced.notes, traced.unsure) == ((), ())
    return predict_memory(configuration, traced).memory


@pytest.mark.parametrize("name", ["zeroes_between", "adversarial", "by_hand", "with_a_penalty"])
def test_a_step_of_ones_own_is_predicted_for_a_gpu(name):
    found = on_cuda(named(name))
    assert found.retained_bytes == seen(name).measured.retained_bytes
    assert found.gradient_bytes == seen(name).measured.gradient_bytes
    assert found.certainty["retained_bytes"] == "exact"


# Accumulated gradients


def plain(blocks=2, batch_size=7):
    images, labels = torch.rand(batch_size, own_steps.WIDTH), torch.randint(3, (batch_size,))
    return Case(layers(blocks), images, loss=nn.functional.cross_entropy, targets=labels, optimizer=adam)


def accumulating(blocks=2, batch_size=7):
    images, labels = torch.rand(batch_size, own_steps.WIDTH), torch.randint(3, (batch_size,))
    module = nn.Sequential(layers(blocks), nn.Dropout())
    return Case(module, images, loss=nn.functional.cross_entropy, targets=labels, optimizer=adam, accumulate=3)


DIVISION = 8
"""Bytes of the number by which a loss is divided, which autograd keeps as a tensor."""


@pytest.mark.parametrize(("name", "passes"), [("plain", 1), ("plain", 2), ("plain", 5), ("accumulating", None)])
def test_accumulated_gradients_are_predicted_to_the_byte(name, passes):
    found = measured(configured(own(name), accumulate=passes))
    assert found.differing() == {}
    load = found.step.workload
    kept = kept_bytes(load.forward, [*state_of(load.model), *load.given])
    number = 8 if load.accumulate > 1 else 0
    assert found.measured.retained_bytes == sum(found.traced.retained_by_module.values()) == kept + number
    assert bool(load.remarks()) == (load.accumulate > 1)
    assert list(found.traced.remarks) == load.remarks()


def test_what_is_retained_is_that_of_one_pass():
    one, four = (measured(configured(own("plain"), accumulate=passes)).measured for passes in (1, 4))
    assert four.retained_bytes == one.retained_bytes + DIVISION
    assert four.gradient_bytes == one.gradient_bytes
    # The gradients of the passes before are alive in those after them.
    assert four.peak_allocated_bytes > one.peak_allocated_bytes
    assert four.at_peak.gradient_bytes == four.gradient_bytes


@pytest.mark.parametrize(
    ("name", "passes", "precision"), [("plain", 4, "fp32"), ("accumulating", 3, "fp32"), ("plain", 2, "bf16")]
)
def test_accumulated_gradients_are_those_of_a_plain_loop(name, passes, precision):
    load = Workload(configured(own(name), accumulate=passes, precision=precision))
    for _ in range(3):
        load.train_step()
    seed_everything()
    case = build_case(configured(own(name)), CPU)
    module, optimizer = case.module.train(), adam(list(case.module.parameters()))
    for _ in range(3):
        for _ in range(passes):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = nn.functional.cross_entropy(module(case.inputs), case.targets) / passes
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_all_close(list(load.model.parameters()), list(module.parameters()), relative=0)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["rescapsnet", "mocapsnet"])
def test_networks_of_the_package_accumulate_gradients(model):
    found = measured(configured(model, blocks=1, batch_size=2, accumulate=3))
    one = measured(configured(model, blocks=1, batch_size=2))
    assert found.differing() == {}
    assert found.measured.retained_bytes == one.measured.retained_bytes + DIVISION


def test_floating_point_operations_are_those_of_all_passes():
    one, three = (measured(configured(own("plain"), accumulate=passes)).traced.flops for passes in (1, 3))
    assert three == 3 * one > 0


# Optimizers


STATES = {"adam": 2, "adamw": 2, "sgd": 0, "none": 0}
"""Copies of the weights that each optimizer keeps."""


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("step", ["after", "backward"])
def test_an_optimizer_in_place_of_a_case_s_own(optimizer, step):
    found = measured(configured("helpers.networks_of_others:bf16", optimizer=optimizer, optimizer_step=step))
    assert found.differing() == {}
    parameters = list(found.step.workload.model.parameters())
    numbers = 4 * len(parameters) if STATES[optimizer] else 0
    assert found.measured.optimizer_bytes == STATES[optimizer] * sum(one.nbytes for one in parameters) + numbers
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD, "none": type(None)}
    assert type(found.step.workload.optimizer) is kinds[optimizer]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_is_predicted_for_a_gpu(optimizer):
    figures = [on_cuda(own("plain"), optimizer=optimizer, accumulate=passes) for passes in (None, 3)]
    weights = figures[0].gradient_bytes
    assert all(STATES[optimizer] * weights <= one.optimizer_bytes <= STATES[optimizer] * (weights + 64) for one in figures)
    assert figures[0].retained_bytes == figures[1].retained_bytes, "no number is a tensor there"


def test_a_case_s_own_optimizer_is_the_usual_one():
    configuration = configured("helpers.networks_of_others:bf16")
    assert configuration.optimizer is None
    assert configured("helpers.networks_of_others:bf16", optimizer="own") == configuration
    assert Workload(configuration).optimizer.param_groups[0]["momentum"] == 0.9


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_of_a_network_of_the_package(optimizer):
    found = measured(configured("mocapsnet", blocks=1, batch_size=2, optimizer=optimizer))
    assert found.differing() == {}
    assert bool(found.measured.optimizer_bytes) == bool(STATES[optimizer])


def test_stochastic_gradient_descent_is_torch_s():
    load = Workload(configured(own("plain"), optimizer="sgd"))
    before = [parameter.detach().clone() for parameter in load.model.parameters()]
    loss_of(load.model, (load.case.inputs, load.case.targets)).backward()
    expected = [old - 1e-3 * parameter.grad for old, parameter in zip(before, load.model.parameters(), strict=True)]
    load.model.zero_grad()
    load.train_step()
    assert_all_close(list(load.model.parameters()), expected, relative=1e-6)
    assert not load.optimizer.state


# Wrong use


def never(blocks=1, batch_size=2):
    return case_of(lambda module, optimizer, batch: loss_of(module, batch), blocks, batch_size)


def of_another(blocks=1, batch_size=2):
    case = case_of(lambda *_: None, blocks, batch_size)
    other = adam(list(case.module.parameters()))

    def train(module, optimizer, batch):
        loss_of(module, batch).backward()
        other.step()

    return case_of(train, blocks, batch_size)


def of_parameters_before(blocks=1, batch_size=2):
    """The parameters of another module than the case's."""
    other = layers(blocks)
    return case_of(own_steps.zeroes_first().train, blocks, batch_size, lambda _: adam(list(other.parameters())))


def of_no_parameters(blocks=1, batch_size=2):
    return case_of(own_steps.zeroes_first().train, blocks, batch_size, lambda _: torch.optim.SGD([], lr=0.1))


def of_no_optimizer(blocks=1, batch_size=2):
    return case_of(own_steps.zeroes_first().train, blocks, batch_size, lambda _: {"rate": 0.1})


def without_inference(blocks=1, batch_size=2):
    images, labels = torch.rand(batch_size, own_steps.WIDTH), torch.randint(3, (batch_size,))
    return Case(layers(blocks), (images, labels), train=own_steps.zeroes_first().train, optimizer=adam)


REFUSED = {
    "never": ("its train function never calls backward", "loss.backward()"),
    "of_another": (
        "its train function steps an optimizer (Adam) that is not from its case's optimizer function",
        "train's second argument",
    ),
    "of_parameters_before": ("has parameters that are not parameters of the network", "optimizer function is given"),
    "of_no_parameters": ("its optimizer function raised ValueError: optimizer got an empty parameter list", "a list of all"),
    "of_no_optimizer": ("its optimizer function returned dict", "torch.optim.Optimizer"),
}


@pytest.mark.parametrize(("name", "words"), REFUSED.items(), ids=REFUSED)
@pytest.mark.parametrize("way", [trace_for, probed_step], ids=["predict", "run"])
def test_steps_that_cannot_be_are_refused_alike(name, words, way):
    with pytest.raises(ConfigurationError) as raised:
        way(configured(own(name)))
    assert words[0] in raised.value.what
    assert words[1] in raised.value.hint
    assert len(str(raised.value).splitlines()) == 2


def several_of_one(blocks=1, batch_size=2):
    def train(module, optimizer, batch):
        first, second = optimizer
        first.step(), second.step()

    return case_of(train, blocks, batch_size)


def keys_of_a_tuple(blocks=1, batch_size=2):
    def train(module, optimizer, batch):
        optimizer["second"].step()

    return case_of(train, blocks, batch_size, lambda parameters: (adam(parameters[:1]), adam(parameters[1:])))


def in_another_order(blocks=1, batch_size=2):
    def train(batch, module, optimizer):
        module(batch)

    return case_of(train, blocks, batch_size)


def inputs_as_one(blocks=1, batch_size=2):
    def train(module, optimizer, batch):
        module(batch).sum().backward()

    return case_of(train, blocks, batch_size)


INPUTS = "(a tensor of shape [2, 24], a tensor of shape [2]): "
MISUSED = {
    "several_of_one": ("cannot unpack non-iterable Adam", f"is given Sequential, Adam, {INPUTS}"),
    "keys_of_a_tuple": ("tuple indices must be integers", f"is given Sequential, (Adam, Adam), {INPUTS}"),
    "in_another_order": ("'Adam' object is not callable", f"is given Sequential, Adam, {INPUTS}"),
    "inputs_as_one": ("tuple", f"is given Sequential, Adam, {INPUTS}"),
}


@pytest.mark.parametrize(("name", "words"), MISUSED.items(), ids=MISUSED)
def test_the_error_of_a_step_that_misuses_its_arguments_lists_them(name, words):
    with pytest.raises(ConfigurationError) as traced:
        trace_for(configured(own(name)))
    with pytest.raises((TypeError, AttributeError)) as run:
        probed_step(configured(own(name)))
    for error in (traced.value, step_error(name, run.value)):
        assert words[0] in error.what
        assert words[1] in error.hint
        assert len(str(error).splitlines()) == 2


def on_meta(blocks=1):
    with torch.device("meta"):
        return Case(layers(blocks), torch.ones(2, own_steps.WIDTH, device="cpu"), loss=Tensor.sum)


def of_meta_inputs(blocks=1):
    return Case(layers(blocks), torch.ones(2, own_steps.WIDTH, device="meta"), loss=Tensor.sum)


@pytest.mark.parametrize(("name", "what"), [("on_meta", "its '0.weight'"), ("of_meta_inputs", "an input")])
def test_what_is_on_meta_is_predicted_but_not_run(name, what):
    assert trace_for(configured(own(name))).state_bytes > 0
    with pytest.raises(ConfigurationError, match=rf"cannot be run: {what} is on the device meta.*\n.*predict") as raised:
        Workload(configured(own(name)))
    assert len(str(raised.value).splitlines()) == 2


def test_a_module_that_does_not_take_the_batch_says_what_is_missing():
    load = Workload(configured(own("without_inference")))
    load.train_step()
    with pytest.raises(ConfigurationError, match=r"cannot be called for inference.*TypeError.*\n.*inference="):
        load.inference()


@pytest.mark.parametrize(
    ("option", "value"), [("precision", "bf16"), ("accumulate", 2), ("optimizer_step", "backward")], ids=lambda value: str(value)
)
def test_options_that_a_step_of_ones_own_decides_are_refused(option, value):
    with pytest.raises(ConfigurationError, match=rf"`{option}` {value} has no effect .*\n.*train function"):
        Workload(configured(named("zeroes_first"), **{option: value}))


def test_accumulated_gradients_cannot_be_freed_in_backward():
    for name, options in (("plain", {"accumulate": 2}), ("accumulating", {})):
        with pytest.raises(ConfigurationError, match=r"`optimizer_step` backward is not possible with `accumulate` [23]"):
            Workload(configured(own(name), optimizer_step="backward", **options))


IMPOSSIBLE = {
    "no module": (lambda net, x: Case(None, x), "a case's module is None", "Case(module, inputs)"),
    "a class": (lambda net, x: Case(nn.Linear, x), "a case's module is the class Linear", "Case(module, inputs)"),
    "an optimizer": (
        lambda net, x: Case(net, x, optimizer=torch.optim.SGD(net.parameters(), lr=0.1)),
        "a case's optimizer is SGD, not a function",
        "optimizer=lambda parameters",
    ),
    "a loss": (lambda net, x: Case(net, x, loss=net(x).sum()), "a case's loss is a tensor of shape []", "loss=lambda out"),
    "a name": (lambda net, x: Case(net, x, train="mine"), "a case's train is str", "def train(module, optimizer, batch)"),
    "no passes": (lambda net, x: Case(net, x, accumulate=0), "a case's accumulate is 0", "1 or more"),
    "half a pass": (lambda net, x: Case(net, x, accumulate=1.5), "a case's accumulate is 1.5", "1 or more"),
    "a loss of too much": (
        lambda net, x: Case(net, x, loss=lambda out, labels: out.sum()),
        "a case's loss function does not take its arguments: missing a required argument: 'labels'",
        "loss(output, targets)",
    ),
    "a step of too little": (
        lambda net, x: Case(net, x, train=lambda module, batch: None),
        "a case's train function does not take its arguments: too many positional arguments",
        "train(module, optimizer, batch), with several optimizers in one argument, but takes (module, batch)",
    ),
    "a step with two optimizers": (
        lambda net, x: Case(net, x, train=lambda module, first, second, batch: None),
        "a case's train function does not take its arguments: missing a required argument: 'batch'",
        "with several optimizers in one argument, but takes (module, first, second, batch)",
    ),
    "inputs by another name": (
        lambda net, x: Case(net, {"images": x}, loss=Tensor.sum),
        "a case's module does not take its arguments: missing a required argument: 'input'",
        "module(**inputs)",
    ),
    "too many inputs": (
        lambda net, x: Case(net, (x, x), loss=Tensor.sum),
        "a case's module does not take its arguments: too many positional arguments",
        "module(*inputs)",
    ),
    "two steps": (
        lambda net, x: Case(net, x, train=print, loss=Tensor.sum, accumulate=2),
        "a case with a train function takes no loss and no accumulate",
        "the whole step",
    ),
}


@pytest.mark.parametrize(("make", "what", "hint"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_makes_no_case_is_refused(make, what, hint):
    with pytest.raises(ConfigurationError) as raised:
        make(nn.Linear(2, 1), torch.ones(3, 2))
    assert what in raised.value.what
    assert hint in raised.value.hint
    assert len(str(raised.value).splitlines()) == 2


# Modules that are half precision themselves


def half(dtype="bfloat16", optimizer="adam", blocks=2, batch_size=7):
    kind = getattr(torch, dtype)
    module = nn.Sequential(nn.LayerNorm(own_steps.WIDTH), layers(blocks)).to(kind)
    images, labels = torch.rand(batch_size, own_steps.WIDTH, dtype=kind), torch.randint(3, (batch_size,))
    made = {"adam": adam, "sgd": own_steps.sgd}[optimizer]
    return Case(module, images, loss=nn.functional.cross_entropy, targets=labels, optimizer=made)


@pytest.mark.parametrize(
    ("dtype", "optimizer", "precision"),
    [
        ("bfloat16", "adam", "fp32"),
        ("bfloat16", "sgd", "fp32"),
        ("bfloat16", "adam", "bf16"),
        ("bfloat16", "adam", "fp16"),
        ("bfloat16", "sgd", "fp16"),
        ("float16", "adam", "fp32"),
        ("float16", "sgd", "fp32"),
        ("float16", "adam", "bf16"),
        ("float64", "adam", "fp32"),
        ("float32", "adam", "bf16"),
        ("float32", "adam", "fp16"),
        ("float32", "sgd", "fp16"),
    ],
)
def test_modules_of_any_precision_are_predicted_to_the_byte(dtype, optimizer, precision):
    found = measured(configured(own("half"), settings={"dtype": dtype, "optimizer": optimizer}, precision=precision))
    assert found.differing() == {}
    load = found.step.workload
    assert load.model[0].weight.dtype == getattr(torch, dtype)
    weights = sum(one.nbytes for one in load.model.parameters())
    assert found.measured.gradient_bytes == weights
    if precision == "fp32":
        assert load.forward().dtype == getattr(torch, dtype), "no autocast"
        kept = kept_bytes(load.forward, [*state_of(load.model), *load.given])
        assert found.measured.retained_bytes == kept


def test_a_loss_of_float16_parameters_is_not_scaled():
    with pytest.raises(ConfigurationError, match=r"`precision` fp16 .*float16\n.*fp32"):
        Workload(configured(own("half"), settings={"dtype": "float16"}, precision="fp16"))


# Compilation


def compiled_weights(load: Workload, steps: int) -> list[Tensor]:
    """The weights after a number of steps, with inference between them."""
    for _ in range(steps):
        load.train_step()
        with load.evaluating():
            load.inference()
    return [parameter.detach() for parameter in load.model.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("name", [own("plain"), named("zeroes_between")])
def test_a_compiled_network_is_compiled_before_it_is_measured(name):
    torch._dynamo.reset()  # code that was compiled for a like network would serve this one
    compiled, eager = (Workload(configured(name, compile=kind)) for kind in ("default", "none"))
    assert run_until_compiled(compiled.train_step) == 2
    with compiled.evaluating():
        assert run_until_compiled(compiled.inference) == 2
    before = compilations()
    assert before > 0
    after = compiled_weights(compiled, 3)
    assert compilations() == before, "from training to inference and back it compiles nothing"
    eager.train_step()
    eager.train_step()
    assert_all_close(after, compiled_weights(eager, 3), relative=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", [own("plain"), named("zeroes_between")])
def test_a_compiled_network_is_counted_and_its_prediction_is_guessed(name):
    found = measured(configured(name, compile="default"))
    assert found.measured.state_bytes == found.predicted.state_bytes
    assert found.measured.optimizer_bytes == found.predicted.optimizer_bytes
    assert 0 < found.measured.retained_bytes <= found.predicted.retained_bytes
    assert found.traced.notes == (COMPILED,)
    assert set(found.predicted.certainty.values()) == {"guessed"}
    eager = measured(configured(name))
    assert eager.traced.notes == ()
    assert found.predicted.retained_bytes == eager.predicted.retained_bytes


@pytest.mark.slow
def test_a_network_that_its_user_has_compiled_is_left_as_it_is():
    load = Workload(configured("helpers.networks_of_others:compiled", compile="default"))
    assert type(load.model).__name__ == "OptimizedModule"
    assert run_until_compiled(load.train_step) == 2


@pytest.mark.slow
def test_a_compiled_network_is_timed_as_a_whole():
    cells = {str(blocks): configured(own("plain"), blocks, compile="default") for blocks in (1, 3)}
    ours, theirs = socket.socketpair()
    with ours, theirs:
        taking = Turns(TurnsRequest(cells=cells, channel=0, process=0), theirs)
        taking._import_networks()
        for key in cells:
            taking._build(key, [])
        assert [one.structure for one in taking._participants.values()] == [None, None]
        assert all(taking._turn(key).train_step_seconds > 0 for key in cells)


def misfit(blocks=1, batch_size=2):
    return Case(layers(blocks), torch.rand(batch_size, own_steps.WIDTH + 1), loss=Tensor.sum)


def of_another_dtype(blocks=1, batch_size=2):
    return Case(layers(blocks), torch.rand(batch_size, own_steps.WIDTH).double(), loss=Tensor.sum)


def raising(blocks=1, batch_size=2):
    return case_of(lambda module, optimizer, batch: module.heads(batch), blocks, batch_size)


def not_made(blocks=1, batch_size=4):
    raise ValueError("65 is not divisible by 4")


def lazily_misfit(blocks=1, batch_size=4):
    layers = nn.Sequential(nn.LazyLinear(8), nn.Linear(9, 2))
    return capsbench.Case(layers, torch.rand(batch_size, 4), loss=Tensor.sum)


RAISED = {
    "lazily_misfit": ("fails in a step: RuntimeError: ", "make inputs, network and loss fit each other"),
    "misfit": ("(linear.py:", "make inputs, network and loss fit each other"),
    "of_another_dtype": ("dtype", "make inputs, network and loss fit each other"),
    "raising": ("no attribute 'heads' (test_steps_of_cases.py:", "train(module, optimizer, batch) is given Sequential, Adam, ("),
    "never": ("never calls backward", "loss.backward()"),
    "not_made": (
        "cannot be made: ValueError: 65 is not divisible by 4 (test_steps_of_cases.py:",
        "capsbench.Case(module, inputs)",
    ),
}


@pytest.mark.slow
def test_what_a_step_raises_is_said_alike_by_predictions_and_measurements():
    for name, words in RAISED.items():
        model = f"{__file__}:{name}"
        (traced,) = capsbench.predict(model, depths=[1], device="cpu").records
        configuration = traced.cell.configuration.model_copy(update={"device": "cpu"})
        run = in_fork(run_pass, Request(configuration=configuration, what="memory", samples=5), 300)
        for message in (traced.message, run.message):
            what, _, hint = message.partition(" - ")
            assert what.startswith(f"model '{model}'")
            assert words[0] in what
            assert words[1] in hint


@pytest.mark.slow
def test_flags_of_a_step(command):
    flags = ("--compile", "--accumulate", "3", "--optimizer", "sgd", "--batch-size", "2")
    result = command("predict", "--models", own("plain"), "--depth", "1", "--device", "cpu", *flags, "--json")
    assert result.status == 0, result.stderr
    (record,) = json.loads(result.stdout)
    configuration = record["cell"]["configuration"]
    assert [configuration[name] for name in ("compile", "accumulate", "optimizer")] == ["default", 3, "sgd"]
    assert record["memory"]["optimizer_bytes"] == 0
    assert "gradients of 3 passes" in record["notes"][0]
    assert COMPILED in record["step"]["notes"]
    assert_refused(command("predict", "--models", "rescapsnet", "--accumulate", "0"), "--accumulate 0 is too small")
    assert_refused(command("predict", "--models", "rescapsnet", "--optimizer", "lion"), "--optimizer 'lion' is not known")
    wrong = ("--optimizer-step", "backward", "--accumulate", "2")
    said = "--optimizer-step backward is not possible with --accumulate 2"
    assert_refused(command("predict", "--models", "rescapsnet", *wrong), said)
