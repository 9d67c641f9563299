"""Fixtures that more than one test file uses: records without measuring, and the command line as a process."""

import itertools
import random
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import settings

from capsbench.system.garbage import freeze_for_good
from helpers import ROOT
from helpers.commands import Result, briefly, process_environment
from helpers.forked import Done, Server, save_a_word, shared_server
from helpers.made import RETAINED_PER_BLOCK, make_frame, make_record

# Whoever runs the tests in the background may have had Ctrl-C ignored, which processes inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


# The same examples in every run, on a machine that may be busy.
settings.register_profile("capsbench", derandomize=True, deadline=None)
settings.load_profile("capsbench")

# They start processes that import torch, or a browser, and take seconds.
_SLOW_FIXTURES = {"server", "browser", "sweep"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start processes as slow."""
    for item in items:
        if not _SLOW_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


# Imported packages have a million objects. To look for garbage among them takes longer than most tests.
_MANY_MODULES = 20


def seed() -> None:
    """Seed the generators that all share."""
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)  # without a queue for devices that are not here


def pytest_collection_finish() -> None:
    """Let no test look for garbage among the packages and tests that were imported."""
    freeze_for_good()


@pytest.fixture(scope="module", autouse=True)
def _random_numbers_are_those_of_this_file() -> None:
    """Fixtures of a file have the same random numbers, too."""
    seed()


@pytest.fixture(autouse=True)
def _imported_packages_stay() -> Iterator[None]:
    """Let the tests after one that imports a package look for no garbage in it: every trace looks for garbage."""
    before = len(sys.modules)
    yield
    if len(sys.modules) > before + _MANY_MODULES:
        freeze_for_good()


@pytest.fixture(autouse=True)
def _random_numbers_are_those_of_this_test() -> None:
    """A test has the same random numbers whichever tests came before it."""
    seed()


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


@pytest.fixture(scope="module")
def warm(request: pytest.FixtureRequest) -> Iterator[None]:
    """Functions of this file are called apart without importing anew each time what it imports, and what its `WARM` names."""
    from helpers.warm import warm_server

    with warm_server(*getattr(request.module, "WARM", ())):
        yield


@pytest.fixture
def session_in_fork(server: Server) -> Callable[..., pytest.RunResult]:
    """Run the tests of a folder, with the plugin of the package, in a fork: `session_in_fork(pytester.path)`."""

    def run(folder: Path, *options: str) -> pytest.RunResult:
        done = server(folder, *options, program="pytest")
        return pytest.RunResult(done.status, done.stdout.splitlines(), done.stderr.splitlines(), 0.0)

    return run


@pytest.fixture
def capsbench(tmp_path: Path, server: Server) -> Callable[..., Result]:
    """Run the command line as a process, to its end: `capsbench("run", "--depth", "1")`; options are those of `Server.start`."""

    def call(*arguments: object, cwd: Path = tmp_path, **options: Any) -> Result:
        ended = server(cwd, *briefly(arguments), forks=True, **process_environment(cwd), **options)
        return Result(ended.status, ended.stdout, ended.stderr)

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
