"""Refusal of options that a sweep cannot meet, before anything is measured."""

from collections.abc import Mapping
from itertools import product
from typing import Any

from capsbench.cases.factories import NetworkFacts, facts_of
from capsbench.cases.step_optimizer import check_optimizer_step
from capsbench.catalog import MODELS, STACKED, WITHOUT_BLOCKS, parse_shape
from capsbench.errors import CapsbenchError, ConfigurationError, suggesting, unknown_name
from capsbench.options import AXES_OF_FIELDS, NETWORK_OPTIONS, OPTIONS, SWEPT_OPTIONS, type_of
from capsbench.parallel import check_parallel
from capsbench.prediction.apart import call_for
from capsbench.reversible import MEMBER_STRATEGIES, REVERSIBLE_STRATEGIES, check_gamma, check_members_strategy
from capsbench.routing import check_routing, compiled, kernels
from capsbench.sweep.asked import OF_IMAGES, SHAPE_NAMES, Sweep, fitting, given_to_builder, has_kernel, naming, strategies_of
from capsbench.typed_values import Setting, fault_of, is_number

_DEVICE_OF = {"triton": "cuda", "compiled": "cpu"}
"""Kernels that run on one kind of device alone, with that kind."""


def checked_facts(sweep: Sweep) -> dict[str, NetworkFacts]:
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


def _check_axes(sweep: Sweep, all_facts: Mapping[str, NetworkFacts]) -> None:
    """Refuse axes that no model has; a model that lacks one which another has is measured once for all of its values."""
    known = {model: _axes_had(sweep, model, facts) for model, facts in all_facts.items()}
    asked = {name: f"`vary` {name}" for name in sweep.varied}
    # A built-in network without blocks is measured at any depth.
    if sweep.depths_chosen and not all(model in MODELS for model in all_facts):
        asked.setdefault("blocks", "`depth`")
    for name, field in asked.items():
        for model, facts in all_facts.items():
            _refuse_unset(model, facts, name)
            usual = (facts.settings or {}).get(name)
            if usual is not None and name not in known[model]:
                raise ConfigurationError(
                    f"{field}: its default {usual!r} in model '{model}' is not a number",
                    "give its values by `settings`: they multiply the sweep",
                )
        if not any(name in had for had in known.values()):
            model, had = next(iter(known.items()))
            builder = all_facts[model].builder
            if builder is not None and name in builder.names:
                raise ConfigurationError(
                    f"{field}: model '{model}' builds a network for images, of which {name} is no axis",
                    "rename the argument, or write a function that takes it and returns a capsbench.Case",
                )
            raise ConfigurationError(
                f"{field}: model '{model}' takes no {name}",
                suggesting("blocks" if name == "depth" else name, had, f"it takes {', '.join(dict.fromkeys(had))}"),
            )


def _axes_had(sweep: Sweep, model: str, facts: NetworkFacts) -> list[str]:
    """Names of the axes that a model has."""
    settings, builder = facts.settings, facts.builder
    if settings is None:
        fields = [name for name in AXES_OF_FIELDS if OPTIONS[name].networks.have(model)]
        has_blocks = model not in WITHOUT_BLOCKS and builder is None
        known = [name for name in (*fields, *SHAPE_NAMES) if name != "blocks" or has_blocks]
        if builder is not None:
            known += [name for name in (sweep.varied if builder.takes_more else builder.names) if name != "blocks"]
    else:
        numbers = [name for name, usual in settings.items() if is_number(usual)]
        fields = [name for name in AXES_OF_FIELDS if OPTIONS[name].networks.names is None]
        known = [*numbers, *(name for name in fields if name not in ("blocks", *OF_IMAGES))]
    return [name for name in known if name != "threads" or sweep.kind == "cpu"]


def _check_settings(sweep: Sweep, model: str, facts: NetworkFacts) -> None:
    """Refuse settings that a model does not take, and values of another kind than their defaults."""
    if facts.settings is not None:
        _check_settings_of_case(sweep, model, facts, facts.settings)
    elif facts.builder is not None:
        facts.builder.arguments(model, 1, given_to_builder(sweep, facts))
    elif sweep.settings:
        raise ConfigurationError(
            f"`settings` {', '.join(sweep.settings)}: model '{model}' is not a case, and takes no settings",
            "give the options of a cell by their own names, or a function that makes a capsbench.Case",
        )


def _check_settings_of_case(sweep: Sweep, model: str, facts: NetworkFacts, settings: Mapping[str, Setting]) -> None:
    """Refuse settings that a function of cases does not take, and values of another kind than their defaults."""
    given: dict[str, tuple[Any, ...]] = dict(sweep.settings)
    if "blocks" in given:
        raise ConfigurationError("`settings` blocks: depths are given by themselves", "give `depth` instead")
    if sweep.depths_chosen and "blocks" in settings:
        given["blocks"] = sweep.depths
    given |= {name: sweep.values[name] for name in OF_IMAGES if name in sweep.chosen}
    given |= {name: values for name, values in sweep.varied.items() if name in settings}
    for name, values in given.items():
        _refuse_unset(model, facts, name)
        if name not in settings:
            # The name of an option is written as one, for the command line prints its flag.
            what = f"`{name}`" if name in OF_IMAGES else name
            raise ConfigurationError(
                f"model '{model}' takes no {what}",
                suggesting(name, settings, f"it takes {', '.join(settings)}" if settings else "it takes no settings"),
            )
        usual = settings[name]
        for value in values:
            kinds = (bool,) if isinstance(usual, bool) else (int, float) if isinstance(usual, float) else (type(usual),)
            if type(value) not in kinds:
                raise ConfigurationError(
                    f"{name} {value!r} is not of the type of its default {usual!r}",
                    f"give a value of type {type(usual).__name__}",
                )


def _refuse_unset(model: str, facts: NetworkFacts, name: str) -> None:
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
    if kind is not str:
        option.refuse_outside(f"`{name}`", value)


def _facts_of(name: str) -> NetworkFacts:
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
    for routing, iterations in product(sweep.values["routing"], rounds):
        check_routing(routing, "auto", iterations)
    for step, precision, passes in product(*(sweep.values[name] for name in ("optimizer_step", "precision", "accumulate"))):
        check_optimizer_step(step, precision, passes)
    _check_processes(sweep)
    memories = sweep.values["memory"]
    reversible = sweep.has("gamma") and (memories == (None,) or not set(REVERSIBLE_STRATEGIES).isdisjoint(memories))
    for gamma in sweep.values["gamma"] if sweep.has("gamma") else ():
        check_gamma(gamma, invertible=reversible)
    if sweep.values["inverse"] != ("auto",) and not reversible:
        raise ConfigurationError(
            f"`inverse` {sweep.shown('inverse')} has nothing to invert: nothing here is reversible",
            "add mocapsnet with `memory` reversible, or leave `inverse` out",
        )
    for model in sweep.models:
        if model not in MODELS and not fitting(sweep, model, "memory"):
            check_members_strategy(memories[0])
            raise ConfigurationError(
                f"`memory` {sweep.shown('memory')} leaves no strategy for {model}, whose function takes `memory` itself, "
                "which excludes names of lists",
                f"give one of {', '.join(MEMBER_STRATEGIES)}",
            )
        if model in STACKED and memories != (None,) and not fitting(sweep, model, "memory"):
            raise ConfigurationError(
                f"`memory` {sweep.shown('memory')} leaves no strategy for {model}",
                f"give one of {', '.join(strategies_of(model))}, or another model",
            )


def _check_processes(sweep: Sweep) -> None:
    """Refuse several processes without a way or a number, and options that exclude them."""
    names = ("parallel", "world_size", "optimizer_step", "compile", "precision")
    several = any(parallel not in (None, "none") for parallel in sweep.values["parallel"])
    for parallel, world_size, step, compilation, precision in product(*(sweep.values[name] for name in names)):
        if not several or parallel not in (None, "none"):  # one process may be a cell among several
            check_parallel(parallel, world_size, optimizer_step=step, compilation=compilation, precision=precision)


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
        if not any(has_kernel(routing, kernel) for kernel in sweep.values["kernel"]):
            raise ConfigurationError(
                f"`kernel` {sweep.shown('kernel')} leaves no kernel for routing {routing}",
                f"add one of auto, {', '.join(kernels(routing))}, or leave {routing} out of `routing`",
            )
