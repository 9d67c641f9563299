"""Processes and all that they start: ending them together, and describing how one of them ended."""

import contextlib
import os
import signal
from collections.abc import Container, Iterable
from typing import IO, Protocol

import psutil

FAMILY = "CAPSBENCH_FAMILY"
"""Environment variable that a process of ours shares with all that it starts, unless one clears it."""


class Process(Protocol):
    """A process that leads a session, such as a `subprocess.Popen`."""

    pid: int

    def wait(self) -> int:
        """Wait for its end, and return its status."""


def end_with_family(process: Process, token: str, files: Iterable[IO[bytes] | None] = ()) -> None:
    """End a process with its session and its family, wait for it, and close files that were open for it.

    Args:
        process: process that may have ended, and has not been waited for.
        token: its value of `FAMILY`.
        files: its pipes, and a file that it wrote to.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # and any processes that an ended one left in its session
    process.wait()
    end_family(token)
    for file in files:
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()


def end_family(token: str, *, spare: Container[int] = ()) -> None:
    """End every process with this value of `FAMILY`, even one in a session of its own.

    A process that has cleared its environment is not found, nor any if the system lists no processes.

    Args:
        token: value with which the first of them was started.
        spare: numbers of processes to leave alone, in addition to this one.
    """
    # Try a few times, since a process may start another one meanwhile.
    for _ in range(5 if token else 0):
        try:
            found = [one for one in psutil.process_iter() if one.pid not in (0, os.getpid()) and one.pid not in spare]
        except (psutil.Error, OSError):  # the system lists no processes
            return
        members = [one for one in found if _family_of(one) == token]
        if not members:
            return
        for one in members:
            with contextlib.suppress(psutil.Error):
                one.kill()
        psutil.wait_procs(members, timeout=0.2)


def _family_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(FAMILY)
    except (psutil.Error, OSError):  # it has ended, or is another user's
        return None


def ended_words(status: int, printed: bytes) -> str:
    """Words for the end of a process, to follow "the process".

    Args:
        status: its exit status, or the negative number of the signal that ended it.
        printed: its output on standard error.
    """
    if status < 0:
        return f"was ended by {_signal_name(-status)}"
    if status == 0:  # its output is no reason then
        return "ended with status 0 before it was done"
    return f"ended with status {status}: {last_line(printed) or 'no message'}"


def last_words(process: Process, printed: IO[bytes]) -> str:
    """Wait for the end of a process, and describe it by what is in the file that it wrote its errors to."""
    status = process.wait()
    printed.seek(0)
    return ended_words(status, printed.read())


def last_line(printed: bytes) -> str:
    """The last line that a process wrote; empty if it wrote none."""
    return "".join(printed.decode(errors="replace").strip().splitlines()[-1:])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"
