"""Networks of other authors: their import, their arguments, and the parameters that their constructors leave unmade."""

import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from capsbench.cases.carried import extend_search_path
from capsbench.catalog import DatasetSpec
from capsbench.errors import ConfigurationError, error_line, error_place, making_failure, step_failure, suggesting
from capsbench.system.paths import anchored, expanded, start

_MOST_NAMES = 8
"""Most names of functions that the hint of an error lists."""
NAME_FORMS = "name it package.module:name, from where Python can import it, or path/to/file.py:name"


_IMPORTING: list[str] = []
"""Names of the networks whose modules are being imported, the innermost last."""


@contextmanager
def _importing(name: str) -> Iterator[None]:
    """Note that a network's module is being imported inside."""
    _IMPORTING.append(name)
    try:
        yield
    finally:
        _IMPORTING.pop()


def refuse_while_importing() -> None:
    """Refuse to measure or predict while a network's module is being imported.

    Each process that measures the network imports its module. If that began another measurement, its processes would import the
    module again, without end.

    Raises:
        ConfigurationError: a module is being imported.
    """
    if _IMPORTING:
        raise ConfigurationError(
            f"model '{_IMPORTING[-1]}': its module measures or predicts when it is imported, as every measuring process does",
            "put what it measures below: if __name__ == '__main__':",
        )


def imported(name: str, path: str) -> Any:
    """The object behind `package.module:name`, or `path/to/file.py:name`.

    Args:
        name: name as the user wrote it, for errors.
        path: the module or file, and the object's name in it.

    Raises:
        ConfigurationError: it cannot be imported, or Python's module hides a file of the working directory.
    """
    module, _, attribute = path.rpartition(":")
    if module.endswith(".py"):
        module = _module_of_file(name, module)
    if "" not in sys.path and str(start()) not in sys.path:
        # A user's module usually lies in the working directory, which comes last so that it hides no installed package.
        sys.path.append(str(start()))
    extend_search_path()
    try:
        with _importing(name):
            target: object = importlib.import_module(module)
        _refuse_hidden(name, sys.modules[module.partition(".")[0]])
        for part in attribute.split("."):
            target = _attribute(name, target, part)
    except ConfigurationError:
        raise
    except (Exception, SystemExit) as error:  # a user's module may raise anything when it is imported
        unknown = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        hint = NAME_FORMS if unknown or not module else f"the module itself fails: python -c 'import {module}' shows where"
        raise ConfigurationError(f"model '{name}' cannot be imported: {error_line(error)}", hint) from None
    return target


def _attribute(name: str, owner: object, attribute: str) -> object:
    """An attribute of a module, or of what is in it.

    Raises:
        ConfigurationError: there is none; the hint begins with the nearest that could make a network.
    """
    try:
        found: object = getattr(owner, attribute)
        return found
    except AttributeError as error:
        # Those that are there already: to ask a module that imports its parts when they are used for all would import all.
        there = getattr(owner, "__dict__", {})
        known = [one for one, value in there.items() if callable(value) and not one.startswith("_")]
        others = f"name one of {', '.join(known[:_MOST_NAMES])}" if known else "it has no function or class yet"
        raise ConfigurationError(
            f"model '{name}' cannot be imported: {error_line(error)}", suggesting(attribute, known, others)
        ) from None


def module_of(path: str) -> str:
    """The name of the imported module of `package.module:name`, or of `path/to/file.py:name`, in `sys.modules`."""
    module = path.rpartition(":")[0]
    return Path(module).stem if module.endswith(".py") else module


def _module_of_file(name: str, file: str) -> str:
    """Import a file under its own name, as its neighbours in its folder import it, and return that name.

    Raises:
        ConfigurationError: there is no such file, or another module has its name.
    """
    place = anchored(expanded(file)).resolve()
    stem = place.stem
    if not place.is_file():
        raise ConfigurationError(f"model '{name}': there is no file {place}", NAME_FORMS)
    known = sys.modules.get(stem)
    if known is not None and Path(getattr(known, "__file__", None) or "/").resolve() != place:
        raise ConfigurationError(
            f"model '{name}': another module is imported as {stem}: {getattr(known, '__file__', None) or 'a part of Python'}",
            "rename the file, since its functions are found by the name of their module",
        )
    if known is None:
        if str(place.parent) not in sys.path:
            sys.path.append(str(place.parent))
        spec = importlib.util.spec_from_file_location(stem, place)
        if spec is None or spec.loader is None:
            raise ConfigurationError(f"model '{name}': {place} is not a file of Python", NAME_FORMS)
        module = importlib.util.module_from_spec(spec)
        sys.modules[stem] = module
        try:
            with _importing(name):
                spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[stem]
            if isinstance(error, ConfigurationError):
                raise
            raise ConfigurationError(
                f"model '{name}' cannot be imported: {error_line(error)} ({error_place(error)})", "fix the file, or name another"
            ) from (None if isinstance(error, Exception) else error)
    return stem


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


FACTORY_CALL = "its factory is called with (in_shape, num_classes, blocks)"
CASE_CALL = "it is called with its settings by name, and must return capsbench.Case(module, inputs)"


@contextmanager
def noting_call(how: str) -> Iterator[None]:
    """Note on an error of a user's function, which is called inside, how it was called: `step_error` reads it."""
    try:
        yield
    except (Exception, SystemExit) as error:
        error.add_note(how)
        raise


_MISFIT = re.compile(r"\b(shapes?|sizes?|dim|dims|dimensions?|dtypes?|positional arguments?|keyword arguments?)\b")
"""Words of errors about tensors or arguments that do not fit each other."""


TRAIN_CALL = "train(module, optimizer, batch) is given"
"""Beginning of the note on an error of a step of a case's own, which lists what the step was given."""
_MISUSED = (TypeError, AttributeError, LookupError, ValueError)
"""Errors of code that takes what it is given for something else."""


def step_error(model: str, error: BaseException, *, otherwise: str = "", most: int | None = None) -> ConfigurationError:
    """The error for a network that raised one in a step, or when it was made for the step.

    Args:
        model: name of the network.
        error: what it raised.
        otherwise: what may be the reason if the step runs outside this package.
        most: most characters of its message.
    """
    notes = getattr(error, "__notes__", ())
    made = next((note for note in notes if note in (FACTORY_CALL, CASE_CALL)), None)
    if made is not None:
        return ConfigurationError(f"{making_failure(model)}{error_line(error, most)} ({error_place(error)})", made)
    given = next((note for note in notes if note.startswith(TRAIN_CALL)), None)
    if given is not None and isinstance(error, _MISUSED):
        return ConfigurationError(f"{step_failure(model)}{error_line(error, most)} ({error_place(error)})", given)
    misfit = isinstance(error, RuntimeError | ValueError | TypeError | IndexError) and _MISFIT.search(str(error))
    return ConfigurationError(
        f"{step_failure(model)}{error_line(error, most)} ({error_place(error)})",
        "make inputs, network and loss fit each other; the same error comes where they are called in Python"
        if misfit
        else f"call the network and its loss in Python, where the same error comes{otherwise}",
    )


def takes_labels(model: nn.Module) -> bool:
    """Return whether a network takes `labels` in addition to images, as capsule networks do.

    A wrapper that passes on its arguments (`torch.compile`, `DataParallel`, an adapter) takes what its network takes.
    """
    names, hands_on = _parameters_of(model)
    if "labels" in names or not hands_on:
        return "labels" in names
    # The network inside a wrapper, by the names of PyTorch's own wrappers, or the only child.
    named = [model._modules.get(name) for name in ("_orig_mod", "module")]
    children = list(model.children())
    inner = next((one for one in named if one is not None), children[0] if len(children) == 1 else None)
    return inner is not None and takes_labels(inner)


_CLASSIFIERS_ARGUMENTS = len(("in_shape", "num_classes", "blocks"))


def settings_of(factory: Callable[..., object]) -> dict[str, Any] | None:
    """The settings of a function that makes cases, by name with their defaults; None for one that makes classifiers.

    A function that makes classifiers takes `(in_shape, num_classes, blocks)` by position. One that makes cases takes what it
    likes by keyword, all with defaults.
    """
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):  # a callable of C
        return None
    by_position = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL}
    first = next(iter(parameters), None)
    places = sum(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters)
    if first is not None and isinstance(first.default, tuple) and places >= _CLASSIFIERS_ARGUMENTS:  # a shape, with a default
        return None
    if any(
        one.name == "in_shape" or one.kind in by_position or (one.default is one.empty and one.kind is not one.VAR_KEYWORD)
        for one in parameters
    ):
        return None
    return {one.name: one.default for one in parameters if one.kind is not one.VAR_KEYWORD}


def _parameters_of(model: nn.Module) -> tuple[set[str], bool]:
    """Names of the arguments of a network's forward, and whether it takes any others too."""
    try:
        parameters = inspect.signature(model.forward).parameters
    except ValueError:  # a method of TorchScript has a schema instead
        schema = getattr(model.forward, "schema", None)
        return {argument.name for argument in schema.arguments} if schema is not None else set(), False
    variadic = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return set(parameters), any(one.kind in variadic for one in parameters.values())


def call_with_images(model: nn.Module, spec: DatasetSpec) -> object:
    """The output of a classifier for two black images of a data set, on the device of its parameters."""
    device = next(iter([*model.parameters(), *model.buffers()])).device
    images = torch.zeros(2, *spec.shape, dtype=torch.float32, device=device)
    labels = {"labels": torch.zeros(2, dtype=torch.int64, device=device)} if takes_labels(model) else {}
    return model(images, **labels)


def make_lazy_parameters(name: str, model: nn.Module, call: Callable[[], object]) -> None:
    """Make the parameters that a network leaves to its first forward pass: an optimizer and a trace need all of them.

    Args:
        name: name of the network, for errors.
        model: network, changed in place; one without lazy parameters is not run.
        call: runs its forward pass.

    Raises:
        ConfigurationError: the forward pass leaves some of them unmade.
    """
    if not any(_lazy(model)):
        return
    training = model.training
    # A pass in training mode, which changes statistics, runs only if evaluation does not reach a layer.
    for mode in (False, True):
        if any(_lazy(model)):
            model.train(mode)
            with torch.no_grad():
                call()
    model.train(training)
    left = next(_lazy(model), None)
    if left is not None:
        raise ConfigurationError(
            f"model '{name}' never makes its lazy parameter '{left}': its forward pass does not use it",
            "remove that layer, or give its sizes",
        )


def _lazy(model: nn.Module) -> Iterator[str]:
    return (name for named in (model.named_parameters(), model.named_buffers()) for name, one in named if is_lazy(one))
