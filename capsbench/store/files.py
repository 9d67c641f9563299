"""The files of a report: read, appended and replaced.

A report is a folder: plan.json (the request), environment.json (the machine), records.jsonl (one record a line). A record is
on the disk before the next cell starts; a damaged line costs that line alone, and is reported with its number.
"""

import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from pydantic import ValidationError

from capsbench.errors import LostWorkError, StoreError
from capsbench.records import Plan, Record, Round, newer_than_known
from capsbench.system.durable import sync_folder
from capsbench.system.paths import absolute, expanded
from capsbench.timeline import Timeline

RECORDS, PLAN, ENVIRONMENT, TIMELINE = "records.jsonl", "plan.json", "environment.json", "timeline.json"
ROUNDS = "rounds.jsonl"
"""Rounds of cells that take turns, until these have records."""

Line = TypeVar("Line", Record, Round)
"""A line of a file that is appended to."""


@dataclass(frozen=True)
class Damage:
    """A line that is not a record."""

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path} line {self.line} is damaged ({self.reason}); all other lines are read"


def damage_in_words(damages: Iterable[Damage]) -> list[str]:
    """Return of each file the first damaged line, and how many more there are, in words."""
    by_path: dict[Path, list[Damage]] = {}
    for damage in damages:
        by_path.setdefault(damage.path, []).append(damage)
    return [
        str(first) if not more else f"{path}: {1 + len(more)} lines are damaged, the first is line {first.line} ({first.reason})"
        for path, (first, *more) in by_path.items()
    ]


class SavedTimeline(NamedTuple):
    """A timeline, and the file that it was read from."""

    timeline: Timeline
    path: str = ""


def read_records(path: Path) -> tuple[list[Record], list[Damage]]:
    """Return the last record of each cell, in the order of first mention, and the lines that are not records.

    Raises:
        StoreError: the file cannot be opened, or holds a record of a newer schema.
    """
    records, damages = _read_lines(path, Record)
    return list({record.cell.key(): record for record in records}.values()), damages


def read_rounds(path: Path) -> tuple[list[Round], list[Damage]]:
    """Return the rounds of cells that took turns, and the lines that are not rounds.

    Raises:
        StoreError: the file cannot be opened, or holds a round of a newer schema.
    """
    return _read_lines(path, Round)


def _read_lines(path: Path, kind: type[Line]) -> tuple[list[Line], list[Damage]]:
    if not path.exists():
        return [], []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}", "check its permissions") from None
    read = [_line_of(line, kind, path, number) for number, line in enumerate(lines, start=1) if line.strip()]
    return [one for one in read if not isinstance(one, Damage)], [one for one in read if isinstance(one, Damage)]


def append(path: Path, record: Record | Round) -> None:
    """Write a line so that it is on the disk when this returns.

    Raises:
        LostWorkError: it could not be written; it is kept in the file that the message names.
    """
    line = record.model_dump_json().encode() + b"\n"
    try:
        _append_line(path, line)
    except OSError as error:
        raise LostWorkError(
            f"{path} cannot be written: {error.strerror}; {_rescue(line)}",
            "make room and run the same command with `resume`: all earlier records are kept",
        ) from None


def read_plan(path: Path) -> Plan | None:
    """Return a plan, or None where there is none.

    Raises:
        StoreError: it is damaged or of a newer schema.
    """
    if not path.exists():
        return None
    data = _read_json(path)
    _refuse_newer(data, path)
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        raise _damaged_file(path, _first(error)) from None


def read_environments(path: Path) -> dict[str, Any]:
    """Return every machine of a report, by the key that records carry.

    Raises:
        StoreError: the file is damaged.
    """
    known = _read_json(path) if path.exists() else {}
    return known if isinstance(known, dict) else {}


def read_timelines(paths: Iterable[Path]) -> tuple[list[tuple[Path, Timeline]], list[str]]:
    """Return the timelines in these files, and the files that are damaged, in words.

    Raises:
        StoreError: one is of a newer schema.
    """
    found, damages = [], []
    for path in paths:
        try:
            data = _parsed(path.read_text(encoding="utf-8"))
            _refuse_newer(data, path)
            found.append((path, Timeline.model_validate(data)))
        except ValidationError as error:
            damages.append(f"{path} is damaged ({_first(error)}) and left out")
        except (OSError, ValueError) as error:
            damages.append(f"{path} is damaged ({error}) and left out")
    return found, damages


def report_folders(root: Path) -> list[Path]:
    """Return every folder with records at or below `root`, sorted by name.

    Raises:
        StoreError: there is none.
    """
    root = expanded(root)
    if not root.is_dir():
        raise no_folder(root)
    found = sorted(Path(folder) for folder, _, names in os.walk(root, onerror=_unreadable) if RECORDS in names)
    if not found:
        raise StoreError(f"{root} holds no records", "give a folder that 'capsbench run' has written, or run it first")
    return found


def no_folder(folder: Path) -> StoreError:
    """Return the error of a folder of reports that does not exist, with the nearest one that does."""
    if folder.exists():
        return StoreError(f"{folder} is not a folder", "give a folder that 'capsbench run' has written")
    # The last part that exists, and beneath it a folder whose name is like that of the first part that does not.
    missing, nearest = folder, folder.parent
    while not nearest.is_dir() and nearest != nearest.parent:
        missing, nearest = nearest, nearest.parent
    try:
        beneath = {one.name: one for one in sorted(nearest.iterdir()) if one.is_dir()}
    except OSError:
        beneath = {}
    rest = folder.relative_to(missing)
    alike = [beneath[name] for name in get_close_matches(missing.name, beneath, n=1)]
    found = [one / rest if (one / rest).is_dir() else one for one in alike]
    where = f"did you mean {found[0]}? If not, " if found else f"the nearest folder that exists is {absolute(nearest)}; "
    return StoreError(f"{folder} does not exist", f"{where}give a folder that 'capsbench run' has written")


def nothing_to_read(*roots: Path) -> StoreError:
    """Return the error of folders that hold no record that can be read."""
    return StoreError(f"{', '.join(map(str, roots))} holds no record that can be read", "measure first, with 'capsbench run'")


def _unreadable(error: OSError) -> NoReturn:
    raise StoreError(f"{error.filename} cannot be read: {error.strerror}", "check its permissions, or name other folders")


def _line_of(line: bytes, kind: type[Line], path: Path, number: int) -> Line | Damage:
    try:
        data = _parsed(line)
    except ValueError as error:
        return Damage(path, number, f"not JSON: {error}")
    _refuse_newer(data, f"{path} line {number}")
    try:
        # A number in quotes is not a number.
        return kind.model_validate(data, strict=True)
    except ValidationError as error:
        return Damage(path, number, _first(error))


def _append_line(path: Path, line: bytes) -> None:
    new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        if new:
            sync_folder(path.parent)
        size = os.fstat(descriptor).st_size
        # A line that was cut off has no end; without one it would spoil this line too.
        cut_off = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        try:
            left = b"\n" + line if cut_off else line
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def _rescue(line: bytes) -> str:
    """Write a record that did not fit into its report to the system's temporary folder."""
    try:
        with tempfile.NamedTemporaryFile("wb", prefix="capsbench-", suffix=".jsonl", delete=False) as file:
            file.write(line)
        return f"its record is kept in {file.name}"
    except OSError:
        return f"its record was {line.decode().strip()}"


def _read_json(path: Path) -> Any:
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged_file(path, str(error)) from None


def _parsed(text: str | bytes) -> Any:
    """Parse JSON, or raise a `ValueError`."""
    try:
        return json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _whole(digits: str) -> int:
    """Parse a whole number of at most 64 bits, as tables of numbers hold."""
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise ValueError(f"a whole number of {len(digits)} digits is too large")
    return int(digits)


def _refuse_newer(data: Any, place: object) -> None:
    version = newer_than_known(data)
    if version is not None:
        raise StoreError(f"{place} has schema version {version}, newer than this capsbench reads", "upgrade capsbench")


def _damaged_file(path: Path, reason: str) -> StoreError:
    return StoreError(f"{path} is damaged: {reason}", "restore it, or start again with another `out`")


def _first(error: ValidationError) -> str:
    """The first fault of a validation, on one line."""
    fault = error.errors(include_url=False)[0]
    place = ".".join(map(str, fault["loc"])) or "record"
    return f"{place}: {fault['msg']}"
