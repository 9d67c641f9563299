"""Commands as processes: how they are started, and how they end."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import psutil

from capsbench.cli.group import cli
from helpers.forked import Done, Running


@dataclass(frozen=True)
class Result:
    """The end of a command."""

    status: int
    stdout: str
    stderr: str


def subcommands(group: click.Command = cli) -> dict[str, click.Command]:
    """The commands of a group, by name; none of a command that is no group."""
    if not isinstance(group, click.Group):
        return {}
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


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
    """Return as soon as `what()` is true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def written(path: Path) -> str:
    """Return the text of a file that another process writes; none if it is not there yet."""
    return path.read_text(encoding="utf-8") if path.exists() else ""


def together(running: Sequence[Running], seconds: float = 300.0) -> list[Done]:
    """Return the ends of commands that wait for one another; one that is left alone is ended after some time."""
    try:
        wait_for(lambda: all(one.poll() for one in running), seconds)
    finally:
        ended = [one.kill() for one in running]
    return ended


def is_gone(pid: int) -> bool:
    """Return whether a process has ended; in some containers nobody collects the dead."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
