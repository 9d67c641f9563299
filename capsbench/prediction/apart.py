"""Calls in a process of their own, for whatever runs a network of the user's own without measuring it.

Such a network may print, change torch's defaults, or end its process: none of that is to reach the process that called. A
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
from collections.abc import Callable
from typing import IO, Any, Literal, NamedTuple, TypeVar, cast

import torch
from torch import nn

from capsbench.errors import CapsbenchError, EndedProcessError
from capsbench.families import FAMILY, end_family, ended_words
from capsbench.paths import start
from capsbench.tracing.follow import Follow
from capsbench.workload import BUILT_IN

T = TypeVar("T")

_LENGTH = struct.Struct("!Q")


class _Question(NamedTuple):
    """A call, and what its process is to have in common with the one that asks."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    folder: str
    path: list[str]
    environment: dict[str, str]


class _Answer(NamedTuple):
    """How a call ended."""

    kind: Literal["value", "error", "ended"]
    content: Any
    """What was returned, the package's own error, or words that say how the process ended."""


def call_for(model: str, function: Callable[..., T], *args: Any) -> T:
    """Call a function that makes or runs a network: here if the package has it or this process alone knows it, else apart.

    Args:
        model: name of the network.
        function: of a module, under its own name there.
        args: of the function.

    Raises:
        CapsbenchError: as `call`.
    """
    here = model in BUILT_IN or _is_of_this_process(model)
    return function(*args) if here else call(function, *args)


def _is_of_this_process(model: str) -> bool:
    """Whether a network's module was made here and not imported, as in a notebook: no other process could import it."""
    module = sys.modules.get(model.partition(":")[0])
    return module is not None and module.__spec__ is None


def call(function: Callable[..., T], *args: Any, timeout_seconds: float | None = None) -> T:
    """Call a function in a fresh process.

    Args:
        function: of a module, under its own name there.
        args: like everything that comes back, what `pickle` takes.
        timeout_seconds: how long to wait at most.

    Raises:
        CapsbenchError: the function raised it.
        EndedProcessError: its process ended without an answer, or gave none in time.
    """
    question = pickle.dumps(_Question(function, args, str(start()), sys.path, dict(os.environ)))
    answer = _SERVER.ask(question, timeout_seconds)
    if answer.kind == "error":
        raise answer.content
    if answer.kind == "ended":
        raise EndedProcessError(f"the process {answer.content}", "a network must leave the process that runs it alone")
    value: T = answer.content
    return value


def close() -> None:
    """End the server until it is needed again: nothing that is idle lies beside a measurement."""
    _SERVER.close()


class _Server:
    """The caller's side of the server, which is started by the first question."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._family = ""
        self._owner = 0
        self._printed: IO[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, question: bytes, timeout_seconds: float | None) -> _Answer:
        with self._lock:
            try:
                to, back = self._pipes()
                _send(to, question)
                if not select.select([back], [], [], timeout_seconds)[0]:
                    self.close()
                    return _Answer("ended", f"gave no answer in {timeout_seconds:g} s")
                return _read(back)
            except (EOFError, BrokenPipeError):
                return _Answer("ended", self._last_words())
            except BaseException:  # Ctrl-C too: whatever is under way is not waited for
                self.close()
                raise

    def _last_words(self) -> str:
        """How the server ended that gave no answer."""
        process, printed = self._process, self._printed
        if process is None or printed is None:
            return "could not be started"
        status = process.wait()
        printed.seek(0)
        words = ended_words(status, printed.read())
        self.close()
        return words

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():  # a fork of the caller has no server
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        end_family(self._family)
        for pipe in (process.stdin, process.stdout, self._printed):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        """To the server, which is started if there is none, and back."""
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self.close()
            self._owner = os.getpid()
            self._family, self._printed = secrets.token_hex(8), tempfile.TemporaryFile()  # noqa: SIM115  (closed with the server)
            # -P: a folder `capsbench` where the command is typed must not replace the installed one.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "capsbench.prediction.apart"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._printed,
                # The server asks CUDA nothing. Should a library do so as it is imported, this leaves the forks able to use CUDA.
                env={**os.environ, FAMILY: self._family, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
                start_new_session=True,  # Ctrl-C reaches the caller alone, which then ends the server
            )
        return cast("IO[bytes]", self._process.stdin), cast("IO[bytes]", self._process.stdout)


_SERVER = _Server()
atexit.register(close)


def _send(file: IO[bytes], content: bytes) -> None:
    file.write(_LENGTH.pack(len(content)) + content)
    file.flush()


def _receive(file: IO[bytes]) -> bytes:
    """The next message.

    Raises:
        EOFError: the other side is gone.
    """
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    content = file.read(length)
    if len(content) < length:
        raise EOFError
    return content


def _read(file: IO[bytes]) -> _Answer:
    """The answer that comes next.

    Raises:
        EOFError: there is none.
    """
    answer: _Answer = pickle.loads(_receive(file))  # noqa: S301  (what this package wrote, with the rights of this process)
    return answer


# The server's side


def _serve() -> None:
    """Answers questions until nobody can ask any more."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    warm = False
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            _send(answers, pickle.dumps(_answered(_receive(sys.stdin.buffer))))
            if not warm:
                # While nobody waits: the first question is whether there is such a network, the next ones are what it takes.
                _warm_up()
                warm = True


def _warm_up() -> None:
    """Import and cache what every trace needs.

    Forward alone, and on a CPU: after a backward pass no fork of a process can run another, and after a question to CUDA none
    can use CUDA.
    """
    with Follow():
        nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Linear(1, 1))(torch.empty(1, 1, 1, 1)).sum()


def _answered(question: bytes) -> _Answer:
    # Files, not pipes, for what comes back: they never fill, and a process that outlives the call holds up nobody.
    with tempfile.TemporaryFile() as written, tempfile.TemporaryFile() as printed:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads: the libraries' own take care of themselves
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
        except Exception as error:  # of a class that the child alone knows
            return _Answer("ended", f"gave an answer that cannot be read: {_words(error)}")
        printed.seek(0)
        return _Answer("ended", ended_words(os.waitstatus_to_exitcode(status), printed.read()))


def _run(question: bytes, written: IO[bytes], printed: IO[bytes]) -> None:
    """The child: one call, and then no more."""
    try:
        os.setsid()
        asker = os.dup(0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream in (1, 2):
            os.dup2(printed.fileno(), stream)
        threading.Thread(target=_end_with_asker, args=(asker,), daemon=True).start()
        _send(written, _packed(_called(question)))
        sys.stderr.flush()
    finally:
        # Past the interpreter's own ending, which is the server's.
        os._exit(0)


def _called(question: bytes) -> _Answer:
    try:
        asked: _Question = pickle.loads(question)  # noqa: S301  (as above: from the process that started this one)
        os.chdir(asked.folder)
        environment = asked.environment | {FAMILY: os.environ[FAMILY]}
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = asked.path
        return _Answer("value", asked.function(*asked.args))
    except CapsbenchError as error:
        return _Answer("error", error)
    except BaseException as error:  # whatever a user's network raises
        traceback.print_exc()
        return _Answer("ended", f"ended with {_words(error)}")


def _packed(answer: _Answer) -> bytes:
    try:
        return pickle.dumps(answer)
    except Exception as error:  # of what was returned, which may raise anything
        return pickle.dumps(_Answer("ended", f"gave an answer that cannot be sent: {_words(error)}"))


def _words(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"


def _end_with_asker(asker: int) -> None:
    """Ends this process and its group as soon as the one that asked is gone."""
    hung_up = select.poll()
    # For hang-up alone, since reading would take the next question. Linux reports it whatever is asked for, macOS does not.
    hung_up.register(asker, select.POLLHUP)
    while not hung_up.poll(1000):
        time.sleep(0)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    # Under the name that others import: what is pickled is of this module.
    from capsbench.prediction.apart import _serve as serve

    serve()
