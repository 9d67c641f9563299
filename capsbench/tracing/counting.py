"""A CPU allocator of our own around torch's (`native/allocator.cpp`): exact counts, a log, and a capacity in bytes of tensors.

Compiled on first use. Once installed it stays for the life of the process.
"""

import ctypes
from functools import cache
from pathlib import Path

import numpy as np

from capsbench.system.native import NativeLibrary, built
from capsbench.tracing.trace import Integers


@cache
def allocator_library() -> NativeLibrary:
    """The compiled allocator, or the reason that there is none."""
    found = built(Path(__file__).parent / "native" / "allocator.cpp", "counting_install")
    if found.library is not None:
        found.library.counting_alive.restype = ctypes.c_int64
        found.library.counting_limit.argtypes = [ctypes.c_int64]
        found.library.counting_readers.restype = ctypes.c_int64
        found.library.counting_read.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    return found


@cache
def installed() -> ctypes.CDLL | None:
    """Install the allocator for all tensors on a CPU and return it; None where it cannot be had."""
    found = allocator_library().library
    return found if found is not None and found.counting_install() else None


def reason_not_installed() -> str:
    """The reason that it cannot be had."""
    return allocator_library().reason or "another CPU allocator has precedence"


def alive() -> int:
    """Bytes of tensors made since it was installed, and not freed since."""
    return int(_allocator().counting_alive())


def limit(capacity: int | None) -> None:
    """Let this many bytes of tensors be allocated from now on, or any number; beyond them torch raises `OutOfMemoryError`."""
    _allocator().counting_limit(-1 if capacity is None else capacity)


class Log:
    """Allocations and frees from now on, until the log is closed."""

    def __init__(self) -> None:
        self._allocator = _allocator()
        self._first = int(self._allocator.counting_readers(1))
        self._events: Integers | None = None

    def __len__(self) -> int:
        """Number of events so far."""
        if self._events is not None:
            return len(self._events)
        return int(self._allocator.counting_readers(0)) - self._first

    def close(self) -> Integers:
        """`[N, 2]`, the address and the bytes of each event; bytes are negative where the block was freed."""
        if self._events is None:
            events = np.empty((len(self), 2), dtype=np.int64)
            self._allocator.counting_read(self._first, len(events), events.ctypes.data)
            self._allocator.counting_readers(-1)
            self._events = events
        return self._events


def _allocator() -> ctypes.CDLL:
    found = installed()
    if found is None:
        raise RuntimeError(f"no allocator can count bytes: {reason_not_installed()}")
    return found
