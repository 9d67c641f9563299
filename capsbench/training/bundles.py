"""Reasons for the collapse of a stack: bundles of samples, lengths of capsules, and gradients that arrive at each block.

Samples that a layer cannot tell apart form a bundle, which is conflicting if it holds several labels: all of it is
pushed the same way in training. A layer's bundle entropy is that of the labels in a bundle, averaged over bundles by their size
(Peer, Stabinger and Rodríguez-Sánchez 2021, *Conflicting Bundles*, as the MoCapsNet code computes it): 0 if nothing conflicts,
that of all labels if the layer's output is the same for every sample.

That code treats components as equal that differ by 1e-8 or less, which is far more than whole capsules have in a new network
(1e-10). Here samples are equal if they differ by at most `RELATIVE` of the larger one.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from capsbench.errors import ConfigurationError
from capsbench.models import CapsuleNetwork
from capsbench.models.layers import CapsuleLayer
from capsbench.reversible import MomentumStack

RELATIVE = 1e-5
"""Largest difference of samples that count as equal, over the largest magnitude in either: the code's own relative bound."""


@dataclass(frozen=True)
class BlockDiagnostics:
    """Diagnostics of one block for a batch."""

    block: int
    """Number of the block, from 1; 0 stands for the input of the first block."""
    bundles: int
    """Number of groups of samples that its capsules do not tell apart, from 1 to the batch's size."""
    bundle_entropy: float
    """Entropy of the labels within a bundle, in nats."""
    label_entropy: float
    """Entropy of all labels of the batch, which `bundle_entropy` reaches if everything has collapsed."""
    mean_length: float
    """Mean length of its capsules, over the batch."""
    longest: float
    """Length of the longest capsule."""
    gradient_norm: float
    """Norm of the gradient of the loss by the block's weights."""
    state_gradient_norm: float
    """Norm of the gradient of the loss by the block's output."""


def diagnose(network: nn.Module, images: Tensor, labels: Tensor, loss: Callable[[Any], Tensor]) -> list[BlockDiagnostics]:
    """Diagnose every block of a capsule network, which is left as it was.

    Args:
        network: a capsule network of this package.
        images: `[B, *in_shape]`, on its device.
        labels: `[B]`.
        loss: function from the network's output to a scalar.

    Returns:
        Diagnostics of the input of the first block (0), and of each block. Norms of gradients that are not finite are not finite.

    Raises:
        ConfigurationError: it is another network.
    """
    network = checked_network(network)
    entrance = network.first if isinstance(network.first, CapsuleLayer) else network.primary
    layers: list[nn.Module] = [module for module in network.blocks.modules() if isinstance(module, CapsuleLayer)]
    blocks: list[list[nn.Module]] = [[entrance], *(layers[start : start + 2] for start in range(0, len(layers), 2))]
    states: dict[nn.Module, Tensor] = {}

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        states.setdefault(module, inputs[0])  # a checkpoint evaluates modules again in backward

    # The output of a block is the input of the next one, or in the end of the class capsules.
    hooks = [module.register_forward_pre_hook(look) for module in (*(block[0] for block in blocks[1:]), network.classes)]
    training = network.training
    network.eval()
    try:
        # A reversible stack evaluates its functions on graphs of their own, in which tensors that hooks see have no gradient.
        with torch.enable_grad(), _stored(network):
            value = loss(network(images, labels))
        weights = [[one for layer in block for one in layer.parameters() if one.requires_grad] for block in blocks]
        norms = _gradient_norms(value, [*([state] for state in states.values()), *weights])
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    label_entropy = entropy(labels.tolist())
    of_states, of_weights = norms[: len(blocks)], norms[len(blocks) :]
    found = []
    for block, state in enumerate(states.values()):
        # In float64, because squares of tiny values are 0 in float32.
        capsules = state.detach().double()
        bundles, within = bundle_entropy(capsules, labels)
        lengths = capsules.norm(dim=-1)
        mean, longest = float(lengths.mean()), float(lengths.max())
        found.append(BlockDiagnostics(block, bundles, within, label_entropy, mean, longest, of_weights[block], of_states[block]))
    return found


def checked_network(network: nn.Module) -> CapsuleNetwork:
    """The network, if it is one that can be diagnosed.

    Raises:
        ConfigurationError: it is not.
    """
    if not isinstance(network, CapsuleNetwork):
        raise ConfigurationError(
            f"a {type(network).__name__} has no blocks that diagnostics know", "diagnose one of capsbench's own capsule networks"
        )
    return network


def bundle_entropy(samples: Tensor, labels: Tensor, relative: float = RELATIVE) -> tuple[int, float]:
    """Number of bundles and their entropy.

    Args:
        samples: `[B, …]`, output of a layer for each sample.
        labels: `[B]`, integers.
        relative: largest difference of equal samples in any component, over the largest magnitude in either.

    Returns:
        The number of bundles, and the entropy in nats. As in the published code, a sample joins the first bundle whose
        first sample it equals; a sample with a NaN equals none.
    """
    flat = samples.detach().flatten(1).double()
    sizes = flat.abs().amax(dim=1)
    equal = torch.cdist(flat, flat, p=math.inf) <= relative * torch.maximum(sizes.unsqueeze(0), sizes.unsqueeze(1))
    left = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
    bundles, total = 0, 0.0
    for row in range(len(flat)):
        if not left[row]:
            continue
        members = equal[row] & left
        members[row] = True
        left &= ~members
        bundles += 1
        total += int(members.sum()) * entropy(labels[members].tolist())
    return bundles, total / len(flat)


def entropy(labels: list[int]) -> float:
    """Entropy of the distribution of labels, in nats."""
    return max(0.0, -sum(count / len(labels) * math.log(count / len(labels)) for count in Counter(labels).values()))


@contextmanager
def _stored(network: nn.Module) -> Iterator[None]:
    """Keep the activations of every stack of the network inside."""
    before = [(module, module.memory) for module in network.modules() if isinstance(module, MomentumStack)]
    try:
        for stack, _ in before:
            stack.memory = "stored"
        yield
    finally:
        for stack, memory in before:
            stack.memory = memory


def _gradient_norms(value: Tensor, groups: Sequence[Sequence[Tensor]]) -> list[float]:
    """Norms of the gradient of `value` by each group of tensors together; 0 where there is none."""
    wanted = [one for group in groups for one in group if one.requires_grad]
    found = torch.autograd.grad(value, wanted, allow_unused=True) if value.requires_grad else ()
    # Squares of the first gradients leave float32.
    norms = {id(one): float(grad.double().norm()) for one, grad in zip(wanted, found, strict=False) if grad is not None}
    return [math.hypot(*(norms.get(id(one), 0.0) for one in group)) for group in groups]
