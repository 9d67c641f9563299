"""The parent's side of cells that take turns: their process is started, asked for rounds, and ended."""

import contextlib
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO, Any, Self

from capsbench.measure.cell import out_of_memory_kills
from capsbench.measure.turn_messages import Built, Failed, Message, RoundRequest, TurnsRequest
from capsbench.measure.variables import variables_of
from capsbench.records import Round, Status
from capsbench.system.families import FAMILY, end_with_family, ended_words, last_line
from capsbench.system.paths import start


class ProcessEnded(Exception):
    """The process of cells that take turns has ended before it was asked to, or was ended because it took too long."""

    def __init__(self, status: Status, message: str, cell: str | None) -> None:
        super().__init__(message)
        self.status: Status = status
        self.message = message
        self.cell = cell
        """Key of the cell that was being built or had its turn, if any."""


class Together:
    """A process in which cells take turns; it is gone, with all that it started, once this context is left.

    Args:
        request: cells; the channel is this object's own.
        timeout_seconds: longest time that a cell may take to be built, or for one turn.

    Raises (`__enter__`, `round`):
        ProcessEnded: the process has ended, or took too long.
    """

    def __init__(self, request: TurnsRequest, timeout_seconds: float) -> None:
        self._request, self._timeout = request, timeout_seconds
        self._active: str | None = None
        self._unread = b""
        self._end_of_process: list[int] = []
        self.built: dict[str, Built] = {}
        """The cells that could be built, by key."""
        self.failed: dict[str, Failed] = {}
        """The cells that failed, by key."""

    def __enter__(self) -> Self:
        """Start the process, and wait until its cells are built."""
        self._held = contextlib.ExitStack()
        try:
            self._start()
            while not self._message().ready:
                pass
        except BaseException:
            self._held.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._held.close()

    def round(self, number: int, cells: Sequence[str]) -> Round | None:
        """Have these cells take a turn each, in this order; None if none of them could."""
        self._ours.sendall(RoundRequest(number=number, cells=list(cells)).model_dump_json().encode() + b"\n")
        while True:
            message = self._message()
            if message.round is not None or message.ready:
                self._active = None
                return message.round

    def _start(self) -> None:
        family = secrets.token_hex(8)
        self._kills_before = out_of_memory_kills()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._held.callback(self._errors.close)
        self._ours, theirs = socket.socketpair()
        self._held.callback(self._ours.close)
        request_end, request_source = os.pipe()
        self._held.callback(os.close, request_source)
        with theirs:
            # -P: a folder `capsbench` in the working directory must not replace the installed package.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "capsbench.measure.turns"],
                stdin=request_end,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env={**variables_of("time", shared=self._request.shared), FAMILY: family},
                cwd=start(),  # a user's module is found here, although it may have changed this process's folder
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the other
                pass_fds=[theirs.fileno()],
            )
            self._held.callback(end_with_family, self._process, family)
            with contextlib.suppress(AttributeError, OSError):  # not Linux
                descriptor = os.pidfd_open(self._process.pid)
                self._held.callback(os.close, descriptor)
                self._end_of_process = [descriptor]
            os.close(request_end)
            request = self._request.model_copy(update={"channel": theirs.fileno()})
            with contextlib.suppress(BrokenPipeError):  # it has ended already, which the wait for its first message reports
                os.write(request_source, request.model_dump_json().encode() + b"\n")

    def _message(self) -> Message:
        """Wait for the next message."""
        until = time.monotonic() + self._timeout
        while b"\n" not in self._unread:
            # Processes that it has started may keep its end of the socket open after it has ended.
            sources: list[socket.socket | int] = [self._ours, *self._end_of_process]
            readable, _, _ = select.select(sources, [], [], max(0.0, until - time.monotonic()))
            if readable and self._ours not in readable:
                raise self._ended()
            if not readable:
                raise ProcessEnded("timeout", f"no answer in {self._timeout:g} s while cells took turns", self._active)
            with contextlib.suppress(ConnectionError):
                if received := self._ours.recv(2**16):
                    self._unread += received
                    continue
            raise self._ended()
        line, _, self._unread = self._unread.partition(b"\n")
        message = Message.model_validate_json(line)
        self._active = message.active or self._active
        if message.built is not None:
            self.built[message.built.cell] = message.built
        if message.failed is not None:
            self.failed[message.failed.cell] = message.failed
        return message

    def _ended(self) -> ProcessEnded:
        """The end of the process in words, with the cell that it was about."""
        status: Any = self._process.wait()
        if status == -signal.SIGKILL and out_of_memory_kills() > self._kills_before:
            return ProcessEnded(
                "oom", "the system's out-of-memory killer ended the process of cells that took turns", self._active
            )
        self._errors.seek(0)
        printed = self._errors.read()
        outcome: Status = "oom" if "cannot allocate memory" in last_line(printed).lower() else "error"
        return ProcessEnded(outcome, f"the process of cells that took turns {ended_words(status, printed)}", self._active)
