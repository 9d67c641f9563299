"""The tests marked `cuda`, in parallel, without those that passed in an earlier call; and the plugin that keeps outcomes."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu.child import Bench, Items
from benchmarks.gpu.day import ROOT
from benchmarks.gpu.results import Found

PROCESSES = 8
PASSED, OUTCOMES = "CAPSBENCH_DAY_PASSED", "CAPSBENCH_DAY_OUTCOMES"
"""Variables that name the file of the tests that have passed, and the file that gets a line for each outcome."""
SHOWN = 12
"""Most failed tests that are named."""
END_SECONDS = 12.0
"""Time for pytest to end, and for its outcomes to be counted."""


def items(bench: Bench) -> Items:
    """One item, which keeps each test by itself."""
    return {"tests": lambda: run(bench.folder, bench.left(), ROOT / "tests")}


def run(folder: Path, seconds: float, tests: Path) -> Found:
    """Run the tests that have not passed before, for at most so many seconds."""
    passed, outcomes = folder / "tests.passed", folder / "tests.outcomes"
    before = _outcomes(outcomes)
    passed.write_text("".join(f"{name}\n" for name, outcome in before.items() if outcome == "passed"), encoding="utf-8")
    files = [path for path in sorted(tests.rglob("test_*.py")) if "mark.cuda" in path.read_text(encoding="utf-8")]
    parallel = ["-n", str(PROCESSES), "--dist", "worksteal"] if find_spec("xdist") else []
    words = ["-q", "-p", "no:cacheprovider", "-p", "benchmarks.gpu.suite", "--tb=short", "--durations=8", "-m", "cuda", *parallel]
    # A worker of xdist may have started this process, whose variable would tell the new pytest that it is one, too.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment = {**inherited, PASSED: str(passed), OUTCOMES: str(outcomes), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-m", "pytest", *words, *map(str, files)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL) as process:
        try:
            process.wait(max(seconds - END_SECONDS, 1.0))
            why = None if process.returncode in (0, 1, 5) else f"pytest ended with status {process.returncode}"
        except subprocess.TimeoutExpired:
            why = "cut off"
            process.send_signal(signal.SIGINT)
            try:
                process.wait(END_SECONDS / 2)
            except subprocess.TimeoutExpired:
                process.kill()
    return counted(_outcomes(outcomes), why)


def counted(outcomes: dict[str, str], why: str | None) -> Found:
    """Numbers of tests by their outcome, and what is wrong, if anything is.

    Args:
        outcomes: last outcome of each test.
        why: the reason for which not all tests ran; None if they did.
    """
    counts = Counter(outcomes.values())
    found: Found = {name: counts[name] for name in ("passed", "failed", "skipped")}
    failed = [name for name, outcome in outcomes.items() if outcome == "failed"]
    found |= {"failed tests": ", ".join(failed[:SHOWN])} if failed else {}
    if why is None and failed:
        why = f"{len(failed)} tests failed"
    return found | ({"error": why} if why else {})


def _outcomes(path: Path) -> dict[str, str]:
    """The last outcome of each test."""
    if not path.exists():
        return {}
    lines = (line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("]"))
    return dict(json.loads(line) for line in lines)


# Hooks of pytest


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out the tests that have passed."""
    path = os.environ.get(PASSED)
    if path is None:
        return
    passed = set(Path(path).read_text(encoding="utf-8").splitlines())
    left = [item for item in items if item.nodeid not in passed]
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
    items[:] = left


def pytest_runtest_logreport(report: Any) -> None:
    """Keep the outcome of a test; a failure of its fixtures counts as its own."""
    path = os.environ.get(OUTCOMES)
    # Under xdist, the process that was started by hand hears of all tests.
    if path is None or "PYTEST_XDIST_WORKER" in os.environ or (report.when != "call" and report.outcome == "passed"):
        return
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps([report.nodeid, report.outcome]) + "\n")
