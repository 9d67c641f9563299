"""The exact commands that measure a cell again, and that look inside its step."""

import shlex
from collections.abc import Mapping

from capsbench.records import PREDICTED, Plan

_OPTIONS = {
    "dataset": "--dataset",
    "batch_size": "--batch-size",
    "kernel": "--kernel",
    "routing": "--routing",
    "iterations": "--iterations",
    "capsules": "--capsules",
    "front": "--front",
    "memory": "--memory",
    "inverse": "--inverse",
    "rule": "--rule",
    "gamma": "--gamma",
    "optimizer_step": "--optimizer-step",
    "precision": "--precision",
    "device": "--device",
    "gpu": "--gpu",
    "threads": "--threads",
    "capacity": "--capacity",
}

Line = Mapping[str, object]


def line_command(line: Line, plan: Plan | None) -> str:
    """`capsbench run …` for one line of records; `cell_options` complete it.

    Args:
        line: the line's common values; None where an option does not apply.
        plan: what was asked for, which says how long each cell was sampled; None where it is not known.
    """
    words = ["capsbench", "run", "--models", str(line["model"]), *_words(line)]
    # Nothing is timed where nothing runs.
    if plan is not None and not str(line["device"]).endswith(PREDICTED):
        words += ["--samples", str(plan.samples)]
        words += ["--time-budget", f"{plan.budget_seconds:.15g}"] if plan.budget_seconds else []
    return shlex.join(words)


def timeline_command(line: Line) -> str:
    """`capsbench timeline …` for one line of records; `--depth` completes it, where the model has blocks."""
    return shlex.join(["capsbench", "timeline", "--model", str(line["model"]), *_words(line)])


def cell_options(blocks: int, replicate: int) -> str:
    """What makes the command of a line that of a cell: ` --depth 3 --repeats 2`.

    A model without blocks is measured once, whatever the depths. A replicate is measured after those before it.
    """
    depth = f" --depth {blocks}" if blocks else ""
    return depth + (f" --repeats {replicate + 1}" if replicate else "")


def _words(line: Line) -> list[str]:
    words = []
    # The two convolutions of records of version 1, which do not say how they were computed, were plain.
    known = {**line, "front": line.get("front") or ("plain" if line.get("routing") is not None else None)}
    for name, option in _OPTIONS.items():
        value = known.get(name)
        if value is not None:
            words += [option, str(value)]
    return words
