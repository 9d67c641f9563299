"""Routing as the published MoCapsNet code computes it, with its memory pattern: the baseline of every comparison.

Its votes are one broadcast product of `[1, J, I, D, K]` with `[B, 1, I, K, 1]`, for which the weights are copied once
per sample and kept for backward: 32 MiB for a layer of 32 × 8 capsules at batch 128. Letters as in `reference`.
"""

import torch
from torch import Tensor

from capsbench.routing.equations import sda_temperature

_EPSILON = 1e-8


def rba(inputs: Tensor, weight: Tensor, iterations: int) -> Tensor:
    """Routing by agreement with the published code's memory and rounding. The arguments are those of `reference.rba`."""
    u_hat = _tiled_votes(inputs, weight)
    fixed = u_hat.detach()
    logits = fixed.new_zeros(*fixed.shape[:3], 1)
    for _ in range(iterations - 1):
        outputs = _squash((torch.softmax(logits, dim=1) * fixed).sum(dim=2))
        logits = logits + torch.matmul(fixed, outputs.unsqueeze(-1))
    return _squash((torch.softmax(logits, dim=1) * u_hat).sum(dim=2))


def sda(inputs: Tensor, weight: Tensor, bias: Tensor, iterations: int, *, published: bool = True) -> Tensor:
    """Scaled-distance agreement with the published code's memory and rounding. The arguments are those of `reference.sda`."""
    u_hat = _tiled_votes(inputs, weight)
    norm = torch.linalg.vector_norm(u_hat, dim=-1, keepdim=True)
    most = torch.linalg.vector_norm(inputs, dim=-1)[:, None, :, None]
    nonzero = norm > 0
    u_hat = u_hat * torch.where(nonzero, torch.minimum(norm, most) / torch.where(nonzero, norm, 1), 1)
    fixed = u_hat.detach()
    logits = fixed.new_zeros(*fixed.shape[:3], 1)
    for _ in range(iterations - 1):
        outputs = _squash((torch.softmax(logits, dim=1) * fixed).sum(dim=2) + bias.detach())
        distances = torch.linalg.vector_norm(outputs.unsqueeze(2) - fixed, dim=-1, keepdim=True)
        logits = sda_temperature(distances.mean(), weight.shape[2], published=published) * distances
    return _squash((torch.softmax(logits, dim=1) * u_hat).sum(dim=2) + bias)


def _tiled_votes(inputs: Tensor, weight: Tensor) -> Tensor:
    """û `[B, J, I, D]`, by a product that expands (and so copies) the weights over the batch."""
    rows = weight.permute(2, 0, 3, 1).unsqueeze(0)
    columns = inputs[:, None, :, :, None]
    return torch.matmul(rows, columns).squeeze(-1)


def _squash(s: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(s, dim=-1, keepdim=True)
    square = norm**2
    return square / (1 + square) * (s / (norm + _EPSILON))
