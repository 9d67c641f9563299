"""Networks as a user may bring them, and what they do behind autograd's back."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Doubled(torch.autograd.Function):
    """A layer that keeps its input hidden from autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.kept = x
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


class Net(nn.Module):
    """Flattens images, does something to them, and scores classes."""

    def __init__(self, middle: nn.Module, *, width: int = 24, channels: int = 1) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(channels * 28 * 28, width), middle, nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.middle(self.first(images.flatten(1))))


class Functional(nn.Module):
    """Calls a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Remembering(nn.Module):
    """A layer that keeps its input as an attribute, in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, list[Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        y = x.exp()
        self.seen["last"] = [y.detach() * 3]
        return y
