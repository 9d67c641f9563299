"""Cells that failed, in sentences: which ones, how many, why, and how they are measured again."""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from capsbench.axes import position_in_words
from capsbench.options import REPEATED_FLAGS
from capsbench.records import FAULTS, Configuration, Record
from capsbench.words.along import places_text

if TYPE_CHECKING:
    from capsbench.report import Report


def faults_of(report: "Report") -> list[Record]:
    """The records of cells that failed."""
    return [record for record in report.records if record.status in FAULTS]


def faults_head(report: "Report") -> str:
    """The number of cells that failed: `the only cell failed`, `both cells failed`, `2 of 6 cells failed`."""
    count, of = len(faults_of(report)), len(report.records)
    if of == 1:
        return "the only cell failed"
    if count == of == 2:
        return "both cells failed"
    return f"{'all' if count == of else f'{count} of'} {of} cells failed"


def fault_sentences(records: Iterable[Record], axes: Sequence[str]) -> list[str]:
    """A line for each network and message of cells that failed: `error: net at 1, 2, 4 blocks: ValueError: no such head`.

    Args:
        records: records of these cells.
        axes: axes of their report.
    """
    alike: dict[tuple[str, str, str], list[Configuration]] = {}
    for record in records:
        key = (record.status, record.cell.configuration.model, record.message or "")
        alike.setdefault(key, []).append(record.cell.configuration)
    return [f"{status}: {model}{_where(cells, axes)}: {message}" for (status, model, message), cells in alike.items()]


def again_sentence(report: "Report", folder: Path | None = None) -> str:
    """The way to measure the cells that failed again; empty if the request of the report is not known.

    Args:
        report: the report.
        folder: its folder, for a command that did not name it; None to leave it out.
    """
    if report.plan is None:
        return ""
    late = all(record.status == "timeout" for record in faults_of(report))
    command = report.plan.command
    if not report.plan.was_typed():
        # The words of Python, also where a command shows the report.
        call = (
            "the same call with a larger timeout and resume=True"
            if late
            else "once this is fixed, the same call with resume=True"
        )
        return f"{call} measures these cells again"
    remedy = f"with a larger {REPEATED_FLAGS['timeout']}" if late else "once this is fixed"
    words, out, resume = shlex.split(command), REPEATED_FLAGS["out"], REPEATED_FLAGS["resume"]
    is_named = any(word.partition("=")[0] == out for word in words)
    words += [] if is_named or folder is None else [out, str(folder)]
    words += [] if resume in words else [resume]
    return f"{remedy}, this command measures these cells again: {shlex.join(words)}"


def _where(cells: Sequence[Configuration], axes: Sequence[str]) -> str:
    """Positions of cells: ` at 1, 2, 4 blocks`, or cell by cell on several axes: ` at 1 block, batch 32; 2 blocks, batch 64`."""
    if all(it.position(axis) is None for it in cells for axis in axes):
        return ""
    if len(axes) > 1 or any(it.position(axes[0]) is None for it in cells) or axes[0] == "image_shape":
        return f" at {'; '.join(dict.fromkeys(', '.join(position_in_words(it, axis) for axis in axes) for it in cells))}"
    return f" at {places_text(axes[0], sorted({it.position(axes[0]) or 0.0 for it in cells}))}"
