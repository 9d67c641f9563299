"""The belongings of a driver that its workers need: a user's functions and modules, and variables of the environment.

Where a worker finds the same files under the same paths, as on one machine or a shared file system, it measures in the driver's
own folder. Elsewhere it lays the files out in a folder of its own. Files that are no modules do not travel.
"""

import base64
import hashlib
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from capsbench.cases.carried import FUNCTIONS_FOLDER, SEARCH_PATH
from capsbench.measure.variables import SETTING_VARIABLES
from capsbench.system.paths import start

_OF_THE_NODE = ("LD_PRELOAD",)
"""Settings that name files of a machine, and stay as they are there."""

_HERE, _IMPORTED, _FUNCTIONS = "here", "imported", "functions"
"""Parts of the folder in which belongings are laid out: the driver's folder, modules of other places, carried functions."""


def packed(files: Iterable[str]) -> str:
    """Pack the belongings of this process as JSON.

    Args:
        files: paths of the modules of users' networks, as in `Fingerprint.files`.
    """
    folder = start().resolve()
    functions = os.environ.get(FUNCTIONS_FOLDER)
    carried = sorted(Path(functions).glob("*.pickle")) if functions else []
    chosen = (name for name in os.environ if SETTING_VARIABLES.fullmatch(name) and name not in _OF_THE_NODE)
    settings = {name: os.environ[name] for name in chosen}
    return json.dumps(
        {
            "folder": str(folder),
            "files": {str(path): _encoded(path) for path in sorted({Path(file).resolve() for file in files})},
            "functions": {path.name: _encoded(path) for path in carried},
            "roots": [str(Path(entry).resolve()) for entry in sys.path if entry],
            "path": [str((folder / entry).resolve()) for entry in _entries(os.environ)],
            "settings": settings,
            "search": os.environ.get(SEARCH_PATH, ""),
        },
        sort_keys=True,
    )


class Unpacked(NamedTuple):
    """Belongings on a worker."""

    folder: Path
    """Folder in which its processes run."""
    variables: dict[str, str]
    """Their environment."""


def unpacked(text: str, given: Mapping[str, str]) -> Unpacked:
    """Unpack belongings, once for all tasks of a driver on this machine.

    Args:
        text: belongings as `packed` made them.
        given: variables of this process.
    """
    belongings = json.loads(text)
    there, folder = _is_there(belongings), Path(belongings["folder"])
    laid_out = _laid_out(belongings, text)
    paths = [Path(entry) for entry in belongings["path"]]
    if not there:
        paths = [laid_out / _HERE / path.relative_to(folder) for path in paths if path.is_relative_to(folder)]
        paths += [laid_out / _IMPORTED]
    search = dict.fromkeys([*(str(path) for path in paths if path.is_dir()), *_entries(given)])
    kept = {name: value for name, value in given.items() if name in _OF_THE_NODE or not SETTING_VARIABLES.fullmatch(name)}
    variables = kept | belongings["settings"] | {FUNCTIONS_FOLDER: str(laid_out / _FUNCTIONS)}
    if there and belongings["search"]:
        variables[SEARCH_PATH] = belongings["search"]
    variables.pop("PYTHONPATH", None)
    if search:
        variables["PYTHONPATH"] = os.pathsep.join(search)
    return Unpacked(folder if there else laid_out / _HERE, variables)


def _is_there(belongings: Mapping[str, Any]) -> bool:
    """Return whether this machine has the driver's folder, and the same files under the same paths."""
    if not os.access(belongings["folder"], os.R_OK | os.X_OK):
        return False
    try:
        return all(Path(path).read_bytes() == base64.b64decode(text) for path, text in belongings["files"].items())
    except OSError:
        return False


def _laid_out(belongings: Mapping[str, Any], text: str) -> Path:
    """The folder with all belongings, which is made once for each digest of them."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    made = Path(tempfile.gettempdir()) / f"capsbench-{os.getuid()}-belongings-{digest}"
    if made.is_dir() and made.stat().st_uid == os.getuid():  # nobody else's, which could hold anything
        return made
    fresh = made.with_name(f"{made.name}.{secrets.token_hex(4)}")
    fresh.mkdir(mode=0o700)
    for name in (_HERE, _IMPORTED, _FUNCTIONS):
        (fresh / name).mkdir()
    for name, content in belongings["functions"].items():
        (fresh / _FUNCTIONS / name).write_bytes(base64.b64decode(content))
    for name, content in belongings["files"].items():
        path = fresh / _place(Path(name), belongings)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(content))
    try:
        fresh.rename(made)
    except OSError:  # another worker has made it at the same time, or it is another user's
        if not (made.is_dir() and made.stat().st_uid == os.getuid()):
            return fresh
        shutil.rmtree(fresh, ignore_errors=True)
    return made


def _place(path: Path, belongings: Mapping[str, Any]) -> Path:
    """The place of a file among what is laid out: below the driver's folder, or below the folder that it is imported from."""
    folder = Path(belongings["folder"])
    if path.is_relative_to(folder):
        return Path(_HERE) / path.relative_to(folder)
    roots = [Path(entry) for entry in belongings["roots"] if path.is_relative_to(entry)]
    nearest = max(roots, key=lambda root: len(root.parts), default=path.parent)
    return Path(_IMPORTED) / path.relative_to(nearest)


def _entries(variables: Mapping[str, str]) -> list[str]:
    """The folders of modules that the environment names."""
    return [entry for entry in variables.get("PYTHONPATH", "").split(os.pathsep) if entry]


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
