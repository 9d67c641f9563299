"""The decoder: from one class capsule back to the image (Sabour et al. 2017, section 4.1)."""

import math

import torch
from torch import Tensor, nn


class Decoder(nn.Module):
    """A network 512-1024-pixels with ReLU, ReLU, sigmoid, which sees one class capsule, all others set to 0.

    Args:
        num_classes: C.
        class_dim: D.
        image_shape: channels, height, width.
    """

    def __init__(self, num_classes: int, class_dim: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.layers = nn.Sequential(
            nn.Linear(num_classes * class_dim, 512),
            nn.ReLU(),
            nn.Linear(512, 1024),
            nn.ReLU(),
            nn.Linear(1024, math.prod(image_shape)),
            nn.Sigmoid(),
        )

    def forward(self, capsules: Tensor, classes: Tensor) -> Tensor:
        """Decode capsules `[B, C, D]`, showing one class per sample `[B]`, to images `[B, *image_shape]`."""
        shown = torch.nn.functional.one_hot(classes, capsules.shape[1]).to(capsules.dtype)
        # Routing gives float32 whatever the network's precision; the layers get the dtype of their weights.
        dtype = next(self.layers.parameters()).dtype
        image: Tensor = self.layers((capsules * shown.unsqueeze(-1)).flatten(1).to(dtype))
        return image.unflatten(1, self.image_shape)
