"""The function behind a model's name, what it takes, and the network that it makes."""

import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, NamedTuple, Unpack, get_args, get_origin

from torch import nn

from capsbench.cases.builders import Builder, builder_of, call_builder
from capsbench.cases.carried import carried, carry, imported_name, share_search_path
from capsbench.cases.case import Case, described
from capsbench.cases.fingerprint import Fingerprint, fingerprint
from capsbench.cases.foreign import (
    FACTORY_CALL,
    call_with_images,
    imported,
    make_lazy_parameters,
    module_of,
    noting_call,
    settings_of,
)
from capsbench.catalog import OWN_INPUTS, DatasetSpec
from capsbench.errors import ConfigurationError, unknown_name
from capsbench.models import CapsNet, MoCapsNet, ResCapsNet, SabourCapsNet, capsnet_2conv
from capsbench.options import Configuration
from capsbench.reversible import keep_less
from capsbench.typed_values import Setting

ModelFactory = Callable[..., nn.Module]
"""A function that makes a network, called with `(in_shape, num_classes, blocks)` and the options that it takes."""

BUILT_IN: dict[str, ModelFactory] = {
    "capsnet": CapsNet,
    "rescapsnet": ResCapsNet,
    "mocapsnet": MoCapsNet,
    "capsnet-1conv": SabourCapsNet,
    "capsnet-2conv": capsnet_2conv,
}
"""Every capsule network that has a name (`capsbench.catalog.MODELS`)."""

ENTRY_POINTS = "capsbench.models"
"""Entry point group in which other packages register their models."""


def resolve_model(name: str) -> ModelFactory:
    """The callable behind a model's name.

    Args:
        name: a built-in, an entry point of the group `capsbench.models`, `package.module:name`, or a function that was
            carried here (`capsbench.cases.carried`).

    Raises:
        ConfigurationError: nothing of that name can be imported.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    registered = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name in registered:
        factory = imported(name, registered[name].value)
    elif ":" in name:
        factory = imported(name, name)
    elif (sent := carried(name)) is not None:
        factory = sent.function
    else:
        if name.endswith(".py"):
            raise ConfigurationError(
                f"model '{name}' is a file, and not the function in it that makes a network", f"name that too: {name}:make_net"
            )
        raise unknown_name("model", name, [*BUILT_IN, *registered], ", or package.module:name")
    if not callable(factory):
        raise ConfigurationError(
            f"model '{name}' is {type(factory).__name__}, not callable",
            "name a callable that takes (in_shape, num_classes, blocks) and returns a module",
        )
    return factory


def name_of(factory: ModelFactory) -> str:
    """The name by which other processes find a function: by import, or carried to them.

    Raises:
        ConfigurationError: it is no function, it cannot be sent, or its name is that of another network.
    """
    if isinstance(factory, Case | nn.Module) or not callable(factory):
        is_one = isinstance(factory, Case | nn.Module)
        raise ConfigurationError(
            f"`models` has {described(factory)}, not a function: a sweep makes the network again for each cell",
            f"give the function that makes it{', or ask capsbench.estimate for the bytes of this one alone' if is_one else ''}",
        )
    share_search_path()
    found = imported_name(factory)
    if found is not None:
        return found
    name = getattr(factory, "__name__", "")
    if name in BUILT_IN or any(point.name == name for point in entry_points(group=ENTRY_POINTS)):
        raise ConfigurationError(f"`models` has a function {name}, which is the name of another network", "rename it")
    return carry(factory)


def fingerprint_of(name: str) -> Fingerprint | None:
    """The source behind a model's name; None for this package's own, whose version records name, and if there is none.

    Raises:
        ConfigurationError: nothing of that name can be imported.
    """
    factory = resolve_model(name)
    if factory is BUILT_IN.get(name):
        return None
    registered = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    sent = None if name in registered else carried(name)
    return fingerprint(module_of(registered.get(name, name))) if sent is None else sent.fingerprint


class NetworkFacts(NamedTuple):
    """Facts about a network that a sweep needs before it makes one."""

    fingerprint: Fingerprint | None
    """The source of the network, as in `fingerprint_of`."""
    settings: dict[str, Setting] | None
    """The settings of a function that makes cases, by name with their defaults; None for any other."""
    builder: Builder | None = None
    """The arguments of a function that builds a network for images; None for any other."""
    own_memory: bool = False
    """True if a user's function that makes a classifier has an argument `memory`, which takes the option's place."""
    unset: tuple[str, ...] = ()
    """Arguments of a function that makes cases whose defaults no record can hold, and which a sweep cannot set."""


def facts_of(name: str) -> NetworkFacts:
    """The facts about the network of this name.

    Raises:
        ConfigurationError: nothing of that name can be imported.
    """
    factory = resolve_model(name)
    builder = None if name in BUILT_IN else builder_of(factory)
    settings = None if name in BUILT_IN or builder is not None else settings_of(factory)
    simple = None if settings is None else {key: one for key, one in settings.items() if type(one) in (bool, int, float, str)}
    makes_classifiers = name not in BUILT_IN and builder is None and settings is None
    own_memory = makes_classifiers and _names(factory, "memory")
    unset = tuple(key for key in settings or () if key not in (simple or ()))
    if makes_classifiers:
        _check_signature(name, factory)
    return NetworkFacts(fingerprint_of(name), simple, builder, own_memory, unset)


def _check_signature(name: str, factory: ModelFactory) -> None:
    """Refuse a function that can make neither a classifier nor a case.

    Raises:
        ConfigurationError: it takes other arguments.
    """
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # a callable of C, whose call reports the error
        return
    memory = {"memory": None} if "memory" in signature.parameters else {}
    try:
        signature.bind(None, None, None, **memory)
    except TypeError as error:
        raise ConfigurationError(
            f"model '{name}' takes {signature}, which is neither a classifier's nor a case's: {error}",
            "a classifier's function takes (in_shape, num_classes, blocks), a case's any arguments by name, all with defaults",
        ) from None


def build_model(configuration: Configuration, **more: Any) -> nn.Module:
    """The network of a configuration, with the shape and classes of its data set.

    Args:
        configuration: configuration of the network.
        more: further arguments of the model.

    Raises:
        ConfigurationError: the name is unknown, its options do not fit, or it returned no module.
    """
    spec = configuration.spec()
    factory = resolve_model(configuration.model)
    builder = builder_behind(configuration)
    if builder is not None:
        with noting_call(FACTORY_CALL):
            made = call_builder(factory, builder, configuration.model, spec.classes, dict(configuration.settings or ()))
        return keeping_less(as_module(configuration.model, made, spec), configuration)
    options = configuration.arguments() | more
    if configuration.model not in BUILT_IN and not _names(factory, "memory"):
        options.pop("memory", None)
    refused = option_not_taken(factory, (spec.shape, spec.classes, configuration.blocks), options)
    if refused is not None:
        raise ConfigurationError(
            f"model '{configuration.model}' takes no {refused}", f"leave {refused} out, or choose a model that takes it"
        )
    with noting_call(FACTORY_CALL):
        made = factory(spec.shape, spec.classes, configuration.blocks, **options)
    return keeping_less(as_module(configuration.model, made, spec), configuration)


def builder_behind(configuration: Configuration) -> Builder | None:
    """The arguments of the function of a configuration, if it builds networks for images."""
    if configuration.model in BUILT_IN:
        return None
    try:
        return builder_of(resolve_model(configuration.model))
    except ConfigurationError:  # a trace may be given a factory in place of the one that the name stands for
        return None


def keeping_less(module: nn.Module, configuration: Configuration) -> nn.Module:
    """The network, whose layers keep less for backward if the configuration of a user's own network says so.

    A factory of classifiers with an argument `memory` has its own way.
    """
    if configuration.model in BUILT_IN or configuration.memory is None:
        return module
    is_classifier = configuration.dataset != OWN_INPUTS and builder_behind(configuration) is None
    if not (is_classifier and _names(resolve_model(configuration.model), "memory")):
        keep_less(module, configuration.memory)
    return module


def _names(factory: ModelFactory, argument: str) -> bool:
    """Return whether a factory has an argument of this name."""
    try:
        return argument in _signature_of(factory).parameters
    except (TypeError, ValueError):  # a callable of C
        return False


def option_not_taken(factory: ModelFactory, positional: tuple[object, ...], options: Mapping[str, Any]) -> str | None:
    """The first option that a factory does not take by name, according to its signature."""
    try:
        signature = _signature_of(factory)
        signature.bind_partial(*positional)
    except (TypeError, ValueError):  # a callable of C, or one without these arguments, whose call reports the error
        return None
    for name, value in options.items():
        try:
            signature.bind_partial(*positional, **{name: value})
        except TypeError:
            return name
    return None


def _signature_of(factory: ModelFactory) -> inspect.Signature:
    """The signature of a factory, with the names of its typed keyword arguments (`Unpack`) in their place."""
    signature = inspect.signature(factory)
    parameters: list[inspect.Parameter] = []
    for one in signature.parameters.values():
        if get_origin(one.annotation) is Unpack:
            (kind,) = get_args(one.annotation)
            names = sorted(kind.__required_keys__ | kind.__optional_keys__)
            parameters += [one.replace(name=name, kind=one.KEYWORD_ONLY) for name in names]
        else:
            parameters.append(one)
    return signature.replace(parameters=parameters)


def as_module(name: str, made: object, spec: DatasetSpec) -> nn.Module:
    """The network that a model's factory returned, with its lazy parameters made.

    Raises:
        ConfigurationError: it is no module, or one whose forward pass leaves a lazy parameter unmade.
    """
    if isinstance(made, Case):
        raise ConfigurationError(
            f"model '{name}' returned a Case, but takes the arguments of a classifier: (in_shape, num_classes, blocks)",
            "a case's function takes its arguments by name, all with defaults, and no *args",
        )
    if not isinstance(made, nn.Module):
        raise ConfigurationError(
            f"model '{name}' returned {described(made)}", "it must return a torch.nn.Module, or a capsbench.Case"
        )
    make_lazy_parameters(name, made, lambda: call_with_images(made, spec))
    return made
