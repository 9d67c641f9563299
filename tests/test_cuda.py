"""Cells on a CUDA device; `helpers.card` says how the same tests run on a CPU."""

from statistics import median

import pytest
import torch

import capsbench
from capsbench.measure.cell import measure_cell
from capsbench.measure.memory import probe_for
from capsbench.prediction.predict import predict_cell
from capsbench.records import Cell, Plan
from helpers.card import DEVICE, ON_CARD, either, needs_card
from helpers.made import MIB, make_configuration
from helpers.turns import take_rounds

pytestmark = [pytest.mark.cuda, needs_card]

USUAL = either({"device": "cuda:0", "threads": None, "kernel": "triton"}, {"device": "cpu", "threads": 1, "kernel": "compiled"})


def cell_of(model="mocapsnet", blocks=2, **fields):
    return Cell(configuration=make_configuration(model, blocks, **{**USUAL, "batch_size": either(16, 4), **fields}))


def measure(*given, passes=("memory",), **fields):
    cell = cell_of(*given, **fields)
    return measure_cell(cell, Plan(command="", passes=list(passes), budget_seconds=1, cells=[cell]), environment="abcd")


def test_the_probe_counts_what_is_allocated():
    with probe_for(DEVICE) as probe, probe.phase("step"):
        kept = torch.empty(3 * MIB, dtype=torch.uint8, device=DEVICE)
        passing = torch.empty(5 * MIB, dtype=torch.uint8, device=DEVICE)
        del passing
    step = probe.phases()["step"]
    # The profiler of a CPU also counts the headers of its own allocations.
    assert step.end - step.start == pytest.approx(kept.nbytes, abs=either(0, 4096))
    assert step.peak - step.start == pytest.approx(8 * MIB, abs=either(0, 4096))
    assert not ON_CARD or probe.peak_reserved() >= step.peak


def test_a_cell_has_all_figures():
    record = measure(passes=("memory", "time"))
    assert record.status == "ok", record.message
    assert record.memory.probe in either({"cuda"}, {"allocator", "profiler"})
    assert record.time.clock == either("cuda events", "monotonic")
    # NVML does not say everywhere (containers, some drivers); a CPU has no caching allocator; only predictions are uncertain.
    missing = {name for name, value in record.memory if value is None}
    of_card = {"peak_reserved_bytes", "context_bytes", "warm_peak_allocated_bytes"}
    assert missing <= {"process_bytes", "context_bytes", "certainty", "at_peak"} | either(set(), of_card)
    if ON_CARD:
        assert record.memory.peak_allocated_bytes <= record.memory.peak_reserved_bytes
    if record.memory.process_bytes is not None:
        assert record.memory.process_bytes > record.memory.peak_allocated_bytes
    for samples in (record.time.train_step_seconds, record.time.forward_seconds, record.time.inference_seconds):
        assert len(samples) >= 5
        assert min(samples) > 0


def test_the_same_cell_has_the_same_bytes():
    """The driver's share grows as it loads kernels, and may not be known."""
    left_out = {"process_bytes", "context_bytes", "warm_peak_allocated_bytes"}
    one, two = (measure().memory.model_dump(exclude=left_out) for _ in range(2))
    assert one == two


def test_the_cells_that_a_user_gets(tmp_path):
    """The default kernel and front, at a batch that the front cuts, and what was predicted of them."""
    batch = either(128, 26)
    fixed = {"dataset": "sample", "batch_size": batch, "capsules": either(32, 4)}
    given = {"depths": [1, 2], "only": "memory", "device": DEVICE.type, **fixed}
    report = capsbench.run(["rescapsnet", "mocapsnet"], out=tmp_path / "run", threads=either(None, 1), **given)
    assert [record.status for record in report.records] == ["ok"] * 4
    for record in report.records:
        configuration = record.cell.configuration
        assert (configuration.kernel, configuration.front) == (either("triton", configuration.kernel), "chunked")
        assert_retained_as_predicted(record)


def assert_retained_as_predicted(record):
    """Assert that the measured retained bytes are those of the prediction for the same cell, and print the other figures."""
    assert record.status == "ok", record.message
    configuration = record.cell.configuration.model_copy(update=either({"gpu": "h100"}, {}))
    predicted = predict_cell(Cell(configuration=configuration))
    assert predicted.status == "ok", predicted.message
    for name in ("retained_bytes", "peak_allocated_bytes", "peak_reserved_bytes"):
        print(record.cell.label(), name, getattr(record.memory, name), getattr(predicted.memory, name))  # noqa: T201
    assert record.memory.retained_bytes == predicted.memory.retained_bytes


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("rescapsnet", {}),
        ("rescapsnet", {"routing": "sda"}),
        ("rescapsnet", {"routing": "em", "kernel": either("triton", "recompute")}),
        ("rescapsnet", {"kernel": "published"}),
        ("rescapsnet", {"memory": "checkpoint"}),
        ("rescapsnet", {"precision": "bf16"}),
        ("mocapsnet", {}),
        ("mocapsnet", {"routing": "sda"}),
        ("mocapsnet", {"inverse": "exact"}),
        ("mocapsnet", {"inverse": "segmented"}),
        ("mocapsnet", {"memory": "reversible-kept"}),
        ("mocapsnet", {"rule": "published"}),
        ("mocapsnet", {"precision": "bf16"}),
        ("mocapsnet", {"blocks": 64, "inverse": "exact"}),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(map(str, value.values())) or "default",
)
def test_retained_bytes_are_those_predicted(model, fields):
    fields = {"blocks": 2, "capsules": either(32, 4), "front": "chunked", **fields}
    assert_retained_as_predicted(measure(model, fields.pop("blocks"), **fields))


def test_a_wrong_prediction_is_seen():
    record = measure()
    memory = record.memory.model_copy(update={"retained_bytes": record.memory.retained_bytes + 512})
    with pytest.raises(AssertionError):
        assert_retained_as_predicted(record.model_copy(update={"memory": memory}))


def test_a_block_of_mocapsnet_retains_nothing():
    one, three = (measure(blocks=blocks).memory.retained_bytes for blocks in (1, 3))
    assert one == three


def test_a_published_block_retains_what_the_published_code_does():
    batch = either(128, 8)
    one, two = (measure("rescapsnet", blocks, batch_size=batch, kernel="published").memory.retained_bytes for blocks in (1, 2))
    if ON_CARD:
        assert (two - one) / MIB == pytest.approx(73.8, rel=0.02)
    else:
        assert two > one


def test_a_capacity_that_does_not_suffice_is_out_of_memory():
    record = measure("rescapsnet", 1, batch_size=either(128, 8), kernel="published", capacity=either(1024, 100) * MIB)
    assert record.status == "oom", record.message
    assert record.memory is None


def test_cells_take_turns_and_their_edges_are_events():
    depths = (1, 8)
    cells = {
        f"{model} {blocks}": cell_of(model, blocks).configuration for model in ("rescapsnet", "mocapsnet") for blocks in depths
    }
    rounds, failed, ended = take_rounds(cells, either(8, 2))
    assert (failed, ended) == ({}, None)
    for _, one in rounds:
        assert one.clock == either("cuda events", "monotonic")
        for turn in one.turns:
            assert 0 < turn.growing_forward_seconds < turn.growing_train_step_seconds < turn.train_step_seconds
            assert 0 < turn.growing_inference_seconds < turn.inference_seconds
    for model in ("rescapsnet", "mocapsnet"):
        few, many = (
            median(turn.growing_train_step_seconds for _, one in rounds for turn in one.turns if turn.cell == f"{model} {blocks}")
            for blocks in depths
        )
        assert few < many
