"""Digests of source code, which show whether two measurements are of the same network.

A user's network is its factory's module and all that this imports, except Python's own, installed, and this
package's modules. Sources are read, not run, so that an import inside a function counts too. A digest cannot cover modules whose
names are made when the network is built, and files that are no modules.
"""

import ast
import contextlib
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FunctionType, ModuleType
from typing import NamedTuple

_PACKAGE = Path(__file__).resolve().parent
_DIGITS = 12
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
