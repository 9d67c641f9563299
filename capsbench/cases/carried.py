"""Functions that no other process can import, carried to the processes that measure them.

A function of a script, of a notebook, or inside another function is pickled by value into a folder of this process. The
processes that it starts find the folder in their environment, and the function in it by its own name. They also look for modules
where this process does: next to its script, and in folders that it has added to `sys.path`.
"""

import atexit
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle

from capsbench.cases.fingerprint import Fingerprint, fingerprint_of_function
from capsbench.errors import ConfigurationError, error_line
from capsbench.system.durable import replacing

FUNCTIONS_FOLDER = "CAPSBENCH_FUNCTIONS"
"""Variable of the environment that names the folder."""

SEARCH_PATH = "CAPSBENCH_SEARCH_PATH"
"""Variable of the environment that names the folders in which the process that sent functions looks for modules."""

_LONGEST_REASON = 200

_own_folder: Path | None = None


class Carried(NamedTuple):
    """A function that was carried here."""

    function: Callable[..., Any]
    fingerprint: Fingerprint
    """The fingerprint of its code when it was sent."""


def imported_name(function: Callable[..., Any]) -> str | None:
    """The name `package.module:name` by which another process imports a function; None if it cannot."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    name = getattr(function, "__qualname__", "")
    if module is None or module.__spec__ is None or function.__module__ == "__main__" or "<locals>" in name:
        return None
    try:
        return f"{function.__module__}:{name}" if attrgetter(name)(module) is function else None
    except AttributeError:
        return None


def share_search_path() -> None:
    """Let the processes that this one starts find the modules that it can import."""
    os.environ[SEARCH_PATH] = os.pathsep.join(str(Path(entry or ".").absolute()) for entry in sys.path)


def extend_search_path() -> None:
    """Look for modules where the process looks that sent functions here, last, so that nothing of this one's is hidden."""
    for entry in os.environ.get(SEARCH_PATH, "").split(os.pathsep):
        if entry and entry not in sys.path:
            sys.path.append(entry)


def carry(function: Callable[..., Any]) -> str:
    """Let the processes that this one starts find a function, and return the name that they find it by.

    Raises:
        ConfigurationError: the function has no name, or holds something that cannot be sent.
    """
    name = getattr(function, "__name__", "")
    if not name.isidentifier():
        raise ConfigurationError(
            f"`models` has {'a lambda' if name == '<lambda>' else type(function).__name__}, which has no name that records could "
            "call it by",
            "define a function with def, in any place, whose arguments have defaults",
        )
    module = sys.modules.get(function.__module__)
    by_value = module is not None and module.__spec__ is None and module.__name__ != "__main__"
    try:
        if by_value:
            cloudpickle.register_pickle_by_value(module)
        content = cloudpickle.dumps(Carried(function, fingerprint_of_function(function)))
    except Exception as error:  # an object may refuse in any way
        raise ConfigurationError(
            f"`models` {name} cannot be sent to the processes that measure it: {error_line(error, _LONGEST_REASON)}",
            "let the function make what it uses, or put it into a module that can be imported",
        ) from None
    finally:
        if by_value:
            cloudpickle.unregister_pickle_by_value(module)
    with replacing(_file(_made_folder(), name)) as file:
        file.write(content)
    return name


def carried(name: str) -> Carried | None:
    """The function that was carried here under this name; None if there is none."""
    folder = os.environ.get(FUNCTIONS_FOLDER)
    path = None if folder is None or not name.isidentifier() else _file(Path(folder), name)
    if path is None or not path.is_file():
        return None
    extend_search_path()
    try:
        return pickle.loads(path.read_bytes())  # noqa: S301  (written by the process that started this one)
    except Exception as error:
        raise ConfigurationError(
            f"model '{name}' cannot be read in another process: {error_line(error, _LONGEST_REASON)}",
            "import what it uses by names that other processes can import, too",
        ) from None


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.pickle"


def _made_folder() -> Path:
    global _own_folder
    if _own_folder is None or not _own_folder.is_dir():
        _own_folder = Path(tempfile.mkdtemp(prefix="capsbench-functions-"))
        os.environ[FUNCTIONS_FOLDER] = str(_own_folder)
        atexit.register(_remove, _own_folder, os.getpid())
    return _own_folder


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in a fork
        shutil.rmtree(folder, ignore_errors=True)
