"""A sweep by Slurm's jobs: processes of this machine (`cluster=local`), and Slurm itself where there is one."""

import json
import shutil
import subprocess
import time

import pytest

from capsbench.cases.fingerprint import package_digest
from capsbench.errors import ConfigurationError
from capsbench.records import Cell
from capsbench.sweep.launchers.belongings import packed
from capsbench.sweep.launchers.protocol import Task
from helpers.commands import wait_for
from helpers.engines import FAKE_STATION, drive, figures, here_and_there, plan, with_tests
from helpers.made import make_configuration

submitit = pytest.importorskip("submitit")
slurm = pytest.importorskip("capsbench.sweep.launchers.slurm")

LOCAL = {"cluster": "local"}


def has_slurm():
    try:
        return (
            subprocess.run(["sinfo", "--noheader", "--states=idle"], capture_output=True, timeout=20, check=False).stdout != b""
        )
    except (OSError, subprocess.SubprocessError):
        return False


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """Engines of one report, whose stations measure nothing."""
    monkeypatch.setenv("PYTHONPATH", with_tests())
    return lambda parameters=LOCAL, **options: slurm.SlurmEngine(
        tmp_path / "report", packed([]), parameters, module=FAKE_STATION, **options
    )


@pytest.mark.slow
def test_a_user_s_function_has_the_records_that_it_has_locally(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here, there = here_and_there(launcher="slurm", slurm=LOCAL)
    assert figures(here) == figures(there)
    assert len(figures(here)) == 2
    assert set(there.environments) == set(here.environments)
    assert not (tmp_path / "there" / "slurm").exists()


@pytest.mark.slow
def test_jobs_of_this_machine_measure_as_many_cells_as_it_has_cores_for(tmp_path, engine):
    report = drive(plan(3), tmp_path / "report", engine())
    assert [record.status for record in report.records] == ["ok"] * 3


@pytest.mark.slow
def test_a_station_that_ends_is_a_lost_worker_whose_output_is_kept(tmp_path, engine):
    (record,) = drive(plan(1, model="tests:ends"), tmp_path / "report", engine()).records
    assert record.status == "error"
    assert "3 workers were lost" in record.message
    assert "status 7" in record.message
    assert (tmp_path / "report" / "slurm").is_dir()


@pytest.mark.slow
def test_what_jobs_found_after_their_driver_was_killed_is_taken(tmp_path, engine):
    planned = plan(2)
    sleeper = Cell(configuration=make_configuration("tests:sleeps", 1))
    cells = [planned.cells[0], sleeper]
    killed = engine()
    killed.submit(
        [
            Task(number=number, plan=planned.model_copy(update={"cells": [one]}), package=package_digest())
            for number, one in enumerate(cells)
        ]
    )
    killed._fill()
    (first,) = [job for number, job in killed._jobs.items() if number == 0]
    wait_for(first.paths.result_pickle.exists)
    report = drive(planned, tmp_path / "report", engine())
    assert len(report.records) == 2
    assert {record.cell for record in report.records} == set(planned.cells)
    for job in killed._jobs.values():
        wait_for(job.done)


def test_a_gpu_that_is_not_here_is_said_at_once(tmp_path, engine, monkeypatch):
    monkeypatch.setattr(slurm, "_gpus", lambda: 0)
    with pytest.raises(ConfigurationError, match=r"`device` cuda needs a GPU, which this machine does not have\n"):
        drive(plan(1, device="cuda:0", threads=None), tmp_path / "report", engine())


def test_without_slurm_it_is_said_what_to_do(engine, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"there is no srun here\n.*`slurm` cluster=local"):
        engine({})
    with pytest.raises(ConfigurationError, match=r"^`slurm` cluster=moon is not known\n"):
        engine({"cluster": "moon"})


# A Slurm that takes every job and runs none: what would be submitted, and how.


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """Slurm's commands, which note how they were called; jobs are in the queue as long as the file `queued` is there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "srun": "exit 0",
        "sbatch": f'cat "$1" > {tmp_path}/script.sh; if grep -q refused "$1"; then echo "sbatch: error: invalid partition" >&2; '
        'exit 1; fi; echo "Submitted batch job 41"',
        "squeue": f"cat {tmp_path}/queued",
        "scancel": f'echo "$@" >> {tmp_path}/cancelled',
    }
    for name, text in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return tmp_path


def tasks(planned):
    return [
        Task(number=number, plan=planned.model_copy(update={"cells": [one]}), package="x")
        for number, one in enumerate(planned.cells)
    ]


def test_equal_tasks_are_one_array_with_the_parameters_that_were_given(sbatch, engine):
    used = engine({"partition": "gpu", "time": 30, "array_parallelism": 2, "core_spec": 1}, exclusive_node=True)
    used.submit(tasks(plan(3, passes=("time",), threads=4)))
    script = (sbatch / "script.sh").read_text()
    wanted = ["array=0-2%2", "partition=gpu", "time=30", "cpus-per-task=4", "exclusive", "core-spec=1", "job-name=capsbench"]
    assert [name for name in wanted if f"#SBATCH --{name}\n" not in script] == []
    assert json.loads((sbatch / "report" / "slurm" / "jobs.json").read_text()) == ["41_0", "41_1", "41_2"]


def test_a_task_on_a_gpu_asks_for_one(sbatch, engine):
    engine({}).submit(tasks(plan(1, device="cuda:0", threads=None)))
    assert "#SBATCH --gpus-per-node=1\n" in (sbatch / "script.sh").read_text()
    engine({"gres": "gpu:a100:1"}).submit(tasks(plan(1, device="cuda:0", threads=None)))
    script = (sbatch / "script.sh").read_text()
    assert "#SBATCH --gres=gpu:a100:1\n" in script
    assert "gpus-per-node" not in script


def test_a_refused_job_is_two_lines_with_slurm_s_own_words(sbatch, engine):
    with pytest.raises(
        ConfigurationError, match=r"^Slurm refuses a job: .*invalid partition.*\nchange or add parameters with `slurm`"
    ):
        engine({"partition": "refused"}).submit(tasks(plan(1)))


def test_a_job_that_leaves_the_queue_without_a_result_is_lost(sbatch, engine, monkeypatch):
    monkeypatch.setattr(slurm, "_ASK_SECONDS", 0.0)
    monkeypatch.setattr(slurm, "_LATE_SECONDS", 0.1)
    used = engine({})
    (sbatch / "queued").write_text("41\n")
    used.submit(tasks(plan(1)))
    assert used.wait(0.2) == []
    (sbatch / "queued").write_text("40\n")
    end = time.monotonic() + 100
    while not (lost := used.wait(0.1)):
        assert time.monotonic() < end
    assert lost[0].number == 0
    assert "job 41 ended without a result" in lost[0].why


def test_jobs_are_cancelled_by_the_driver_and_by_the_one_after_it(sbatch, engine):
    used = engine({})
    (sbatch / "queued").write_text("41\n")
    used.submit(tasks(plan(2)))
    assert engine({}).left_behind() == []
    assert (sbatch / "cancelled").read_text() == "41_0 41_1\n"
    used.cancel([0])
    assert (sbatch / "cancelled").read_text() == "41_0 41_1\n41_0\n"
    used.close()
    assert (sbatch / "cancelled").read_text() == "41_0 41_1\n41_0\n41_1\n"


@pytest.mark.slow
@pytest.mark.skipif(not has_slurm(), reason="there is no Slurm with an idle node here")
def test_slurm_itself(tmp_path, engine):
    report = drive(plan(3), tmp_path / "report", engine({"time": 5}))
    assert [record.status for record in report.records] == ["ok"] * 3
