"""The parent's side: one cell measured by fresh processes, one for time and one for memory, one after the other.

Each needs an environment of its own: the timing process a quiet malloc, the memory process a probe in place before
anything is built.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from capsbench.measure.worker import Reply, Request
from capsbench.records import Cell, Pass, Plan, Record

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
        request = Request(configuration=cell.configuration, what=what, samples=plan.samples, data_directory=data_directory)
        replies.append(run_pass(request, plan.timeout_seconds))
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
    )


def run_pass(request: Request, timeout_seconds: float) -> Reply:
    """One fresh process for one pass; it is gone when this returns or raises."""
    kills_before = out_of_memory_kills()
    with tempfile.TemporaryFile() as errors:
        # -P: a folder `capsbench` where the command is typed must not replace the installed one.
        # The worker ends when its standard input closes, so it cannot outlive this process, even a killed one.
        reader, writer = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "capsbench.measure.worker"],
                stdin=reader,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **_environment(request.what)},
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the worker
            )
            os.write(writer, request.model_dump_json().encode() + b"\n")
            answer, _ = process.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            return Reply(status="timeout", message=f"no answer from the {request.what} pass in {timeout_seconds:g} s")
        finally:
            os.close(writer)
            os.close(reader)
            _end(process)
        return _reply(answer, process.returncode, errors, kills_before)


def out_of_memory_kills() -> int:
    """How many processes the system's out-of-memory killer has ended since boot; 0 where it does not say."""
    try:
        text = Path("/proc/vmstat").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)


def _environment(what: Pass) -> dict[str, str]:
    return QUIET_MALLOC if what == "time" else {}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a worker and all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _reply(answer: bytes, status: int, errors: IO[bytes], kills_before: int) -> Reply:
    try:
        return Reply.model_validate_json(answer)
    except ValidationError:
        pass
    if status == -signal.SIGKILL and out_of_memory_kills() > kills_before:
        return Reply(status="oom", message="the system's out-of-memory killer ended the process")
    if status < 0:
        return Reply(status="error", message=f"the process was ended by {signal.Signals(-status).name}")
    errors.seek(0)
    last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
    return Reply(status="error", message=f"the process ended with status {status}: {''.join(last) or 'no message'}")
