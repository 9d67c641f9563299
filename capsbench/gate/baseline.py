"""Baselines on disk: a summary of a report, small enough to be committed and plain enough to be read in a diff."""

import contextlib
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from capsbench.errors import StoreError
from capsbench.gate.summary import PROGRAM, SCHEMA_VERSION, Summary, summarize
from capsbench.paths import expanded
from capsbench.store import Store, read_reports


def read_summary(path: Path) -> tuple[Summary, list[str]]:
    """The summary of a report folder, a folder of them, or a baseline file, with notes for the reader.

    Raises:
        StoreError: there is none, or it cannot be read.
    """
    path = expanded(path)
    return (read_baseline(path), []) if path.is_file() else summary_of_reports(path)


def summary_of_reports(root: Path) -> tuple[Summary, list[str]]:
    """A summary of every report at or below a folder, with notes on damaged lines and on lines measured twice.

    Raises:
        StoreError: there are no records, or they are of a newer schema.
    """
    records, damages = read_reports(root)
    if not records:
        reason = f"; {damages[0]}" if damages else ""
        raise StoreError(f"{root} holds an empty report{reason}", "measure it first, with 'capsbench run'")
    environments: dict[str, Any] = {}
    commands = []
    for folder in dict.fromkeys(folder for folder, _ in records):
        environments |= Store(folder).read_environments()
        plan = Store(folder).read_plan()
        commands += [plan.command] if plan is not None else []
    summary, notes = summarize(records, environments, commands)
    return summary, [*map(str, damages), *notes]


def read_baseline(path: Path) -> Summary:
    """The summary in a baseline file.

    Raises:
        StoreError: it is missing, not JSON, of another program, or of a schema that this capsbench does not read.
    """
    path = expanded(path)
    again = "give a file that 'capsbench check' has written with `update`"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        make = f"make one from a good report: 'capsbench check' with `baseline` {path} and `update`"
        raise StoreError(f"baseline {path} does not exist", make) from None
    except OSError as error:
        raise StoreError(f"baseline {path} cannot be read: {error.strerror}", again) from None
    except ValueError as error:
        raise StoreError(f"baseline {path} is not JSON: {error}", again) from None
    if not isinstance(data, dict) or data.get("program") != PROGRAM:
        raise StoreError(f"{path} is not a baseline of capsbench", again)
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        newer = isinstance(version, int) and version > SCHEMA_VERSION
        raise StoreError(
            f"baseline {path} has schema version {version}; this capsbench reads version {SCHEMA_VERSION}",
            "upgrade capsbench" if newer else "measure again and write it anew with `update`",
        )
    try:
        return Summary.model_validate(data)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"])) or "baseline"
        damage = f"baseline {path} is damaged: {place}: {fault['msg']}"
        raise StoreError(damage, "restore it, or write it anew with `update`") from None


def write_baseline(summary: Summary, path: Path) -> None:
    """Write a baseline beside its path and rename it, so that a reader never sees half of one.

    Raises:
        StoreError: it cannot be written.
    """
    path = expanded(path)
    beside = path.with_name(f"{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(summary.as_json(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise StoreError(f"baseline {path} cannot be written: {error.strerror}", "choose a file that you may write to") from None
