"""The worker's side of a task, in the process that a cluster starts: it keeps a station, and hands tasks to it.

The station is a process of its own, with the variables, folder and GPU of the driver's choice, and imports torch once for all
tasks of a device. Nothing here imports torch, so that the cluster's own process stays small and never touches a GPU.
"""

import atexit
import contextlib
import json
import os
import secrets
import select
import socket
import subprocess
import sys
import tempfile
import threading
from typing import IO, cast

from capsbench.sweep.launchers.belongings import unpacked
from capsbench.system.families import FAMILY, end_with_family, last_words

STATION = "capsbench.sweep.launchers.station"
"""The module that a station runs."""

BEAT_SECONDS = 5.0
"""Seconds between two empty lines of a station that measures, by which it shows that it has not been stopped."""

_MOST_BEATS_MISSED = 6
_START_SECONDS = 600.0
"""Time that a station may take to import everything, before its first empty line."""


class StationEnded(Exception):
    """The station has ended without an answer, or was ended because it was silent."""


class _Station:
    """The station of this process, which is started again if it has ended, or for another device or driver."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._printed: IO[bytes] | None = None
        self._unread, self._has_begun = b"", False
        self._family = ""
        self._is_for: tuple[str, str, str | None] | None = None

    def measure(self, task: str, belongings: str, module: str, gpu: str | None) -> str:
        """Have a task measured, and return its findings."""
        process = self._started(belongings, module, gpu)
        # A station that was stopped would take no more of a long task than fits into a pipe.
        threading.Thread(target=_send, args=(process.stdin, task), daemon=True).start()
        try:
            while not (found := self._line(process)):
                pass
        except EOFError:
            words = self._last_words()
            if not self._has_begun and process.returncode > 0:  # it would fail for every task
                return refusal(f"{socket.gethostname()} cannot measure: the process of its cells {words}")
            raise StationEnded(words) from None
        except BaseException:  # it is silent, or the task was cancelled
            self.close()
            raise
        return found.decode()

    def _line(self, process: subprocess.Popen[bytes]) -> bytes:
        """The next line of the station, empty for a sign of life.

        Raises:
            EOFError: the station has ended.
            StationEnded: it gives no sign of life.
        """
        back = cast("IO[bytes]", process.stdout).fileno()
        poll = select.poll()
        poll.register(back, select.POLLIN)
        missed, most = 0, _MOST_BEATS_MISSED if self._has_begun else int(_START_SECONDS / BEAT_SECONDS)
        while b"\n" not in self._unread:
            # Many short waits, not a long one: after both processes were stopped and go on, only the last of them has passed.
            if poll.poll(1000 * BEAT_SECONDS):
                received = os.read(back, 2**16)
                if not received:
                    raise EOFError
                self._unread += received
                missed = 0
            elif (missed := missed + 1) >= most:
                raise StationEnded(f"no sign of life from the station in {most * BEAT_SECONDS:g} s")
        self._has_begun = True
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def close(self) -> None:
        """End the station, and all that it started."""
        process, self._process = self._process, None
        if process is None:
            return
        end_with_family(process, self._family, (process.stdin, process.stdout, self._printed))

    def _started(self, belongings: str, module: str, gpu: str | None) -> subprocess.Popen[bytes]:
        wanted = (belongings, module, gpu)
        if self._process is not None and self._process.poll() is None and self._is_for == wanted:
            return self._process
        self.close()
        folder, variables = unpacked(belongings, os.environ)
        variables.pop("CUDA_VISIBLE_DEVICES", None)
        self._family, self._is_for = secrets.token_hex(8), wanted
        self._unread, self._has_begun = b"", False
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the station
        # -P: a folder `capsbench` in the working directory must not replace the installed package. A station does not use CUDA,
        # and its processes must be able to.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            env={
                **variables,
                FAMILY: self._family,
                "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
                **({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}),
            },
            cwd=folder,
            start_new_session=True,
        )
        return self._process

    def _last_words(self) -> str:
        """Description of the end of the station."""
        process, printed = self._process, self._printed
        if process is None or printed is None:
            return "it could not be started"
        words = last_words(process, printed)
        self.close()
        return words


def _send(to: IO[bytes], task: str) -> None:
    """Send a task to a station, as far as it lives to take it."""
    with contextlib.suppress(BrokenPipeError, ValueError):
        to.write(task.encode() + b"\n")
        to.flush()


_STATION = _Station()
atexit.register(_STATION.close)


def attend(task: str, belongings: str, *, module: str = STATION, gpu: str | None = None) -> str:
    """Measure a task on this machine, and return its findings; both are JSON.

    Args:
        task: a `Task`.
        belongings: as `belongings.packed` made them.
        module: the module that a station runs.
        gpu: name of the GPU that the task has for itself, as CUDA_VISIBLE_DEVICES would have it; None if it has none.

    Raises:
        StationEnded: the station ended without an answer.
    """
    return _STATION.measure(task, belongings, module, None if gpu is None else identity_of(gpu))


def identity_of(gpu: str) -> str:
    """Return a GPU's own identity (UUID) for its number, which means another GPU where devices are sorted in another way."""
    if not gpu.isdecimal():
        return gpu
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            found = pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(int(gpu)))
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # NVML has many exceptions; without it the number has to do
        return gpu
    return found.decode() if isinstance(found, bytes) else str(found)


def refusal(what: str) -> str:
    """Return the findings of a worker that can measure no task."""
    hint = "install the driver's version of capsbench on every node; all that was measured is kept: add `resume`"
    return json.dumps({"refusal": [what, hint], "node": socket.gethostname()})
