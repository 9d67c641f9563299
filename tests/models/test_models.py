"""The networks: sizes, what the decoder sees, strategies and rules, numbers that stay alive, and the loss."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from capsbench.data.datasets import load_images
from capsbench.data.preprocess import training_batch
from capsbench.errors import ConfigurationError, ShapeError
from capsbench.models import CapsNet, CapsuleLoss, CapsuleNetwork, CapsuleOutput, MoCapsNet, ResCapsNet, margin_loss
from capsbench.reversible import PLAIN_STRATEGIES, STRATEGIES
from helpers.comparing import assert_alive, assert_all_close, assert_close, relative_error
from helpers.networks import SMALL, example, small

NETWORKS = [CapsNet, ResCapsNet, MoCapsNet]
MNIST, CIFAR = (1, 28, 28), (3, 32, 32)


def outcome(net: CapsuleNetwork) -> list[Tensor]:
    """Lengths, loss and the gradients of all parameters."""
    images, labels = example()
    out = net(images, labels)
    assert out.lengths.max() > 0.01  # what has shrunk to nothing proves nothing
    loss = CapsuleLoss()(out, labels, images)
    loss.backward()
    return [out.lengths, loss, *(parameter.grad for parameter in net.parameters())]


# Sizes


@pytest.mark.parametrize(
    ("shape", "decoder", "expected"),
    [(MNIST, True, 9_272_336), (CIFAR, True, 13_494_016), (MNIST, False, 7_860_992), (CIFAR, False, 9_737_472)],
    ids=str,
)
@pytest.mark.parametrize("make", NETWORKS)
def test_parameter_counts(make, shape, decoder, expected):
    with torch.device("meta"):
        counts = [sum(p.numel() for p in make(shape, 10, blocks, decoder=decoder).parameters()) for blocks in (1, 0, 2, 8)]
    assert counts == [expected + blocks * 131_072 for blocks in (0, -1, 1, 7)]


@pytest.mark.parametrize("decoder", [True, False])
@pytest.mark.parametrize("in_shape", [(1, 28, 28), (3, 32, 32), (1, 17, 17), (2, 18, 25)], ids=str)
@pytest.mark.parametrize("make", NETWORKS)
def test_output_shapes(make, in_shape, decoder):
    net = small(make, in_shape=in_shape, num_classes=7, class_dim=5, capsule_dim=4, decoder=decoder)
    out = net(torch.rand(3, *in_shape))
    lengths, capsules, reconstruction = out
    assert isinstance(out, CapsuleOutput)
    assert isinstance(out, tuple)  # what DDP and others look into for tensors
    assert lengths.shape == (3, 7)
    assert capsules.shape == (3, 7, 5)
    assert_close(lengths, capsules.norm(dim=-1), relative=1e-6)
    if decoder:
        assert reconstruction.shape == (3, *in_shape)
        assert reconstruction.min() >= 0
        assert reconstruction.max() <= 1
    else:
        assert reconstruction is None


@pytest.mark.parametrize("make", NETWORKS)
def test_no_blocks_at_all(make):
    assert_all_close(outcome(small(make, blocks=0)), outcome(small(CapsNet, blocks=0)), relative=1e-6)


def test_initial_weights():
    torch.manual_seed(0)
    net = MoCapsNet(MNIST, 10, 1, decoder=False)
    for weight in (net.first.weight, *net.blocks.parameters(), net.classes.weight):
        assert 0.009 < weight.std().item() < 0.011
        assert abs(weight.mean().item()) < 1e-3


def test_primary_capsules_are_consecutive_values_of_the_map():
    net = small(CapsNet, in_shape=(1, 28, 28))
    maps = torch.relu(net.conv(example(shape=(1, 28, 28))[0]))
    values = net.primary.conv(maps).flatten(1)
    capsules = net.primary(maps)
    assert capsules.shape == (3, 72, 8)
    for place in (0, 1, 71):
        s = values[:, 8 * place : 8 * place + 8]
        norm = s.norm(dim=1, keepdim=True)
        assert_close(capsules[:, place], norm / (1 + norm**2) * s, relative=1e-5)


# What the decoder sees


@pytest.mark.parametrize("training", [True, False])
def test_labels_choose_what_the_decoder_sees(training):
    net = small(ResCapsNet).train(training)
    images, _ = example()
    out = net(images)
    longest = out.lengths.argmax(dim=1)
    for other in (0, 1):
        labels = (longest + other) % 4
        shown = torch.stack(
            [
                nn.functional.one_hot(label, 4).unsqueeze(1) * capsules
                for label, capsules in zip(labels, out.capsules, strict=True)
            ]
        )
        again = net(images, labels)
        assert_close(again.reconstruction.flatten(1), net.decoder.layers(shown.flatten(1)), relative=1e-6)
        assert_close(again.lengths, out.lengths, relative=0)
        assert (relative_error(again.reconstruction, out.reconstruction) > 1e-3) == bool(other)


# Strategies and rules


@pytest.mark.parametrize(
    ("make", "memory", "options"),
    [(make, memory, {}) for make in (CapsNet, ResCapsNet) for memory in PLAIN_STRATEGIES]
    + [(MoCapsNet, memory, {"rule": rule}) for memory in STRATEGIES for rule in ("paper", "published")],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value),
)
def test_strategies_give_the_same_gradients(make, memory, options):
    expected = outcome(small(make, 3, memory="stored", kernel="reference", **options))
    assert_all_close(outcome(small(make, 3, memory=memory, **options)), expected, relative=2e-5)


@pytest.mark.parametrize("kernel", ["published", "reference", "recompute"])
def test_kernels_give_the_same_network(kernel):
    assert_all_close(outcome(small(MoCapsNet, kernel=kernel)), outcome(small(MoCapsNet)), relative=2e-5)


@pytest.mark.parametrize("make", [CapsNet, ResCapsNet])
def test_blocks_with_and_without_shortcut(make):
    net = small(make)
    layers = [layer for block in net.blocks.blocks for layer in block]
    x = expected = torch.randn(3, 6, 8)
    for layer in layers:
        expected = layer(expected) + (expected if make is ResCapsNet else 0)
    assert len(layers) == 4
    assert_close(net.blocks(x), expected, relative=1e-6)


@pytest.mark.parametrize("gamma", [0.9, 0.4])
def test_the_papers_rule_has_one_velocity(gamma):
    net = small(MoCapsNet, gamma=gamma)
    x = state = torch.randn(3, 6, 8)
    velocity = torch.zeros_like(x)
    for layer in net.blocks.functions:
        velocity = gamma * velocity + (1 - gamma) * layer(state)
        state = state + velocity
    assert_close(net.blocks(x), state, relative=1e-6)


@pytest.mark.parametrize("gamma", [0.9, 0.4])
def test_the_published_rule_restarts_and_keeps_a_shortcut(gamma):
    net = small(MoCapsNet, gamma=gamma, rule="published")
    layers = iter(small(MoCapsNet, gamma=gamma).blocks.functions)  # the same weights, in order
    x = state = torch.randn(3, 6, 8)
    for f, g in zip(layers, layers, strict=True):
        first = (1 - gamma) * f(state)
        second = gamma * first + (1 - gamma) * g(state + first)
        state = 2 * state + first + second
    assert_close(net.blocks(x), state, relative=1e-6)


def test_gamma_0_is_rescapsnet():
    mo, res = small(MoCapsNet, gamma=0, memory="stored"), small(ResCapsNet)
    assert_all_close(outcome(mo), outcome(res), relative=1e-6)


# Numbers stay alive


@pytest.mark.parametrize("blocks", [1, 8])
@pytest.mark.parametrize("make", [ResCapsNet, MoCapsNet])
def test_the_first_step_is_alive(make, blocks):
    torch.manual_seed(0)
    net = make(MNIST, 10, blocks)
    images, labels = example(2, MNIST)
    out = net(images, labels)
    CapsuleLoss()(out, labels, images).backward()
    assert out.lengths.min() > 0
    assert out.lengths.max() < 1e-6  # tiny indeed, or the test proves nothing
    for parameter in net.parameters():
        assert_alive(parameter.grad)


@pytest.mark.parametrize("kernel", ["reference", "recompute"])
def test_a_stack_that_shrinks_to_nothing_gives_no_nan(kernel):
    """The published baseline ends in NaN here."""
    torch.manual_seed(0)
    net = CapsNet(MNIST, 10, 8, kernel=kernel)
    images, labels = example(2, MNIST)
    out = net(images, labels)
    loss = CapsuleLoss()(out, labels, images)
    loss.backward()
    assert out.lengths.max() == 0
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())


@pytest.mark.parametrize(("make", "blocks"), [(CapsNet, 0), (ResCapsNet, 2), (MoCapsNet, 2)])
def test_it_learns(make, blocks):
    """Training from the paper's own initialisation takes lengths of 1e-10 off the ground."""
    sample = load_images("sample")
    batch = training_batch(sample.images[:16], sample.labels[:16], torch.Generator().manual_seed(0))
    net = small(make, blocks, lively=False, in_shape=MNIST, num_classes=10, decoder=False)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = margin_loss(net(batch.images).lengths, batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(16 * 0.9**2, rel=1e-3)  # nothing is said to be present
    assert losses[-1] < 8.3  # below 16 · 0.52, the best that one length for all classes can get


def test_autocast_keeps_capsules_in_float32():
    net = small(MoCapsNet)
    images, labels = example()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(images, labels)
        loss = CapsuleLoss()(out, labels, images)
    loss.backward()
    assert out.lengths.dtype == out.capsules.dtype == loss.dtype == torch.float32
    assert out.reconstruction.dtype in (torch.bfloat16, torch.float32)
    for parameter in net.parameters():
        assert_alive(parameter.grad)


# What is refused


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (CapsNet, {"blocks": -1}, "-1"),
        (CapsNet, {"iterations": 0}, "0"),
        (CapsNet, {"kernel": "fastest"}, "'fastest'"),
        (CapsNet, {"routing": "agreement"}, "'agreement'"),
        (CapsNet, {"in_shape": (1, 16, 28)}, "(1, 16, 28)"),
        (CapsNet, {"in_shape": (28, 28)}, "(28, 28)"),
        (CapsNet, {"in_shape": (0, 28, 28)}, "(0, 28, 28)"),
        (CapsNet, {"capsule_dim": 7}, "7"),
        (CapsNet, {"capsule_dim": 0}, "0"),
        (CapsNet, {"channels": 0}, "0"),
        (CapsNet, {"capsules": -2}, "-2"),
        (CapsNet, {"class_dim": 0}, "0"),
        (CapsNet, {"num_classes": 0}, "0"),
        (CapsNet, {"memory": "reversible"}, "`memory` reversible"),
        (ResCapsNet, {"memory": "reversible"}, "`memory` reversible"),
        (MoCapsNet, {"memory": "revertible"}, "`memory` revertible"),
        (MoCapsNet, {"rule": "algorithm"}, "'algorithm'"),
        (MoCapsNet, {"inverse": "exactly"}, "'exactly'"),
        (MoCapsNet, {"gamma": 0}, "`gamma` 0 "),
        (MoCapsNet, {"gamma": 1.1, "rule": "published"}, "1.1"),
    ],
    ids=str,
)
def test_arguments_that_make_no_network(make, options, said):
    with pytest.raises(ConfigurationError) as refused:
        make(**{"in_shape": MNIST, "num_classes": 10, "blocks": 1, **SMALL, **options})
    assert said in refused.value.what
    assert refused.value.hint


@pytest.mark.parametrize("shape", [(3, 1, 21, 20), (3, 2, 20, 20), (1, 20, 20), (3, 1, 400)], ids=str)
def test_images_that_do_not_fit(shape):
    with pytest.raises(ShapeError) as refused:
        small(CapsNet)(torch.zeros(shape))
    assert str(list(shape)) in refused.value.what
    assert "1, 20, 20" in refused.value.hint


# As any other module


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("make", NETWORKS)
def test_copies_compute_the_same(make, duplicate):
    net = small(make)
    outcome(net)  # a step leaves nothing behind that could not be copied
    twin = duplicate(net)
    net.zero_grad()
    twin.zero_grad()
    assert_all_close(outcome(twin), outcome(net), relative=0)


@pytest.mark.parametrize("make", NETWORKS)
def test_state_moves_between_networks_and_strategies(make):
    one, other = small(make), small(make, seed=1, memory="checkpoint")
    images, _ = example()
    assert relative_error(other(images).lengths, one(images).lengths) > 0.01
    other.load_state_dict(one.state_dict())
    assert_close(other.eval()(images).lengths, one(images).lengths, relative=1e-6)


@pytest.mark.parametrize("make", NETWORKS)
def test_double_precision(make):
    net = small(make).double()
    out = net(example()[0].double())
    assert {tensor.dtype for tensor in out} == {torch.float64}


def test_printing_says_what_a_layer_is():
    said = repr(small(MoCapsNet, kernel="published"))
    assert "6×8 → 4×16, rba × 3, kernel='published'" in said
    assert "gamma=0.9, memory='reversible'" in said


# The loss

LENGTHS = torch.tensor([[0.95, 0.05, 0.3], [0.2, 0.6, 0.0]])
LABELS = torch.tensor([0, 2])
# Sample 1: the label is long enough; 0.3 is 0.2 too long. Sample 2: nothing of the label's 0.9; 0.1 and 0.5 too long.
MARGIN = 0.5 * 0.2**2 + 0.9**2 + 0.5 * (0.1**2 + 0.5**2)


def test_margin_loss_by_hand():
    assert margin_loss(LENGTHS, LABELS).item() == pytest.approx(MARGIN)
    # Sample 1: 0.05 and 0.3 against m⁻ = 0; sample 2 likewise 0.2 and 0.6; labels fall short of 1 by 0.05 and 1.
    expected = 0.05**2 + 1 + 2 * (0.05**2 + 0.3**2 + 0.2**2 + 0.6**2)
    assert margin_loss(LENGTHS, LABELS, present=1, absent=0, down_weight=2).item() == pytest.approx(expected)


def test_loss_is_summed_over_the_batch():
    twice = margin_loss(LENGTHS.repeat(2, 1), LABELS.repeat(2))
    assert twice.item() == pytest.approx(2 * MARGIN)


def test_capsule_loss_by_hand():
    images = torch.full((2, 1, 3, 3), 0.25)
    out = CapsuleOutput(LENGTHS, torch.zeros(2, 3, 4), torch.full((2, 1, 3, 3), 0.75))
    assert CapsuleLoss()(out, LABELS, images).item() == pytest.approx(MARGIN + 5e-4 * 18 * 0.25)
    assert CapsuleLoss(reconstruction_weight=2)(out, LABELS, images).item() == pytest.approx(MARGIN + 2 * 18 * 0.25)
    assert CapsuleLoss()(out._replace(reconstruction=None), LABELS).item() == pytest.approx(MARGIN)
    with pytest.raises(ConfigurationError, match="images is missing"):
        CapsuleLoss()(out, LABELS)
