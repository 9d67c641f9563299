"""Types of the command line's values: text in, values or a two-line error out."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from capsbench.axes import BASES
from capsbench.errors import ConfigurationError, unknown_name
from capsbench.options import AXES_OF_FIELDS
from capsbench.typed_values import Setting, parsed_values

T = TypeVar("T")

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


def parse_bytes_threshold(flag: str, text: str) -> tuple[float, float]:
    """Parse a threshold of bytes: `1%,512` → 0.01, 512."""
    found = re.fullmatch(f"{_NUMBER}%(?:\\s*,{_NUMBER})?", text)
    if not found:
        raise ConfigurationError(
            f"{flag} '{text}' is not a percentage and a number of bytes", "write 1%,512: the larger of the two counts"
        )
    return float(found[1]) / 100, float(found[2] or 0)


def parse_time_threshold(flag: str, text: str) -> float:
    """Parse a threshold of time: `10%` → 0.1."""
    found = re.fullmatch(rf"{_NUMBER}%\s*", text)
    if not found:
        raise ConfigurationError(f"{flag} '{text}' is not a percentage", "write 10% for a tenth of the time before")
    return float(found[1]) / 100


def parse_slope_share(flag: str, text: str) -> float:
    """Parse the width of an interval as a share of its slope: `20%` → 0.2."""
    found = re.fullmatch(rf"{_NUMBER}%\s*", text)
    if not found or not float(found[1]):
        raise ConfigurationError(
            f"{flag} '{text}' is not a percentage above 0", "write 20% for intervals of a fifth of their slope"
        )
    return float(found[1]) / 100


def once(pairs: Sequence[tuple[str, T]], flag: str, example: str = "1,2,4") -> dict[str, T]:
    """Return the values of each name; `example` is one of several.

    Raises:
        ConfigurationError: a name was typed twice.
    """
    found = dict(pairs)
    twice = next((name for name, count in Counter(name for name, _ in pairs).items() if count > 1), None)
    if twice is not None:
        name = twice.replace("_", "-")
        raise ConfigurationError(f"{flag} {name} is given twice", f"give it once: {flag} {name}={example}")
    return found


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
                f"{flag} '{text}' is not a whole number", f"give one whole number, {least} or larger{_varied(flag, text)}"
            ) from None
        if value < least:
            raise ConfigurationError(f"{flag} {value} is too small", f"give {least} or more")
        if most is not None and value > most:
            raise ConfigurationError(f"{flag} {value} is too large", f"give {least} to {most}")
        return value

    return Parsed("integer", parse)


def _varied(flag: str, text: str) -> str:
    """The end of a hint to a command that varies numbers, if a flag of one number was given several."""
    context, name = click.get_current_context(silent=True), flag.removeprefix("--")
    if context is None or not any(param.name == "vary" for param in context.command.params):
        return ""
    if name.replace("-", "_") not in AXES_OF_FIELDS:  # the number of samples is no axis
        return ""
    try:
        several = len(parsed_values(text)) > 1
    except ValueError:
        several = False
    return f", or vary it: --vary {name}={text}" if several else ""


def whole_numbers(least: int, doubling_beyond: int | None = None) -> Parsed:
    """Several whole numbers of at least `least`, as a list or a range; one of more than `doubling_beyond` values doubles."""

    def parse(flag: str, text: str) -> tuple[int, ...]:
        try:
            values = parsed_values(text, doubling_beyond=doubling_beyond)
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


class _Place(click.Path):
    """A path that need not exist, since its use reports errors. An empty one is an unset variable, and is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        if value == "":
            name = "a path" if param is None else param.opts[0] if param.opts[0].startswith("-") else param.human_readable_name
            raise ConfigurationError(f"{name} is empty", "name a file or a folder; . is where you are")
        return super().convert(value, param, ctx)


FOLDER = _Place(path_type=Path)


def axis_named(text: str) -> str:
    """The name of an axis as it is typed: `batch-size` → `batch_size`, `depth` → `blocks`."""
    name = text.strip().replace("-", "_")
    return "blocks" if name == "depth" else name


def parse_place(flag: str, text: str) -> dict[str, float]:
    """Parse a position on several axes: `blocks=16,batch-size=256`.

    Raises:
        ConfigurationError: a part is not a name with a number.
    """
    found: list[tuple[str, float]] = []
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or not name.strip():
            raise ConfigurationError(f"{flag} '{text}' is not a position on axes", "write NAME=NUMBER: blocks=16,batch-size=256")
        found.append((axis_named(name), number))
    return once(found, flag, "16")


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
