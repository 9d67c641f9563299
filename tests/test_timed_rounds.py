"""Rounds of cells that took turns, on the disk and as times."""

import json

import pytest

from capsbench.records import Round, TimeFigures, Turn
from capsbench.report import Report
from capsbench.timed_rounds import joined, times_of, without_record
from helpers.made import make_record


def make_round(number, cells, process=0, **fields):
    """A round in which every cell takes as many seconds as its number says."""
    turns = [
        Turn(
            cell=cell, train_step_seconds=10.0 + number, forward_seconds=4.0, inference_seconds=1.0 + number,
            growing_train_step_seconds=2.0 + number, growing_forward_seconds=0.5, growing_inference_seconds=0.25,
        )
        for cell in cells
    ]  # fmt: skip
    usual = {"clock": "monotonic", "warmup_steps": 2, "yardstick_seconds": [0.5], "yardstick_flops": 8, "edges_seconds": 1e-5}
    return Round(number=number, process=process, turns=turns, modules={cell: ["blocks"] for cell in cells}, **(usual | fields))


def test_a_cell_s_times_are_those_of_its_rounds():
    found = times_of([make_round(0, "ab"), make_round(3, "b"), make_round(5, "ab", process=1)], "a")
    assert found.train_step_seconds == [10, 15]
    assert (found.rounds, found.processes) == ([0, 5], [0, 1])
    assert found.inference_seconds == [1, 6]
    assert found.growing.train_step_seconds == [2, 7]
    assert found.growing.modules == ["blocks"]
    assert found.yardstick_seconds == [0.5, 0.5]
    assert times_of([make_round(0, "b")], "a") is None


def test_a_round_without_the_yardstick_does_not_hide_it():
    without = make_round(1, "a", yardstick_seconds=[], yardstick_flops=None)
    found = times_of([make_round(0, "a"), without], "a")
    assert (found.yardstick_seconds, found.yardstick_flops) == ([0.5], 8)
    assert times_of([without], "a").yardstick_flops is None


def test_growing_parts_are_left_out_where_one_is_unknown():
    rounds = [make_round(0, "a"), make_round(1, "a")]
    (turn,) = rounds[1].turns
    bare = Turn(cell="a", train_step_seconds=1, forward_seconds=1, inference_seconds=1)
    assert times_of([rounds[0], rounds[1].model_copy(update={"turns": [bare]})], "a").growing is None
    assert times_of([rounds[0], rounds[1].model_copy(update={"turns": [turn]})], "a").growing is not None


def test_noise_of_any_round_counts():
    assert times_of([make_round(0, "a", noise=["load"]), make_round(1, "a")], "a", ["unsettled"]).noise == ["unsettled", "load"]


@pytest.mark.parametrize("lacking", ["rounds", "processes"])
def test_samples_that_cannot_be_paired_are_refused(lacking):
    data = times_of([make_round(0, "a"), make_round(1, "a")], "a").model_dump()
    data[lacking] = data[lacking][:1]
    with pytest.raises(ValueError, match="different lengths"):
        TimeFigures.model_validate(data)


def test_rounds_of_a_sweep_that_was_cut_off_are_drawn_and_do_not_settle_a_cell(tmp_path):
    report = Report(tmp_path)
    records = [make_record(blocks=blocks).model_copy(update={"time": None}) for blocks in (1, 2)]
    keys = [record.cell.key() for record in records]
    for record in records:
        report.append(record)
    for number in range(3):
        report.append_round(make_round(number, keys))
    for one in (report, Report(tmp_path)):
        assert [record.time.rounds for record in one.records] == [[0, 1, 2]] * 2
        assert one.settled() == set()
        assert one.settled(["memory"]) == set(keys)
        assert one.frame["train_step_seconds"].tolist() == [11, 11]
    report.append(report.records[0])
    assert Report(tmp_path).settled() == {keys[0]}
    # Rounds stay as long as one of their turns is in no record.
    report.forget_rounds()
    for one in (report, Report(tmp_path)):
        assert [[turn.cell for turn in taken.turns] for taken in one.rounds] == [[keys[1]]] * 3
        assert [record.time.rounds for record in one.records] == [[0, 1, 2]] * 2
    report.append(report.records[1])
    report.forget_rounds()
    assert not (tmp_path / "rounds.jsonl").exists()
    assert Report(tmp_path).rounds == report.rounds == []


def test_further_turns_of_a_cell_that_has_times_are_added_to_them():
    first, more = (times_of([make_round(number, "a") for number in numbers], "a") for numbers in ((0, 1), (4, 5, 6)))
    found = joined(first, more)
    assert found == times_of([make_round(number, "a") for number in (0, 1, 4, 5, 6)], "a")
    others = more.model_copy(update={"growing": more.growing.model_copy(update={"modules": ["others"]})})
    for parts in (None, others.growing):
        assert joined(first, more.model_copy(update={"growing": parts})).growing is None
    without = more.model_copy(update={"growing": more.growing.model_copy(update={"inference_seconds": []})})
    assert joined(first, without).growing.inference_seconds == []
    assert joined(first, without).growing.forward_seconds == found.growing.forward_seconds
    assert TimeFigures.model_validate(joined(first, without).model_dump()) == joined(first, without)
    # Samples of a cell that was timed alone have no round.
    assert joined(make_record().time, more) == more


def test_inference_that_was_timed_without_edges_leaves_the_parts_of_training_known():
    rounds = [make_round(number, "a") for number in range(2)]
    bare = rounds[1].turns[0].model_copy(update={"growing_inference_seconds": None})
    found = times_of([rounds[0], rounds[1].model_copy(update={"turns": [bare]})], "a")
    assert (found.growing.train_step_seconds, found.growing.inference_seconds) == ([2, 3], [])


def test_only_turns_that_are_in_no_record_are_left():
    times = times_of([make_round(0, "a"), make_round(1, "a")], "a")
    record = make_record().model_copy(update={"time": times})
    key = record.cell.key()
    rounds = [make_round(0, [key]), make_round(1, [key, "b"]), make_round(2, [key, "b"])]
    assert [(one.number, [turn.cell for turn in one.turns]) for one in without_record(rounds, [record])] == [
        (1, ["b"]), (2, [key, "b"]),
    ]  # fmt: skip


def test_a_damaged_line_costs_that_round_alone(tmp_path):
    report = Report(tmp_path)
    record = make_record().model_copy(update={"time": None})
    report.append(record)
    for number in range(3):
        report.append_round(make_round(number, [record.cell.key()]))
    path = tmp_path / "rounds.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:50], lines[2]]) + "\n" + json.dumps({"number": 1})[:5])
    again = Report(tmp_path)
    assert again.records[0].time.rounds == [0, 2]
    assert [damage.line for damage in again.damages] == [2, 4]
