"""The probe of a CUDA device, and who else is on it, as fakes would have it."""

import os
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from capsbench.errors import BusyDeviceError, ConfigurationError
from capsbench.frame import to_frame
from capsbench.measure import cuda_memory, worker
from capsbench.measure.cuda_memory import CudaProbe, LaterSteps
from capsbench.measure.messages import Reply, Request
from capsbench.measure.processes import available_bytes, device_identity, nvml_process_bytes, other_processes, unknown_others
from capsbench.measure.step_memory import ProbedStep, memory_figures
from capsbench.measure.watch import Watch
from capsbench.records import Record, StepFigures
from capsbench.sweep.local import alone_on
from capsbench.sweep.machine import resolve_device
from capsbench.terminal.progress import _one_line as one_line
from capsbench.tracing.storages import handed_out_bytes
from capsbench.tracing.trace import Phase
from capsbench.workload import Workload
from helpers.fakes import FakeCuda, fake_nvml
from helpers.made import make_configuration, make_record


def test_a_cuda_phase_is_reset_and_synchronised_on_both_sides(monkeypatch):
    fake = FakeCuda(monkeypatch)
    monkeypatch.setattr(cuda_memory, "nvml_process_bytes", lambda device: (5000, ""))
    with CudaProbe(torch.device("cuda")) as probe:
        with probe.phase("forward"):
            fake.asked.append("work")
        with probe.phase("backward"):
            fake.asked.append("work")
    phase = [step for step in fake.asked if step != "empty_cache"]
    phase = phase[: phase.index("reset_peak_memory_stats", phase.index("work")) - 1]
    work = phase.index("work")
    before, after = phase[:work], phase[work + 1 :]
    # Earlier work must be done before the peak is reset, and this work before it is read.
    assert before.index("synchronize") < before.index("reset_peak_memory_stats") < before.index("memory_stats")
    assert after[0] == "synchronize"
    assert set(after[1:]) == {"memory_stats"}
    assert probe.phases() == {"forward": Phase(100, 250, 400), "backward": Phase(250, 120, 300)}
    assert probe.requested() == {"forward": Phase(99, 249, 398), "backward": Phase(249, 119, 298)}
    assert probe.peak_reserved() == 1000
    # 900 are reserved when the driver is asked.
    assert (probe.process_bytes(), probe.context_bytes()) == (5000, 4100)
    assert (probe.trace(), probe.notes()) == (None, [])


def test_a_driver_that_does_not_say_leaves_the_context_unknown(monkeypatch):
    FakeCuda(monkeypatch)
    monkeypatch.setattr(cuda_memory, "nvml_process_bytes", lambda device: (None, "it is a fake"))
    with CudaProbe(torch.device("cuda")) as probe:
        pass
    assert (probe.process_bytes(), probe.context_bytes()) == (None, None)
    assert probe.notes() == ["the memory of this process on cuda is not known: it is a fake"]


def test_later_steps_have_a_warm_peak_and_one_that_begins_with_an_empty_cache(monkeypatch):
    fake = FakeCuda(monkeypatch)
    with CudaProbe(torch.device("cuda")) as probe:
        for name in ("forward", "backward"):
            with probe.phase(name):
                pass
    fake.asked.clear()
    assert probe.later_steps(lambda: fake.asked.append("step")) == (350, 700)
    told = [step for step in fake.asked if step != "memory_stats"]
    reset = told.index("reset_peak_memory_stats")
    assert told[:reset].count("step") >= 3
    again = ["synchronize", "reset_peak_memory_stats", "step", "synchronize"]
    # The cache is emptied between two steps, once all work is done.
    assert told[reset - 1 :] == [*again, "empty_cache", *again]
    # The figure of the step that was counted stays the process's.
    assert probe.peak_reserved() == 1000


def test_a_step_of_inference_is_counted_and_changes_nothing_of_the_training_step(monkeypatch):
    FakeCuda(monkeypatch)
    monkeypatch.setattr(cuda_memory, "nvml_process_bytes", lambda device: (None, "it is a fake"))
    # The first of the fake's phases holds more than all others.
    with CudaProbe(torch.device("cuda")) as probe:
        for name in ("inference", "forward", "backward"):
            with probe.phase(name):
                pass
    assert probe.peak_reserved() == 950
    monkeypatch.setattr(probe, "later_steps", lambda step: LaterSteps())
    workload = SimpleNamespace(model=torch.nn.Linear(1, 1), optimizers=[], device=torch.device("cuda"), train_step=lambda: None)
    figures = memory_figures(ProbedStep(workload, probe, 0, []))
    assert (figures.peak_forward_bytes, figures.peak_backward_bytes, figures.peak_allocated_bytes) == (300, 350, 350)
    assert (figures.inference_peak_bytes, figures.inference_kept_bytes) == (400, 150)


@pytest.mark.parametrize(("kind", "expected"), [("cuda", 512 + 1024), ("cpu", 4 + 516)])
def test_the_optimizer_s_state_is_taken_off_as_its_device_hands_it_out(kind, expected):
    small, large = torch.zeros(1), torch.zeros(129)
    assert handed_out_bytes([small, large, large[3:]], kind) == expected


def counted_nothing(monkeypatch, **options):
    """A probe of a step that its device's allocator did not count."""
    fake = FakeCuda(monkeypatch, [], counters=(), **options)
    monkeypatch.setattr(cuda_memory, "nvml_process_bytes", lambda device: (5000, ""))
    with CudaProbe(torch.device("cuda")) as probe:
        for name in ("forward", "backward", "optimizer"):
            with probe.phase(name):
                pass
    return probe, fake


def test_bytes_that_the_allocator_does_not_count_are_unknown_and_never_0(monkeypatch):
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "0")  # any value turns it off
    probe, fake = counted_nothing(monkeypatch)
    assert not probe.counts()
    assert (probe.requested(), probe.peak_reserved(), probe.context_bytes(), probe.trace()) == (None,) * 4
    assert probe.later_steps(lambda: fake.asked.append("step")) == (None, None)
    assert "step" not in fake.asked
    (note,) = probe.notes()
    assert note == "bytes on cuda were not counted: PYTORCH_NO_CUDA_MEMORY_CACHING turns off the allocator that counts them"
    monkeypatch.delenv("PYTORCH_NO_CUDA_MEMORY_CACHING")
    probe, _ = counted_nothing(monkeypatch)
    assert probe.notes() == ["bytes on cuda were not counted: allocator 'native' does not count them"]


def test_a_record_of_bytes_that_were_not_counted(monkeypatch):
    """The driver's figure is there, and so are those of the network; the rest is None."""
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    probe, _ = counted_nothing(monkeypatch)
    workload = Workload(make_configuration(batch_size=2))
    figures = memory_figures(ProbedStep(workload, probe, 7, []))
    assert figures.process_bytes == 5000
    assert figures.state_bytes > 0
    known = {"probe", "state_bytes", "gradient_bytes", "optimizer_bytes", "process_bytes", "scratch", "context_bytes"}
    unknown = {name: value for name, value in figures if name not in known and value is not None}
    assert unknown == {}
    record = make_record(device="cuda:0").model_copy(update={"memory": figures, "time": None})
    assert Record.model_validate_json(record.model_dump_json()) == record
    (row,) = to_frame([("made", record)]).to_dict("records")
    assert pd.isna(row["retained_bytes"])
    assert pd.isna(row["peak_allocated_bytes"])
    assert record.settles(["memory"])
    assert "0 B" not in one_line(record, None)


@pytest.mark.parametrize("counters", [("allocated", "reserved"), ("allocated", "requested", "reserved")], ids=["async", "native"])
def test_an_allocator_that_does_not_know_what_was_requested(monkeypatch, counters):
    """The backend cudaMallocAsync counts what it hands out alone."""
    FakeCuda(monkeypatch, counters=counters)
    monkeypatch.setattr(cuda_memory, "nvml_process_bytes", lambda device: (5000, ""))
    with CudaProbe(torch.device("cuda")) as probe, probe.phase("forward"):
        pass
    assert probe.counts()
    assert probe.requested() == ({"forward": Phase(99, 249, 398)} if "requested" in counters else None)
    assert probe.notes() == []


def test_an_allocator_without_counters_ends_no_measurement(monkeypatch):
    """A user's own (`CUDAPluggableAllocator`) raises whatever is asked."""

    def raises(*_):
        raise RuntimeError("does not yet support getDeviceStats")

    FakeCuda(monkeypatch)
    monkeypatch.setattr(cuda_memory, "nvml_process_bytes", lambda device: (5000, ""))
    for name in ("memory_stats", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, raises)
    with CudaProbe(torch.device("cuda")) as probe, probe.phase("forward"):
        pass
    assert not probe.counts()
    assert len(probe.notes()) == 1


@pytest.mark.parametrize(
    ("requested", "of_allocator", "agrees"), [(70, 200, True), (71, 200, False), (None, 100, True), (None, 101, False)]
)
def test_a_trace_is_compared_with_what_was_requested(requested, of_allocator, agrees):
    """An allocator hands out more than that, depending on all that it did before."""
    traced = StepFigures(retained_by_module={"a": 60, "b": 10}, retained_bytes=100)
    figures = make_record().memory.model_copy(update={"retained_bytes": of_allocator, "retained_requested_bytes": requested})
    counted, of_trace = worker._compared(figures, traced)
    assert (counted == of_trace) == agrees


def test_the_history_of_a_cuda_allocator_is_a_trace(monkeypatch):
    history = []
    fake = FakeCuda(monkeypatch, history)
    monkeypatch.setattr(cuda_memory, "nvml_process_bytes", lambda device: (None, "it is a fake"))

    def happens(action, address, nbytes):
        fake.history.append({"action": action, "addr": address, "size": nbytes})

    weight = torch.zeros(1)
    with CudaProbe(torch.device("cuda")) as probe:
        happens("segment_alloc", 4096, 2**21)
        happens("alloc", weight.data_ptr(), 4)
        probe.tag("state", [weight])
        with probe.phase("forward"):
            happens("alloc", 4096, 513)
        with probe.phase("backward"):
            happens("free_requested", 4096, 513)
            happens("free_completed", 4096, 513)
            happens("alloc", 4096, 512)
            happens("snapshot", 0, 0)
    assert fake.history == [], "it was switched off"
    trace = probe.trace()
    # Sizes as the allocator rounds them.
    assert trace.nbytes.tolist() == [512, 1024, -1024, 512]
    assert trace.blocks.tolist() == [0, 1, 1, 3]
    assert trace.spans == {"forward": (1, 2), "backward": (2, 4)}
    assert (trace.at_peak().state_bytes, trace.at_peak().retained_bytes) == (512, 1024)
    # The figures are the counters'.
    assert probe.phases()["forward"] == Phase(100, 250, 400)


def with_nvml(monkeypatch, **options):
    module, state = fake_nvml(**options)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    return state


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"processes": [(1, 77), (os.getpid(), 4096)]}, (4096, "")),
        ({"processes": [(1, 77)]}, (None, "NVML does not list it, as in a container with numbers of its own")),
        ({"processes": [(os.getpid(), None)]}, (None, "the driver does not report memory by process")),
        ({"processes": [(os.getpid(), 0)]}, (None, "the driver does not report memory by process")),
        ({"init_fails": True, "reason": "Driver Not Loaded"}, (None, "NVML does not answer (NVMLError: Driver Not Loaded)")),
        ({"asking_fails": True, "reason": "Not Supported"}, (None, "NVML does not answer (NVMLError: Not Supported)")),
        ({"asking_fails": True, "reason": "GPU is lost"}, (None, "NVML does not answer (NVMLError: GPU is lost)")),
    ],
    ids=["known", "only others", "the driver keeps it to itself", "0", "no driver", "not supported", "lost"],
)
def test_process_memory_on_a_device(monkeypatch, options, expected):
    state = with_nvml(monkeypatch, **options)
    assert nvml_process_bytes(torch.device("cuda")) == expected
    assert state.open == 0


def test_nvml_may_not_be_installed(monkeypatch):
    with_nvml(monkeypatch)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    device = torch.device("cuda:0")
    nbytes, why = nvml_process_bytes(device)
    assert nbytes is None
    assert "NVML does not answer (ModuleNotFoundError" in why
    assert other_processes(device) == []
    assert "cannot be known: NVML does not answer" in unknown_others(device)[0]
    assert Watch(device).seen().gpu_throttled is False


# Devices by identity.


def visible(monkeypatch, uuids, variable=None):
    """Devices with these identities, in the order in which CUDA shows them."""

    def properties(device):
        index = torch.device(device).index or 0
        if index >= len(uuids):
            raise AssertionError("Invalid device id")  # as torch
        return SimpleNamespace(uuid=uuids[index], total_memory=8 * 2**30)

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(uuids))
    if variable is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)


def test_one_device_is_one_whatever_its_number(monkeypatch):
    visible(monkeypatch, ["aa-1", "bb-2"])
    plain = [device_identity(f"cuda:{index}") for index in (0, 1)]
    visible(monkeypatch, ["bb-2"], "1")
    by_number = device_identity("cuda:0")
    visible(monkeypatch, ["bb-2", "aa-1"], "GPU-bb-2,GPU-aa")
    by_uuid = [device_identity(f"cuda:{index}") for index in (0, 1)]
    assert plain == ["cuda-aa-1", "cuda-bb-2"]
    assert by_number == plain[1]
    assert by_uuid == plain[::-1]
    assert device_identity("cuda") == by_uuid[0]
    assert device_identity("cpu") == "cpu"


def test_slices_of_a_gpu_are_devices_of_their_own(monkeypatch):
    found = []
    # Whether CUDA reports the identity of the slice or of the whole GPU.
    for slices in (["s-1", "s-2"], ["gpu", "gpu"]):
        own = []
        for name, uuid in zip(("MIG-s-1", "MIG-s-2"), slices, strict=True):
            visible(monkeypatch, [uuid], name)
            own.append(device_identity("cuda:0"))
        assert own[0] != own[1]
        found.append(own)
    assert found[0] == found[1]
    visible(monkeypatch, ["gpu"], "MIG-GPU-gpu/1/0")
    assert "/" not in device_identity("cuda:0")


@pytest.mark.parametrize("variable", ["", "7", "GPU-unknown"], ids=["empty", "no such number", "no such identity"])
def test_a_device_that_is_not_shown_keeps_its_name(monkeypatch, variable):
    visible(monkeypatch, [], variable)
    assert device_identity("cuda:0") == "cuda:0"
    assert available_bytes("cuda:0") is None
    with pytest.raises(ConfigurationError, match=f"0 CUDA devices, as CUDA_VISIBLE_DEVICES is '{variable}'"):
        resolve_device("cuda:0")


def test_sweeps_with_different_numbers_for_a_device_wait_for_each_other(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    visible(monkeypatch, ["aa-1", "bb-2"])
    with alone_on("cuda:1", notify=print):
        visible(monkeypatch, ["bb-2"], "1")
        with pytest.raises(BusyDeviceError), alone_on("cuda:0", notify=print, patience=0):
            pass
        visible(monkeypatch, ["aa-1"], "0")
        with alone_on("cuda:0", notify=print, patience=0):
            pass


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"free": 3 * 2**30}, 3 * 2**30),
        ({"free": None}, 8 * 2**30),
        ({"init_fails": True}, 8 * 2**30),
        ({"free": 2**30, "slices": ["MIG-1234"]}, 2**30),
    ],
    ids=["known", "not supported", "no driver", "a slice has a memory of its own"],
)
def test_free_memory_is_asked_of_the_driver_without_a_context(monkeypatch, options, expected):
    """CUDA's own answer would make a context in the process that asks, which then counts as one that computes there."""

    def never(*_):
        raise AssertionError("a context was made")

    state = with_nvml(monkeypatch, **options)
    visible(monkeypatch, ["1234"], "MIG-1234" if "slices" in options else None)
    for name in ("mem_get_info", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, never)
    assert available_bytes("cuda:0") == expected
    assert state.open == 0


def test_a_named_slice_is_asked_for_first(monkeypatch):
    state = with_nvml(monkeypatch, processes=[(os.getpid(), 77)], slices=["MIG-s"])
    visible(monkeypatch, ["1234"], "MIG-s")
    assert nvml_process_bytes(torch.device("cuda:0")) == (77, "")
    assert state.asked == ["MIG-s"]


ME = (os.getpid(), 2**30)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"processes": [ME]}, []),
        ({"processes": []}, []),
        ({"init_fails": True}, []),
        ({"asking_fails": True}, []),
        ({"processes": [(7, 3 * 2**20), ME]}, ["1 other process computes on cuda:1: pid 7 (3 MiB)"]),
        (
            {"processes": [(7, 3 * 2**20), ME, (8, None)]},
            ["2 other processes compute on cuda:1: pid 7 (3 MiB), pid 8 (memory unknown)"],
        ),
        # In a container: one of them is this one.
        ({"processes": [(7, 2**20)]}, []),
        (
            {"processes": [(7, 2**20), (8, 2**20)]},
            ["1 other process computes on cuda:1: this one is among pid 7 (1 MiB), pid 8 (1 MiB)"],
        ),
    ],
)
def test_other_processes_on_a_device(monkeypatch, options, expected):
    state = with_nvml(monkeypatch, **options)
    assert other_processes(torch.device("cuda:1")) == expected
    assert state.open == 0


def test_nobody_else_is_on_a_cpu(monkeypatch):
    with_nvml(monkeypatch, processes=[(7, 1), ME])
    assert other_processes(torch.device("cpu")) == []


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("what", ["memory", "time"])
def test_others_are_noted_or_refused(monkeypatch, what, strict):
    monkeypatch.setattr(worker, "prepare_process", lambda configuration: None)
    monkeypatch.setattr(worker, "other_processes", lambda device: ["1 other process computes on cuda: pid 7 (1 MiB)"])
    monkeypatch.setattr(worker, "memory_pass", lambda *_, **__: Reply(status="oom", notes=["more"]))
    monkeypatch.setattr(worker, "time_pass", lambda request: Reply(status="oom", notes=["more"]))
    reply = worker.run_request(
        Request(configuration=make_configuration(device="cuda", threads=None), what=what, samples=5, strict=strict)
    )
    if strict:
        assert reply.status == "error"
        assert "pid 7 (1 MiB) - end them" in reply.message
        assert len(reply.notes) == 1
    else:
        assert (reply.status, reply.message) == ("oom", None)
        assert reply.notes == ["1 other process computes on cuda: pid 7 (1 MiB)", "more"]
