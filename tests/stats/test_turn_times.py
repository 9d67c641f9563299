"""Slopes of cells that took turns: from the parts that grow, from whole steps, or from cells apart, and their ratios."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from capsbench.frame import to_frame
from capsbench.stats.intervals import StandardError
from capsbench.stats.line_fit import fit_line
from capsbench.stats.linearity import turns_are_linear
from capsbench.stats.metrics import METRICS
from capsbench.stats.slopes import fitted_slopes, series_of
from capsbench.stats.turn_times import DepthTime, TurnTimes, fit_turns, turn_times
from helpers.made import SECONDS_PER_BLOCK, make_frame, make_record, make_turns


def slopes(**kinds: Any) -> pd.DataFrame:
    """The table of slopes of made-up turns, by model and metric."""
    return fitted_slopes(make_frame(make_turns(**kinds))).set_index(["model", "metric"])


@pytest.mark.parametrize(("growing", "basis"), [(True, "edges"), (False, "turns")])
def test_the_basis_is_the_edges_where_they_are_known(growing: bool, basis: str) -> None:
    table = slopes(growing=growing, seed=3)
    for model in ("rescapsnet", "mocapsnet"):
        row = table.loc[model, "train"]
        assert row["basis"] == basis
        assert row["slope_low"] <= SECONDS_PER_BLOCK[model] <= row["slope_high"]
        assert (row["points"], row["linear"], row["shape"]) == (4, True, "line")
        assert np.isnan(row["rest_low"]) != growing
    assert set(table.xs("retained", level="metric")["basis"]) == {"cells"}


def test_the_parts_that_grow_give_a_far_narrower_interval() -> None:
    part, whole = (slopes(growing=growing).loc["rescapsnet", "train"] for growing in (True, False))
    assert part["slope_high"] - part["slope_low"] < 0.5 * (whole["slope_high"] - whole["slope_low"])


def test_a_rest_that_grows_makes_it_the_slope_of_the_whole_step() -> None:
    row = slopes(rest_per_block=0.05).loc["rescapsnet", "train"]
    assert row["basis"] == "turns"
    assert 0 < row["rest_low"] < 0.05 < row["rest_high"]
    assert row["slope_low"] < SECONDS_PER_BLOCK["rescapsnet"] + 0.05 < row["slope_high"]
    same = slopes(rest_per_block=0.05, growing=False).loc["rescapsnet", "train"]
    assert (row["slope"], row["slope_low"], row["slope_high"]) == (same["slope"], same["slope_low"], same["slope_high"])


@pytest.mark.parametrize(("axis", "basis"), [("batch_size", "edges"), ("blocks", "turns")])
def test_parts_that_grow_along_another_axis_are_no_basis(axis: str, basis: str) -> None:
    records = []
    for record in make_turns(["rescapsnet"]):
        assert record.time is not None
        assert record.time.growing is not None
        it = record.cell.configuration
        cell = record.cell.model_copy(update={"configuration": it.model_copy(update={"blocks": 1, "batch_size": it.blocks})})
        time = record.time.model_copy(update={"growing": record.time.growing.model_copy(update={"axis": axis})})
        records.append(record.model_copy(update={"cell": cell, "time": time}))
    frame = to_frame((("made", record) for record in records), [("batch_size",)] * len(records))
    row = fitted_slopes(frame).set_index("metric").loc["train"]
    assert row["basis"] == basis
    assert row["axis"] == "batch_size"


def test_fewer_than_six_rounds_are_fitted_as_cells_apart() -> None:
    few = slopes(full=5, ends=0)
    assert set(few["basis"]) == {"cells"}
    assert few["rest_low"].isna().all()
    assert set(slopes(full=6, ends=0).xs("train", level="metric")["basis"]) == {"edges"}


def test_records_without_rounds_have_the_slopes_that_they_had() -> None:
    table = fitted_slopes(make_frame([make_record("rescapsnet", blocks) for blocks in (1, 2, 4)]))
    assert set(table["basis"]) == {"cells"}
    assert table[["rest_low", "rest_high"]].isna().all(axis=None)


def test_two_depths_in_turn_have_an_interval() -> None:
    row = slopes(depths=(1, 8)).loc["mocapsnet", "train"]
    assert row["slope_low"] < row["slope"] < row["slope_high"]
    assert row["ratio_low"] < 1.5 < row["ratio_high"]


@pytest.mark.parametrize("growing", [True, False])
def test_the_ratio_is_taken_round_by_round(growing: bool) -> None:
    row = slopes(growing=growing, ends=40).loc["mocapsnet", "train"]
    assert row["ratio_low"] <= 1.5 <= row["ratio_high"]
    assert row["ratio_low"] < row["ratio_to_rescapsnet"] < row["ratio_high"]
    own = slopes(growing=growing, ends=40).loc["rescapsnet", "train"]
    assert tuple(own[["ratio_to_rescapsnet", "ratio_low", "ratio_high"]]) == (1, 1, 1)


def test_series_that_had_no_rounds_together_are_compared_by_their_intervals() -> None:
    records = make_turns(["rescapsnet"]) + make_turns(["mocapsnet"], first_round=100, process=1, seed=1)
    row = fitted_slopes(make_frame(records)).set_index(["model", "metric"]).loc["mocapsnet", "train"]
    together = slopes().loc["mocapsnet", "train"]
    assert row["ratio_low"] < 1.5 < row["ratio_high"]
    assert row["ratio_high"] - row["ratio_low"] > together["ratio_high"] - together["ratio_low"]


def test_the_time_at_each_depth_has_no_drift() -> None:
    frame = make_frame(make_turns(["rescapsnet"], depths=(1, 2, 3, 8), noise=0.001))
    ((_, cells),) = series_of(frame)
    line = fit_line(cells, METRICS["train"])
    assert line is not None
    assert line.turns is not None
    assert list(line.turns.at) == [1, 2, 3, 8]
    rises = [one.seconds - line.turns.at[1].seconds for one in line.turns.at.values()]
    assert rises == pytest.approx([0.02 * (blocks - 1) for blocks in line.turns.at], rel=0.1)
    for one in line.turns.at.values():
        assert one.low <= one.seconds <= one.high
        assert one.high - one.low < 0.03
    assert line.fit.intercept == pytest.approx(0.8, rel=0.1)


def test_the_line_passes_through_the_times_that_are_known_well() -> None:
    records = []
    for record in make_turns(["rescapsnet"], depths=(1, 2, 3, 4), full=3, ends=40, noise=0.001, growing=False):
        time = record.time
        assert time is not None
        # The depths between the ends have three rounds, which other work on the machine slowed down.
        apart = record.cell.configuration.blocks in (2, 3)
        factors = (1.1, 1.3, 1.5) if apart else (1.0,) * len(time.train_step_seconds)
        seconds = [one * factor for one, factor in zip(time.train_step_seconds, factors, strict=True)]
        records.append(record.model_copy(update={"time": time.model_copy(update={"train_step_seconds": seconds})}))
    ((_, cells),) = series_of(make_frame(records))
    line = fit_line(cells, METRICS["train"])
    assert line is not None
    assert line.turns is not None
    at = line.turns.at
    assert at[2].seconds > 1.2 * line.at(2)
    for depth in (1, 4):
        assert line.at(depth) == pytest.approx(at[depth].seconds, rel=0.01)


def test_a_bent_time_is_not_a_line() -> None:
    records = make_turns(["rescapsnet"], depths=range(1, 9), noise=0.001)
    bent = []
    for record in records:
        blocks, time = record.cell.configuration.blocks, record.time
        assert time is not None
        more = {"train_step_seconds": [one + 0.01 * blocks**2 for one in time.train_step_seconds], "growing": None}
        bent.append(record.model_copy(update={"time": time.model_copy(update=more)}))
    table = fitted_slopes(make_frame(bent)).set_index("metric")
    assert table.loc["train", "shape"] == "not a line"


def test_cells_of_groups_that_share_their_ends_are_one_series() -> None:
    records = make_turns(["rescapsnet"], depths=(1, 2, 8)) + make_turns(["rescapsnet"], (1, 5, 8), first_round=50, process=1)
    merged: dict[int, Any] = {}
    for record in records:
        blocks, time = record.cell.configuration.blocks, record.time
        assert time is not None
        if blocks in merged:
            earlier, parts, more = merged[blocks].time, merged[blocks].time.growing, time.growing
            assert more is not None
            names = ("train_step_seconds", "forward_seconds", "inference_seconds")
            both = parts.model_copy(update={name: getattr(parts, name) + getattr(more, name) for name in names})
            update = {name: getattr(earlier, name) + getattr(time, name) for name in (*names, "rounds", "processes")}
            record = record.model_copy(update={"time": earlier.model_copy(update=update | {"growing": both})})
        merged[blocks] = record
    ((_, cells),) = series_of(make_frame(merged.values()))
    times = turn_times(cells, "train_step_seconds")
    assert times is not None
    assert times.depths.tolist() == [1, 2, 5, 8]
    assert len(times.turns) == 48
    fit = fit_turns(times)
    assert fit is not None
    assert fit.slope.value == pytest.approx(0.02, rel=0.1)
    assert set(fit.processes.values()) == {0, 1}


def test_a_cell_that_was_timed_alone_does_not_hide_the_others_turns() -> None:
    records = [*make_turns(["rescapsnet"]), make_record("rescapsnet", 9)]
    row = fitted_slopes(make_frame(records)).set_index("metric").loc["train"]
    assert (row["basis"], row["points"]) == ("edges", 5)


def test_depths_that_never_took_turns_with_both_ends_are_placed_beside_two_that_did() -> None:
    """A sweep of 1, 2 and 4 blocks got 8 blocks later, which took turns with 1 and 4."""
    random = np.random.default_rng(2)
    depths, seconds = np.array([1.0, 2.0, 4.0, 8.0]), np.array([1.0, 1.5, 2.0, 4.0])
    drift = np.repeat([1.0, 1.3], 12)[:, None] + 0.001 * random.standard_normal((24, 4))
    whole = seconds + drift
    whole[:12, 3] = np.nan
    whole[12:, 1] = np.nan
    turns = TurnTimes(depths, [(0, number) for number in range(24)], [0] * 12 + [1] * 12, whole, None)
    fit = fit_turns(turns)
    assert fit is not None
    assert list(fit.at) == [1, 2, 4, 8]
    rises = [one.seconds - fit.at[1].seconds for one in fit.at.values()]
    assert rises == pytest.approx([0, 0.5, 1, 3], abs=0.005)
    for one in fit.at.values():
        assert one.low <= one.seconds <= one.high < one.low + 0.01


def drawn_rounds(rng: np.random.Generator, depths: int, rounds: int, *, heavy: bool, bend: float = 0.0) -> Any:
    """Depths, and seconds of cells that took turns on a machine whose speed drifts: a line, bent in the middle."""
    at = np.arange(1.0, depths + 1)
    noise = rng.standard_t(3, (rounds, depths)) if heavy else rng.normal(size=(rounds, depths))
    bent = np.where(np.isin(at, (1, depths)), 0.0, bend)
    return at, 1 + rng.normal(0, 0.05, (rounds, 1)) + 0.01 * at + bent + 0.01 * noise


def share_called_bent(**drawn: Any) -> float:
    rng = np.random.default_rng(7)
    several = [drawn_rounds(rng, **drawn) for _ in range(400)]
    return float(np.mean([turns_are_linear(at, rounds, deviation=1.0) is False for at, rounds in several]))


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize(("depths", "rounds"), [(3, 3), (8, 3), (4, 20)])
def test_lines_in_noise_are_seldom_called_bent(depths: int, rounds: int, heavy: bool) -> None:
    assert share_called_bent(depths=depths, rounds=rounds, heavy=heavy) <= 0.025


def test_bent_times_of_cells_in_turn_are_found() -> None:
    assert share_called_bent(depths=8, rounds=3, heavy=False, bend=0.05) >= 0.95
    assert share_called_bent(depths=3, rounds=20, heavy=True, bend=0.05) >= 0.95


def test_what_too_few_rounds_or_depths_say_of_a_line() -> None:
    at, rounds = drawn_rounds(np.random.default_rng(0), 3, 3, heavy=False)
    assert turns_are_linear(at, rounds[:1], 1.0) is None
    assert turns_are_linear(at[:2], rounds[:, :2], 1.0) is None
    assert turns_are_linear(at, np.where(np.arange(3) == 1, np.nan, rounds), 1.0) is None
    exact = 1 + 0.01 * at + 0.3 * np.arange(3)[:, None]
    assert turns_are_linear(at, exact, 0.5) is True
    assert turns_are_linear(at, exact + np.array([0, 0.1, 0]), 0.5) is False
    assert turns_are_linear(at, exact + np.array([0, 0.1, 0]), 0.01) is True, "2 % of the range are always a line"


def test_what_a_cell_s_place_in_memory_may_add_bends_no_line() -> None:
    at, rounds = drawn_rounds(np.random.default_rng(0), 3, 40, heavy=False, bend=0.012)
    assert turns_are_linear(at, rounds, 1.0) is False
    assert turns_are_linear(at, rounds, 1.0, StandardError(0.008, 6.0)) is True


def test_a_depth_in_few_rounds_has_an_interval_that_covers_its_time() -> None:
    """95 % intervals of depths between the ends, which took 3 of 23 rounds, as a sweep takes them."""
    rng, covered = np.random.default_rng(3), []
    for _ in range(150):
        at, whole = drawn_rounds(rng, 5, 23, heavy=False)
        whole[3:, 1:-1] = np.nan
        times = TurnTimes(at, [(0, number) for number in range(23)], [0] * 23, whole, None)
        fit = fit_turns(times)
        assert fit is not None
        ends = fit.at[1.0].seconds, fit.at[5.0].seconds
        for depth in (2.0, 3.0, 4.0):
            on_line = ends[0] + (depth - 1) / 4 * (ends[1] - ends[0])
            covered.append(fit.at[depth].low <= on_line <= fit.at[depth].high)
            assert fit.at[depth].low < fit.at[depth].seconds < fit.at[depth].high
    assert 0.93 <= np.mean(covered) <= 0.995


def test_a_single_round_of_a_depth_has_no_interval() -> None:
    at, whole = drawn_rounds(np.random.default_rng(3), 3, 8, heavy=False)
    whole[1:, 1] = np.nan
    fit = fit_turns(TurnTimes(at, [(0, number) for number in range(8)], [0] * 8, whole, None))
    assert fit is not None
    assert np.isnan(fit.at[2.0].low)
    assert fit.at[1.0].low < fit.at[1.0].high


@pytest.mark.parametrize(
    ("time", "found"),
    [((4.0, -2.0, 9.0), (4.0, 0.0, 9.0)), ((4.0, 1.0, 9.0), (4.0, 1.0, 9.0)), ((-1.0, -2.0, 9.0), (-1.0, -1.0, 9.0))],
)
def test_an_interval_of_a_time_does_not_reach_below_0(time: tuple[float, ...], found: tuple[float, ...]) -> None:
    assert DepthTime(*time).of_a_step() == found


def test_a_time_without_an_interval_has_none() -> None:
    assert np.isnan(DepthTime(1.0, np.nan, np.nan).of_a_step().low)
