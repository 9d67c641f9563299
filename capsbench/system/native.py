"""Compilation of the package's C and C++ sources on first use, kept in the user's cache."""

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

from capsbench.system.paths import user_cache

DISABLED = "CAPSBENCH_NO_COMPILER"
"""Environment variable that switches off compiling and the use of compiled code."""
_LONGEST = 120


@dataclass(frozen=True)
class _Language:
    name: str
    variable: str
    """Environment variable that names the compiler, as for make."""
    compilers: tuple[str, ...]
    flags: tuple[str, ...]
    libraries: tuple[str, ...]
    optional: tuple[str, ...] = ()
    """Flags that a compiler may not know, and that are not essential."""


@dataclass(frozen=True)
class NativeLibrary:
    """A loaded library, or the reason that there is none."""

    library: ctypes.CDLL | None
    reason: str = ""


@cache
def built(source: Path, symbol: str) -> NativeLibrary:
    """The library of a source, compiled now if it is not in this machine's cache.

    C is for arithmetic: torch's OpenMP is loaded already and has the same name as the compiler's, so both share one pool of
    threads. C++ is for extensions of torch, against whose headers it compiles.

    Args:
        source: `name.c` or `name.cpp`; all files in its folder decide whether a cached library is current.
        symbol: one that the library must have.
    """
    if os.environ.get(DISABLED):
        return NativeLibrary(None, f"{DISABLED} is set")
    language = _c_plus_plus() if source.suffix == ".cpp" else _C
    names = (os.environ.get(language.variable), *language.compilers)
    compiler = next((found for one in names if one and (found := shutil.which(one))), None)
    if compiler is None:
        return NativeLibrary(
            None, f"there is no {language.name} compiler ({', '.join(language.compilers)} or ${language.variable})"
        )
    sources = b"".join(path.read_bytes() for path in sorted(source.parent.glob("*.*")))
    program = Path(compiler).resolve()
    # Another version of a compiler has another path or time of writing.
    identity = f"{program} {program.stat().st_size} {program.stat().st_mtime_ns}"
    decisive = [identity, _processor(), *language.flags, *language.libraries]
    key = hashlib.sha256(sources + "\n".join(decisive).encode()).hexdigest()[:16]
    cache, name = user_cache(), f"{source.stem}-{key}.so"
    folder = None if cache is None else cache / "native"
    try:
        return NativeLibrary(_loaded(folder, name, symbol) or _compiled(compiler, language, source, folder, name))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        return NativeLibrary(None, f"{Path(compiler).name} failed: {(said.strip().splitlines() or [''])[0][:200]}")


_C_FLAGS = ("-std=c99", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
# A compiler without OpenMP still makes the kernels, for one thread.
_C = _Language("C", "CC", ("cc", "gcc", "clang"), _C_FLAGS, ("-lm",), ("-fopenmp",))


def _c_plus_plus() -> _Language:
    import torch

    home = Path(torch.__file__).parent
    # The path of the headers does not contain their version, so the version is among the flags, which are part of the key.
    version = f'-DCAPSBENCH_TORCH="{torch.__version__}"'
    flags = ("-std=c++20", "-O2", "-shared", "-fPIC", version, f"-I{home / 'include'}")
    libraries = (f"-L{home / 'lib'}", f"-Wl,-rpath,{home / 'lib'}", "-lc10", "-ltorch_cpu")
    return _Language("C++", "CXX", ("c++", "g++", "clang++"), flags, libraries)


def _loaded(folder: Path | None, name: str, symbol: str) -> ctypes.CDLL | None:
    """The library in the cache; None if there is none, it is damaged, or others may have written it."""
    try:
        if folder is None or not _is_own(folder) or not _is_own(folder / name):
            return None
        library = ctypes.CDLL(str(folder / name))
    except OSError:
        return None
    return library if hasattr(library, symbol) else None


def _is_own(path: Path) -> bool:
    """Return whether this user alone can write here, since loaded code runs."""
    found = path.stat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o022


def _compiled(compiler: str, language: _Language, source: Path, folder: Path | None, name: str) -> ctypes.CDLL:
    """Compile into the target's folder and rename: two processes may compile at once, and one may be killed."""
    # Without a writable cache, this process compiles for itself and keeps nothing.
    kept = folder if folder is not None and _is_writable(folder) else None
    with tempfile.TemporaryDirectory(dir=kept) as made:
        written = Path(made) / name
        _run([compiler, *language.flags, str(source), "-o", str(written), *language.libraries], language.optional)
        written.chmod(0o700)
        return ctypes.CDLL(str(written if kept is None else written.replace(kept / name)))


def _is_writable(folder: Path) -> bool:
    """Return whether a folder, which is made if it is not there, is this user's own to write to."""
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


def _processor() -> str:
    """Identity of the processor, on which `-march=native` depends: a home directory may serve several machines."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    kept = dict.fromkeys(line for line in text.splitlines() if line.startswith(("model name", "flags", "Features", "CPU part")))
    return platform.machine() + "".join(kept)
