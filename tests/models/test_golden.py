"""Layers and whole networks equal the published code (tests/golden)."""

import numpy as np
import pytest
import torch
from torch import Tensor

from capsbench.models import CapsNet, CapsuleNetwork, MoCapsNet, ResCapsNet, margin_loss
from capsbench.routing import kernels, route
from helpers import GOLDEN
from helpers.comparing import assert_all_close, assert_close

NETWORKS = {"capsnet": (CapsNet, {}), "rescapsnet": (ResCapsNet, {}), "mocapsnet": (MoCapsNet, {"rule": "published"})}
BLOCKS = 2
KERNELS = [kernel for kernel in kernels() if kernel != "triton"]  # which needs a GPU: test_triton_on_card.py, test_fused.py


def read(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


def in_our_layout(weight: Tensor) -> Tensor:
    """`[J, I, D, K]`, with or without a leading 1, → `[I, K, J, D]`; convolutions and biases as they are."""
    if weight.dim() == 5:
        weight = weight.squeeze(0)
    return weight.permute(1, 3, 0, 2) if weight.shape[-1] == 8 else weight


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["rba_layer", "rba_layer_one_iteration"])
def test_layer(name, kernel):
    golden = read(name)
    inputs, weight = golden["x"].requires_grad_(), in_our_layout(golden["weight"]).requires_grad_()
    output = route(inputs, weight, iterations=int(golden["iterations"]), kernel=kernel)
    gradients = torch.autograd.grad(output, (inputs, weight), golden["grad_output"])
    expected = [golden["output"], golden["grad_x"], in_our_layout(golden["grad_weight"])]
    # The others have no epsilon in squash, see tests/golden/README.md.
    assert_all_close([output, *gradients], expected, relative=1e-10 if kernel == "published" else 2e-7)


@pytest.mark.parametrize("kernel", KERNELS)
def test_sda_layer(kernel):
    golden = read("sda_layer_official_code")
    inputs, weight = golden["x"].requires_grad_(), in_our_layout(golden["weight"]).requires_grad_()
    bias = golden["bias"].requires_grad_()
    output = route(inputs, weight, bias, algorithm="sda-published", iterations=int(golden["iterations"]), kernel=kernel)
    gradients = torch.autograd.grad(output, (inputs, weight, bias), golden["grad_output"])
    expected = [golden["output"], golden["grad_x"], in_our_layout(golden["grad_weight"]), golden["grad_bias"]]
    assert_all_close([output, *gradients], expected, relative=1e-10 if kernel == "published" else 2e-7)


def test_the_golden_sda_layer_tells_the_temperatures_apart():
    golden = read("sda_layer_official_code")
    options = {"iterations": int(golden["iterations"]), "algorithm": "sda"}
    output = route(golden["x"], in_our_layout(golden["weight"]), golden["bias"], **options)
    with pytest.raises(AssertionError, match="relative error"):
        assert_close(output, golden["output"], relative=1e-4)


def network(name: str, golden: dict[str, Tensor], blocks: int = BLOCKS, **options) -> CapsuleNetwork:
    """The golden network cut off after `blocks` blocks, with the published parameters in their published order."""
    make, given = NETWORKS[name]
    net = make((1, 28, 28), 10, blocks, channels=16, capsules=6, decoder=False, **given, **options)
    beyond = tuple(f"param.blocks.{block}." for block in range(blocks, BLOCKS))
    published = [value for key, value in golden.items() if key.startswith("param.") and not key.startswith(beyond)]
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), published, strict=True):
            value = in_our_layout(value)
            assert parameter.shape == value.shape
            parameter.copy_(value)
    return net


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("name", "memory"), [("capsnet", "stored"), ("rescapsnet", "stored"), ("mocapsnet", "stored"), ("mocapsnet", "reversible")]
)
def test_network(name, memory, kernel):
    golden = read(f"{name}_official_code")
    net = network(name, golden, kernel=kernel, memory=memory)
    out = net(golden["images"], golden["labels"])
    loss = margin_loss(out.lengths, golden["labels"])
    loss.backward()
    assert_close(out.lengths, golden["lengths"], relative=2e-4)
    assert_close(loss, golden["margin_loss"], relative=2e-4)
    actual = [net.conv.weight.grad, net.first.weight.grad, net.classes.weight.grad]
    actual += [weight.grad for weight in net.blocks.parameters()]
    expected = [golden["grad.conv1.weight"], golden["grad.caps1.W"], golden["grad.caps2.W"], *golden["grad.blocks"]]
    assert_all_close(actual, [in_our_layout(gradient) for gradient in expected], relative=2e-4)


@pytest.mark.parametrize("blocks", range(1, BLOCKS + 1))
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", NETWORKS)
def test_output_of_every_block(name, kernel, blocks):
    golden = read(f"{name}_official_code")
    net = network(name, golden, blocks, kernel=kernel)
    seen = []
    net.classes.register_forward_pre_hook(lambda _, inputs: seen.append(*inputs))
    net(golden["images"])
    assert_close(seen[0], golden[f"block_output.{blocks - 1}"], relative=2e-4)


def test_the_papers_rule_is_another():
    """The two rules differ, or the golden test could not distinguish them."""
    golden = read("mocapsnet_official_code")
    net = MoCapsNet((1, 28, 28), 10, BLOCKS, channels=16, capsules=6, decoder=False)
    net.load_state_dict(dict(zip(net.state_dict(), network("mocapsnet", golden).state_dict().values(), strict=True)))
    with pytest.raises(AssertionError, match="relative error"):
        assert_close(net(golden["images"]).lengths, golden["lengths"], relative=1e-2)
