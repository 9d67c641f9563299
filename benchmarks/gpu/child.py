"""The process of one part: it tries the part's items one by one, and keeps each as soon as it has its figures.

Started by `day.py` with the part's name, its function, the folder, the device, the seconds that it has, a name of the call, and
the folder of the data sets (empty for none). Exit status 0: every item is there; 1: some failed.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, TypeAlias

from benchmarks.gpu.day import AGAIN
from benchmarks.gpu.parts import SIZES, Sizes
from benchmarks.gpu.results import Found, PartResults

Items: TypeAlias = dict[str, Callable[[], Found]]
"""Functions that measure the items of a part, by name, in the order of their worth."""


class Bench(NamedTuple):
    """Device, folder and sizes of a part, and its end."""

    device: str
    """`cuda` or `cpu`."""
    folder: Path
    """The folder of the results."""
    end: float
    """The moment of `time.monotonic` at which the process is ended."""
    data: Path | None
    """The folder of the real data sets, if one was named."""
    sizes: Sizes

    def left(self) -> float:
        """Seconds until the process is ended."""
        return self.end - time.monotonic()


def try_items(items: Items, results: PartResults, call: str) -> int:
    """Try the items that are not there, and return the exit status.

    Those that failed before come after those that were never tried: one that hangs must not keep the others from their turn.
    Those that failed in this call are left alone.
    """
    known = results.items()
    left = [name for name in items if "error" in known.get(name, {"error": ""}) and known.get(name, {}).get("call") != call]
    left.sort(key=lambda name: name in known)
    for place, name in enumerate(left):
        results.trying(name, call)
        began = time.monotonic()
        try:
            found = items[name]()
        except Exception as error:
            traceback.print_exc()
            found = {"error": " - ".join(f"{type(error).__name__}: {error}".splitlines())[:300]}
        if "error" in found:
            found["call"] = call
        results.keep(name, found)
        shown = ", ".join(f"{key} {value:.5g}" if isinstance(value, float) else f"{key} {value}" for key, value in found.items())
        print(f"{name} ({time.monotonic() - began:.1f} s): {shown}", flush=True)
        if "error" in found and not _device_works() and place + 1 < len(left):
            return AGAIN
    known = results.items()
    return int(any("error" in known.get(name, {"error": ""}) for name in items))


def _device_works() -> bool:
    """Return whether this process can still use its device: after an illegal access, every call on it fails."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except Exception:
        return False
    return True


def _end_with_parent() -> None:
    """End this process and its group once standard input is closed: the command is gone."""
    while os.read(0, 1):  # not by `sys.stdin`, whose lock would be held when this process ends
        pass
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    """Make the items of the part, and try them."""
    began = time.monotonic()
    name, where, folder, device, seconds, call, data = sys.argv[1:]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    bench = Bench(device, Path(folder), began + float(seconds), Path(data) if data else None, SIZES[device])
    module, _, function = where.partition(":")
    items: Items = getattr(import_module(module), function)(bench)
    return try_items(items, PartResults(bench.folder, name), call)


if __name__ == "__main__":
    try:
        status = main()
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # This skips the interpreter's own ending, which could wait for threads of a part that is being ended.
    os._exit(status)
