"""Option types of the command line: text in, values or a two-line error out."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from capsbench.errors import ConfigurationError

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # no generic before click 8.4


class Names(ParamType):
    """A comma list of names. Where `known` is given every name must be in it.

    Args:
        option: as it is typed, for errors.
        known: what is offered for completion, and required unless `open`.
        open_ended: whether other names may stand as well.
    """

    name = "names"

    def __init__(self, option: str, known: Sequence[str], *, open_ended: bool = False) -> None:
        self.option = option
        self.known = known
        self.open_ended = open_ended

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """The names, each once."""
        if not isinstance(value, str):
            return tuple(value)
        names = tuple(dict.fromkeys(name for part in value.split(",") if (name := part.strip())))
        if not names:
            raise ConfigurationError(f"{self.option} '{value}' names nothing", f"choose among {', '.join(self.known)}")
        for name in names:
            if not self.open_ended and name not in self.known:
                raise ConfigurationError(f"{self.option} '{name}' is not known", f"choose among {', '.join(self.known)}")
        return names

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Shown in --help."""
        return "NAMES"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Completes the last name of the list."""
        done, comma, last = incomplete.rpartition(",")
        return [CompletionItem(done + comma + name) for name in self.known if name.startswith(last)]


class Parsed(ParamType):
    """Text that a function of the package understands, or refuses with a `ConfigurationError`."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """What the function gives."""
        return self._parse(value) if isinstance(value, str) else value


def parse_bytes(text: str) -> int:
    """`24GiB`, `8 GB`, `500MiB`, `1048576` → bytes.

    Raises:
        ConfigurationError: it is none of these.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if not found or found[2].lower() not in _UNITS:
        raise ConfigurationError(f"--capacity '{text}' is not an amount of memory", "write 24GiB, 8GB or a number of bytes")
    nbytes = int(float(found[1]) * _UNITS[found[2].lower()])
    if nbytes < 2**20:
        raise ConfigurationError(f"--capacity '{text}' is {nbytes} bytes", "give at least 1MiB; did you mean GiB?")
    return nbytes


def whole(option: str, least: int, most: int | None = None) -> Parsed:
    """A whole number of at least `least`, and at most `most`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ConfigurationError(f"{option} '{text}' is not a whole number", f"give {least} or more") from None
        if value < least:
            raise ConfigurationError(f"{option} {value} is too small", f"give {least} or more")
        if most is not None and value > most:
            raise ConfigurationError(f"{option} {value} is too large", f"give {least} to {most}")
        return value

    return Parsed("integer", parse)


def seconds(option: str, unit: str = "seconds") -> Parsed:
    """A number of seconds above 0, or of another unit."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise ConfigurationError(f"{option} '{text}' is not a number of {unit}", "give a number above 0")
        return value

    return Parsed(unit, parse)


def number(option: str, what: str, fits: Callable[[float], bool]) -> Parsed:
    """A finite number that fits.

    Args:
        option: as it is typed.
        what: which numbers fit, in words.
        fits: whether one does.
    """

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and fits(value)):
            raise ConfigurationError(f"{option} '{text}' is not {what}", f"give {what}")
        return value

    return Parsed("number", parse)


def fraction_option(option: str, text: str) -> Callable[[Any], Any]:
    """An option that takes a fraction above 0, all of it by default."""
    fits = number(option, "a fraction above 0 and up to 1", lambda value: 0 < value <= 1)
    return click.option(option, type=fits, default=1.0, show_default=True, help=text)


def validation_option(text: str) -> Callable[[Any], Any]:
    """How many images are held out of a training set."""
    fits = number("--validation", "a fraction, or a number of images, of 0 or more", lambda value: value >= 0)
    return click.option("--validation", type=fits, default=0.1, show_default=True, help=text)


def together(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in this order."""

    def apply(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


MODELS = ("capsnet", "rescapsnet", "mocapsnet")
WITHOUT_BLOCKS = ("capsnet-1conv", "capsnet-2conv")
KERNELS = ("auto", "reference", "published", "recompute", "compiled", "triton")
MEMORIES = ("stored", "checkpoint", "checkpoint-sqrt", "offload", "reversible", "reversible-kept")
ROUTINGS = ("rba", "sda", "sda-published", "em")
FRONTS = ("auto", "plain", "chunked")
INVERSES = ("auto", "float", "exact", "segmented")
RULES = ("paper", "published")
PRECISIONS = ("fp32", "bf16", "fp16")
"""Written out, so that --help and completion need not import torch; a test holds them to the package's own."""


class _Place(click.Path):
    """A path that need not exist; what is done with it says what is wrong. An empty one is an unset variable, and no place."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        if value == "":
            name = "a path" if param is None else param.opts[0] if param.opts[0].startswith("-") else param.human_readable_name
            raise ConfigurationError(f"{name} is empty", "name a file or a folder; . is where you are")
        return super().convert(value, param, ctx)


FOLDER = _Place(path_type=Path)


def choice(option: str, known: tuple[str, ...], default: str | None, text: str, **more: Any) -> Callable[[Any], Any]:
    """An option that takes a comma list of names, one of which may be the default."""
    names = Names(option, known, **more)
    return click.option(option, type=names, default=default, show_default=bool(default), help=text)


# Options of more than one command

DEVICE_OPTION = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N.")
THREADS_OPTION = click.option(
    "--threads", type=whole("--threads", 1), help="Threads of a CPU run; by default torch's own number."
)
DATA_DIR_OPTION = click.option("--data-dir", type=FOLDER, help="Where real data sets lie; by default $CAPSBENCH_DATA.")
DOWNLOAD_OPTION = click.option("--download", is_flag=True, help="Fetch a data set that is not on disk.")
DEVICE_OR_PREDICTED_OPTION = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N; cpu:predicted, cuda:predicted."
)
GPU_OPTION = click.option("--gpu", help="The GPU that cuda:predicted is for (h100); 'capsbench list' has them.")
CHECKPOINT_OPTION = click.option(
    "--checkpoint-minutes",
    type=seconds("--checkpoint-minutes", "minutes"),
    default=10,
    show_default=True,
    help="Minutes between checkpoints within an epoch.",
)


SWEEP_OPTIONS = together(
    click.option("--batch-size", type=whole("--batch-size", 1), default=128, show_default=True, help="Images per step."),
    DEVICE_OR_PREDICTED_OPTION,
    GPU_OPTION,
    THREADS_OPTION,
    click.option("--repeats", type=whole("--repeats", 1), default=1, show_default=True, help="Replicates of every cell."),
    click.option("--samples", type=whole("--samples", 5), default=5, show_default=True, help="Fewest samples of each time."),
    click.option(
        "--time-budget",
        type=seconds("--time-budget"),
        default=10,
        show_default=True,
        help="Seconds of sampling per cell while its time is not known within 2 %.",
    ),
    click.option("--strict", is_flag=True, help="Measure nothing beside other processes on a CUDA device."),
    click.option(
        "--wait", type=seconds("--wait"), help="Longest wait for another sweep on the device; by default as long as it takes."
    ),
    click.option("--timeout", type=seconds("--timeout"), default=1800, show_default=True, help="Seconds per process."),
    click.option("--capacity", type=Parsed("size", parse_bytes), help="Limit on the device's memory, such as 24GiB."),
    DATA_DIR_OPTION,
    click.option("--out", type=FOLDER, help="Report folder; by default reports/ and the time."),
    click.option("--resume", is_flag=True, help="Go on with a report that was cut off."),
    click.option("--dry-run", is_flag=True, help="Show what would be done, and stop."),
    click.option("--json", "as_json", is_flag=True, help="Print the slopes as JSON on standard output."),
)
"""What every command that measures takes."""


def machine_of(common: dict[str, Any]) -> dict[str, Any]:
    """The fields of a sweep that say where and how often."""
    from capsbench.devices import DEFAULT_GPU, gpu_of
    from capsbench.measure.environment import default_threads
    from capsbench.sweep.session import resolve_device

    device = resolve_device(common["device"])
    if common["gpu"] and device != "cuda:predicted":
        raise ConfigurationError(
            f"--gpu {common['gpu']} does not go with --device {common['device']}", "add --device cuda:predicted, or leave it out"
        )
    return {
        "device": device,
        "gpu": gpu_of(common["gpu"] or DEFAULT_GPU).name if device == "cuda:predicted" else None,
        "threads": common["threads"] or default_threads(),
        "batch_size": common["batch_size"],
        "capacity": common["capacity"],
        "repeats": common["repeats"],
    }


def was_typed(name: str) -> bool:
    """Whether the option of a parameter was typed, its default value or another."""
    source = click.get_current_context().get_parameter_source(name)
    return source not in (None, ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)


def refuse_for_own(models: Sequence[str]) -> None:
    """Refuses options of capsbench's own networks that were typed for another network.

    Args:
        models: names of networks.

    Raises:
        ConfigurationError: one was typed.
    """
    own = next((model for model in models if model not in ("all", *MODELS, *WITHOUT_BLOCKS)), None)
    if own is None:
        return
    from capsbench.sweep.plan import OWN_OPTIONS, no_effect

    for name in OWN_OPTIONS:
        if was_typed(name):
            raise no_effect(f"--{name}", own)


def refuse_given(name: str, other: str, why: str) -> None:
    """Refuses an option that was typed and says nothing beside another.

    Args:
        name: of its parameter.
        other: what it stands beside.
        why: it says nothing.

    Raises:
        ConfigurationError: it was typed.
    """
    if was_typed(name):
        option = f"--{name.replace('_', '-')}"
        raise ConfigurationError(f"{option} says nothing beside {other}: {why}", f"leave {option} out")


def require_command(context: click.Context) -> None:
    """Refuses a group of commands without the name of one.

    Raises:
        ConfigurationError: there is none.
    """
    if context.invoked_subcommand is None and isinstance(context.command, click.Group):
        name = context.command.name
        raise ConfigurationError(f"'{name}' alone says nothing", f"choose one of {', '.join(context.command.commands)}")
