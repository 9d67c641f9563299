"""Measuring: exact bytes, raw times, and processes that misbehave. Small networks, but real processes."""

import copy
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from capsbench.cases.factories import build_model
from capsbench.measure import clock as clocks
from capsbench.measure import worker
from capsbench.measure.cell import measure_cell, run_pass
from capsbench.measure.clock import CpuClock, CudaClock, clock_for
from capsbench.measure.environment import describe, key_of
from capsbench.measure.memory import AllocatorProbe, CudaProbe, probe_for
from capsbench.measure.messages import Request
from capsbench.prediction.predict import predict_cell
from capsbench.records import Cell, Plan
from helpers.commands import is_gone, wait_for
from helpers.fakes import FakeCuda
from helpers.forked import in_fork
from helpers.made import MIB, make_configuration

PATIENCE = 300.0
"""Seconds: long enough for a machine that does something else as well."""


def memory_of(model="rescapsnet", blocks=1, **fields):
    request = Request(configuration=make_configuration(model, blocks, **fields), what="memory", samples=5)
    reply = in_fork(run_pass, request, PATIENCE)
    assert reply.status == "ok", reply.message
    return reply.memory


def exact(figures):
    """All but the resident set, which no run repeats."""
    return {name: value for name, value in figures if name != "process_bytes"}


@pytest.fixture(scope="module")
def figures():
    """The memory of one small cell."""
    return memory_of("mocapsnet", 2)


@pytest.mark.slow
def test_the_same_cell_has_the_same_bytes(figures):
    assert exact(memory_of("mocapsnet", 2)) == exact(figures)


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_number_of_threads(figures):
    assert exact(memory_of("mocapsnet", 2, threads=2)) == exact(figures)


def test_state_gradients_and_optimizer_are_those_of_the_parameters(figures):
    parameters = list(build_model(make_configuration("mocapsnet", 2)).parameters())
    count = sum(parameter.numel() for parameter in parameters)
    assert figures.state_bytes == figures.gradient_bytes == 4 * count
    # Adam: two moments a parameter, and a step count of 4 bytes each.
    assert figures.optimizer_bytes == 2 * 4 * count + 4 * len(parameters)


def test_the_figures_of_a_step_fit_together(figures):
    standing = figures.state_bytes + figures.optimizer_bytes
    assert figures.probe == "allocator"
    assert figures.peak_forward_bytes > standing + figures.retained_bytes
    assert figures.peak_backward_bytes >= standing + figures.gradient_bytes
    assert figures.peak_allocated_bytes >= max(figures.peak_forward_bytes, figures.peak_backward_bytes)
    assert figures.retained_bytes > 0
    assert figures.peak_reserved_bytes is None
    assert figures.process_bytes > figures.peak_allocated_bytes


@pytest.mark.slow
@pytest.mark.parametrize(("memory", "rule"), [("reversible", "paper"), ("stored", "paper"), ("reversible", "published")])
def test_what_a_block_of_mocapsnet_retains(memory, rule):
    one, two = (memory_of("mocapsnet", blocks, memory=memory, rule=rule, batch_size=2).retained_bytes for blocks in (1, 2))
    capsules = 2 * 32 * 8 * 4
    if memory == "reversible":
        # The paper's rule keeps x and v once; the published one x and v once per block.
        assert two - one == (0 if rule == "paper" else 2 * capsules)
    else:
        assert two - one > 2 * capsules


@pytest.mark.slow
def test_a_published_block_retains_what_the_published_code_does():
    def per_block(batch_size):
        one, two = (memory_of(blocks=blocks, batch_size=batch_size, kernel="published").retained_bytes for blocks in (1, 2))
        return two - one

    two, four = per_block(2), per_block(4)
    # The published value is that of batch 128, on the line through two smaller ones.
    measured = two + (four - two) * (128 - 2) / 2
    assert measured / MIB == pytest.approx(73.8, rel=0.02)
    fields = {"batch_size": 128, "kernel": "published", "device": "cpu:predicted"}
    cells = [Cell(configuration=make_configuration(blocks=blocks, **fields)) for blocks in (1, 2)]
    one, two = (predict_cell(cell).memory.retained_bytes for cell in cells)
    assert two - one == measured


def test_times_are_raw_samples():
    configuration = make_configuration(batch_size=2)
    reply = in_fork(run_pass, Request(configuration=configuration, what="time", samples=6, budget_seconds=0.01), PATIENCE)
    assert reply.status == "ok", reply.message
    assert reply.memory is None
    assert reply.time.clock == "monotonic"
    assert reply.time.warmup_steps >= 1
    counts = {
        len(samples) for samples in (reply.time.train_step_seconds, reply.time.forward_seconds, reply.time.inference_seconds)
    }
    assert len(counts) == 1
    assert counts.pop() >= 6
    assert min(reply.time.inference_seconds) > 0
    # Forward and loss are of the same step.
    for forward, train in zip(reply.time.forward_seconds, reply.time.train_step_seconds, strict=True):
        assert 0 < forward < train


# Devices that are not here: what is asked of torch.cuda, and in which order.


def test_cuda_time_is_between_events_after_the_device_has_caught_up(monkeypatch):
    fake = FakeCuda(monkeypatch)
    clock = CudaClock(torch.device("cuda"))
    for _ in range(3):
        clock.mark()
    laps = clock.laps()
    assert fake.asked == ["synchronize", "record", "record", "record", "synchronize"]
    # Events at 1, 4 and 9 ms.
    assert laps == [0.003, 0.005]
    clock.mark()
    assert fake.asked[-2:] == ["synchronize", "record"]
    assert clock.laps() == []


def test_cpu_time_is_between_marks(monkeypatch):
    ticks = iter([1.0, 1.5, 4.0, 10.0, 11.0])
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: next(ticks))
    clock = CpuClock()
    for _ in range(3):
        clock.mark()
    assert clock.laps() == [0.5, 2.5]
    for _ in range(2):
        clock.mark()
    assert clock.laps() == [1.0]


@pytest.mark.parametrize(
    ("device", "clock", "probe"),
    [("cpu", CpuClock, AllocatorProbe), ("cuda", CudaClock, CudaProbe), ("cuda:1", CudaClock, CudaProbe)],
)
def test_each_device_has_its_clock_and_probe(device, clock, probe):
    assert type(clock_for(torch.device(device))) is clock
    assert type(probe_for(torch.device(device))) is probe


def test_the_key_of_a_machine_ignores_what_changes_by_the_minute():
    here = describe()
    later = {**here, "cpu": {**here["cpu"], "load_1_min": 99.0, "megahertz": 1}}
    assert key_of(later) == key_of(here)
    assert key_of({**here, "python": "2.7"}) != key_of(here)
    assert key_of({**here, "cpu": {**here["cpu"], "model": "other"}}) != key_of(here)


# Models that misbehave.

FINE = """
import torch
def make(in_shape, num_classes, blocks):
    pixels = in_shape[0] * in_shape[1] * in_shape[2]
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(pixels, num_classes))
"""


def run(name, what="memory", timeout=PATIENCE, **fields):
    configuration = make_configuration(name, batch_size=2, **fields)
    return in_fork(run_pass, Request(configuration=configuration, what=what, samples=5, budget_seconds=0.01), timeout)


def test_an_own_model_is_measured(own_model):
    reply = run(own_model(FINE))
    assert reply.status == "ok", reply.message
    # 784 × 10 weights and 10 biases.
    assert reply.memory.state_bytes == 4 * 7850


@pytest.mark.slow
def test_a_cell_has_both_passes(own_model, tmp_path):
    cell = Cell(configuration=make_configuration(own_model(FINE), batch_size=2, dataset="mnist"), replicate=1)
    plan = Plan(command="", cells=[cell], budget_seconds=0.01)
    record = measure_cell(cell, plan, environment="abcd", data_directory=tmp_path)  # in processes that nothing was imported for
    assert (record.cell, record.status, record.message, record.environment) == (cell, "ok", None, "abcd")
    assert record.data_source == "stand-in"
    assert record.memory is not None
    assert record.time is not None
    assert record.duration_seconds > sum(record.time.train_step_seconds)


@pytest.mark.slow
def test_a_cell_whose_first_pass_fails_is_not_measured_further(own_model, tmp_path):
    cell = Cell(
        configuration=make_configuration(own_model("def make(*_):\n    open('log', 'a').write('x')\n    raise OSError(7)"))
    )
    record = in_fork(measure_cell, cell, Plan(command="", cells=[cell]), environment="abcd")
    assert (record.status, record.memory, record.time) == ("error", None, None)
    assert (tmp_path / "log").read_text() == "x"


def test_what_a_model_prints_does_not_disturb_the_reply(own_model):
    noise = '\n    print("{}", flush=True)\n    import os\n    os.write(1, b"[]")\n    os.system("echo from a child")\n    '
    reply = run(own_model(FINE.replace("    pixels", noise + "pixels")))
    assert reply.status == "ok", reply.message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('seven is too many')", "ValueError: seven is too many"),
        ("raise ValueError", "ValueError: no message"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("return 7", "returned int"),
        ("import torch; return torch.nn.Flatten()", "no parameters to train"),
        ("import torch; return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 7))", r"shape \[2, 7\].*\[2, 10\]"),
        ("import os; os._exit(3)", "ended with status 3"),
        ("import os; os._exit(0)", "ended with status 0"),
        ("import sys, os; sys.stderr.write('last words'); sys.stderr.flush(); os._exit(3)", "status 3: last words"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("import os; os.abort()", "SIGABRT"),
        # A real-time signal has no name.
        ("import os; os.kill(os.getpid(), 40)", "40"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    ],
)
def test_a_model_that_fails_is_an_error_with_its_reason(own_model, body, message):
    reply = run(own_model(f"def make(in_shape, num_classes, blocks):\n    {body}\n"))
    assert reply.status == "error"
    assert re.search(message, reply.message), reply.message
    assert len(reply.message.splitlines()) == 1
    assert reply.memory is None


SLEEP = """
import os, pathlib, subprocess, time
def make(in_shape, num_classes, blocks):
    child = subprocess.Popen(["sleep", "600"])
    pathlib.Path("pids.new").write_text(f"{os.getpid()} {child.pid}")
    pathlib.Path("pids.new").rename("pids")
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_model_that_never_ends_is_ended_with_all_it_started(own_model, tmp_path):
    # Long enough for a fork to get there, on any machine.
    reply = run(own_model(SLEEP), timeout=6)
    assert reply.status == "timeout"
    assert "6 s" in reply.message
    worker, child = map(int, (tmp_path / "pids").read_text().split())
    wait_for(lambda: is_gone(worker) and is_gone(child))


FORKING = """
import os, pathlib, time
def make(in_shape, num_classes, blocks):
    child = os.fork()
    if child == 0:
        time.sleep(600)
    pathlib.Path("pid").write_text(str(child))
    os._exit(3)
"""


def test_a_model_that_dies_leaves_no_child(own_model, tmp_path):
    reply = run(own_model(FORKING), timeout=12)
    child = int((tmp_path / "pid").read_text())
    try:
        assert reply.status in {"error", "timeout"}
        wait_for(lambda: is_gone(child), seconds=10)
    finally:
        if not is_gone(child):
            os.kill(child, signal.SIGKILL)


PARENT = """
import sys
from capsbench.measure.cell import run_pass
from capsbench.measure.messages import Request
from capsbench.records import Configuration
configuration = Configuration.model_validate_json(sys.argv[1])
run_pass(Request(configuration=configuration, what="memory", samples=5), 600)
"""


@pytest.mark.slow
def test_a_worker_does_not_outlive_its_parent(own_model, tmp_path):
    configuration = make_configuration(own_model(SLEEP), batch_size=2).model_dump_json()
    with subprocess.Popen([sys.executable, "-c", PARENT, configuration], cwd=tmp_path) as parent:
        try:
            wait_for((tmp_path / "pids").exists)
        finally:
            parent.kill()
    worker, child = map(int, (tmp_path / "pids").read_text().split())
    try:
        wait_for(lambda: is_gone(worker))
    finally:
        if not is_gone(child):
            os.kill(child, signal.SIGKILL)


def test_a_long_reply_arrives(own_model):
    """More than a pipe holds: whoever reads only at the end would wait for ever."""
    configuration = make_configuration(own_model(FINE), batch_size=2)
    reply = in_fork(run_pass, Request(configuration=configuration, what="time", samples=1200), PATIENCE)
    assert reply.status == "ok", reply.message
    assert len(reply.time.train_step_seconds) == 1200
    assert len(reply.model_dump_json()) > 2**16


@pytest.mark.parametrize("capacity", [None, 2**30])
def test_a_gpu_is_prepared_by_its_number(monkeypatch, capacity):
    """torch takes no device without one, neither to choose it nor to limit it."""
    asked = []
    # What holds for the whole process would hold for all tests after this one.
    monkeypatch.setattr(torch, "set_flush_denormal", lambda flush: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: asked.append(index))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=2**32))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, index: asked.append((part, index)))
    for device in ("cuda", "cuda:0", "cuda:1"):
        worker.prepare_process(make_configuration(device=device, threads=None, capacity=capacity))
    limits = [(0.25, index) for index in (0, 0, 1)]
    expected = [0, 0, 1] if capacity is None else [item for pair in zip((0, 0, 1), limits, strict=True) for item in pair]
    assert asked == expected


def test_the_key_leaves_an_environment_as_it_is():
    environment = describe()
    environment["cuda"] = {"available": True, "devices": [{"name": "some GPU", "sm_megahertz": 1980}]}
    before = copy.deepcopy(environment)
    key = key_of(environment)
    assert environment == before
    environment["cuda"]["devices"][0]["sm_megahertz"] = 300
    assert key_of(environment) == key
    environment["cuda"]["devices"][0]["name"] = "another"
    assert key_of(environment) != key
