"""The probe of a CUDA device, and who else is on it, as fakes would have it."""

import os
import sys
from types import SimpleNamespace

import pytest
import torch

from capsbench.measure import cuda_memory, worker
from capsbench.measure.cuda_memory import CudaProbe
from capsbench.measure.processes import nvml_process_bytes, other_processes
from capsbench.measure.worker import Reply, Request
from capsbench.tracing.trace import Phase
from helpers.fakes import FakeCuda, fake_nvml
from helpers.made import make_configuration


def test_a_cuda_phase_is_reset_and_synchronised_on_both_sides(monkeypatch):
    fake = FakeCuda(monkeypatch)
    monkeypatch.setattr(cuda_memory, "nvml_process_bytes", lambda device: 5000)
    with CudaProbe(torch.device("cuda")) as probe:
        with probe.phase("forward"):
            fake.asked.append("work")
        with probe.phase("backward"):
            fake.asked.append("work")
    phase = [step for step in fake.asked if step not in ("empty_cache", "memory_reserved")]
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
    # 900 are reserved when the driver is asked.
    assert (probe.process_bytes(), probe.context_bytes()) == (5000, 4100)
    assert probe.trace() is None


def test_a_driver_that_does_not_say_leaves_the_context_unknown(monkeypatch):
    FakeCuda(monkeypatch)
    monkeypatch.setattr(cuda_memory, "nvml_process_bytes", lambda device: None)
    with CudaProbe(torch.device("cuda")) as probe:
        pass
    assert (probe.process_bytes(), probe.context_bytes()) == (None, None)


def test_the_warm_peak_is_that_of_a_further_step(monkeypatch):
    fake = FakeCuda(monkeypatch)
    assert CudaProbe(torch.device("cuda")).warm_peak(lambda: fake.asked.append("step")) == 400
    reset = fake.asked.index("reset_peak_memory_stats")
    assert fake.asked[:reset].count("step") >= 3
    assert fake.asked[reset - 1 :] == ["synchronize", "reset_peak_memory_stats", "step", "synchronize", "max_memory_allocated"]


def test_the_history_of_a_cuda_allocator_is_a_trace(monkeypatch):
    history = []
    fake = FakeCuda(monkeypatch, history)
    monkeypatch.setattr(cuda_memory, "nvml_process_bytes", lambda device: None)

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
        ({"processes": [(1, 77), (os.getpid(), 4096)]}, 4096),
        ({"processes": [(1, 77)]}, None),
        ({"processes": [(os.getpid(), None)]}, None),
        ({"init_fails": True}, None),
        ({"asking_fails": True}, None),
    ],
    ids=["known", "only others", "the driver keeps it to itself", "no driver", "not permitted"],
)
def test_process_memory_on_a_device(monkeypatch, options, expected):
    state = with_nvml(monkeypatch, **options)
    assert nvml_process_bytes(torch.device("cuda")) == expected
    assert state.open == 0


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
    monkeypatch.setattr(worker, "memory_pass", lambda *_: Reply(status="oom", notes=["more"]))
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
