"""One training step and one inference step of built-in and of one's own models."""

import copy
import sys
from importlib.metadata import EntryPoint

import pytest
import torch
from torch import Tensor, nn

from capsbench import workload
from capsbench.cases import factories
from capsbench.cases.configured import check_batch_size, classifier_case
from capsbench.cases.factories import build_model, resolve_model
from capsbench.data.preprocess import Batch
from capsbench.errors import ConfigurationError
from capsbench.models import CapsNet, CapsuleOutput, MoCapsNet, ResCapsNet
from capsbench.records import Configuration
from capsbench.stepping import step_in_backward
from capsbench.workload import Workload
from helpers.comparing import assert_alive, assert_all_close

BUILT_IN = {"capsnet": CapsNet, "rescapsnet": ResCapsNet, "mocapsnet": MoCapsNet}

OWN_MODELS = """
import torch
from torch import nn
from capsbench.models import CapsuleOutput


class Scores(nn.Module):
    def __init__(self, in_shape, num_classes, blocks):
        super().__init__()
        self.made_for = (in_shape, num_classes, blocks)
        self.layer = nn.Linear(in_shape[0] * in_shape[1] * in_shape[2], num_classes)
        self.saw = []

    def forward(self, images):
        self.saw.append((self.training, torch.is_inference_mode_enabled()))
        return self.layer(images.flatten(1))


class TakesLabels(Scores):
    def forward(self, images, labels=None):
        self.saw.append(None if labels is None else labels.tolist())
        return self.layer(images.flatten(1))


class Capsules(Scores):
    def forward(self, images):
        scores = self.layer(images.flatten(1))
        return CapsuleOutput(scores, scores.unsqueeze(-1), None)


class Pair(Scores):
    def forward(self, images):
        scores = self.layer(images.flatten(1))
        return scores, scores


class Flat(Scores):
    def forward(self, images):
        return self.layer(images.flatten(1))[:, 0]


class Group:
    inner = Scores


def factory(in_shape, num_classes, blocks):
    return Scores(in_shape, num_classes, blocks)


def no_module(in_shape, num_classes, blocks):
    return 7


def no_parameters(in_shape, num_classes, blocks):
    return nn.Flatten()


def frozen(in_shape, num_classes, blocks):
    return Scores(in_shape, num_classes, blocks).requires_grad_(False)


not_callable = 3
"""


@pytest.fixture(autouse=True)
def own(tmp_path_factory, monkeypatch):
    """A module with models of one's own, where Python finds it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_models.py").write_text(OWN_MODELS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "own_models", raising=False)


def configuration(model: str, **fields) -> Configuration:
    given = {"capsules": 4} if model in BUILT_IN else {}
    return Configuration(
        **{"model": model, "blocks": 1, "dataset": "sample", "batch_size": 2, "device": "cpu", **given, **fields}
    )


def refused(name: str, call, *arguments) -> str:
    """The message of the ConfigurationError, which names the model and says what would be right."""
    with pytest.raises(ConfigurationError) as error:
        call(*arguments)
    assert f"'{name}'" in error.value.what
    assert error.value.hint
    return str(error.value)


def parameters(load: Workload) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in load.model.parameters()]


# Which model


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_models(name):
    assert resolve_model(name) is BUILT_IN[name]


@pytest.mark.parametrize("name", ["own_models:Scores", "own_models:factory", "own_models:Group.inner"])
def test_a_model_of_ones_own(name):
    model = build_model(configuration(name, dataset="cifar100", blocks=3))
    assert type(model).__name__ == "Scores"
    assert model.made_for == ((3, 32, 32), 100, 3)


def test_a_model_beside_the_command(tmp_path, monkeypatch):
    """Python does not look into the current folder by itself."""
    (tmp_path / "beside_the_command.py").write_text("def make(*_): ...", encoding="utf-8")
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    assert resolve_model("beside_the_command:make").__name__ == "make"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("no_such_module_anywhere:make", "package.module:name"),
        (":make", "package.module:name"),
        ("own_models:missing", "name one of CapsuleOutput, "),
        ("own_models:", "name one of CapsuleOutput, "),
        ("own_models:Scores.nothing", "name one of forward"),
    ],
)
def test_a_model_that_cannot_be_imported(name, hint):
    assert hint in refused(name, resolve_model, name)


def test_an_unknown_name_lists_the_known():
    said = refused("resnet", resolve_model, "resnet")
    assert all(name in said for name in BUILT_IN)


def test_a_model_that_is_not_callable():
    assert "int" in refused("own_models:not_callable", resolve_model, "own_models:not_callable")


def test_registered_models(monkeypatch):
    points = [
        EntryPoint("mine", "own_models:Scores", factories.ENTRY_POINTS),
        EntryPoint("odd", "own_models:not_callable", factories.ENTRY_POINTS),
    ]
    monkeypatch.setattr(factories, "entry_points", lambda group: points if group == "capsbench.models" else [])
    assert resolve_model("mine").__name__ == "Scores"
    assert resolve_model("capsnet") is CapsNet
    refused("odd", resolve_model, "odd")
    assert "mine" in refused("other", resolve_model, "other")


def test_options_reach_the_model():
    options = {"kernel": "published", "iterations": 2, "capsules": 5, "memory": "checkpoint", "rule": "paper", "gamma": 0.5}
    options["front"] = "chunked"
    model = build_model(configuration("mocapsnet", blocks=2, **options))
    assert (model.first.kernel, model.first.iterations, model.front) == ("published", 2, "chunked")
    assert model.first.weight.shape[2] == 5
    assert (model.blocks.memory, model.blocks.gamma, len(model.blocks.functions)) == ("checkpoint", 0.5, 4)


# One step


@pytest.mark.parametrize("name", [*BUILT_IN, "own_models:Scores", "own_models:TakesLabels", "own_models:Capsules"])
def test_a_step_changes_parameters(name):
    # Without blocks even CapsNet's first gradients are more than nothing.
    load = Workload(configuration(name, blocks=0))
    before = parameters(load)
    load.train_step()
    # The first step of Adam moves everything that has a gradient by its rate.
    moved = [(after - old).abs().max().item() for after, old in zip(load.model.parameters(), before, strict=True)]
    assert all(0 < step < 1.01e-3 for step in moved)
    assert all(parameter.grad is None for parameter in load.model.parameters())


def test_the_parts_of_a_step_are_the_step():
    whole, parts = Workload(configuration("own_models:Scores")), Workload(configuration("own_models:Scores"))
    assert_all_close(parameters(parts), parameters(whole), relative=0)  # built from the same seed
    for _ in range(2):
        whole.train_step()
        loss = parts.forward()
        assert loss.dim() == 0
        parts.backward(loss)
        for parameter in parts.model.parameters():
            assert_alive(parameter.grad)
        parts.optimize()
    assert_all_close(parameters(parts), parameters(whole), relative=0)


# Stepping inside backward


class Tied(nn.Module):
    """A weight that is used twice, one that is frozen, and one that the loss does not see."""

    def __init__(self, in_shape, num_classes, blocks):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(784, 784, bias=False) for _ in range(2))
        self.layers[1].weight = self.layers[0].weight
        self.frozen = nn.Linear(784, num_classes).requires_grad_(False)
        self.last = nn.Linear(784, num_classes)
        self.unused = nn.Linear(3, 3)

    def forward(self, images):
        x = images.flatten(1)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.last(x) + self.frozen(x)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        pytest.param("mocapsnet", {"blocks": 2, "front": "chunked", "memory": "reversible"}, marks=pytest.mark.slow),
        pytest.param(
            "mocapsnet", {"blocks": 2, "front": "plain", "memory": "checkpoint", "precision": "bf16"}, marks=pytest.mark.slow
        ),
        ("rescapsnet", {"blocks": 1, "memory": "checkpoint-sqrt"}),
        ("own_models:Scores", {}),
        ("tied", {}),
    ],
    ids=str,
)
def test_stepping_inside_backward_gives_the_same_weights(name, fields, monkeypatch):
    if name == "tied":
        monkeypatch.setattr(factories, "resolve_model", lambda _: Tied)
    after = Workload(configuration(name, **fields))
    inside = Workload(configuration(name, **fields, optimizer_step="backward"))
    before = parameters(after)
    for _ in range(3):
        after.train_step()
        inside.backward(inside.forward())
        assert all(parameter.grad is None for parameter in inside.model.parameters())
        inside.optimize()
    assert_all_close(parameters(inside), parameters(after), relative=0)
    assert sum(not torch.equal(new, old) for new, old in zip(parameters(inside), before, strict=True)) >= 2
    states = [[*load.optimizer.state_dict()["state"].values()] for load in (inside, after)]
    assert [state["step"].item() for state in states[0]] == [3.0] * len(states[1])


def test_gradients_never_live_together():
    load = Workload(configuration("own_models:Scores", optimizer_step="backward"))
    alive = []
    for parameter in load.model.parameters():  # after the hook that steps
        parameter.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(it.grad is not None for it in load.model.parameters()))
        )
    load.backward(load.forward())
    assert alive == [0, 0]


def test_an_optimizer_can_be_made_ordinary_again():
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": [layer.weight], "lr": 1.0}, {"params": [layer.bias], "lr": 2.0}])
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    hooks = step_in_backward(optimizer)
    layer(torch.ones(1, 2)).sum().backward()
    moved = [old - new for old, new in zip(before, layer.parameters(), strict=True)]
    assert_all_close(moved, [torch.ones(2, 2), torch.full((2,), 2.0)], relative=1e-6)  # each at the rate of its group
    for hook in hooks:
        hook.remove()
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    layer(torch.ones(1, 2)).sum().backward()
    assert_all_close([*layer.parameters()], before, relative=0)
    assert len(optimizer.param_groups) == 2
    assert layer.weight.grad is not None


def test_a_loaded_state_and_a_schedule_are_obeyed():
    """Loading a state replaces the groups of an optimizer."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    step_in_backward(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 0.25
    weight.sum().backward()
    assert torch.equal(weight, torch.full((3,), 0.75))


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with pytest.raises(ConfigurationError, match=r"2 processes.*\n.*after backward"):
        step_in_backward(torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=1.0))


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"optimizer_step": "never"}, "'never'"), ({"optimizer_step": "backward", "precision": "fp16"}, "`precision` fp16")],
    ids=str,
)
def test_a_step_that_cannot_be(fields, said):
    with pytest.raises(ConfigurationError) as error:
        Workload(configuration("own_models:Scores", **fields))
    assert said in error.value.what
    assert error.value.hint


def test_steps_learn():
    load = Workload(configuration("own_models:Scores", batch_size=16))
    first = load.forward().item()
    for _ in range(20):
        load.train_step()
    assert load.forward().item() < 0.5 * first


def test_scores_take_the_summed_cross_entropy():
    load = Workload(configuration("own_models:Scores", batch_size=3))
    scores = load.model(load.case.inference)
    expected = -sum(torch.log_softmax(scores, 1)[place, label] for place, label in enumerate(Batch(*load.case.targets).labels))
    assert load.forward().item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_reconstruction_is_held_to_pixels():
    """A sigmoid reaches pixels, and not the normalised image that the network saw."""
    load = Workload(configuration("rescapsnet", blocks=0))

    class Ideal(nn.Module):
        def forward(self, images: Tensor) -> CapsuleOutput:
            lengths = nn.functional.one_hot(Batch(*load.case.targets).labels, 10).float()
            return CapsuleOutput(lengths, lengths.unsqueeze(-1), Batch(*load.case.targets).pixels)

    load.case = classifier_case(load.configuration, Ideal(), Batch(*load.case.targets))
    with torch.no_grad():
        assert load.forward().item() == 0


def test_labels_go_to_models_that_take_them():
    load = Workload(configuration("own_models:TakesLabels"))
    load.forward()
    load.inference()
    assert load.model.saw == [Batch(*load.case.targets).labels.tolist(), None]


def test_inference_trains_nothing():
    load = Workload(configuration("own_models:Scores"))
    before = parameters(load)
    with load.evaluating():
        load.inference()
    assert load.model.saw == [(False, True)]
    assert load.model.training
    assert_all_close(parameters(load), before, relative=0)


@pytest.mark.parametrize(
    ("name", "precision"), [("mocapsnet", "bf16"), ("own_models:Scores", "bf16"), ("own_models:Scores", "fp16")]
)
def test_half_precision(name, precision):
    load = Workload(configuration(name, precision=precision))
    seen = []
    layer = load.model.conv if name in BUILT_IN else load.model.layer
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    before = parameters(load)
    steps = 10 if precision == "fp16" else 1  # the scaler passes over steps until it has found its scale
    for _ in range(steps):
        load.train_step()
    load.inference()
    assert set(seen) == {workload.PRECISIONS[precision]}
    assert all(parameter.dtype == torch.float32 for parameter in load.model.parameters())
    assert all(torch.isfinite(parameter).all() for parameter in load.model.parameters())
    assert not torch.equal(parameters(load)[0], before[0])


def test_batches_are_the_same_every_time():
    one, other = (Workload(configuration("own_models:Scores", batch_size=4)).given for _ in range(2))
    assert_all_close([*one], [*other], relative=0)
    assert [tensor.shape for tensor in one] == [(4, 1, 28, 28), (4,), (4, 1, 28, 28)]


@pytest.mark.parametrize(("dataset", "source"), [("sample", "sample"), ("cifar10", "stand-in")])
def test_it_says_where_its_images_come_from(dataset, source, tmp_path):
    load = Workload(configuration("own_models:Scores", dataset=dataset), tmp_path)
    assert load.data_source == source
    load.train_step()


def test_a_workload_leaves_its_model_as_any_other():
    copy.deepcopy(Workload(configuration("own_models:Scores")).model)(torch.zeros(1, 1, 28, 28))


# What is refused


@pytest.mark.parametrize(
    ("name", "said"),
    [("own_models:no_module", "int"), ("own_models:no_parameters", "no parameters"), ("own_models:frozen", "no parameters")],
)
def test_what_is_no_model_to_train(name, said):
    assert said in refused(name, Workload, configuration(name))


@pytest.mark.parametrize(("name", "said"), [("own_models:Pair", "tuple"), ("own_models:Flat", "[2]")])
def test_outputs_that_are_no_class_scores(name, said):
    message = refused(name, Workload(configuration(name)).forward)
    assert said in message
    assert "[2, 10]" in message


def test_a_batch_larger_than_the_data():
    with pytest.raises(ConfigurationError, match=r"1025.*1024"):
        Workload(configuration("own_models:Scores", batch_size=1025))
    check_batch_size(1024, 1024, "sample")


def test_an_unknown_set():
    with pytest.raises(ConfigurationError, match="'imagenet'"):
        Workload(configuration("own_models:Scores", dataset="imagenet"))


def test_an_option_that_makes_no_network():
    with pytest.raises(ConfigurationError, match="'fastest'"):
        Workload(configuration("capsnet", kernel="fastest"))
