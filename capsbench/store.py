"""Records on disk: append, read, resume, lock.

A report is a folder: plan.json (what was asked), environment.json (on what), records.jsonl (one record a line). A record is
on the disk before the next cell starts; a damaged line costs that line alone and is told with its number.
"""

import contextlib
import errno
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import ValidationError

from capsbench.durable import replacing, sync_folder
from capsbench.errors import LostWorkError, StoreError
from capsbench.locks import Busy, holding
from capsbench.paths import expanded
from capsbench.records import BOTH, Pass, Plan, Record, Timeline, newer_than_known

if TYPE_CHECKING:
    import pandas as pd

RECORDS, PLAN, ENVIRONMENT, LOCK = "records.jsonl", "plan.json", "environment.json", ".lock"
TIMELINE = "timeline.json"


@dataclass(frozen=True)
class Damage:
    """A line that is no record."""

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path} line {self.line} is damaged ({self.reason}); all other lines are read"


def told_damages(damages: Iterable[Damage]) -> list[str]:
    """Damages in words: of a file the first, and how many lines more."""
    by_path: dict[Path, list[Damage]] = {}
    for damage in damages:
        by_path.setdefault(damage.path, []).append(damage)
    return [
        str(first) if not more else f"{path}: {1 + len(more)} lines are damaged, the first is line {first.line} ({first.reason})"
        for path, (first, *more) in by_path.items()
    ]


@dataclass
class Contents:
    """What a records file holds: the last record of each cell, in the order of first mention."""

    records: list[Record] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)


class Store:
    """One report folder.

    Args:
        folder: is made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = expanded(folder)
        self.path = self.folder / RECORDS

    @contextmanager
    def locked(self, notify: Callable[[str], None] = lambda _: None) -> Iterator[None]:
        """Keeps a second sweep out of the folder for as long as this process lives.

        Args:
            notify: is told where it takes a while to see whether another process that holds the folder still lives.

        Raises:
            StoreError: another process holds it, or the folder cannot be written.
        """

        def waiting(holder: str) -> None:
            notify(f"looking whether another capsbench run still holds {self.folder}: {holder}")

        with contextlib.ExitStack() as held:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(holding(self.folder / LOCK, self.folder, waiting=waiting))
            except Busy as busy:
                raise StoreError(
                    f"`out` {self.folder} is in use by another capsbench run: {busy.holder}",
                    "wait for it, or choose another `out`",
                ) from None
            except OSError as error:
                raise _unwritable(self.folder, error) from None
            yield

    def read(self) -> Contents:
        """All records, and what could not be read.

        Raises:
            StoreError: the file cannot be opened, or holds a record of a newer schema.
        """
        if not self.path.exists():
            return Contents()
        try:
            lines = self.path.read_bytes().split(b"\n")
        except OSError as error:
            raise StoreError(f"{self.path} cannot be read: {error.strerror}", "check its permissions") from None
        found: dict[str, Record] = {}
        damages = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            record = self._parse(line, number)
            if isinstance(record, Damage):
                damages.append(record)
            else:
                found[record.cell.key()] = record
        return Contents(list(found.values()), damages)

    def finished(self, passes: Sequence[Pass] = BOTH) -> set[str]:
        """Keys of the cells that need not be measured again for these passes."""
        return {record.cell.key() for record in self.read().records if record.settles(passes)}

    def append(self, record: Record) -> None:
        """Writes a record so that it is on the disk when this returns.

        Raises:
            LostWorkError: it could not be written; the record is kept in the file that the message names.
        """
        line = record.model_dump_json().encode() + b"\n"
        try:
            _append_line(self.path, line)
        except OSError as error:
            raise LostWorkError(
                f"{self.path} cannot be written: {error.strerror}; {_rescue(line)}",
                "make room and run the same command with `resume`: all earlier records are kept",
            ) from None

    def write_plan(self, plan: Plan) -> None:
        """Keeps what was asked for.

        Raises:
            StoreError: it cannot be written.
        """
        self._replace(PLAN, plan.model_dump_json(indent=1, exclude_none=True))

    def read_plan(self) -> Plan | None:
        """The plan of this report, or None where there is none.

        Raises:
            StoreError: it is damaged or of a newer schema.
        """
        path = self.folder / PLAN
        if not path.exists():
            return None
        data = _read_json(path)
        _refuse_newer(data, path)
        try:
            return Plan.model_validate(data)
        except ValidationError as error:
            raise _damaged_file(path, _first(error)) from None

    def add_environment(self, key: str, environment: dict[str, Any]) -> None:
        """Keeps the machine on which records are made; a report resumed elsewhere has several.

        Raises:
            StoreError: it cannot be written.
        """
        known = self.read_environments()
        if key not in known:
            self._replace(ENVIRONMENT, json.dumps({**known, key: environment}, indent=1) + "\n")

    def read_environments(self) -> dict[str, Any]:
        """Every machine of this report, by the key that records carry."""
        path = self.folder / ENVIRONMENT
        known = _read_json(path) if path.exists() else {}
        return known if isinstance(known, dict) else {}

    def _parse(self, line: bytes, number: int) -> Record | Damage:
        try:
            data = _parsed(line)
        except ValueError as error:
            return Damage(self.path, number, f"not JSON: {error}")
        _refuse_newer(data, f"{self.path} line {number}")
        try:
            # A number in quotes is none.
            return Record.model_validate(data, strict=True)
        except ValidationError as error:
            return Damage(self.path, number, _first(error))

    def _replace(self, name: str, text: str) -> None:
        """Writes so that a reader sees the old file or the new one, never half of one."""
        path = self.folder / name
        try:
            with replacing(path) as file:
                file.write(text.encode())
        except OSError as error:
            raise _unwritable(path, error) from None


def report_folders(root: Path) -> list[Path]:
    """Every folder with records at or below `root`, sorted by name.

    Raises:
        StoreError: there is none.
    """
    root = expanded(root)
    if not root.is_dir():
        what = "is no folder" if root.exists() else "does not exist"
        raise StoreError(f"{root} {what}", "give a folder that 'capsbench run' has written")
    found = sorted(Path(folder) for folder, _, names in os.walk(root, onerror=_unreadable) if RECORDS in names)
    if not found:
        raise StoreError(f"{root} holds no records", "give a folder that 'capsbench run' has written, or run it first")
    return found


def nothing_to_read(*roots: Path) -> StoreError:
    """That these folders hold no record that can be read."""
    return StoreError(f"{', '.join(map(str, roots))} holds no record that can be read", "measure first, with 'capsbench run'")


def _unreadable(error: OSError) -> NoReturn:
    raise StoreError(f"{error.filename} cannot be read: {error.strerror}", "check its permissions, or name folders beside it")


def read_reports(root: Path) -> tuple[list[tuple[Path, Record]], list[Damage]]:
    """Every record at or below `root`, with the report it belongs to.

    Raises:
        StoreError: there are none, or one is of a newer schema.
    """
    records: list[tuple[Path, Record]] = []
    damages: list[Damage] = []
    for folder in report_folders(root):
        contents = Store(folder).read()
        records += [(folder, record) for record in contents.records]
        damages += contents.damages
    return records, damages


def read_timelines(roots: Iterable[Path]) -> tuple[list[tuple[Path, Timeline]], list[str]]:
    """Every timeline at or below these folders with its file, each once and in the order of their paths; and what is damaged.

    Raises:
        StoreError: one is of a newer schema.
    """
    paths = {path.resolve(): path for root in roots for path in sorted(expanded(root).rglob(TIMELINE))}
    found, damages = [], []
    for path in paths.values():
        try:
            data = _parsed(path.read_text(encoding="utf-8"))
            _refuse_newer(data, path)
            found.append((path, Timeline.model_validate(data)))
        except ValidationError as error:
            damages.append(f"{path} is damaged ({_first(error)}) and left out")
        except (OSError, ValueError) as error:
            damages.append(f"{path} is damaged ({error}) and left out")
    return found, damages


def load(root: str | Path) -> "pd.DataFrame":
    """Every record at or below a folder as a data frame, a row per record.

    Times are medians of their samples, in seconds; memory is in bytes. Damaged lines are warned of, and left out.

    Args:
        root: a report, or a folder of reports.

    Raises:
        StoreError: there are no records, or one is of a newer schema.
    """
    from capsbench.frame import to_frame

    records, damages = read_reports(Path(root))
    for text in told_damages(damages):
        warnings.warn(text, stacklevel=2)
    return to_frame(records)


def _append_line(path: Path, line: bytes) -> None:
    new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        if new:
            sync_folder(path.parent)
        size = os.fstat(descriptor).st_size
        # A line that was cut off has no end of its own: give it one, or it would spoil this line too.
        cut_off = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        try:
            _write_all(descriptor, b"\n" + line if cut_off else line)
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _rescue(line: bytes) -> str:
    """Puts a record that found no room in its report into the system's temporary folder."""
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
    """JSON.

    Raises:
        ValueError: it is none, or none that can be read.
    """
    try:
        return json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError("one thing lies in another too many times") from None


def _whole(digits: str) -> int:
    """A whole number of at most 64 bits, which is what tables of numbers hold."""
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise ValueError(f"a whole number of {len(digits)} digits is too large")
    return int(digits)


def _refuse_newer(data: Any, place: object) -> None:
    version = newer_than_known(data)
    if version is not None:
        raise StoreError(f"{place} has schema version {version}, newer than this capsbench reads", "upgrade capsbench")


def _damaged_file(path: Path, reason: str) -> StoreError:
    return StoreError(f"{path} is damaged: {reason}", "restore it, or start again with another `out`")


def _unwritable(path: Path, error: OSError) -> StoreError:
    hint = "make room" if error.errno == errno.ENOSPC else "choose an `out` that you may write to"
    return StoreError(f"{path} cannot be written: {error.strerror}", hint)


def _first(error: ValidationError) -> str:
    """The first fault of a validation, on one line."""
    fault = error.errors(include_url=False)[0]
    place = ".".join(map(str, fault["loc"])) or "record"
    return f"{place}: {fault['msg']}"
