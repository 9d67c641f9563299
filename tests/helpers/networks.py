"""Small capsule networks, and what they are given."""

import torch
from torch import Tensor, nn

from capsbench.models import CapsuleNetwork

SHAPE = (1, 20, 20)
SMALL = {"channels": 16, "capsules": 6}


def small(make: type[CapsuleNetwork], blocks: int = 2, seed: int = 0, lively: bool = True, **options) -> CapsuleNetwork:
    """A small network; where it is lively its weights are so large that no layer shrinks capsules to nothing."""
    torch.manual_seed(seed)
    net = make(options.pop("in_shape", SHAPE), options.pop("num_classes", 4), blocks, **{**SMALL, **options})
    if lively:
        with torch.no_grad():
            net.primary.conv.weight *= 10
        for part in (net.first, net.blocks, net.classes):
            for weight in part.parameters():
                nn.init.normal_(weight)
    return net


def example(batch: int = 3, shape=SHAPE, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Images and labels."""
    generator = torch.Generator().manual_seed(5)
    return torch.rand(batch, *shape, generator=generator), torch.arange(batch) % classes
