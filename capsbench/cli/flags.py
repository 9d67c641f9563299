"""Options of more than one command."""

from collections.abc import Callable
from typing import Any

import click

from capsbench.catalog import MODELS
from capsbench.cli.types import (
    FOLDER,
    NameList,
    OneOf,
    ParamType,
    Parsed,
    axis_named,
    number,
    parse_axis,
    parse_basis,
    parse_bytes_threshold,
    parse_parameter,
    parse_setting,
    parse_slope_share,
    parse_time_threshold,
    positive,
    whole_number,
    whole_numbers,
)
from capsbench.errors import ConfigurationError, unknown_name
from capsbench.option_type import Option
from capsbench.options import OPTIONS, SETTINGS_FLAG, SWEPT_OPTIONS, type_of
from capsbench.sweep.launchers.options import LAUNCHERS
from capsbench.words.units import parse_bytes


def scale_option(text: str) -> Callable[[Any], Any]:
    """Option of the fraction of a training that is done, all of it by default."""
    fits = number("a fraction above 0 and up to 1", lambda value: 0 < value <= 1)
    return click.option("--scale", type=fits, default=1.0, help=text)


def validation_option(text: str) -> Callable[[Any], Any]:
    """Option of the number of images that are held out of a training set."""
    fits = number("a fraction below 1, or a whole number of images", lambda value: 0 <= value < 1 or value == int(value) >= 1)
    return click.option("--validation", type=fits, default=0.1, help=text)


def together(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in this order."""

    def apply(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def cell_option(name: str, parameter: str | None = None, *, single: bool = False, **changed: Any) -> Callable[[Any], Any]:
    """An option of a cell, as its row in `capsbench.options` has it.

    Args:
        name: name of its field.
        parameter: name of the command's parameter, where it is another one.
        single: take one name, where `run` takes a comma list.
        changed: further arguments of this command's option: `help`, `type`.
    """
    option = OPTIONS[name]
    kind: Any = type_of(name)
    if option.choices:
        kind = _one_choice(option) if single else NameList(tuple(option.choices), allows=option.knows)
    elif option.is_bytes:
        kind = Parsed("size", parse_bytes)
    elif kind is int:
        least = int(option.least or 0)
        kind = whole_numbers(least, option.doubling_beyond) if option.several else whole_number(least)
    elif kind is float:
        kind = _number_within(option)
    asked = {"type": kind, "default": option.default, "show_default": option.default is not None, "help": option.help}
    asked |= {"is_flag": False, "flag_value": option.alone} if option.alone else {}
    asked |= changed
    if isinstance(asked["type"], NameList):
        asked["help"] += f" Choices: {', '.join(asked['type'].known)}."
    return click.option(option.flag, parameter or name, **asked)


def _number_within(option: Option) -> Parsed:
    """A number within the bounds of an option."""

    def parse(flag: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ConfigurationError(f"{flag} '{text}' is not a number", f"give {option.bounds()}") from None
        option.refuse_outside(flag, value)
        return value

    return Parsed("number", parse)


def _one_choice(option: Option) -> ParamType:
    """A choice of an option, with names of parts of a network where these may follow."""
    if not option.named:
        return OneOf(tuple(option.choices))

    def parse(flag: str, text: str) -> str:
        if not option.knows(text):
            raise unknown_name(flag, text, option.choices)
        return text

    return Parsed("name", parse)


def cell_options(*names: str, single: bool = False) -> Callable[[Any], Any]:
    """Several options of a cell, in this order."""
    return together(*(cell_option(name, single=single) for name in names))


DEVICE_OPTION = cell_option("device", help="Device: auto, cpu, cuda or cuda:N.")
ALONG_OPTION = click.option(
    "--along",
    type=Parsed("name", lambda _, text: axis_named(text)),
    help="Axis of the slopes: depth, batch-size, or what --vary named; by default every one that a report varies.",
)
"""The axis over which reports are drawn."""


BASIS_OPTION = click.option(
    "--basis",
    "basis",
    type=Parsed("name=basis", parse_basis),
    multiple=True,
    help="Form of the costs over an axis, in place of the one that is found: length=1,n,n² (or n^2), world-size=1,1/n.",
)
"""The bases that a user declares."""

DATA_DIR_OPTION = click.option("--data-dir", type=FOLDER, help="Folder of the real data sets; by default $CAPSBENCH_DATA.")
DOWNLOAD_OPTION = click.option("--download", is_flag=True, help="Fetch a data set that is not on disk.")
TIMEOUT_OPTION = click.option("--timeout", type=positive("seconds"), default=1800, help="Longest time of one process.")
CHECKPOINT_OPTION = click.option(
    "--checkpoint-minutes", type=positive("minutes"), default=10, help="Minutes between checkpoints within an epoch."
)
THRESHOLD_OPTIONS = together(
    click.option(
        "--bytes-threshold",
        type=Parsed("share,bytes", parse_bytes_threshold),
        default="1%,512",
        help="Growth of bytes, or of bytes per block, up to which they are not worse: the larger of a percentage and a number of "
        "bytes.",
    ),
    click.option(
        "--time-threshold",
        type=Parsed("share", parse_time_threshold),
        default="10%",
        help="Growth of times, in percent, up to which they are not worse.",
    ),
)
SETTINGS_OPTION = click.option(
    SETTINGS_FLAG,
    "settings",
    type=Parsed("name=values", parse_setting),
    multiple=True,
    help="Values for arguments of a case, which is a function of yours that returns a network with its inputs and loss; several "
    "values make several cells: length=128,256.",
)
VARY_OPTION = click.option(
    "--vary",
    "vary",
    type=Parsed("name=values", parse_axis),
    multiple=True,
    help="What is varied in place of depth, and slopes are fitted over: batch-size=32-256:32, capsules=16,32, "
    "image-size=32,64, or a number that a case (see --set) takes: length=128,256. Several make a grid. Without --depth, a case "
    "keeps its own depth, and any other network has 1 block.",
)
MODEL_OPTIONS = together(
    cell_option("model", "models", type=NameList(("all", *MODELS), open_ended=True), default="all"),
    cell_option("blocks", "depth", type=str, default="1-8"),
    VARY_OPTION,
    SETTINGS_OPTION,
)


LAUNCHER_OPTIONS = together(
    click.option(
        "--launcher",
        type=OneOf(LAUNCHERS),
        default=LAUNCHERS[0],
        help="Where cells are measured: one at a time here, or many at once by Ray or Slurm, each on a device of its own.",
    ),
    click.option(
        "--address", help="Address of a Ray cluster; by default the one that this machine belongs to, or this machine alone."
    ),
    click.option(
        "--slurm",
        type=Parsed("name=value", parse_parameter),
        multiple=True,
        help="Parameter of Slurm jobs, as sbatch has it: partition=gpu, time=60; cluster=local runs jobs on this machine.",
    ),
    click.option("--exclusive-node", is_flag=True, help="Let nothing else run on a node while times are taken there."),
)
SWEEP_OPTIONS = together(
    click.option(
        "--repeats", type=whole_number(1), default=1, help="Number of times that every cell is measured, each from the beginning."
    ),
    click.option("--samples", type=whole_number(3), default=3, help="Smallest number of samples of each time."),
    click.option(
        "--time-budget",
        type=positive("seconds"),
        default=20,
        help="Longest time of sampling per cell; it ends earlier once all slopes are known as well as --slope-share asks, or the "
        "time of a cell that is timed alone is known within 2 %.",
    ),
    click.option(
        "--slope-share",
        type=Parsed("share", parse_slope_share),
        default="20%",
        help="Timing ends when the 95 % intervals of all slopes are no wider than this percentage of the slope.",
    ),
    click.option(
        "--processes",
        type=whole_number(1),
        default=1,
        help="Processes among which the rounds are divided, at least six rounds each; several average out differences between "
        "processes.",
    ),
    click.option("--strict", is_flag=True, help="Refuse to measure while other processes use the CUDA device."),
    click.option(
        "--wait", type=positive("seconds"), help="Longest wait for another sweep on the device; by default as long as it takes."
    ),
    TIMEOUT_OPTION,
    LAUNCHER_OPTIONS,
    DATA_DIR_OPTION,
    click.option("--out", type=FOLDER, help="Report folder; by default a new one in reports/, named after the time."),
    click.option("--resume", is_flag=True, help="Resume a report that was cut off."),
    click.option("--dry-run", is_flag=True, help="Show the grid of cells, their time and their memory, and stop."),
    click.option("--json", "as_json", is_flag=True, help="Print the slopes as JSON on standard output."),
)
"""Options of every command that measures, other than those of a cell."""

_WHAT = ("models", "depth", "vary", "basis", "settings", "dataset", "image_shape", "classes", "batch_size", "only", "fit")
_WHERE = (
    "device", "gpu", "threads", "capacity", "strict", "wait", "launcher", "address", "slurm", "exclusive_node", "data_dir",
)  # fmt: skip
SECTIONS = {
    "What": _WHAT,
    "How": tuple(name for name in SWEPT_OPTIONS if name not in (*_WHAT, *_WHERE)),
    "Where": _WHERE,
    "How long": ("quick", "dry_run", "repeats", "samples", "time_budget", "slope_share", "processes", "timeout"),
    "Result": ("out", "resume", "open_page", "as_json"),
}
"""Sections of --help, with the names of parameters, for commands that measure or predict cells."""

OPEN_OPTION = click.option("--open", "open_page", is_flag=True, help="Open the page in a browser.")

MACHINE_OPTIONS = ("batch_size", "device", "gpu", "threads", "capacity")
"""Options of a cell for the machine and the number of images."""


def machine_of(given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a sweep for machine, number of images and number of repetitions."""
    from capsbench.sweep.machine import machine_options

    more = {name: given[name] for name in ("batch_size", "capacity", "repeats")}
    here = given.get("launcher", LAUNCHERS[0]) == LAUNCHERS[0]
    return machine_options(given["device"], given["gpu"], given["threads"], here=here) | more
