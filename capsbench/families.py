"""Processes and all that they start: how they are ended together, and how one of them ended."""

import contextlib
import os
import signal
from collections.abc import Container

import psutil

FAMILY = "CAPSBENCH_FAMILY"
"""The variable of the environment that a process of ours and all that it starts have in common, unless one clears it."""


def end_family(token: str, *, spare: Container[int] = ()) -> None:
    """End every process that has this value of `FAMILY`, also one that has made a session of its own.

    None is found that has cleared its environment, nor any where the system lists no processes.

    Args:
        token: what the first of them was started with.
        spare: process numbers that are left alone, besides this process.
    """
    # A few times: somebody may start another one meanwhile.
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
    """How a process ended, after "the process".

    Args:
        status: its exit status, or the negative number of the signal that ended it.
        printed: what it wrote to standard error.
    """
    if status < 0:
        return f"was ended by {_signal_name(-status)}"
    if status == 0:  # what it printed is no reason then
        return "ended with status 0 before it was done"
    return f"ended with status {status}: {last_line(printed) or 'no message'}"


def last_line(printed: bytes) -> str:
    """The last line that a process wrote; empty if it wrote none."""
    return "".join(printed.decode(errors="replace").strip().splitlines()[-1:])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"
