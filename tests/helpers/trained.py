"""Checkpoints of small networks, and images to classify."""

from pathlib import Path

import torch
from torch import Tensor, nn

from capsbench.data.datasets import load_images
from capsbench.training import TrainingSettings, save_checkpoint
from capsbench.training.checkpoint import build_network
from helpers.made import make_configuration


def trained(model: str = "mocapsnet", blocks: int = 1, *, dataset: str = "sample", **fields) -> TrainingSettings:
    """Settings of a run."""
    return TrainingSettings(network=make_configuration(model, blocks, dataset=dataset, capsules=4), **fields)


def save_lively(path: Path, asked: TrainingSettings, seed: int = 0) -> nn.Module:
    """A checkpoint whose classes differ from image to image; returns the network."""
    torch.manual_seed(seed)
    network = build_network(asked).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.startswith(("first", "blocks", "classes")):
                nn.init.normal_(weight)
        network.primary.conv.weight *= 10
    save_checkpoint(path, asked, network.state_dict())
    return network


def sample(count: int = 6) -> Tensor:
    """uint8 images `[N, 1, 28, 28]`."""
    return load_images("sample").images[:count]
