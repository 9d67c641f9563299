"""Expansion of a sweep's options to a list of cells."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, product
from typing import Any

from pydantic import ValidationError

from capsbench.cases.factories import NetworkFacts
from capsbench.catalog import OWN_INPUTS, WITHOUT_BLOCKS, spec_of
from capsbench.errors import ConfigurationError
from capsbench.models import resolve_front
from capsbench.options import OPTIONS, SWEPT_OPTIONS
from capsbench.records import Cell, Configuration
from capsbench.reversible import REVERSIBLE_STRATEGIES, resolve_inverse
from capsbench.routing import resolve_kernel
from capsbench.sweep.asked import OF_IMAGES, SHAPE_NAMES, Sweep, fitting, given_to_builder, has_kernel
from capsbench.sweep.checks import checked_facts
from capsbench.typed_values import Setting

_SLOWEST = ("dataset", "precision", "optimizer", "optimizer_step", "compile", "routing", "kernel", "front", "memory", "rule")
"""The options that vary slowest in the cells of a sweep, in this order; all others vary faster."""


def expand(sweep: Sweep) -> list[Cell]:
    """The cells of a sweep, replicate by replicate and depth by depth (or along its axes), so that models interleave.

    A model that has no blocks is measured once for all depths.

    Raises:
        ConfigurationError: a name is unknown, a value out of range, or a combination impossible.
    """
    facts = checked_facts(sweep)
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


def _has_depth(sweep: Sweep, model: str, facts: NetworkFacts) -> bool:
    """Return whether a network is made of one of the sweep's numbers of blocks."""
    if facts.settings is not None:
        return "blocks" in facts.settings and not sweep.usual_depth
    return model not in WITHOUT_BLOCKS and facts.builder is None


def _series_of(sweep: Sweep, model: str, facts: NetworkFacts) -> Iterator[Configuration]:
    """One configuration for each combination of options that this model has in the sweep."""
    ordered = dict.fromkeys((*_SLOWEST, *SWEPT_OPTIONS))
    names = [name for name in ordered if OPTIONS[name].networks.have(model)]
    if facts.settings is not None:
        yield from _cases(sweep, model, [name for name in names if name not in OF_IMAGES], facts.settings)
        return
    given = given_to_builder(sweep, facts)
    for values in product(*(fitting(sweep, model, name, own_memory=facts.own_memory) for name in names), *given.values()):
        asked = dict(zip(names, values, strict=False))
        made = tuple(zip(given, values[len(names) :], strict=True))
        if "routing" not in asked or has_kernel(asked["routing"], asked["kernel"]):
            yield _configuration(model, blocks=0, settings=made or None, **_resolved(asked, sweep))


def _cases(sweep: Sweep, model: str, names: Sequence[str], settings: Mapping[str, Setting]) -> Iterator[Configuration]:
    """One configuration of a case for each combination of options and settings; what is not given has its own default."""
    given = dict(sweep.settings)
    given |= {name: sweep.values[name] for name in OF_IMAGES if name in settings and name in sweep.chosen}
    given |= {name: values for name, values in sweep.varied.items() if name in settings and name != "blocks"}
    names = [name for name in names if name not in settings or name not in sweep.varied]
    for values in product(*(fitting(sweep, model, name) for name in names), *given.values()):
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


def _resolved(asked: Mapping[str, Any], sweep: Sweep) -> dict[str, Any]:
    """A combination of options with `auto` resolved, and without options that do not apply with the others."""
    resolved = dict(asked)
    if sweep.kind != "cpu":
        resolved["threads"] = None
    if resolved.get("parallel") in (None, "none"):
        resolved["world_size"] = None
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
        resolved["inverse"] = resolve_inverse(resolved["inverse"], functions, resolved["gamma"]) if reversible else None
    return {name: None if value == OPTIONS[name].unwritten else value for name, value in resolved.items()}


def axis_lacked(cells: Iterable[Cell], axis: str) -> list[str]:
    """Notes on networks of a sweep that lack its first axis in some or all cells, and are measured once for all values of it."""
    places = [(cell.configuration.model, cell.configuration.position(axis)) for cell in cells]
    if all(place is None for _, place in places):  # nobody has asked for this axis
        return []
    lacking, name = dict.fromkeys(model for model, place in places if place is None), axis.replace("_", " ")
    having = {model for model, place in places if place is not None}  # a network in parallel, say
    return [
        f"some cells of model '{model}' have no {name}: they have no slope, and are drawn as a level"
        if model in having
        else f"model '{model}' takes no {name}: it has no slope, and is drawn as a level"
        for model in lacking
    ]
