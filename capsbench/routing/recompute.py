"""Routing that keeps no votes: they are computed again, a tile of input capsules at a time, wherever they are needed.

Two facts make this possible. After r rounds the logits are b = û·Σv, so neither b nor û needs keeping, only the sum of
the outputs so far. And since no gradient runs through the loop, backward needs the coupling of the last round alone.

Letters as in `reference`, and T for the input capsules of one tile. Inside a tile votes lie as `[T, B, D, J]`: J last, so
that the sums over D and the softmax over J run along contiguous memory (six times the speed of `[T, B, J, D]` on a CPU).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from capsbench.routing.squash import squash, squash_vjp

# What the votes of one tile may take: a share of a core's cache, or enough work to fill a GPU.
_TILE_BYTES = {"cpu": 2 * 2**20, "cuda": 64 * 2**20}


def rba(inputs: Tensor, weight: Tensor, iterations: int) -> Tensor:
    """Routing by agreement, equal to `reference.rba` up to rounding; keeps `[B, J, D]` twice and no votes."""
    output: Tensor = _RBA.apply(inputs, weight, iterations)[0]
    return output


class _RBA(torch.autograd.Function):
    @staticmethod
    def forward(inputs: Tensor, weight: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
        agreed, s = _route(inputs, weight, iterations)
        return squash(s), agreed, s

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        capsules, weight, ctx.iterations = inputs
        _, agreed, s = output
        ctx.mark_non_differentiable(agreed, s)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(capsules, weight, agreed, s)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, Tensor | None, None]:
        if grad is None:
            return None, None, None
        inputs, weight, agreed, s = ctx.saved_tensors
        # A backward called under autocast must not lose the precision that `route` kept.
        with torch.autocast(inputs.device.type, enabled=False):
            grad_s = squash_vjp(s, grad)
            grad_inputs, grad_weight = _sum_vjp(inputs, weight, agreed, grad_s, *ctx.needs_input_grad[:2])
        return grad_inputs, grad_weight, None


def _route(inputs: Tensor, weight: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """The summed outputs of all rounds but the last, and the last round's weighted sum; both `[B, J, D]`."""
    s = _uniform_sum(inputs, weight)
    agreed = torch.zeros_like(s)
    for _ in range(iterations - 1):
        agreed = agreed + squash(s)
        s = _coupled_sum(inputs, weight, agreed)
    return agreed, s


def _uniform_sum(inputs: Tensor, weight: Tensor) -> Tensor:
    """Σ_i û_i / J: with uniform coupling the sum over I is one plain matrix product over I·K."""
    outputs, dim = weight.shape[2:]
    flat = inputs.flatten(1) @ weight.flatten(2).flatten(0, 1)
    return (flat / outputs).unflatten(1, (outputs, dim))


def _coupled_sum(inputs: Tensor, weight: Tensor, agreed: Tensor) -> Tensor:
    """Σ_i c_i û_i with c = softmax_J(û·agreed)."""
    agreed_last = agreed.mT.contiguous()
    total = torch.zeros_like(agreed_last)
    for _, capsules, rows in _tiles(inputs, weight):
        u_hat = _tile_votes(capsules, rows, agreed_last.shape)
        coupling = torch.softmax((u_hat * agreed_last).sum(-2), dim=-1)
        total += u_hat.mul_(coupling.unsqueeze(-2)).sum(0)
    return total.mT.contiguous()


def _sum_vjp(
    inputs: Tensor, weight: Tensor, agreed: Tensor, grad_s: Tensor, need_inputs: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the last weighted sum, whose coupling is a constant, with respect to inputs and weight."""
    agreed_last, grad_last = agreed.mT.contiguous(), grad_s.mT.contiguous()
    grad_inputs = torch.empty_like(inputs) if need_inputs else None
    grad_weight = torch.empty_like(weight) if need_weight else None
    for tile, capsules, rows in _tiles(inputs, weight):
        u_hat = _tile_votes(capsules, rows, agreed_last.shape)
        coupling = torch.softmax(u_hat.mul_(agreed_last).sum(-2), dim=-1)
        grad_votes = torch.mul(coupling.unsqueeze(-2), grad_last, out=u_hat).flatten(2)
        if grad_inputs is not None:
            grad_inputs[:, tile] = torch.bmm(grad_votes, rows.mT).transpose(0, 1)
        if grad_weight is not None:
            # Each tile owns its rows: they are written once, never accumulated.
            product = torch.bmm(capsules.mT, grad_votes)
            grad_weight[tile] = product.unflatten(2, agreed_last.shape[1:]).mT
    return grad_inputs, grad_weight


def _tiles(inputs: Tensor, weight: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Each tile's slice of I, its input capsules `[T, B, K]` and its weights `[T, K, D·J]`."""
    batch = inputs.shape[0]
    count, _, outputs, dim = weight.shape
    votes_of_one = max(1, batch * outputs * dim * inputs.element_size())
    size = max(1, _TILE_BYTES.get(inputs.device.type, _TILE_BYTES["cuda"]) // votes_of_one)
    for start in range(0, count, size):
        tile = slice(start, start + size)
        yield tile, inputs[:, tile].transpose(0, 1), weight[tile].mT.flatten(2)


def _tile_votes(capsules: Tensor, rows: Tensor, shape: torch.Size) -> Tensor:
    """û of one tile, `[T, B, D, J]`, by one batched product."""
    return torch.bmm(capsules, rows).unflatten(2, shape[1:])
