"""Small momentum stacks, in every way to invert them."""

import torch
from torch import Tensor, nn

from capsbench.reversible import STRATEGIES

WIDTH = 5

# With that Lipschitz constant a segment has one or two functions, so that a small stack has several.
WAYS = {memory: {"memory": memory} for memory in STRATEGIES} | {
    "float": {"inverse": "float"},
    "exact": {"inverse": "exact"},
    "segmented": {"inverse": "segmented", "lipschitz": 1e3},
}
"""Every memory strategy, and every way to invert."""

OTHERS = [way for way in WAYS if way != "stored"]


def functions(depth: int, dtype=torch.float64, seed: int = 0) -> list[nn.Module]:
    """Residual functions that differ from one another."""
    torch.manual_seed(seed)
    return [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()).to(dtype) for _ in range(depth)]


def example(dtype=torch.float64, seed: int = 1) -> tuple[Tensor, Tensor]:
    """An input and a gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    x, grad = (torch.randn(3, WIDTH, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    return x.requires_grad_(), grad
