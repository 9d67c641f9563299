"""Probes of a CPU: every byte, on any thread, whoever counts."""

import gc
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from capsbench.measure.cell import measure_cell, run_pass
from capsbench.measure.cuda_memory import CudaProbe
from capsbench.measure.memory import AllocatorProbe, ProfilerProbe, probe_for, trace_of_profile
from capsbench.measure.messages import Request
from capsbench.measure.step_memory import memory_figures, probed_step
from capsbench.records import Cell, Plan
from capsbench.system import native
from capsbench.tracing import counting
from capsbench.tracing.storages import state_of, storage_bytes
from capsbench.tracing.trace import Phase
from capsbench.workload import Workload
from helpers.forked import in_fork
from helpers.made import make_configuration

PATIENCE = 300.0
MODELS = ("capsnet", "rescapsnet", "mocapsnet")

needs_allocator = pytest.mark.skipif(counting.installed() is None, reason=f"no allocator: {counting.allocator_library().reason}")
CPU_PROBES = [pytest.param(AllocatorProbe, marks=needs_allocator), ProfilerProbe]


def tensor(nbytes):
    return torch.empty(nbytes, dtype=torch.uint8)


@pytest.mark.parametrize("kind", CPU_PROBES)
def test_every_byte_is_counted(kind):
    with kind() as probe:
        standing = tensor(1000 * 1024)
        with probe.phase("grow"):
            kept = tensor(300 * 1024 + 1)
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
            tensor(0)
    kibi = {
        "grow": Phase(1000, 1300, 2000),
        "swap": Phase(1300, 1050, 1300),
        "nest": Phase(1050, 1050, 1434),
        "rest": Phase(1050, 1050, 1050),
    }
    expected = {name: Phase(*(1024 * value for value in (it.start, it.end, it.peak))) for name, it in kibi.items()}
    # The odd byte is in what `grow` leaves and `swap` begins with.
    expected["grow"] = Phase(1000 * 1024, 1300 * 1024 + 1, 2000 * 1024 + 1)
    expected["swap"] = Phase(1300 * 1024 + 1, 1050 * 1024, 1300 * 1024 + 1)
    assert probe.phases() == expected
    assert probe.peak_reserved() is None
    assert probe.context_bytes() is None
    assert probe.later_steps(lambda: pytest.fail("a step of a CPU is as another")) == (None, None)
    assert probe.process_bytes() > standing.nbytes + other.nbytes


@pytest.mark.parametrize("kind", CPU_PROBES)
def test_what_is_tagged_is_told_apart(kind):
    before = tensor(7)
    with kind() as probe:
        weight, batch, stray = tensor(1000), tensor(200), tensor(30)
        gone = tensor(4000)
        probe.tag("state", [weight[10:20], before])
        probe.tag("batch", [gone])
        del gone
        probe.tag("batch", [batch])
        with probe.phase("forward"):
            kept, passing = tensor(5000), tensor(600)
            del passing
        with probe.phase("backward"):
            temporary, gradient = tensor(70_000), tensor(8)
            del kept
        probe.tag("gradient", [gradient])
        with probe.phase("optimizer"):
            del gradient, temporary
    peak = probe.trace().at_peak()
    assert peak.phase == "backward"
    assert (peak.state_bytes, peak.batch_bytes, peak.gradient_bytes, peak.optimizer_bytes) == (1000, 200, 8, 0)
    assert (peak.retained_bytes, peak.temporary_bytes, peak.other_bytes) == (5000, 70_000, stray.nbytes)
    assert peak.total() == max(phase.peak for phase in probe.phases().values())


@pytest.fixture(autouse=True)
def _no_garbage_of_other_tests():
    """Tensors in cycles that are freed while a step is counted are in its events: blocks of unknown size."""
    gc.collect()


def step_of_a_convolution():
    """One whose library takes scratch memory."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2))
    images = torch.rand(8, 3, 32, 32)
    return SimpleNamespace(
        model=model, forward=lambda: model(images).square().sum(), backward=lambda loss: loss.backward(), optimize=model.zero_grad
    )


def counted_by(step, *kinds):
    """The probes that counted this step's second run, all at once."""
    made = [kind() for kind in kinds]
    for probe in made:
        probe.__enter__()
    it = step()
    it.backward(it.forward())
    it.optimize()
    for probe in made:
        probe.tag("state", state_of(it.model))
    loss = None
    for name in ("forward", "backward", "optimizer"):
        phases = [probe.phase(name) for probe in made]
        for phase in phases:
            phase.__enter__()
        if name == "forward":
            loss = it.forward()
        elif name == "backward":
            it.backward(loss)
        else:
            loss = None
            it.optimize()
        for phase in reversed(phases):
            phase.__exit__(None, None, None)
    for probe in reversed(made):
        probe.__exit__(None, None, None)
    return made


@needs_allocator
@pytest.mark.parametrize("model", [*MODELS, "convolution"])
def test_allocator_and_profiler_agree_to_the_byte(model):
    def step():
        return step_of_a_convolution() if model == "convolution" else Workload(make_configuration(model, 1, batch_size=2))

    one, other = counted_by(step, AllocatorProbe, ProfilerProbe)
    assert one.phases() == other.phases()
    assert one.trace().at_peak() == other.trace().at_peak()
    assert one.trace().nbytes.tolist() == other.trace().nbytes.tolist()
    assert one.trace().retained_blocks() == other.trace().retained_blocks()


@needs_allocator
def test_one_after_the_other_they_agree_too_and_so_do_threads():
    """Neither is in the other's bytes, even if only one is there."""
    before = torch.get_num_threads()
    found = []
    try:
        for threads, kind in ((1, AllocatorProbe), (2, AllocatorProbe), (2, AllocatorProbe), (1, ProfilerProbe)):
            torch.set_num_threads(threads)
            found.append(counted_by(step_of_a_convolution, kind)[0].phases())
    finally:
        torch.set_num_threads(before)
    assert found[1:] == found[:1] * 3


@needs_allocator
@pytest.mark.parametrize("model", MODELS)
def test_what_is_alive_at_the_peak_adds_up(model):
    step = probed_step(make_configuration(model, 1, batch_size=2))
    figures = memory_figures(step)
    peak = figures.at_peak
    assert figures.probe == "allocator"
    assert peak.total() == figures.peak_allocated_bytes
    assert peak.state_bytes == figures.state_bytes
    assert peak.optimizer_bytes == figures.optimizer_bytes
    assert peak.batch_bytes == storage_bytes(step.workload.given)
    assert 0 < peak.gradient_bytes <= figures.gradient_bytes
    assert 0 < peak.retained_bytes <= figures.retained_bytes
    assert peak.other_bytes == 0


@needs_allocator
def test_tensors_may_outlive_the_probe():
    """Freed when nobody counts, and when another counts: they are in neither's bytes, and the allocator forgets them."""
    standing = counting.alive()
    with AllocatorProbe() as probe, probe.phase("make"):
        early, late = tensor(5000), tensor(600)
    del early
    with AllocatorProbe() as second, second.phase("free"):
        del late
        kept = tensor(70)
    assert probe.phases() == {"make": Phase(0, 5600, 5600)}
    assert second.phases() == {"free": Phase(0, 70, 70)}
    assert counting.alive() == standing + kept.nbytes


@needs_allocator
def test_a_probe_inside_another():
    with AllocatorProbe() as outer, outer.phase("all"):
        first = tensor(100)
        with AllocatorProbe() as inner, inner.phase("part"):
            second = tensor(20)
        third = tensor(3)
    assert inner.phases() == {"part": Phase(0, 20, 20)}
    assert outer.phases() == {"all": Phase(0, 123, 123)}
    assert first.nbytes + second.nbytes + third.nbytes == 123


@needs_allocator
def test_no_event_is_lost_among_threads():
    count, standing = 300, counting.alive()

    def work(seed):
        held = []
        for index in range(count):
            held.append(tensor(seed + index))
            if index % 3 == 0:
                held.pop(0)

    with AllocatorProbe() as probe, probe.phase("threads"):
        threads = [threading.Thread(target=work, args=(1000 * (number + 1),)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    trace = probe.trace()
    assert (trace.nbytes > 0).sum() == (trace.nbytes < 0).sum() == 4 * count
    assert trace.alive()[-1] == 0
    assert trace.alive().min() == 0
    assert counting.alive() == standing


RAW = """
#include <c10/core/CPUAllocator.h>
extern "C" void* raw_take(int64_t nbytes) { return c10::GetCPUAllocator()->raw_allocate(nbytes); }
extern "C" void raw_free(void* data) { c10::GetCPUAllocator()->raw_deallocate(data); }
"""


@needs_allocator
def test_libraries_that_take_raw_memory_are_counted(tmp_path):
    """oneDNN takes its scratch so."""
    (tmp_path / "raw.cpp").write_text(RAW)
    library = native.built(tmp_path / "raw.cpp", "raw_take").library
    library.raw_take.restype = counting.ctypes.c_void_p
    library.raw_free.argtypes = [counting.ctypes.c_void_p]
    with AllocatorProbe() as probe:
        with probe.phase("take"):
            taken = library.raw_take(1234)
            assert library.raw_take(0) is None
        with probe.phase("free"):
            library.raw_free(taken)
            library.raw_free(None)
    assert probe.phases() == {"take": Phase(0, 1234, 1234), "free": Phase(1234, 0, 1234)}


@needs_allocator
def test_storages_that_change_their_size():
    with AllocatorProbe() as probe, probe.phase("resize"):
        storage = tensor(100).untyped_storage()
        storage.resize_(5000)
        storage.resize_(0)
    assert probe.phases() == {"resize": Phase(0, 0, 5100)}


@needs_allocator
def test_counting_costs_little_of_a_step():
    """Small tensors, where there is the least to hide behind; its cost on real steps is lost in their noise."""
    values = torch.rand(64, 64)

    def seconds():
        began = time.process_time()
        for _ in range(300):
            values.exp().sum()
        return time.process_time() - began

    seconds()
    plain, counted = [], []
    for _ in range(15):
        plain.append(seconds())
        with AllocatorProbe():
            counted.append(seconds())
    assert min(counted) < 3 * min(plain)


MODEL = """
import torch
def make(in_shape, num_classes, blocks):
    pixels = in_shape[0] * in_shape[1] * in_shape[2]
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(pixels, 50), torch.nn.Linear(50, num_classes))
"""


@pytest.mark.slow
@pytest.mark.parametrize("reason", ["is set", "no such header", "failed"])
def test_without_a_compiler_the_profiler_counts_and_the_record_says_so(own_model, monkeypatch, tmp_path, reason):
    configuration = make_configuration(own_model(MODEL), batch_size=2)
    request = Request(configuration=configuration, what="memory", samples=5)
    exact = in_fork(run_pass, request, PATIENCE)
    assert (exact.memory.probe, exact.notes) == ("allocator", [])
    if reason == "is set":
        monkeypatch.setenv(native.DISABLED, "1")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        # One that stops, and one that pretends.
        script = {"no such header": "echo 'no such header' >&2; exit 1", "failed": "touch $(echo $* | sed 's/.*-o //;s/ .*//')"}
        compiler = tmp_path / "c++"
        compiler.write_text(f"#!/bin/sh\n{script[reason]}\n")
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
    cell = Cell(configuration=configuration)
    record = measure_cell(cell, Plan(command="", passes=["memory"], cells=[cell]), environment="abcd")
    assert (record.status, record.memory.probe) == ("ok", "profiler"), record.message
    (note,) = record.notes
    assert "profiler" in note
    assert reason in note
    resident = {"process_bytes": None, "probe": "either"}
    assert record.memory.model_copy(update=resident) == exact.memory.model_copy(update=resident)


# A profiler's events.


def node(name, at, end=None, children=(), **fields):
    kind = torch._C._profiler._EventType
    return SimpleNamespace(
        name=name,
        tag=kind.Allocation if fields else kind.TorchOp,
        start_time_ns=at,
        end_time_ns=at if end is None else end,
        extra_fields=SimpleNamespace(**fields),
        children=list(children),
    )


def change(at, nbytes, address=None, device="cpu"):
    """An allocation; of what is freed the address is that of the same size."""
    return node("[memory]", at, ptr=address or abs(nbytes), alloc_size=nbytes, device=torch.device(device))


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
        # What was there before counting began is not counted when it goes either.
        ([(15, -100)], Phase(0, 0, 0)),
    ],
)
def test_phases_from_events(changes, expected):
    inner = node("aten::add", 11, 12, [change(*it) for it in changes[:1]])
    others = [node("someone's phase: step", 0, 100), change(15, 10**6, device="cuda")]
    span = node("capsbench phase: step", 10, 20, [inner, *others])
    trace = trace_of_profile([span, *(change(*it) for it in changes[1:])], [])
    assert trace.phases() == {"step": expected}


def test_tags_from_events():
    tree = [
        change(1, 100, address=8),
        node("capsbench tag: 0", 2, 2),
        change(3, -100, address=8),
        change(4, 50, address=8),
        node("capsbench tag: 1", 5, 5),
        node("capsbench phase: forward", 6, 7),
    ]
    trace = trace_of_profile(tree, [("state", [8, 9]), ("batch", [8])])
    assert trace.tags == {"state": {0}, "batch": {2}}


def test_a_storage_counts_once():
    whole = torch.zeros(100)
    assert storage_bytes([whole, whole[:10], whole.view(10, 10), torch.zeros(5), torch.zeros(0)]) == 420


def test_probes_are_chosen_by_device_and_compiler(monkeypatch):
    assert type(probe_for(torch.device("cuda:1"))) is CudaProbe
    monkeypatch.setattr(counting, "installed", lambda: None)
    assert type(probe_for(torch.device("cpu"))) is ProfilerProbe
