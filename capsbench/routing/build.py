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
def built(folder: Path, name: str) -> Built:
    """The library of `folder/name.c`, compiled now if this machine has not yet.

    torch's OpenMP is loaded already and has the same name as the compiler's, so both share one pool of threads.

    Args:
        folder: with the source and what it includes; all of it decides whether an older library is still right.
        name: without its suffix.
    """
    if os.environ.get(DISABLED):
        return Built(None, f"{DISABLED} is set")
    compiler = next(
        (found for name_ in (os.environ.get("CC"), "cc", "gcc", "clang") if name_ and (found := shutil.which(name_))), None
    )
    if compiler is None:
        return Built(None, "there is no C compiler (cc, gcc, clang or $CC)")
    sources = b"".join(path.read_bytes() for path in sorted(folder.glob("*.*")))
    key = hashlib.sha256(sources + "\n".join([compiler, _processor(), *FLAGS]).encode()).hexdigest()[:16]
    target = Path(platformdirs.user_cache_dir("capsbench")) / "native" / f"{name}-{key}.so"
    try:
        return Built(_loaded(target) or ctypes.CDLL(str(_compile(compiler, folder / f"{name}.c", target))))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        return Built(None, f"{Path(compiler).name} failed: {(said.strip().splitlines() or [''])[0][:200]}")


def _loaded(target: Path) -> ctypes.CDLL | None:
    """What was compiled before; None where it was not, or is damaged."""
    try:
        return ctypes.CDLL(str(target))
    except OSError:
        return None


def _compile(compiler: str, source: Path, target: Path) -> Path:
    """Written beside and renamed: two processes may compile at once, and one may be killed."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, suffix=".so")
    except OSError:  # no cache to write to: this process compiles for itself
        handle, name = tempfile.mkstemp(suffix=".so")
        target = Path(name)
    os.close(handle)
    written = Path(name)
    try:
        _run(compiler, source, written)
        written.chmod(0o755)
        return written.replace(target)
    except BaseException:
        written.unlink(missing_ok=True)
        raise


def _run(compiler: str, source: Path, target: Path) -> None:
    command = [compiler, *FLAGS, str(source), "-o", str(target), "-lm"]
    threaded = subprocess.run([*command, OPENMP], capture_output=True, text=True, timeout=_LONGEST, check=False)
    if threaded.returncode:
        # A compiler without OpenMP still makes the kernels, for one thread.
        subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST, check=True)


def _processor() -> str:
    """What `-march=native` depends on: a home directory may serve several machines."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    kept = dict.fromkeys(line for line in text.splitlines() if line.startswith(("model name", "flags", "Features", "CPU part")))
    return platform.machine() + "".join(kept)
