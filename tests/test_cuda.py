"""Measuring on a CUDA device."""

import subprocess
import sys
from statistics import median

import pytest
import torch

from capsbench.measure.cell import measure_cell
from capsbench.measure.memory import CudaProbe
from capsbench.records import Cell, Plan
from helpers.made import MIB, make_configuration
from helpers.turns import take_rounds

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_the_probe_counts_what_is_allocated():
    with CudaProbe(torch.device("cuda")) as probe, probe.phase("step"):
        kept = torch.empty(3 * MIB, dtype=torch.uint8, device="cuda")
        passing = torch.empty(5 * MIB, dtype=torch.uint8, device="cuda")
        del passing
    step = probe.phases()["step"]
    assert step.end - step.start == kept.nbytes
    assert step.peak - step.start == 8 * MIB
    assert probe.peak_reserved() >= step.peak


def measure(model="mocapsnet", blocks=2, **fields):
    cell = Cell(configuration=make_configuration(model, blocks, device="cuda", threads=None, **fields))
    return measure_cell(cell, Plan(command="", cells=[cell]), environment="abcd")


def test_a_cell_has_all_figures():
    record = measure(batch_size=16)
    assert record.status == "ok", record.message
    assert record.memory.probe == "cuda"
    assert record.time.clock == "cuda events"
    memory = record.memory
    missing = {name for name, value in memory if value is None} - {"certainty"}  # of predictions alone
    # NVML does not say everywhere (containers, some drivers); then a note says why.
    assert missing <= {"process_bytes", "context_bytes"}
    assert any("is not known: " in note for note in record.notes) == bool(missing)
    assert memory.retained_requested_bytes <= memory.retained_bytes
    assert memory.peak_requested_bytes <= memory.peak_allocated_bytes <= memory.peak_reserved_bytes
    assert memory.step_reserved_bytes >= memory.peak_requested_bytes
    if memory.process_bytes is not None:
        assert memory.process_bytes > memory.peak_reserved_bytes
    for samples in (record.time.train_step_seconds, record.time.forward_seconds, record.time.inference_seconds):
        assert len(samples) >= 5
        assert min(samples) > 0
    assert record.tf32 is False


def test_a_trace_retains_what_the_device_was_asked_for():
    for model in ("rescapsnet", "mocapsnet"):
        record = measure(model, batch_size=16)
        assert record.step.agrees, record.notes
        assert sum(record.step.retained_by_module.values()) == record.memory.retained_requested_bytes


@pytest.mark.parametrize("optimizer_step", [None, "backward"])
def test_the_device_alone_is_no_slower_than_a_step(optimizer_step):
    """A step that waits for nothing can be held back as a whole, and then runs without gaps."""
    record = measure("rescapsnet", batch_size=16, optimizer_step=optimizer_step)
    for name in ("train_step_seconds", "inference_seconds"):
        alone, samples = getattr(record.time, f"device_{name}"), getattr(record.time, name)
        assert len(alone) == 3
        assert 0 < median(alone) < 1.05 * median(samples)
    assert len(record.time.launch_yardstick_seconds) >= 1
    assert record.time.warmup_steps > 2


def test_with_the_cache_turned_off_bytes_are_unknown(monkeypatch):
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    record = measure(batch_size=16)
    assert record.status == "ok", record.message
    assert record.memory.retained_bytes is record.memory.peak_allocated_bytes is record.memory.peak_reserved_bytes is None
    assert any("were not counted" in note for note in record.notes)
    assert record.time.train_step_seconds


def test_a_sweep_makes_no_context_of_its_own():
    """The process that starts measurements would count as another one on the device."""
    script = (
        "import torch; from capsbench.measure.environment import describe; from capsbench.measure.processes import *\n"
        "describe(); device_identity('cuda:0'); print(available_bytes('cuda:0'))\n"
        "assert nvml_process_bytes(torch.device('cuda:0'))[0] is None, 'it has a context'"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_the_same_cell_has_the_same_bytes():
    # The driver's figures move with what else is loaded.
    driver = {"process_bytes", "context_bytes"}
    one, two = (measure(batch_size=16).memory.model_dump(exclude=driver) for _ in range(2))
    assert one == two


def test_a_block_of_mocapsnet_retains_nothing():
    one, three = (measure(blocks=blocks, batch_size=16).memory.retained_bytes for blocks in (1, 3))
    assert one == three


def test_a_published_block_retains_what_the_published_code_does():
    one, two = (measure("rescapsnet", blocks, batch_size=128, kernel="published").memory.retained_bytes for blocks in (1, 2))
    assert (two - one) / MIB == pytest.approx(73.8, rel=0.02)


def test_a_capacity_that_does_not_suffice_is_out_of_memory():
    record = measure("rescapsnet", 1, batch_size=128, kernel="published", capacity=1024 * MIB)
    assert record.status == "oom", record.message
    assert record.memory is None


def test_cells_take_turns_and_their_edges_are_events():
    cells = {
        f"{model} {blocks}": make_configuration(model, blocks, device="cuda:0", threads=None, batch_size=16)
        for model in ("rescapsnet", "mocapsnet")
        for blocks in (1, 8)
    }
    rounds, failed, ended = take_rounds(cells, 8)
    assert (failed, ended) == ({}, None)
    for _, one in rounds:
        assert one.clock == "cuda events"
        for turn in one.turns:
            assert 0 < turn.growing_forward_seconds < turn.growing_train_step_seconds < turn.train_step_seconds
            assert 0 < turn.growing_inference_seconds < turn.inference_seconds
    for model in ("rescapsnet", "mocapsnet"):
        few, many = (
            median(turn.growing_train_step_seconds for _, one in rounds for turn in one.turns if turn.cell == f"{model} {blocks}")
            for blocks in (1, 8)
        )
        assert few < many
