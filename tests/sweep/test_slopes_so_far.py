"""Slopes of training time while cells take turns: those of a report, and whether they are known well enough."""

import pytest

from capsbench.records import Cell, GrowingFigures, Record, TimeFigures
from capsbench.stats.slopes import fitted_slopes
from capsbench.sweep.slopes_so_far import slopes_so_far
from helpers.made import make_configuration, make_frame, make_turns


def records_of(slopes, depths=(1, 2, 4), *, edges=True):
    """Records of one series in whose rounds a block took these seconds; `edges` is whether the parts that grow are known."""
    found = []
    for blocks in depths:
        parts = [slope * blocks for slope in slopes]
        seconds = [1 + part for part in parts]
        growing = GrowingFigures(
            modules=["blocks"], train_step_seconds=parts, forward_seconds=parts, inference_seconds=parts, edges_seconds=1e-5
        )
        time = TimeFigures(
            clock="made up", warmup_steps=2, train_step_seconds=seconds, forward_seconds=seconds, inference_seconds=seconds,
            rounds=list(range(len(slopes))), processes=[0] * len(slopes), growing=growing if edges else None,
        )  # fmt: skip
        found.append(Record(cell=Cell(configuration=make_configuration("mocapsnet", blocks)), status="ok", time=time))
    return found


def looked_at(records, rounds=range(1000)):
    return slopes_so_far([record.cell for record in records], records, rounds)


def test_slopes_are_known_within_a_share_of_themselves():
    steady, noisy = [0.01] * 12, [0.01, 0.02, 0.03] * 4
    assert looked_at(records_of(steady)).are_known(0.2)
    assert not looked_at(records_of(steady[:-1])).are_known(0.2), "few rounds may agree by luck"
    assert not looked_at(records_of(steady), range(11)).are_known(0.2), "rounds of an earlier sweep are not of these cells"
    assert not looked_at(records_of(noisy)).are_known(0.2)
    assert looked_at(records_of(noisy)).share == pytest.approx(1, rel=0.5)
    assert looked_at(records_of([0.01] * 5)).share is None
    assert looked_at(records_of([0.0] * 9)).share is None


def test_without_a_slope_medians_are_to_be_known():
    assert looked_at(records_of([0.01] * 6, depths=(3,))).are_known(0.2)
    assert not looked_at(records_of([0.01] * 5, depths=(3,))).are_known(0.2)
    assert not looked_at(records_of([0.01, 0.5] * 6, depths=(3,))).are_known(0.2)


@pytest.mark.parametrize(("rest_per_block", "basis"), [(0.0, "edges"), (0.05, "turns")])
def test_slopes_are_those_of_a_report(rest_per_block, basis):
    records = make_turns(["rescapsnet"], rest_per_block=rest_per_block)
    table = fitted_slopes(make_frame(records)).set_index("metric").loc["train"]
    found = looked_at(records)
    (fit,) = found.fits
    assert fit.basis == table["basis"] == basis
    assert (fit.slope.value, *fit.slope.interval) == (table["slope"], table["slope_low"], table["slope_high"])
    assert found.share == pytest.approx((table["slope_high"] - table["slope_low"]) / table["slope"])


def test_the_widest_of_several_slopes_counts():
    records = make_turns(noise=0.1)
    each = [
        looked_at([one for one in records if one.cell.configuration.model == model]).share
        for model in ("rescapsnet", "mocapsnet")
    ]
    assert looked_at(records).share == max(each)


def test_what_processes_differ_by_leaves_room_for_the_share_that_is_asked_for():
    """One process cannot show what processes differ by, so that an interval has a least width, well within the usual share."""
    quiet = looked_at(records_of([0.01] * 12))
    assert 0.05 < quiet.share < 0.7 * 0.2
    assert quiet.processes_prevail
    assert quiet.narrowed_by(1000) == pytest.approx(0)
    assert quiet.are_known(0.2)
    assert quiet.are_enough(0.2)


def test_no_round_is_taken_for_what_only_processes_would_narrow():
    quiet = looked_at(records_of([0.01] * 12))
    assert not quiet.are_known(0.05)
    assert quiet.are_enough(0.05)
    assert not looked_at(records_of([0.01] * 11)).are_enough(0.05)
    rough = looked_at(records_of([0.009, 0.01, 0.011] * 4))
    assert not rough.are_enough(0.05), "its rounds are not known within the share"
    assert not looked_at(records_of([0.0] * 12)).are_enough(0.2)


def test_whole_steps_contain_the_lasting_effects_of_cells():
    whole = looked_at(records_of([0.01] * 12, edges=False))
    assert whole.processes_prevail
    assert whole.share > 5 * looked_at(records_of([0.01] * 12)).share
    assert whole.are_enough(0.2)


def test_rounds_narrow_their_own_part_of_the_interval():
    noisy = looked_at(records_of([0.01, 0.02, 0.03] * 4))
    assert not noisy.processes_prevail
    assert 0.45 < noisy.narrowed_by(36) < 0.5
    assert noisy.narrowed_by(36) > looked_at(records_of([0.01, 0.02, 0.03] * 8)).narrowed_by(36)
    assert looked_at(records_of([0.01] * 5)).narrowed_by(10) == 0


def test_processes_that_disagree_are_seen():
    records = records_of([0.01] * 12 + [0.02] * 12)
    apart = [
        record.model_copy(update={"time": record.time.model_copy(update={"processes": [0] * 12 + [1] * 12})})
        for record in records
    ]
    assert looked_at(apart).share > 2 * looked_at(records_of([0.01] * 24)).share
    assert looked_at(apart).processes_prevail
    assert looked_at(apart).are_enough(0.2)
