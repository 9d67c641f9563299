"""`capsbench predict`: the memory of a device that is not here."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from capsbench.cli.command import Command, echo, echo_json, typed_command
from capsbench.cli.flags import BASIS_OPTION, MODEL_OPTIONS, SECTIONS, cell_option, cell_options
from capsbench.cli.output import console_of, print_slopes, say
from capsbench.cli.typed import refuse_given
from capsbench.cli.types import FOLDER, OneOf, Parsed, axis_named
from capsbench.devices import DEFAULT_GPU, gpu_of
from capsbench.errors import CapsbenchError, ConfigurationError
from capsbench.options import LISTED, PREDICTED, PREDICTED_DEVICES, SWEPT_OPTIONS
from capsbench.records import Cell, Configuration, Plan
from capsbench.words.along import places_text
from capsbench.words.units import bytes_text

_FIELDS = {"depth": "blocks", "batch": "batch_size", "image_size": "image_size"}
"""Names of what is searched for that are not those of axes, with the axis of each."""


@click.command("predict", cls=Command, sections=SECTIONS)
@MODEL_OPTIONS
@BASIS_OPTION
@cell_options(*(name for name in SWEPT_OPTIONS if name not in ("device", "gpu", "threads", "capacity")))
@cell_option("gpu", help=f"GPU to predict for (h100); {LISTED}.")
@cell_option(
    "device",
    type=OneOf(["cuda", "cpu", *PREDICTED_DEVICES]),
    default="cuda",
    help="Device to predict for: cuda or cpu, with or without the ending :predicted that other commands need.",
)
@cell_option("threads", help="Threads of the CPU that seconds are modelled for; by default torch's own number.")
@cell_option("capacity", help="Memory of the device, such as 24GiB; by default the GPU's.")
@click.option(
    "--fit", type=Parsed("axis", lambda _, text: _searched(text)), is_flag=False, flag_value="depth",
    help="The deepest network that fits, or the largest batch, image-size, or whole number that a case takes: --fit length.",
)  # fmt: skip
@click.option("--out", type=FOLDER, help="Keep the records in this report folder, and draw them.")
@click.option("--resume", is_flag=True, help="Add to an existing report, in which predicted lines are drawn dashed.")
@click.option("--quick", is_flag=True, help="Predict depths 1-3 and batch 16, unless given, as 'capsbench run --quick' measures.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the records, or what fits.")
def command(
    gpu: str | None, device: str, fit: str | None, out: Path | None, resume: bool, quick: bool, as_json: bool, **given: Any
) -> int:
    """Predict the memory of a step on a GPU that you do not have.

    A step is followed on tensors that have shapes and no values, and its memory is replayed through a model of CUDA's
    allocator. Retained bytes are exact, peaks and reserved memory are modelled, and the memory of CUDA's context is a guess.
    --device cpu predicts the memory of a CPU. In Python, capsbench.estimate does the same for a network that is in memory.

    \b
    Examples:
      capsbench predict --models all --depth 1-8 --gpu h100
      capsbench predict --models mocapsnet --depth 8 --gpu rtx3090 --fit batch
      capsbench predict --models rescapsnet,mocapsnet --capacity 24GiB --fit depth
      capsbench predict --models my_cases.py:encoder --gpu a100 --fit length
      capsbench predict --models my_package.models:make_net --depth 1,2,4 --device cpu
      capsbench predict --models mocapsnet --vary image-size=32-96:32 --depth 4
      capsbench predict --models rescapsnet --parallel fsdp --world-size 2,8,64
    """
    from capsbench.cli.sweeps import asked_cells, quick_values, sweep, typed_axes, typed_forms

    device = device.removesuffix(PREDICTED)
    target = _target(device, gpu, fit=fit, kept=out is not None, resume=resume, capacity=given["capacity"])
    if device != "cpu" and given["threads"] is not None:
        raise ConfigurationError(
            f"--threads {given['threads']} cannot be combined with --device {device}", "leave one of them out"
        )
    if fit is not None:
        _refuse_searched(fit, given)
        if given["basis"]:
            raise ConfigurationError(f"`basis` has no effect with --fit {fit}, which fits no slopes", "leave `basis` out")
    searched = None if fit in ("depth", "batch") else fit
    usual = quick_values() if quick else {}
    cells = asked_cells(given | usual | {"device": f"{device}{PREDICTED}", "gpu": target, "repeats": 1}, usual, searched=searched)
    if fit is not None:
        return _print_fits(cells, fit, as_json=as_json)
    axes = typed_axes(cells, given)
    plan = Plan(
        command=typed_command(), cells=cells, passes=["memory"], budget_seconds=0, axes=axes, bases=typed_forms(axes, given)
    )
    if out is not None:
        return sweep(plan, out=out, resume=resume, as_json=as_json, only_these=True)
    return _print_predictions(plan, as_json=as_json)


def _searched(text: str) -> str:
    """The name of what is searched for: `depth`, `batch`, or another axis."""
    axis = axis_named(text)
    return next((name for name, field in _FIELDS.items() if axis in (name, field)), axis)


def _refuse_searched(fit: str, given: Mapping[str, Any]) -> None:
    """Refuse values of what is searched for."""
    why, axis = "it is what is searched for", _FIELDS.get(fit, fit)
    parameter = "depth" if fit == "depth" else axis
    if parameter in given:
        refuse_given(parameter, f"--fit {fit}", why)
    for field in ("vary", "settings"):
        if any(name == axis for name, _ in given[field]):
            raise ConfigurationError(f"`{field}` {axis} has no effect with --fit {fit}: {why}", f"leave `{field}` {axis} out")


def _target(device: str, gpu: str | None, *, fit: str | None, kept: bool, resume: bool, capacity: int | None) -> str | None:
    """The name of the GPU that a prediction is for; None for a CPU."""
    if resume and not kept:
        raise ConfigurationError("--resume needs a report to add to", "name it with --out")
    if fit is not None and kept:
        raise ConfigurationError(f"--fit {fit} makes no records to keep", "leave --out out")
    if device == "cpu":
        if gpu is not None:
            raise ConfigurationError(f"--gpu {gpu} cannot be combined with --device cpu", "leave one of them out")
        if fit is not None and capacity is None:
            raise ConfigurationError(f"--fit {fit} on a CPU needs to know its memory", "give it with --capacity, such as 24GiB")
        return None
    known = gpu_of(DEFAULT_GPU if gpu is None else gpu)
    if capacity is not None and capacity <= known.context_bytes:
        raise ConfigurationError(
            f"--capacity {bytes_text(capacity)} is less than CUDA's own context takes on GPU {known.name} "
            f"(about {bytes_text(known.context_bytes)})",
            "give the memory of the whole device, such as 24GiB",
        )
    return known.name


def _print_predictions(plan: Plan, *, as_json: bool) -> int:
    """Trace every cell, print its figures and their slopes, and return the exit status."""
    from capsbench.cli.sweeps import Screen
    from capsbench.sweep.measuring import traced
    from capsbench.terminal.prediction import certainty_note, predictions_table

    report = traced(plan, Screen(console_of(err=True), None))
    records = report.records
    if as_json:
        echo_json([record.model_dump(mode="json", exclude_none=True) for record in records])
    elif any(record.status != "error" for record in records):
        console = console_of()
        console.print(predictions_table(records, plan.axes))
        say(console, certainty_note(records))
        if len(report.slopes):
            print_slopes(report.frame, report.slopes, as_json=False)
    # One error for each model.
    failed = {record.cell.configuration.model: record.message for record in reversed(records) if record.status == "error"}
    for message in failed.values():
        what, _, hint = (message or "").partition(" - ")
        echo(f"error: {what}\n{hint}", err=True)
    return 1 if failed else 0


@dataclass(frozen=True)
class _Announced:
    """Announcement of each size that is traced, by the process of the command alone: others have no terminal."""

    label: str
    process: int

    def __call__(self, axis: str, size: int) -> None:
        if os.getpid() == self.process:
            say(console_of(err=True), f"{self.label}: tracing a step at {places_text(axis, [size])}")


def _print_fits(cells: list[Cell], what: str, *, as_json: bool) -> int:
    """Print the largest value that fits of each line (a batch for each depth), and return the exit status."""
    from capsbench.cases.factories import BUILT_IN
    from capsbench.gate.findings import Labels
    from capsbench.prediction.apart import answers_to
    from capsbench.prediction.axis_fit import check_axis
    from capsbench.prediction.fit import largest_fit
    from capsbench.terminal.prediction import fit_text

    fits = []
    asked: dict[str, Configuration] = {}
    for cell in cells:
        if what not in ("depth", "batch"):
            check_axis(cell.configuration, what)
        # If depth is searched for, the depths of a line are one question.
        asked.setdefault(cell.configuration.series() if what == "depth" else cell.key(), cell.configuration)
    failed: dict[str, CapsbenchError] = {}
    series = [configuration.without("blocks").options() for configuration in asked.values()]
    labels = Labels(series)
    questions = [
        (one, what, _Announced(labels.of(options), os.getpid())) for one, options in zip(asked.values(), series, strict=True)
    ]
    with answers_to(largest_fit, questions) as answers:
        for configuration, options, answer in zip(asked.values(), series, answers, strict=True):
            if configuration.model not in BUILT_IN:
                say(console_of(err=True), f"{labels.of(options)}: tracing steps in a process of its own")
            try:
                fit = answer()
            except CapsbenchError as error:  # one model's fault does not affect the others
                failed.setdefault(configuration.model, error)
                continue
            fits.append({"model": configuration.model, **configuration.model_dump(exclude_none=True), **dataclasses.asdict(fit)})
            if not as_json:
                say(console_of(), fit_text(configuration, title=labels.of(options), **dataclasses.asdict(fit)))
    if as_json:
        echo_json(fits)
    for fault in failed.values():
        echo(f"error: {fault}", err=True)
    return 1 if failed else 0
