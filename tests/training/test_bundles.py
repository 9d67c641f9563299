"""The collapse of a stack: bundles of samples that a block does not distinguish, with lengths and gradients."""

import json
import math
from dataclasses import asdict, replace

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from capsbench.data.datasets import Parts, load_images
from capsbench.data.feed import Feed
from capsbench.data.preprocess import training_batch
from capsbench.errors import ConfigurationError
from capsbench.figures.by_block import diagnostics_figure
from capsbench.models import CapsNet, CapsuleLoss, CapsuleOutput, MoCapsNet, ResCapsNet, SabourCapsNet
from capsbench.reversible import PLAIN_STRATEGIES, STRATEGIES
from capsbench.training import TrainingSettings, train
from capsbench.training import trainer as trainers
from capsbench.training.bundles import RELATIVE, bundle_entropy, diagnose, entropy
from capsbench.training.diagnostics import DIAGNOSTICS, DiagnosticsLog, read_diagnostics
from capsbench.training.log import encoded, read_metrics
from helpers.comparing import assert_close
from helpers.made import make_configuration
from helpers.networks import example, small

SHAPE = (1, 28, 28)
LOSS = CapsuleLoss()


def diagnosed(net, images, labels):
    return diagnose(net, images, labels, lambda out: LOSS(out, labels, images))


# Bundles


def test_bundles_counted_by_hand():
    samples = torch.tensor([[1.0, 2], [3, 4], [1, 2], [1, 2], [5, 6], [3, 4]])
    labels = torch.tensor([0, 1, 0, 1, 2, 1])
    # {0, 2, 3} holds labels 0, 0, 1; {1, 5} and {4} hold one each.
    conflict = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    bundles, found = bundle_entropy(samples, labels)
    assert bundles == 3
    assert found == pytest.approx(3 / 6 * conflict)


@pytest.mark.parametrize("scale", [1e-40, 1e-25, 1e-10, 1.0, 1e20])
def test_equality_is_relative_to_the_size(scale):
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(20, 4, 3, generator=generator, dtype=torch.float64)
    labels = torch.arange(20) % 4
    samples[10:] = samples[:10] * (1 + RELATIVE / 10)  # what rounding does
    labels[10:] = labels[:10]
    assert bundle_entropy(samples * scale, labels) == (10, 0.0)
    # Each sample and another label's are one where the absolute bound of the published code is larger than both.
    if scale < 1e-9:
        assert torch.isclose(samples[0] * scale, samples[1] * scale).all()


def test_all_that_vanished_is_one_bundle():
    labels = torch.arange(12) % 3
    assert bundle_entropy(torch.zeros(12, 4, 2), labels) == (1, pytest.approx(math.log(3)))


def test_a_little_more_than_the_bound_is_another_bundle():
    pair = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    for difference, bundles in ((0.9 * RELATIVE, 1), (1.1 * RELATIVE, 2)):
        pair[1, 1] = difference
        assert bundle_entropy(pair, torch.tensor([0, 1]))[0] == bundles


def test_what_is_no_number_equals_nothing():
    samples = torch.ones(4, 3)
    samples[1:3] = math.nan
    assert bundle_entropy(samples, torch.arange(4)) == (3, pytest.approx(math.log(2) / 2))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(groups=st.lists(st.integers(0, 4), min_size=1, max_size=30), data=st.data())
def test_any_groups(groups, data):
    labels = data.draw(st.lists(st.integers(0, 3), min_size=len(groups), max_size=len(groups)))
    places = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    bundles, found = bundle_entropy(places[torch.tensor(groups)], torch.tensor(labels))
    of_groups = {group: [label for one, label in zip(groups, labels, strict=True) if one == group] for group in groups}
    assert bundles == len(of_groups)
    assert found == pytest.approx(sum(len(held) * entropy(held) for held in of_groups.values()) / len(groups))
    assert 0 <= found <= entropy(labels) + 1e-12


# Diagnosing a network


@pytest.mark.parametrize("make", [CapsNet, ResCapsNet, MoCapsNet])
def test_what_each_block_gives(make):
    net = small(make, blocks=3)
    images, labels = example(6)
    found = diagnosed(net, images, labels)
    assert [one.block for one in found] == [0, 1, 2, 3]
    # By hand: what enters the stack, and what leaves it.
    state = net.first(net.primary(torch.relu(net.conv(images))))
    left = net.blocks.train()(state)
    left.retain_grad()
    capsules = net.classes(left)
    lengths = capsules.norm(dim=-1)
    LOSS(CapsuleOutput(lengths, capsules, net.decoder(capsules, labels)), labels, images).backward()
    for one, of in ((found[0], state), (found[-1], left)):
        norms = of.detach().double().norm(dim=-1)
        assert one.mean_length == pytest.approx(norms.mean().item(), rel=1e-5)
        assert one.longest == pytest.approx(norms.max().item(), rel=1e-5)
    assert found[-1].state_gradient_norm == pytest.approx(left.grad.double().norm().item(), rel=1e-4)
    layers = [layer for layer in net.blocks.modules() if hasattr(layer, "weight")]
    last = math.hypot(*(layer.weight.grad.double().norm().item() for layer in layers[-2:]))
    assert found[-1].gradient_norm == pytest.approx(last, rel=1e-4)
    assert found[0].gradient_norm == pytest.approx(net.first.weight.grad.double().norm().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("make", "options"),
    [(MoCapsNet, {"memory": memory}) for memory in STRATEGIES]
    + [(MoCapsNet, {"inverse": "exact"}), (MoCapsNet, {"rule": "published"}), (MoCapsNet, {"learn_gamma": True})]
    + [(ResCapsNet, {"memory": memory}) for memory in PLAIN_STRATEGIES],
    ids=str,
)
def test_every_strategy_is_diagnosed_alike(make, options):
    images, labels = example(4)
    alike = {name: value for name, value in options.items() if name in ("rule", "learn_gamma")}
    nets = [small(make, **options), small(make, memory="stored", **alike)]
    nets[1].load_state_dict(nets[0].state_dict())
    mine, theirs = (diagnosed(net, images, labels) for net in nets)
    for one, other in zip(mine, theirs, strict=True):
        assert asdict(one) == pytest.approx(asdict(other), rel=1e-5)


def test_sabours_network_has_its_primary_capsules():
    (found,) = diagnosed(SabourCapsNet(SHAPE, 4, channels=16), *example(3, SHAPE))
    assert (found.block, found.bundles) == (0, 3)
    assert found.gradient_norm > 0


def test_a_network_is_left_as_it_was():
    net = small(MoCapsNet)
    net.train()
    before, draws = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    diagnosed(net, *example(4))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net.training
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_frozen_weights_have_no_gradient():
    net = small(ResCapsNet).requires_grad_(False)
    assert {one.gradient_norm for one in diagnosed(net, *example(3))} == {0.0}


def test_another_network_is_refused():
    with pytest.raises(ConfigurationError, match="a Linear has no blocks that diagnostics know") as refused:
        diagnose(nn.Linear(2, 2), *example(2), lambda out: out.sum())
    assert len(str(refused.value).splitlines()) == 2


# A stack without shortcuts


@pytest.mark.slow
def test_a_stack_without_shortcuts_stays_at_chance_without_nan():
    """CapsNet at 8 blocks: its capsules vanish, so that no two samples are distinguished and no gradient comes through."""
    data = load_images("sample")
    batch = training_batch(data.images[:64], data.labels[:64], torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    net = CapsNet(SHAPE, 10, 8, channels=32)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    losses = []
    for _ in range(4):
        out = net(batch.images, batch.labels)
        loss = LOSS(out, batch.labels, batch.pixels)
        optimizer.zero_grad()
        loss.backward()
        assert loss.isfinite()
        assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
        # All images alike: chance.
        assert torch.equal(out.lengths, out.lengths[:1].expand_as(out.lengths))
    first, *_, last = diagnose(net, batch.images, batch.labels, lambda out: LOSS(out, batch.labels, batch.pixels))
    assert (first.bundles, first.bundle_entropy) == (64, 0)
    assert (last.bundles, last.longest, last.gradient_norm) == (1, 0, 0)
    assert last.bundle_entropy == pytest.approx(last.label_entropy) == pytest.approx(entropy(batch.labels.tolist()))


@pytest.mark.parametrize("make", [ResCapsNet, MoCapsNet])
def test_shortcuts_keep_samples_apart(make):
    data = load_images("sample")
    batch = training_batch(data.images[:64], data.labels[:64], torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    for one in diagnosed(make(SHAPE, 10, 8, channels=32), batch.images, batch.labels):
        assert (one.bundles, one.bundle_entropy) == (64, 0)
        assert one.gradient_norm > 0


# While a network is trained


@pytest.fixture
def small_run(own_model, tmp_path, monkeypatch):
    """`run(folder, **options)` trains a small capsule network for two epochs of four steps."""
    real = trainers.load_parts

    def load(*arguments, **options):
        train_set, test = real(*arguments, **options)
        return Parts(train_set, replace(test, images=test.images[:16], labels=test.labels[:16]))

    monkeypatch.setattr(trainers, "load_parts", load)
    name = own_model(
        "from capsbench.models import MoCapsNet\n"
        "def make(in_shape, num_classes, blocks):\n"
        "    return MoCapsNet(in_shape, num_classes, blocks, channels=8, capsules=4)\n"
    )
    asked = TrainingSettings(
        network=make_configuration(name, 2, batch_size=8), epochs=2, scale=32 / 768, validation=0, learning_rate=0.01
    )

    def run(folder: str, **options):
        return train(asked, tmp_path / folder, **options)

    return run


@pytest.mark.slow
def test_a_line_for_each_block_and_epoch(small_run, tmp_path):
    small_run("seen", diagnostics=True)
    lines = read_diagnostics(tmp_path / "seen")
    assert [(line["epoch"], line["block"]) for line in lines] == [(epoch, block) for epoch in range(3) for block in range(3)]
    assert all(line["bundles"] == 32 for line in lines)
    assert lines[0]["gradient_norm"] != lines[3]["gradient_norm"]
    # It changes nothing.
    small_run("unseen")
    assert not (tmp_path / "unseen" / DIAGNOSTICS).exists()
    curves = [[line["loss"] for line in read_metrics(tmp_path / one) if line["kind"] == "step"] for one in ("seen", "unseen")]
    assert curves[0] == curves[1]


@pytest.mark.slow
@pytest.mark.parametrize("lines", [6, 4, 3], ids=["all", "one", "none"])
def test_a_run_that_goes_on_writes_every_line_once(lines, small_run, tmp_path):
    """A run may have ended between an epoch's checkpoint and any of its lines."""

    class Cut(Exception):
        pass

    class Stop:
        def stepped(self, figures):
            pass

        def finished(self, figures):
            raise Cut

        def notify(self, text):
            pass

    with pytest.raises(Cut):
        small_run("cut", diagnostics=True, observers=[Stop()])
    path = tmp_path / "cut" / DIAGNOSTICS
    written = path.read_bytes().splitlines(keepends=True)
    assert len(written) == 6
    path.write_bytes(b"".join(written[:lines]))
    with path.open("ab") as file:
        file.write(encoded({"kind": "block", "epoch": 2, "block": 0}) + b'{"kind": "block", "ep')
    small_run("cut", diagnostics=True, resume=True)
    small_run("whole", diagnostics=True)
    assert (tmp_path / "cut" / DIAGNOSTICS).read_bytes() == (tmp_path / "whole" / DIAGNOSTICS).read_bytes()


@pytest.mark.slow
def test_a_run_that_goes_on_in_an_epoch_keeps_the_lines_of_the_last(small_run, tmp_path):
    class Cut(Exception):
        pass

    class Stop:
        def stepped(self, figures):
            if (figures.epoch, figures.step) == (2, 3):
                raise Cut

        def finished(self, figures):
            pass

        def notify(self, text):
            pass

    with pytest.raises(Cut):
        small_run("cut", diagnostics=True, observers=[Stop()], checkpoint_minutes=1e-9)
    small_run("cut", diagnostics=True, resume=True)
    small_run("whole", diagnostics=True)
    assert (tmp_path / "cut" / DIAGNOSTICS).read_bytes() == (tmp_path / "whole" / DIAGNOSTICS).read_bytes()


def test_a_full_disk(small_run, tmp_path, monkeypatch):
    from capsbench.errors import LostWorkError
    from capsbench.training import diagnostics

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(diagnostics, "replacing", full)
    with pytest.raises(LostWorkError, match=r"diagnostics\.jsonl cannot be written: No space left") as lost:
        small_run("full", diagnostics=True)
    assert len(str(lost.value).splitlines()) == 2


@pytest.mark.slow
def test_a_model_of_ones_own_is_refused_before_anything_is_written(command, own_model, tmp_path):
    name = own_model("from torch import nn\ndef make(*_):\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n")
    refused = command("train", "--model", name, "--diagnostics", "--out", "run", "--epochs", "1", "--device", "cpu")
    assert refused.status == 2
    assert len(refused.stderr.splitlines()) == 2
    assert "no blocks that diagnostics know" in refused.stderr
    assert not (tmp_path / "run").exists()


# The figure


SIZES = {"mean_length": 1e-4, "gradient_norm": 1e-9}


def write_lines(folder, **fields):
    folder.mkdir()
    usual = {"kind": "block", "bundles": 8, "bundle_entropy": 0.0, "label_entropy": 2.3} | SIZES
    lines = [usual | {"epoch": epoch, "block": block} | fields for epoch in range(12) for block in range(4)]
    (folder / DIAGNOSTICS).write_bytes(b"".join(encoded(line) for line in lines))


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [{}, {"mean_length": 0.0, "gradient_norm": 0.0, "bundle_entropy": 2.3, "bundles": 1}, {"gradient_norm": math.nan}],
    ids=str,
)
def test_diagnostics_are_drawn(command, tmp_path, fields):
    write_lines(tmp_path / "run", **fields)
    drawn = command("figure", "diagnostics", "run", drawn=True)
    assert (drawn.status, drawn.stderr) == (0, "")
    assert [line.split("/")[-1] for line in drawn.stdout.splitlines()] == [
        "diagnostics.svg",
        "diagnostics.png",
        "diagnostics.pdf",
    ]
    svg = (tmp_path / "run" / "diagnostics.svg").read_text(encoding="utf-8")
    for words in ("bundle entropy", "mean capsule length", "no label can be distinguished", "epoch"):
        assert words in svg
    assert "mathdefault" not in svg
    # Of many epochs the first, the last and some between.
    assert ">11<" in svg


def test_zeros_are_drawn_below_all_else():
    row = {"epoch": 0, "bundles": 8, "bundle_entropy": 0.0, "label_entropy": 2.3, **SIZES}
    frame = pd.DataFrame([row | {"block": 0}, row | {"block": 1, "mean_length": 0.0}])
    lengths = next(ax for ax in diagnostics_figure(frame, "run").axes if ax.get_title(loc="left") == "mean capsule length")
    assert list(lengths.lines[0].get_ydata()) == pytest.approx([1e-4, 1e-7])
    assert lengths.get_yscale() == "log"
    assert "0" in [text.get_text() for text in lengths.texts]


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["missing", "empty"])
def test_a_run_without_diagnostics(command, tmp_path, make):
    make(tmp_path / "run")
    refused = command("figure", "diagnostics", "run")
    assert refused.status == 2
    assert len(refused.stderr.splitlines()) == 2
    assert "--diagnostics" in refused.stderr


def test_lines_hold_no_infinity(tmp_path):
    data = load_images("sample")
    feed = Feed(replace(data, images=data.images[:4], labels=data.labels[:4]), torch.device("cpu"), 4, "paper")
    net = MoCapsNet(SHAPE, 10, 1, channels=8, capsules=4)
    with torch.no_grad():
        net.classes.weight.fill_(math.nan)
    DiagnosticsLog(tmp_path, net, feed, 5e-4, 0)
    lines = [json.loads(line) for line in (tmp_path / DIAGNOSTICS).read_text(encoding="utf-8").splitlines()]
    assert lines[0]["gradient_norm"] is None
    assert_close(torch.tensor(lines[0]["label_entropy"]), torch.tensor(entropy(data.labels[:4].tolist())), relative=1e-6)
