"""Groups of processes, measured on a CPU, and the predictions of their first process held to them."""

import json
import os
from pathlib import Path

import pytest

import capsbench
from capsbench.errors import ConfigurationError
from capsbench.measure.group import check_measurable, mean_of
from capsbench.prediction.predict import predict_memory, trace_for
from capsbench.records import Cell, MemoryFigures, Plan
from helpers import ranks
from helpers.commands import together
from helpers.forked import in_fork
from helpers.ranks import CASES, configuration_of

EXACT = ("state_bytes", "gradient_bytes", "optimizer_bytes")
PEAKS = {"peak_forward_bytes": 0.06, "peak_backward_bytes": 0.02, "peak_allocated_bytes": 0.02}
"""Largest share by which each peak may be higher than predicted: in forward a CPU's attention takes memory that no trace has,
even in one process."""
LATE = 0.05
"""Share of a figure that gloo's threads may hold longer than they need to where other tests have the cores."""


def measured(tmp_path_factory, server, count: int) -> dict[str, list[MemoryFigures]]:
    """The figures of each process of a group, by way and case."""
    found = tmp_path_factory.mktemp(f"ranks{count}") / "found.json"
    started = [server.start(found.parent, ranks.__file__, rank, count, found, program="python") for rank in range(count)]
    for done in together(started):
        assert done.status == 0, done.stderr[-2000:]
    return {name: [MemoryFigures(**one) for one in each] for name, each in json.loads(found.read_text()).items()}


@pytest.fixture(scope="module")
def in_two(tmp_path_factory, server):
    return measured(tmp_path_factory, server, 2)


@pytest.fixture(scope="module")
def in_four(tmp_path_factory, server):
    return measured(tmp_path_factory, server, 4)


def held(parallel: str, name: str, measured: list[MemoryFigures]) -> None:
    """Hold the prediction of one case to what its processes were measured to take."""
    configuration = configuration_of(name, parallel, len(measured))
    predicted = predict_memory(configuration, trace_for(configuration)).memory
    first = measured[0]
    assert {one: getattr(predicted, one) for one in EXACT} == {one: getattr(first, one) for one in EXACT}
    assert predicted.retained_bytes <= first.retained_bytes <= predicted.retained_bytes + LATE * first.peak_forward_bytes
    for peak, error in PEAKS.items():
        assert 0.98 < getattr(first, peak) / getattr(predicted, peak) < 1 + error + LATE, peak
    # The first process holds the most.
    assert first.optimizer_bytes == max(one.optimizer_bytes for one in measured)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_take_what_was_predicted(parallel, name, in_two):
    held(parallel, name, in_two[f"{parallel} {name}"])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_four_processes_take_what_was_predicted(parallel, name, in_four):
    held(parallel, name, in_four[f"{parallel} {name}"])


def test_communication_is_counted_in_both(in_two):
    configuration = configuration_of("encoder", "fsdp", 2)
    predicted = predict_memory(configuration, trace_for(configuration)).memory
    counted = in_two["fsdp encoder"][0].at_peak
    assert counted.communication_bytes == pytest.approx(predicted.at_peak.communication_bytes, rel=LATE)


# A whole cell


@pytest.mark.slow
def test_a_cell_is_a_group_of_processes(tmp_path):
    options = {"depths": 1, "parallel": "fsdp", "world_size": 2, "device": "cpu", "only": "memory", **ranks.SMALL}
    report = in_fork(capsbench.run, "rescapsnet", out=tmp_path / "report", **options)
    (record,) = report.records
    assert (record.status, record.message) == ("ok", None)
    assert record.mean_memory.state_bytes == record.memory.state_bytes
    assert record.mean_memory.peak_allocated_bytes <= record.memory.peak_allocated_bytes
    assert record.step.agrees is True
    assert capsbench.Report(tmp_path / "report").records == report.records


@pytest.mark.slow
def test_the_error_of_one_process_ends_the_others(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(ranks.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]))
    options = {"parallel": "ddp", "world_size": 2, "device": "cpu", "only": "memory", "timeout": 120}
    report = in_fork(capsbench.run, "helpers.ranks:failing", out=tmp_path / "report", **options)
    (record,) = report.records
    assert record.status == "error"
    assert "process 1 of 2: " in record.message
    assert "it fails on purpose" in record.message


# Without processes


def plan_of(**changed: object) -> Plan:
    configuration = configuration_of("encoder", "ddp", 2).model_copy(update=changed)
    return Plan(command="made", cells=[Cell(configuration=configuration)], passes=["time", "memory"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, "`parallel` ddp: times of several processes are not measured\ngive `only` memory"),
        ({"device": "cuda:0"}, "`parallel` ddp is measured on a CPU alone, and `device` is 'cuda:0'\nchoose `device` cpu"),
    ],
)
def test_what_cannot_be_measured_is_refused(changed, message):
    with pytest.raises(ConfigurationError) as refused:
        check_measurable(plan_of(**changed))
    assert str(refused.value).startswith(message)


def test_predictions_and_single_processes_are_not_refused():
    check_measurable(plan_of(device="cuda:predicted"))
    check_measurable(plan_of(parallel=None, world_size=None))


def test_the_mean_of_several_processes():
    one, other = (
        MemoryFigures(
            probe="allocator", state_bytes=state, gradient_bytes=4, optimizer_bytes=8, retained_bytes=-1, peak_forward_bytes=5,
            peak_backward_bytes=6, peak_allocated_bytes=7, process_bytes=process,
        )
        for state, process in ((10, 100), (13, None))
    )  # fmt: skip
    found = mean_of([one, other])
    assert (found.state_bytes, found.gradient_bytes, found.retained_bytes, found.process_bytes) == (12, 4, -1, None)
