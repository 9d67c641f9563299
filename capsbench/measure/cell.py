"""The parent's side of a cell that is measured alone: a fresh process for memory, and one for time, one after the other.

Each needs an environment of its own: the memory process a probe in place before anything is built, the timing process a heap
that keeps its memory.
"""

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
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from capsbench.measure.forkserver import Fork, Forks
from capsbench.measure.limits import died_of_limit
from capsbench.measure.messages import Reply, Request
from capsbench.measure.variables import variables_of
from capsbench.measure.worker import READY
from capsbench.records import Cell, Configuration, Plan, Record
from capsbench.system.families import FAMILY, end_with_family, ended_words, last_line
from capsbench.system.paths import start

DeviceTurn = Callable[[], AbstractContextManager[None]]
"""A function that makes a context which waits until this process has a device to itself, and keeps it until it is left."""


def measure_cell(
    cell: Cell, plan: Plan, *, environment: str, data_directory: Path | None = None, turn: DeviceTurn = nullcontext,
    forks: Forks | None = None,
) -> Record:  # fmt: skip
    """Measure a cell; the record holds whatever happens to its processes.

    Args:
        cell: cell to measure.
        plan: passes, number of samples and time limits.
        environment: key of the machine in environment.json.
        data_directory: folder of the real data sets.
        turn: keeps other sweeps off the device. The time that it waits is no part of the cell's duration.
        forks: makes the processes that count bytes on a CPU; by default each of them imports everything itself.
    """
    started, began = datetime.now(UTC), time.monotonic()
    replies: list[Reply] = []
    for what in plan.passes:
        request = Request(
            configuration=cell.configuration,
            what=what,
            samples=plan.samples,
            budget_seconds=min(plan.budget_seconds, plan.timeout_seconds / 2),  # more samples are not worth a timeout
            data_directory=data_directory,
            strict=plan.strict,
        )
        try:
            replies.append(run_pass(request, plan.timeout_seconds, turn, forks))
        except OSError as error:  # no process, no temporary file: a fault of this cell, not of the sweep
            replies.append(Reply(status="error", message=f"the {what} pass could not start: {error}"))
        if replies[-1].status != "ok":
            break
    last = replies[-1]
    return Record(
        cell=cell,
        status=last.status,
        message=last.message,
        data_source=last.data_source,
        environment=environment,
        started_at=started.isoformat(timespec="seconds"),
        duration_seconds=round(time.monotonic() - began - sum(reply.waited_seconds for reply in replies), 3),
        memory=next((reply.memory for reply in replies if reply.memory), None),
        mean_memory=next((reply.mean_memory for reply in replies if reply.mean_memory), None),
        time=next((reply.time for reply in replies if reply.time), None),
        step=next((reply.step for reply in replies if reply.step), None),
        tf32=last.tf32,
        notes=list(dict.fromkeys(note for reply in replies for note in reply.notes)),
    )


def run_pass(request: Request, timeout_seconds: float, turn: DeviceTurn = nullcontext, forks: Forks | None = None) -> Reply:
    """Run one pass in a fresh process, which is gone when this returns or raises, with all that `end_family` finds of it.

    On a CPU bytes do not depend on other processes, and take no turn; times take a turn once their workload is built. On a
    CUDA device a pass has its turn from beginning to end, because memory that another process holds there is not available.

    Args:
        request: measurement to make.
        timeout_seconds: time that the process may take, without the wait for its turn.
        turn: keeps other sweeps off the device.
        forks: makes the process, if it counts bytes on a CPU.
    """
    kills_before, family = out_of_memory_kills(), secrets.token_hex(8)
    on_cpu = request.configuration.device == "cpu"
    ours, theirs = socket.socketpair()
    # The reply comes through files, not pipes: they never fill, and a child that outlives its worker blocks nothing.
    with (
        ExitStack() as held,
        tempfile.TemporaryFile() as errors,
        tempfile.TemporaryFile() as answer,
        ours,
        theirs,
    ):
        request_end, request_source = os.pipe()
        for end in (request_end, request_source):
            held.callback(os.close, end)
        waited = 0.0 if on_cpu else _enter(turn, held)
        if on_cpu and request.what == "time":
            request = request.model_copy(update={"turn": theirs.fileno()})
        # The worker ends when its standard input closes, so it cannot outlive this process, even a killed one.
        streams = (request_end, answer.fileno(), errors.fileno())
        variables = {**variables_of("time" if request.what == "time" else "memory"), FAMILY: family}
        forking = forks if on_cpu and request.what == "memory" else None
        # A user's module is found in this folder, although it may have changed this process's own.
        fork = None if forking is None else forking.start(streams, variables, start())
        process = fork or _started(streams, variables, [theirs.fileno()])
        theirs.close()  # from here on the worker has the only one, so that `ours` shows that it has ended
        began = time.monotonic()
        try:
            os.write(request_source, request.model_dump_json().encode() + b"\n")
            ended = _wait(process, timeout_seconds, None if request.turn is None else ours)
            if ended and request.turn is not None:
                if _has_message(ours):
                    waited = _enter(turn, held)
                    with contextlib.suppress(OSError):  # it has ended meanwhile, and its reply says so
                        ours.send(READY)
                ended = _wait(process, timeout_seconds - (time.monotonic() - began - waited))
        finally:
            end_with_family(process, family)
        if not ended:
            reply = Reply(status="timeout", message=f"no answer from the {request.what} pass in {timeout_seconds:g} s")
        else:
            reply = _reply(answer, process.returncode, errors, kills_before, request.configuration)
        return reply.model_copy(update={"waited_seconds": waited})


def _started(streams: tuple[int, int, int], variables: Mapping[str, str], kept: Sequence[int]) -> subprocess.Popen[bytes]:
    """A worker that imports everything itself."""
    given, answer, errors = streams
    # -P: a folder `capsbench` in the working directory must not replace the installed package.
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "capsbench.measure.worker"],
        stdin=given,
        stdout=answer,
        stderr=errors,
        env=variables,
        cwd=start(),
        start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the worker
        pass_fds=kept,
    )


def _enter(turn: DeviceTurn, held: ExitStack) -> float:
    """Wait for a turn, which lasts until `held` is left, and return the seconds that it took."""
    began = time.monotonic()
    held.enter_context(turn())
    return time.monotonic() - began


def out_of_memory_kills() -> int:
    """Number of processes that the system's out-of-memory killer has ended since boot; 0 where it is not reported."""
    try:
        text = Path("/proc/vmstat").read_text(encoding="ascii")
        return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)
    except (OSError, ValueError):
        return 0


def _wait(process: subprocess.Popen[bytes] | Fork, timeout_seconds: float, message: socket.socket | None = None) -> bool:
    """Sleep until a process ends or sends a message, and return whether it did in time: polling disturbs the measurement."""
    timeout_seconds = max(timeout_seconds, 0)
    sources: list[socket.socket | int] = [] if message is None else [message]
    try:
        ended = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # not Linux
        if sources:
            return bool(select.select(sources, [], [], timeout_seconds)[0])
        try:
            process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return False
        return True
    try:
        return bool(select.select([ended, *sources], [], [], timeout_seconds)[0])
    finally:
        os.close(ended)


def _has_message(source: socket.socket) -> bool:
    """Return whether the worker has said that its workload is built; False where it has ended instead."""
    source.setblocking(False)
    try:
        return source.recv(len(READY)) == READY
    except OSError:
        return False


def _reply(answer: IO[bytes], status: int, errors: IO[bytes], kills_before: int, configuration: Configuration) -> Reply:
    answer.seek(0)
    try:
        return Reply.model_validate_json(answer.read())
    except ValidationError:
        pass
    if status == -signal.SIGKILL and out_of_memory_kills() > kills_before:
        return Reply(status="oom", message="the system's out-of-memory killer ended the process")
    errors.seek(0)
    printed = errors.read()
    ended = ended_words(status, printed)
    if died_of_limit(configuration, status, last_line(printed)):
        return Reply(status="oom", message=f"the process, whose total memory was limited, {ended}")
    return Reply(status="error", message=f"the process {ended}")
