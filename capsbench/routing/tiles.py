"""A layer's votes, a tile of input capsules at a time.

Letters as in `reference`, and T for the input capsules of one tile. Inside a tile votes lie as `[T, B, D, J]`: J last, so
that the sums over D and the softmax over J run along contiguous memory (six times the speed of `[T, B, J, D]` on a CPU).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from capsbench.exporting import is_exporting

# Size of the votes of one tile: a share of a core's cache, or enough work to fill a GPU.
TILE_BYTES = {"cpu": 2 * 2**20, "cuda": 64 * 2**20}


class Tile(NamedTuple):
    """Some of a layer's input capsules, with their weights."""

    span: slice
    """Slice of I."""
    capsules: Tensor
    """`[T, B, K]`."""
    rows: Tensor
    """`[T, K, D·J]`."""


def tiles(inputs: Tensor, weight: Tensor) -> Iterator[Tile]:
    """Cut inputs `[B, I, K]` and weight `[I, K, J, D]` into tiles whose votes fit a cache; only one in an exported program."""
    count, _, outputs, dim = weight.shape
    if is_exporting():
        # An exported program serves every batch size, so that the number of tiles cannot depend on it.
        size = max(1, count)
    else:
        votes_of_one = max(1, inputs.shape[0] * outputs * dim * inputs.element_size())
        size = max(1, TILE_BYTES.get(inputs.device.type, TILE_BYTES["cuda"]) // votes_of_one)
    for start in range(0, count, size):
        span = slice(start, start + size)
        # Tiles are made one by one, because a tile's rows are a copy, and all of them together would be a copy of the weight.
        yield Tile(span, inputs[:, span].transpose(0, 1), weight[span].mT.flatten(2))


def tile_votes(tile: Tile, outputs: int) -> Tensor:
    """Votes û of one tile, `[T, B, D, J]`, by one batched product."""
    return torch.bmm(tile.capsules, tile.rows).unflatten(2, (-1, outputs))


class Gradients:
    """The gradients of inputs and weight, filled tile by tile: each tile owns its part, and nothing is accumulated."""

    def __init__(self, inputs: Tensor, weight: Tensor, need_inputs: bool, need_weight: bool) -> None:
        self.inputs = torch.empty_like(inputs) if need_inputs else None
        self.weight = torch.empty_like(weight) if need_weight else None

    def write(self, tile: Tile, grad_votes: Tensor) -> None:
        """Write the part of one tile, from the gradient of its votes `[T, B, D, J]`."""
        flat = grad_votes.flatten(2)
        if self.inputs is not None:
            self.inputs[:, tile.span] = torch.bmm(flat, tile.rows.mT).transpose(0, 1)
        if self.weight is not None:
            self.weight[tile.span] = torch.bmm(tile.capsules.mT, flat).unflatten(2, grad_votes.shape[2:]).mT
