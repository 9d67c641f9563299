"""Slopes against answers that others computed."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from capsbench import fit_slope, paper, slopes
from capsbench.errors import ConfigurationError
from helpers.made import MIB, RETAINED_PER_BLOCK, SECONDS_PER_BLOCK, make_frame, make_record

# NIST Statistical Reference Datasets, linear regression, "Norris": y, x.
NORRIS = """
0.1 0.2  338.8 337.4  118.1 118.2  888.0 884.6  9.2 10.1  228.1 226.5  668.5 666.3  998.5 996.3  449.1 448.6  778.9 777.0
559.2 558.2  0.3 0.4  0.1 0.6  778.1 775.5  668.8 666.9  339.3 338.0  448.9 447.5  10.8 11.6  557.7 556.0  228.3 228.1
998.0 995.8  888.8 887.6  119.6 120.2  0.3 0.3  0.6 0.3  557.6 556.8  339.3 339.1  888.0 887.2  998.5 999.0  778.9 779.0
10.2 11.1  117.6 118.3  228.9 229.2  668.4 669.1  449.2 448.9  0.2 0.5
"""


def half_width(interval):
    return (interval[1] - interval[0]) / 2


def test_an_exact_line_is_found_exactly():
    blocks = [1, 2, 3, 4, 8]
    fit = fit_slope(blocks, [7 + 3 * x for x in blocks])
    assert (fit.slope, fit.intercept, fit.r2, fit.points) == (pytest.approx(3), pytest.approx(7), pytest.approx(1), 5)
    assert half_width(fit.slope_interval) == pytest.approx(0, abs=1e-6)


def test_nist_norris():
    numbers = np.array(NORRIS.split(), dtype=float).reshape(-1, 2)
    assert numbers.shape == (36, 2)
    fit = fit_slope(numbers[:, 1], numbers[:, 0])
    # Certified values; NIST gives standard deviations, from which the interval follows.
    assert fit.slope == pytest.approx(1.00211681802045, rel=1e-12)
    assert fit.intercept == pytest.approx(-0.262323073774029, rel=1e-10)
    assert fit.r2 == pytest.approx(0.999993745883712, rel=1e-12)
    reach = stats.t.ppf(0.975, 34)
    assert half_width(fit.slope_interval) == pytest.approx(reach * 0.429796848199937e-03, rel=1e-9)
    assert half_width(fit.intercept_interval) == pytest.approx(reach * 0.232818234301152, rel=1e-9)


def test_repeated_depths_agree_with_the_textbook():
    random = np.random.default_rng(0)
    x = np.repeat([1.0, 2, 4, 8], 3)
    y = 5 + 2 * x + random.normal(size=x.size)
    fit = fit_slope(x, y)
    (intercept, slope), rest, *_ = np.linalg.lstsq(np.column_stack([np.ones_like(x), x]), y, rcond=None)
    squares = ((x - x.mean()) ** 2).sum()
    variance = rest[0] / (x.size - 2)
    reach = stats.t.ppf(0.975, x.size - 2)
    assert (fit.slope, fit.intercept) == (pytest.approx(slope), pytest.approx(intercept))
    assert fit.slope_interval == pytest.approx(slope + reach * np.array([-1, 1]) * np.sqrt(variance / squares))
    intercept_error = np.sqrt(variance * (1 / x.size + x.mean() ** 2 / squares))
    assert fit.intercept_interval == pytest.approx(intercept + reach * np.array([-1, 1]) * intercept_error)
    assert fit.r2 == pytest.approx(1 - rest[0] / ((y - y.mean()) ** 2).sum())


@pytest.mark.parametrize(
    ("dataset", "stored", "momentum"), [("mnist", 190.536, 40.905), ("cifar10", 174.238, 3.679), ("svhn", 177.274, 3.643)]
)
def test_table_4_of_the_paper(dataset, stored, momentum):
    table = paper.table("table4_memory_mb")
    found = {
        model: round(fit_slope(rows["blocks"], rows["memory_mb"]).slope, 3)
        for model, rows in table[table["dataset"] == dataset].groupby("model")
    }
    assert found == {"capsnet": stored, "rescapsnet": stored, "mocapsnet": momentum}


def test_level_values_have_no_slope_and_nothing_to_explain():
    # 0.1 three times does not sum to a multiple of its mean: a naive fit gives 1e-17.
    fit = fit_slope([1, 2, 3, 7], [0.1] * 4)
    assert (fit.slope, fit.intercept, fit.r2) == (0.0, 0.1, None)
    assert fit.slope_interval == (0.0, 0.0)


@pytest.mark.parametrize("values", [[1, 5], [3, 3]])
def test_two_points_have_no_interval(values):
    fit = fit_slope([1, 3], values)
    assert fit.slope == (values[1] - values[0]) / 2
    assert (fit.slope_interval, fit.intercept_interval, fit.points) == (None, None, 2)


@pytest.mark.parametrize(
    ("blocks", "values", "message"),
    [
        ([1, 2], [1, float("nan")], "not finite"),
        ([1, float("inf")], [1, 2], "not finite"),
        ([2, 2, 2], [1, 2, 3], "got 1"),
        ([1], [1], "got 1"),
        ([], [], "got 0"),
        ([1, 2, 3], [1, 2], "3 blocks for 2 values"),
        ([[1, 2], [3, 4]], [[1, 2], [3, 4]], "4 blocks"),
    ],
)
def test_what_has_no_slope_is_refused(blocks, values, message):
    with pytest.raises(ConfigurationError, match=message):
        fit_slope(blocks, values)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(20310203)
    blocks = np.arange(1, 9)
    rounds = 2000
    covered = {"slope": 0, "intercept": 0}
    for _ in range(rounds):
        fit = fit_slope(blocks, 10 - 0.5 * blocks + random.normal(scale=2, size=blocks.size))
        covered["slope"] += fit.slope_interval[0] <= -0.5 <= fit.slope_interval[1]
        covered["intercept"] += fit.intercept_interval[0] <= 10 <= fit.intercept_interval[1]
    # Four standard deviations of a count with probability 0.95: a normal quantile (0.93) or a 99 % interval fails.
    for count in covered.values():
        assert count / rounds == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / rounds))


def pick(table, metric, **line):
    found = table[table["metric"] == metric]
    for column, value in line.items():
        found = found[found[column] == value]
    assert len(found) == 1, found
    return found.iloc[0]


def test_a_row_for_each_line_and_metric(sweep_frame):
    table = slopes(sweep_frame)
    # No device reserves anything here.
    metrics = {"retained", "peak", "process", "train", "forward", "inference"}
    assert sorted(zip(table["model"], table["metric"], strict=True)) == sorted(
        (m, n) for m in RETAINED_PER_BLOCK for n in metrics
    )
    for model, nbytes in RETAINED_PER_BLOCK.items():
        assert pick(table, "retained", model=model)["slope"] == pytest.approx(nbytes)
        assert pick(table, "train", model=model)["slope"] == pytest.approx(SECONDS_PER_BLOCK[model])
    assert set(table["points"]) == {4}
    assert set(table[table["metric"].isin(["retained", "peak", "process"])]["unit"]) == {"bytes per block"}
    assert set(table[table["metric"].isin(["train", "forward", "inference"])]["unit"]) == {"seconds per block"}
    row = pick(table, "retained", model="rescapsnet")
    assert row["intercept"] == pytest.approx(MIB)
    assert row["slope_low"] <= row["slope"] <= row["slope_high"]
    assert row["intercept_low"] <= row["intercept"] <= row["intercept_high"]


def test_ratios_are_over_rescapsnet(sweep_frame):
    table = slopes(sweep_frame)
    ratios = table.set_index(["model", "metric"])["ratio_to_rescapsnet"]
    assert ratios["rescapsnet", "retained"] == 1
    assert ratios["mocapsnet", "retained"] == 0
    assert ratios["mocapsnet", "train"] == pytest.approx(1.5)


def test_ratios_are_missing_without_rescapsnet(sweep_frame):
    table = slopes(sweep_frame[sweep_frame["model"] != "rescapsnet"])
    assert len(table)
    assert table["ratio_to_rescapsnet"].isna().all()


def test_a_level_reference_gives_no_ratio(sweep_frame):
    sweep_frame.loc[sweep_frame["model"] == "rescapsnet", "retained_bytes"] = 5
    assert np.isnan(pick(slopes(sweep_frame), "retained", model="mocapsnet")["ratio_to_rescapsnet"])


def line(model="rescapsnet", depths=(1, 2, 3), factor=1, **fields):
    """Records of one line, whose retained bytes are multiplied."""
    for blocks in depths:
        record = make_record(model, blocks, **fields)
        memory = record.memory.model_copy(update={"retained_bytes": factor * blocks * MIB})
        yield record.model_copy(update={"memory": memory})


@pytest.mark.parametrize(
    ("column", "values"), [("kernel", ("recompute", "published")), ("batch_size", (4, 8)), ("dataset", ("sample", "mnist"))]
)
def test_each_kernel_batch_and_data_set_has_its_own_reference(column, values):
    records = []
    for factor, value in enumerate(values, start=1):
        records += [*line(factor=factor, **{column: value}), *line("mocapsnet", factor=6, **{column: value})]
    table = slopes(make_frame(records))
    for factor, value in enumerate(values, start=1):
        assert pick(table, "retained", model="rescapsnet", **{column: value})["slope"] == pytest.approx(factor * MIB)
        assert pick(table, "retained", model="mocapsnet", **{column: value})["ratio_to_rescapsnet"] == pytest.approx(6 / factor)


def test_the_reference_is_the_one_with_stored_activations():
    records = [*line(factor=2), *line(factor=1, memory="checkpoint"), *line("mocapsnet", factor=1)]
    table = slopes(make_frame(records))
    assert pick(table, "retained", memory="checkpoint")["ratio_to_rescapsnet"] == pytest.approx(0.5)
    assert pick(table, "retained", model="mocapsnet")["ratio_to_rescapsnet"] == pytest.approx(0.5)


def test_an_interval_is_the_same_wherever_its_records_lie():
    def uneven(blocks):
        record = make_record(blocks=blocks, threads=2)
        samples = [one * (1 + 0.1 * (blocks % 2) + 0.01 * place) for place, one in enumerate(record.time.train_step_seconds)]
        return record.model_copy(update={"time": record.time.model_copy(update={"train_step_seconds": samples})})

    records = [uneven(blocks) for blocks in (1, 2, 3, 4)]
    # Together with a line without a number of threads, the column is of floats.
    together = make_frame([*records, make_record("mine", threads=None)], "another/place")
    first, second = (slopes(frame).set_index("metric").loc["train"] for frame in (make_frame(records), together))
    assert first["slope_low"] < first["slope"] < first["slope_high"]
    assert tuple(first[["slope_low", "slope_high"]]) == tuple(second[["slope_low", "slope_high"]])


def test_nullable_columns_are_no_other_than_those_with_gaps():
    frame = make_frame(make_record(blocks=blocks, threads=threads) for blocks in (1, 2, 3) for threads in (2, None))
    one, other = slopes(frame), slopes(frame.convert_dtypes())
    assert one["slope_low"].tolist() == pytest.approx(other["slope_low"].tolist(), nan_ok=True)


def test_reports_are_kept_apart():
    frames = [make_frame(line(factor=factor), report=name) for name, factor in (("a", 1), ("b", 3))]
    table = slopes(pd.concat(frames, ignore_index=True))
    for name, factor in (("a", 1), ("b", 3)):
        row = pick(table, "retained", report=name)
        assert (row["slope"], row["points"]) == (pytest.approx(factor * MIB), 3)
        assert row["ratio_to_rescapsnet"] == 1


def test_cells_without_a_figure_are_no_points():
    records = [*line(depths=(1, 2, 3)), make_record(blocks=4, status="oom"), make_record(blocks=5, status="skipped")]
    assert set(slopes(make_frame(records))["points"]) == {3}


def test_one_depth_has_no_row():
    table = slopes(make_frame([*line(depths=(2,)), *line("mocapsnet", depths=(1, 2))]))
    assert set(table["model"]) == {"mocapsnet"}


@pytest.mark.parametrize("records", [[], [make_record(status="oom")]], ids=["nothing", "only oom"])
def test_nothing_gives_an_empty_table_with_all_columns(records):
    table = slopes(make_frame(records))
    assert len(table) == 0
    assert {"model", "metric", "slope", "slope_low", "slope_high", "intercept", "r2", "ratio_to_rescapsnet"} <= set(table.columns)


def test_replicates_are_points_of_one_line():
    records = [record for replicate in (0, 1) for record in line(replicate=replicate)]
    assert pick(slopes(make_frame(records)), "retained")["points"] == 6


def test_an_own_model_is_compared_although_it_has_no_kernel():
    table = slopes(make_frame([*line("module:name", factor=3), *line(factor=2)]))
    row = pick(table, "retained", model="module:name")
    assert row["slope"] == pytest.approx(3 * MIB)
    assert row["ratio_to_rescapsnet"] == pytest.approx(1.5)


def test_an_own_model_has_no_ratio_where_two_references_compete():
    table = slopes(make_frame([*line("module:name"), *line(), *line(kernel="published")]))
    assert np.isnan(pick(table, "retained", model="module:name")["ratio_to_rescapsnet"])


def test_machines_are_not_mixed_in_one_line(sweep_frame):
    elsewhere = sweep_frame.assign(environment="efgh", train_step_seconds=sweep_frame["train_step_seconds"] * 7)
    table = slopes(pd.concat([sweep_frame, elsewhere]))
    train = table[(table["metric"] == "train") & (table["model"] == "rescapsnet")].set_index("environment")["slope"]
    assert train["efgh"] == pytest.approx(7 * train["abcd"])


def test_noise_is_nothing_to_divide_by(sweep_frame):
    noise = pd.Series([0.0, 1.0, -1.0, 0.5]).sample(len(sweep_frame), replace=True, random_state=0).tolist()
    frame = sweep_frame.assign(train_step_seconds=[value + 2 for value in noise])
    table = slopes(frame).set_index(["model", "metric"])
    low, high = table.loc[("rescapsnet", "train"), ["slope_low", "slope_high"]]
    assert low < 0 < high
    assert pd.isna(table.loc[("mocapsnet", "train"), "ratio_to_rescapsnet"])
    assert table.loc[("mocapsnet", "retained"), "ratio_to_rescapsnet"] == 0
