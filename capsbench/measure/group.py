"""The processes of a cell that train together: one worker each, which find each other as those of `torchrun` do.

The parent's worker starts them, and makes one reply of theirs. They are in its session, so that they end with it.
"""

import gc
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any

import torch.distributed as dist
from pydantic import ValidationError

from capsbench.errors import ConfigurationError
from capsbench.measure.messages import Reply, Request
from capsbench.records import Configuration, MemoryFigures, Plan
from capsbench.system.families import ended_words


def check_measurable(plan: Plan) -> None:
    """Refuse to measure more of several processes than the memory of each on a CPU.

    Raises:
        ConfigurationError: times are asked for, or another device.
    """
    for configuration in (cell.configuration for cell in plan.cells):
        if configuration.parallel is None or configuration.is_predicted():
            continue
        if configuration.device_kind() != "cpu":
            raise ConfigurationError(
                f"`parallel` {configuration.parallel} is measured on a CPU alone, and `device` is '{configuration.device}'",
                "choose `device` cpu, or predict it",
            )
        if "time" in plan.passes:
            raise ConfigurationError(
                f"`parallel` {configuration.parallel}: times of several processes are not measured", "give `only` memory"
            )


def reply_of_group(request: Request) -> Reply:
    """Run a memory pass in each process of a group, and return the reply of the one with the highest peak, with the mean of all.

    If a process fails, the others are ended, which would wait for it, and its reply is returned.
    """
    if request.timeline:
        raise ConfigurationError(
            f"the timeline of a step with `parallel` {request.configuration.parallel} is predicted, not measured",
            "give `device` cpu:predicted or cuda:predicted",
        )
    count = request.configuration.world_size or 1
    replies: dict[int, Reply] = {}
    with ExitStack() as held:
        port = _free_port()
        ended: queue.Queue[int] = queue.Queue()
        members = [held.enter_context(_started(request, rank, count, port, ended)) for rank in range(count)]
        for _ in members:
            rank = ended.get()
            replies[rank] = members[rank].reply()
            if replies[rank].status != "ok":
                return replies[rank].model_copy(update={"message": f"process {rank} of {count}: {replies[rank].message}"})
    return _together([replies[rank] for rank in range(count)])


@contextmanager
def joined_group(configuration: Configuration) -> Iterator[None]:
    """Join the group of a configuration inside, by the environment variables that `torchrun` sets; none for one process."""
    if configuration.parallel is None:
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
        # Gloo ends a process whose peer leaves while something of the step is still held.
        dist.barrier()
    finally:
        gc.collect()
        dist.destroy_process_group()


class _Member:
    """One process of a group."""

    def __init__(self, process: "subprocess.Popen[bytes]", answer: IO[bytes], printed: IO[bytes]) -> None:
        self.process, self._answer, self._printed = process, answer, printed

    def reply(self) -> Reply:
        """The reply of the process, which has ended."""
        self._answer.seek(0)
        try:
            return Reply.model_validate_json(self._answer.read())
        except ValidationError:
            self._printed.seek(0)
            return Reply(status="error", message=f"the process {ended_words(self.process.returncode, self._printed.read())}")


@contextmanager
def _started(request: Request, rank: int, count: int, port: int, ended: "queue.Queue[int]") -> Iterator[_Member]:
    """Start a process of a group, which is gone on leaving.

    Args:
        request: request of the group.
        rank: number of the process.
        count: processes of the group.
        port: port at which the first one waits for the others.
        ended: receives the number of the process when it has ended.
    """
    found: dict[str, Any] = {
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }  # fmt: skip
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as printed:
        request_end, request_source = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "capsbench.measure.worker"],
            stdin=request_end,
            stdout=answer,
            stderr=printed,
            env={**os.environ, **{name: str(value) for name, value in found.items()}},
        )
        os.close(request_end)
        try:
            os.write(request_source, request.model_copy(update={"rank": rank}).model_dump_json().encode() + b"\n")
            threading.Thread(target=_report_end, args=(process, rank, ended), daemon=True).start()
            yield _Member(process, answer, printed)
        finally:
            process.kill()
            process.wait()
            os.close(request_source)  # not before, since a worker ends with all of its family when it closes


def _report_end(process: "subprocess.Popen[bytes]", rank: int, ended: "queue.Queue[int]") -> None:
    """Report the number of a process once it has ended."""
    process.wait()
    ended.put(rank)


def _free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _together(replies: Sequence[Reply]) -> Reply:
    """One reply of those of all processes."""
    known = [reply.memory for reply in replies if reply.memory is not None]
    largest = max(known, key=lambda memory: memory.peak_allocated_bytes or 0)
    notes = dict.fromkeys(note for reply in replies for note in reply.notes)
    step = replies[0].step
    return replies[0].model_copy(update={"memory": largest, "mean_memory": mean_of(known), "step": step, "notes": list(notes)})


def mean_of(figures: Sequence[MemoryFigures]) -> MemoryFigures:
    """The mean of each figure over processes, in whole bytes. The highest points have several moments, and no mean contents."""
    fields = {
        name: round(sum(getattr(one, name) for one in figures) / len(figures))
        for name in MemoryFigures.model_fields
        if name.endswith("_bytes") and all(getattr(one, name) is not None for one in figures)
    }
    return MemoryFigures(probe=figures[0].probe, **fields)
