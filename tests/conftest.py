"""Fixtures that more than one test file uses: records without measuring, and the command line as a process."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch

from capsbench.frame import to_frame
from capsbench.records import (
    Cell,
    Configuration,
    Contents,
    MemoryFigures,
    Record,
    StepPeak,
    StepPhase,
    TimeFigures,
    Timeline,
)

MIB = 2**20

# What a block adds, and what there is without one.
RETAINED_PER_BLOCK = {"capsnet": 10 * MIB, "rescapsnet": 10 * MIB, "mocapsnet": 0}
SECONDS_PER_BLOCK = {"capsnet": 0.02, "rescapsnet": 0.02, "mocapsnet": 0.03}
STATE_PER_BLOCK = 131072 * 4

# Whoever runs the tests in the background may have had Ctrl-C ignored, which processes inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Result:
    """What a command ended with."""

    status: int
    stdout: str
    stderr: str


def make_configuration(model: str = "rescapsnet", blocks: int = 1, **fields: Any) -> Configuration:
    """A configuration as `expand` would make it."""
    momentum = model == "mocapsnet"
    usual: dict[str, Any] = {"dataset": "sample", "batch_size": 4, "device": "cpu", "threads": 2}
    if model in RETAINED_PER_BLOCK:
        usual |= {"kernel": "recompute", "routing": "rba", "iterations": 3, "capsules": 32, "front": "plain"}
        usual |= {"memory": "reversible" if momentum else "stored"}
        usual |= {"rule": "paper", "gamma": 0.9, "inverse": "float"} if momentum else {}
    return Configuration(model=model, blocks=blocks, **(usual | fields))


def make_record(model: str = "rescapsnet", blocks: int = 1, *, replicate: int = 0, status: str = "ok", **fields: Any) -> Record:
    """A record whose figures are straight lines over blocks; only an `ok` one has figures."""
    cell = Cell(configuration=make_configuration(model, blocks, **fields), replicate=replicate)
    if status != "ok":
        return Record(cell=cell, status=status, message=f"it was {status}", environment=None if status == "skipped" else "abcd")
    state = 40 * MIB + blocks * STATE_PER_BLOCK
    retained = MIB + blocks * RETAINED_PER_BLOCK.get(model, 5 * MIB)
    memory = MemoryFigures(
        probe="profiler",
        state_bytes=state,
        gradient_bytes=state,
        optimizer_bytes=2 * state,
        retained_bytes=retained,
        peak_forward_bytes=4 * state + retained,
        peak_backward_bytes=4 * state + 2 * retained,
        peak_allocated_bytes=4 * state + 2 * retained,
        process_bytes=900 * MIB + retained,
    )
    step = 0.1 + blocks * SECONDS_PER_BLOCK.get(model, 0.01) + 0.001 * replicate
    time = TimeFigures(
        clock="monotonic",
        warmup_steps=2,
        # The outlier tells the median from the mean, and is too rare to be the median of a resample.
        train_step_seconds=[step] * 8 + [100 * step],
        forward_seconds=[step / 3] * 9,
        inference_seconds=[step / 4] * 9,
    )
    return Record(cell=cell, status="ok", data_source="sample", environment="abcd", memory=memory, time=time)


def make_timeline(configuration: Configuration, operator: str = "aten::convolution_backward") -> Timeline:
    """A look inside a step whose peak is 7 MiB."""
    names = ("state", "gradient", "optimizer", "batch", "retained", "temporary", "other")
    contents = Contents(phase="backward", **{f"{name}_bytes": MIB for name in names})
    phases = {
        name: StepPhase(first_event=first, last_event=first + 2, start_bytes=0, end_bytes=0, peak_bytes=0)
        for name, first in (("forward", 0), ("backward", 2), ("optimizer", 4))
    }
    return Timeline(
        kind="measured",
        configuration=configuration,
        probe="profiler",
        phases=phases,
        bytes_by_category={name: [0, 1, 2, MIB, 1, 0, 0] for name in names},
        peak=StepPeak(
            event=3, allocated_bytes=7 * MIB, operator=operator, module="primary", contents=contents, left_over_bytes=0
        ),
        retained_by_module={"first": 5 * MIB},
    )


def make_frame(records: Iterable[Record], report: str = "made") -> pd.DataFrame:
    """What `load` would give of these records."""
    return to_frame((Path(report), record) for record in records)


@pytest.fixture(autouse=True)
def _nothing_is_flushed() -> Iterator[None]:
    """A test that leaves subnormal numbers flushed to 0 changes the arithmetic of all that come after it."""
    yield
    if float("5e-324") == 0:
        torch.set_flush_denormal(False)
        pytest.fail("this test left the process flushing subnormal numbers")


@pytest.fixture
def sweep_frame() -> pd.DataFrame:
    """All three models at 1 to 4 blocks."""
    return make_frame(make_record(model, blocks) for blocks in range(1, 5) for model in RETAINED_PER_BLOCK)


def process_environment(folder: Path) -> dict[str, str]:
    """A temporary folder of one's own: sweeps of other programs on this machine hold no device from this one."""
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    return {**os.environ, "TMPDIR": str(scratch), "COLUMNS": "80", "PYTHONDONTWRITEBYTECODE": "1"}


def briefly(arguments: Iterable[object]) -> list[str]:
    """A sweep takes the fewest samples unless the test says otherwise: on a busy machine it would spend its whole budget."""
    given = [str(one) for one in arguments]
    sweeps = (
        (given[:1] == ["run"] or given[:2] in (["reproduce", it] for it in ("figure3", "figure4", "table4")))
        and "--time-budget" not in given
        and "--help" not in given
    )
    return [*given, "--time-budget", "0.01"] if sweeps else given


@pytest.fixture
def capsbench(tmp_path: Path) -> Callable[..., Result]:
    """Runs the command line as a process: `capsbench("run", "--depth", "1")`."""

    def call(*arguments: object, cwd: Path = tmp_path, **options: Any) -> Result:
        command = [sys.executable, "-m", "capsbench.cli", *briefly(arguments)]
        done = subprocess.run(
            command, cwd=cwd, env=process_environment(cwd), capture_output=True, text=True, timeout=500, check=False, **options
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs the command line in this process, a hundred times faster; an error that nobody catches fails the test."""
    from capsbench.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["capsbench", *briefly(arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return Result(int(ended.value.code or 0), out, err)

    return call


# Never the same name twice: a process keeps what it has imported.
_OWN_MODELS = itertools.count()


@pytest.fixture
def own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Puts the source of a function `make(in_shape, num_classes, blocks)` where a worker finds it; returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(source: str) -> str:
        name = f"own_model_{next(_OWN_MODELS)}"
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        return f"{name}:make"

    return write


def assert_refused(result: Result, *named: str, status: int = 2) -> None:
    """One line or two on standard error, which name what was wrong, and nothing on standard output."""
    assert result.status == status, result
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert 1 <= len(lines) <= 2, result.stderr
    for words in named:
        assert words in result.stderr


def wait_for(what: Callable[[], object], seconds: float = 200.0) -> None:
    """Returns as soon as `what()` is true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; in some containers nobody collects the dead."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
