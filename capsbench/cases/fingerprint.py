"""Digests of source code, which show whether two measurements are of the same network.

A user's network is its factory's module and all that this imports, except Python's own, installed, and this package's modules;
that of a function of a script or a notebook is its code and all that the code names. Sources are read, not run, so that an
import inside a function counts too. A digest cannot cover modules whose names are made when the network is built, and files that
are no modules.
"""

import ast
import contextlib
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

_PACKAGE = Path(__file__).resolve().parents[1]
_DIGITS = 12
_LONGEST_TEXT = 1000
_INSTALLED = {"site-packages", "dist-packages"}


class Fingerprint(NamedTuple):
    """The source of a network."""

    digest: str
    """Hexadecimal digits."""
    files: dict[str, str]
    """Digest of each file, by its path."""

    def is_current(self) -> bool:
        """Return whether all files are unchanged."""
        return all(_file_digest(Path(path)) == known for path, known in self.files.items())


def fingerprint(module: str) -> Fingerprint | None:
    """The fingerprint of an imported module, of the user's modules and the versions of packages that it imports.

    Args:
        module: dotted name.

    Returns:
        The fingerprint; None if the module has no source, as a built-in one.
    """
    files, versions = _imports(module)
    if not files and not versions:
        return None
    digests = {str(path): _file_digest(path) for path in files.values()}
    parts = [*((name, digests[str(path)]) for name, path in files.items()), *versions.items()]
    text = "".join(f"{name} {part}\n" for name, part in sorted(parts))
    return Fingerprint(hashlib.sha256(text.encode()).hexdigest()[:_DIGITS], digests)


def fingerprint_of_function(function: Callable[..., object]) -> Fingerprint:
    """The fingerprint of a function that no module file holds, by its code and all that this names.

    Functions and classes of the same script or notebook count by their code, modules of the user's by their files, installed
    packages by their versions, and numbers and texts by their values.
    """
    code = _Code()
    code.add(function)
    text = "".join(f"{part}\n" for part in code.parts)
    return Fingerprint(hashlib.sha256(text.encode()).hexdigest()[:_DIGITS], code.files)


class _Code:
    """The parts of a function that decide what it computes, in an order that is the same in every process."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.files: dict[str, str] = {}
        """Digest of each file of the user's modules, by its path."""
        self._modules: set[str] = set()
        self._seen: dict[int, Any] = {}

    def add(self, value: Any) -> None:
        """Add an object that a function names."""
        if isinstance(value, str | int | float | complex | bytes | None):
            self.parts.append(repr(value))
            return
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, list | tuple | set | frozenset):
            ordered = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
            self._add_all(type(value).__name__, ordered)
        elif isinstance(value, Mapping):
            self._add_all("mapping", (part for item in value.items() for part in item))
        elif isinstance(value, ModuleType):
            self._add_module(value.__name__)
        elif isinstance(value, FunctionType | type):
            self._add_definition(value)
        elif isinstance(value, MethodType | staticmethod | classmethod):
            self.add(value.__func__)
        elif isinstance(value, property):
            self._add_all("property", (value.fget, value.fset))
        elif isinstance(value, partial):
            self._add_all("partial", (value.func, value.args, value.keywords))
        else:
            self.parts += [f"object of {type(value).__qualname__}", *_shown(value)]
            self.add(type(value))

    def _add_all(self, kind: str, values: Iterable[Any]) -> None:
        self.parts.append(kind)
        for value in values:
            self.add(value)
        self.parts.append("end")

    def _add_module(self, name: str) -> None:
        if name in self._modules:
            return
        self._modules.add(name)
        found = fingerprint(name)
        self.parts.append(f"module {name} {'' if found is None else found.digest}")
        self.files |= {} if found is None else found.files

    def _add_definition(self, value: Any) -> None:
        """Add a function or a class: by its module if that has a file, and otherwise by its code."""
        module = sys.modules.get(value.__module__ or "")
        self.parts.append(f"{type(value).__name__} {value.__qualname__}")
        if (
            value.__module__ != "__main__"
            and module is not None
            and module.__spec__ is not None
            and "<locals>" not in value.__qualname__
        ):
            self._add_module(value.__module__)
        elif isinstance(value, type):
            self._add_all("bases", value.__bases__)
            shown = {name: one for name, one in vars(value).items() if name not in _NO_CODE}
            self._add_all("class", (part for item in sorted(shown.items()) for part in item))
        else:
            self._add_all("defaults", (value.__defaults__, value.__kwdefaults__))
            self._add_code(value.__code__)
            cells = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
            self._add_all("enclosed", (part for name, cell in cells.items() for part in (name, _content(cell))))
            named = sorted(names_in(value.__code__) & value.__globals__.keys())
            self._add_all("named", (part for name in named for part in (name, value.__globals__[name])))

    def _add_code(self, code: CodeType) -> None:
        self.parts += [code.co_code.hex(), *code.co_names, *code.co_varnames]
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self._add_code(constant)
            else:
                self.parts.append(_constant(constant))


_NO_CODE = {
    "__module__",
    "__doc__",
    "__dict__",
    "__weakref__",
    "__qualname__",
    "__firstlineno__",
    "__static_attributes__",
    "__annotations__",
}
"""Entries of a class that decide nothing of what it computes."""


def _constant(value: object) -> str:
    return repr(sorted(value, key=repr)) if isinstance(value, frozenset) else repr(value)


def _shown(value: object) -> list[str]:
    """The text of an object, if it is short and the same in every process."""
    try:
        text = repr(value)
    except Exception:  # an object may do anything there
        return []
    return [text] if len(text) < _LONGEST_TEXT and " at 0x" not in text else []


def _content(cell: CellType) -> object:
    return None if cell == CellType() else cell.cell_contents


def names_in(code: CodeType) -> set[str]:
    """Names of globals and attributes that a code uses, with those of functions inside it."""
    inner = (names_in(one) for one in code.co_consts if isinstance(one, CodeType))
    return set(code.co_names).union(*inner)


def _file_digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


@cache
def package_digest() -> str:
    """Digest of this package's own source, independent of its version number."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in ("*.py", "*.c", "*.cpp", "*.h") for path in _PACKAGE.rglob(pattern)):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\n" + path.read_bytes())
    return digest.hexdigest()[:_DIGITS]


def _imports(module: str) -> tuple[dict[str, Path], dict[str, str]]:
    """Files of the user's modules that a module imports, directly or not, and versions of the installed packages, by name."""
    files: dict[str, Path] = {}
    versions: dict[str, str] = {}
    seen: set[str] = set()
    left = [module]
    while left:
        name = left.pop()
        top, parent = name.partition(".")[0], name.rpartition(".")[0]
        if name in seen or top in sys.stdlib_module_names:
            continue
        seen.add(name)
        more = [parent] if parent else []
        spec = _spec_of(name)
        if spec is not None and spec.origin is not None and spec.origin not in ("built-in", "frozen", "namespace"):
            path = Path(spec.origin).resolve()
            if path.is_relative_to(_PACKAGE):
                continue
            if not _INSTALLED.isdisjoint(path.parts) or any(path.is_relative_to(place) for place in _installed_places()):
                versions[top] = str(getattr(sys.modules.get(top), "__version__", ""))
                continue
            with contextlib.suppress(OSError):
                source = path.read_bytes()
                files[name] = path
                package = name if spec.submodule_search_locations is not None else parent
                more += [*_imported(source, package), *_named(sys.modules.get(name))]
        left += more
    return files, versions


def _spec_of(name: str) -> ModuleSpec | None:
    """The spec of a module, found without importing anything."""
    loaded = getattr(sys.modules.get(name), "__spec__", None)
    if isinstance(loaded, ModuleSpec):
        return loaded
    parent = name.rpartition(".")[0]
    try:
        if not parent:
            return importlib.util.find_spec(name)
        outer = _spec_of(parent)
        places = outer.submodule_search_locations if outer is not None else None
        return PathFinder.find_spec(name, places) if places is not None else None
    except (ImportError, ValueError, AttributeError):
        return None


def _imported(source: bytes, package: str) -> Iterator[str]:
    """The names that a source imports; of `from a import b` both `a` and `a.b`, which may be a module."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # an extension module, say
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                outer = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join(filter(None, [*outer, base]))
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _named(module: ModuleType | None) -> Iterator[str]:
    """Modules of the objects in a module's namespace, regardless of how they came there."""
    for value in list(_namespace(module).values()) if module is not None else ():
        # By its type, not by `isinstance`: a proxy object may do anything when it is asked for its class.
        kind = type(value)
        if issubclass(kind, ModuleType):
            name = _namespace(value).get("__name__")
        else:
            name = (value if issubclass(kind, FunctionType | type) else kind).__module__
        if isinstance(name, str) and name in sys.modules:
            yield name


def _namespace(module: object) -> dict[str, object]:
    """A module's namespace as it is, without loading a lazy module."""
    return object.__getattribute__(module, "__dict__")


@cache
def _installed_places() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    return tuple(Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))
