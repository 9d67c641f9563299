"""A γ for each block, and a γ that is learnt: the same gradients with every memory strategy and inverse that can have them."""

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from capsbench.data.datasets import load_images
from capsbench.data.preprocess import training_batch
from capsbench.errors import ConfigurationError
from capsbench.models import CapsuleLoss, MoCapsNet
from capsbench.reversible import MomentumStack, resolve_inverse, retained_bits, segment_length
from helpers.comparing import assert_all_close, assert_close, saved_by_autograd
from helpers.networks import small
from helpers.stacks import OTHERS, WAYS, example, functions

LEARNT = [way for way in OTHERS if way != "exact"]
SMALL = {"channels": 16, "capsules": 6}
GAMMAS = (0.6, 0.95, 0.8)
INVERTIBLE = st.floats(0.2, 0.99) | st.just(1.0)
"""Values of γ that fixed point allows too."""


def by_hand(layers: list[nn.Module], gammas: list[Tensor], learned: list[Tensor] | None = None) -> list[Tensor]:
    """Output, and gradients of input, of what is learned and of layers, by plain autograd over algorithm 1 as it is written.

    Args:
        layers: the functions.
        gammas: γ of each of them.
        learned: tensors that these were computed from; by default they are learned themselves.
    """
    x, grad = example()
    state, velocity = x, torch.zeros_like(x)
    for layer, gamma in zip(layers, gammas, strict=True):
        velocity = gamma * velocity + (1 - gamma) * layer(state)
        state = state + velocity
    weights = [parameter for layer in layers for parameter in layer.parameters()]
    return [state, *torch.autograd.grad(state, [x, *(learned or gammas), *weights], grad)]


def by_stack(layers: list[nn.Module], way: str, gamma, **options) -> list[Tensor]:
    """Output, gradients of the input and of all parameters: those of γ come first."""
    stack = MomentumStack(copy.deepcopy(layers), gamma, **WAYS[way], **options)
    if stack.gamma_logits is not None:
        stack.gamma_logits.data = stack.gamma_logits.data.double()
    x, grad = example()
    output = stack(x)
    output.backward(grad)
    return [output, x.grad, *(parameter.grad for parameter in stack.parameters())]


# A γ for each block


@settings(deadline=None, max_examples=60, derandomize=True)
@given(data=st.data(), way=st.sampled_from(["stored", *OTHERS]), segment=st.integers(1, 3), seed=st.integers(0, 99))
def test_every_strategy_has_the_gradients_of_algorithm_1(data, way, segment, seed):
    depth = data.draw(st.integers(1, 6))
    gammas = data.draw(st.lists(INVERTIBLE, min_size=-(-depth // segment), max_size=-(-depth // segment)))
    layers = functions(depth, seed=seed)
    of_layers = [torch.tensor(gammas[place // segment], dtype=torch.float64, requires_grad=True) for place in range(depth)]
    output, grad_x, *rest = by_hand(layers, of_layers)
    actual = by_stack(layers, way, gammas, segment=segment)
    # Fixed point rounds γ to a ratio; the float inverse magnifies rounding by γ^-depth.
    assert_all_close(actual, [output, grad_x, *rest[depth:]], relative=1e-4 if way == "exact" else 1e-9)


@pytest.mark.parametrize("way", ["stored", *OTHERS])
def test_a_gamma_for_each_function(way):
    layers = functions(3)
    exactly = [torch.tensor(gamma, dtype=torch.float64, requires_grad=True) for gamma in GAMMAS]
    output, grad_x, *rest = by_hand(layers, exactly)
    assert_all_close(by_stack(layers, way, GAMMAS), [output, grad_x, *rest[3:]], relative=1e-10)
    # Another order is another network.
    assert not torch.allclose(by_stack(layers, way, GAMMAS[::-1])[0], output, rtol=1e-3)


def test_one_for_all_is_the_same_as_the_same_for_each():
    layers = functions(4)
    for way in WAYS:
        alike, single = by_stack(layers, way, [0.7] * 4), by_stack(layers, way, 0.7)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(alike, single, strict=True))


def test_deep_and_exact_with_gammas_that_differ():
    layers, gammas = functions(120, torch.float32), [0.5, 0.9, 0.99, 1] * 30
    stack = MomentumStack(layers, gammas, inverse="exact")
    x, grad = example(torch.float32)
    stack(x).backward(grad)  # would warn of a drift
    truth = copy.deepcopy(stack).double()
    truth.memory, (again, grad) = "stored", example()
    truth.zero_grad()
    truth(again).backward(grad)
    assert_close(x.grad.double(), again.grad, relative=1e-4)


def test_the_smallest_gamma_says_how_far_is_safe():
    assert resolve_inverse("auto", 16, [0.9] * 16) == resolve_inverse("auto", 16, 0.9) == "float"
    assert resolve_inverse("auto", 16, [0.9] * 15 + [0.5]) != "float"
    assert resolve_inverse("auto", 16, [1.0] * 15 + [0.9]) == "float"
    assert retained_bits("segmented", 16, [0.5, *[0.9] * 15]) == retained_bits("segmented", 16, 0.5)
    assert retained_bits("exact", 2, [0.5, 0.25]) == 128 + 1 + 2
    assert MomentumStack(functions(16), [0.9] * 15 + [0.5]).resolved_inverse() == "exact"
    assert segment_length(0.5) < segment_length(0.9)


@pytest.mark.parametrize("memory", ["reversible", "stored"])
@pytest.mark.parametrize("gamma", [0.999, 0.9, (0.999, 0.5)], ids=str)
def test_a_network_with_a_gamma_for_each_block(gamma, memory):
    images, labels = _batch(4)
    nets = [_network(2, gamma=gamma, memory=way).double() for way in (memory, "stored")]
    outcomes = [_gradients(net, images.double(), labels) for net in nets]
    assert_all_close(*outcomes, relative=1e-9)
    published = _network(2, gamma=gamma, rule="published")
    assert [block.stack.gamma for block in published.blocks] == list(gamma if isinstance(gamma, tuple) else (gamma,) * 2)


def test_gamma_1_passes_on_what_it_is_given():
    images, labels = _batch(4)
    net, none = _network(2, gamma=1), _network(0)
    none.load_state_dict({name: value for name, value in net.state_dict().items() if not name.startswith("blocks")})
    assert torch.equal(net(images, labels).lengths, none(images, labels).lengths)


def test_a_gamma_is_kept_by_copies_and_in_print():
    net = copy.deepcopy(_network(3, gamma=GAMMAS))
    assert net.blocks.gamma == GAMMAS
    assert net.blocks.gammas() == [0.6, 0.6, 0.95, 0.95, 0.8, 0.8]
    assert "gamma=(0.6, 0.95, 0.8)" in repr(net)


# A γ that is learnt


@pytest.mark.parametrize("segment", [1, 2, 5])
@pytest.mark.parametrize("way", ["stored", *LEARNT])
def test_the_gradient_of_a_learnt_gamma(way, segment):
    layers = functions(5)
    blocks = -(-5 // segment)
    logits = torch.linspace(0.3, 2, blocks, dtype=torch.float64, requires_grad=True)
    gammas = [torch.sigmoid(logits)[place // segment] for place in range(5)]
    expected = by_hand(layers, gammas, [logits])

    stack = MomentumStack(copy.deepcopy(layers), 0.9, **WAYS[way], segment=segment, learn_gamma=True).double()
    stack.gamma_logits.data.copy_(logits.detach())
    x, grad = example()
    output = stack(x)
    output.backward(grad)
    actual = [output, x.grad, *(parameter.grad for parameter in stack.parameters())]
    assert_all_close(actual, expected, relative=1e-9)


@pytest.mark.parametrize("way", ["stored", *LEARNT])
def test_gradcheck_of_a_learnt_gamma(way):
    stack = MomentumStack(functions(3), GAMMAS, **WAYS[way], learn_gamma=True).double()
    x, _ = example()
    assert torch.autograd.gradcheck(partial(_WithLogits.apply, stack), (x, stack.gamma_logits.detach().clone().requires_grad_()))


class _WithLogits(torch.autograd.Function):
    """A stack as a function of its input and of `gamma_logits`; each call has a copy with a parameter of its own."""

    @staticmethod
    def forward(ctx, stack, x, logits):
        ctx.stack, ctx.x = copy.deepcopy(stack), x.detach().requires_grad_()
        ctx.stack.gamma_logits.data.copy_(logits)
        with torch.enable_grad():
            ctx.output = ctx.stack(ctx.x)
        return ctx.output.detach()

    @staticmethod
    def backward(ctx, grad):
        return None, *torch.autograd.grad(ctx.output, [ctx.x, ctx.stack.gamma_logits], grad, retain_graph=True)


def test_it_starts_where_it_was_told_to():
    stack = MomentumStack(functions(4), (0.9, 0.5), segment=2, learn_gamma=True)
    assert stack.gammas() == pytest.approx([0.9, 0.9, 0.5, 0.5], rel=1e-6)
    assert stack.gamma_logits.shape == (2,)
    assert "learn_gamma=True" in repr(stack)
    fixed, learnt = (MomentumStack(functions(4), 0.9, "stored", learn_gamma=learn) for learn in (False, True))
    assert_close(learnt(example()[0]), fixed(example()[0]), relative=1e-6)


@pytest.mark.parametrize("way", LEARNT)
def test_all_strategies_compute_with_the_same_gamma(way):
    # To the bit: what is stored keeps γ as a tensor, the reversible stack as a number.
    layers = functions(3, torch.float32)
    x = example(torch.float32)[0]
    outputs = [MomentumStack(layers, 0.87, **WAYS[one], learn_gamma=True)(x) for one in ("stored", way)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("memory", ["reversible", "checkpoint"])
@pytest.mark.parametrize("rule", ["paper", "published"])
def test_a_network_learns_its_gammas(rule, memory):
    images, labels = _batch(8)
    net = _network(3, learn_gamma=True, rule=rule, memory=memory)
    names = [name for name in net.state_dict() if name.endswith("gamma_logits")]
    assert len(names) == (1 if rule == "paper" else 3)
    before = {name: net.state_dict()[name].clone() for name in names}
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        CapsuleLoss()(net(images, labels), labels, images).backward()
        optimizer.step()
    for name, value in before.items():
        assert (net.state_dict()[name] != value).all()
    again = _network(3, learn_gamma=True, rule=rule)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again.eval()(images).lengths, net.eval()(images).lengths)


def test_a_frozen_gamma_has_no_gradient():
    stack = MomentumStack(functions(3), learn_gamma=True).double()
    stack.gamma_logits.requires_grad_(False)
    stack(example()[0]).sum().backward()
    assert stack.gamma_logits.grad is None
    assert all(parameter.grad is not None for parameter in stack.functions.parameters())


def test_a_learnt_gamma_retains_nothing():
    def kept(depth: int, **options) -> int:
        stack = MomentumStack(functions(depth), inverse="float", **options).double()
        owned = {parameter.data_ptr() for parameter in stack.parameters()}
        with saved_by_autograd() as saved:
            stack(example()[0])
        return sum(tensor.nbytes for tensor in saved if tensor.data_ptr() not in owned)

    assert kept(2) == kept(8) == kept(2, learn_gamma=True) == kept(8, learn_gamma=True)


def test_auto_follows_a_gamma_that_is_learnt():
    stack = MomentumStack(functions(16), learn_gamma=True)
    assert stack.resolved_inverse() == "float"
    with torch.no_grad():
        stack.gamma_logits[7] = 0.0
    assert stack.resolved_inverse() == "segmented"


def test_nothing_to_learn_without_blocks():
    assert not list(MomentumStack([], learn_gamma=True).parameters())
    assert _network(0, learn_gamma=True).blocks.gamma_logits is None


# What cannot be


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gamma": (0.9, 0.5)}, "2 values for 3 blocks"),
        ({"gamma": (0.9, 0.5), "rule": "published"}, "2 values for 3 blocks"),
        ({"gamma": (0.9, 1.5, 0.9)}, "`gamma` 1.5 is out of range"),
        ({"gamma": (0.9, 0.0, 0.9)}, "`gamma` 0 cannot be reversible"),
        ({"gamma": (0.9, float("nan"), 0.9)}, "`gamma` nan is out of range"),
        ({"gamma": (0.9, 1e-6, 0.9), "inverse": "exact"}, "`gamma` 1e-06 is too near to 0 or 1"),
        ({"learn_gamma": True, "inverse": "exact"}, "`inverse` exact cannot compute with a gamma that is learnt"),
        ({"learn_gamma": True, "gamma": 1}, "`gamma` 1 cannot be learnt"),
        ({"learn_gamma": True, "gamma": (0.9, 0.0, 0.9), "memory": "stored"}, "`gamma` 0.0 cannot be learnt"),
    ],
    ids=str,
)
def test_refused_at_entry(options, words):
    with pytest.raises(ConfigurationError, match=words) as refused:
        _network(3, **options)
    assert len(str(refused.value).splitlines()) == 2


@pytest.mark.parametrize(("logit", "words"), [(float("nan"), "`gamma` nan is out of"), (-200, "`gamma` 0 cannot be reversible")])
def test_a_learnt_gamma_that_leaves_the_range(logit, words):
    stack = MomentumStack(functions(2, torch.float32), learn_gamma=True)
    with torch.no_grad():
        stack.gamma_logits[1] = logit
    with pytest.raises(ConfigurationError, match=words):
        stack(example(torch.float32)[0])


# Very deep


@pytest.mark.parametrize("options", [{}, {"learn_gamma": True}, {"gamma": 0.999}], ids=str)
def test_20_blocks_train(options):
    images, labels = _batch(16)
    pixels = images
    net = MoCapsNet((1, 28, 28), 10, 20, **SMALL, **options)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = CapsuleLoss()(net(images, labels), labels, pixels)
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
        assert all(parameter.grad.any() for parameter in net.blocks.functions.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def _network(blocks: int, **options) -> MoCapsNet:
    """A small one on 28×28, so lively that no layer shrinks capsules to nothing; γ is what it was told to be."""
    asked = MoCapsNet((1, 28, 28), 10, blocks, **SMALL, **options)
    net = small(MoCapsNet, blocks, in_shape=(1, 28, 28), num_classes=10, **options)
    logits = {name: value for name, value in asked.state_dict().items() if name.endswith("gamma_logits")}
    net.load_state_dict(logits, strict=False)
    return net


def _batch(size: int) -> tuple[Tensor, Tensor]:
    data = load_images("sample")
    batch = training_batch(data.images[:size], data.labels[:size], torch.Generator().manual_seed(0))
    return batch.images, batch.labels


def _gradients(net: MoCapsNet, images: Tensor, labels: Tensor) -> list[Tensor]:
    out = net(images, labels)
    assert out.lengths.max() > 0.01
    CapsuleLoss()(out, labels, images).backward()
    return [out.lengths, *(parameter.grad for parameter in net.parameters())]
