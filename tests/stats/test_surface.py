"""Costs over a grid: the term that two axes share, and predictions of other points."""

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from capsbench.errors import ConfigurationError
from capsbench.report import Report
from capsbench.stats.grid_costs import errors_of_turns, relative_to_each_other
from capsbench.stats.surface import fit_surface
from capsbench.stats.turn_times import CommonRounds
from capsbench.terminal.tables import estimates_table
from capsbench.words.slopes_in_words import curve_note
from helpers.made import make_grid_in_turn, make_varied


def bilinear(at):
    return 1000 + 7 * at["blocks"] + 30 * at["batch_size"] + 576 * at["blocks"] * at["batch_size"]


GRID = {"blocks": (1, 2, 4), "batch_size": (1, 8, 16)}


def test_the_cross_term_of_bytes_is_exact_and_carries_over():
    report = make_varied(bilinear, **GRID)
    row = report.cross_terms.set_index("metric").loc["retained"]
    assert (row["value"], row["low"], row["high"], row["exact"]) == (576, 576, 576, True)
    assert (row["unit"], row["axes"]) == ("bytes per block and sample", "blocks × batch_size")
    assert row["held_out_error"] == 0
    there = report.at(blocks=16, batch_size=256).set_index("metric").loc["retained"]
    expected = bilinear({"blocks": 16, "batch_size": 256})
    assert (there["value"], there["low"], there["high"], there["exact"]) == (expected, expected, expected, True)


def test_what_rounding_leaves_of_a_term_is_nothing():
    table = make_varied(bilinear, lambda at: 1e-3 * at["blocks"] + 1e-4 * at["batch_size"], **GRID).cross_terms
    found = table.set_index("metric")
    # The process has 900 MiB that neither axis changes, and 5 MiB per block.
    assert tuple(found.loc["process", ["value", "low", "high"]]) == (0, 0, 0)
    assert found.loc["retained", "value"] == 576


@pytest.mark.parametrize(
    ("at", "inside"), [((3, 12), True), ((1, 16), True), ((16, 12), False), ((2, 4), True), ((2, 0.5), False)]
)
def test_a_peak_is_known_from_below_where_nothing_was_measured(at, inside):
    report = make_varied(bilinear, **GRID)
    place = {"blocks": at[0], "batch_size": at[1]}
    rows = report.at(**place).set_index("metric")
    peak, expected = rows.loc["peak"], 4 * 2**20 + 2 * bilinear(place)
    assert (peak["value"], peak["low"], peak["exact"]) == (expected, expected, inside)
    assert (peak["high"] == expected) if inside else np.isnan(peak["high"])
    assert rows.loc["retained", ["high", "exact"]].tolist() == [bilinear(place), True]


def test_bytes_of_another_power_are_not_known_outside_their_cells_unless_a_basis_is_declared():
    """An image of twice the side has four times the tokens, and attention has sixteen times the pairs of them."""
    report = make_varied(lambda at: 3000 + 100 * at["length"] ** 2 + at["length"] ** 4 // 64, length=(16, 32, 48, 64))
    for report_of, known in ((report, False), (report.with_basis(length="1,n,n²"), True)):
        outside = report_of.at(length=128).set_index("metric").loc["retained"]
        assert np.isfinite(outside["value"]) == known
        assert ("no line and no curve" in outside["unknown"]) != known
    assert "--basis length=1,n,n²" in curve_note(report.slopes)
    assert curve_note(make_varied(lambda at: 7 ** at["blocks"], blocks=(1, 2, 4)).slopes) == ""


def falling(at):
    return 100_000 - 50 * at["blocks"] * at["batch_size"]


def test_bytes_below_zero_are_not_known():
    report = make_varied(falling, **GRID)
    inside = report.at(blocks=4, batch_size=16).set_index("metric").loc["retained"]
    assert (inside["value"], inside["exact"]) == (96_800, True)
    far = {"blocks": 100, "batch_size": 256}
    table = report.at(**far)
    retained, peak, train = (table.set_index("metric").loc[name] for name in ("retained", "peak", "train"))
    for row in (retained, train):
        assert np.isnan(row["value"])
        assert np.isnan(row["high"])
        assert row["low"] == 0
        assert not row["exact"]
    # 4 MiB that are always there are more than what falls.
    assert peak["value"] == 4 * 2**20 + 2 * falling(far)
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(estimates_table(table, far))
    lines = [line for line in console.export_text().splitlines() if "retained" in line]
    assert "not known: the fit falls below 0 there" in " ".join(lines[0].split())


def test_a_cost_whose_interval_reaches_zero_is_not_known():
    random = np.random.default_rng(0)
    report = make_varied(falling, lambda at: (100 - at["blocks"]) * np.exp(0.05 * random.standard_normal()), **GRID)
    table = report.at(blocks=95, batch_size=8)
    row = table.set_index("metric").loc["train"]
    assert row["low"] == 0 < row["high"]
    assert np.isnan(row["value"])
    assert row["unknown"] == "its interval reaches 0"
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(estimates_table(table, {"blocks": 95, "batch_size": 8}))
    assert "but at most" in next(line for line in console.export_text().splitlines() if "training time" in line)
    assert set(report.at(blocks=3, batch_size=8)["unknown"]) == {""}


def test_memory_of_a_process_is_not_said_to_be_below_what_smaller_cells_have():
    records = []
    for record, resident in zip(
        make_varied(lambda at: 100 * at["blocks"], blocks=(1, 2, 3)).records, (480, 476, 489), strict=True
    ):
        assert record.memory is not None
        records.append(record.model_copy(update={"memory": record.memory.model_copy(update={"process_bytes": resident * 2**20})}))
    table = Report.of(records).at(blocks=10)
    row = table.set_index("metric").loc["process"]
    assert np.isnan(row["value"])
    assert row["unknown"] == "its interval reaches below what smaller cells have"
    assert Report.of(records).at(blocks=3).set_index("metric").loc["process", "unknown"] == ""


def test_the_cell_left_out_is_predicted_with_the_terms_of_all_cells():
    report = make_varied(lambda at: 1000 + 10 * at["length"] + 3 * at["length"] ** 2, length=(32, 64, 96, 128))
    row = report.at(length=256).set_index("metric").loc["retained"]
    assert (row["value"], row["exact"], row["held_out_error"]) == (1000 + 2560 + 3 * 256**2, True, 0)


def test_a_byte_too_many_is_not_exact_and_shows_in_the_cell_left_out():
    def cost(at):
        return bilinear(at) + 1000 * (at == {"blocks": 4, "batch_size": 16})

    row = make_varied(cost, **GRID).cross_terms.set_index("metric").loc["retained"]
    assert not row["exact"]
    assert row["low"] < row["value"] < row["high"]
    assert row["held_out_error"] == pytest.approx(-1000 / cost({"blocks": 4, "batch_size": 16}))


def test_attention_over_depth_has_a_term_for_pairs_of_tokens():
    report = make_varied(
        lambda at: 5 + at["blocks"] * (12 * at["length"] + 48 * at["length"] ** 2), blocks=(1, 2, 3), length=(16, 32, 64, 128)
    )
    table = report.cross_terms
    units = table[table["metric"] == "retained"].set_index("unit")["value"].to_dict()
    assert units == {"bytes per block and token": 12, "bytes per block and pair of tokens": 48}
    there = report.at(blocks=12, length=1000).set_index("metric").loc["retained"]
    assert there["value"] == 5 + 12 * (12 * 1000 + 48 * 1000**2)


def test_a_prediction_over_one_axis_needs_no_grid():
    report = make_varied(lambda at: 5 + 3 * at["length"], length=(16, 32, 64))
    there = report.at(length=1024).set_index("metric")
    assert there.loc["retained", ["value", "exact"]].tolist() == [5 + 3 * 1024, True]
    assert report.cross_terms.empty


def test_intervals_of_times_hold_the_truth():
    random = np.random.default_rng(0)
    places = np.array([(x, y) for x in (1.0, 2, 4, 8) for y in (8.0, 16, 32)])
    truth = 0.01 + 0.002 * places[:, 0] + 1e-4 * places[:, 1] + 5e-4 * places[:, 0] * places[:, 1]
    inside = [0, 0]
    for _ in range(400):
        found = fit_surface(
            places, truth * np.exp(0.02 * random.standard_normal(len(truth))), repeats=False, forms=(("line",), ("line",))
        )
        assert found is not None
        factor = found.factor((1, 1)).interval
        there, value = found.at((16, 64)).interval, 0.01 + 0.032 + 0.0064 + 5e-4 * 16 * 64
        assert factor is not None
        assert there is not None
        inside[0] += factor[0] <= 5e-4 <= factor[1]
        inside[1] += there[0] <= value <= there[1]
    # The interval at a point is that of a measurement there, and wider than that of its mean.
    assert 0.92 < inside[0] / 400 < 0.98
    assert inside[1] / 400 > 0.95


def test_bytes_that_an_allocator_rounds_are_not_exact_and_their_intervals_hold_the_truth():
    places = np.array([(blocks, length) for blocks in (1.0, 2, 3) for length in (8.0, 16, 24, 32, 40)])
    blocks, length = places.T
    exact = 1000 * blocks * length + blocks * length**2
    forms = (("line", "quadratic"), ("line", "inverse", "quadratic"))
    for seed in range(50):
        values = exact + np.floor(512 * np.random.default_rng(seed).random(len(exact)))
        rounded = fit_surface(places, values, repeats=True, forms=forms, rounding=512)
        assert rounded is not None
        assert not rounded.exact
        ends = rounded.at((2, 32)).interval
        assert ends is not None
        assert ends[0] < 1000 * 2 * 32 + 2 * 32**2 < ends[1]
        factor = rounded.factor((1, 1)).interval
        assert factor is not None
        assert factor[0] < factor[1]


def test_rounded_cells_far_away_are_no_exact_prediction():
    places = np.array([(blocks, length) for blocks in (1.0, 2, 3) for length in (8.0, 16, 24, 32)])
    blocks, length = places.T
    truth = 1000 * blocks * length + blocks * length**2
    found = fit_surface(
        places,
        np.ceil(truth / 512) * 512,
        repeats=True,
        forms=(("line", "quadratic"), ("line", "inverse", "quadratic")),
        rounding=512,
    )
    assert found is not None
    ends = found.at((48, 4096)).interval
    assert ends is not None
    assert not found.exact
    # The square is hidden by the rounding here, but not there.
    assert found.terms == ((0, 0), (0, 1), (1, 0), (1, 1))
    assert ends[0] <= 1000 * 48 * 4096 + 48 * 4096**2 <= ends[1]


@pytest.mark.parametrize(("places", "sizes"), [((1, 2, 4), (20, 24, 26)), ((1, 2, 3, 4), (20, 26, 30, 32))])
def test_steps_on_a_falling_curve_are_no_exact_surface(places, sizes):
    at, values = np.array(places, dtype=float)[:, None], np.array(sizes, dtype=float) * 2**20
    found = fit_surface(at, values, repeats=True, forms=[("line", "inverse", "quadratic")], rounding=512)
    assert found is not None
    assert (found.terms, found.exact) == (((0,), (1,)), False)


def test_as_many_terms_as_points_are_no_surface():
    table = make_varied(bilinear, blocks=(1, 2), batch_size=(1, 2)).at(blocks=3, batch_size=3)
    assert table.empty
    assert list(table.columns) == list(make_varied(bilinear, **GRID).at(blocks=3, batch_size=3).columns)


@pytest.mark.parametrize("place", [float("nan"), float("inf"), -3, 0])
def test_a_position_that_no_cell_can_have_is_refused(place):
    report = make_varied(bilinear, **GRID)
    with pytest.raises(ConfigurationError, match=r"position \S+ on the axis 'batch_size'\n.*above 0"):
        report.at(blocks=2, batch_size=place)
    if place != 0:
        with pytest.raises(ConfigurationError, match=r"position \S+ on the axis 'blocks'\n.*0 or above"):
            report.at(blocks=place, batch_size=2)
    else:
        assert not report.at(blocks=place, batch_size=2).empty


def test_an_axis_with_one_value_is_refused():
    report = make_varied(bilinear, blocks=(1, 2, 4), batch_size=(8,))
    with pytest.raises(ConfigurationError, match=r"'batch_size', which was 8 in every cell\n.*several"):
        report.at(blocks=2, batch_size=16)


def test_a_point_on_no_axis_is_refused():
    frame = make_varied(bilinear, **GRID)
    with pytest.raises(ConfigurationError, match="names no axis"):
        frame.at()
    with pytest.raises(ConfigurationError, match="axis 'depth'"):
        frame.at(depth=3)


def test_cells_that_ended_badly_are_left_out():
    report = make_varied(bilinear, status=lambda at: "oom" if at["blocks"] * at["batch_size"] > 50 else "ok", **GRID)
    there = report.at(blocks=4, batch_size=16).set_index("metric").loc["retained"]
    assert there["value"] == bilinear({"blocks": 4, "batch_size": 16})
    assert isinstance(report.cross_terms, pd.DataFrame)


def seconds(at):
    return 0.01 + 0.002 * at["blocks"] + 1e-4 * at["batch_size"] + 5e-4 * at["blocks"] * at["batch_size"]


IN_TURN = {"blocks": (1, 2, 4, 8), "batch_size": (8, 16, 32)}


def train_row(table):
    return table.set_index("metric").loc["train"]


def test_times_of_common_rounds_are_without_the_drift_of_the_machine():
    """The rounds differ by a half, and cells hardly: medians of cells would show neither line."""
    report = make_grid_in_turn(seconds, drift=0.5, noise=1e-4, **IN_TURN)
    row = train_row(report.cross_terms)
    pace = row["value"] / 5e-4
    there = train_row(report.at(blocks=16, batch_size=64))
    assert there["value"] == pytest.approx(pace * seconds({"blocks": 16, "batch_size": 64}), rel=1e-3)
    assert abs(row["held_out_error"]) < 1e-3
    quiet = train_row(make_grid_in_turn(seconds, drift=0.02, noise=1e-4, **IN_TURN).cross_terms)
    assert (quiet["high"] - quiet["low"]) / quiet["value"] < 0.12, "what processes differ by, and little more"


def test_replicates_that_drifted_apart_have_rounds_of_their_own():
    report = make_grid_in_turn(
        seconds, noise=1e-4, replicates=3, growth=lambda replicate: 1 + 0.1 * replicate, drift=0.2, **IN_TURN
    )
    assert abs(train_row(report.cross_terms)["held_out_error"]) < 0.2
    one = train_row(make_grid_in_turn(seconds, noise=1e-4, replicates=1, **IN_TURN).cross_terms)
    assert abs(one["held_out_error"]) < 1e-3


def test_cells_that_missed_the_rounds_keep_their_times():
    turns = CommonRounds([0, 2, 3], np.array([[1.0, 2, 4], [2, 4, 8], [3, 6, 12]]), [0, 0, 0])
    assert relative_to_each_other(np.array([9.0, 7, 9, 9]), turns).tolist() == pytest.approx([2, 7, 4, 8])


def test_five_rounds_are_too_few_and_medians_stand():
    report = make_grid_in_turn(lambda at: seconds(at), rounds=5, noise=0, drift=0.3, **IN_TURN)
    plain = train_row(make_varied(lambda at: 16, seconds, **IN_TURN).cross_terms)["value"]
    # All cells of a round have its pace, so that medians agree here.
    assert train_row(report.cross_terms)["value"] / plain == pytest.approx(
        report.frame["train_step_seconds"].iloc[0] / seconds({"blocks": 1, "batch_size": 8})
    )


@pytest.mark.parametrize(
    ("processes", "cells"), [(1, 0.0), (1, 0.01), (4, 0.005)], ids=["one process", "layouts", "four processes"]
)
def test_intervals_of_times_in_turn_hold_a_cell_that_was_left_out_and_the_truth(processes, cells):
    """The cell farthest out is measured in a process of its own, which is as fast as processes are."""
    random, runs, rounds = np.random.default_rng(7), 400, 24
    places = np.array([(x, y) for x in IN_TURN["blocks"] for y in IN_TURN["batch_size"]], dtype=float)
    truth = np.array([seconds({"blocks": x, "batch_size": y}) for x, y in places])
    of = np.arange(rounds) * processes // rounds
    inside = {"cell": 0, "factor": 0}

    def paces(of):
        return np.exp(0.05 * random.standard_normal(rounds) + (0.025 * random.standard_normal(of.max() + 1))[of])

    def samples(values, of):
        values = values * np.exp(cells * random.standard_normal(len(values)))
        return values * paces(of)[:, None] * np.exp(0.02 * random.standard_normal((rounds, len(values))))

    for _ in range(runs):
        turns = CommonRounds(list(range(11)), samples(truth[:11], of), of.tolist())
        found = fit_surface(
            places[:11], relative_to_each_other(np.zeros(11), turns), repeats=False, forms=(("line",), ("line", "quadratic"))
        )
        assert found is not None
        shared, single = errors_of_turns([turns])
        found = replace(found, shared=shared, single=single)
        measured = float(np.median(samples(truth[11:], np.zeros(rounds, dtype=int))))
        there, factor = found.at(places[11].tolist()).interval, found.factor((1, 1)).interval
        assert there is not None
        assert factor is not None
        inside["cell"] += there[0] <= measured <= there[1]
        inside["factor"] += factor[0] <= 5e-4 <= factor[1]
    assert min(inside.values()) >= 0.93 * runs, inside
