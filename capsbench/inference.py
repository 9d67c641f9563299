"""Classification with trained networks: class, certainty, and the decoder's reconstruction.

`classify("runs/mine", ["boot.png", "bag.png"])[0].name` is "Ankle boot".
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from capsbench.cases.factories import BUILT_IN
from capsbench.catalog import DatasetSpec, spec_of
from capsbench.data.classes import CLASSES
from capsbench.data.images import ImageSource, read_images
from capsbench.data.preprocess import prepare
from capsbench.errors import ConfigurationError, StoreError
from capsbench.models import CapsuleNetwork, CapsuleOutput, Ensemble
from capsbench.models.layers import CapsuleLayer
from capsbench.records import PREDICTED
from capsbench.routing import algorithm_of
from capsbench.sweep.machine import resolve_device
from capsbench.system.paths import expanded
from capsbench.tf32 import without_tf32
from capsbench.training.checkpoint import load_network
from capsbench.training.loop import BEST
from capsbench.training.settings import TrainingSettings

IMAGES_AT_ONCE = 128
STEPS = tuple(round(0.05 * step, 2) for step in range(-5, 6))
"""Distances by which a dimension of a capsule is moved (Sabour et al. 2017, figure 4)."""

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Classified:
    """The classification of an image."""

    label: int
    name: str
    """Name of the class."""
    length: float
    """Length of that class's capsule, 0 to 1; the score itself of a network that has no capsules."""
    lengths: tuple[float, ...]
    """Length of every class's capsule."""
    reconstruction: Tensor | None
    """`[C, H, W]`, 0 to 1, by the decoder; None without one."""


def classify(
    checkpoints: PathLike | Iterable[PathLike], images: ImageSource | Iterable[ImageSource], *, device: str = "cpu"
) -> list[Classified]:
    """Classify images with a trained network, or with several as an ensemble, which averages their lengths.

    Args:
        checkpoints: files of `capsbench train`, or folders of runs (the best epoch). An ensemble's were trained on one data
            set with one preprocessing.
        images: paths of png or jpg files, and tensors `[C, H, W]` or `[N, C, H, W]`, uint8 or floating point in 0 to 1. They are
            normalised as in training, and not cropped.
        device: `cpu`, `cuda`, `cuda:N` or `auto`.

    Returns:
        One result for each image, which does not depend on the others. If a network's would (SDA's temperature is a mean over
        the batch), or the network is not capsbench's own, each image is a batch of its own.

    Raises:
        StoreError: a checkpoint cannot be read, or its weights give values that are not finite.
        ConfigurationError: checkpoints do not fit together; an image cannot be read, or is of another size or mode.
        ShapeError: a tensor has another shape.
    """
    classifier = Classifier(checkpoints, device=device)
    return classifier(classifier.read(images))


class Classifier:
    """Networks of checkpoints on a device. Arguments and errors are those of `classify`."""

    def __init__(self, checkpoints: PathLike | Iterable[PathLike], *, device: str = "cpu") -> None:
        several = [checkpoints] if isinstance(checkpoints, str | os.PathLike) else checkpoints
        found = [expanded(path) for path in several]
        paths = [path / BEST if path.is_dir() else path for path in found]
        if not paths:
            raise ConfigurationError("there is no checkpoint", "give at least one")
        name = resolve_device(device)
        if name.endswith(PREDICTED):
            raise ConfigurationError(f"`device` {name} computes nothing: it is for predictions only", "choose auto, cpu or cuda")
        self.device = torch.device(name)
        loaded = [load_network(path, str(self.device)) for path in paths]
        self.settings = loaded[0][1]
        for path, (_, settings) in zip(paths, loaded, strict=True):
            _check_alike(paths[0], self.settings, path, settings)
        networks = [network for network, _ in loaded]
        self.network: nn.Module = networks[0] if len(networks) == 1 else Ensemble(networks).eval()
        self.paths = tuple(paths)
        own = all(settings.network.model in BUILT_IN for _, settings in loaded)
        layers = (module for module in self.network.modules() if isinstance(module, CapsuleLayer))
        self._batch_size = IMAGES_AT_ONCE if own and not any(algorithm_of(layer.routing).mixes_batch for layer in layers) else 1

    @property
    def spec(self) -> DatasetSpec:
        """The data set that the networks were trained on."""
        return spec_of(self.settings.network.dataset)

    def read(self, images: ImageSource | Iterable[ImageSource]) -> Tensor:
        """Read images to `[N, C, H, W]`, 0 to 255 (`read_images`)."""
        return read_images(images, self.spec)

    def __call__(self, images: Tensor) -> list[Classified]:
        """Classify images from `read`, or uint8 images `[N, C, H, W]` of the set's shape."""
        return [one for batch in images.split(self._batch_size) for one in self._batch(batch)]

    def inputs(self, images: Tensor) -> Tensor:
        """Images `[N, C, H, W]`, 0 to 255, in the form of the network's input, on its device."""
        labels = torch.zeros(len(images), dtype=torch.int64)
        return prepare(images.to(self.device), labels, self.settings.preprocess, self.spec.name).images

    def _batch(self, images: Tensor) -> list[Classified]:
        with torch.inference_mode(), without_tf32():
            out = self.network(self.inputs(images))
        scores, pictures = (out.lengths, out.reconstruction) if isinstance(out, CapsuleOutput) else (out, None)
        if not bool(torch.isfinite(scores).all()):
            raise StoreError(
                f"checkpoint {self.paths[0]} gives lengths that are not finite", "its weights are damaged: take an earlier one"
            )
        names = CLASSES[self.spec.name]
        longest = scores.argmax(dim=1).tolist()
        return [
            Classified(
                label=label,
                name=names[label],
                length=lengths[label],
                lengths=tuple(lengths),
                reconstruction=None if pictures is None else pictures[place].clone().cpu(),
            )
            for place, (label, lengths) in enumerate(zip(longest, scores.tolist(), strict=True))
        ]


def perturb(classifier: Classifier, image: Tensor, steps: Iterable[float] = STEPS) -> Tensor:
    """Decode the class capsule with one dimension after the other moved (Sabour et al. 2017, section 5.1).

    Args:
        classifier: classifier of one network that has a decoder.
        image: `[C, H, W]`, 0 to 255.
        steps: values that are added to a dimension.

    Returns:
        `[D, steps, C, H, W]`, 0 to 1.

    Raises:
        ConfigurationError: it is an ensemble, or the network has no decoder.
    """
    network = classifier.network
    if not isinstance(network, CapsuleNetwork) or network.decoder is None:
        what = "an ensemble" if isinstance(network, Ensemble) else f"a {type(network).__name__}"
        raise ConfigurationError(f"{what} has no decoder whose capsules could be moved", "give one capsule network that has one")
    with torch.inference_mode(), without_tf32():
        out: CapsuleOutput = network(classifier.inputs(image.unsqueeze(0)))
        label = out.lengths.argmax(dim=1)
        capsule = out.capsules[0, label[0]]
        by = torch.tensor(list(steps), device=capsule.device)
        moved = capsule + torch.eye(len(capsule), device=capsule.device).unsqueeze(1) * by.view(1, -1, 1)
        flat = moved.flatten(0, 1)
        shown = torch.zeros(len(flat), *out.capsules.shape[1:], device=capsule.device)
        shown[:, label[0]] = flat
        pictures: Tensor = network.decoder(shown, label.expand(len(flat)))
    return pictures.unflatten(0, moved.shape[:2]).clone().cpu()


def _check_alike(first: Path, mine: TrainingSettings, path: Path, theirs: TrainingSettings) -> None:
    for what, here, there in (
        ("dataset", mine.network.dataset, theirs.network.dataset),
        ("preprocess", mine.preprocess, theirs.preprocess),
    ):
        if here != there:
            raise ConfigurationError(
                f"checkpoint {path} was trained with {what} '{there}', and {first} with '{here}'",
                "give checkpoints of one data set and one preprocessing",
            )
