"""Commands that measure a cell again, and that look inside its step."""

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
    """The command `capsbench run …` for one line of records, which `cell_options` complete.

    Args:
        line: the line's common values; None if an option does not apply.
        plan: plan of the sweep, with the time that each cell was sampled; None if it is not known.
    """
    words = ["capsbench", "run", "--models", str(line["model"]), *_words(line)]
    # A step that does not run has no times.
    if plan is not None and not str(line["device"]).endswith(PREDICTED):
        words += ["--samples", str(plan.samples)]
        words += ["--time-budget", f"{plan.budget_seconds:.15g}"] if plan.budget_seconds else []
    return shlex.join(words)


def timeline_command(line: Line) -> str:
    """The command `capsbench timeline …` for one line of records, which `--depth` completes if the model has blocks."""
    return shlex.join(["capsbench", "timeline", "--model", str(line["model"]), *_words(line)])


def cell_options(blocks: int, replicate: int) -> str:
    """Options that turn a line's command into that of a cell: ` --depth 3 --repeats 2`.

    A model without blocks has no depth. A replicate is measured after those before it.
    """
    depth = f" --depth {blocks}" if blocks else ""
    return depth + (f" --repeats {replicate + 1}" if replicate else "")


def _words(line: Line) -> list[str]:
    words = []
    # Records of version 1 do not have the form of the two convolutions, which was plain.
    known = {**line, "front": line.get("front") or ("plain" if line.get("routing") is not None else None)}
    for name, option in _OPTIONS.items():
        value = known.get(name)
        if value is not None:
            words += [option, str(value)]
    return words
