"""State outside a network that its code changes, replaced by twins while the network's twin is followed.

A twin has the class of its original, and runs the same code. This code may change attributes of functions and classes, global
variables, and the caches of `functools.lru_cache`. A user's code is searched for all of these. That of installed packages is
taken to have caches and attributes of functions alone; files, and objects of C, are changed for good.
"""

import dis
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor

from capsbench.cases.fingerprint import names_in
from capsbench.tracing.twins import CACHE, TWINNED, Twins, origin_of

_ABSENT = object()
"""The value of a name that is not there."""

Namespace = dict[str, Any] | type
"""Global variables, attributes of a function, or a class with its attributes."""


@contextmanager
def shared_state_replaced(twins: Twins) -> Iterator[None]:
    """Replace the state that twins share with their originals by twins, and put it back.

    Args:
        twins: twins of the network, its inputs and its functions.
    """
    state = _SharedState(twins)
    try:
        state.replace()
        yield
    finally:
        state.put_back()


class _SharedState:
    """The namespaces that code may change, with their contents before."""

    def __init__(self, twins: Twins) -> None:
        self._twins = twins
        self._before: dict[int, tuple[Namespace, dict[str, Any]]] = {}
        """Each namespace, and the values of its names; those that are absent, too."""
        self._whole: set[int] = set()
        """Namespaces of which every new name is to go."""
        self._seen: set[int] = set()

    def replace(self) -> None:
        """Replace all that the code of the twins' originals names."""
        # A twin that is made of what is found may have further code.
        while found := [one for one in list(self._twins.code.values()) if id(one) not in self._seen]:
            for one in found:
                self._visit(one)

    def put_back(self) -> None:
        """Give each name its value from before."""
        for owner, values in self._before.values():
            now = vars(owner) if isinstance(owner, type) else owner
            new = [name for name in now if name not in values and not _is_special(name)] if id(owner) in self._whole else []
            for name, value in [*values.items(), *((name, _ABSENT) for name in new)]:
                present = now.get(name, _ABSENT)
                # A submodule that was imported meanwhile stays in its package.
                if present is not value and not (value is _ABSENT and isinstance(present, ModuleType)):
                    _put(owner, name, value)

    def _visit(self, code: Any) -> None:
        """Replace what a function or a class names."""
        if id(code) in self._seen:
            return
        self._seen.add(id(code))
        if isinstance(code, FunctionType):
            self._visit_function(code)
        elif isinstance(code, type):
            for base in code.__mro__:
                self._visit_class(base)

    def _visit_function(self, function: FunctionType) -> None:
        around = function.__globals__
        origin = origin_of(str(around.get("__name__") or "__main__"))
        if origin == "known":
            return
        self._replace(vars(function), vars(function), whole=True)
        names = names_in(function.__code__)
        if origin == "installed":
            self._replace(around, [name for name in names if isinstance(around.get(name), CACHE)])
            return
        named = _globals_in(function.__code__)
        self._replace(around, named)
        for module in [around[name] for name in named if isinstance(around.get(name), ModuleType)]:
            if origin_of(module.__name__) == "user":
                self._replace(vars(module), names)

    def _visit_class(self, kind: type) -> None:
        origin = origin_of(kind.__module__)
        if id(kind) in self._before or origin == "known" or issubclass(kind, Enum):
            return
        own = {name: value for name, value in vars(kind).items() if not _is_special(name)}
        functions = [function for value in vars(kind).values() for function in _functions_of(value)]
        if origin == "user":
            self._replace(kind, own, whole=True)
        else:
            self._replace(kind, [name for name, value in own.items() if isinstance(value, CACHE)])
        for function in functions:
            self._visit(function)

    def _replace(self, owner: Namespace, names: Iterable[str], *, whole: bool = False) -> None:
        """Replace the values of names by their twins."""
        now = vars(owner) if isinstance(owner, type) else owner
        values = self._before.setdefault(id(owner), (owner, {}))[1]
        if whole:
            self._whole.add(id(owner))
        for name in [one for one in names if one not in values]:
            values[name] = now.get(name, _ABSENT)
            twin = self._twin(values[name])
            if twin is not values[name]:
                _put(owner, name, twin)

    def _twin(self, value: Any) -> Any:
        """The twin of a value that code may change; the value itself if it may not."""
        if isinstance(value, Tensor) and value.layout is not torch.strided:
            return value  # a trace cannot follow it, and refuses it where an operator is given it
        if isinstance(value, staticmethod | classmethod):
            twin = self._twin(value.__func__)
            return value if twin is value.__func__ else type(value)(twin)
        if isinstance(value, FunctionType):
            twin = self._twins.of(value)
            self._visit(value)
            return twin
        if isinstance(value, type):
            self._visit(value)
            return value
        own = origin_of(type(value).__module__) == "user" and bool(getattr(value, "__dict__", None))
        return self._twins.of(value) if isinstance(value, TWINNED) or own or self._twins.has(value) else value


def _put(owner: Namespace, name: str, value: Any) -> None:
    if isinstance(owner, type):
        if value is _ABSENT:
            type.__delattr__(owner, name)
        else:
            type.__setattr__(owner, name, value)
    elif value is _ABSENT:
        del owner[name]
    else:
        owner[name] = value


def _functions_of(value: object) -> list[FunctionType]:
    """The functions that an attribute of a class is made of."""
    if isinstance(value, staticmethod | classmethod | MethodType):
        value = value.__func__
    parts = (value.fget, value.fset, value.fdel) if isinstance(value, property) else (getattr(value, "__wrapped__", value), value)
    return list(dict.fromkeys(one for one in parts if isinstance(one, FunctionType)))


def _globals_in(code: CodeType) -> set[str]:
    """Names of global variables that a code reads or sets, with those of functions inside it."""
    own = {str(one.argval) for one in dis.get_instructions(code) if "GLOBAL" in one.opname or one.opname.endswith("_NAME")}
    return own.union(*(_globals_in(one) for one in code.co_consts if isinstance(one, CodeType)))


def _is_special(name: str) -> bool:
    """Return whether a name is one of Python's own, such as `__init__`."""
    return name.startswith("__") and name.endswith("__")
