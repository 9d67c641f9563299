"""Commands as processes of their own, a hundred a minute: children of one process that has everything imported.

Each child has the standard streams, the variables and the folder that a test gives it, and ends as the command would. Unless the
test changes that process first, the processes in which the command measures and predicts are forks as well.
"""

import atexit
import base64
import io
import json
import os
import pickle
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from capsbench.prediction.seconds import calibrated_speed
from capsbench.system.garbage import freeze_for_good

T = TypeVar("T")

WHERE = ("file", "gone", "full", "closed")
"""A file; a pipe whose reader has gone away; a full disk; a descriptor that the caller closed."""


# Here are the networks that commands are given, as `helpers.tiny:make`.
_TESTS = os.fspath(Path(__file__).parents[1])

_RUNS = 1000
"""The answer for a fork that has not ended; no status is as large."""


@dataclass(frozen=True)
class Done:
    """The end of a command, and the text that reached a reader."""

    status: int
    stdout: str
    stderr: str
    raw: bytes


class Server:
    """The process that has everything imported.

    Args:
        scratch: a folder for what commands say.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch, self._started = scratch, 0
        calibrated_speed(1)  # whose result all commands find in their environment
        environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(self, folder: Path, *arguments: object, **options: Any) -> Done:
        """Run a command to its end, with the arguments of `start`."""
        return self.start(folder, *arguments, **options).end()

    def start(
        self, folder: Path, *arguments: object, program: str = "capsbench", out: str = "file", err: str = "file",
        stdin: str = "file", setup: str = "", forks: bool = False, drawn: bool = False, **variables: str,
    ) -> "Running":  # fmt: skip
        """Start a command, which runs until it ends or a signal ends it.

        Args:
            folder: where it is typed.
            arguments: what is typed after the program's name.
            program: `capsbench`, `python` for a script and its arguments, or `pytest`.
            out: one of `WHERE`, for standard output.
            err: the same for standard error.
            stdin: the same for standard input.
            setup: Python that is run in the process before the command, whose own processes are fresh ones then.
            forks: True to have forks as its processes all the same.
            drawn: True to write what figures look like; else their files are there, and hold a word, which saves seconds.
            variables: of the environment.
        """
        request = {
            "folder": str(folder), "program": program, "arguments": [*map(str, arguments)], "streams": [stdin, out, err],
            "setup": setup, "forks": forks or not setup or program == "python", "drawn": drawn,
            "variables": {"COLUMNS": "80", **variables},
        }  # fmt: skip
        return self._begin(request, variables.get("PYTHONIOENCODING", "utf-8"))

    def call(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call a function in a process with this one's folder and variables; the processes that it starts are forks.

        Args:
            function: function of a module of the package.
            args: its arguments, which `pickle` must take, as it must take the result.
            options: its arguments by keyword.
        """
        request = {
            "folder": str(Path.cwd()), "streams": ["file"] * 3, "variables": dict(os.environ),
            "call": base64.b64encode(pickle.dumps((function, args, options))).decode(),
        }  # fmt: skip
        done = self._begin(request).end()
        assert done.status == 0, done.stderr
        found: T = pickle.loads(done.raw)
        return found

    def _begin(self, request: Mapping[str, Any], encoding: str = "utf-8") -> "Running":
        """Have a fork made that answers a request."""
        self._started += 1
        files = self._scratch / f"{self._started}.out", self._scratch / f"{self._started}.err"
        for file in files:
            file.write_bytes(b"")
        return Running(self, self.ask({**request, "files": [os.devnull, *map(str, files)]}), files, encoding)

    def ask(self, question: Mapping[str, Any]) -> int:
        """Return the number with which the process answers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


class Running:
    """A command that a server has started, which may run while the server starts others.

    Args:
        server: the server.
        pid: number of the fork.
        files: what it writes to standard output and standard error, if these are files.
        encoding: of its streams.
    """

    def __init__(self, server: Server, pid: int, files: tuple[Path, Path], encoding: str) -> None:
        self._server, self.pid, self._files, self._encoding = server, pid, files, encoding
        self._ended: Done | None = None

    def poll(self) -> Done | None:
        """Return the end of the command; None while it runs."""
        return self._ended or self._status_of("poll")

    def end(self) -> Done:
        """Wait for the end of the command."""
        ended = self._ended or self._status_of("wait")
        assert ended is not None
        return ended

    def send_signal(self, number: int) -> None:
        """Send a signal, if the command still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> Done:
        """End the command at once."""
        self.send_signal(signal.SIGKILL)
        return self.end()

    def _status_of(self, how: str) -> Done | None:
        answer = self._server.ask({how: self.pid})
        if answer == _RUNS:
            return None
        raw, errors = (file.read_bytes() for file in self._files)
        for file in self._files:
            file.unlink()
        text = [it.decode(self._encoding, "replace") for it in (raw, errors)]
        self._ended = Done(answer, *text, raw)
        return self._ended


@cache
def shared_server() -> Server:
    """Return the server of this test process, which ends with it."""
    scratch = tempfile.TemporaryDirectory(prefix="forked-")
    server = Server(Path(scratch.name))
    atexit.register(scratch.cleanup)
    atexit.register(server.close)
    return server


def in_fork(function: Callable[..., T], *args: Any, **options: Any) -> T:
    """Call a function in a fork of the shared server, as `Server.call` does."""
    return shared_server().call(function, *args, **options)


def _connect(number: int, where: str, file: str) -> None:
    if where == "closed":
        os.close(number)
        return
    if where == "gone":
        reading, opened = os.pipe()
        os.close(reading)
    else:
        opened = os.open("/dev/full" if where == "full" else file, os.O_RDONLY if number == 0 else os.O_WRONLY)
    os.dup2(opened, number)
    os.close(opened)


def _stream(number: int, where: str, encoding: str) -> Any:
    """A standard stream as Python makes it when it starts."""
    if where == "closed":
        return None
    buffer = io.BufferedWriter(io.FileIO(number, "wb", closefd=False))
    return io.TextIOWrapper(buffer, encoding=encoding, errors="strict" if number == 1 else "backslashreplace")


class _Fork(subprocess.Popen[bytes]):
    """A process that runs a module of the package with `python -P -m`, as a fork of this one."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], pass_fds: Sequence[int] = (), **options: Any) -> None:
        # This function never returns, so that no other program takes the place of the fork.
        super().__init__(command, preexec_fn=lambda: _be_module(command[-1], env, pass_fds), pass_fds=pass_fds, **options)


def _be_module(name: str, environment: Mapping[str, str], kept: Sequence[int]) -> None:
    """Run a module of the package to its end; folder, session and the standard descriptors are those of the process already."""
    first = 3
    for descriptor in (*sorted(kept), os.sysconf("SC_OPEN_MAX")):
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (_stream(number, "file", "utf-8") for number in (1, 2))
    for imported in _of_a_user():
        del sys.modules[imported]  # a fresh process imports the network again
    module = sys.modules[name]
    _end_as(module._serve if name.endswith(".apart") else module.main)


def _of_a_user() -> list[str]:
    """Names of the imported modules that are neither Python's, nor of an installed package, nor of this one."""
    files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items() if name not in _IMPORTED}
    mine = (sys.prefix, sys.base_prefix, os.fspath(Path(_TESTS).parent / "capsbench"))
    return [name for name, file in files.items() if file is not None and not file.startswith(mine)]


_IMPORTED: set[str] = set()


def _become(request: Mapping[str, Any]) -> None:
    """Be the command that was asked for."""
    for number, where in enumerate(request["streams"]):
        _connect(number, where, request["files"][number])
    os.environ.update(request["variables"])
    tempfile.tempdir = None
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
    sys.stdin = None  # type: ignore[assignment]
    sys.stdout, sys.stderr = (_stream(number, request["streams"][number], encoding) for number in (1, 2))
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # type: ignore[misc]
    os.chdir(request["folder"])
    sys.path.insert(0, _TESTS)
    if "call" in request:
        _fork_workers()
        function, args, options = pickle.loads(base64.b64decode(request["call"]))
        answer = pickle.dumps(function(*args, **options))
        sys.stdout.buffer.write(answer)
        sys.stdout.flush()
        return
    sys.argv = [request["program"], *request["arguments"]]
    if not request["drawn"]:
        from matplotlib.figure import Figure

        Figure.savefig = save_a_word  # type: ignore[method-assign]
    exec(request["setup"], {})
    if request["forks"]:
        _fork_workers()
    _PROGRAMS[request["program"]]()


def _capsbench() -> None:
    from capsbench.cli import main

    main()


def save_a_word(_: Any, file: Any, **__: Any) -> None:
    """Write a word in place of a figure, or fail as the figure would."""
    if isinstance(file, Path):
        file.write_text("a figure", encoding="utf-8")
    else:
        file.write(b"a figure")


def _python() -> None:
    """Run a script as Python does: modules of its folder can be imported."""
    del sys.argv[0]
    sys.path[0] = os.fspath(Path(sys.argv[0]).resolve().parent)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        sys.stdout.flush()


def _pytest() -> None:
    import pytest

    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    status = pytest.main(["-q", "-p", "no:cacheprovider", "-p", "capsbench.pytest_plugin", *sys.argv[1:]])
    sys.stdout.flush()
    sys.exit(status)


_PROGRAMS = {"capsbench": _capsbench, "python": _python, "pytest": _pytest}


def _fork_workers() -> None:
    """Let commands fork the processes in which they measure and predict."""
    from capsbench.measure import cell, forkserver, group, together
    from capsbench.prediction import apart

    forking = SimpleNamespace(**{name: getattr(subprocess, name) for name in subprocess.__all__} | {"Popen": _Fork})
    for module in (cell, forkserver, group, together, apart):
        module.subprocess = forking  # type: ignore[attr-defined]


def _end_as(function: Callable[[], None]) -> None:
    """Call a function, and end this process as Python ends a program that does no more."""
    status = 0
    try:
        function()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode())
        status = 1
    os._exit(status)


_PRELOADED = (
    "capsbench.cli.sweeps",
    "capsbench.cli.reproduce_table",
    "capsbench.figures.one_step",
    "capsbench.gate.verdicts",
    "capsbench.inference",
    "capsbench.measure.group",
    "capsbench.measure.turns",
    "capsbench.page.notebook",
    "capsbench.prediction.fit",
    "capsbench.terminal.show",
    "capsbench.tracing.step_trace",
    "capsbench.training.trainer",
    "matplotlib.figure",
    # A first trace imports these.
    "sympy.printing",
    "torch._dynamo",
    "torch.fx.experimental.symbolic_shapes",
)


def serve() -> None:
    """Fork for every line of JSON on standard input; answer with the status."""
    for name in _PRELOADED:
        import_module(name)
    # A first figure imports much, and finds the fonts.
    figure = sys.modules["matplotlib.figure"].Figure()
    figure.text(0, 0, "text")
    for written in ("png", "svg", "pdf"):
        figure.savefig(io.BytesIO(), format=written)
    # A first page compresses the library of its charts.
    build = sys.modules["capsbench.page.build"]
    build._library(), build._template()
    # A first trace imports much, too; of forward alone, since after a backward pass no fork could run another.
    torch = sys.modules["torch"]
    with sys.modules["capsbench.tracing.follow"].following(inside=False):
        torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU())(torch.empty(1, 1)).sum()
    _IMPORTED.update(sys.modules)
    freeze_for_good()
    # Lines, not the buffered file: a child must not find what its parent has read ahead.
    for line in iter(sys.stdin.readline, ""):
        sys.stdout.write(f"{_answer(json.loads(line))}\n")
        sys.stdout.flush()


def _answer(question: Mapping[str, Any]) -> int:
    """The status of a fork that is waited for or looked at, `_RUNS` if it has none yet; else the number of a new fork."""
    for how, options in (("wait", 0), ("poll", os.WNOHANG)):
        if how in question:
            child, status = os.waitpid(question[how], options)
            return os.waitstatus_to_exitcode(status) if child else _RUNS
    child = os.fork()
    if not child:
        _end_as(partial(_become, question))
    return child


if __name__ == "__main__":
    sys.path[0] = _TESTS
    serve()
