"""Expansion of a sweep's options to a list of cells."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, product
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from capsbench.catalog import parse_shape, spec_of
from capsbench.errors import CapsbenchError, ConfigurationError, suggesting, unknown_name
from capsbench.models import resolve_front
from capsbench.options import (
    AXES_OF_FIELDS,
    DEEPEST,
    MODELS,
    NETWORK_OPTIONS,
    OPTIONS,
    OWN_INPUTS,
    STACKED,
    SWEPT_OPTIONS,
    WITHOUT_BLOCKS,
    Setting,
    type_of,
)
from capsbench.prediction.apart import call_for
from capsbench.records import Cell, Configuration
from capsbench.reversible import (
    MEMBER_STRATEGIES,
    PLAIN_STRATEGIES,
    REVERSIBLE_STRATEGIES,
    STRATEGIES,
    check_gamma,
    check_members_strategy,
    named_lists,
    resolve_inverse,
)
from capsbench.routing import check_routing, compiled, kernels, resolve_kernel
from capsbench.typed_values import fault_of, parsed_values, several
from capsbench.workload import Facts, check_optimizer_step, facts_of

DEPTH_FORMS = "give a depth (3), a range (1-8), or a list of both (1-4,8)"
AXIS_FORMS = "give numbers (128,256), a range (1-8), or one with a step (128-1024:128)"
IMAGE_SIZE = "image_size"
"""Name under which `vary` takes the side of square images."""
SHAPE_NAMES = ("image_shape", "shape", IMAGE_SIZE)
"""Names under which `vary` takes the shape of images."""
_OF_IMAGES = ("dataset", "batch_size", "image_shape", "classes")
"""Options of a classifier's images, which a case takes only if its function does."""
_MOST_POSITIONS = 1000
"""Most values of an axis: each is a network to measure."""
_DEVICE_OF = {"triton": "cuda", "compiled": "cpu"}
"""Kernels that run on one kind of device alone, with that kind."""

_SLOWEST = ("dataset", "precision", "optimizer", "optimizer_step", "compile", "routing", "kernel", "front", "memory", "rule")
"""The options that vary slowest in the cells of a sweep, in this order; all others vary faster."""


class Sweep:
    """Networks, their depths, and values of options. An option with several values multiplies the sweep.

    Args:
        models: built-in names, entry points, or `package.module:name`.
        depths: blocks, ascending.
        device: a device that exists, or one that a prediction is for.
        repeats: replicates of every cell.
        depths_chosen: False if nobody chose the depths. A case that takes no blocks is not refused then; and if something else is
            varied, a case has its own default, and any other network one block.
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
        self, models: Sequence[str], depths: Sequence[int], device: str, *, repeats: int = 1, depths_chosen: bool = True,
        settings: Mapping[str, object] | None = None, vary: Mapping[str, object] | None = None,
        usual: Mapping[str, object] | None = None, **options: object,
    ) -> None:  # fmt: skip
        self.models = tuple(models)
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
        self.usual_depth = bool(self.varied) and not depths_chosen and "blocks" not in self.varied
        """True if networks have the depth that they have by default, because something else is varied."""
        self.depths: tuple[int, ...] = (1,) if self.usual_depth else tuple(self.varied.get("blocks", depths))
        self.depths_chosen = depths_chosen or "blocks" in self.varied
        options |= {name: values for name, values in self.varied.items() if name in AXES_OF_FIELDS and name != "blocks"}
        for name in SHAPE_NAMES:
            if name in self.varied:
                options["image_shape"] = self.varied[name]
        self.device = device
        self.repeats = repeats
        unknown = next((name for name in options if name not in SWEPT_OPTIONS), None)
        if unknown is not None:
            hint = suggesting(unknown, SWEPT_OPTIONS, f"choose among {', '.join(SWEPT_OPTIONS)}")
            raise ConfigurationError(f"a sweep takes no {unknown}", hint)
        values: dict[str, tuple[Any, ...]] = {}
        for name in SWEPT_OPTIONS:
            given = options.get(name)
            values[name] = several(_shapes(given) if name == "image_shape" else given)
            if given is None:
                values[name] = ((usual or {}).get(name, OPTIONS[name].default),)
            elif not values[name]:
                raise ConfigurationError(f"`{name}` {given!r} has no value", f"give one or several, or leave `{name}` out")
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
                f"`settings` {name}: {fault}", "give numbers, texts or flags; anything else the function itself can make of them"
            )
    return values


def _shapes(given: object) -> object:
    """Shapes as texts: `(3, 227, 227)` is one, and not three values."""
    if isinstance(given, tuple | list):
        is_one = len(given) == 3 and all(type(one) is int for one in given)
        return "x".join(map(str, given)) if is_one else [_shapes(one) for one in given]
    return given


def axis_values(name: str, given: object) -> tuple[Any, ...]:
    """The values of an axis, ascending, each once.

    Args:
        name: name of the axis.
        given: a number, several numbers, or a text such as `1-8`; for `image_shape`, shapes such as `3x227x227`.

    Raises:
        ConfigurationError: it is none of these.
    """
    try:
        values = parsed_values(given) if isinstance(given, str) else several(_shapes(given) if name in SHAPE_NAMES else given)
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
            raise ConfigurationError(f"`vary` {name} {value!r} is not a number", AXIS_FORMS)
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


def parse_depths(text: str) -> tuple[int, ...]:
    """Parse depths: `3`, `1-8`, `1,2,4`, `1-4,8` → ascending depths, each once.

    Raises:
        ConfigurationError: it is none of these, or names a depth below 1.
    """
    depths: set[int] = set()
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not (first.isascii() and first.isdigit() and (not dash or (last.isascii() and last.isdigit()))):
            raise ConfigurationError(f"`depth` '{text}' is not a depth", DEPTH_FORMS)
        if len(max(first, last, key=len)) > len(str(DEEPEST)):
            raise ConfigurationError(f"`depth` '{text[:40]}' goes beyond {DEEPEST} blocks", "choose depths that can be measured")
        low, high = int(first), int(last) if dash else int(first)
        if low < 1:
            raise ConfigurationError(f"`depth` '{text}' begins below 1", "the smallest network has 1 block")
        if high < low:
            raise ConfigurationError(f"`depth` '{text}' runs backwards", f"write {high}-{low}")
        if high > DEEPEST:
            raise ConfigurationError(f"`depth` '{text}' goes beyond {DEEPEST} blocks", "choose depths that can be measured")
        depths.update(range(low, high + 1))
    return tuple(sorted(depths))


def expand(sweep: Sweep) -> list[Cell]:
    """The cells of a sweep, replicate by replicate and depth by depth (or along its axes), so that models interleave.

    A model that has no blocks is measured once for all depths.

    Raises:
        ConfigurationError: a name is unknown, a value out of range, or a combination impossible.
    """
    facts = _check(sweep)
    all_series = dict.fromkeys(series for model in sweep.models for series in _series_of(sweep, model, facts[model]))
    configurations: Iterable[Configuration] = dict.fromkeys(
        series.model_copy(update={"blocks": blocks}) if _has_depth(sweep, series.model, facts[series.model]) else series
        for blocks in sweep.depths
        for series in all_series
    )
    if sweep.varied:
        axes = axes_asked(sweep.varied)
        configurations = sorted(configurations, key=lambda it: [it.position(axis) or 0.0 for axis in axes])
    sources = {model: found.fingerprint and found.fingerprint.digest for model, found in facts.items()}
    return [
        Cell(configuration=configuration, replicate=replicate, source=sources[configuration.model])
        for replicate in range(sweep.repeats)
        for configuration in configurations
    ]


def axes_asked(names: Iterable[str]) -> tuple[str, ...]:
    """The axes that may be meant by names that `vary` takes, and blocks, over which any sweep may run."""
    # The size of images may be a setting of a case, or make the shape of a classifier's.
    meant = ([name, "image_shape"] if name in SHAPE_NAMES else [name] for name in (one.replace("-", "_") for one in names))
    return tuple(dict.fromkeys([*chain.from_iterable(meant), "blocks"]))


def axes_of(cells: Iterable[Cell], axes: Iterable[str]) -> tuple[str, ...]:
    """The axes among some along which cells of one series differ; the first that a cell has, if they differ along none."""
    configurations = [cell.configuration for cell in cells]
    found: list[str] = []
    known = [axis for axis in axes if any(it.position(axis) is not None for it in configurations)]
    for axis in known:
        positions: dict[str, set[float | None]] = {}
        for it in configurations:
            positions.setdefault(it.series(axis), set()).add(it.position(axis))
        if any(len(several) > 1 for several in positions.values()):
            found.append(axis)
    return tuple(found or known[:1] or ["blocks"])


def _has_depth(sweep: Sweep, model: str, facts: Facts) -> bool:
    """Return whether a network is made of one of the sweep's numbers of blocks."""
    if facts.settings is not None:
        return "blocks" in facts.settings and not sweep.usual_depth
    return model not in WITHOUT_BLOCKS and facts.builder is None


def _series_of(sweep: Sweep, model: str, facts: Facts) -> Iterator[Configuration]:
    """One configuration for each combination of options that this model has in the sweep."""
    ordered = dict.fromkeys((*_SLOWEST, *SWEPT_OPTIONS))
    names = [name for name in ordered if OPTIONS[name].networks.have(model)]
    if facts.settings is not None:
        yield from _cases(sweep, model, [name for name in names if name not in _OF_IMAGES], facts.settings)
        return
    given = _given_to_builder(sweep, facts)
    for values in product(*(_fitting(sweep, model, name, own_memory=facts.own_memory) for name in names), *given.values()):
        asked = dict(zip(names, values, strict=False))
        made = tuple(zip(given, values[len(names) :], strict=True))
        if "routing" not in asked or _has_kernel(asked["routing"], asked["kernel"]):
            yield _configuration(model, blocks=0, settings=made or None, **_resolved(asked, sweep))


def _given_to_builder(sweep: Sweep, facts: Facts) -> dict[str, tuple[Any, ...]]:
    """The values that a function that builds a network is given, by name; none for any other."""
    if facts.builder is None:
        return {}
    own = {name for name in sweep.varied if name not in (*OPTIONS, *SHAPE_NAMES)}
    own = own if facts.builder.takes_more else own.intersection(facts.builder.names)
    return sweep.settings | {name: values for name, values in sweep.varied.items() if name in own}


def _cases(sweep: Sweep, model: str, names: Sequence[str], settings: Mapping[str, Setting]) -> Iterator[Configuration]:
    """One configuration of a case for each combination of options and settings; what is not given has its own default."""
    given = dict(sweep.settings)
    given |= {name: sweep.values[name] for name in _OF_IMAGES if name in settings and name in sweep.chosen}
    given |= {name: values for name, values in sweep.varied.items() if name in settings and name != "blocks"}
    names = [name for name in names if name not in settings or name not in sweep.varied]
    for values in product(*(_fitting(sweep, model, name) for name in names), *given.values()):
        asked = _resolved(dict(zip(names, values, strict=False)), sweep)
        made = dict(settings) | dict(zip(given, values[len(names) :], strict=True))
        # Equal settings make one cell, however they were typed.
        made = {name: float(value) if isinstance(settings[name], float) else value for name, value in made.items()}
        own = {name: made.pop(name) for name in ("blocks", "batch_size") if name in made}
        fields = {"blocks": own.get("blocks", 0), "batch_size": own.get("batch_size"), "settings": tuple(made.items())}
        yield _configuration(model, dataset=OWN_INPUTS, **fields, **asked)


def _configuration(model: str, **fields: Any) -> Configuration:
    """A configuration of these fields.

    Raises:
        ConfigurationError: a value makes none.
    """
    try:
        return Configuration(model=model, **fields)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise ConfigurationError(
            f"model '{model}': {'.'.join(map(str, fault['loc']))} {fault['input']!r} is not possible: {fault['msg']}",
            "give another value, or another default",
        ) from None


def _fitting(sweep: Sweep, model: str, name: str, *, own_memory: bool = False) -> tuple[Any, ...]:
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
    return tuple(memory for memory in values if memory in _strategies(model))


def _strategies(model: str) -> tuple[str, ...]:
    return STRATEGIES if model == "mocapsnet" else PLAIN_STRATEGIES


def _has_kernel(routing: str, kernel: str) -> bool:
    return kernel in ("auto", *kernels(routing))


def _resolved(asked: Mapping[str, Any], sweep: Sweep) -> dict[str, Any]:
    """A combination of options with `auto` resolved, and without options that do not apply beside the others."""
    resolved = dict(asked)
    if sweep.kind != "cpu":
        resolved["threads"] = None
    if isinstance(resolved.get("image_shape"), int):
        channels, side = spec_of(resolved["dataset"]).shape[0], resolved["image_shape"]
        resolved["image_shape"] = f"{channels}x{side}x{side}"
    if "routing" in resolved:
        resolved["kernel"] = resolve_kernel(resolved["kernel"], resolved["routing"], sweep.kind)
        # One front for all batches of a series, as there is one inverse for all depths.
        batch_size = max(sweep.varied.get("batch_size", (resolved["batch_size"],)))
        resolved["front"] = resolve_front(resolved["front"], batch_size, sweep.kind)
    if "inverse" in resolved:
        # The published rule restarts in every block, so that no stack is longer than one block.
        functions = 2 * (1 if resolved["rule"] == "published" else max(sweep.depths))
        reversible = resolved["memory"] in REVERSIBLE_STRATEGIES
        with naming("inverse"):
            resolved["inverse"] = resolve_inverse(resolved["inverse"], functions, resolved["gamma"]) if reversible else None
    return {name: None if value == OPTIONS[name].unwritten else value for name, value in resolved.items()}


def _check(sweep: Sweep) -> dict[str, Facts]:
    """Refuse options that cannot be met, and return the facts about each model."""
    with naming("models"):
        facts = {model: _facts_of(model) for model in sweep.models}
    _check_axes(sweep, facts)
    for name in SWEPT_OPTIONS:
        # An axis that is a setting of every case here is no option.
        if name not in sweep.varied or any(name not in (found.settings or ()) for found in facts.values()):
            for value in sweep.values[name]:
                _check_value(name, value)
    _check_effect(sweep)
    _check_combinations(sweep)
    for model, found in facts.items():
        _check_settings(sweep, model, found)
    return facts


def _check_axes(sweep: Sweep, all_facts: Mapping[str, Facts]) -> None:
    """Refuse axes that no model has; a model that lacks one which another has is measured once for all of its values."""
    known = {model: _axes_had(sweep, model, facts) for model, facts in all_facts.items()}
    for name in sweep.varied:
        for model, facts in all_facts.items():
            _refuse_unset(model, facts, name)
            usual = (facts.settings or {}).get(name)
            if usual is not None and name not in known[model]:
                raise ConfigurationError(
                    f"`vary` {name}: its default {usual!r} in model '{model}' is not a number",
                    "give its values by `settings`: they multiply the sweep",
                )
        if not any(name in had for had in known.values()):
            model, had = next(iter(known.items()))
            raise ConfigurationError(
                f"`vary` {name}: model '{model}' takes no {name}",
                suggesting(name, had, f"it takes {', '.join(dict.fromkeys(had))}"),
            )


def _axes_had(sweep: Sweep, model: str, facts: Facts) -> list[str]:
    """Names of the axes that a model has."""
    settings, builder = facts.settings, facts.builder
    if settings is None:
        fields = [name for name in AXES_OF_FIELDS if OPTIONS[name].networks.have(model)]
        has_blocks = model not in WITHOUT_BLOCKS and builder is None
        known = [name for name in (*fields, *SHAPE_NAMES) if name != "blocks" or has_blocks]
        if builder is not None:
            known += sweep.varied if builder.takes_more else builder.names
    else:
        numbers = [name for name, usual in settings.items() if isinstance(usual, int | float) and not isinstance(usual, bool)]
        fields = [name for name in AXES_OF_FIELDS if OPTIONS[name].networks.names is None]
        known = [*numbers, *(name for name in fields if name not in ("blocks", *_OF_IMAGES))]
    return [name for name in known if name != "threads" or sweep.kind == "cpu"]


def axis_lacked(cells: Iterable[Cell], axis: str) -> list[str]:
    """Notes on networks of a sweep that lack its first axis, and are measured once for all values of it."""
    lacking = dict.fromkeys(cell.configuration.model for cell in cells if cell.configuration.position(axis) is None)
    return [f"model '{model}' takes no {axis.replace('_', ' ')}: it has no slope, and is drawn as a level" for model in lacking]


def _check_settings(sweep: Sweep, model: str, facts: Facts) -> None:
    """Refuse settings that a model does not take, and values of another kind than their defaults."""
    if facts.settings is not None:
        _check_settings_of_case(sweep, model, facts, facts.settings)
    elif facts.builder is not None:
        if sweep.depths_chosen:
            raise ConfigurationError(
                f"`depth`: model '{model}' takes no blocks", "leave `depth` out, and set what it takes by `settings`"
            )
        facts.builder.arguments(model, 1, _given_to_builder(sweep, facts))
    elif sweep.settings:
        raise ConfigurationError(
            f"`settings` {', '.join(sweep.settings)}: model '{model}' is not a case, and takes no settings",
            "give the options of a cell by their own names, or a function that makes a capsbench.Case",
        )


def _check_settings_of_case(sweep: Sweep, model: str, facts: Facts, settings: Mapping[str, Setting]) -> None:
    """Refuse settings that a function of cases does not take, and values of another kind than their defaults."""
    given: dict[str, tuple[Any, ...]] = dict(sweep.settings)
    if "blocks" in given:
        raise ConfigurationError("`settings` blocks: depths are given by themselves", "give `depth` instead")
    if sweep.depths_chosen:
        given["blocks"] = sweep.depths
    given |= {name: sweep.values[name] for name in _OF_IMAGES if name in sweep.chosen}
    given |= {name: values for name, values in sweep.varied.items() if name in settings}
    for name, values in given.items():
        _refuse_unset(model, facts, name)
        if name not in settings:
            # The name of an option is written as one, for the command line prints its flag.
            what = f"`{name}`" if name in _OF_IMAGES else name
            raise ConfigurationError(
                f"model '{model}' takes no {what}",
                suggesting(name, settings, f"it takes {', '.join(settings)}" if settings else "it takes no settings"),
            )
        usual = settings[name]
        for value in values:
            kinds = (bool,) if isinstance(usual, bool) else (int, float) if isinstance(usual, float) else (type(usual),)
            if type(value) not in kinds:
                raise ConfigurationError(
                    f"`{name}` {value!r} is not of the type of its default {usual!r}",
                    f"give a value of type {type(usual).__name__}",
                )


def _refuse_unset(model: str, facts: Facts, name: str) -> None:
    """Refuse an argument of a function that makes cases whose default no record can hold."""
    if name in facts.unset:
        raise ConfigurationError(
            f"`{name}` of model '{model}' cannot be set: its default is no number, text or flag",
            "give it a default of the kind that it takes, such as 0 or ''",
        )


def _check_value(name: str, value: Any) -> None:
    """Refuse a value that an option cannot have in any combination."""
    option = OPTIONS[name]
    if value is None and option.default is None:
        return
    if fault := fault_of(value):
        raise ConfigurationError(f"`{name}`: {fault}", f"give {'a text' if type_of(name) is str else 'a number'}")
    if value == option.default:
        return
    if name == "image_shape" and type(value) is not int:
        with naming(name):
            parse_shape(str(value))
    if option.choices and not option.knows(value):
        raise unknown_name(f"`{name}`", value, option.choices)
    kind = type_of(name)
    if kind is not str and (isinstance(value, bool) or not isinstance(value, int | kind)):
        raise ConfigurationError(f"`{name}` {value!r} is not a {'whole ' if kind is int else ''}number", "give a number")
    if option.least is not None and value < option.least:
        raise ConfigurationError(f"`{name}` {value} is too small", f"give {option.least} or more")
    if option.most is not None and value > option.most:
        raise ConfigurationError(f"`{name}` {value} is too large", f"give {option.most:,} or less")


def _facts_of(name: str) -> Facts:
    """The facts about a model; a module of the user's own is imported in a process apart."""
    try:
        return call_for(name, facts_of, name)
    except ConfigurationError:
        raise
    except CapsbenchError as error:
        raise ConfigurationError(f"model '{name}' cannot be imported: {error.what}", error.hint) from None


def _check_effect(sweep: Sweep) -> None:
    """Refuse options that are set although a user's own network, or every network of the sweep, does not have them."""
    own = next((model for model in sweep.models if model not in MODELS), None)
    for name in NETWORK_OPTIONS:
        if sweep.values[name] == (OPTIONS[name].default,) or name in sweep.varied:
            continue
        if own is not None and not OPTIONS[name].networks.have(own):
            raise no_effect(f"`{name}` {sweep.shown(name)}", own)
        if not sweep.has(name) and name != "inverse":
            networks = OPTIONS[name].networks
            raise ConfigurationError(
                f"`{name}` {sweep.shown(name)} has no effect on {', '.join(sweep.models)}: {networks.why}",
                f"leave `{name}` out, or add a network that has it: {', '.join(one for one in MODELS if networks.have(one))}",
            )


def no_effect(option: str, model: str) -> ConfigurationError:
    """The error of an option that was given for a network of the user's own."""
    return ConfigurationError(
        f"{option} has no effect on model '{model}': it is an option of capsbench's own capsule networks",
        f"leave it out, and set it where '{model}' is made; networks that have it can be added to the same report with `resume`",
    )


def _check_combinations(sweep: Sweep) -> None:
    """Refuse values that exclude each other, or that this machine cannot run."""
    _check_kernels(sweep)
    rounds = sweep.values["iterations"] if sweep.has("iterations") else ()
    with naming("iterations"):
        for routing, iterations in product(sweep.values["routing"], rounds):
            check_routing(routing, "auto", iterations)
    with naming("optimizer_step"):
        for step, precision, passes in product(*(sweep.values[name] for name in ("optimizer_step", "precision", "accumulate"))):
            check_optimizer_step(step, precision, passes)
    memories = sweep.values["memory"]
    reversible = sweep.has("gamma") and (memories == (None,) or not set(REVERSIBLE_STRATEGIES).isdisjoint(memories))
    with naming("gamma"):
        for gamma in sweep.values["gamma"] if sweep.has("gamma") else ():
            check_gamma(gamma, invertible=reversible)
    if sweep.values["inverse"] != ("auto",) and not reversible:
        raise ConfigurationError(
            f"`inverse` {sweep.shown('inverse')} has nothing to invert: nothing here is reversible",
            "add mocapsnet with `memory` reversible, or leave `inverse` out",
        )
    for model in sweep.models:
        if model not in MODELS and not _fitting(sweep, model, "memory"):
            with naming("memory"):
                check_members_strategy(memories[0])
            raise ConfigurationError(
                f"`memory` {sweep.shown('memory')} leaves no strategy for {model}, whose function is given it and knows no lists",
                f"give one of {', '.join(MEMBER_STRATEGIES)}",
            )
        if model in STACKED and memories != (None,) and not _fitting(sweep, model, "memory"):
            raise ConfigurationError(
                f"`memory` {sweep.shown('memory')} leaves no strategy for {model}",
                f"give one of {', '.join(_strategies(model))}, or another model",
            )


def _check_kernels(sweep: Sweep) -> None:
    """Refuse kernels that this device or machine cannot run, and lists that leave a routing algorithm without any."""
    for kernel in sweep.values["kernel"]:
        needed = _DEVICE_OF.get(kernel, sweep.kind)
        if needed != sweep.kind:
            raise ConfigurationError(
                f"`kernel` {kernel} needs a device of kind {needed}, and `device` is '{sweep.device}'",
                f"choose `device` {needed} if there is one, or `kernel` auto, which is the fastest on a device",
            )
        if kernel == "compiled" and not compiled.available():
            raise ConfigurationError(
                f"`kernel` compiled is not available on this machine: {compiled.library().reason}",
                "choose `kernel` recompute or auto",
            )
    for routing in sweep.values["routing"] if sweep.has("routing") else ():
        if not any(_has_kernel(routing, kernel) for kernel in sweep.values["kernel"]):
            raise ConfigurationError(
                f"`kernel` {sweep.shown('kernel')} leaves no kernel for routing {routing}",
                f"add one of auto, {', '.join(kernels(routing))}, or leave {routing} out of `routing`",
            )


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Put the name of an option or parameter before the package's error on its value."""
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(f"`{field}`: {error.what}", error.hint) from None
