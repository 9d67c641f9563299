"""Functions of other packages that build a network for images, such as torchvision's `resnet50` or timm's `create_model`.

Such a function, or class, says that it returns a `torch.nn.Module`, and is called by keyword: with what a user sets, and with the
number of classes if it takes one. The network is fed with images, and its class scores with labels.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from capsbench.cases.case import Case
from capsbench.errors import CapsbenchError, ConfigurationError, error_line, suggesting

_SCALARS = (bool, int, float, str)
_LONGEST_REASON = 200


@dataclass(frozen=True)
class Builder:
    """The arguments of a function that builds a network."""

    names: tuple[str, ...]
    """Arguments that it names."""
    required: tuple[str, ...]
    """Arguments without a default."""
    takes_more: bool
    """True if it takes others too, which it hands on."""

    def arguments(self, model: str, classes: int, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of its call.

        Args:
            model: name of the function, for errors.
            classes: number of classes.
            settings: values that a user has set, by name.

        Raises:
            ConfigurationError: it does not take one of them, or needs another.
        """
        unknown = [name for name in settings if name not in self.names and not self.takes_more]
        if unknown:
            hint = suggesting(unknown[0], self.names, f"it takes {', '.join(self.names) or 'nothing'}")
            raise ConfigurationError(f"model '{model}' takes no {unknown[0]}", hint)
        missing = [name for name in self.required if name not in settings and name != "num_classes"]
        if missing:
            raise ConfigurationError(
                f"model '{model}' needs {' and '.join(missing)}, which has no default", "give it by `settings`"
            )
        usual: dict[str, Any] = {"num_classes": classes} if "num_classes" in self.names or self.takes_more else {}
        # Weights of a part, which torchvision's detectors load by default, change no bytes.
        usual |= {"weights_backbone": None} if "weights_backbone" in self.names else {}
        return usual | dict(settings)


def builder_of(factory: Callable[..., object]) -> Builder | None:
    """The arguments of a function that builds a network; None for a function that makes classifiers or cases.

    It says that it returns a module, and needs no argument but numbers, texts and flags. A function that makes classifiers needs
    a shape first.
    """
    signature = _signature_of(factory)
    if signature is None:
        return None
    made = factory if isinstance(factory, type) else signature.return_annotation
    parameters = list(signature.parameters.values())
    if not (isinstance(made, type) and issubclass(made, nn.Module)) or "in_shape" in signature.parameters:
        return None
    if any(one.kind in (one.POSITIONAL_ONLY, one.VAR_POSITIONAL) for one in parameters):
        return None
    named = [one for one in parameters if one.kind is not one.VAR_KEYWORD]
    required = [one for one in named if one.default is one.empty]
    if any(one.annotation not in _SCALARS for one in required) or (named and isinstance(named[0].default, tuple)):
        return None
    return Builder(tuple(one.name for one in named), tuple(one.name for one in required), len(named) < len(parameters))


def _signature_of(factory: Callable[..., object]) -> inspect.Signature | None:
    """The signature of a function with annotations that are no texts, as far as these can be evaluated; None if there is none."""
    try:
        return inspect.signature(factory, eval_str=True)
    except Exception:  # an annotation may name what is imported for type checkers alone, or be no expression
        try:
            return inspect.signature(factory)
        except (TypeError, ValueError):  # a callable of C
            return None


def call_builder(
    factory: Callable[..., object], builder: Builder, model: str, classes: int, settings: Mapping[str, Any]
) -> object:
    """Call a function that builds a network.

    Args:
        factory: the function.
        builder: its arguments.
        model: its name, for errors.
        classes: number of classes.
        settings: values that a user has set, by name.

    Raises:
        ConfigurationError: it does not take one of them, or needs another.
    """
    given = builder.arguments(model, classes, settings)
    try:
        return factory(**given)
    except TypeError as error:
        refused = next((name for name in given if f"argument '{name}'" in str(error)), None)
        if refused is None or refused in builder.names:
            raise
    if refused in settings:
        hint = f"it takes {', '.join(builder.names)}, and arguments of what it builds"
        raise ConfigurationError(f"model '{model}' takes no {refused}", suggesting(refused, builder.names, hint))
    # The function that it passes its arguments to chooses the number of classes itself.
    del given[refused]
    return factory(**given)


@dataclass(frozen=True)
class ImagesCase(Case):
    """The case of a network that somebody else's function has built, whose errors say which images it was given."""

    model: str = ""
    """Name of the function."""
    shape: tuple[int, int, int] = (1, 1, 1)
    """Shape of an image."""

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ConfigurationError as error:
            raise ConfigurationError(
                f"model '{self.model}' is no classifier of images: {error.what}",
                "write a function that returns a capsbench.Case with its inputs",
            ) from error

    def output(self, *, training: bool) -> Any:
        """Call the network, and return its output.

        Raises:
            ConfigurationError: it cannot be called with these images.
        """
        try:
            return super().output(training=training)
        except CapsbenchError:
            raise
        except Exception as error:
            if isinstance(error, MemoryError | torch.OutOfMemoryError) or "alloc" in str(error):
                raise
            shape = "x".join(map(str, self.shape))
            raise ConfigurationError(
                f"model '{self.model}' fails on images of shape {shape}: {error_line(error, _LONGEST_REASON)}",
                "give images that it takes by `image_shape`, such as 3x224x224, or write a function that returns a "
                "capsbench.Case with its inputs",
            ) from error
