"""The interface of a kernel, which is one way to compute a routing algorithm."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

Kept = tuple[Tensor, ...]
"""Tensors that a kernel passes from forward to backward so that it need not repeat its rounds."""


class Kernel(ABC):
    """One way to compute an algorithm. Its `extras` are the parameters but the weight, in the order of `Algorithm.extras`."""

    @abstractmethod
    def route(self, inputs: Tensor, weight: Tensor, extras: list[Tensor], iterations: int) -> Tensor:
        """Compute the outputs, differentiably."""

    def keeping(self, inputs: Tensor, weight: Tensor, extras: list[Tensor], iterations: int) -> tuple[Tensor, Kept]:
        """Compute the outputs without a graph, and the tensors that spare `and_vjp` the rounds."""
        return self.route(inputs, weight, extras, iterations), ()

    def and_vjp(
        self, inputs: Tensor, weight: Tensor, extras: list[Tensor], iterations: int, *, grad: Tensor, kept: Kept
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute the outputs, and the gradients of `(outputs * grad).sum()` for inputs, weight and extras, without a graph."""
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in (inputs, weight, *extras)]
            outputs = self.route(leaves[0], leaves[1], leaves[2:], iterations)
        return outputs.detach(), torch.autograd.grad(outputs, leaves, grad, materialize_grads=True)


class FunctionKernel(Kernel):
    """A kernel that is a plain function: (inputs, weight, *extras, iterations) → outputs."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function

    def route(self, inputs: Tensor, weight: Tensor, extras: list[Tensor], iterations: int) -> Tensor:
        """Implement `Kernel.route`."""
        return self._function(inputs, weight, *extras, iterations)
