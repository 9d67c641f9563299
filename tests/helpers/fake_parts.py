"""Parts of a day with a GPU that need none: some fail, one hangs, one ends its process. Run by `python -m helpers.fake_parts`."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.child import Bench, Items
from benchmarks.gpu.parts import Part
from benchmarks.gpu.results import Found

LONG = 600.0


def part(name: str, seconds: float = 60.0) -> Part:
    """The part whose items the function of this name makes."""
    return Part(name, name.title(), seconds, f"helpers.fake_parts:{name}")


def _tried(bench: Bench, name: str) -> Found:
    """Figures of an item that adds a line to a file each time it is tried."""
    with (bench.folder / f"{name}.tried").open("a") as file:
        file.write("tried\n")
    return {"step_ms": 1.5, "peak_bytes": 3 * 2**20}


def works(bench: Bench) -> Items:
    return {name: partial(_tried, bench, f"works-{name}") for name in ("one", "two")}


def fails(bench: Bench) -> Items:
    """The first item fails until a file is there."""

    def first() -> Found:
        _tried(bench, "fails-first")
        if not (bench.folder / "fixed").exists():
            raise ValueError("not yet\nfixed")
        return {"figure": 1}

    return {"first": first, "second": partial(_tried, bench, "fails-second")}


def hangs(bench: Bench) -> Items:
    """The second item starts a process and waits for it in vain, until a file is there."""

    def second() -> Found:
        if not (bench.folder / "fixed").exists():
            child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({LONG})"])
            (bench.folder / "child.pid").write_text(str(child.pid))
            child.wait()
        return {"figure": 2}

    return {"first": partial(_tried, bench, "hangs-first"), "second": second, "third": partial(_tried, bench, "hangs-third")}


def stubborn(bench: Bench) -> Items:
    """An item that does not end when it is asked to."""

    def item() -> Found:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        time.sleep(LONG)
        return {}

    return {"item": item}


def killed(bench: Bench) -> Items:
    """The first item ends its process by a signal."""
    return {"first": lambda: os.kill(os.getpid(), signal.SIGSEGV), "second": partial(_tried, bench, "killed-second")}


def lost(bench: Bench) -> Items:
    """The first item leaves its process with a device that fails every call."""

    def first() -> Found:
        def synchronize() -> None:
            raise RuntimeError("an illegal memory access was encountered")

        cuda = SimpleNamespace(is_initialized=lambda: True, synchronize=synchronize)
        sys.modules["torch"] = SimpleNamespace(cuda=cuda)
        raise RuntimeError("an illegal memory access was encountered")

    def second() -> Found:
        return {"error": "in the lost process"} if "torch" in sys.modules else {"figure": 3}

    return {"first": first, "second": second}


def says_error(bench: Bench) -> Items:
    """An item that has figures, and an error as well."""
    return {"item": lambda: {"passed": 5, "error": "1 test failed"}}


if __name__ == "__main__":
    sys.exit(main(parts=[part(name) for name in ("works", "hangs")], least=0.1))
