"""Networks of other authors: their import, their arguments, and the parameters that their constructors leave unmade."""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from capsbench.catalog import DatasetSpec
from capsbench.errors import ConfigurationError, error_line
from capsbench.paths import start


def imported(name: str, path: str) -> Any:
    """The object behind `package.module:name`.

    Args:
        name: name as the user wrote it, for errors.
        path: the module and the object's name in it.

    Raises:
        ConfigurationError: it cannot be imported, or Python's module hides a file of the working directory.
    """
    module, _, attribute = path.partition(":")
    if "" not in sys.path and str(start()) not in sys.path:
        # A user's module usually lies in the working directory, which comes last so that it hides no installed package.
        sys.path.append(str(start()))
    try:
        target: object = importlib.import_module(module)
        _refuse_hidden(name, sys.modules[module.partition(".")[0]])
        for part in attribute.split("."):
            target = getattr(target, part)
    except ConfigurationError:
        raise
    except (Exception, SystemExit) as error:  # a user's module may raise anything when it is imported
        raise ConfigurationError(
            f"model '{name}' cannot be imported: {error_line(error)}",
            "name it package.module:name, from where Python can import it",
        ) from None
    return target


def _refuse_hidden(name: str, package: ModuleType) -> None:
    """Refuse a module that hides one in the working directory, because either may be meant."""
    here = PathFinder.find_spec(package.__name__, [str(start())])
    if here is None or here.origin is None:
        return
    taken = getattr(package, "__file__", None) or "a module that is part of Python"
    if Path(taken).resolve() != Path(here.origin).resolve():
        raise ConfigurationError(
            f"model '{name}': {here.origin} is hidden by {taken}, which Python imports under the same name",
            "rename the file, or type the command in another folder if the other one is meant",
        )


@contextmanager
def keeping_threads(name: str) -> Iterator[list[str]]:
    """Keep torch's number of threads, which a network's module or constructor may change.

    Args:
        name: name of the network.

    Yields:
        A list, which gets a line if the number was changed.
    """
    before, notes = torch.get_num_threads(), list[str]()
    try:
        yield notes
    finally:
        found = torch.get_num_threads()
        if found != before:
            torch.set_num_threads(before)
            notes.append(f"model '{name}' sets torch's threads to {found} when it is made: it ran with {before}, as asked")


@contextmanager
def refusing_exit() -> Iterator[None]:
    """Turn `os._exit`, by which a network would end this process silently, into a `SystemExit`."""
    real, here = os._exit, os.getpid()

    def end(status: int) -> NoReturn:
        if os.getpid() != here:  # a fork of this process, which may end itself
            real(status)
        raise SystemExit(f"os._exit({status})")

    os._exit = end
    try:
        yield
    finally:
        os._exit = real


def takes_labels(model: nn.Module) -> bool:
    """Return whether a network takes `labels` beside images, as capsule networks do.

    A wrapper that passes on its arguments (`torch.compile`, `DataParallel`, an adapter) takes what its network takes.
    """
    names, hands_on = _parameters_of(model)
    if "labels" in names:
        return True
    inner = _wrapped(model) if hands_on else None
    return inner is not None and takes_labels(inner)


def _parameters_of(model: nn.Module) -> tuple[set[str], bool]:
    """Names of the arguments of a network's forward, and whether it takes any others too."""
    try:
        parameters = inspect.signature(model.forward).parameters
    except ValueError:  # a method of TorchScript has a schema instead
        schema = getattr(model.forward, "schema", None)
        return {argument.name for argument in schema.arguments} if schema is not None else set(), False
    variadic = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return set(parameters), any(one.kind in variadic for one in parameters.values())


def _wrapped(model: nn.Module) -> nn.Module | None:
    """The network inside a wrapper, by the names of PyTorch's own wrappers, or the only child."""
    named = [model._modules.get(name) for name in ("_orig_mod", "module")]
    children = list(model.children())
    return next((one for one in named if one is not None), children[0] if len(children) == 1 else None)


def make_lazy_parameters(name: str, model: nn.Module, spec: DatasetSpec) -> None:
    """Make the parameters that a network leaves to its first forward pass: an optimizer and a trace need all of them.

    Args:
        name: name of the network, for errors.
        model: network, changed in place; one without lazy parameters is not run.
        spec: the data set whose images it takes.

    Raises:
        ConfigurationError: the forward pass leaves some of them unmade.
    """
    training = model.training
    # A pass in training mode, which changes statistics, runs only if evaluation does not reach a layer.
    for mode in (False, True):
        if any(_lazy(model)):
            device = next(iter([*model.parameters(), *model.buffers()])).device
            images = torch.zeros(2, *spec.shape, dtype=torch.float32, device=device)
            labels = {"labels": torch.zeros(2, dtype=torch.int64, device=device)} if takes_labels(model) else {}
            model.train(mode)
            with torch.no_grad():
                model(images, **labels)
    model.train(training)
    left = next(_lazy(model), None)
    if left is not None:
        raise ConfigurationError(
            f"model '{name}' never makes its lazy parameter '{left}': its forward pass does not use it",
            "remove that layer, or give its sizes",
        )


def _lazy(model: nn.Module) -> Iterator[str]:
    return (name for named in (model.named_parameters(), model.named_buffers()) for name, one in named if is_lazy(one))
