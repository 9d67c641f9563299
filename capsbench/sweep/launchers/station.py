"""A station: `python -m capsbench.sweep.launchers.station` measures one task after another on one device.

Tasks come as lines of JSON on standard input, and their findings go to standard output, a line each; empty lines in between
show that the station lives. Each cell has fresh processes of its own; the station only waits for them. It ends at once, with all
that it started, when standard input closes: its driver has cancelled the task, or its worker is gone.
"""

import contextlib
import json
import os
import queue
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import IO, Any

from capsbench.cases.fingerprint import package_digest
from capsbench.errors import CapsbenchError, one_line
from capsbench.measure.cell import measure_cell
from capsbench.measure.environment import describe, key_of
from capsbench.measure.forkserver import Forks
from capsbench.records import SCHEMA_VERSION, Cell, Record, Round
from capsbench.report import Report
from capsbench.sweep.groups import left_of
from capsbench.sweep.launchers.attendant import BEAT_SECONDS, refusal
from capsbench.sweep.launchers.protocol import Findings, Task
from capsbench.sweep.local import Sources, alone_on
from capsbench.sweep.timekeeper import Timekeeper
from capsbench.system.families import FAMILY, end_family

_FORKS = Forks()
"""The source of the processes that count bytes on a CPU, for all tasks of this station until one takes times."""


def findings_of(text: str) -> str:
    """Measure a task, or refuse it if the driver's capsbench is another one.

    Args:
        text: a `Task` as JSON.
    """
    sent = json.loads(text)
    theirs, ours = (sent.get("package"), sent.get("schema_version")), (_digest(), SCHEMA_VERSION)
    if theirs != ours:
        return refusal(f"capsbench on {socket.gethostname()} has source {ours[0]}, and that of the driver is {theirs[0]}")
    return measured(Task.model_validate(sent)).model_dump_json()


def measured(task: Task) -> Findings:
    """Measure a task."""
    description = _environment()
    texts: list[str] = []
    found = Findings(environment=key_of(description), description=description, node=socket.gethostname())
    if not task.plan.passes:  # the driver asks for the environment alone
        return found
    if task.takes_times():
        _FORKS.close()  # nothing idle lies next to what is timed
    if task.in_turn:
        records, found.rounds = _in_turn(task, found.environment, texts)
    else:
        records = [_by_itself(cell, task, found.environment) for cell in task.cells()]
    return found.model_copy(update={"records": records, "texts": texts})


def _by_itself(cell: Cell, task: Task, environment: str) -> Record:
    """Measure a cell by itself."""
    # Others whom a cell waits for are mostly tasks of the same sweep, which are no news.
    turn = partial(alone_on, cell.configuration.device, lambda _: None, folder=task.folder, patience=task.patience)
    try:
        return measure_cell(
            cell, task.plan, environment=environment, data_directory=_data_directory(task), turn=turn,
            forks=None if task.takes_times() else _FORKS,
        )  # fmt: skip
    except CapsbenchError as error:  # the device stayed in use
        return Record(cell=cell, status="error", message=one_line(error), environment=environment)


def _in_turn(task: Task, environment: str, texts: list[str]) -> tuple[list[Record], list[Round]]:
    """Have cells take turns, and return their new records, and the rounds that are in none."""
    with tempfile.TemporaryDirectory(prefix="capsbench-task-") as folder:
        report = Report(folder)
        for record in task.known:
            report.append(record)
        for one in task.rounds:
            report.append_round(one)
        keeper = Timekeeper(
            task.plan, report, environment, _data_directory(task), texts.append,
            patience=task.patience, sources=Sources(task.plan.model_copy(update={"cells": []})),
        )  # fmt: skip
        try:
            keeper.run()
        except CapsbenchError as error:  # the device stayed in use
            known = {record.cell.key(): record for record in report.written}
            for cell in left_of(task.cells(), task.plan, report):
                record = known.get(cell.key()) or Record(cell=cell, status="error")
                report.append(record.model_copy(update={"status": "error", "message": one_line(error), "time": None}))
        return [record for record in report.written if record not in task.known], report.rounds


def _data_directory(task: Task) -> Path | None:
    """The folder of the real data sets, if this machine has it."""
    return task.data_directory if task.data_directory is not None and task.data_directory.is_dir() else None


_digest = cache(package_digest)


@cache
def _environment() -> dict[str, Any]:
    """The environment of this machine, which stays what it was when the station was started."""
    return describe()


def _read(lines: IO[str], tasks: "queue.SimpleQueue[str]") -> None:
    """Pass on tasks until there can be no more, then end this process and all that it started."""
    for line in lines:
        tasks.put(line)
    end_family(os.environ.get(FAMILY, ""))
    os._exit(1)


@contextlib.contextmanager
def _beating(answers: IO[str]) -> Iterator[None]:
    """Write empty lines while the body runs."""
    over = threading.Event()

    def beat() -> None:
        with contextlib.suppress(BrokenPipeError):
            while not over.wait(BEAT_SECONDS):
                print(file=answers, flush=True)

    beats = threading.Thread(target=beat, daemon=True)
    beats.start()
    try:
        yield
    finally:
        over.set()
        beats.join()


def main() -> None:
    """Measure tasks until standard input closes."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever prints must not be taken for findings
    tasks: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin, tasks), daemon=True).start()
    with contextlib.suppress(BrokenPipeError):
        print(file=answers, flush=True)
        while True:
            task = tasks.get()
            with _beating(answers):
                found = findings_of(task)
            print(found, file=answers, flush=True)


if __name__ == "__main__":
    main()
