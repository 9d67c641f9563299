"""The expected time of the rest of a sweep."""

import pytest

from capsbench.records import Cell, Plan
from capsbench.sweep.estimate import Estimate
from capsbench.timed_rounds import TurnsTaken
from helpers.made import make_configuration, make_record


def test_ends_that_take_turns_again_take_no_part_of_the_budget_away():
    cells = [Cell(configuration=make_configuration("mocapsnet", blocks)) for blocks in (1, 4, 8)]
    estimate = Estimate(Plan(command="", cells=cells), cells[2:])
    estimate.took_turns(TurnsTaken(cells, 3, 45.0, None))
    assert estimate.seconds_left() == pytest.approx((0, 45))


def finished(cell, seconds):
    """The record of a cell of which memory alone was measured."""
    record = make_record("mocapsnet", cell.configuration.blocks)
    return record.model_copy(update={"cell": cell, "time": None, "duration_seconds": seconds})


@pytest.mark.parametrize("slower", [1, 4])
def test_bytes_that_took_longer_show_a_slower_machine_and_leave_the_time_budget_as_it_is(slower, monkeypatch):
    """Memory passes show how slow the machine is; the time budget is no part of them."""
    monkeypatch.setattr("capsbench.sweep.estimate._convolution_flops_per_second", lambda: 1e11)
    cells = [Cell(configuration=make_configuration("mocapsnet", blocks, batch_size=128)) for blocks in (1, 4, 8)]
    plan = Plan(command="", cells=cells, samples=3, budget_seconds=100)
    guessed = Estimate(plan.model_copy(update={"passes": ["memory"]}), cells).seconds_left()[1] / 3
    estimate = Estimate(plan, cells)
    least, most = estimate.seconds_left()
    for cell in cells:
        estimate.finished(finished(cell, slower * guessed))
    times = estimate.seconds_left()
    assert times[0] == pytest.approx(slower * (least - 3 * guessed), rel=1e-6)
    assert 300 < times[1] < 300 + slower * (most - 300)


def test_predicted_cells_are_done_though_they_have_no_times():
    cells = [Cell(configuration=make_configuration("mocapsnet", blocks, device="cpu:predicted")) for blocks in (1, 4)]
    estimate = Estimate(Plan(command="", cells=cells), cells)
    for cell in cells:
        estimate.finished(finished(cell, 2.0).model_copy(update={"kind": "predicted"}))
    assert (estimate.cells_left(), estimate.seconds_left()) == (0, (0, 0))


def test_cells_that_are_measured_at_once_take_their_share_of_the_time():
    cells = [Cell(configuration=make_configuration("mocapsnet", blocks)) for blocks in (1, 4, 8)]
    estimate = Estimate(Plan(command="", cells=cells, passes=["memory"]), cells)
    alone = estimate.seconds_left()
    estimate.at_once = 2
    assert estimate.seconds_left() == pytest.approx([seconds / 2 for seconds in alone])
    estimate.at_once = 100
    assert estimate.seconds_left() == pytest.approx([seconds / 3 for seconds in alone])


def test_the_start_of_processes_that_cells_share_counts_once():
    cells = [Cell(configuration=make_configuration("mocapsnet", blocks, batch_size=1)) for blocks in (1, 2, 3)]
    plan = Plan(command="", cells=cells, budget_seconds=0)
    estimate = Estimate(plan, cells)
    both = estimate.seconds_left()[0]
    assert both > Estimate(plan, cells[:1]).seconds_left()[0] > both / 3
    for cell in cells:
        estimate.finished(finished(cell, None))
    before = estimate.seconds_left()[0]
    estimate.took_turns(TurnsTaken(cells, 1, 0.0, None))
    assert before > 4 > estimate.seconds_left()[0]
    failed = Estimate(plan, cells)
    for cell in cells:
        failed.finished(make_record("mocapsnet", status="error").model_copy(update={"cell": cell, "duration_seconds": 9.0}))
    assert failed.seconds_left() == (0, 0)
