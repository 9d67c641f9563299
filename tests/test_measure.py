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
from conftest import MIB, is_gone, make_configuration, wait_for

from capsbench.measure import clock as clocks
from capsbench.measure import memory as probes
from capsbench.measure import worker
from capsbench.measure.cell import measure_cell, run_pass
from capsbench.measure.clock import CpuClock, CudaClock, clock_for
from capsbench.measure.environment import describe, key_of
from capsbench.measure.memory import CudaProbe, Phase, ProfilerProbe, nvml_process_bytes, phases_of, probe_for, storage_bytes
from capsbench.measure.worker import Request, is_out_of_memory
from capsbench.records import Cell, Plan
from capsbench.workload import build_model

PATIENCE = 300.0
"""Seconds: long enough for a machine that does something else as well."""


def memory_of(model="rescapsnet", blocks=1, **fields):
    reply = run_pass(Request(configuration=make_configuration(model, blocks, **fields), what="memory", samples=5), PATIENCE)
    assert reply.status == "ok", reply.message
    return reply.memory


def exact(figures):
    """All but the resident set, which no run repeats."""
    return {name: value for name, value in figures if name != "process_bytes"}


@pytest.fixture(scope="module")
def figures():
    """The memory of one small cell."""
    return memory_of("mocapsnet", 2)


def test_the_same_cell_has_the_same_bytes(figures):
    assert exact(memory_of("mocapsnet", 2)) == exact(figures)


def test_the_bytes_do_not_depend_on_the_number_of_threads(figures):
    assert exact(memory_of("mocapsnet", 2, threads=1)) == exact(figures)


def test_state_gradients_and_optimizer_are_those_of_the_parameters(figures):
    parameters = list(build_model(make_configuration("mocapsnet", 2)).parameters())
    count = sum(parameter.numel() for parameter in parameters)
    assert figures.state_bytes == figures.gradient_bytes == 4 * count
    # Adam: two moments a parameter, and a step count of 4 bytes each.
    assert figures.optimizer_bytes == 2 * 4 * count + 4 * len(parameters)


def test_the_figures_of_a_step_fit_together(figures):
    standing = figures.state_bytes + figures.optimizer_bytes
    assert figures.probe == "profiler"
    assert figures.peak_forward_bytes > standing + figures.retained_bytes
    assert figures.peak_backward_bytes >= standing + figures.gradient_bytes
    assert figures.peak_allocated_bytes >= max(figures.peak_forward_bytes, figures.peak_backward_bytes)
    assert figures.retained_bytes > 0
    assert figures.peak_reserved_bytes is None
    assert figures.process_bytes > figures.peak_allocated_bytes


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
    one, two = (memory_of(blocks=blocks, batch_size=128, kernel="published").retained_bytes for blocks in (1, 2))
    assert (two - one) / MIB == pytest.approx(73.8, rel=0.02)


def test_times_are_raw_samples():
    configuration = make_configuration(batch_size=2)
    reply = run_pass(Request(configuration=configuration, what="time", samples=6), PATIENCE)
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


# The probe against allocations of known size.


def tensor(nbytes):
    return torch.empty(nbytes, dtype=torch.uint8)


def test_the_profiler_counts_every_byte():
    with ProfilerProbe() as probe:
        standing = tensor(1000 * 1024)
        with probe.phase("grow"):
            kept = tensor(300 * 1024)
            passing = tensor(700 * 1024)
            del passing
        with probe.phase("swap"):
            del kept
            other = tensor(50 * 1024)
        with probe.phase("nest"):
            outer = tensor(128 * 1024)
            inner = tensor(256 * 1024)
            del outer
            last = tensor(64 * 1024)
            del inner, last
        with probe.phase("rest"):
            pass
    assert {name: Phase(it.start // 1024, it.end // 1024, it.peak // 1024) for name, it in probe.phases().items()} == {
        "grow": Phase(1000, 1300, 2000),
        "swap": Phase(1300, 1050, 1300),
        "nest": Phase(1050, 1050, 1434),
        "rest": Phase(1050, 1050, 1050),
    }
    assert all(value % 1024 == 0 for it in probe.phases().values() for value in (it.start, it.end, it.peak))
    assert probe.peak_reserved() is None
    assert probe.process_bytes() > standing.nbytes + other.nbytes


def event(name, at, nbytes=0, end=None):
    return SimpleNamespace(
        name=lambda: name,
        device_type=lambda: torch.profiler.DeviceType.CPU,
        start_ns=lambda: at,
        end_ns=lambda: end if end is not None else at,
        nbytes=lambda: nbytes,
    )


def on_cuda(at, nbytes):
    return SimpleNamespace(**(vars(event("[memory]", at, nbytes)) | {"device_type": lambda: torch.profiler.DeviceType.CUDA}))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], Phase(0, 0, 0)),
        ([(5, 100)], Phase(100, 100, 100)),
        ([(15, 100)], Phase(0, 100, 100)),
        ([(25, 100)], Phase(0, 0, 0)),
        ([(10, 100)], Phase(0, 100, 100)),
        ([(20, 100)], Phase(0, 100, 100)),
        ([(5, 50), (12, 100), (13, -100), (14, 70), (25, 1000)], Phase(50, 120, 150)),
        # Events come as the profiler lists them, not as they happened.
        ([(14, 70), (13, -100), (5, 50), (12, 100)], Phase(50, 120, 150)),
        ([(5, 100), (15, -100)], Phase(100, 0, 100)),
    ],
)
def test_phases_from_events(changes, expected):
    span = event("capsbench phase: step", 10, end=20)
    others = [event("aten::add", 11, end=12), event("someone's phase: step", 0, end=100), on_cuda(15, 10**6)]
    assert phases_of([*others, *(event("[memory]", *change) for change in changes), span]) == {"step": expected}


def test_a_storage_counts_once():
    whole = torch.zeros(100)
    assert storage_bytes([whole, whole[:10], whole.view(10, 10), torch.zeros(5), torch.zeros(0)]) == 420


# Devices that are not here: what is asked of torch.cuda, and in which order.


class FakeCuda:
    """Writes down what is asked; counters go up with every question."""

    def __init__(self, monkeypatch):
        self.asked = []
        self.allocated = iter([100, 250, 250, 120])
        self.peaks = iter([(400, 1000), (300, 900)])
        answers = {
            "synchronize": lambda: None,
            "empty_cache": lambda: None,
            "reset_peak_memory_stats": self._reset,
            "memory_allocated": lambda: next(self.allocated),
            "max_memory_allocated": lambda: self.peak[0],
            "max_memory_reserved": lambda: self.peak[1],
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, self._asking(name, answer))
        monkeypatch.setattr(torch.cuda, "Event", self._event)
        self.time = 0

    def _asking(self, name, answer):
        def ask(*_arguments):
            self.asked.append(name)
            return answer()

        return ask

    def _reset(self):
        self.peak = next(self.peaks)

    def _event(self, *, enable_timing):
        assert enable_timing
        self.time += 1
        at = self.time**2

        def record():
            self.asked.append("record")

        return SimpleNamespace(at=at, record=record, elapsed_time=lambda later: float(later.at - at))


def test_a_cuda_phase_is_reset_and_synchronised_on_both_sides(monkeypatch):
    fake = FakeCuda(monkeypatch)
    monkeypatch.setattr(probes, "nvml_process_bytes", lambda device: 5000)
    with CudaProbe(torch.device("cuda")) as probe:
        with probe.phase("forward"):
            fake.asked.append("work")
        with probe.phase("backward"):
            fake.asked.append("work")
    phase = [step for step in fake.asked if step != "empty_cache"]
    phase = phase[: len(phase) // 2]
    work = phase.index("work")
    before, after = phase[:work], phase[work + 1 :]
    # Earlier work must be done before the peak is reset, and this work before it is read.
    assert before.index("synchronize") < before.index("reset_peak_memory_stats")
    assert "memory_allocated" in before
    assert after[0] == "synchronize"
    assert {"memory_allocated", "max_memory_allocated", "max_memory_reserved"} <= set(after[1:])
    assert probe.phases() == {"forward": Phase(100, 250, 400), "backward": Phase(250, 120, 300)}
    assert probe.peak_reserved() == 1000
    assert probe.process_bytes() == 5000


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
    [("cpu", CpuClock, ProfilerProbe), ("cuda", CudaClock, CudaProbe), ("cuda:1", CudaClock, CudaProbe)],
)
def test_each_device_has_its_clock_and_probe(device, clock, probe):
    assert type(clock_for(torch.device(device))) is clock
    assert type(probe_for(torch.device(device))) is probe


class NVMLError(Exception):
    """As pynvml's."""


def fake_nvml(processes=(), init_fails=False, asking_fails=False):
    state = SimpleNamespace(open=0)

    def init():
        if init_fails:
            raise NVMLError
        state.open += 1

    def shutdown():
        state.open -= 1

    def ask(handle):
        assert handle == "handle of GPU-1234"
        if asking_fails:
            raise NVMLError
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in processes]

    module = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=init,
        nvmlShutdown=shutdown,
        nvmlDeviceGetHandleByUUID=lambda uuid: f"handle of {uuid}",
        nvmlDeviceGetComputeRunningProcesses=ask,
    )
    return module, state


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"processes": [(1, 77), (os.getpid(), 4096)]}, 4096),
        ({"processes": [(1, 77)]}, None),
        ({"processes": [(os.getpid(), None)]}, None),
        ({"init_fails": True}, None),
        ({"asking_fails": True}, None),
    ],
    ids=["known", "only others", "the driver keeps it to itself", "no driver", "not permitted"],
)
def test_process_memory_on_a_device(monkeypatch, options, expected):
    module, state = fake_nvml(**options)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    assert nvml_process_bytes(torch.device("cuda")) == expected
    assert state.open == 0


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
    return run_pass(Request(configuration=configuration, what=what, samples=5), timeout)


def test_an_own_model_is_measured(own_model):
    reply = run(own_model(FINE))
    assert reply.status == "ok", reply.message
    # 784 × 10 weights and 10 biases.
    assert reply.memory.state_bytes == 4 * 7850


def test_a_cell_has_both_passes(own_model, tmp_path):
    cell = Cell(configuration=make_configuration(own_model(FINE), batch_size=2, dataset="mnist"), replicate=1)
    record = measure_cell(cell, Plan(command="", cells=[cell]), environment="abcd", data_directory=tmp_path)
    assert (record.cell, record.status, record.message, record.environment) == (cell, "ok", None, "abcd")
    assert record.data_source == "stand-in"
    assert record.memory is not None
    assert record.time is not None
    assert record.duration_seconds > sum(record.time.train_step_seconds)


def test_a_cell_whose_first_pass_fails_is_not_measured_further(own_model, tmp_path):
    cell = Cell(
        configuration=make_configuration(own_model("def make(*_):\n    open('log', 'a').write('x')\n    raise OSError(7)"))
    )
    record = measure_cell(cell, Plan(command="", cells=[cell]), environment="abcd")
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


def test_a_model_that_never_ends_is_ended_with_all_it_started(own_model, tmp_path):
    # Long enough for the worker to get there, on any machine.
    reply = run(own_model(SLEEP), timeout=12)
    assert reply.status == "timeout"
    assert "12 s" in reply.message
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
from capsbench.measure.worker import Request
from capsbench.records import Configuration
configuration = Configuration.model_validate_json(sys.argv[1])
run_pass(Request(configuration=configuration, what="memory", samples=5), 600)
"""


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


GREEDY = """
import torch
def make(in_shape, num_classes, blocks):
    torch.empty(2 ** 50, dtype=torch.uint8)
"""


@pytest.mark.parametrize("what", ["memory", "time"])
def test_a_model_that_finds_no_room_is_out_of_memory(own_model, what):
    reply = run(own_model(GREEDY), what)
    assert (reply.status, reply.memory) == ("oom", None)
    assert reply.message


@pytest.mark.parametrize("what", ["memory", "time"])
def test_a_capacity_that_does_not_suffice_is_out_of_memory(what):
    # At batch 128 the published kernel needs gigabytes; libraries and threads alone fit.
    configuration = make_configuration(batch_size=128, kernel="published", capacity=2 * 2**30)
    reply = run_pass(Request(configuration=configuration, what=what, samples=5), PATIENCE)
    assert reply.status == "oom", reply.message


@pytest.mark.parametrize("what", ["memory", "time"])
def test_a_capacity_below_what_the_libraries_take_is_out_of_memory_too(what):
    configuration = make_configuration(batch_size=2, capacity=100 * MIB)
    reply = run_pass(Request(configuration=configuration, what=what, samples=5), PATIENCE)
    assert reply.status == "oom", reply.message


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (ValueError("can't allocate memory"), False),
        (KeyboardInterrupt(), False),
    ],
    ids=repr,
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) == expected


def test_a_long_reply_arrives(own_model):
    """More than a pipe holds: whoever reads only at the end would wait for ever."""
    configuration = make_configuration(own_model(FINE), batch_size=2)
    reply = run_pass(Request(configuration=configuration, what="time", samples=3000), PATIENCE)
    assert reply.status == "ok", reply.message
    assert len(reply.time.train_step_seconds) == 3000


@pytest.mark.parametrize("capacity", [None, 2**30])
def test_a_gpu_is_prepared_by_its_number(monkeypatch, capacity):
    """torch takes no device without one, neither to choose it nor to limit it."""
    asked = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: asked.append(index))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=2**32))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, index: asked.append((part, index)))
    for device in ("cuda", "cuda:0", "cuda:1"):
        worker._prepare(make_configuration(device=device, threads=None, capacity=capacity))
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
