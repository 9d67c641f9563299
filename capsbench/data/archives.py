"""Archives of MNIST and Fashion-MNIST, which torchvision leaves next to the unpacked files and never checks again."""

import gzip
from pathlib import Path

from capsbench.errors import ConfigurationError


def check_archives(name: str, root: Path) -> None:
    """Check archives that are present against torchvision's checksums, and the unpacked files against their archives.

    Files without their archive are not checked, because no checksum of the unpacked files is published.

    Args:
        name: `mnist` or `fashion-mnist`; torchvision checks the other sets itself.
        root: parent of torchvision's folders.

    Raises:
        ConfigurationError: an archive is not the published one, or a file is not what its archive contains.
        OSError: one of them cannot be read.
    """
    from torchvision.datasets import MNIST, FashionMNIST
    from torchvision.datasets.utils import check_integrity

    reader = {"mnist": MNIST, "fashion-mnist": FashionMNIST}.get(name)
    if reader is None:
        return
    folder = root / reader.__name__ / "raw"
    for file, checksum in reader.resources:
        archive, plain = folder / file, folder / file.removesuffix(".gz")
        if not archive.is_file():
            continue
        if not check_integrity(str(archive), checksum):
            raise ConfigurationError(
                f"dataset '{name}': {archive} does not have the checksum that torchvision knows ({checksum})",
                "remove it: the unpacked files are then taken as they are; or put the published file there",
            )
        if gzip.decompress(archive.read_bytes()) != plain.read_bytes():
            raise ConfigurationError(
                f"dataset '{name}': {plain} is not what {archive.name} next to it contains",
                f"unpack {archive.name} again, or remove both and add `download`",
            )
