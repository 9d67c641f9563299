"""The routing kernels beside each other: time of forward + backward, and the peak of the same step.

    python -m pytest benchmarks --benchmark-only --benchmark-group-by=param:layer

prints the times; `--benchmark-json FILE` keeps them with `peak_bytes` in each entry's `extra_info`: the highest point above
what was there before the step (inputs and weights), so their gradients are in it. Compare within one run only.
"""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from capsbench.measure.memory import probe_for
from capsbench.routing import kernels, route, squash

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Layer(NamedTuple):
    """Sizes of a layer of the paper's network at batch 128."""

    batch: int
    in_capsules: int
    in_dim: int
    out_capsules: int
    out_dim: int


LAYERS = {
    "first": Layer(128, 1152, 8, 32, 8),
    "block": Layer(128, 32, 8, 32, 8),
    "classes": Layer(128, 32, 8, 10, 16),
}


def make_step(layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, weight and the gradient of the outputs."""
    generator = torch.Generator().manual_seed(0)
    inputs = squash(torch.randn(layer.batch, layer.in_capsules, layer.in_dim, generator=generator))
    weight = torch.randn(layer.in_capsules, layer.in_dim, layer.out_capsules, layer.out_dim, generator=generator) * 0.1
    grad = torch.randn(layer.batch, layer.out_capsules, layer.out_dim, generator=generator)
    return inputs.to(DEVICE).requires_grad_(), weight.to(DEVICE).requires_grad_(), grad.to(DEVICE)


def step(inputs: Tensor, weight: Tensor, grad: Tensor, kernel: str) -> None:
    """Forward and backward."""
    outputs = route(inputs, weight, kernel=kernel)
    torch.autograd.grad(outputs, [inputs, weight], grad)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def peak_bytes(layer: Layer, kernel: str) -> int:
    """The highest point of a step above what it starts from."""
    with probe_for(DEVICE) as probe:
        tensors = make_step(layer)
        step(*tensors, kernel)
        with probe.phase("step"):
            step(*tensors, kernel)
    phase = probe.phases()["step"]
    return phase.peak - phase.start


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("layer", LAYERS)
def test_forward_and_backward(benchmark, layer: str, kernel: str) -> None:
    torch.set_flush_denormal(True)
    sizes = LAYERS[layer]
    benchmark.extra_info.update(device=DEVICE.type, threads=torch.get_num_threads(), peak_bytes=peak_bytes(sizes, kernel))
    benchmark.pedantic(step, args=(*make_step(sizes), kernel), rounds=5, warmup_rounds=1)
    assert benchmark.extra_info["peak_bytes"] > 0
