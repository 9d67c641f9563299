"""Axes that change nothing are said to."""

import pytest

from capsbench.records import Cell, Configuration, StepFigures
from capsbench.sweep.unchanged import unchanged
from helpers.made import make_record


def record(length, **memory):
    """A record of a case of one length, whose bytes are the same at any other."""
    made = make_record(blocks=2)
    configuration = Configuration(
        model="cases.py:gpt2", blocks=2, dataset="own", batch_size=2, device="cpu", settings={"length": length, "width": 8}
    )
    figures = made.memory.model_copy(update={"process_bytes": 900 + length, **memory})
    step = StepFigures(retained_by_module={"a": made.memory.retained_bytes}, agrees=True, flops=100)
    return made.model_copy(update={"cell": Cell(configuration=configuration), "memory": figures, "step": step})


def test_an_axis_with_the_same_bytes_everywhere_changes_nothing():
    (found,) = unchanged([record(256), record(128)], ("length",))
    assert found.note == "length changes nothing of cases.py:gpt2: the same bytes at length 128, length 256"
    assert [one.cell.configuration.position("length") for one in found.records] == [256, 128]


@pytest.mark.parametrize(
    "name", ["state_bytes", "retained_bytes", "peak_forward_bytes", "peak_backward_bytes", "peak_allocated_bytes"]
)
def test_a_byte_more_is_a_change(name):
    changed = record(256)
    memory = changed.memory.model_copy(update={name: getattr(changed.memory, name) + 1})
    assert unchanged([record(128), changed.model_copy(update={"memory": memory})], ("length",)) == []


def test_nobody_knows_a_step_whose_operations_were_not_counted():
    assert unchanged([record(length).model_copy(update={"step": None}) for length in (128, 256)], ("length",)) == []


def test_threads_change_the_time_alone():
    several = []
    for threads in (1, 2):
        made = record(128)
        configuration = made.cell.configuration.model_copy(update={"threads": threads})
        several.append(made.model_copy(update={"cell": Cell(configuration=configuration)}))
    assert unchanged(several, ("threads",)) == []


def test_an_operation_more_is_a_change():
    changed = record(256)
    changed = changed.model_copy(update={"step": changed.step.model_copy(update={"flops": 101})})
    assert unchanged([record(128), changed], ("length",)) == []


def test_one_place_and_other_axes_say_nothing():
    assert unchanged([record(128), record(128)], ("length",)) == []
    assert unchanged([record(128), record(256)], ("width", "blocks")) == []
    failed = record(256).model_copy(update={"status": "error", "memory": None})
    assert unchanged([record(128), failed], ("length",)) == []
