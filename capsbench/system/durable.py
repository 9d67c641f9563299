"""Files that are whole or absent, even if writing them is interrupted."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from capsbench.errors import unwritable

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file next to `path`, which replaces `path` once all of it is on the disk.

    A reader sees the old file or the new one, never half of one, and the old one stays if anything fails.

    Raises:
        OSError: it cannot be written.
    """
    new = path.with_name(f"{path.name}.new")
    try:
        with new.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    sync_folder(path.parent)


def replace_file(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of one.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise unwritable(path, error) from None


def sync_folder(folder: Path) -> None:
    """Make a new name in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_csv(table: "pd.DataFrame", path: Path) -> Path:
    """Write a table with all its digits.

    Raises:
        OSError: it cannot be written.
    """
    # pandas expands `~` in its own way, and the name of a folder need not be text.
    path.write_text(table.to_csv(index=False), encoding="utf-8", errors="surrogateescape")
    return path
