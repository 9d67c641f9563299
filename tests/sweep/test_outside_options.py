"""Options that have no effect on what was asked for are refused, by name."""

import pytest
from torch import nn

from capsbench.cases.factories import build_model
from capsbench.errors import ConfigurationError
from capsbench.options import NETWORK_OPTIONS
from capsbench.sweep.asked import Sweep
from capsbench.sweep.plan import expand
from capsbench.training import TrainingSettings
from capsbench.training.checkpoint import build_network
from helpers.commands import assert_refused
from helpers.made import make_configuration

NET = "from torch import nn\ndef make(*_):\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"

CHANGED = {
    "kernel": "recompute",
    "routing": "sda",
    "iterations": 5,
    "capsules": 16,
    "front": "chunked",
    "memory": "checkpoint",
    "inverse": "exact",
    "rule": "published",
    "gamma": 0.5,
}
USUAL = {"kernel": "auto", "routing": "rba", "iterations": 3, "capsules": 32, "front": "auto", "inverse": "auto", "rule": "paper"}


def test_all_options_are_here():
    assert set(CHANGED) == set(NETWORK_OPTIONS) == set(USUAL) | {"memory", "gamma"}


REFUSED = {option: value for option, value in CHANGED.items() if option != "memory"}
"""Options that networks of one's own do not have; memory strategies are those of the layers of their lists."""


@pytest.mark.parametrize("option", REFUSED)
def test_a_sweep_with_a_network_of_ones_own_refuses_the_option(option):
    value = CHANGED[option]
    for models in (("builtins:max",), ("mocapsnet", "builtins:max")):
        with pytest.raises(ConfigurationError) as error:
            expand(Sweep(models=models, depths=(1,), device="cpu", **{option: value}))
        assert f"`{option}` {value}" in error.value.what
        assert "'builtins:max'" in error.value.what


@pytest.mark.parametrize("command_line", ["run --models", "predict --models", "timeline --model", "train --model"])
@pytest.mark.parametrize("values", [REFUSED, USUAL], ids=["changed", "usual"])
def test_every_command_refuses_it_even_at_its_usual_value(command, own_model, tmp_path, command_line, values):
    name = own_model(NET)
    for option, value in values.items():
        result = command(*command_line.split(), name, f"--{option}", value, "--depth", 1, "--out", "there")
        assert_refused(result, f"--{option}", f"'{name}'", "no effect")
    assert not (tmp_path / "there").exists()


def test_other_options_of_a_network_of_ones_own_stay(own_model):
    cells = expand(Sweep(models=("builtins:max",), depths=(1,), device="cpu", precision=("bf16",), optimizer_step=("backward",)))
    assert [cell.configuration.precision for cell in cells] == ["bf16"]


@pytest.mark.parametrize(("option", "field"), [("memory", {"memory": ("checkpoint",)}), ("capsules", {"capsules": 16})])
def test_networks_without_blocks_have_no_options_of_blocks(option, field):
    with pytest.raises(ConfigurationError, match=f"`{option}` .* has no effect on capsnet-1conv"):
        expand(Sweep(models=("capsnet-1conv",), depths=(1,), device="cpu", **field))
    assert len(expand(Sweep(models=("capsnet-1conv", "rescapsnet"), depths=(1,), device="cpu", **field))) == 2


# In the library, by the name of the field.


def plain(in_shape, num_classes, blocks):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes))


@pytest.mark.parametrize("option", REFUSED)
def test_a_factory_that_does_not_take_an_option_names_its_field(monkeypatch, option):
    monkeypatch.setattr("capsbench.cases.factories.resolve_model", lambda _: plain)
    with pytest.raises(ConfigurationError, match=f"'own:make' takes no {option}\n"):
        build_model(make_configuration("own:make", **{option: CHANGED[option]}))


def test_settings_of_training_name_it_too(monkeypatch):
    monkeypatch.setattr("capsbench.cases.factories.resolve_model", lambda _: plain)
    for settings in (
        TrainingSettings(network=make_configuration("own:make", routing="sda")),
        TrainingSettings(network=make_configuration("own:make"), learn_gamma=True),
    ):
        with pytest.raises(ConfigurationError, match=r"takes no (routing|learn_gamma)"):
            build_network(settings)


def test_a_factory_that_takes_it_is_given_it(monkeypatch):
    def make(in_shape, num_classes, blocks, *, memory):
        return nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes), nn.Identity() if memory == "checkpoint" else nn.ReLU())

    monkeypatch.setattr("capsbench.cases.factories.resolve_model", lambda _: make)
    assert isinstance(build_model(make_configuration("own:make", memory="checkpoint"))[-1], nn.Identity)


def test_a_type_error_of_ones_own_stays_what_it_is(monkeypatch):
    def make(*_, memory):
        raise TypeError("'memory' is not what I like")

    monkeypatch.setattr("capsbench.cases.factories.resolve_model", lambda _: make)
    with pytest.raises(TypeError, match="not what I like"):
        build_model(make_configuration("own:make", memory="checkpoint"))
