"""Make your own network reversible and check its gradients.

A stack of residual functions becomes a `MomentumStack`. It computes the same gradients whether its activations are stored or
rebuilt on the way back; if they are rebuilt, a further block retains nothing for backward.

    python examples/make_a_network_reversible.py
"""

import math
from functools import partial

import torch
from torch import nn

from capsbench.reversible import MomentumStack
from capsbench.testing import memory_slope


def network(in_shape: tuple[int, int, int], num_classes: int, blocks: int, memory: str) -> nn.Module:
    """Your network: a function inside the stack keeps the shape of its input."""
    functions = [nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(blocks)]
    stack = MomentumStack(functions, memory=memory)
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(in_shape), 32), stack, nn.Linear(32, num_classes))


stored, reversible = (network((1, 28, 28), 10, blocks=12, memory=memory) for memory in ("stored", "reversible"))
reversible.load_state_dict(stored.state_dict())
images, labels = torch.rand(8, 1, 28, 28), torch.arange(8)
for one in (stored, reversible):
    nn.functional.cross_entropy(one(images), labels).backward()
for mine, other in zip(stored.parameters(), reversible.parameters(), strict=True):
    torch.testing.assert_close(mine.grad, other.grad)
print("the gradients agree")

for memory in ("stored", "reversible"):
    cost = memory_slope(partial(network, memory=memory))
    print(f"{memory}: a block retains {cost.retained_per_block:.0f} bytes")
