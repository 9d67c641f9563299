"""Gradients of a stack in two processes and in one: `python two_processes.py RANK FILE` writes how far they differ.

Run by `test_citizen`, as ranks 0 and 1. Each case trains two steps in DistributedDataParallel (gloo), each process on its half of
the batch.
"""

import gc
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from capsbench.models.layers import CapsuleLayer
from capsbench.reversible import MomentumStack
from helpers.meeting import write_found

WAYS = {
    "checkpoint-sqrt": {"memory": "checkpoint-sqrt"},
    "float": {"inverse": "float"},
    "exact": {"inverse": "exact"},
    "segmented": {"inverse": "segmented", "lipschitz": 1e3},
    "kept": {"memory": "reversible-kept"},
}
OPTIONS = {
    "plain": {},
    "find_unused_parameters": {"find_unused_parameters": True},
    "static_graph": {"static_graph": True},
    "accumulation": {},
}


class Model(nn.Module):
    """A stack whose first and last layers share a weight, with a branch that may be unused."""

    def __init__(self, options: dict[str, Any], *, unused: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [CapsuleLayer(6, 4, 6, 4) for _ in range(4)]
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.5)
        layers[3].weight = layers[0].weight
        self.before = nn.Linear(4, 4)
        self.stack = MomentumStack(layers, **options)
        self.branch = MomentumStack([CapsuleLayer(6, 4, 6, 4)], **options) if unused else None

    def forward(self, x: Tensor) -> Tensor:
        return self.stack(self.before(x))


def step(model: nn.Module, parts: tuple[Tensor, ...]) -> None:
    """Gradients of the mean loss over some parts of a batch; only the last one exchanges them."""
    for part in parts[:-1]:
        with model.no_sync() if isinstance(model, DistributedDataParallel) else torch.enable_grad():
            loss_of(model, part).backward()
    loss_of(model, parts[-1]).backward()


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().sum()


def difference(way: str, option: str, rank: int) -> float:
    """The largest relative difference of a gradient."""
    model = Model(WAYS[way], unused=option == "find_unused_parameters")
    alone = Model({"memory": "stored"}, unused=model.branch is not None)
    parallel = DistributedDataParallel(model, **OPTIONS[option])
    batch = torch.randn(8, 6, 4, generator=torch.Generator().manual_seed(1))
    mine = batch.chunk(2)[rank]
    for _ in range(2):
        parallel.zero_grad()
        alone.zero_grad()
        step(parallel, mine.chunk(2) if option == "accumulation" else (mine,))
        step(alone, batch.chunk(2))
    worst = 0.0
    for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if theirs.grad is not None:
            # DDP takes the mean over processes.
            worst = max(worst, ((2 * ours.grad - theirs.grad).abs().max() / theirs.grad.abs().max()).item())
    dist.barrier()
    del parallel
    gc.collect()
    return worst


def work(rank: int, output: Path) -> None:
    """One process."""
    write_found(rank, 2, output, lambda: {f"{way} {option}": difference(way, option, rank) for way in WAYS for option in OPTIONS})


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
