"""Fixtures that more than one test file uses: records without measuring, and the command line as a process."""

import itertools
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch

from helpers import ROOT
from helpers.commands import Result, briefly, process_environment
from helpers.forked import Done, Server, save_a_word, shared_server
from helpers.made import RETAINED_PER_BLOCK, make_frame, make_record

# Whoever runs the tests in the background may have had Ctrl-C ignored, which processes inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


# They start processes that import torch, or a browser, and take seconds.
_SLOW_FIXTURES = {"server", "browser", "sweep"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start processes as slow."""
    for item in items:
        if not _SLOW_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


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


@pytest.fixture(scope="session")
def server() -> Server:
    """The process whose forks are commands."""
    return shared_server()


@pytest.fixture(scope="session")
def forked(server: Server) -> Callable[..., Done]:
    """Run a command as a forked process: `forked(folder, "slopes good", out="gone")`."""
    return lambda folder, typed, **more: server(folder, *shlex.split(typed), **more)


@pytest.fixture
def capsbench(tmp_path: Path, server: Server) -> Callable[..., Result]:
    """Run the command line as a process: `capsbench("run", "--depth", "1")`; with options of `subprocess.run` a fresh one."""

    def call(*arguments: object, cwd: Path = tmp_path, drawn: bool = False, **options: Any) -> Result:
        environment = process_environment(cwd)
        if not options:
            ended = server(cwd, *briefly(arguments), drawn=drawn, **environment)
            return Result(ended.status, ended.stdout, ended.stderr)
        command = [sys.executable, "-m", "capsbench.cli", *briefly(arguments)]
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=500, check=False, **options
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run the command line in this process, a hundred times faster; an uncaught error fails the test.

    Files of figures hold a word, unless the call says `drawn=True`.
    """
    from capsbench.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: object, drawn: bool = False) -> Result:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", ["capsbench", *briefly(arguments)])
            if not drawn:
                patched.setattr("matplotlib.figure.Figure.savefig", save_a_word)
            with pytest.raises(SystemExit) as ended:
                main()
        out, err = capfd.readouterr()
        return Result(int(ended.value.code or 0), out, err)

    return call


# Never the same name twice: a process keeps what it has imported.
_OWN_MODELS = itertools.count()


@pytest.fixture
def own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Put the source of a function `make(in_shape, num_classes, blocks)` where a worker finds it, and return its name."""
    monkeypatch.chdir(tmp_path)

    def write(source: str) -> str:
        name = f"own_model_{next(_OWN_MODELS)}"
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        return f"{name}:make"

    return write


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/compile_kernels.py."""
    pytest.importorskip("triton")
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import compile_kernels

    return compile_kernels
