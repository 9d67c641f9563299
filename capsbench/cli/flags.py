"""Option types of the command line: text in, values or a two-line error out."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from capsbench.axes import BASES
from capsbench.errors import ConfigurationError, unknown_name
from capsbench.options import MODELS, NETWORK_OPTIONS, OPTIONS, SETTINGS_FLAG, SWEPT_OPTIONS, Option, Setting, type_of
from capsbench.sweep.launchers.options import LAUNCHERS
from capsbench.typed_values import parsed_values
from capsbench.words.units import parse_bytes

_NUMBER = r"\s*(\d+(?:\.\d+)?)\s*"


if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # no generic before click 8.4


class Parsed(ParamType):
    """Text that a function of flag and text parses, or refuses with a `ConfigurationError` that names the flag."""

    def __init__(self, name: str, parse: Callable[[str, str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value of the function."""
        return self._parse(param.opts[0] if param else "", value) if isinstance(value, str) else value


class NameList(Parsed):
    """A comma list of names. If `known` is given, every name must be in it.

    Args:
        known: names that are offered for completion, and required unless `open_ended`.
        open_ended: allow other names too.
        allows: returns whether a name is allowed, though it is not among those that are offered.
    """

    def __init__(
        self, known: Sequence[str], *, open_ended: bool = False, allows: Callable[[str], bool] = lambda _: False
    ) -> None:
        super().__init__("names", self.parse)
        self.known = known
        self.open_ended = open_ended
        self.allows = allows

    def parse(self, flag: str, text: str) -> tuple[str, ...]:
        """Return the names in a text, each once."""
        names = tuple(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))
        if not names:
            raise ConfigurationError(f"{flag} '{text}' names nothing", f"choose among {', '.join(self.known)}")
        for name in names:
            if not self.open_ended and name not in self.known and not self.allows(name):
                raise unknown_name(flag, name, self.known)
        return names

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Placeholder that --help shows."""
        return "NAMES"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete the last name of the list."""
        done, comma, last = incomplete.rpartition(",")
        return [CompletionItem(done + comma + name) for name in self.known if name.startswith(last)]


class OneOf(click.Choice[str]):
    """One of several names."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the name."""
        if value not in self.choices:
            raise unknown_name(param.opts[0] if param else "choice", value, self.choices)
        return value


def _bytes_threshold(flag: str, text: str) -> tuple[float, float]:
    """Parse a threshold of bytes: `1%,512` → 0.01, 512."""
    found = re.fullmatch(f"{_NUMBER}%(?:\\s*,{_NUMBER})?", text)
    if not found:
        raise ConfigurationError(
            f"{flag} '{text}' is not a percentage and a number of bytes", "write 1%,512: the larger of the two counts"
        )
    return float(found[1]) / 100, float(found[2] or 0)


def _time_threshold(flag: str, text: str) -> float:
    """Parse a threshold of time: `10%` → 0.1."""
    found = re.fullmatch(rf"{_NUMBER}%\s*", text)
    if not found:
        raise ConfigurationError(f"{flag} '{text}' is not a percentage", "write 10% for a tenth of the time before")
    return float(found[1]) / 100


def _slope_share(flag: str, text: str) -> float:
    """Parse the width of an interval as a share of its slope: `20%` → 0.2."""
    found = re.fullmatch(rf"{_NUMBER}%\s*", text)
    if not found or not float(found[1]):
        raise ConfigurationError(
            f"{flag} '{text}' is not a percentage above 0", "write 20% for intervals of a fifth of their slope"
        )
    return float(found[1]) / 100


def parse_setting(flag: str, text: str) -> tuple[str, tuple[Setting, ...]]:
    """Parse a name and its values: `length=128`, `length=128,256`, `heads=1-8`, `tied=true`, `prompt="yes, no"`.

    Raises:
        ConfigurationError: it is none of these.
    """
    name, values = parse_axis(flag, text)
    try:
        return name, parsed_values(values)
    except ValueError:
        raise _no_name_with_values(flag, text) from None


def parse_axis(flag: str, text: str) -> tuple[str, str]:
    """Parse the name of an axis and its values, which stay a text: `length=128-1024:128`.

    Raises:
        ConfigurationError: it is not a name with values.
    """
    name, _, values = (part.strip() for part in text.partition("="))
    if not values or not name.replace("-", "_").isidentifier():
        raise _no_name_with_values(flag, text)
    return name.replace("-", "_"), values


def _no_name_with_values(flag: str, text: str) -> ConfigurationError:
    return ConfigurationError(
        f"{flag} '{text}' is not a name with values",
        "write NAME=VALUES: length=128,256 or heads=1-8; put a text with a comma in quotation marks",
    )


def whole_number(least: int, most: int | None = None) -> Parsed:
    """A whole number of at least `least`, and at most `most`."""

    def parse(flag: str, text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ConfigurationError(
                f"{flag} '{text}' is not a whole number", f"give one whole number, {least} or larger"
            ) from None
        if value < least:
            raise ConfigurationError(f"{flag} {value} is too small", f"give {least} or more")
        if most is not None and value > most:
            raise ConfigurationError(f"{flag} {value} is too large", f"give {least} to {most}")
        return value

    return Parsed("integer", parse)


def whole_numbers(least: int) -> Parsed:
    """Several whole numbers of at least `least`, as a list or a range."""

    def parse(flag: str, text: str) -> tuple[int, ...]:
        try:
            values = parsed_values(text)
        except ValueError:
            values = ()
        numbers = tuple(value for value in values if isinstance(value, int) and not isinstance(value, bool))
        if not numbers or len(numbers) < len(values):
            raise ConfigurationError(f"{flag} '{text}' is not one or several whole numbers", "write 4, 1,2,4 or 1-8")
        if min(numbers) < least:
            raise ConfigurationError(f"{flag} {min(numbers)} is too small", f"give {least} or more")
        return numbers

    return Parsed("integers", parse)


def number(what: str, fits: Callable[[float], bool], *, unit: str = "number", hint: str | None = None) -> Parsed:
    """A finite number that fits.

    Args:
        what: the numbers that fit, in words.
        fits: function that checks a number.
        unit: placeholder that --help shows.
        hint: the numbers that would be right, if not `what`.
    """

    def parse(flag: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and fits(value)):
            raise ConfigurationError(f"{flag} '{text}' is not {what}", f"give {hint or what}")
        return value

    return Parsed(unit, parse)


def positive(unit: str) -> Parsed:
    """A number above 0 of a unit of time."""
    return number(f"a number of {unit}", lambda value: value > 0, unit=unit, hint="a number above 0")


def scale_option(text: str) -> Callable[[Any], Any]:
    """Option of the fraction of a training that is done, all of it by default."""
    fits = number("a fraction above 0 and up to 1", lambda value: 0 < value <= 1)
    return click.option("--scale", type=fits, default=1.0, help=text)


def validation_option(text: str) -> Callable[[Any], Any]:
    """Option of the number of images that are held out of a training set."""
    fits = number("a fraction, or a number of images, of 0 or more", lambda value: value >= 0)
    return click.option("--validation", type=fits, default=0.1, help=text)


def together(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in this order."""

    def apply(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


class _Place(click.Path):
    """A path that need not exist, since its use reports errors. An empty one is an unset variable, and is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        if value == "":
            name = "a path" if param is None else param.opts[0] if param.opts[0].startswith("-") else param.human_readable_name
            raise ConfigurationError(f"{name} is empty", "name a file or a folder; . is where you are")
        return super().convert(value, param, ctx)


FOLDER = _Place(path_type=Path)


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
        kind = whole_numbers(least) if option.several else whole_number(least)
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


def axis_named(text: str) -> str:
    """The name of an axis as it is typed: `batch-size` → `batch_size`, `depth` → `blocks`."""
    name = text.strip().replace("-", "_")
    return "blocks" if name == "depth" else name


def parse_place(flag: str, text: str) -> dict[str, float]:
    """Parse a position on several axes: `blocks=16,batch-size=256`.

    Raises:
        ConfigurationError: a part is not a name with a number.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or not name.strip():
            raise ConfigurationError(f"{flag} '{text}' is not a position on axes", "write NAME=NUMBER: blocks=16,batch-size=256")
        found[axis_named(name)] = number
    return found


# Options of more than one command

DEVICE_OPTION = cell_option("device", help="Device: auto, cpu, cuda or cuda:N.")
ALONG_OPTION = click.option(
    "--along",
    type=Parsed("name", lambda _, text: axis_named(text)),
    help="Axis: depth, batch-size, or what --vary named; by default each that a report varies.",
)
"""The axis over which reports are drawn."""


def parse_basis(flag: str, text: str) -> tuple[str, str]:
    """Parse the name of an axis and its basis: `length=1,n,n²`.

    Raises:
        ConfigurationError: it is not a name with a basis.
    """
    name, _, basis = (part.strip() for part in text.partition("="))
    if not name or not basis:
        raise ConfigurationError(
            f"{flag} '{text}' is not a name with a basis", f"write NAME=BASIS: length={'; '.join(BASES.values())}"
        )
    return axis_named(name), basis


BASIS_OPTION = click.option(
    "--basis",
    "basis",
    type=Parsed("name=basis", parse_basis),
    multiple=True,
    help="Terms of the costs over an axis, in place of those that are found: length=1,n,n² (or n^2), world-size=1,1/n.",
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
        type=Parsed("share,bytes", _bytes_threshold),
        default="1%,512",
        help="Threshold of bytes, and of bytes per block: the larger of a percentage and a number of bytes.",
    ),
    click.option(
        "--time-threshold", type=Parsed("share", _time_threshold), default="10%", help="Threshold of times, in percent."
    ),
)
SETTINGS_OPTION = click.option(
    SETTINGS_FLAG,
    "settings",
    type=Parsed("name=values", parse_setting),
    multiple=True,
    help="Values for the arguments of a case's function, which multiply the sweep: length=128,256.",
)
VARY_OPTION = click.option(
    "--vary",
    "vary",
    type=Parsed("name=values", parse_axis),
    multiple=True,
    help="Axis over which slopes are fitted, in place of depth: batch-size=32-256:32, capsules=16,32, image-size=32,64, "
    "length=128,256 of a case, blocks=1-8. Several make a grid. Without --depth, a case then has its own depth, and any other "
    "network 1 block.",
)
MODEL_OPTIONS = together(
    cell_option("model", "models", type=NameList(("all", *MODELS), open_ended=True), default="all"),
    cell_option("blocks", "depth", type=str, default="1-8"),
    VARY_OPTION,
    SETTINGS_OPTION,
)


def parse_parameter(flag: str, text: str) -> tuple[str, object]:
    """Parse a parameter of Slurm: `partition=gpu`, `time=60`, `exclusive=true`.

    Raises:
        ConfigurationError: it is not a name with a value.
    """
    name, _, value = (part.strip() for part in text.partition("="))
    name = name.replace("-", "_")
    if not name.isidentifier() or not value:
        raise ConfigurationError(f"{flag} '{text}' is not a name with a value", "write NAME=VALUE: partition=gpu or time=60")
    simple = {"true": True, "false": False}
    return name, simple.get(value.lower(), int(value) if re.fullmatch(r"[0-9]{1,9}", value) else value)


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
    click.option("--repeats", type=whole_number(1), default=1, help="Replicates of every cell."),
    click.option("--samples", type=whole_number(3), default=3, help="Smallest number of samples of each time."),
    click.option(
        "--time-budget",
        type=positive("seconds"),
        default=20,
        help="Most seconds of sampling per cell; timing ends once all slopes are known, or a lone cell's time within 2 %.",
    ),
    click.option(
        "--slope-share",
        type=Parsed("share", _slope_share),
        default="20%",
        help="Width of the slopes' 95 % intervals, in percent of the slope, at which timing ends.",
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
    from capsbench.sweep.verbs import where

    more = {name: given[name] for name in ("batch_size", "capacity", "repeats")}
    here = given.get("launcher", LAUNCHERS[0]) == LAUNCHERS[0]
    return where(given["device"], given["gpu"], given["threads"], here=here) | more


def was_typed(name: str) -> bool:
    """Return whether the option of a parameter was typed, with its default value or another."""
    source = click.get_current_context().get_parameter_source(name)
    return source not in (None, ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)


def was_left_out(name: str) -> bool:
    """Return whether a command that is running has its own default for the option of a parameter."""
    return click.get_current_context(silent=True) is not None and not was_typed(name)


def refuse_for_own(models: Sequence[str]) -> None:
    """Refuse options of capsbench's own networks that were typed for another network.

    Args:
        models: names of networks.

    Raises:
        ConfigurationError: one was typed.
    """
    own = next((model for model in models if model not in ("all", *MODELS)), None)
    not_had = [name for name in NETWORK_OPTIONS if not OPTIONS[name].networks.have(own)]
    typed = next((name for name in not_had if was_typed(name)), None) if own else None
    if own is not None and typed is not None:
        from capsbench.sweep.checks import no_effect

        raise no_effect(OPTIONS[typed].flag, own)


def refuse_given(name: str, other: str, why: str) -> None:
    """Refuse an option that was typed and has no effect with another.

    Args:
        name: name of its parameter.
        other: the other option.
        why: reason that it has no effect.

    Raises:
        ConfigurationError: it was typed.
    """
    if was_typed(name):
        raise ConfigurationError(f"`{name}` has no effect with {other}: {why}", f"leave `{name}` out")


def require_command(context: click.Context) -> None:
    """Refuse a group of commands without the name of one.

    Raises:
        ConfigurationError: there is none.
    """
    if context.invoked_subcommand is None and isinstance(context.command, click.Group):
        name = context.command.name
        raise ConfigurationError(f"'{name}' alone has no effect", f"choose one of {', '.join(context.command.commands)}")
