"""Preprocessing: as in the paper (pad 2, random crop in training, each image to zero mean and unit variance), or as published.

The published code takes the same constants for all images of a set, and crops at random on the test set too.
"""

from typing import NamedTuple

import torch
from torch import Tensor

PADDING = 2

CONSTANTS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "sample": ((0.286,), (0.353,)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.286,), (0.353,)),
    "svhn": ((0.5,) * 3, (0.5,) * 3),
    "cifar10": ((0.5,) * 3, (0.5,) * 3),
    "cifar100": ((0.5,) * 3, (0.5,) * 3),
}
"""Mean and deviation of each channel as in the published code, and Fashion-MNIST's own, which that code lacks."""


class Batch(NamedTuple):
    """The input of one step."""

    images: Tensor
    """`[B, C, H, W]`, float32, normalised: the network's input."""
    labels: Tensor
    """`[B]`, int64."""
    pixels: Tensor
    """`[B, C, H, W]`, float32, cropped as `images`: the target of a reconstruction, in 0 to 1; as published, it is `images`."""


def random_crop(images: Tensor, generator: torch.Generator | None = None, padding: int = PADDING) -> Tensor:
    """Pad each image with zeros and cut it out again at a random offset. `[N, C, H, W]` → same."""
    return crop(images, draw_offsets(len(images), generator, padding), padding)


def draw_offsets(count: int, generator: torch.Generator | None = None, padding: int = PADDING) -> Tensor:
    """Draw the offsets at which padded images are cut out again: rows and columns, `[2, N]`, 0 to 2 × padding."""
    return torch.randint(2 * padding + 1, (2, count), generator=generator)


def crop(images: Tensor, offsets: Tensor, padding: int = PADDING) -> Tensor:
    """Pad each image with zeros and cut it out again at `offsets`, on their device. `[N, C, H, W]`, `[2, N]` → `[N, C, H, W]`."""
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(count, device=images.device), :, offsets[0], offsets[1]]


def normalise(pixels: Tensor) -> Tensor:
    """Bring each image to zero mean and unit variance; an even image becomes 0. `[N, C, H, W]` → same."""
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    deviation = pixels.std(dim=(1, 2, 3), keepdim=True, correction=0)
    # A contrast of one grey level in one pixel is noise, not a picture.
    floor = 1 / 255 / pixels.shape[1:].numel() ** 0.5
    return (pixels - mean) / deviation.clamp_min(floor)


def training_batch(images: Tensor, labels: Tensor, generator: torch.Generator | None = None) -> Batch:
    """Prepare uint8 images `[B, C, H, W]` and labels `[B]` for a training step."""
    pixels = random_crop(images, generator).float() / 255
    return Batch(normalise(pixels), labels, pixels)


def prepare(images: Tensor, labels: Tensor, style: str, dataset: str, offsets: Tensor | None = None) -> Batch:
    """Prepare uint8 images for a step, on their device.

    Args:
        images: `[B, C, H, W]`, uint8.
        labels: `[B]`.
        style: `paper`, or `published`: the set's constants, and the normalised image as the decoder's target.
        dataset: data set that has the constants.
        offsets: offsets at which images are cut out (`draw_offsets`); None for the centre, which leaves an image as it is.
    """
    pixels = (images if offsets is None else crop(images, offsets)).float() / 255
    if style == "paper":
        return Batch(normalise(pixels), labels, pixels)
    mean, deviation = (
        torch.tensor(values, dtype=torch.float32, device=images.device).view(1, -1, 1, 1) for values in CONSTANTS[dataset]
    )
    normalised = (pixels - mean) / deviation
    return Batch(normalised, labels, normalised)
