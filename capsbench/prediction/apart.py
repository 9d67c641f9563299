"""Calls in a process of their own, for any function that runs a user's network without measuring it.

Such a network may print, change torch's defaults, or end its process: none of that may reach the calling process. A
server imports the package once, and each call is a fork of it, which costs milliseconds where a new process costs seconds.

    found = call_for(configuration.model, largest_fit, configuration, "depth")
"""

import atexit
import contextlib
import os
import pickle
import secrets
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import IO, Any, Literal, NamedTuple, TypeVar, cast

import torch
from torch import nn

from capsbench.cases.factories import BUILT_IN
from capsbench.cases.foreign import module_of, refuse_while_importing
from capsbench.errors import CapsbenchError, EndedProcessError, error_line
from capsbench.records import Configuration
from capsbench.system.cores import Cores
from capsbench.system.families import FAMILY, end_family, end_with_family, ended_words, last_words
from capsbench.system.garbage import freeze_for_good
from capsbench.system.paths import start, starting_here
from capsbench.tracing.follow import following

T = TypeVar("T")

_LENGTH = struct.Struct("!Q")

_FEW = 3
"""Most calls that are not worth another process, which takes seconds to start."""

_MOST_SERVERS = 8
"""Most servers at a time: each takes some hundred megabytes."""


class _Question(NamedTuple):
    """A call, and the settings that its process shares with the asking one."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    folder: str
    path: list[str]
    environment: dict[str, str]


class _Answer(NamedTuple):
    """The outcome of a call."""

    kind: Literal["value", "error", "ended"]
    content: Any
    """The returned value, the package's own error, or words on how the process ended."""


def call_for(model: str, function: Callable[..., T], *args: Any) -> T:
    """Call a function that makes or runs a network: here if the package has it or this process alone knows it, else apart.

    Args:
        model: name of the network.
        function: function of a module, under its own name there.
        args: its arguments.

    Raises:
        CapsbenchError: the function raised it, or its process ended without an answer.
    """
    return function(*args) if model in BUILT_IN or _is_made_here(model) else call(function, *args)


def _is_made_here(model: str) -> bool:
    """Return whether this process alone knows a network: no other can import a module that was made here, as in a notebook."""
    module = sys.modules.get(module_of(model))
    return module is not None and module.__spec__ is None


@contextlib.contextmanager
def answers_to(
    function: Callable[..., T], asked: Sequence[tuple[Configuration, *tuple[Any, ...]]]
) -> Iterator[Iterable[Callable[[], T]]]:
    """Call a function for several configurations, side by side if they are many.

    The block gets a function for each configuration, in order. It waits for its call, and returns or raises what the call did.

    Args:
        function: function of a module, under its own name there.
        asked: its arguments for each call.
    """
    servers = min(int(Cores().capacity), _MOST_SERVERS)
    if len(asked) <= _FEW or servers <= 1 or any(_is_made_here(args[0].model) for args in asked):
        yield (partial(call_for, args[0].model, function, *args) for args in asked)
        return
    pool = ThreadPoolExecutor(servers)
    calls = [pool.submit(call, function, *args) for args in asked]
    try:
        yield [one.result for one in calls]
    except BaseException:  # Ctrl-C too: calls under way are not waited for
        pool.shutdown(wait=False, cancel_futures=True)
        while not all(one.done() for one in calls):
            close()  # again, since a call may be starting its server
            time.sleep(0.05)
        close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def call(function: Callable[..., T], *args: Any, timeout_seconds: float | None = None) -> T:
    """Call a function in a fresh process.

    Args:
        function: function of a module, under its own name there.
        args: its arguments, which `pickle` must take, as it must take the result.
        timeout_seconds: longest time to wait.

    Raises:
        CapsbenchError: the function raised it.
        EndedProcessError: its process ended without an answer, or gave none in time.
    """
    refuse_while_importing()
    question = pickle.dumps(_Question(function, args, str(start()), sys.path, dict(os.environ)))
    answer = _SERVERS.ask(question, timeout_seconds)
    if answer.kind == "error":
        raise answer.content
    if answer.kind == "ended":
        raise EndedProcessError(f"the process {answer.content}", "a network must not end the process that runs it")
    return answer.content


def close() -> None:
    """End all servers until one is needed again, so that no idle process stays during a measurement."""
    _SERVERS.close()


class _Server:
    """The caller's side of the server, which the first question starts."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self._family = ""
        self._owner = 0
        self._printed: IO[bytes] | None = None

    def ask(self, question: bytes, timeout_seconds: float | None) -> _Answer:
        try:
            to, back = self._pipes()
            _send(to, question)
            if not select.select([back], [], [], timeout_seconds)[0]:
                self.close()
                return _Answer("ended", f"gave no answer in {timeout_seconds:g} s")
            return _read(back)
        except (EOFError, BrokenPipeError):
            return _Answer("ended", self._last_words())
        except BaseException:  # Ctrl-C too: a call under way is not waited for
            self.close()
            raise

    def _last_words(self) -> str:
        """Description of the end of a server that gave no answer."""
        process, printed = self.process, self._printed
        if process is None or printed is None:
            return "could not be started"
        words = last_words(process, printed)
        self.close()
        return words

    def close(self) -> None:
        process, self.process = self.process, None
        if process is None or self._owner != os.getpid():  # a fork of the caller has no server of its own
            return
        end_with_family(process, self._family, (process.stdin, process.stdout, self._printed))

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        """The pipe to the server, which is started if there is none, and the pipe back."""
        if self.process is None or self._owner != os.getpid() or self.process.poll() is not None:
            self.close()
            self._owner = os.getpid()
            self._family, self._printed = secrets.token_hex(8), tempfile.TemporaryFile()  # noqa: SIM115  (closed with the server)
            # -P: a folder `capsbench` in the working directory must not replace the installed package.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "capsbench.prediction.apart"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._printed,
                # The server does not use CUDA. If a library does so when imported, this keeps CUDA usable for the forks.
                env={**os.environ, FAMILY: self._family, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
                start_new_session=True,  # Ctrl-C reaches the caller alone, which then ends the server
            )
        return cast("IO[bytes]", self.process.stdin), cast("IO[bytes]", self.process.stdout)


class _Servers:
    """Servers, one for each call under way; an idle one is used again, the latest first."""

    def __init__(self) -> None:
        self._all: list[_Server] = []
        self._idle: list[_Server] = []
        self._lock = threading.Lock()

    def ask(self, question: bytes, timeout_seconds: float | None) -> _Answer:
        with self._lock:
            if not self._idle:
                self._idle.append(_Server())
                self._all += self._idle
            server = self._idle.pop()
        try:
            return server.ask(question, timeout_seconds)
        finally:
            with self._lock:
                self._idle.append(server)

    def processes(self) -> list[subprocess.Popen[bytes]]:
        """The processes of the servers that run."""
        return [server.process for server in list(self._all) if server.process is not None]

    def close(self) -> None:
        for server in list(self._all):
            server.close()


_SERVERS = _Servers()
atexit.register(close)


def _send(file: IO[bytes], content: bytes) -> None:
    file.write(_LENGTH.pack(len(content)) + content)
    file.flush()


def _receive(file: IO[bytes]) -> bytes:
    """The next message; an `EOFError` if the other side is gone."""
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    content = file.read(length)
    if len(content) < length:
        raise EOFError
    return content


def _read(file: IO[bytes]) -> _Answer:
    return pickle.loads(_receive(file))  # noqa: S301  (written by this package, with the rights of this process)


# The server's side


def _serve() -> None:
    """Answer questions until no caller is left."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    warm = False
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            _send(answers, pickle.dumps(_answered(_receive(sys.stdin.buffer))))
            if not warm:
                # Import and cache what every trace needs while no caller waits: the first question checks that the network
                # exists. Run forward alone, on a CPU: after a backward pass no fork of a process can run another, and after
                # a use of CUDA none can use CUDA.
                with following():
                    nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Linear(1, 1))(torch.empty(1, 1, 1, 1)).sum()
                freeze_for_good()
                warm = True


def _answered(question: bytes) -> _Answer:
    # The answer comes through files, not pipes: they never fill, and a process that outlives the call blocks nothing.
    with tempfile.TemporaryFile() as written, tempfile.TemporaryFile() as printed:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on threads: the libraries handle their own
            child = os.fork()
        if child == 0:
            _run(question, written, printed)
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        end_family(os.environ[FAMILY], spare={os.getpid()})
        written.seek(0)
        try:
            return _read(written)
        except EOFError:
            pass
        except Exception as error:  # the answer may be of a class that the child alone knows
            return _Answer("ended", f"gave an answer that cannot be read: {error_line(error)}")
        printed.seek(0)
        return _Answer("ended", ended_words(os.waitstatus_to_exitcode(status), printed.read()))


def _run(question: bytes, written: IO[bytes], printed: IO[bytes]) -> None:
    """Run one call in the child, and end."""
    try:
        os.setsid()
        asker = os.dup(0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream in (1, 2):
            os.dup2(printed.fileno(), stream)
        threading.Thread(target=_end_with_asker, args=(asker,), daemon=True).start()
        answer = _called(question)
        try:
            content = pickle.dumps(answer)
        except Exception as error:  # the returned value may raise anything
            content = pickle.dumps(_Answer("ended", f"gave an answer that cannot be sent: {error_line(error)}"))
        _send(written, content)
        sys.stderr.flush()
    finally:
        # This skips the interpreter's own ending, which belongs to the server.
        os._exit(0)


def _called(question: bytes) -> _Answer:
    try:
        asked: _Question = pickle.loads(question)  # noqa: S301  (as above: from the process that started this one)
        os.chdir(asked.folder)
        environment = asked.environment | {FAMILY: os.environ[FAMILY]}
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = asked.path
        with starting_here():  # a network may go to another folder
            return _Answer("value", asked.function(*asked.args))
    except CapsbenchError as error:
        return _Answer("error", error)
    except BaseException as error:  # a user's network may raise anything
        traceback.print_exc()
        return _Answer("ended", f"ended with {error_line(error)}")


def _end_with_asker(asker: int) -> None:
    """End this process and its group as soon as the asking process is gone."""
    hung_up = select.poll()
    # Wait for hang-up alone, since reading would take the next question. Linux reports it in any case, macOS does not.
    hung_up.register(asker, select.POLLHUP)
    while not hung_up.poll(1000):
        time.sleep(0)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    # Import it under the name that others use, because pickled objects belong to that module.
    from capsbench.prediction.apart import _serve as serve

    serve()
