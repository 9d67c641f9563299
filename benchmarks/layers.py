"""Single layers at the sizes of the paper's network, batch 128, for the benchmarks of both kernels."""

from typing import NamedTuple

import torch
from torch import Tensor

from capsbench.measure.memory import probe_for
from capsbench.routing import algorithm_of, route, squash

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Layer(NamedTuple):
    """Sizes of a layer."""

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


class Given(NamedTuple):
    """Cost of a step."""

    inputs: Tensor
    weight: Tensor
    extras: dict[str, Tensor]
    grad: Tensor


def make_step(layer: Layer, routing: str = "rba") -> Given:
    """Inputs, weight and other parameters, and the gradient of the outputs."""
    generator = torch.Generator().manual_seed(0)
    inputs = squash(torch.randn(layer.batch, layer.in_capsules, layer.in_dim, generator=generator))
    weight = torch.randn(layer.in_capsules, layer.in_dim, layer.out_capsules, layer.out_dim, generator=generator) * 0.1
    grad = torch.randn(layer.batch, layer.out_capsules, layer.out_dim, generator=generator)
    shapes = {"bias": (layer.out_capsules, layer.out_dim), "beta_u": (layer.out_capsules,), "beta_a": (layer.out_capsules,)}
    extras = {name: torch.full(shapes[name], 0.1, device=DEVICE).requires_grad_() for name in algorithm_of(routing).extras}
    return Given(inputs.to(DEVICE).requires_grad_(), weight.to(DEVICE).requires_grad_(), extras, grad.to(DEVICE))


def step(inputs: Tensor, weight: Tensor, extras: dict[str, Tensor], grad: Tensor, routing: str, kernel: str) -> None:
    """Forward and backward."""
    outputs = route(inputs, weight, **extras, algorithm=routing, kernel=kernel)
    torch.autograd.grad(outputs, [inputs, weight, *extras.values()], grad)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def peak_bytes(layer: Layer, kernel: str, routing: str = "rba") -> int:
    """The highest point of a step above its start, which has inputs, weight and other parameters."""
    with probe_for(DEVICE) as probe:
        made = make_step(layer, routing)
        step(*made, routing, kernel)
        with probe.phase("step"):
            step(*made, routing, kernel)
    phase = probe.phases()["step"]
    return phase.peak - phase.start
