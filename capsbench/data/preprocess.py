"""Preprocessing as in the paper: pad 2, random crop, per-image zero mean and unit variance."""

from typing import NamedTuple

import torch
from torch import Tensor

PADDING = 2


class Batch(NamedTuple):
    """What one step sees."""

    images: Tensor
    """`[B, C, H, W]`, float32, normalised: the network's input."""
    labels: Tensor
    """`[B]`, int64."""
    pixels: Tensor
    """`[B, C, H, W]`, float32 in 0 to 1, cropped as `images`: what a reconstruction should show."""


def random_crop(images: Tensor, generator: torch.Generator | None = None, padding: int = PADDING) -> Tensor:
    """Each image padded with zeros and cut out again at a place of its own. `[N, C, H, W]` → same."""
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    offsets = torch.randint(2 * padding + 1, (2, count), generator=generator)
    return windows[torch.arange(count), :, offsets[0], offsets[1]]


def normalise(pixels: Tensor) -> Tensor:
    """Each image with zero mean and unit variance; an even image becomes 0. `[N, C, H, W]` → same."""
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    deviation = pixels.std(dim=(1, 2, 3), keepdim=True, correction=0)
    # As little contrast as one grey level in one pixel is noise, not a picture.
    floor = 1 / 255 / pixels.shape[1:].numel() ** 0.5
    return (pixels - mean) / deviation.clamp_min(floor)


def training_batch(images: Tensor, labels: Tensor, generator: torch.Generator | None = None) -> Batch:
    """Prepares uint8 images `[B, C, H, W]` and labels `[B]` for a training step."""
    pixels = random_crop(images, generator).float() / 255
    return Batch(normalise(pixels), labels, pixels)
