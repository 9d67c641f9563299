"""Calls of `route`, and their outputs and gradients."""

from typing import NamedTuple

import torch
from torch import Tensor

from capsbench.routing import algorithm_of, route

# B, I, K, J, D
SIZES = [(2, 6, 3, 4, 5), (1, 7, 5, 3, 2), (3, 1, 4, 5, 3), (5, 11, 1, 1, 7), (2, 9, 3, 5, 1), (1, 1, 1, 1, 1), (4, 33, 8, 31, 8)]


class Example(NamedTuple):
    """The arguments of one call of `route`."""

    algorithm: str
    inputs: Tensor
    weight: Tensor
    extras: dict[str, Tensor]
    grad: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        return [self.inputs, self.weight, *self.extras.values()]

    def map(self, change) -> "Example":
        """Return the call with every tensor changed, and a leaf again."""
        extras = {name: leaf(change(tensor)) for name, tensor in self.extras.items()}
        return Example(self.algorithm, leaf(change(self.inputs)), leaf(change(self.weight)), extras, change(self.grad))

    def route(self, kernel: str, iterations: int = 3) -> Tensor:
        options = {"algorithm": self.algorithm, "iterations": iterations, "kernel": kernel}
        return route(self.inputs, self.weight, **self.extras, **options)


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def example(sizes, dtype=torch.float64, seed=0, algorithm="rba") -> Example:
    """Votes large enough that agreement matters, and about as many limited by SDA as not."""
    batch, count, dim, outputs, out_dim = sizes
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs, weight, grad = normal(batch, count, dim), normal(count, dim, outputs, out_dim), normal(batch, outputs, out_dim)
    if algorithm.startswith("sda"):
        weight *= out_dim**-0.5
    shapes = {"bias": (outputs, out_dim), "beta_u": (outputs,), "beta_a": (outputs,)}
    extras = {name: leaf((0.3 * normal(*shapes[name])).to(dtype)) for name in algorithm_of(algorithm).extras}
    return Example(algorithm, leaf(inputs.to(dtype)), leaf(weight.to(dtype)), extras, grad.to(dtype))


def outcome(given: Example, kernel: str, iterations: int = 3) -> list[Tensor]:
    """The outputs and the gradients of everything."""
    output = given.route(kernel, iterations)
    return [output, *torch.autograd.grad(output, given.tensors, given.grad, materialize_grads=True)]


def not_contiguous(tensor: Tensor) -> Tensor:
    """Return equal values with the order of the dimensions in memory reversed."""
    dims = tuple(reversed(range(tensor.dim())))
    return tensor.permute(dims).contiguous().permute(dims)
