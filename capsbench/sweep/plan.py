"""Expansion of a sweep's options to a list of cells."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from capsbench.errors import CapsbenchError, ConfigurationError
from capsbench.models import resolve_front
from capsbench.options import (
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
from capsbench.reversible import PLAIN_STRATEGIES, REVERSIBLE_STRATEGIES, STRATEGIES, check_gamma, resolve_inverse
from capsbench.routing import check_routing, compiled, kernels, resolve_kernel
from capsbench.workload import Facts, check_optimizer_step, facts_of

DEPTH_FORMS = "give a depth (3), a range (1-8), or a list of both (1-4,8)"
_DEVICE_OF = {"triton": "cuda", "compiled": "cpu"}
"""Kernels that run on one kind of device alone, with that kind."""

_SLOWEST = ("dataset", "precision", "optimizer_step", "routing", "kernel", "front", "memory", "rule")
"""The options that vary slowest in the cells of a sweep, in this order; all others vary faster."""


class Sweep:
    """Networks, their depths, and values of options. An option with several values multiplies the sweep.

    Args:
        models: built-in names, entry points, or `package.module:name`.
        depths: blocks, ascending.
        device: a device that exists, or one that a prediction is for.
        repeats: replicates of every cell.
        depths_chosen: False if a case that takes no blocks is not refused, because nobody chose the depths.
        settings: values of what cases take, by name, each a value or a list of values that multiplies the sweep.
        options: options of a cell by name (`capsbench.options.OPTIONS`), each with a value or a list of values; the others have
            their defaults.

    Raises:
        ConfigurationError: there is no option of that name.
    """

    def __init__(
        self, models: Sequence[str], depths: Sequence[int], device: str, *, repeats: int = 1, depths_chosen: bool = True,
        settings: Mapping[str, object] | None = None, **options: object,
    ) -> None:  # fmt: skip
        self.models = tuple(models)
        self.settings = {name: _several(value) for name, value in (settings or {}).items()}
        """The values of what cases take, by name."""
        self.depths = tuple(depths)
        self.depths_chosen = depths_chosen
        self.chosen = frozenset(name for name, value in options.items() if value is not None)
        """Options that were given a value."""
        self.device = device
        self.repeats = repeats
        unknown = next((name for name in options if name not in SWEPT_OPTIONS), None)
        if unknown is not None:
            raise ConfigurationError(f"a sweep takes no {unknown}", f"choose among {', '.join(SWEPT_OPTIONS)}")
        values: dict[str, tuple[Any, ...]] = {}
        for name in SWEPT_OPTIONS:
            values[name] = _several(options.get(name)) or (OPTIONS[name].default,)
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


def _several(given: object) -> tuple[Any, ...]:
    """The values of an option that may have several; none for None."""
    return tuple(given) if isinstance(given, list | tuple | range) else () if given is None else (given,)


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
    """The cells of a sweep, replicate by replicate and depth by depth, so that models interleave.

    A model that has no blocks is measured once for all depths.

    Raises:
        ConfigurationError: a name is unknown, a value out of range, or a combination impossible.
    """
    facts = _check(sweep)
    taken = {model: facts[model].settings for model in sweep.models}
    all_series = dict.fromkeys(series for model in sweep.models for series in _series_of(sweep, model, taken[model]))
    configurations = dict.fromkeys(
        series.model_copy(update={"blocks": blocks}) if _has_depth(series.model, taken[series.model]) else series
        for blocks in sweep.depths
        for series in all_series
    )
    sources = {model: found.fingerprint and found.fingerprint.digest for model, found in facts.items()}
    return [
        Cell(configuration=configuration, replicate=replicate, source=sources[configuration.model])
        for replicate in range(sweep.repeats)
        for configuration in configurations
    ]


def _has_depth(model: str, settings: Mapping[str, Setting] | None) -> bool:
    """Return whether a network is made of a number of blocks."""
    return model not in WITHOUT_BLOCKS if settings is None else "blocks" in settings


def _series_of(sweep: Sweep, model: str, settings: Mapping[str, Setting] | None) -> Iterator[Configuration]:
    """One configuration for each combination of options that this model has in the sweep."""
    ordered = dict.fromkeys((*_SLOWEST, *SWEPT_OPTIONS))
    names = [name for name in ordered if OPTIONS[name].networks.have(model)]
    if settings is not None:
        yield from _cases(sweep, model, [name for name in names if name not in ("dataset", "batch_size")], settings)
        return
    for values in product(*(_fitting(sweep, model, name) for name in names)):
        asked = dict(zip(names, values, strict=True))
        if "routing" not in asked or _has_kernel(asked["routing"], asked["kernel"]):
            yield Configuration(model=model, blocks=0, **_resolved(asked, sweep))


def _cases(sweep: Sweep, model: str, names: Sequence[str], settings: Mapping[str, Setting]) -> Iterator[Configuration]:
    """One configuration of a case for each combination of options and settings; what is not given has its own default."""
    given = dict(sweep.settings)
    if "batch_size" in settings and "batch_size" in sweep.chosen:
        given["batch_size"] = sweep.values["batch_size"]
    for values in product(*(sweep.values[name] for name in names), *given.values()):
        asked = _resolved(dict(zip(names, values, strict=False)), sweep)
        made = dict(settings) | dict(zip(given, values[len(names) :], strict=True))
        # Equal settings make one cell, however they were typed.
        made = {name: float(value) if isinstance(settings[name], float) else value for name, value in made.items()}
        own = {name: made.pop(name) for name in ("blocks", "batch_size") if name in made}
        fields = {"blocks": own.get("blocks", 0), "batch_size": own.get("batch_size"), "settings": tuple(made.items())}
        try:
            yield Configuration(model=model, dataset=OWN_INPUTS, **fields, **asked)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            raise ConfigurationError(
                f"model '{model}': {'.'.join(map(str, fault['loc']))} {fault['input']!r} makes no case: {fault['msg']}",
                "give another value, or another default",
            ) from None


def _fitting(sweep: Sweep, model: str, name: str) -> tuple[Any, ...]:
    """The values of an option that this model can have."""
    values = sweep.values[name]
    if name != "memory":
        return values
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
    if "routing" in resolved:
        resolved["kernel"] = resolve_kernel(resolved["kernel"], resolved["routing"], sweep.kind)
        resolved["front"] = resolve_front(resolved["front"], resolved["batch_size"], sweep.kind)
    if "inverse" in resolved:
        # The published rule restarts in every block, so that no stack is longer than one block.
        functions = 2 * (1 if resolved["rule"] == "published" else max(sweep.depths))
        reversible = resolved["memory"] in REVERSIBLE_STRATEGIES
        with naming("inverse"):
            resolved["inverse"] = resolve_inverse(resolved["inverse"], functions, resolved["gamma"]) if reversible else None
    return {name: None if value == OPTIONS[name].unwritten else value for name, value in resolved.items()}


def _check(sweep: Sweep) -> dict[str, Facts]:
    """Refuse options that make no sense, and return the facts about each model."""
    with naming("models"):
        facts = {model: _facts_of(model) for model in sweep.models}
    for name in SWEPT_OPTIONS:
        for value in sweep.values[name]:
            _check_value(name, value)
    _check_effect(sweep)
    _check_combinations(sweep)
    for model, found in facts.items():
        _check_settings(sweep, model, found.settings)
    return facts


def _check_settings(sweep: Sweep, model: str, settings: Mapping[str, Setting] | None) -> None:
    """Refuse settings that a model does not take, and values of another kind than their defaults."""
    given: dict[str, tuple[Any, ...]] = dict(sweep.settings)
    if settings is None:
        if given:
            raise ConfigurationError(
                f"`settings` {', '.join(given)}: model '{model}' is no case and takes none",
                "give the options of a cell by their own names, or a function that makes a capsbench.Case",
            )
        return
    if "blocks" in given:
        raise ConfigurationError("`settings` blocks: depths are given by themselves", "give `depth` instead")
    if sweep.depths_chosen:
        given["blocks"] = sweep.depths
    given |= {name: sweep.values[name] for name in ("batch_size", "dataset") if name in sweep.chosen}
    for name, values in given.items():
        if not values:
            raise ConfigurationError(f"`settings` {name} has no value", f"give one or several, or leave {name} out")
        if name not in settings:
            raise ConfigurationError(
                f"model '{model}' takes no {name}", f"it takes {', '.join(settings)}" if settings else "it takes no settings"
            )
        usual = settings[name]
        for value in values:
            kinds = (bool,) if isinstance(usual, bool) else (int, float) if isinstance(usual, float) else (type(usual),)
            if type(value) not in kinds:
                raise ConfigurationError(
                    f"`{name}` {value!r} is not of the type of its default {usual!r}",
                    f"give a value of type {type(usual).__name__}",
                )


def _check_value(name: str, value: Any) -> None:
    """Refuse a value that an option cannot have in any combination."""
    option = OPTIONS[name]
    if value == option.default:
        return
    if option.choices and value not in option.choices:
        raise ConfigurationError(f"`{name}` '{value}' is not known", f"choose among {', '.join(option.choices)}")
    kind = type_of(name)
    if kind is not str and (isinstance(value, bool) or not isinstance(value, int | kind)):
        raise ConfigurationError(f"`{name}` {value!r} is not a {'whole ' if kind is int else ''}number", "give a number")
    if option.least is not None and value < option.least:
        raise ConfigurationError(f"`{name}` {value} is too small", f"give {option.least} or more")


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
        if sweep.values[name] == (OPTIONS[name].default,):
            continue
        if own is not None:
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
    with naming("iterations"):
        for routing, iterations in product(sweep.values["routing"], sweep.values["iterations"]):
            check_routing(routing, "auto", iterations)
    with naming("optimizer_step"):
        for step, precision in product(sweep.values["optimizer_step"], sweep.values["precision"]):
            check_optimizer_step(step, precision)
    memories = sweep.values["memory"]
    reversible = sweep.has("gamma") and (memories == (None,) or not set(REVERSIBLE_STRATEGIES).isdisjoint(memories))
    with naming("gamma"):
        for gamma in sweep.values["gamma"]:
            check_gamma(gamma, invertible=reversible)
    if sweep.values["inverse"] != ("auto",) and not reversible:
        raise ConfigurationError(
            f"`inverse` {sweep.shown('inverse')} has nothing to invert: nothing here is reversible",
            "add mocapsnet with `memory` reversible, or leave `inverse` out",
        )
    for model in sweep.models:
        if model in STACKED and memories != (None,) and not _fitting(sweep, model, "memory"):
            raise ConfigurationError(
                f"`memory` {sweep.shown('memory')} leaves nothing for {model}",
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
                f"`kernel` {sweep.shown('kernel')} leaves nothing for routing {routing}",
                f"add one of auto, {', '.join(kernels(routing))}, or leave {routing} out of `routing`",
            )


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Put the name of an option or parameter before the package's error on its value."""
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(f"`{field}`: {error.what}", error.hint) from None
