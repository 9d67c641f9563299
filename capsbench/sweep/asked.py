"""The options of a sweep, with the values of each, as they were asked for."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from capsbench.axes import IMAGE_SIZE
from capsbench.cases.factories import NetworkFacts
from capsbench.catalog import MODELS, parse_shape
from capsbench.errors import ConfigurationError, suggesting
from capsbench.options import AXES_OF_FIELDS, DEEPEST, OPTIONS, SWEPT_OPTIONS
from capsbench.reversible import MEMBER_STRATEGIES, PLAIN_STRATEGIES, STRATEGIES, named_lists
from capsbench.routing import kernels
from capsbench.typed_values import Setting, fault_of, parsed_values, several

AXIS_FORMS = "give numbers (128,256), a range (1-8), or one with a step (128-1024:128)"
SHAPE_NAMES = ("image_shape", "shape", IMAGE_SIZE)
"""Names under which `vary` takes the shape of images."""
OF_IMAGES = ("dataset", "batch_size", "image_shape", "classes")
"""Options of a classifier's images, which a case takes only if its function does."""
QUICK = {"depth": "1-3", "batch_size": 16, "time_budget": 2.0}
"""Values of a quick sweep where none is given: enough for a line, in about a minute on two cores."""
_MOST_POSITIONS = 1000
"""Most values of an axis: each is a network to measure."""


class Sweep:
    """Networks, their depths, and values of options. An option with several values multiplies the sweep.

    Args:
        models: built-in names, entry points, or `package.module:name`.
        depths: blocks, ascending; None stands for the depth that a network has by default.
        device: a device that exists, or one that a prediction is for.
        repeats: replicates of every cell.
        depths_chosen: False if nobody chose the depths. Networks that take no blocks are not refused then, even alone; and if
            something else is varied, a case has its own default, and any other network one block.
        settings: values of what cases take, by name, each a value or a list of values that multiplies the sweep.
        usual: values of options that nobody chose, by name, in place of their defaults; they reach no case.
        vary: values of the axes, by name: `blocks`, a numeric option, `image_size`, `image_shape`, or a setting of a case;
            they are numbers, or a text such as "128-1024:128".
        options: options of a cell by name (`capsbench.options.OPTIONS`), each with a value or a list of values; the others have
            their defaults.

    Raises:
        ConfigurationError: there is no option of that name.
    """

    def __init__(
        self, models: Sequence[str], depths: Sequence[int] | None, device: str, *, repeats: int = 1, depths_chosen: bool = True,
        settings: Mapping[str, object] | None = None, vary: Mapping[str, object] | None = None,
        usual: Mapping[str, object] | None = None, **options: object,
    ) -> None:  # fmt: skip
        self.models, self.device, self.repeats = tuple(models), device, repeats
        self.varied = {
            name: axis_values(name, values)
            for name, values in ((name.replace("-", "_"), values) for name, values in _by_name("vary", vary).items())
        }
        """The values of each axis by its name, ascending."""
        self.settings = {name: _setting_values(name, value) for name, value in _by_name("settings", settings).items()}
        """The values of what cases take, by name."""
        self.chosen = frozenset(name for name, value in options.items() if value is not None)
        """Options that were given a value, other than as an axis."""
        fields = {name: name for name in self.chosen} | dict.fromkeys(self.settings, "settings")
        _refuse_twice(self.varied, fields | ({"blocks": "depth"} if depths_chosen else {}))
        self.usual_depth = depths is None or (bool(self.varied) and not depths_chosen and "blocks" not in self.varied)
        """True if networks have the depth that they have by default, because something else is varied or searched for."""
        chosen = (1,) if depths is None or self.usual_depth else depths
        self.depths: tuple[int, ...] = tuple(self.varied.get("blocks", chosen))
        self.depths_chosen = depths_chosen or "blocks" in self.varied
        varied = _varied_options(self.varied)
        _refuse_unknown(options)
        # The three values of an axis are no shape of three dimensions.
        values = {name: varied.get(name) or _option_values(name, options.get(name), usual or {}) for name in SWEPT_OPTIONS}
        self.values: Mapping[str, tuple[Any, ...]] = MappingProxyType(values | {"device": (device,)})
        """The values of every option."""

    @property
    def kind(self) -> str:
        """The kind of device: `cpu` or `cuda`."""
        return self.device.partition(":")[0]

    def has(self, name: str) -> bool:
        """Return whether a network of this sweep has an option."""
        return any(OPTIONS[name].networks.have(model) for model in self.models)

    def shown(self, name: str) -> str:
        """Return the values of an option as they would be typed."""
        return ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in self.values[name])


def _varied_options(varied: Mapping[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    """The axes that are options of a cell, by the names of these."""
    return {
        "image_shape" if name in SHAPE_NAMES else name: values
        for name, values in varied.items()
        if name in SHAPE_NAMES or (name in AXES_OF_FIELDS and name != "blocks")
    }


def _refuse_unknown(options: Iterable[str]) -> None:
    """Refuse a name that is no option of a sweep."""
    for name in options:
        if name not in SWEPT_OPTIONS:
            known = [*SWEPT_OPTIONS, "depths", "vary", "settings", "repeats"]
            hint = suggesting(name, known, f"choose among {', '.join(SWEPT_OPTIONS)}")
            raise ConfigurationError(f"a sweep takes no {name}", hint)


def _option_values(name: str, given: object, usual: Mapping[str, object]) -> tuple[Any, ...]:
    """The values of an option; if none was given, the usual one, or its default."""
    if given is None:
        return (usual.get(name, OPTIONS[name].default),)
    values = several(_shapes(given) if name == "image_shape" else given)
    if not values:
        raise ConfigurationError(f"`{name}` {given!r} has no value", f"give one or several, or leave `{name}` out")
    return values


def _by_name(field: str, given: object) -> Mapping[str, object]:
    """Values of a field by their names."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ConfigurationError(
            f"`{field}` {given!r} is no dictionary of values by name", f"give {field}={{'length': [128, 256]}}, for example"
        )
    return given


def _setting_values(name: str, given: object) -> tuple[Setting, ...]:
    """The values of one of `settings`.

    Raises:
        ConfigurationError: there is none, or one is no number, text or flag.
    """
    values = several(given)
    if not values:
        raise ConfigurationError(f"`settings` {name} has no value", f"give one or several, or leave {name} out")
    for value in values:
        if fault := fault_of(value):
            raise ConfigurationError(
                f"`settings` {name}: {fault}", "give numbers, texts or flags; the function can build other values from these"
            )
    return values


def _shapes(given: object) -> object:
    """Shapes as texts: `(3, 227, 227)` is one, and not three values."""
    if isinstance(given, tuple | list):
        is_one = len(given) == 3 and all(type(one) is int for one in given)
        return "x".join(map(str, given)) if is_one else [_shapes(one) for one in given]
    return given


def _no_number(name: str, value: object) -> ConfigurationError:
    """The error of a value of an axis that is no number, such as a range with a step of 0."""
    if isinstance(value, str) and re.fullmatch(r"\d+-\d+:0+", value):
        right = f"give a step of 1 or more: {value.partition(':')[0]}:16"
        return ConfigurationError(f"`vary` {name} {value} has a step of 0", right)
    return ConfigurationError(f"`vary` {name} {value!r} is not a number", AXIS_FORMS)


def axis_values(name: str, given: object) -> tuple[Any, ...]:
    """The values of an axis, ascending, each once.

    Args:
        name: name of the axis.
        given: a number, several numbers, or a text such as `1-8`; for `image_shape`, shapes such as `3x227x227`.

    Raises:
        ConfigurationError: it is none of these.
    """
    try:
        doubling = OPTIONS[name].doubling_beyond if name in OPTIONS else None
        values = (
            parsed_values(given, doubling_beyond=doubling)
            if isinstance(given, str)
            else several(_shapes(given) if name in SHAPE_NAMES and name != IMAGE_SIZE else given)
        )
    except ValueError:
        values = ()
    if not values:
        raise ConfigurationError(f"`vary` {name} {given!r} has no value", AXIS_FORMS)
    if name in SHAPE_NAMES and name != IMAGE_SIZE:
        with naming("vary"):
            shapes = {str(value): parse_shape(str(value)) for value in values}
        channels, pixels = {shape[0] for shape in shapes.values()}, {shape[1] * shape[2] for shape in shapes.values()}
        if len(channels) > 1 or len(pixels) < len(shapes):
            raise ConfigurationError(
                f"`vary` {name} {','.join(shapes)}: these shapes differ in more than their number of pixels",
                "vary one number of channels, each time with another number of pixels",
            )
        return tuple(sorted(shapes, key=lambda text: shapes[text][1:]))
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _no_number(name, value)
        if fault := fault_of(value):
            raise ConfigurationError(f"`vary` {name}: {fault}", AXIS_FORMS)
        if name in ("blocks", IMAGE_SIZE) and (not isinstance(value, int) or not 1 <= value <= DEEPEST):
            things = "pixels" if name == IMAGE_SIZE else name
            raise ConfigurationError(f"`vary` {name} {value!r} is not a number of {things}", f"give 1 to {DEEPEST:,}")
    if len(values) > _MOST_POSITIONS:
        raise ConfigurationError(f"`vary` {name} has {len(values):,} values", "take fewer, such as every hundredth: 100-1000:100")
    return tuple(sorted(dict.fromkeys(values)))


def _refuse_twice(varied: Iterable[str], fields: Mapping[str, str]) -> None:
    """Refuse axes whose values are given by another field too, which is known by their name."""
    given = dict(fields)
    for name in varied:
        canonical = "image_shape" if name in SHAPE_NAMES else name
        if canonical in given:
            raise ConfigurationError(
                f"`vary` {name}: its values are given by `{given[canonical]}` too", "leave one of the two out"
            )
        given[canonical] = "vary"


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Put the name of an option or parameter before an error of the package that does not name it."""
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(f"`{field}`: {error.what}", error.hint) from None


def fitting(sweep: Sweep, model: str, name: str, *, own_memory: bool = False) -> tuple[Any, ...]:
    """The values of an option that this model can have; a factory with an argument `memory` is given each as it is."""
    values = sweep.values[name]
    if name != "memory":
        return values
    if own_memory:
        return tuple(memory for memory in values if memory in (None, *MEMBER_STRATEGIES))
    if model not in MODELS:
        of_members = (memory for memory in values if memory is None or named_lists(memory)[0] in MEMBER_STRATEGIES)
        return tuple(None if memory == "stored" else memory for memory in of_members)
    if values == (None,):
        return ("reversible",) if model == "mocapsnet" else ("stored",)
    return tuple(memory for memory in values if memory in strategies_of(model))


def strategies_of(model: str) -> tuple[str, ...]:
    """The memory strategies of a built-in network with blocks."""
    return STRATEGIES if model == "mocapsnet" else PLAIN_STRATEGIES


def has_kernel(routing: str, kernel: str) -> bool:
    """Return whether a routing algorithm has this kernel."""
    return kernel in ("auto", *kernels(routing))


def given_to_builder(sweep: Sweep, facts: NetworkFacts) -> dict[str, tuple[Any, ...]]:
    """The values that a function that builds a network is given, by name; none for any other."""
    if facts.builder is None:
        return {}
    own = {name for name in sweep.varied if name not in (*OPTIONS, *SHAPE_NAMES)}
    own = own if facts.builder.takes_more else own.intersection(facts.builder.names)
    return sweep.settings | {name: values for name, values in sweep.varied.items() if name in own}
