"""Networks that print, end their process, leave others behind, or change torch's defaults."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import psutil
import pytest
import torch

from capsbench.cases.factories import resolve_model
from capsbench.cli import timeline
from capsbench.errors import CapsbenchError, ConfigurationError
from capsbench.measure.cell import measure_cell, run_pass
from capsbench.measure.messages import Reply, Request
from capsbench.measure.worker import memory_pass
from capsbench.prediction import apart
from capsbench.prediction.predict import predict_cell
from capsbench.records import Cell, Plan
from capsbench.report import Report
from capsbench.system.families import FAMILY, end_family
from capsbench.testing import memory_slope
from capsbench.tracing.step_trace import trace_step
from capsbench.training import TrainingSettings
from capsbench.training.checkpoint import build_network
from helpers import odd_systems
from helpers.commands import assert_refused, is_gone, wait_for
from helpers.forked import in_fork
from helpers.made import make_configuration
from helpers.network_source import DAEMON, source

NOISY = """
import os, subprocess, sys
import torch
from torch import nn

def say(where):
    print(where)
    os.write(1, b"[1]\\n")
    subprocess.run(["echo", "a child in", where])
    sys.__stdout__.write("unbuffered?\\n")

say("import")

class Net(nn.Sequential):
    def forward(self, x):
        say("forward")
        return super().forward(x)

def make(in_shape, classes, blocks):
    say("factory")
    return Net(nn.Flatten(), nn.Linear(784, 4), *(nn.Linear(4, 4) for _ in range(blocks)), nn.Linear(4, classes))
"""


def predicted(name, **fields):
    return predict_cell(Cell(configuration=make_configuration(name, 1, device="cpu:predicted", **fields)))


def asked_for(name, what="memory", **fields):
    return Request(configuration=make_configuration(name, 1, **fields), what=what, samples=5, budget_seconds=0.01)


def measured(name, what="memory", **fields):
    return in_fork(run_pass, asked_for(name, what, **fields), 300)


def measured_afresh(name):
    """Measure in a process that is no fork: its variables, by which what it started is found, can be seen from outside."""
    return run_pass(asked_for(name), 300)


# What a network prints.


@pytest.mark.parametrize(
    "asked",
    [
        "predict --models {} --depth 1,2 --device cpu",
        "predict --models {} --device cpu --capacity 8MiB --fit batch --depth 1",
        "run --models {} --depth 1,2,3 --device cpu:predicted --out there",
        "run --models {} --depth 1,2 --batch-size 4 --out there",
        "timeline --model {} --device cpu:predicted --out there",
        "timeline --model {} --device cpu --batch-size 4 --out there",
        "train --model {} --epochs 1 --scale 0.1 --batch-size 32 --out there",
    ],
)
def test_json_alone_is_on_standard_output(capsbench, own_model, asked):
    result = capsbench(*asked.format(own_model(NOISY)).split(), "--json")
    assert result.status == 0, result.stderr
    assert json.loads(result.stdout), result.stdout


# What ends its process.

ENDINGS = {
    "os._exit(0)": "ended with status 0",
    "sys.exit()": "SystemExit",
    "sys.exit(0)": "SystemExit: 0",
    "os.kill(os.getpid(), 9)": "SIGKILL",
    "os.abort()": "SIGABRT",
    "sys.stderr.write('last words'); sys.stderr.flush(); os._exit(3)": "status 3: last words",
}


@pytest.mark.parametrize("place", ["make", "forward"])
@pytest.mark.parametrize(("ending", "words"), ENDINGS.items())
def test_a_prediction_ends_with_an_error_record(own_model, place, ending, words):
    record = predicted(own_model(source(**{place: ending})))
    assert record.kind == "predicted"
    assert record.status == "error"
    assert words in record.message


@pytest.mark.slow
def test_the_other_cells_of_a_predicted_sweep_are_there(command, own_model, tmp_path):
    name = own_model(source(make="blocks in (2, 32) and os._exit(0)"))
    for asked in ("run --device cpu:predicted", "predict --device cpu"):
        out = asked.split()[0]
        result = command(*asked.split(), "--models", name, "--depth", "1-3", "--out", out)
        assert result.status == 1
        assert "ended with status 0" in result.stderr
        records = Report(tmp_path / out).records
        assert [record.status for record in records] == ["ok", "error", "ok"]
    assert command("predict", "--models", name, "--depth", "1-3", "--device", "cpu").status == 1
    fit = command("predict", "--models", name, "--device", "cpu", "--capacity", "1GiB", "--fit", "depth")
    assert (fit.status, fit.stdout) == (1, "")
    assert "ended with status 0" in fit.stderr


def test_a_network_that_ends_the_process_is_told_alike_by_all_commands(command, own_model):
    name = own_model(source(top="print('hello from import')", make="os._exit(0)"))
    for asked in ("timeline --device cpu:predicted --out there --model", "predict --device cpu --models"):
        result = command(*asked.split(), name)
        assert (result.status, result.stdout) == (1, "")
        assert "ended with status 0 before it was done" in result.stderr
        assert "hello" not in result.stderr


@pytest.mark.parametrize("ending", ["os._exit(0)", "sys.exit(0)", "raise KeyboardInterrupt"])
def test_a_module_that_ends_the_process_is_refused_before_anything_runs(command, own_model, tmp_path, ending):
    name = own_model(source(top=ending))
    for asked in ("run", "predict", "train --out there"):
        words = asked.split()
        flag = "--model" if words[0] == "train" else "--models"
        assert_refused(command(*words, flag, name), f"'{name}' cannot be imported")
    assert not (tmp_path / "there").exists()


def test_a_misspelt_function_is_answered_with_the_nearest(command, own_model):
    name = own_model(source())
    for asked in ("predict --device cpu --models", "timeline --device cpu:predicted --model"):
        result = command(*asked.split(), name.removesuffix("make") + "mak")
        assert_refused(result, "has no attribute 'mak'\n", "did you mean make? If not, name one of ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "call", ["predict({name!r}, depths=1)", "run({name!r}, depths=1)", "run('capsnet', depths=1, out='there')"]
)
def test_a_module_that_measures_while_it_is_imported_is_refused(command, own_model, tmp_path, call):
    """Every process that measures its network imports it, and would begin another measurement, without end."""
    name = own_model("")
    file = tmp_path / f"{name.partition(':')[0]}.py"
    file.write_text(source(top=f"import capsbench\ncapsbench.{call.format(name=name)}"), encoding="utf-8")
    for asked in (name, f"{file.name}:make"):
        for words in ("predict", "run --out there"):
            result = command(*words.split(), "--models", asked, "--depth", 1)
            assert_refused(result, f"model '{asked}': its module measures or predicts when it is imported", "__main__")
    assert not (tmp_path / "there").exists()


def test_training_does_not_end_well_because_a_network_ends_the_process(command, own_model, tmp_path):
    for number, (place, ending) in enumerate(product(("make", "forward"), ("sys.exit(0)", "os._exit(0)"))):
        result = command("train", "--model", own_model(source(**{place: ending})), "--batch-size", 32, "--out", str(number))
        assert result.status == 1
        assert "failed: SystemExit: " in result.stderr


@pytest.mark.slow
def test_calls_apart_give_values_errors_and_time(own_model):
    assert apart.call(os.path.join, "a", "b") == "a/b"
    assert apart.call(os.getpid) != os.getpid()
    with pytest.raises(ConfigurationError) as error:
        apart.call(resolve_model, "no_such_module:make")
    assert error.value.hint
    with pytest.raises(CapsbenchError, match=r"no answer in 0\.3 s"):
        apart.call(time.sleep, 60, timeout_seconds=0.3)
    assert apart.call(os.path.join, "c", "d") == "c/d"
    with pytest.raises(CapsbenchError, match="status 0"):
        apart.call(os._exit, 0)


@pytest.mark.slow
def test_the_server_ends_with_the_one_that_asks(tmp_path):
    script = "import os, sys, time\nfrom capsbench.prediction import apart\napart.call(os.getpid)\n"
    script += "print(*(one.pid for one in apart._SERVERS.processes()), flush=True)\napart.call(time.sleep, 600)\n"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as asker:
        server = psutil.Process(int(asker.stdout.readline()))
        wait_for(server.children)
        (child,) = server.children()
        asker.kill()
        wait_for(lambda: is_gone(child.pid) and is_gone(server.pid), 30)


# What outlives its cell.

LEFT_BEHIND = """
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open("pid", "w").write(str(child.pid))
"""


@pytest.mark.slow
@pytest.mark.parametrize("left", [LEFT_BEHIND, DAEMON], ids=["session", "daemon"])
@pytest.mark.parametrize("look", [measured_afresh, predicted])
def test_what_a_network_starts_ends_with_its_cell(own_model, tmp_path, left, look):
    reply = look(own_model(source(top=left)))
    assert reply.status == "ok", reply.message
    assert is_gone(int((tmp_path / "pid").read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["os._exit(0)", "import time; time.sleep(600)"], ids=["ended", "timeout"])
def test_also_where_the_cell_ends_badly(own_model, tmp_path, ending):
    name = own_model(source(top=LEFT_BEHIND, make=ending))
    configuration = make_configuration(name, 1)
    cell = Cell(configuration=configuration)
    plan = Plan(command="", cells=[cell], timeout_seconds=5)
    assert in_fork(measure_cell, cell, plan, environment="abcd").status in ("error", "timeout")
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_strangers_are_left_alone():
    with subprocess.Popen(["sleep", "600"], env={**os.environ, FAMILY: "another"}) as stranger:
        end_family("one")
        end_family("")
        assert stranger.poll() is None
        end_family("another")
        wait_for(lambda: is_gone(stranger.pid), 10)


# What a network sets.


@pytest.mark.parametrize("place", ["top", "make"])
def test_the_number_of_threads_is_the_one_that_is_recorded(own_model, place):
    check = "assert torch.get_num_threads() == 2, torch.get_num_threads()"
    name = own_model(source(**{place: "torch.set_num_threads(1)"}, forward=check))
    for what in ("memory", "time"):
        reply = measured(name, what, threads=2)
        assert reply.status == "ok", reply.message
        (note,) = [note for note in reply.notes if "threads" in note]
        assert "threads to 1" in note
        assert "with 2" in note


def test_threads_that_are_set_in_every_step_are_an_error(own_model):
    reply = measured(own_model(source(forward="torch.set_num_threads(1)")), threads=2)
    assert reply.status == "error"
    assert "threads to 1 while it runs" in reply.message
    assert measured(own_model(source(forward="torch.set_num_threads(1)")), threads=1).status == "ok"


def test_training_keeps_its_threads_too(own_model, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    before = torch.get_num_threads()
    build_network(TrainingSettings(network=make_configuration(own_model(source(make="torch.set_num_threads(1 + 2)")), 1)))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("layers", ["nn.Linear(784, 10).double()", "nn.Bilinear(784, 784, 10).double()", "nn.Conv2d(1, 1, 3)"])
@pytest.mark.parametrize("device", ["cpu:predicted", "cuda:predicted"])
def test_a_step_that_mixes_dtypes_is_predicted_to_fail_as_it_does(monkeypatch, layers, device):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = eval(layers, {"nn": torch.nn})

        def forward(self, x):
            if isinstance(self.layer, torch.nn.Conv2d):
                return self.layer(x.double()).flatten(1)[:, :10]
            return self.layer(*[x.flatten(1)] * (2 if isinstance(self.layer, torch.nn.Bilinear) else 1))

    monkeypatch.setattr("capsbench.cases.factories.resolve_model", lambda _: lambda *_: Net())
    with pytest.raises(ConfigurationError, match=r"dtype|type"):
        trace_step(make_configuration("own:make", 1, device=device))


@pytest.mark.parametrize(("cast", "status"), [("", "error"), ("x = x.double()", "ok")])
def test_a_default_dtype_is_predicted_as_it_is_measured(own_model, cast, status):
    name = own_model(source(top="torch.set_default_dtype(torch.float64)", forward=cast or "pass"))
    found, real = predicted(name), measured(name)
    assert found.status == real.status == status
    if status == "ok":
        assert found.memory.retained_bytes == real.memory.retained_bytes
        assert found.memory.state_bytes == real.memory.state_bytes == 8 * (785 * 4 + 5 * 4 + 5 * 10)
        assert real.step.agrees is True
    else:
        assert "dtype" in found.message or "type" in found.message


@pytest.mark.slow
def test_what_one_network_sets_does_not_reach_the_next(command, own_model):
    name = own_model(source(top="torch.set_default_dtype(torch.float64)", forward="x = x.double()"))
    asked = ("--depth", "1", "--batch-size", "4", "--device", "cpu", "--json")
    (alone,) = json.loads(command("predict", "--models", "capsnet", *asked).stdout)
    both = json.loads(command("predict", "--models", f"{name},capsnet", *asked).stdout)
    assert both[1]["memory"] == alone["memory"]
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.slow
def test_a_guard_takes_images_as_they_are():
    try:
        found = memory_slope(_float64, depths=(1, 2))
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.retained_per_block == 8 * 4 * 8


def _float64(_in_shape, classes, blocks):
    torch.set_default_dtype(torch.float64)

    class Net(torch.nn.Sequential):
        def forward(self, x):
            assert x.dtype == torch.float32
            return super().forward(x.double())

    linear = torch.nn.Linear
    return Net(torch.nn.Flatten(), linear(784, 4), *(linear(4, 4) for _ in range(blocks)), linear(4, classes))


# A file that is hidden.


@pytest.mark.parametrize("hidden", ["psutil.py", "this.py", "sys.py"])
@pytest.mark.parametrize("body", ["def make(*_):\n    pass\n", ""])
def test_a_file_that_an_installed_module_hides_is_named_with_it(command, tmp_path, hidden, body):
    (tmp_path / hidden).write_text(body)
    module = hidden.removesuffix(".py")
    result = command("run", "--models", f"{module}:make", "--depth", "1")
    taken = getattr(sys.modules.get(module), "__file__", None)
    assert_refused(result, f"{hidden} is hidden by", *([taken] if taken else []))


def test_a_file_that_nothing_hides_is_taken(own_model, tmp_path, monkeypatch):
    name = own_model(source())
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one not in ("", str(tmp_path))])
    assert Path(resolve_model(name).__code__.co_filename).parent == tmp_path
    assert resolve_model("math:sqrt")(4) == 2


def test_a_measured_record_in_this_process_says_what_was_set(own_model, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    threads = torch.get_num_threads()
    reply = memory_pass(make_configuration(own_model(source(make="torch.set_num_threads(3)")), 1))
    assert torch.get_num_threads() == threads
    assert any("threads to 3" in note for note in reply.notes)


# What CUDA bears.

WITH_DRIVER = """
import torch

ask = torch._C._cuda_getDeviceCount
torch._C._cuda_getDeviceCount = lambda: ask() + 1
torch.cuda.device_count = torch._C._cuda_getDeviceCount
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch._C, "_cuda_getDeviceCount"), reason="this torch knows no CUDA")
def test_a_process_apart_may_use_cuda(tmp_path, monkeypatch):
    """A process that has used CUDA cannot be forked for another use."""
    (tmp_path / "sitecustomize.py").write_text(WITH_DRIVER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    apart.close()
    try:
        # The server warms up after the first call, and answers the second one after that.
        assert [apart.call(torch.cuda._is_in_bad_fork) for _ in range(3)] == [False] * 3
        assert apart.call(torch.cuda.is_available), "this machine should seem to have a driver"
    finally:
        apart.close()


# Systems that say less of processes.


@pytest.mark.slow
@pytest.mark.parametrize("what", ["time", "memory"])
@pytest.mark.parametrize("missing", [True, False])
def test_a_pass_that_fails_ends_at_once_where_the_system_shows_no_end_of_processes(own_model, what, missing):
    name = own_model(source(make="raise ValueError('too wide')"))
    reply = in_fork(odd_systems.without_pidfd, asked_for(name, what), 45, missing=missing)
    assert reply.status == "error"
    assert "too wide" in reply.message


def test_a_pass_is_timed_where_the_system_shows_no_end_of_processes(own_model):
    assert in_fork(odd_systems.without_pidfd, asked_for(own_model(source()), "time"), 300).time is not None


@pytest.mark.slow
def test_a_worker_that_ends_while_its_turn_is_waited_for_is_an_error_with_its_message(own_model):
    end = "def end():\n    sys.stderr.write('too late')\n    sys.stderr.flush()\n    os._exit(3)\n"
    name = own_model(source(top=end, make="import threading; threading.Timer(1, end).start()"))

    @contextmanager
    def turn():
        time.sleep(3)
        yield

    reply = run_pass(Request(configuration=make_configuration(name, 1), what="time", samples=5), 300, turn)
    assert reply.status == "error"
    assert "status 3: too late" in reply.message


@pytest.mark.parametrize("error", [psutil.AccessDenied(1), psutil.Error(), PermissionError(1, "not permitted")], ids=repr)
def test_a_system_that_lists_no_processes_ends_no_cell(own_model, monkeypatch, error):
    def raises():
        raise error
        yield

    monkeypatch.setattr(psutil, "process_iter", raises)
    end_family("one")
    assert in_fork(odd_systems.without_processes, asked_for(own_model(source())), 300, error).status == "ok"


# What a call apart is given and gives back.


@pytest.mark.slow
def test_an_answer_that_cannot_be_pickled_is_an_error_that_says_so():
    with pytest.raises(CapsbenchError, match="answer that cannot be sent: TypeError"):
        apart.call(threading.Lock)
    assert apart.call(os.path.join, "a", "b") == "a/b"


def test_an_answer_of_a_class_that_one_process_alone_knows_is_an_error_that_says_so():
    own = "type('Own', (), {'__reduce__': lambda self: (__import__, ('of_a_user',))})()"
    with pytest.raises(CapsbenchError, match=r"answer that cannot be read: ModuleNotFoundError: .*of_a_user"):
        apart.call(eval, own)
    assert apart.call(os.path.join, "a", "b") == "a/b"


@pytest.mark.slow
def test_a_call_has_the_variables_of_the_one_that_asks(monkeypatch):
    monkeypatch.setenv("OF_THE_ASKER", "1")
    assert apart.call(os.getenv, "OF_THE_ASKER") == "1"
    monkeypatch.delenv("OF_THE_ASKER")
    assert apart.call(os.getenv, "OF_THE_ASKER") is None
    apart.close()
    monkeypatch.setenv("OF_THE_ASKER", "1")
    assert apart.call(os.getenv, "OF_THE_ASKER") == "1"
    monkeypatch.delenv("OF_THE_ASKER")
    assert apart.call(os.getenv, "OF_THE_ASKER") is None
    assert apart.call(os.getenv, FAMILY)


def test_no_server_is_beside_a_timeline_that_is_measured(own_model, monkeypatch):
    there = []

    def look(*_):
        there.append(apart._SERVERS.processes())
        return Reply(status="error")

    monkeypatch.setattr("capsbench.measure.cell.run_pass", look)
    assert apart.call(os.getpid)
    timeline._look(make_configuration(), None, 60, Path("snapshot"), Path("out"))
    assert there == [[]]
