"""The baselines of table 3: Sabour's network with one or two convolutions, and several networks as one."""

import copy

import pytest
import torch
from torch import nn

from capsbench.cases.factories import BUILT_IN, build_model
from capsbench.catalog import WITHOUT_BLOCKS
from capsbench.errors import ConfigurationError
from capsbench.models import CapsNet, CapsuleLoss, Ensemble, MoCapsNet, ResCapsNet, SabourCapsNet, capsnet_2conv
from capsbench.routing import route
from capsbench.sweep.asked import Sweep
from capsbench.sweep.plan import expand
from capsbench.workload import Workload
from helpers.comparing import assert_alive, assert_all_close, assert_close
from helpers.made import make_configuration
from helpers.networks import example, small

SHAPE = (1, 28, 28)
NETWORKS = [CapsNet, ResCapsNet, MoCapsNet]


def sabour(convolutions: int = 1, seed: int = 0, **options) -> SabourCapsNet:
    """A small one, so lively that its outputs are seen."""
    torch.manual_seed(seed)
    net = SabourCapsNet(SHAPE, 4, convolutions=convolutions, **{"channels": 16, **options})
    with torch.no_grad():
        net.primary.conv.weight *= 10
        nn.init.normal_(net.classes.weight)
    return net


# Sabour's network


@pytest.mark.parametrize(
    ("shape", "convolutions", "expected"),
    [
        # conv 9²·C·256 + 256, primary 9²·256² + 256, routing I·8·10·16; the decoder of Sabour et al. is 1,411,344.
        ((1, 28, 28), 1, 20_992 + 5_308_672 + 1152 * 1280 + 1_411_344),
        ((3, 32, 32), 1, 62_464 + 5_308_672 + 2048 * 1280 + 3_756_544),
        ((1, 28, 28), 2, 20_992 + 2 * 5_308_672 + 128 * 1280 + 1_411_344),
        ((3, 32, 32), 2, 62_464 + 2 * 5_308_672 + 512 * 1280 + 3_756_544),
    ],
    ids=str,
)
def test_parameters_of_sabours_network(shape, convolutions, expected):
    with torch.device("meta"):
        net = SabourCapsNet(shape, 10, convolutions=convolutions)
    assert sum(parameter.numel() for parameter in net.parameters()) == expected


@pytest.mark.parametrize("convolutions", [1, 2])
def test_primary_capsules_are_routed_to_the_classes(convolutions):
    net = sabour(convolutions)
    images, labels = example(shape=SHAPE)
    maps = images
    for conv in (net.conv, *net.more_convs):
        maps = torch.relu(conv(maps))
    expected = route(net.primary(maps), net.classes.weight, kernel="reference")
    out = net(images, labels)
    assert out.lengths.max() > 0.01
    assert_close(out.capsules, expected, relative=1e-5)


@pytest.mark.parametrize("convolutions", [1, 2])
def test_both_fronts_have_the_same_gradients(convolutions):
    images, labels = example(5, SHAPE)

    def outcome(front: str) -> list:
        net = sabour(convolutions, front=front)
        out = net(images, labels)
        CapsuleLoss()(out, labels, images).backward()
        return [out.lengths, *(parameter.grad for parameter in net.parameters())]

    assert_all_close(outcome("chunked"), outcome("plain"), relative=1e-5)
    for gradient in outcome("auto")[1:]:
        assert_alive(gradient)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"blocks": 1}, "`blocks` 1 is out of range"),
        ({"convolutions": 3}, "`convolutions` 3 is out of range"),
        ({"convolutions": 2, "in_shape": (1, 24, 28)}, "at least 25 × 25"),
        ({"in_shape": (1, 16, 28)}, "at least 17 × 17"),
        ({"memory": "checkpoint"}, "`memory` checkpoint is not offered here"),
    ],
    ids=str,
)
def test_what_makes_no_network(options, words):
    given = {"in_shape": SHAPE, "num_classes": 4, **options}
    with pytest.raises(ConfigurationError, match=words) as refused:
        SabourCapsNet(**given)
    assert len(str(refused.value).splitlines()) == 2


@pytest.mark.parametrize("option", [{"convolutions": 2}, {"make_blocks": None}], ids=str)
@pytest.mark.parametrize("make", NETWORKS)
def test_the_other_networks_take_no_such_options(make, option):
    with pytest.raises(TypeError):
        make(SHAPE, 4, 1, **option)


@pytest.mark.parametrize("make", NETWORKS)
def test_the_other_networks_are_what_they_were(make):
    names = {name.split(".")[0] for name in small(make).state_dict()}
    assert names == {"conv", "primary", "first", "blocks", "classes", "decoder"}


# By their names


@pytest.mark.parametrize("name", WITHOUT_BLOCKS)
def test_a_step_of_a_configuration(name):
    (cell,) = expand(Sweep(models=(name,), depths=(1, 2, 3), device="cpu", batch_size=2, threads=1))
    it = cell.configuration
    assert (it.blocks, it.capsules, it.memory, it.front) == (0, None, None, "plain")
    load = Workload(it)
    assert len(load.model.more_convs) == (1 if name == "capsnet-2conv" else 0)
    before = load.model.classes.weight.detach().clone()
    load.train_step()
    assert not torch.equal(load.model.classes.weight, before)


def test_they_are_no_part_of_all(command):
    planned = command("run", "--models", "all,capsnet-2conv", "--depth", "1-2", "--dry-run", "--batch-size", "2", "--out", "x")
    assert planned.status == 0
    assert "7 cells" in planned.stderr  # two depths of three models, and one that has none
    alone = command("run", "--models", "all", "--depth", "1", "--dry-run", "--batch-size", "2", "--out", "x")
    assert "3 cells" in alone.stderr
    assert "capsnet-2conv" in BUILT_IN


def test_convolutions_may_be_asked_for():
    with torch.device("meta"):
        assert len(build_model(make_configuration("capsnet-2conv", 0)).more_convs) == 1
        assert len(capsnet_2conv(SHAPE, 4, convolutions=2).more_convs) == 1


# Several networks as one


def test_lengths_are_averaged():
    nets = [sabour(seed=1), sabour(2, seed=2), small(MoCapsNet, in_shape=SHAPE, seed=3)]
    images, _ = example(6, SHAPE)
    out, alone = Ensemble(nets)(images), [net(images) for net in nets]
    assert_close(out.lengths, sum(one.lengths for one in alone) / 3, relative=1e-6)
    assert torch.equal(out.capsules, torch.cat([one.capsules for one in alone], dim=-1))
    assert len({tuple(one.lengths.argmax(1).tolist()) for one in alone}) > 1  # they disagree


@pytest.mark.parametrize("labelled", [True, False])
def test_every_decoder_shows_the_class_that_was_chosen(labelled):
    nets = [sabour(seed=1), sabour(seed=2), sabour(seed=3, decoder=False)]
    images, labels = example(6, SHAPE)
    out = Ensemble(nets)(images, labels if labelled else None)
    shown = labels if labelled else out.lengths.argmax(dim=1)
    expected = (nets[0](images, shown).reconstruction + nets[1](images, shown).reconstruction) / 2
    assert_close(out.reconstruction, expected, relative=1e-6)
    assert Ensemble(nets[2:])(images).reconstruction is None


def test_one_network_is_itself():
    net = sabour()
    images, _ = example(3, SHAPE)
    for mine, theirs in zip(Ensemble([net])(images), net(images), strict=True):
        assert_close(mine, theirs, relative=1e-6)


def test_the_same_network_twice_changes_nothing():
    net = sabour()
    images, _ = example(3, SHAPE)
    assert_close(Ensemble([net, copy.deepcopy(net)])(images).lengths, net(images).lengths, relative=1e-6)


@pytest.mark.parametrize(
    ("nets", "words"),
    [
        (list, "no networks"),
        (lambda: [sabour(), nn.Linear(2, 2)], "network 2 of the ensemble is Linear"),
        (lambda: [sabour(), small(CapsNet)], r"network 2 of the ensemble takes \[1, 20, 20\] to 4 classes"),
        (lambda: [sabour(), SabourCapsNet(SHAPE, 5, channels=16)], r"network 2 of the ensemble takes \[1, 28, 28\] to 5"),
    ],
)
def test_what_makes_no_ensemble(nets, words):
    with pytest.raises(ConfigurationError, match=words) as refused:
        Ensemble(nets())
    assert len(str(refused.value).splitlines()) == 2
