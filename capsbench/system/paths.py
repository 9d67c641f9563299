"""The one meaning of a path: `~` is the user's home folder, and a relative path begins where the command was typed.

Modules of a user may change the process's folder while a command runs; the command's paths do not move with it.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from capsbench.errors import ConfigurationError, StoreError


@dataclass
class _Typed:
    """The folder where a command was typed, with its paths."""

    folder: Path | None
    """Working directory of the command; None if it does not exist any more."""
    in_full: set[str] = field(default_factory=set)
    """Paths in this folder that were typed in full, and are shown in full."""


_NOW: list[_Typed] = []
"""The command that runs, if any."""


def start() -> Path:
    """The folder in which the command that runs was typed; without a command, the process's folder now.

    Raises:
        ConfigurationError: it does not exist any more.
    """
    folder = _NOW[-1].folder if _NOW else _here()
    if folder is None:
        raise ConfigurationError("the folder that this process is in does not exist any more", "go to another folder")
    return folder


@contextmanager
def starting_here() -> Iterator[None]:
    """Make the process's folder of this moment the one in which relative paths begin, for as long as a command runs."""
    _NOW.append(_Typed(_here()))
    try:
        yield
    finally:
        _NOW.pop()


def _here() -> Path | None:
    try:
        return Path.cwd()
    except OSError:
        return None


def expanded(path: str | os.PathLike[str]) -> Path:
    """Expand `~` in a path to the user's home folder, and `~name` to another user's.

    Raises:
        ConfigurationError: the path begins with `~`, and there is no home folder.
    """
    found = os.path.expanduser(path)  # noqa: PTH111 - Path's own raises for `~name` if no user has that name
    if found == "~" or found.startswith("~/"):
        raise ConfigurationError(
            f"'{path}' begins with ~, and this user has no home folder", "set HOME, or write the path in full"
        )
    return Path(found)


def absolute(path: str | os.PathLike[str]) -> Path:
    """An expanded path from the root of the disk, which names the same file wherever the process goes.

    Raises:
        ConfigurationError: there is no home folder, or the folder of the command does not exist any more.
    """
    given = expanded(path)
    return given if given.is_absolute() else start() / given


def anchored(path: Path) -> Path:
    """Anchor a path that the program chose in the folder where the command was typed; without a command, leave it as it is."""
    return start() / path if _NOW else path


def typed(path: Path) -> Path:
    """The absolute path of one that a user typed; from now on it is shown as it was typed."""
    if _NOW and path.is_absolute():
        _NOW[-1].in_full.add(str(path))
    return absolute(path)


def with_typed_paths(text: str) -> str:
    """A text for people in which paths begin where the command was typed, except those that were typed in full."""
    folder = _NOW[-1].folder if _NOW else None
    if folder is None or folder == Path(folder.anchor):
        return text
    in_full = tuple(_NOW[-1].in_full)
    # A file in the temporary folder is easier to find by its whole path.
    if (temporary := Path(tempfile.gettempdir())).is_relative_to(folder):
        in_full += (str(temporary),)

    def shortened(found: re.Match[str]) -> str:
        return found[0] if text.startswith(in_full, found.start()) else ""

    return re.sub(rf"(?<![\w./~-]){re.escape(str(folder))}/", shortened, text)


def new_folder(wanted: Path) -> Path:
    """Make a new folder with the wanted name, or with a number after it if that exists.

    Raises:
        StoreError: it cannot be made.
    """
    folder, number = wanted, 1
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
            number += 1
            folder = wanted.with_name(f"{wanted.name}-{number}")
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror}", "choose an `out` that you may write to") from None


@contextmanager
def unless_empty(folder: Path) -> Iterator[None]:
    """Remove a folder that was made for something that then fails, unless there is something in it."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()
            folder.parent.rmdir()  # which may have been made for it
        raise


def user_cache() -> Path | None:
    """The folder for files that can be made again; None if the user has no home folder."""
    import platformdirs

    return _of_user(platformdirs.user_cache_dir)


def user_data() -> Path:
    """The folder for lasting files; one in the system's temporary folder if the user has no home folder."""
    import platformdirs

    return _of_user(platformdirs.user_data_dir) or Path(tempfile.gettempdir()) / f"capsbench-{os.getuid()}"


def _of_user(folder: Callable[..., str]) -> Path | None:
    """Ask platformdirs, which raises, or returns a folder named `~`, if there is no home folder."""
    try:
        found = Path(folder("capsbench", appauthor=False))
    except (KeyError, RuntimeError):
        return None
    return found if found.is_absolute() else None
