"""Pictures of a trained network, as capsule papers show them."""

from pathlib import Path

import numpy as np
from torch import Tensor

from capsbench.data.datasets import load_parts
from capsbench.errors import ConfigurationError
from capsbench.figures.depth import save
from capsbench.figures.pictures import Pictures, perturbations_figure, reconstructions_figure
from capsbench.inference import STEPS, Classified, Classifier, perturb
from capsbench.words.labels import network_title

MOST = 10


def draw_pictures(
    classifier: Classifier, images: tuple[Path, ...], folder: Path, data_directory: Path | None, *, download: bool
) -> list[Path]:
    """Draw reconstructions and perturbations, and return the paths.

    Args:
        classifier: classifier of one network that has a decoder.
        images: images to draw, up to `MOST`; if there are none, test images of the network's data set.
        folder: where to.
        data_directory: folder of the real data sets.
        download: whether to fetch one that is not there.

    Raises:
        ConfigurationError: the network has no decoder; there are too many images; images or data set cannot be read.
        OSError: a figure cannot be written.
    """
    if len(images) > MOST:
        raise ConfigurationError(f"{len(images)} images are too many for one figure", f"give up to {MOST}")
    chosen = classifier.read(images) if images else _one_of_each(classifier, data_directory, download=download)
    moved = perturb(classifier, chosen[0])
    found = classifier(chosen)
    it = classifier.settings.network
    network = network_title(it.model, it.blocks, it.dataset)
    seen = [one.reconstruction for one in found if one.reconstruction is not None]
    captions = [_caption(one) for one in found]
    folder.mkdir(parents=True, exist_ok=True)
    beside = reconstructions_figure(
        _pictures(chosen / 255), np.stack([_pictures(one.unsqueeze(0))[0] for one in seen]), captions, network
    )
    grid = perturbations_figure(
        _pictures(moved.flatten(0, 1)).reshape(*moved.shape[:2], *moved.shape[3:], -1), STEPS, f"{network}; {captions[0]}"
    )
    return [*save(beside, folder, "reconstructions"), *save(grid, folder, "perturbations")]


def _one_of_each(classifier: Classifier, directory: Path | None, *, download: bool) -> Tensor:
    """The first test image of each class, as many as there is room for."""
    try:
        test = load_parts(classifier.spec.name, directory, download=download).test
    except ConfigurationError as error:
        raise ConfigurationError(error.what, f"{error.hint}; or give images of your own") from None
    labels = test.labels.tolist()
    return test.images[[labels.index(label) for label in sorted(set(labels))[:MOST]]]


def _caption(one: Classified) -> str:
    return f"{one.name}, {one.length:.2f}"


def _pictures(images: Tensor) -> Pictures:
    """Convert `[N, C, H, W]` to `[N, H, W, C]`, 0 to 1."""
    found: Pictures = images.float().clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return found
