"""Baselines on disk: a summary of a report, small enough to be committed and plain enough to be read in a diff."""

import json
from pathlib import Path

from pydantic import ValidationError

from capsbench.errors import StoreError
from capsbench.gate.summary import BASELINE_VERSION, PROGRAM, READABLE_VERSIONS, Summary
from capsbench.system.durable import replacing
from capsbench.system.paths import expanded


def read_baseline(path: Path, *, written_by: str = "") -> Summary:
    """The summary in a baseline file.

    Args:
        path: path of the file.
        written_by: the way to write it, for errors; by default 'capsbench check' with its option `update`.

    Raises:
        StoreError: it is missing, not JSON, of another program, or of a schema that this capsbench does not read.
    """
    path = expanded(path)
    again = "give a file that " + (f"{written_by} has written" if written_by else "'capsbench check' has written with `update`")
    writer = written_by or "`update`"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        from_report = f"make one from a good report: 'capsbench check' with `baseline` {path} and `update`"
        make = f"write it with {written_by}" if written_by else from_report
        raise StoreError(f"baseline {path} does not exist", make) from None
    except OSError as error:
        raise StoreError(f"baseline {path} cannot be read: {error.strerror}", again) from None
    except ValueError as error:
        raise StoreError(f"baseline {path} is not JSON: {error}", again) from None
    if not isinstance(data, dict) or data.get("program") != PROGRAM:
        raise StoreError(f"{path} is not a baseline of capsbench", again)
    version = data.get("schema_version")
    if version not in READABLE_VERSIONS:
        newer = isinstance(version, int) and version > BASELINE_VERSION
        raise StoreError(
            f"baseline {path} has schema version {version}; this capsbench reads versions up to {BASELINE_VERSION}",
            "upgrade capsbench" if newer else f"measure again, and write a new one with {writer}",
        )
    try:
        return Summary.model_validate(data)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"])) or "baseline"
        damage = f"baseline {path} is damaged: {place}: {fault['msg']}"
        raise StoreError(damage, f"restore it, or write a new one with {writer}") from None


def write_baseline(summary: Summary, path: Path) -> None:
    """Write a baseline so that a reader sees the old one or the new one, never half of one.

    Raises:
        StoreError: it cannot be written.
    """
    path = expanded(path)
    text = json.dumps(summary.as_json(), indent=1, sort_keys=True) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise StoreError(f"baseline {path} cannot be written: {error.strerror}", "choose a file that you may write to") from None
