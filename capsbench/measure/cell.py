"""The parent's side: one cell measured by fresh processes, one for time and one for memory, one after the other.

Each needs an environment of its own: the timing process a quiet malloc, the memory process a probe in place before
anything is built.
"""

import contextlib
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from capsbench.measure.limits import died_of_limit
from capsbench.measure.processes import FAMILY, end_family, ended_words, last_line
from capsbench.measure.worker import Reply, Request
from capsbench.paths import start
from capsbench.records import Cell, Configuration, Pass, Plan, Record

QUIET_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "67108864",
}
"""glibc gives memory back to the system and takes it again in every step: most of the noise of a CPU's time."""


def measure_cell(cell: Cell, plan: Plan, *, environment: str, data_directory: Path | None = None) -> Record:
    """Measures a cell; whatever happens to its processes is in the record.

    Args:
        cell: what to measure.
        plan: which passes, how many samples, how long at most.
        environment: key of the machine in environment.json.
        data_directory: where real data sets lie.
    """
    started, began = datetime.now(UTC), time.monotonic()
    replies: list[Reply] = []
    for what in plan.passes:
        request = Request(
            configuration=cell.configuration,
            what=what,
            samples=plan.samples,
            budget_seconds=min(plan.budget_seconds, plan.timeout_seconds / 2),  # more samples are worth no timeout
            data_directory=data_directory,
            strict=plan.strict,
        )
        try:
            replies.append(run_pass(request, plan.timeout_seconds))
        except OSError as error:  # no process, no temporary file: this cell's fault, not the sweep's
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
        duration_seconds=round(time.monotonic() - began, 3),
        memory=next((reply.memory for reply in replies if reply.memory), None),
        time=next((reply.time for reply in replies if reply.time), None),
        step=next((reply.step for reply in replies if reply.step), None),
        notes=list(dict.fromkeys(note for reply in replies for note in reply.notes)),
    )


def run_pass(request: Request, timeout_seconds: float) -> Reply:
    """One fresh process for one pass; it and all that it started are gone when this returns or raises."""
    kills_before, family = out_of_memory_kills(), secrets.token_hex(8)
    # Files, not pipes, for what comes back: they never fill, and a child that outlives its worker holds up nobody.
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as answer, _pipe() as (request_end, request_source):
        # -P: a folder `capsbench` where the command is typed must not replace the installed one.
        # The worker ends when its standard input closes, so it cannot outlive this process, even a killed one.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "capsbench.measure.worker"],
            stdin=request_end,
            stdout=answer,
            stderr=errors,
            env={**os.environ, **_environment(request.what), FAMILY: family},
            cwd=start(),  # where a user's module is found, although it may have changed the folder of this process
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the worker
        )
        try:
            os.write(request_source, request.model_dump_json().encode() + b"\n")
            ended = _wait(process, timeout_seconds)
        finally:
            _end(process)
            end_family(family)
        if not ended:
            return Reply(status="timeout", message=f"no answer from the {request.what} pass in {timeout_seconds:g} s")
        return _reply(answer, process.returncode, errors, kills_before, request.configuration)


def out_of_memory_kills() -> int:
    """How many processes the system's out-of-memory killer has ended since boot; 0 where it does not say."""
    try:
        text = Path("/proc/vmstat").read_text(encoding="ascii")
        return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)
    except (OSError, ValueError):
        return 0


def _environment(what: Pass) -> dict[str, str]:
    return QUIET_MALLOC if what == "time" else {}


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """The reading and the writing end of a pipe."""
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


def _wait(process: subprocess.Popen[bytes], timeout_seconds: float) -> bool:
    """Whether a process ended in time. Sleeps until it does: a parent that looks again and again is in what it measures."""
    try:
        ended = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # not Linux
        try:
            process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return False
        return True
    try:
        return bool(select.select([ended], [], [], timeout_seconds)[0])
    finally:
        os.close(ended)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a worker and all that it started; also what a worker left behind that has ended itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


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
        return Reply(status="oom", message=f"the process, all of whose memory was limited, {ended}")
    return Reply(status="error", message=f"the process {ended}")
