"""The engine of `launcher` slurm: each task is a job, which submitit submits, in arrays of equal ones.

Jobs and what they find lie in the folder `slurm` of the report, which all nodes must see. A job outlives a driver that is
killed: the next driver takes what it has found, and cancels the others. With `cluster=local` jobs are processes of this
machine, as many at once as it has cores or GPUs for.
"""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from capsbench.errors import ConfigurationError, StoreError, error_line, unwritable
from capsbench.sweep.launchers.attendant import STATION, attend
from capsbench.sweep.launchers.protocol import Done, Findings, Lost, Task
from capsbench.system.durable import replace_file
from capsbench.system.families import last_line

JOBS_FOLDER = "slurm"
"""Folder of the jobs in that of the report."""

_BELONGINGS, _JOBS = "belongings.json", "jobs"

_POLL_SECONDS = 0.5
_ASK_SECONDS = 10.0
"""Seconds between questions to Slurm about jobs."""

_LATE_SECONDS = 30.0
"""Seconds that the file of a job which has ended may take to appear on a shared file system."""

_SPARE_MINUTES = 10
"""Minutes of a job's limit beyond those that its processes may take."""

_LONGEST_REASON = 200
_GPU_PARAMETERS = {"gres", "gpus_per_node", "gpus_per_task", "num_gpus", "gpus"}


class SlurmEngine:
    """Slurm, as an engine of a sweep.

    Args:
        folder: folder of the report.
        belongings: what workers need of this machine, as `belongings.packed` made it.
        parameters: parameters of jobs, as sbatch has them, and `cluster`: `slurm`, or `local` for processes of this machine.
        exclusive_node: give a job that takes times all of its node.
        module: the module that stations run.

    Raises:
        ConfigurationError: there is no Slurm here, or it has no such parameter.
    """

    def __init__(
        self, folder: Path, belongings: str, parameters: Mapping[str, Any], *, exclusive_node: bool = False,
        module: str = STATION,
    ) -> None:  # fmt: skip
        import submitit

        self._submitit: Any = submitit
        self._given = dict(parameters)
        self._cluster = self._given.pop("cluster", "slurm")
        self._exclusive, self._module = exclusive_node, module
        self._folder = folder / JOBS_FOLDER
        if self._cluster not in ("slurm", "local"):
            raise ConfigurationError(f"`slurm` cluster={self._cluster} is not known", "give cluster=local, or leave it out")
        if self._cluster == "slurm" and shutil.which("srun") is None:
            raise ConfigurationError(
                "`launcher` slurm needs Slurm's commands, and there is no srun here",
                "type the command on a machine that can submit jobs, or try it with `slurm` cluster=local",
            )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self._folder, error) from None
        self._belongings = self._folder / _BELONGINGS
        self._earlier = self._known_jobs()
        replace_file(self._belongings, belongings)
        self._jobs: dict[int, Any] = {}
        """Jobs by the number of their task, in the order of submission."""
        self._tasks: dict[int, Task] = {}
        self._gpu_of: dict[int, int] = {}
        self._queue: list[Task] = []
        """Tasks for which this machine has no room yet; Slurm has a queue of its own."""
        self._asked, self._present = -math.inf, set[str]()
        self._gone_since: dict[int, float] = {}
        self._has_lost = False

    def kinds(self, sample: Task) -> Mapping[str, float]:
        """Return nothing: which nodes Slurm has is its own business, and `slurm` constraint=NAME chooses among them."""
        return {}

    def room(self, sample: Task) -> float:
        """Return the number of tasks that this machine can take at once; 1 where Slurm decides."""
        if self._cluster == "slurm":
            return 1.0
        return float(_gpus() if sample.needs_gpu() else max(1, _cores() // sample.threads()))

    def left_behind(self) -> list[tuple[Task, Findings]]:
        """Return what jobs of a driver that was killed have found, and cancel the others."""
        found, others = [], []
        for number in self._earlier:
            job = self._job(number)
            if not job.paths.result_pickle.exists():
                others.append(number)
                continue
            with suppress(Exception):  # a damaged file costs that job alone
                text = job.submission().args[0]
                found.append((Task.model_validate_json(text), Findings.model_validate_json(job.result())))
        self._cancel_jobs(others)
        return found

    def submit(self, tasks: Sequence[Task]) -> None:
        """Add tasks to the end of the queue.

        Raises:
            ConfigurationError: Slurm, or this machine, can never run one of them.
        """
        if self._cluster == "local":
            if any(task.needs_gpu() for task in tasks) and not _gpus():
                raise ConfigurationError(
                    "`device` cuda needs a GPU, which this machine does not have",
                    "choose `device` cpu, or leave cluster=local out",
                )
            self._queue += tasks
            self._fill()
            return
        shapes: dict[str, list[Task]] = {}
        for task in tasks:
            shapes.setdefault(json.dumps(self._shape(task), sort_keys=True), []).append(task)
        for shape, alike in shapes.items():
            self._begin(alike, json.loads(shape))

    def wait(self, seconds: float) -> list[Done | Lost]:
        """Return tasks that have ended, as soon as there is one, or nothing after this time."""
        self._note_jobs()  # all that was returned earlier is in the report by now
        until = time.monotonic() + seconds
        while True:
            outcomes = [outcome for number in list(self._jobs) if (outcome := self._outcome(number)) is not None]
            self._fill()
            if outcomes or time.monotonic() >= until:
                return outcomes
            time.sleep(min(_POLL_SECONDS, max(0.0, until - time.monotonic())))

    def cancel(self, numbers: Sequence[int]) -> None:
        """Cancel the jobs of tasks."""
        self._queue = [task for task in self._queue if task.number not in numbers]
        jobs = [self._forget(number) for number in numbers if number in self._jobs]
        if self._cluster == "local":
            for job in jobs:
                job.cancel()
        else:
            self._cancel_jobs([job.job_id for job in jobs])

    def close(self) -> None:
        """Cancel all jobs; files of jobs are kept where one was lost, since its output may say why."""
        self.cancel([*self._jobs, *(task.number for task in self._queue)])
        if not self._has_lost:
            shutil.rmtree(self._folder, ignore_errors=True)

    # Jobs

    def _executor(self) -> Any:
        if self._cluster == "local":
            return self._submitit.LocalExecutor(self._folder / _JOBS)
        return self._submitit.SlurmExecutor(self._folder / _JOBS)

    def _shape(self, task: Task) -> dict[str, Any]:
        """The parameters of a task's job."""
        plan, count = task.plan, len(task.cells()) if task.in_turn else 1
        seconds = plan.timeout_seconds * (plan.processes if task.in_turn else len(plan.passes)) + plan.budget_seconds * count
        usual: dict[str, Any] = {"job_name": "capsbench", "time": math.ceil(seconds / 60) + _SPARE_MINUTES, "nodes": 1}
        usual |= {"cpus_per_task": 1 if task.needs_gpu() else task.threads()}
        usual |= {"gpus_per_node": 1} if task.needs_gpu() and not _GPU_PARAMETERS & self._given.keys() else {}
        usual |= {"exclusive": True} if self._exclusive and task.takes_times() else {}
        return usual | self._given

    def _begin(self, tasks: Sequence[Task], shape: Mapping[str, Any]) -> None:
        """Submit tasks whose jobs have the same parameters."""
        executor = self._executor()
        own = executor._valid_parameters()
        extra = {name.replace("_", "-"): value for name, value in shape.items() if name not in own}
        try:
            executor.update_parameters(**{name: value for name, value in shape.items() if name in own})
            if extra:
                executor.update_parameters(additional_parameters=extra)
            arguments = [task.model_dump_json() for task in tasks], [str(self._belongings)] * len(tasks)
            jobs = executor.map_array(measured_by_job, *arguments, [self._module] * len(tasks))
        except (subprocess.CalledProcessError, self._submitit.core.utils.FailedJobError, ValueError, TypeError) as error:
            raise ConfigurationError(
                f"Slurm refuses a job: {error_line(_printed(error), _LONGEST_REASON)}",
                "change or add parameters with `slurm`, such as partition=NAME, account=NAME or gres=gpu:1",
            ) from None
        for task, job in zip(tasks, jobs, strict=True):
            self._jobs[task.number], self._tasks[task.number] = job, task
        self._note_jobs()

    def _fill(self) -> None:
        """Start jobs on this machine, as far as it has room."""
        while self._queue:
            task = self._queue[0]
            running = [self._tasks[number] for number in self._jobs]
            alone = self._exclusive and any(one.takes_times() for one in (task, *running))
            if running and (alone or (not task.needs_gpu() and sum(one.threads() for one in (task, *running)) > _cores())):
                return
            free = sorted(set(range(_gpus())) - set(self._gpu_of.values())) if task.needs_gpu() else []
            if task.needs_gpu() and not free:
                return
            self._queue.pop(0)
            executor = self._executor()
            minutes = self._given.get("time", self._shape(task)["time"])
            gpus = {"gpus_per_node": 1, "visible_gpus": (free[0],)} if free else {}
            executor.update_parameters(timeout_min=minutes, **gpus)
            job = executor.submit(measured_by_job, task.model_dump_json(), str(self._belongings), self._module)
            self._jobs[task.number], self._tasks[task.number] = job, task
            if free:
                self._gpu_of[task.number] = free[0]
            self._note_jobs()

    def _outcome(self, number: int) -> Done | Lost | None:
        """The outcome of a task; None while its job waits or runs."""
        job = self._jobs[number]
        # A job may write its result and end between two looks.
        if not job.paths.result_pickle.exists() and not self._has_ended(number):
            return None
        if not job.paths.result_pickle.exists():
            self._has_lost = True
            self._forget(number)
            printed = last_line((_text_of(job.paths.stderr) or "").encode())
            return Lost(
                number=number, why=f"job {job.job_id} ended without a result: {printed or 'no message'}"[:_LONGEST_REASON]
            )
        self._forget(number)
        try:
            return Done(number=number, findings=Findings.model_validate_json(job.result()))
        except Exception as error:  # whatever the job raised, and files that cannot be read
            self._has_lost = True
            if "No module named 'capsbench" in str(error):
                lines = ["a job cannot import capsbench", "install the driver's version on every node, or share its environment"]
                return Done(number=number, findings=Findings(refusal=lines))
            return Lost(number=number, why=f"job {job.job_id} failed: {_reason(error)}"[:_LONGEST_REASON])

    def _has_ended(self, number: int) -> bool:
        """Return whether a job has ended for good."""
        job = self._jobs[number]
        if self._cluster == "local":
            return bool(job.done())
        if time.monotonic() - self._asked > _ASK_SECONDS:
            self._present, self._asked = self._queued_jobs(), time.monotonic()
        if job.job_id in self._present:
            self._gone_since.pop(number, None)
            return False
        return time.monotonic() - self._gone_since.setdefault(number, time.monotonic()) > _LATE_SECONDS

    def _queued_jobs(self) -> set[str]:
        """Numbers of the jobs that wait or run; all of ours if Slurm does not answer."""
        try:
            asked = ["squeue", "--noheader", "--array", "--me", "--format=%i"]
            return set(subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout.split())
        except (OSError, subprocess.SubprocessError):
            return {job.job_id for job in self._jobs.values()}

    def _forget(self, number: int) -> Any:
        self._tasks.pop(number)
        self._gpu_of.pop(number, None)
        return self._jobs.pop(number)

    def _note_jobs(self) -> None:
        """Write which jobs there are, for a driver that comes after this one was killed."""
        with suppress(StoreError):
            replace_file(self._folder / "jobs.json", json.dumps([job.job_id for job in self._jobs.values()]))

    def _known_jobs(self) -> list[str]:
        try:
            found = json.loads((self._folder / "jobs.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return [str(one) for one in found] if isinstance(found, list) else []

    def _job(self, job_id: str) -> Any:
        executor = self._executor()
        return executor.job_class(executor.folder, job_id)

    def _cancel_jobs(self, numbers: Sequence[str]) -> None:
        """Cancel jobs by their numbers, which on this machine are those of processes."""
        if not numbers:
            return
        if self._cluster == "slurm":
            with suppress(OSError, subprocess.SubprocessError):
                subprocess.run(["scancel", *numbers], capture_output=True, timeout=60, check=False)
            return
        for number in numbers:
            with suppress(psutil.Error, ValueError):
                process = psutil.Process(int(number))
                words = process.cmdline()  # another process may have the number now
                if "submitit.local._local" in words and str(self._folder / _JOBS) in words:
                    process.send_signal(signal.SIGINT)


def measured_by_job(task: str, belongings: str, module: str) -> str:
    """Measure a task in a job, and return its findings.

    Args:
        task: a `Task` as JSON.
        belongings: file of the driver's belongings.
        module: the module that the station runs.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    gpu = visible if visible and Task.model_validate_json(task).needs_gpu() else None
    return attend(task, Path(belongings).read_text(encoding="utf-8"), module=module, gpu=gpu)


def _cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> int:
    """Number of this machine's GPUs."""
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            return int(pynvml.nvmlDeviceGetCount())
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # NVML has many exceptions, and where it does not answer there is no GPU
        return 0


def _printed(error: Exception) -> Exception:
    """The output of sbatch, in place of the error that it failed."""
    printed = getattr(error, "stderr", None) or getattr(error, "output", None)
    if not printed:
        return error
    text = printed.decode(errors="replace") if isinstance(printed, bytes) else str(printed)
    return ConfigurationError(last_line(text.encode()))


def _reason(error: Exception) -> str:
    """The last line of a job's traceback, which submitit puts between two rules."""
    parts = re.split(r"\n-{10,}\n", str(error))
    return last_line(parts[1].encode()) if len(parts) > 1 else error_line(error)


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
