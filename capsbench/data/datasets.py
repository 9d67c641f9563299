"""Reading images: the real sets where they are on disk, and the packaged sample in their place where they are not."""

import gzip
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
import platformdirs
import torch
from torch import Tensor

from capsbench.catalog import DatasetSpec, spec_of
from capsbench.errors import ConfigurationError

SAMPLE_FILE = "fashion-mnist.npz"
SAMPLE_SIZE = 1024
SYSTEM_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package `dataset-fashion-mnist` puts its IDX files."""

Source = Literal["sample", "real", "stand-in"]
"""`sample`: the packaged images; `real`: the set that was named; `stand-in`: the packaged images in its shape."""


@dataclass(frozen=True)
class ImageSet:
    """Images and labels of a data set's training part."""

    spec: DatasetSpec
    images: Tensor
    """`[N, C, H, W]`, uint8."""
    labels: Tensor
    """`[N]`, int64, below the set's number of classes."""
    source: Source
    """Where the images come from."""


def data_directory() -> Path:
    """Where real sets are looked for: `$CAPSBENCH_DATA`, or the user's data directory."""
    chosen = os.environ.get("CAPSBENCH_DATA")
    return Path(chosen) if chosen else platformdirs.user_data_path("capsbench", appauthor=False)


def load_images(name: str, directory: Path | None = None) -> ImageSet:
    """The training images of a set, or the sample in its shape where the set is not on disk.

    Args:
        name: a key of `catalog.SPECS`.
        directory: where torchvision's folders lie; by default `data_directory()`.

    Raises:
        ConfigurationError: there is no such set, or its files are damaged.
    """
    spec = spec_of(name)
    if name == "sample":
        images, labels = _sample()
        return ImageSet(spec, images, labels, "sample")
    found = _read_real(name, directory or data_directory())
    if found is not None:
        return ImageSet(spec, *found, "real")
    images, labels = _sample()
    return ImageSet(spec, conform(images, spec.shape), labels, "stand-in")


def conform(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Grey images `[N, 1, h, w]` resized and repeated over channels to `[N, *shape]`; uint8 in and out."""
    channels, height, width = shape
    if images.shape[2:] != (height, width):
        resized = torch.nn.functional.interpolate(images.float(), (height, width), mode="bilinear", antialias=True)
        images = resized.round().clamp(0, 255).to(torch.uint8)
    return images.repeat(1, channels, 1, 1)


def read_idx(path: Path) -> Tensor:
    """An IDX file, gzipped or not, as the tensor that it holds; torchvision's reader."""
    from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

    if path.suffix != ".gz":
        return read_sn3_pascalvincent_tensor(str(path))
    with tempfile.NamedTemporaryFile() as plain:
        plain.write(gzip.decompress(path.read_bytes()))
        plain.flush()
        return read_sn3_pascalvincent_tensor(plain.name)


def _sample() -> tuple[Tensor, Tensor]:
    with (resources.files("capsbench.data") / "sample" / SAMPLE_FILE).open("rb") as file, np.load(file) as arrays:
        return torch.from_numpy(arrays["images"]).unsqueeze(1), torch.from_numpy(arrays["labels"]).long()


def _read_real(name: str, root: Path) -> tuple[Tensor, Tensor] | None:
    """The set by torchvision's own reader (folders and checksums are its own), or None where it is not on disk."""
    from torchvision import datasets

    readers: dict[str, Callable[[], object]] = {
        "mnist": lambda: datasets.MNIST(str(root), train=True),
        "fashion-mnist": lambda: datasets.FashionMNIST(str(root), train=True),
        "svhn": lambda: datasets.SVHN(str(root), split="train"),
        "cifar10": lambda: datasets.CIFAR10(str(root), train=True),
        "cifar100": lambda: datasets.CIFAR100(str(root), train=True),
    }
    try:
        read = readers[name]()
    except RuntimeError:  # torchvision's word for "not found or corrupted"
        return _read_system_fashion_mnist() if name == "fashion-mnist" else None
    except Exception as error:  # what a reader makes of a file that was cut off
        raise ConfigurationError(
            f"dataset '{name}' in {root} cannot be read: {type(error).__name__}: {error}", "restore its files, or remove them"
        ) from None
    return _as_tensors(read)


def _read_system_fashion_mnist() -> tuple[Tensor, Tensor] | None:
    images = SYSTEM_FASHION_MNIST / "train-images-idx3-ubyte.gz"
    labels = SYSTEM_FASHION_MNIST / "train-labels-idx1-ubyte.gz"
    if not (images.is_file() and labels.is_file()):
        return None
    return read_idx(images).unsqueeze(1), read_idx(labels).long()


def _as_tensors(read: object) -> tuple[Tensor, Tensor]:
    """Torchvision keeps images as `[N, H, W]` tensors (MNIST), `[N, H, W, C]` (CIFAR) or `[N, C, H, W]` arrays (SVHN)."""
    images = torch.as_tensor(getattr(read, "data"))  # noqa: B009 - the readers share no typed base
    labels = torch.as_tensor(getattr(read, "targets", None) if hasattr(read, "targets") else getattr(read, "labels"))  # noqa: B009
    if images.dim() == 3:
        images = images.unsqueeze(1)
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    return images.contiguous(), labels.long()
