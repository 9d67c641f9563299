"""Workers that are forks count the same bytes as processes of their own, and end as these do."""

import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from capsbench.measure import forkserver
from capsbench.measure.cell import measure_cell, run_pass
from capsbench.measure.forkserver import Fork, Forks
from capsbench.measure.messages import Request
from capsbench.records import Cell, Plan
from capsbench.system.families import FAMILY
from helpers.commands import is_gone, wait_for
from helpers.made import make_configuration
from helpers.network_source import DAEMON, source

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def forks():
    with Forks() as found:
        yield found


def asked_for(name, **fields):
    return Request(configuration=make_configuration(name, 1, **fields), what="memory", samples=5)


def parts(name, forks, timeout=300):
    return run_pass(asked_for(name), timeout, forks=forks)


@pytest.mark.parametrize("model", ["rescapsnet", "mocapsnet"])
def test_a_fork_counts_what_a_process_of_its_own_counts(model, forks):
    """Every figure but the resident set, of which a fork has fewer pages of libraries."""
    request = Request(configuration=make_configuration(model, 2, batch_size=4), what="memory", samples=5)
    found, alone = (run_pass(request, 300, forks=one) for one in (forks, None))
    assert found.status == alone.status == "ok"
    assert found.memory.process_bytes > 0
    of_alone = alone.memory.process_bytes
    assert found.memory.model_copy(update={"process_bytes": of_alone}) == alone.memory
    assert found.model_copy(update={"memory": alone.memory}) == alone


def test_forks_come_from_one_process_and_leave_nothing_to_the_next(own_model, forks):
    name = own_model(source(top="import builtins", make="""
    assert not hasattr(builtins, "seen")
    builtins.seen = True
    torch.set_default_dtype(torch.float64)
    torch.set_default_dtype(torch.float32)
    with open("parents", "a") as file:
        print(os.getppid(), os.getcwd(), file=file)
"""))  # fmt: skip
    for _ in range(2):
        reply = parts(name, forks)
        assert reply.status == "ok", reply.message
    lines = Path("parents").read_text().splitlines()
    assert lines == 2 * [f"{forks._process.pid} {Path.cwd()}"]


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ("os._exit(0)", "ended with status 0"),
        ("os.kill(os.getpid(), 9)", "SIGKILL"),
        ("os.abort()", "SIGABRT"),
        ("sys.stderr.write('last words'); sys.stderr.flush(); os._exit(3)", "status 3: last words"),
        ("raise ValueError('no network')", "no network"),
    ],
)
def test_a_fork_that_ends_badly_says_how(own_model, forks, ending, words):
    reply = parts(own_model(source(make=ending)), forks)
    assert reply.status == "error"
    assert words in reply.message


def test_a_fork_that_takes_too_long_is_ended(own_model, tmp_path, forks):
    name = own_model(source(top="import time", make="open('pid', 'w').write(str(os.getpid())); time.sleep(600)"))
    reply = parts(name, forks, timeout=2)
    assert reply.status == "timeout"
    assert is_gone(int((tmp_path / "pid").read_text()))
    assert parts(own_model(source()), forks).status == "ok"


def test_what_a_fork_leaves_behind_is_found_by_its_variables(own_model, tmp_path, forks):
    """The system lists the variables of the process that the fork comes from, but for its family."""
    reply = parts(own_model(source(top=DAEMON)), forks)
    assert reply.status == "ok", reply.message
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_a_process_that_was_killed_is_replaced(own_model, forks):
    name = own_model(source())
    assert parts(name, forks).status == "ok"
    killed = forks._process.pid
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: psutil.Process(killed).status() == psutil.STATUS_ZOMBIE, 10)
    # The one that is asked for next starts by itself, and the one after it by a new process.
    assert [parts(name, forks).status for _ in range(2)] == ["ok", "ok"]
    assert forks._process.pid != killed


def test_other_variables_need_another_process(own_model, monkeypatch):
    name = own_model(source(make="open(os.environ['WHERE'], 'w').close()"))
    with Forks() as forks:
        before = None
        for where in ("one", "two"):
            monkeypatch.setenv("WHERE", where)
            assert parts(name, forks).status == "ok"
            assert Path(where).exists()
            assert forks._process.pid != before
            before = forks._process.pid
    assert is_gone(before)


def test_forks_end_with_the_one_that_asks(tmp_path):
    script = """
import sys
from capsbench.measure.forkserver import Forks
from capsbench.system.families import FAMILY
import os
forks = Forks()
ends = os.pipe()
fork = forks.start((ends[0], 1, 2), {**os.environ, FAMILY: "f" * 16}, os.getcwd())
print(forks._process.pid, fork.pid, flush=True)
fork.wait()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as asker:
        server, fork = map(int, asker.stdout.readline().split())
        assert psutil.Process(fork).ppid() == server
        asker.kill()
        wait_for(lambda: is_gone(fork) and is_gone(server), 30)


def test_where_ends_cannot_be_watched_processes_import_for_themselves(monkeypatch):
    monkeypatch.setattr(forkserver.os, "pidfd_open", lambda _: (_ for _ in ()).throw(OSError()))
    forks = Forks()
    assert forks.start((0, 1, 2), {**os.environ, FAMILY: "f" * 16}, "/") is None
    assert forks._process is None


def test_a_fork_has_the_status_that_its_parent_sends():
    ours, theirs = socket.socketpair()
    theirs.send(struct.pack("!i", 17))
    fork = Fork(ours)
    assert fork.pid == 17
    with pytest.raises(subprocess.TimeoutExpired):
        fork.wait(0.01)
    theirs.send(struct.pack("!i", -9))
    assert (fork.wait(), fork.returncode) == (-9, -9)
    ours, theirs = socket.socketpair()
    theirs.close()
    with pytest.raises(EOFError):
        Fork(ours)


def test_cells_of_a_sweep_are_measured_by_forks(own_model, tmp_path, forks):
    name = own_model(source(make="open('parent', 'w').write(str(os.getppid()))"))
    cell = Cell(configuration=make_configuration(name, 1))
    plan = Plan(command="", cells=[cell], passes=["memory"])
    assert measure_cell(cell, plan, environment="abcd", forks=forks).status == "ok"
    assert (tmp_path / "parent").read_text() == str(forks._process.pid)
