"""The archives that MNIST and Fashion-MNIST come in: torchvision leaves them beside what it unpacked, and never looks again."""

import gzip
from pathlib import Path

from capsbench.errors import ConfigurationError


def check_archives(name: str, root: Path) -> None:
    """Holds archives that are there to torchvision's checksums, and the files beside them to what they contain.

    Files without their archive are taken as they are: there is no published checksum of what is unpacked.

    Args:
        name: `mnist` or `fashion-mnist`; other sets' checksums are torchvision's matter.
        root: where torchvision's folders lie.

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
                f"dataset '{name}': {plain} is not what {archive.name} beside it contains",
                f"unpack {archive.name} again, or remove both and add `download`",
            )
