"""EM routing that keeps no votes. Gradients run through all rounds, so each sum over I has a backward of its own.

A round is two sums over I: of R·a and R·a·V, which give the mean, and of R·a·(V − μ)², which gives the variance. The part
between is `[B, J, D]` and left to autograd; each sum keeps only its arguments, and in backward evaluates one tile
after the other again. Letters and layouts as in `tiles`; `_last` marks `[B, D, J]`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from capsbench.routing.autograd import differentiable_once, full_precision
from capsbench.routing.equations import em_log_activation, em_log_prior, em_mean, em_variance
from capsbench.routing.squash import length, unit
from capsbench.routing.tiles import Gradients, tile_votes, tiles

Prior = tuple[Tensor, ...]
"""State of each output capsule after a round: log prior `[B, J]`, mean and precision `[B, D, J]`; empty at first."""

Part = Callable[..., tuple[Tensor, ...]]
"""A function for one tile's part of a sum: (votes `[T, B, D, J]`, capsules `[T, B, K]`, *shared) → tensors to add over tiles."""


def em(inputs: Tensor, weight: Tensor, bias: Tensor, beta_u: Tensor, beta_a: Tensor, iterations: int) -> Tensor:
    """EM routing, equal to `reference.em` up to rounding; keeps `[B, J, D]` a few times per round and no votes."""
    prior: Prior = ()
    for index in range(iterations):
        total, first = _tiled_sum(_moments, inputs, weight, bias, *prior)
        mean = em_mean(first.mT, total)
        (second,) = _tiled_sum(_deviations, inputs, weight, bias, mean.mT, *prior)
        variance = em_variance(second.mT, total)
        log_active = em_log_activation(total, variance, beta_u, beta_a, index)
        prior = (em_log_prior(log_active, variance), mean.mT, (0.5 / variance).mT)
    return log_active.exp().unsqueeze(-1) * unit(mean)


def _moments(u_hat: Tensor, capsules: Tensor, bias: Tensor, *prior: Tensor) -> tuple[Tensor, Tensor]:
    """Σ R a `[B, J]` and Σ R a V `[B, D, J]` over one tile."""
    votes = u_hat + bias.mT
    mass = _mass(votes, capsules, prior)
    return mass.sum(0), (votes * mass.unsqueeze(-2)).sum(0)


def _deviations(u_hat: Tensor, capsules: Tensor, bias: Tensor, mean_last: Tensor, *prior: Tensor) -> tuple[Tensor]:
    """Σ R a (V − μ)² `[B, D, J]` over one tile."""
    votes = u_hat + bias.mT
    mass = _mass(votes, capsules, prior)
    return (((votes - mean_last).square() * mass.unsqueeze(-2)).sum(0),)


def _mass(votes: Tensor, capsules: Tensor, prior: Prior) -> Tensor:
    """R·a `[T, B, J]`."""
    activation = length(capsules, keepdim=True)
    if not prior:
        return (activation / votes.shape[-1]).expand(-1, -1, votes.shape[-1])
    log_prior, mean_last, precision_last = prior
    log_density = log_prior - ((votes - mean_last).square() * precision_last).sum(-2)
    return torch.softmax(log_density, dim=-1) * activation


def _tiled_sum(part: Part, inputs: Tensor, weight: Tensor, *shared: Tensor) -> tuple[Tensor, ...]:
    result: tuple[Tensor, ...] = _TiledSum.apply(part, inputs, weight, *shared)
    return result


class _TiledSum(torch.autograd.Function):
    """Σ over tiles of `part(votes, capsules, *shared)`."""

    @staticmethod
    def forward(part: Part, inputs: Tensor, weight: Tensor, *shared: Tensor) -> tuple[Tensor, ...]:
        totals: tuple[Tensor, ...] = ()
        for tile in tiles(inputs, weight):
            found = part(tile_votes(tile, weight.shape[2]), tile.capsules, *shared)
            totals = tuple(total.add_(one) for total, one in zip(totals, found, strict=True)) if totals else found
        return totals

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.part, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, *shared = ctx.saved_tensors
        _, need_inputs, need_weight, *_ = ctx.needs_input_grad
        gradients = Gradients(inputs, weight, need_inputs, need_weight)
        sums = [torch.zeros_like(tensor) for tensor in shared]
        with full_precision(inputs.device):
            for tile in tiles(inputs, weight):
                u_hat = tile_votes(tile, weight.shape[2])
                # func.vjp rather than autograd.grad: it also works under torch.func.grad.
                vjp = torch.func.vjp(ctx.part, u_hat, tile.capsules, *shared)[1]
                grad_votes, grad_capsules, *grad_shared = vjp(grads)
                gradients.write(tile, grad_votes)
                if gradients.inputs is not None:
                    gradients.inputs[:, tile.span] += grad_capsules.transpose(0, 1)
                sums = [total + grad for total, grad in zip(sums, grad_shared, strict=True)]
        return None, gradients.inputs, gradients.weight, *sums
