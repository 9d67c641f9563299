"""Batches without delay for a training step: the uint8 set lies in the device's memory, and is cropped and normalised there.

Order and crops of a whole epoch are drawn at its beginning, on the CPU, so that every device sees the same. The state of
an epoch is therefore the generator's state at its beginning, and a number of steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from capsbench.data.datasets import ImageSet
from capsbench.data.preprocess import Batch, draw_offsets, prepare

HELD_OUT_SEED = 20_210
"""Seed of the choice of held-out images, the same for every run, so that runs can be compared."""


@dataclass(frozen=True)
class Share:
    """The part of every batch that this process sees."""

    rank: int = 0
    of: int = 1


class Feed:
    """A set on a device, and its batches.

    Args:
        data: the images.
        device: device of the batches.
        batch_size: images of a batch, over all processes; the last one of an epoch may have fewer.
        style: `paper` or `published` (`data.preprocess`).
        share: part of each batch that this process sees.
    """

    def __init__(self, data: ImageSet, device: torch.device, batch_size: int, style: str, share: Share | None = None) -> None:
        self.spec, self.source = data.spec, data.source
        self.images, self.labels = data.images.to(device), data.labels.to(device)
        self.batch_size, self.style = batch_size, style
        self.share = share or Share()

    def __len__(self) -> int:
        return len(self.images)

    def steps(self) -> int:
        """Number of batches of an epoch."""
        return -(-len(self) // self.batch_size)

    def training(self, generator: torch.Generator, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch in a random order, cropped at random.

        Args:
            generator: generator of order and crops; an epoch draws all its numbers before its first batch.
            first: the batch to begin with.
        """
        order = torch.randperm(len(self), generator=generator)
        offsets = draw_offsets(len(self), generator)
        return self._batches(order, offsets, first)

    def evaluation(self) -> Iterator[Batch]:
        """Batches of every image once, in the set's order, cut out at the centre or, as published, at fixed random offsets."""
        offsets = draw_offsets(len(self), torch.Generator().manual_seed(0)) if self.style == "published" else None
        return self._batches(torch.arange(len(self)), offsets, 0)

    def _batches(self, order: Tensor, offsets: Tensor | None, first: int) -> Iterator[Batch]:
        device, rank, of = self.images.device, self.share.rank, self.share.of
        order = order.to(device)
        offsets = None if offsets is None else offsets.to(device)
        for start in range(first * self.batch_size, len(self), self.batch_size):
            # Parts differ by one image at most, and may be empty.
            count = min(self.batch_size, len(self) - start)
            mine = slice(start + count * rank // of, start + count * (rank + 1) // of)
            chosen = order[mine]
            where = None if offsets is None else offsets[:, mine]
            yield prepare(self.images[chosen], self.labels[chosen], self.style, self.spec.name, where)


def split(data: ImageSet, validation: float, scale: float) -> tuple[ImageSet, ImageSet | None]:
    """The images to train on, and those held out of them to choose the best epoch.

    Args:
        data: a training set.
        validation: a fraction of the used images, or from 1 on a number of them; 0 holds none out.
        scale: the fraction of the set that is used.

    Returns:
        Both parts; the second is None if nothing is held out. The first may be empty.
    """
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(HELD_OUT_SEED))
    order = order[: max(1, round(scale * len(order)))]
    held = round(validation * len(order)) if validation < 1 else round(validation)
    held = max(held, 1) if validation else 0
    held_out = _chosen(data, order[:held]) if held else None
    return _chosen(data, order[held:]) if held or scale < 1 else data, held_out


def _chosen(data: ImageSet, which: Tensor) -> ImageSet:
    return ImageSet(data.spec, data.images[which], data.labels[which], data.source)
