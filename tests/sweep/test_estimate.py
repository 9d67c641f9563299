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
