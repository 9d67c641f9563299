"""Workers that count bytes as forks of one process, `python -m capsbench.measure.forkserver`, which has imported everything.

Importing torch and all that a first step needs takes a process longer than the step. A fork has the modules, and nothing else of
another cell: the process that it comes from has computed nothing, and has no thread. Times are taken by processes of their own,
since their environment is another one, and so are bytes on CUDA, whose context no fork could share.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from capsbench.system.families import FAMILY
from capsbench.system.garbage import freeze_for_good

_NO_FAMILY = "0" * 16
_START_SECONDS = 120.0
"""Seconds after which a process that has not imported everything is taken to have failed."""

_LONGEST_REQUEST = 65_536
_NUMBER = struct.Struct("!i")

_IMPORTED = (
    "capsbench.measure.worker",
    # The first optimizer and the first trace of a process import these.
    "sympy.printing",
    "torch._dynamo",
    "torch.fx.experimental.symbolic_shapes",
)


class Forks:
    """The caller's side, which starts the process with the first worker, and ends it with `close`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._variables: dict[str, str] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def start(self, streams: Sequence[int], variables: Mapping[str, str], folder: Path) -> "Fork | None":
        """Start a worker.

        Args:
            streams: descriptors of its standard input, output and error.
            variables: its environment variables.
            folder: its working directory.

        Returns:
            The worker, in a session of its own; None where it has to be started without this class.
        """
        if not _can_watch():
            return None
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            try:
                request = json.dumps({"family": variables[FAMILY], "folder": os.fspath(folder)}).encode()
                socket.send_fds(self._ready(variables), [request], [*streams, theirs.fileno()])
                theirs.close()
                ours.settimeout(_START_SECONDS)
                return Fork(ours)
            except (OSError, EOFError):
                ours.close()
                self.close()
                return None

    def _ready(self, variables: Mapping[str, str]) -> socket.socket:
        """The channel to a process with these variables."""
        common = {name: value for name, value in variables.items() if name != FAMILY} | {FAMILY: _NO_FAMILY}
        if self._channel is None or common != self._variables:
            self.close()
            self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                # -P: a folder `capsbench` in the working directory must not replace the installed package.
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "capsbench.measure.forkserver"],
                    stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=common,
                    start_new_session=True,  # Ctrl-C reaches the caller alone, which then ends the workers
                )  # fmt: skip
            self._variables = common
        return self._channel

    def close(self) -> None:
        """End the process; workers that run are not touched."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()


class Fork:
    """A worker, with what is needed here of `subprocess.Popen`.

    Args:
        reply: socket on which the worker sends its number, and then the process that it comes from its status.

    Raises:
        OSError: it has sent no number in time.
        EOFError: it could not be made.
    """

    def __init__(self, reply: socket.socket) -> None:
        self._reply = reply
        self.pid = self._receive()
        self._reply.settimeout(None)
        self.returncode = 0

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, and return its exit status, or the negative number of the signal that ended it.

        Raises:
            subprocess.TimeoutExpired: it has not ended in this many seconds.
        """
        self._reply.settimeout(timeout)
        try:
            self.returncode = self._receive()
        except TimeoutError:
            raise subprocess.TimeoutExpired("capsbench.measure.worker", timeout or 0.0) from None
        except (OSError, EOFError):  # the process that it came from is gone, and its status with it
            self.returncode = -signal.SIGKILL
        self._reply.close()
        return self.returncode

    def _receive(self) -> int:
        found = self._reply.recv(_NUMBER.size)
        if len(found) < _NUMBER.size:
            raise EOFError
        return int(_NUMBER.unpack(found)[0])


def _can_watch() -> bool:
    """Return whether the system shows the end of a process to others than its parent, as Linux does."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


# The side of the process that forks


class _Workers:
    """The workers that have not been waited for, by the descriptors on which something is heard of them."""

    def __init__(self) -> None:
        self.running: dict[int, tuple[int, socket.socket]] = {}
        """Number and reply of those that run, by the descriptors of their processes."""
        self.ended: dict[int, tuple[int, socket.socket]] = {}
        """Number and reply of those that have ended, by the descriptors of their replies, which the caller closes."""

    def add(self, pid: int, reply: socket.socket) -> None:
        """Watch a worker."""
        self.running[os.pidfd_open(pid)] = pid, reply

    def heard(self, descriptor: int) -> None:
        """Report a worker that has ended, or forget one whose end the caller knows.

        Until then its number stays taken, so that a signal of the caller cannot reach another process.
        """
        if descriptor in self.running:
            pid, reply = self.running.pop(descriptor)
            os.close(descriptor)
            found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            status = 0 if found is None else found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
            with contextlib.suppress(OSError):
                reply.send(_NUMBER.pack(status))
            self.ended[reply.fileno()] = pid, reply
        elif descriptor in self.ended:
            pid, reply = self.ended.pop(descriptor)
            reply.close()
            os.waitpid(pid, 0)

    def descriptors(self) -> list[int]:
        """All descriptors to listen to."""
        return [*self.running, *self.ended]

    def close(self) -> None:
        """Close what a new worker has of the others."""
        for descriptor in self.running:
            os.close(descriptor)
        for _, reply in (*self.running.values(), *self.ended.values()):
            reply.close()


def main() -> None:
    """Import everything, then fork for every request until the caller is gone."""
    channel = socket.socket(fileno=os.dup(0))
    for name in _IMPORTED:
        import_module(name)
    freeze_for_good()
    workers = _Workers()
    while True:
        heard, _, _ = select.select([channel.fileno(), *workers.descriptors()], [], [])
        for descriptor in heard:
            workers.heard(descriptor)
        if channel.fileno() in heard:
            request, streams, _, _ = socket.recv_fds(channel, _LONGEST_REQUEST, 4)
            if not request:
                os._exit(0)  # workers end by themselves, as their standard input closes
            reply = socket.socket(fileno=streams.pop())
            pid = os.fork()
            if not pid:
                channel.close()
                workers.close()
                _work(json.loads(request), streams, reply)
            for descriptor in streams:
                os.close(descriptor)
            workers.add(pid, reply)


def _work(request: Mapping[str, str], streams: Sequence[int], reply: socket.socket) -> NoReturn:
    """Be a worker to its end."""
    status = 1
    try:
        os.setsid()
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
            os.close(descriptor)
        sys.stdin, sys.stdout, sys.stderr = (open(number, mode, closefd=False) for number, mode in enumerate("rww"))  # noqa: SIM115
        _join_family(request["family"])
        os.chdir(request["folder"])
        reply.send(_NUMBER.pack(os.getpid()))
        reply.close()
        sys.modules["capsbench.measure.worker"].main()
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(status)


def _join_family(family: str) -> None:
    """Set the variable by which this process and all that it starts are found, where the system lists it as well.

    The system shows the variables with which the first process was started, in its memory, of which this fork has a copy.
    """
    find = ctypes.CDLL(None).getenv
    find.restype = ctypes.c_void_p
    listed = find(FAMILY.encode())
    if listed and os.environ.get(FAMILY) == _NO_FAMILY:
        ctypes.memmove(listed, family.encode(), len(_NO_FAMILY))
    os.environ[FAMILY] = family


if __name__ == "__main__":
    main()
