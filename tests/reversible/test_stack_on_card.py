"""Reversible stacks on a CUDA device; `helpers.card` says how the same tests run on a CPU."""

import re
import warnings
from functools import partial

import pytest
import torch
from torch import nn

from capsbench import CapsuleLoss, MoCapsNet, ResCapsNet
from capsbench.reversible import DriftWarning, MomentumStack
from capsbench.reversible.drift import settle
from helpers import ROOT
from helpers.card import DEVICE, ON_CARD, captured, counting_waits, either, kernels_of, needs_card
from helpers.comparing import assert_all_close, relative_error

pytestmark = [pytest.mark.cuda, needs_card]

WAYS = {
    f"{inverse}{words}": {"inverse": inverse, "memory": memory}
    for inverse in ("float", "segmented", "exact")
    for memory, words in (("reversible", ""), ("reversible-kept", ", kept"))
}


def blocks_of(blocks, make=MoCapsNet, **options):
    """The blocks of a network with weights large enough to matter; the kernel is the default."""
    torch.manual_seed(0)
    stack = make((1, 28, 28), 10, blocks, capsules=either(32, 8), decoder=False, **options).blocks.to(DEVICE)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.mul_(10)
    return stack


def capsules(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(either(16, 3), either(32, 8), 8, generator=generator) * 0.3).to(DEVICE, dtype).requires_grad_()


def gradients(stack, x, seed=0):
    """Output and gradients of a step."""
    torch.manual_seed(seed)
    stack.zero_grad()
    output = stack(x)
    weights = torch.arange(output.numel(), device=DEVICE, dtype=torch.float64).sin().view_as(output).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, [x, *stack.parameters()], weights)]


@pytest.mark.parametrize("blocks", either([1, 8, 64], [1, 8]))
@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_the_stored_stack(way, blocks):
    """Against float64 no more than a few times the error of float32; a float inverse goes back through 8 blocks at most."""
    if way.startswith("float") and blocks > 8:
        pytest.skip("drifts")
    exact = gradients(blocks_of(blocks, memory="stored").double(), capsules(torch.float64))
    stored, found = (gradients(blocks_of(blocks, **options), capsules()) for options in ({"memory": "stored"}, WAYS[way]))
    for mine, theirs, truth in zip(found, stored, exact, strict=True):
        assert relative_error(mine.double(), truth) <= 4 * relative_error(theirs.double(), truth) + 2e-5


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(way, dtype):
    """Both ways evaluate functions in the same precision."""
    found = []
    for options in ({"memory": "stored"}, WAYS[way]):
        with torch.autocast(DEVICE.type, dtype=dtype):
            found.append(gradients(blocks_of(4, **options), capsules()))
    assert_all_close(found[1], found[0], relative=1e-2)


@pytest.mark.parametrize("rule", ["paper", "published"])
def test_a_network_has_the_gradients_of_the_stored_one(rule):
    found = []
    images = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0)).to(DEVICE).double()
    labels = torch.arange(4, device=DEVICE)
    for memory in ("stored", "reversible"):
        torch.manual_seed(0)
        net = MoCapsNet((1, 28, 28), 10, 2, memory=memory, rule=rule, channels=either(256, 32), capsules=either(32, 8))
        net = net.double().to(DEVICE)
        CapsuleLoss()(net(images, labels), labels, images).backward()
        found.append([parameter.grad for parameter in net.parameters()])
    for stored, reversible in zip(*found, strict=True):
        scale = stored.abs().max().item()
        torch.testing.assert_close(reversible, stored, rtol=1e-6, atol=1e-6 * scale)


def drawing(depth=4, **options):
    """Functions that draw, with statistics and without."""
    torch.manual_seed(0)
    layers = [
        nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5), nn.BatchNorm1d(16) if place % 2 else nn.Tanh())
        for place in range(depth)
    ]
    return MomentumStack(layers, **options).to(DEVICE)


def rows():
    return torch.randn(32, 16, generator=torch.Generator().manual_seed(1)).to(DEVICE).requires_grad_()


@pytest.mark.parametrize("inverse", ["float", "segmented", "exact"])
def test_functions_that_draw_draw_the_same_again(inverse):
    expected, found = (gradients(drawing(**options), rows(), seed=5) for options in ({"memory": "stored"}, {"inverse": inverse}))
    assert_all_close(found, expected, relative=1e-4)
    other = gradients(drawing(inverse=inverse), rows(), seed=6)
    assert relative_error(other[1], expected[1]) > 0.1, "another mask has other gradients"


@pytest.mark.parametrize("inverse", ["float", "exact"])
def test_the_generators_are_where_plain_autograd_leaves_them(inverse):
    drawn = []
    for options in ({"memory": "stored"}, {"inverse": inverse}):
        gradients(drawing(**options), rows(), seed=5)
        drawn.append(torch.rand(4, device=DEVICE))
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    ("stack", "waits"),
    [
        (lambda: blocks_of(8, inverse="float"), 0),
        (lambda: blocks_of(8, inverse="segmented"), 0),
        (lambda: blocks_of(8, inverse="exact"), 1),
        (lambda: blocks_of(8, inverse="float", rule="published"), 0),
        (lambda: drawing(inverse="float"), 0),
        (lambda: drawing(inverse="float").eval(), 0),
    ],
    ids=["float", "segmented", "exact", "published rule", "draws and statistics", "statistics in eval"],
)
def test_waits_of_a_step(stack, waits):
    stack = stack()
    x = rows() if isinstance(stack, MomentumStack) and isinstance(stack.functions[0], nn.Sequential) else capsules()
    gradients(stack, x)
    with counting_waits() as counted:
        gradients(stack, x)
    assert counted.waits <= either(waits, 0)


def counted_launches(name):
    """Launches of one block, forward and backward, from the committed table."""
    line = next(one for one in (ROOT / "benchmarks/launches.md").read_text(encoding="utf-8").splitlines() if f"| {name} |" in one)
    forward, backward, *_ = (int(found) for found in re.findall(r"\| (\d+)", line))
    return forward + backward


@pytest.mark.parametrize(
    ("name", "make", "options"),
    [
        ("ResCapsNet, stored", ResCapsNet, {}),
        ("MoCapsNet, float", MoCapsNet, {"inverse": "float"}),
        ("MoCapsNet, exact", MoCapsNet, {"inverse": "exact"}),
        ("MoCapsNet, segmented", MoCapsNet, {"inverse": "segmented"}),
    ],
)
def test_a_block_starts_as_many_kernels_as_were_counted_without_a_device(name, make, options):
    """A library may start two kernels for an operator."""
    few, many = (kernels_of(partial(gradients, blocks_of(blocks, make, **options), capsules())) for blocks in (2, 6))
    expected = counted_launches(name)
    assert expected >= 10
    assert (many - few) / 4 <= 1.25 * expected + 2
    assert few == 0 or ON_CARD


@pytest.mark.parametrize(
    "options", [{"inverse": "float"}, {"inverse": "segmented"}, {"inverse": "auto"}, {"memory": "stored"}], ids=str
)
def test_a_step_in_a_cuda_graph(options):
    stack, x = blocks_of(12, **options), capsules()
    expected = gradients(stack, x)
    found = []

    def step():
        found[:] = gradients_in_place(stack, x)

    replay = captured(step)
    replay()
    assert_all_close(found, expected, relative=1e-4)


def gradients_in_place(stack, x):
    """The tensors of `gradients`, of which a graph writes the same ones at every replay."""
    output = stack(x)
    weights = torch.arange(output.numel(), device=DEVICE, dtype=torch.float32).sin().view_as(output)
    return [output, *torch.autograd.grad(output, [x, *stack.parameters()], weights)]


def test_a_drift_is_told_after_the_step():
    stack, x = blocks_of(30, inverse="float", gamma=0.5), capsules()
    settle()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gradients(stack, x)
        settle()
    assert [one.category for one in caught if one.category is DriftWarning] == [DriftWarning]
