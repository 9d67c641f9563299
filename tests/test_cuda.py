"""Measuring on a CUDA device."""

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
    # NVML does not say everywhere (containers, some drivers).
    missing = {name for name, value in record.memory if value is None}
    assert missing <= {"process_bytes"}
    assert record.memory.peak_allocated_bytes <= record.memory.peak_reserved_bytes
    if record.memory.process_bytes is not None:
        assert record.memory.process_bytes > record.memory.peak_reserved_bytes
    for samples in (record.time.train_step_seconds, record.time.forward_seconds, record.time.inference_seconds):
        assert len(samples) >= 5
        assert min(samples) > 0


def test_the_same_cell_has_the_same_bytes():
    one, two = (measure(batch_size=16).memory.model_dump(exclude={"process_bytes"}) for _ in range(2))
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
