"""The note on what the drawings of a report were made from, by which they are not made again in vain.

The note is `.drawn.json` in the report's folder. It names the drawings with their sizes and times, so that a drawing that is
missing, or was made with other options since, is noticed; and it has a digest of all that they were made from.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from capsbench.records import Plan
from capsbench.store.files import ENVIRONMENT, RECORDS, ROUNDS, TIMELINE

NOTE = ".drawn.json"
"""File of the note in a report's folder."""
_LIBRARIES = ("matplotlib", "plotly", "pandas", "numpy", "scipy")


def source_digest(folder: Path, plan: Plan | None, options: Mapping[str, Any]) -> str:
    """The digest of all that drawings are made from: sizes and times of a report's files, the options, and this program.

    The command of the plan is left out, since a command that resumes a report is another one than that which began it.

    Args:
        folder: folder of the report.
        plan: its plan, with the bases that were declared.
        options: options of the drawings.
    """
    known = hashlib.sha256(_program().encode())
    request = None if plan is None else plan.model_dump(mode="json", exclude={"command"})
    known.update(json.dumps([str(folder.resolve()), request, dict(options)], sort_keys=True, default=str).encode())
    for path in (folder / RECORDS, folder / ROUNDS, folder / ENVIRONMENT, *sorted(folder.rglob(TIMELINE))):
        with contextlib.suppress(OSError):
            # Records only grow, and a sweep reads them once at most: their size and time are enough.
            known.update(f"\n{path.relative_to(folder)} {_state_of(path)}\n".encode("utf-8", "surrogateescape"))
    return known.hexdigest()


def note_drawn(folder: Path, digest: str, paths: Iterable[Path]) -> None:
    """Note that these drawings were made from what has this digest; a note that cannot be written costs a drawing, later.

    Args:
        folder: folder of the report.
        digest: digest from `source_digest`, taken before they were made.
        paths: the drawings, which lie in the folder.
    """
    with contextlib.suppress(OSError):
        found = {path.name: _state_of(path) for path in paths}
        (folder / NOTE).write_text(json.dumps({"made_from": digest, "drawings": found}), encoding="utf-8")


def up_to_date(folder: Path, digest: str) -> list[Path]:
    """The drawings of a report if all of them are there as they were made from what has this digest; else none.

    Args:
        folder: folder of the report.
        digest: digest from `source_digest`.
    """
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        drawings = {folder / name: state for name, state in note["drawings"].items()}
        current = note["made_from"] == digest and all(_state_of(path) == state for path, state in drawings.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no note, or one that somebody wrote by hand
        return []
    return list(drawings) if current else []


def _state_of(path: Path) -> list[int]:
    known = path.stat()
    return [known.st_size, known.st_mtime_ns]


@cache
def _program() -> str:
    """Versions of the program and of the libraries that it draws with, and the states of its files."""
    package = Path(__file__).parent.parent
    files = sorted(path for path in package.rglob("*") if path.suffix in (".py", ".js", ".css", ".j2", ".csv"))
    versions = []
    for name in ("capsbench", *_LIBRARIES):
        with contextlib.suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    return repr([versions, [(str(path.relative_to(package)), *_state_of(path)) for path in files]])
