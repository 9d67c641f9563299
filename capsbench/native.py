"""Compiles the package's C and C++ sources on first use, and keeps what came of it in the user's cache."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from capsbench.paths import user_cache

DISABLED = "CAPSBENCH_NO_COMPILER"
"""Set in the environment, nothing is compiled and nothing compiled is used."""
_LONGEST = 120


@dataclass(frozen=True)
class _Language:
    name: str
    variable: str
    """Names the compiler in the environment, as make has it."""
    compilers: tuple[str, ...]
    flags: tuple[str, ...]
    libraries: tuple[str, ...]
    optional: tuple[str, ...] = ()
    """Flags that a compiler may not know, and that can be done without."""


@dataclass(frozen=True)
class Built:
    """A loaded library, or why there is none."""

    library: ctypes.CDLL | None
    reason: str = ""


@cache
def built(source: Path, symbol: str) -> Built:
    """The library of a source, compiled now if this machine has not yet.

    C is for arithmetic: torch's OpenMP is loaded already and has the same name as the compiler's, so both share one pool of
    threads. C++ is for what extends torch, against whose headers it compiles.

    Args:
        source: `name.c` or `name.cpp`; all files beside it decide whether an older library is still right.
        symbol: one that the library must have.
    """
    if os.environ.get(DISABLED):
        return Built(None, f"{DISABLED} is set")
    language = _c_plus_plus() if source.suffix == ".cpp" else _C
    names = (os.environ.get(language.variable), *language.compilers)
    compiler = next((found for one in names if one and (found := shutil.which(one))), None)
    if compiler is None:
        return Built(None, f"there is no {language.name} compiler ({', '.join(language.compilers)} or ${language.variable})")
    sources = b"".join(path.read_bytes() for path in sorted(source.parent.glob("*.*")))
    decisive = [_identity(compiler), _processor(), *language.flags, *language.libraries]
    key = hashlib.sha256(sources + "\n".join(decisive).encode()).hexdigest()[:16]
    cache, name = user_cache(), f"{source.stem}-{key}.so"
    folder = None if cache is None else cache / "native"
    try:
        return Built(_loaded(folder, name, symbol) or _compiled(compiler, language, source, folder, name))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        return Built(None, f"{Path(compiler).name} failed: {(said.strip().splitlines() or [''])[0][:200]}")


_C = _Language(
    "C",
    "CC",
    ("cc", "gcc", "clang"),
    ("-std=c99", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"),
    ("-lm",),
    # A compiler without OpenMP still makes the kernels, for one thread.
    ("-fopenmp",),
)


def _c_plus_plus() -> _Language:
    import torch

    home = Path(torch.__file__).parent
    # Where the headers lie says nothing of their version: it is among the flags, and so decides as they do.
    version = f'-DCAPSBENCH_TORCH="{torch.__version__}"'
    flags = ("-std=c++20", "-O2", "-shared", "-fPIC", version, f"-I{home / 'include'}")
    libraries = (f"-L{home / 'lib'}", f"-Wl,-rpath,{home / 'lib'}", "-lc10")
    return _Language("C++", "CXX", ("c++", "g++", "clang++"), flags, libraries)


def _loaded(folder: Path | None, name: str, symbol: str) -> ctypes.CDLL | None:
    """What was compiled before; None where it was not, is damaged, or others may have written it."""
    try:
        if folder is None or not _is_own(folder) or not _is_own(folder / name):
            return None
        library = ctypes.CDLL(str(folder / name))
    except OSError:
        return None
    return library if hasattr(library, symbol) else None


def _is_own(path: Path) -> bool:
    """Whether this user alone can write here: what is loaded runs."""
    found = path.stat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o022


def _compiled(compiler: str, language: _Language, source: Path, folder: Path | None, name: str) -> ctypes.CDLL:
    """Written beside and renamed: two processes may compile at once, and one may be killed."""
    # Without a cache of its own to write to, this process compiles for itself and leaves nothing.
    kept = folder if folder is not None and _is_writable(folder) else None
    with tempfile.TemporaryDirectory(dir=kept) as made:
        written = Path(made) / name
        _run([compiler, *language.flags, str(source), "-o", str(written), *language.libraries], language.optional)
        written.chmod(0o700)
        return ctypes.CDLL(str(written if kept is None else written.replace(kept / name)))


def _is_writable(folder: Path) -> bool:
    """Whether a folder, which is made where it is not there, is this user's own to write to."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return _is_own(folder) and os.access(folder, os.W_OK)
    except OSError:
        return False


def _run(command: list[str], optional: tuple[str, ...]) -> None:
    if optional:
        done = subprocess.run([*command, *optional], capture_output=True, text=True, timeout=_LONGEST, check=False)
        if done.returncode == 0:
            return
    subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST, check=True)


def _identity(compiler: str) -> str:
    """Another version of a compiler lies elsewhere, or was written at another time."""
    path = Path(compiler).resolve()
    return f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}"


def _processor() -> str:
    """What `-march=native` depends on: a home directory may serve several machines."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    kept = dict.fromkeys(line for line in text.splitlines() if line.startswith(("model name", "flags", "Features", "CPU part")))
    return platform.machine() + "".join(kept)
