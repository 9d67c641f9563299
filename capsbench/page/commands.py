"""Commands that measure a cell again, and that look inside its step."""

import shlex
from collections.abc import Sequence

from capsbench.axes import axis_flag
from capsbench.catalog import OWN_INPUTS
from capsbench.frame import AXIS_COLUMN
from capsbench.options import OPTIONS, PREDICTED, REPEATED_FLAGS, SETTINGS_FLAG, SWEPT_OPTIONS
from capsbench.records import Configuration, Plan
from capsbench.typed_values import settings_in
from capsbench.words.labels import Series


def series_command(series: Series, plan: Plan | None) -> str:
    """The command `capsbench run …` for one series of records, which `cell_arguments` complete.

    Args:
        series: the series' common values; None if an option does not apply.
        plan: plan of the sweep, with the time that each cell was sampled; None if it is not known.
    """
    words = ["capsbench", "run", OPTIONS["model"].flag, str(series["model"]), *_words(series)]
    # A step that does not run has no times.
    if plan is not None and not str(series["device"]).endswith(PREDICTED):
        words += [REPEATED_FLAGS["passes"], *plan.passes] if len(plan.passes) == 1 else []
        words += [REPEATED_FLAGS["samples"], str(plan.samples)]
        words += [REPEATED_FLAGS["budget_seconds"], f"{plan.budget_seconds:.15g}"] if plan.budget_seconds else []
    return shlex.join(words)


def timeline_command(series: Series) -> str:
    """The command `capsbench timeline …` for one series of records, which `cell_arguments` complete."""
    return shlex.join(["capsbench", "timeline", REPEATED_FLAGS["model"], str(series["model"]), *_words(series)])


def cell_arguments(axes: Sequence[str], configuration: Configuration, replicate: int = 0) -> str:
    """Options that turn a series' command into that of a cell: depth, position on the first axis of its report, and replicates.

    A model without blocks has no depth. A replicate is measured after those before it.
    """
    words = [OPTIONS["blocks"].flag, str(configuration.blocks)] if configuration.blocks else []
    axis = axes[0]
    value = getattr(configuration, axis, None) if axis in OPTIONS else dict(configuration.settings or ()).get(axis)
    if axis != "blocks" and value is not None:
        words += f"{axis_flag(axis)}{value}".split(" ", 1)
    words += [REPEATED_FLAGS["replicate"], str(replicate + 1)] if replicate else []
    return f" {shlex.join(words)}" if words else ""


def _words(series: Series) -> list[str]:
    words = []
    for name in SWEPT_OPTIONS:
        option, value = OPTIONS[name], series.get(name)
        if name == "image_shape" and series.get(AXIS_COLUMN) == name:
            continue  # a cell's own options have it
        if value is None and option.networks.have(series["model"]):
            # Records that are older than the option do not have its value.
            value = option.before
        if value is not None and value != OWN_INPUTS:
            words += [option.flag, str(value)]
    settings = series.get("settings")
    return words + [word for setting in settings_in(str(settings)) for word in (SETTINGS_FLAG, setting)] if settings else words
