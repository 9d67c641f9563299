"""Routing in torch that keeps no votes: they are computed again, a tile of input capsules at a time, each time they are needed.

Read `rounds` first. Letters and layouts as in `tiles`; `_last` marks `[B, D, J]`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from capsbench.routing.equations import sda_temperature
from capsbench.routing.rounds import Couplings, State, SumPasses, uniform_sum
from capsbench.routing.squash import length, unit
from capsbench.routing.tiles import Gradients, Tile, tile_votes, tiles


class _Votes(NamedTuple):
    """Votes of one tile. The weighted sum runs over `u_hat · factor`, since two small tensors are cheaper than one product."""

    u_hat: Tensor
    """`[T, B, D, J]`, which must not be written into."""
    factor: Tensor | None
    """`[T, B, J]`, min(‖û‖, ‖u‖)/‖û‖ for SDA."""


class TilePasses(SumPasses):
    """Passes tile by tile; if there is only one tile, its votes are computed once for the whole call."""

    def __init__(self, inputs: Tensor, weight: Tensor, *, limited: bool) -> None:
        self._inputs, self._weight, self._limited = inputs, weight, limited
        self._only: _Votes | None = None

    def weighted_sum(self, state: State, couplings: Couplings | None) -> Tensor:
        """Σ_i c_i û_i `[B, J, D]`."""
        outputs, dim = self._weight.shape[2:]
        if not state and not self._limited:
            return uniform_sum(self._inputs, self._weight)
        total = self._inputs.new_zeros(self._inputs.shape[0], dim, outputs)
        state = _last(state)
        for tile in tiles(self._inputs, self._weight):
            votes = self._votes(tile)
            coupling = self._coupling(votes, state)
            total += (votes.u_hat * _share(coupling, votes).unsqueeze(-2)).sum(0)
            if couplings is not None:
                couplings.append(coupling)
        return total.mT.contiguous()

    def temperature(self, outputs: Tensor, *, published: bool) -> Tensor:
        """The temperature after a round with these outputs, a scalar."""
        (v_last,) = _last((outputs,))
        total = v_last.new_zeros(())
        for tile in tiles(self._inputs, self._weight):
            total += _distances(self._votes(tile), v_last).sum()
        mean = total / (outputs.shape[0] * self._inputs.shape[1] * outputs.shape[1])
        return sda_temperature(mean, outputs.shape[1], published=published)

    def gradients(
        self, state: State, grad: Tensor, couplings: Couplings, need_inputs: bool, need_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of inputs and weight."""
        gradients = Gradients(self._inputs, self._weight, need_inputs, need_weight)
        (grad_last,) = _last((grad,))
        state = _last(state)
        for index, tile in enumerate(tiles(self._inputs, self._weight)):
            coupling = couplings[index] if couplings else self._coupling(self._votes(tile), state)
            if self._limited:
                _write_limited(gradients, tile, self._votes(tile), coupling, grad_last)
            else:
                gradients.write(tile, coupling.unsqueeze(-2) * grad_last)
        return gradients.inputs, gradients.weight

    def _votes(self, tile: Tile) -> _Votes:
        if self._only is not None:
            return self._only
        u_hat = tile_votes(tile, self._weight.shape[2])
        votes = _Votes(u_hat, _limit(u_hat, tile) if self._limited else None)
        if len(tile.capsules) == self._inputs.shape[1]:
            self._only = votes
        return votes

    def _coupling(self, votes: _Votes, state: State) -> Tensor:
        """C `[T, B, J]`."""
        u_hat = votes.u_hat
        if not state:
            outputs = u_hat.shape[-1]
            return u_hat.new_full((*u_hat.shape[:2], outputs), 1 / outputs)
        if self._limited:
            v_last, t = state
            return torch.softmax(_distances(votes, v_last).mul_(t), dim=-1)
        return torch.softmax((u_hat * state[0]).sum(-2), dim=-1)


def _last(state: State) -> State:
    """The state with J last, as the tiles have it."""
    return tuple(one.mT.contiguous() if one.dim() else one for one in state)


def _share(coupling: Tensor, votes: _Votes) -> Tensor:
    """`[T, B, J]`, the share of each û in the weighted sum."""
    return coupling if votes.factor is None else coupling * votes.factor


def _limit(u_hat: Tensor, tile: Tile) -> Tensor:
    """`[T, B, J]`, min(‖û‖, ‖u‖)/‖û‖, and 1 for the zero vote."""
    norm = (u_hat * u_hat).sum(-2).sqrt_()
    # 0/0 is the zero vote of a zero capsule; NaN votes stay NaN with any factor.
    return norm.reciprocal_().mul_(length(tile.capsules, keepdim=True)).nan_to_num_(nan=1.0).clamp_max_(1)


def _distances(votes: _Votes, v_last: Tensor) -> Tensor:
    """`[T, B, J]`, ‖v − û·factor‖. Over a dimension that is not the last, vector_norm takes fifty times as long."""
    if votes.factor is None:
        difference = v_last - votes.u_hat
    else:
        difference = torch.addcmul(v_last, votes.u_hat, votes.factor.unsqueeze(-2), value=-1)
    return difference.square_().sum(-2).sqrt_()


def _write_limited(gradients: Gradients, tile: Tile, votes: _Votes, coupling: Tensor, grad_last: Tensor) -> None:
    """Write the gradients of a shortened vote e·‖u‖ with e = û/‖û‖, which turn û and lengthen u.

    With f = ‖u‖/‖û‖ and g' = c·g: dû = f·(g' − e (e·g')), and d‖u‖ = e·g' summed over J.
    """
    u_hat, factor = votes
    factor = torch.ones_like(coupling) if factor is None else factor
    most = length(tile.capsules, keepdim=True)
    # e·g' = û·g c f/‖u‖ if the vote is shortened, and 0 if it is not.
    shortened = (factor < 1).to(factor.dtype) / most.clamp_min(torch.finfo(factor.dtype).tiny)
    lengthens = (u_hat * grad_last).sum(-2).mul_(coupling).mul_(factor).mul_(shortened)
    grad_votes = grad_last * (coupling * factor).unsqueeze(-2)
    turned = (lengthens * shortened).mul_(factor).mul_(factor)
    grad_votes.addcmul_(u_hat, turned.unsqueeze(-2), value=-1)
    gradients.write(tile, grad_votes)
    if gradients.inputs is not None:
        gradients.inputs[:, tile.span] += (unit(tile.capsules) * lengthens.sum(-1, keepdim=True)).transpose(0, 1)
