"""The memory of steps of several processes, counted in each: `python ranks.py RANK COUNT FILE` writes all figures.

Run by `measure/test_group`, once for each rank. One group measures all cases, since its processes take seconds to start.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from capsbench import Case
from capsbench.measure.step_memory import memory_figures, probed_step
from capsbench.options import Configuration
from helpers.measured import configured
from helpers.meeting import write_found

SMALL = {"batch_size": 2, "capsules": 4}
OWN = f"{__name__ if __name__ != '__main__' else 'helpers.ranks'}:encoder"

CASES: dict[str, dict[str, Any]] = {
    "rescapsnet": {"model": "rescapsnet", **SMALL},
    "rescapsnet checkpoint": {"model": "rescapsnet", "memory": "checkpoint", **SMALL},
    "mocapsnet": {"model": "mocapsnet", **SMALL},
    "mocapsnet published": {"model": "mocapsnet", "rule": "published", **SMALL},
    "mocapsnet stored": {"model": "mocapsnet", "memory": "stored", **SMALL},
    "encoder": {"model": OWN},
    "encoder checkpoint": {"model": OWN, "memory": "checkpoint"},
    "encoder bf16": {"model": OWN, "precision": "bf16"},
    "encoder accumulate": {"model": OWN, "accumulate": 2},
    "encoder sgd": {"model": OWN, "optimizer": "sgd"},
}
"""Options of each configuration that is measured."""


class Encoder(nn.Module):
    """Layers between an embedding and a head, with buffers, and with sizes that no small number of processes divides."""

    def __init__(self, blocks: int, width: int, inner: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(101, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, inner, dropout=0.0, batch_first=True) for _ in range(blocks)
        )
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 101)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x.transpose(1, 2)).transpose(1, 2))


def encoder(blocks: int = 3, width: int = 64, inner: int = 193, batch_size: int = 8, length: int = 16) -> Case:
    """The encoder as a case."""
    ids = torch.zeros(batch_size, length, dtype=torch.int64)
    return Case(Encoder(blocks, width, inner), ids, loss=lambda out: out.logsumexp(-1).mean())


def layers(blocks: int = 3, width: int = 24) -> Case:
    """Layers alone, of which every figure is known on any device."""
    return Case(nn.Sequential(*(nn.Linear(width, width) for _ in range(blocks))), torch.zeros(4, width), loss=Tensor.sum)


def failing() -> Case:
    """A case that fails in the second process alone."""
    if os.environ.get("RANK") == "1":
        raise RuntimeError("it fails on purpose")
    return encoder()


def configuration_of(name: str, parallel: str, count: int) -> Configuration:
    """One of `CASES` in a group of this many processes, or in one process."""
    options = dict(CASES[name])
    return configured(options.pop("model"), parallel=parallel, world_size=None if parallel == "none" else count, **options)


def figures(count: int) -> dict[str, Any]:
    """The figures of this process of a group, by way and case."""
    found = {}
    for parallel in ("ddp", "fsdp"):
        for name in CASES:
            step = probed_step(configuration_of(name, parallel, count))
            found[f"{parallel} {name}"] = memory_figures(step).model_dump(mode="json")
            del step
    return found


def work(rank: int, count: int, output: Path) -> None:
    """One process."""
    write_found(rank, count, output, lambda: figures(count))


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
