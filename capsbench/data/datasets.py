"""Reading of images: both parts of the real sets, and the packaged sample, which stands in for a set if only pace matters."""

import contextlib
import gzip
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from capsbench.catalog import DatasetSpec, spec_of
from capsbench.data.archives import check_archives
from capsbench.errors import ConfigurationError, error_line
from capsbench.system.paths import anchored, expanded, user_data

SAMPLE_FILE = "fashion-mnist.npz"
SAMPLE_SIZE = 1024
SAMPLE_TEST = 256
"""Number of images at the end of the sample that form its test part when it is trained on."""
SYSTEM_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Folder in which Debian's package `dataset-fashion-mnist` puts its IDX files."""

PARTS = {True: "train", False: "t10k"}
_IDX = tuple(f"{part}-{kind}-ubyte" for part in PARTS.values() for kind in ("images-idx3", "labels-idx1"))
FILES: dict[str, tuple[str, ...]] = {
    "mnist": tuple(f"MNIST/raw/{name}" for name in _IDX),
    "fashion-mnist": tuple(f"FashionMNIST/raw/{name}" for name in _IDX),
    "svhn": ("train_32x32.mat", "test_32x32.mat"),
    "cifar10": tuple(
        f"cifar-10-batches-py/{name}" for name in (*(f"data_batch_{part}" for part in range(1, 6)), "test_batch", "batches.meta")
    ),
    "cifar100": tuple(f"cifar-100-python/{name}" for name in ("train", "test", "meta")),
}
"""Paths at which torchvision's readers look for a set, below the data directory."""

Source = Literal["sample", "real", "stand-in", "random"]
"""Source of images: the packaged ones (`sample`), the named set (`real`), the packaged ones in its shape (`stand-in`), random."""


@dataclass(frozen=True)
class ImageSet:
    """Images and labels of one part of a data set."""

    spec: DatasetSpec
    images: Tensor
    """`[N, C, H, W]`, uint8."""
    labels: Tensor
    """`[N]`, int64, below the set's number of classes."""
    source: Source
    """Source of the images."""


class Parts(NamedTuple):
    """The parts of a set for training."""

    train: ImageSet
    test: ImageSet


def data_directory() -> Path:
    """The folder of real sets: `$CAPSBENCH_DATA`, or the user's data directory."""
    chosen = os.environ.get("CAPSBENCH_DATA")
    return anchored(expanded(chosen)) if chosen else user_data()


def load_images(name: str, directory: Path | None = None) -> ImageSet:
    """Load the training images of a set for measuring, or the sample in its shape if the set is not on disk.

    Args:
        name: a key of `catalog.SPECS`.
        directory: parent of torchvision's folders; by default `data_directory()`.

    Raises:
        ConfigurationError: there is no such set, or its files are damaged.
    """
    spec = spec_of(name)
    if name == "sample":
        images, labels = _sample()
        return ImageSet(spec, images, labels, "sample")
    root = expanded(directory) if directory else data_directory()
    try:
        with _naming_damage(name, root):
            return ImageSet(spec, *_as_tensors(_read_torchvision(name, root, train=True)), "real")
    except _Absent:
        found = _system_fashion_mnist(train=True) if name == "fashion-mnist" else None
    if found is not None:
        return ImageSet(spec, *found, "real")
    images, labels = _sample()
    return ImageSet(spec, conform(images, spec.shape), labels, "stand-in")


def random_images(spec: DatasetSpec, count: int) -> ImageSet:
    """Draw images of a shape that no data set has, with labels; the same ones each time."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, *spec.shape), dtype=torch.uint8, generator=generator)
    return ImageSet(spec, images, torch.randint(spec.classes, (count,), generator=generator), "random")


def load_parts(name: str, directory: Path | None = None, *, download: bool = False) -> Parts:
    """Load both parts of a set for training; nothing stands in for a missing set.

    Args:
        name: a key of `catalog.SPECS`; `sample` is cut in two.
        directory: parent of torchvision's folders; by default `data_directory()`.
        download: fetch missing files from the sets' own addresses; torchvision checks their checksums.

    Raises:
        ConfigurationError: there is no such set; it is not on disk; its files are damaged, of other checksums or may not be read.
    """
    spec = spec_of(name)
    if name == "sample":
        images, labels = _sample()
        cut = len(images) - SAMPLE_TEST
        return Parts(*(ImageSet(spec, images[at].clone(), labels[at].clone(), "sample") for at in (slice(cut), slice(cut, None))))
    root = expanded(directory) if directory else data_directory()
    missing = [file for file in FILES[name] if not _is_readable(name, root / file)]
    if missing and name == "fashion-mnist":
        found = [_system_fashion_mnist(train=train) for train in (True, False)]
        if found[0] is not None and found[1] is not None:
            return Parts(_checked(ImageSet(spec, *found[0], "real")), _checked(ImageSet(spec, *found[1], "real")))
    if missing and not download:
        raise ConfigurationError(
            f"dataset '{name}' is not in {root}" + (f": no {', '.join(missing)}" if len(missing) < len(FILES[name]) else ""),
            f"put {_places(name)} below {root} (`data_directory` names another folder), or add `download` to fetch them",
        )
    parts = Parts(*(_checked(ImageSet(spec, *_read_part(name, root, train, download), "real")) for train in (True, False)))
    with _naming_damage(name, root):
        check_archives(name, root)
    return parts


def conform(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Resize grey images `[N, 1, h, w]` and repeat them over channels to `[N, *shape]`; uint8 in and out."""
    channels, height, width = shape
    if images.shape[2:] != (height, width):
        resized = torch.nn.functional.interpolate(images.float(), (height, width), mode="bilinear", antialias=True)
        images = resized.round().clamp(0, 255).to(torch.uint8)
    return images.repeat(1, channels, 1, 1)


def read_idx(path: Path) -> Tensor:
    """The tensor in an IDX file, gzipped or not, by torchvision's reader."""
    read_sn3_pascalvincent_tensor = _torchvision_datasets().mnist.read_sn3_pascalvincent_tensor
    if path.suffix != ".gz":
        return read_sn3_pascalvincent_tensor(str(path))
    with tempfile.NamedTemporaryFile() as plain:
        plain.write(gzip.decompress(path.read_bytes()))
        plain.flush()
        return read_sn3_pascalvincent_tensor(plain.name)


def _torchvision_datasets() -> Any:
    """The module of torchvision's readers.

    Raises:
        ConfigurationError: torchvision cannot be imported, as one that was built for another torch.
    """
    try:
        from torchvision import datasets
    except Exception as error:  # what its operators raise when they are registered with another torch
        raise ConfigurationError(
            f"torchvision cannot be imported with torch {torch.__version__}: {error_line(error)}",
            "install the torchvision that was built for this torch",
        ) from None
    return datasets


def _sample() -> tuple[Tensor, Tensor]:
    with (resources.files("capsbench.data") / "sample" / SAMPLE_FILE).open("rb") as file, np.load(file) as arrays:
        return torch.from_numpy(arrays["images"]).unsqueeze(1), torch.from_numpy(arrays["labels"]).long()


_ABSENT = ("not found", "Error downloading")
"""Messages of torchvision for a set that is missing, has another checksum, or could not be downloaded."""


class _Absent(Exception):
    """A set is not on disk, or is of another checksum."""


def _read_torchvision(name: str, root: Path, *, train: bool, download: bool = False) -> object:
    """Read a part of a set by torchvision's own reader, which knows folders and checksums."""
    datasets = _torchvision_datasets()
    part = "train" if train else "test"
    readers: dict[str, Callable[[], object]] = {
        "mnist": lambda: datasets.MNIST(str(root), train=train, download=download),
        "fashion-mnist": lambda: datasets.FashionMNIST(str(root), train=train, download=download),
        "svhn": lambda: datasets.SVHN(str(root), split=part, download=download),
        "cifar10": lambda: datasets.CIFAR10(str(root), train=train, download=download),
        "cifar100": lambda: datasets.CIFAR100(str(root), train=train, download=download),
    }
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torchvision reports its downloads there
            return readers[name]()
    except RuntimeError as error:
        if not any(words in str(error) for words in _ABSENT):
            raise
        raise _Absent(str(error)) from None


def _read_part(name: str, root: Path, train: bool, download: bool) -> tuple[Tensor, Tensor]:
    """Images and labels of a set whose files are present, or to be fetched."""
    try:
        with _naming_damage(name, root, download=download):
            return _as_tensors(_read_torchvision(name, root, train=train, download=download))
    except _Absent as error:
        if download:
            raise _not_fetched(name, root, str(error).splitlines()[0]) from None
        raise ConfigurationError(
            f"dataset '{name}' in {root} is damaged: its files do not have the checksums that torchvision knows",
            f"remove them and add `download`, or put the published {_places(name)} there",
        ) from None


@contextmanager
def _naming_damage(name: str, root: Path, *, download: bool = False) -> Iterator[None]:
    """Name the data set in the error that a reader raises."""
    try:
        yield
    except (_Absent, ConfigurationError):
        raise
    except PermissionError as error:
        raise _forbidden(name, error.filename or root) from None
    except Exception as error:  # a truncated file or a missing network makes readers raise anything
        reason = error_line(error)
        if download and isinstance(error, OSError):
            raise _not_fetched(name, root, reason) from None
        raise ConfigurationError(
            f"dataset '{name}' in {root} cannot be read: {reason}", "restore its files, or remove them"
        ) from None


def _not_fetched(name: str, root: Path, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"dataset '{name}' cannot be downloaded to {root}: {reason}",
        f"check the network and the disk, or put {_places(name)} below {root}",
    )


def _is_readable(name: str, path: Path) -> bool:
    """Return whether a file is there; refuse one that is there and may not be read."""
    try:
        with path.open("rb"):
            return True
    except PermissionError:
        raise _forbidden(name, path) from None
    except OSError:
        return False


def _forbidden(name: str, path: object) -> ConfigurationError:
    return ConfigurationError(
        f"dataset '{name}' cannot be read: {path}: permission denied",
        "make it readable, or name another folder with `data_directory`",
    )


def _places(name: str) -> str:
    """Paths of a set's files in short: `cifar-10-batches-py/{data_batch_1, …}`."""
    folder = Path(FILES[name][0]).parent
    names = ", ".join(Path(file).name for file in FILES[name])
    return names if folder == Path() else f"{folder}/{{{names}}}"


def _checked(data: ImageSet) -> ImageSet:
    """Refuse a set whose images do not match its name."""
    count, shape, spec = len(data.images), tuple(data.images.shape[1:]), data.spec
    if shape != spec.shape or count != len(data.labels) or count == 0:
        raise ConfigurationError(
            f"dataset '{spec.name}' has {count} images of shape {shape} and {len(data.labels)} labels",
            f"its images are of shape {spec.shape}, with a label each: restore its files",
        )
    low, high = int(data.labels.min()), int(data.labels.max())
    if low < 0 or high >= spec.classes:
        raise ConfigurationError(
            f"dataset '{spec.name}' has labels {low} to {high}", f"they go from 0 to {spec.classes - 1}: restore its files"
        )
    return data


def _system_fashion_mnist(*, train: bool) -> tuple[Tensor, Tensor] | None:
    images, labels = (SYSTEM_FASHION_MNIST / f"{PARTS[train]}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    if not (images.is_file() and labels.is_file()):
        return None
    with _naming_damage("fashion-mnist", SYSTEM_FASHION_MNIST):
        return read_idx(images).unsqueeze(1), read_idx(labels).long()


def _as_tensors(read: Any) -> tuple[Tensor, Tensor]:
    """Convert torchvision's images: `[N, H, W]` tensors (MNIST), `[N, H, W, C]` (CIFAR) or `[N, C, H, W]` arrays (SVHN)."""
    images = torch.as_tensor(read.data)
    labels = torch.as_tensor(read.targets if hasattr(read, "targets") else read.labels)
    if images.dim() == 3:
        images = images.unsqueeze(1)
    elif images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    return images.contiguous(), labels.long()
