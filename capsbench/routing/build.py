"""Compiles the package's C sources on first use, and keeps what came of it in the user's cache."""

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

import platformdirs

FLAGS = ("-std=c99", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
OPENMP = "-fopenmp"
DISABLED = "CAPSBENCH_NO_COMPILER"
"""Set in the environment, nothing is compiled and nothing compiled is used."""
_LONGEST = 120


@dataclass(frozen=True)
class Built:
    """A loaded library, or why there is none."""

    library: ctypes.CDLL | None
    reason: str = ""


@cache
def built(folder: Path, name: str, symbol: str) -> Built:
    """The library of `folder/name.c`, compiled now if this machine has not yet.

    torch's OpenMP is loaded already and has the same name as the compiler's, so both share one pool of threads.

    Args:
        folder: with the source and what it includes; all of it decides whether an older library is still right.
        name: without its suffix.
        symbol: one that the library must have.
    """
    if os.environ.get(DISABLED):
        return Built(None, f"{DISABLED} is set")
    names = (os.environ.get("CC"), "cc", "gcc", "clang")
    compiler = next((found for one in names if one and (found := shutil.which(one))), None)
    if compiler is None:
        return Built(None, "there is no C compiler (cc, gcc, clang or $CC)")
    sources = b"".join(path.read_bytes() for path in sorted(folder.glob("*.*")))
    key = hashlib.sha256(sources + "\n".join([_identity(compiler), _processor(), *FLAGS]).encode()).hexdigest()[:16]
    target = Path(platformdirs.user_cache_dir("capsbench")) / "native" / f"{name}-{key}.so"
    try:
        return Built(_loaded(target, symbol) or _compiled(compiler, folder / f"{name}.c", target))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        return Built(None, f"{Path(compiler).name} failed: {(said.strip().splitlines() or [''])[0][:200]}")


def _loaded(target: Path, symbol: str) -> ctypes.CDLL | None:
    """What was compiled before; None where it was not, is damaged, or others may have written it."""
    try:
        if not _is_own(target.parent) or not _is_own(target):
            return None
        library = ctypes.CDLL(str(target))
    except OSError:
        return None
    return library if hasattr(library, symbol) else None


def _is_own(path: Path) -> bool:
    """Whether this user alone can write here: what is loaded runs."""
    found = path.stat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o022


def _compiled(compiler: str, source: Path, target: Path) -> ctypes.CDLL:
    """Written beside and renamed: two processes may compile at once, and one may be killed."""
    folder = target.parent
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = _is_own(folder) and os.access(folder, os.W_OK)
    except OSError:
        kept = False
    # Without a cache of its own to write to, this process compiles for itself and leaves nothing.
    with tempfile.TemporaryDirectory(dir=folder if kept else None) as made:
        written = Path(made) / target.name
        _run(compiler, source, written)
        written.chmod(0o700)
        return ctypes.CDLL(str(written.replace(target) if kept else written))


def _run(compiler: str, source: Path, target: Path) -> None:
    command = [compiler, *FLAGS, str(source), "-o", str(target), "-lm"]
    threaded = subprocess.run([*command, OPENMP], capture_output=True, text=True, timeout=_LONGEST, check=False)
    if threaded.returncode:
        # A compiler without OpenMP still makes the kernels, for one thread.
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
