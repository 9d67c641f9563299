"""The exact command that measures a cell again."""

import shlex
from collections.abc import Mapping

from capsbench.records import Plan

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


def line_command(line: Mapping[str, object], plan: Plan | None) -> str:
    """`capsbench run …` for one line of records; `--depth` and a number complete it.

    Args:
        line: the line's common values; None where an option does not apply.
        plan: what was asked for, which says how long each cell was sampled; None where it is not known.
    """
    words = ["capsbench", "run", "--models", str(line["model"])]
    for name, option in _OPTIONS.items():
        value = line.get(name)
        if value is not None:
            words += [option, str(value)]
    if plan is not None:
        words += ["--samples", str(plan.samples), "--time-budget", f"{plan.budget_seconds:g}"]
    return shlex.join(words)
