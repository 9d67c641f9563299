"""The networks of the paper and the data sets by name. The module is cheap to import; `data.datasets` reads the images."""

import re
from dataclasses import dataclass

from capsbench.errors import ConfigurationError, unknown_name

STACKED = {"capsnet": "CapsNet", "rescapsnet": "ResCapsNet", "mocapsnet": "MoCapsNet"}
"""The networks of the paper, which `all` stands for, with their titles."""

WITHOUT_BLOCKS = {"capsnet-1conv": "CapsNet, 1 convolution", "capsnet-2conv": "CapsNet, 2 convolutions"}
"""Baselines of its table 3, which have no depth."""

MODELS = {**STACKED, **WITHOUT_BLOCKS}
"""Every network that has a name, with its title."""


@dataclass(frozen=True)
class DatasetSpec:
    """Facts about a data set that a model and a figure need."""

    name: str
    """Name on the command line."""
    title: str
    """Name in figures."""
    shape: tuple[int, int, int]
    """Channels, height, width."""
    classes: int
    """Number of classes."""
    train_size: int
    """Images in the training set: an epoch of the paper."""


SPECS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec("sample", "Fashion-MNIST sample", (1, 28, 28), 10, 60_000),
        DatasetSpec("mnist", "MNIST", (1, 28, 28), 10, 60_000),
        DatasetSpec("fashion-mnist", "Fashion-MNIST", (1, 28, 28), 10, 60_000),
        DatasetSpec("svhn", "SVHN", (3, 32, 32), 10, 73_257),
        DatasetSpec("cifar10", "CIFAR-10", (3, 32, 32), 10, 50_000),
        DatasetSpec("cifar100", "CIFAR-100", (3, 32, 32), 100, 50_000),
    )
}
"""Every data set by name; `sample` is the packaged part of Fashion-MNIST, and counts that set's epoch."""


OWN_INPUTS = "own"
"""Name of the data set of a case, which brings its inputs."""


def spec_of(name: str) -> DatasetSpec:
    """The data set of this name.

    Raises:
        ConfigurationError: there is no such data set.
    """
    if name not in SPECS:
        raise unknown_name("`dataset`", name, SPECS)
    return SPECS[name]


def parse_shape(text: str) -> tuple[int, int, int]:
    """Parse the shape of an image: `3x227x227` → channels, height and width.

    Raises:
        ConfigurationError: it is no shape.
    """
    found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if found is None:
        raise ConfigurationError(f"shape '{text}' is not that of an image", "give channels, height and width, such as 3x227x227")
    return int(found[1]), int(found[2]), int(found[3])
