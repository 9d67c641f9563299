"""The expected time of the rest of a sweep."""

import pytest

from capsbench.records import Cell, Plan
from capsbench.sweep.estimate import Estimate
from capsbench.timed_rounds import TurnsTaken
from helpers.made import make_configuration


def test_ends_that_take_turns_again_take_no_part_of_the_budget_away():
    cells = [Cell(configuration=make_configuration("mocapsnet", blocks)) for blocks in (1, 4, 8)]
    estimate = Estimate(Plan(command="", cells=cells), cells[2:])
    estimate.took_turns(TurnsTaken(cells, 3, 45.0, None))
    assert estimate.seconds_left() == pytest.approx((0, 45))


def test_cells_that_are_measured_at_once_take_their_share_of_the_time():
    cells = [Cell(configuration=make_configuration("mocapsnet", blocks)) for blocks in (1, 4, 8)]
    estimate = Estimate(Plan(command="", cells=cells, passes=["memory"]), cells)
    alone = estimate.seconds_left()
    estimate.at_once = 2
    assert estimate.seconds_left() == pytest.approx([seconds / 2 for seconds in alone])
    estimate.at_once = 100
    assert estimate.seconds_left() == pytest.approx([seconds / 3 for seconds in alone])
