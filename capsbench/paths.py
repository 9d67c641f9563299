"""The one meaning of a path: `~` is the user's home folder, and a relative path begins where the command was typed.

Modules of a user may change the process's folder while a command runs; what the command was given does not move with it.
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
    """Where a command was typed."""

    folder: Path | None
    """None where it does not exist any more."""
    in_full: set[str] = field(default_factory=set)
    """Paths in this folder that were typed in full, and are to be shown in full."""


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
    """A path with the user's home folder in place of `~`, and another user's in place of `~name`.

    Raises:
        ConfigurationError: the path begins with `~`, and there is no home folder.
    """
    found = os.path.expanduser(path)  # noqa: PTH111 - Path's own raises for `~name` where nobody has that name
    if found == "~" or found.startswith("~/"):
        raise ConfigurationError(
            f"'{path}' begins with ~, and this user has no home folder", "set HOME, or write the path in full"
        )
    return Path(found)


def absolute(path: str | os.PathLike[str]) -> Path:
    """An expanded path from the root of the disk; what it names stays the same wherever the process goes.

    Raises:
        ConfigurationError: as `expanded` and `start`.
    """
    given = expanded(path)
    return given if given.is_absolute() else start() / given


def anchored(path: Path) -> Path:
    """A path that the program chose, in the folder where the command that runs was typed; without a command, as it is."""
    return start() / path if _NOW else path


def typed(path: Path) -> Path:
    """The absolute path of one that a user typed; it is shown as it was typed from now on."""
    if _NOW and path.is_absolute():
        _NOW[-1].in_full.add(str(path))
    return absolute(path)


def as_typed(text: str) -> str:
    """A text for people in which paths begin where the command was typed, but for those that were typed in full."""
    folder = _NOW[-1].folder if _NOW else None
    if folder is None or folder == Path(folder.anchor):
        return text
    in_full = tuple(_NOW[-1].in_full)
    # What was saved among temporary files is easier to find by its whole path.
    if (temporary := Path(tempfile.gettempdir())).is_relative_to(folder):
        in_full += (str(temporary),)

    def shortened(found: re.Match[str]) -> str:
        return found[0] if text.startswith(in_full, found.start()) else ""

    return re.sub(rf"(?<![\w./~-]){re.escape(str(folder))}/", shortened, text)


def new_folder(wanted: Path) -> Path:
    """Make a folder of a name that nobody has yet: the wanted one, or the same with a number after it.

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
    """Keep a folder that was made for something that then fails only where something is in it."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()
            folder.parent.rmdir()  # which may have been made for it
        raise


def user_cache() -> Path | None:
    """The folder for what can be made again; None where the user has no home folder."""
    import platformdirs

    return _of_user(platformdirs.user_cache_dir)


def user_data() -> Path:
    """The folder for what is to stay; one in the system's temporary folder where the user has no home folder."""
    import platformdirs

    return _of_user(platformdirs.user_data_dir) or Path(tempfile.gettempdir()) / f"capsbench-{os.getuid()}"


def _of_user(folder: Callable[..., str]) -> Path | None:
    """Ask platformdirs, which raises, or gives a folder named `~`, where there is no home folder."""
    try:
        found = Path(folder("capsbench", appauthor=False))
    except (KeyError, RuntimeError):
        return None
    return found if found.is_absolute() else None
