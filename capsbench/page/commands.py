"""The exact commands that measure a cell again, and that look inside its step."""

import shlex
from collections.abc import Mapping

from capsbench.options import OPTIONS, PREDICTED, REPEATED_FLAGS, SWEPT_OPTIONS
from capsbench.records import Plan

Line = Mapping[str, object]


def line_command(line: Line, plan: Plan | None) -> str:
    """`capsbench run …` for one line of records; `cell_options` complete it.

    Args:
        line: the line's common values; None where an option does not apply.
        plan: what was asked for, which says how long each cell was sampled; None where it is not known.
    """
    words = ["capsbench", "run", OPTIONS["model"].flag, str(line["model"]), *_words(line)]
    # Nothing is timed where nothing runs.
    if plan is not None and not str(line["device"]).endswith(PREDICTED):
        words += [REPEATED_FLAGS["samples"], str(plan.samples)]
        words += [REPEATED_FLAGS["budget_seconds"], f"{plan.budget_seconds:.15g}"] if plan.budget_seconds else []
    return shlex.join(words)


def timeline_command(line: Line) -> str:
    """`capsbench timeline …` for one line of records; a depth completes it, where the model has blocks."""
    return shlex.join(["capsbench", "timeline", REPEATED_FLAGS["model"], str(line["model"]), *_words(line)])


def cell_options(blocks: int, replicate: int) -> str:
    """Return what makes the command of a line that of a cell: its depth and its replicates.

    A model without blocks is measured once, whatever the depths. A replicate is measured after those before it.
    """
    depth = f" {OPTIONS['blocks'].flag} {blocks}" if blocks else ""
    return depth + (f" {REPEATED_FLAGS['replicate']} {replicate + 1}" if replicate else "")


def _words(line: Line) -> list[str]:
    words = []
    for name in SWEPT_OPTIONS:
        option, value = OPTIONS[name], line.get(name)
        if value is None and option.networks.have(line["model"]):
            # Records that are older than the option do not say what it was.
            value = option.before
        if value is not None:
            words += [option.flag, str(value)]
    return words
