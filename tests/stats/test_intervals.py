"""Intervals contain the noise, as often as they say; a line is called one only where it is."""

import numpy as np
import pytest
from scipy import stats

from capsbench import fit_slope, slopes
from capsbench.stats.intervals import half_width, interval, ratio_interval
from capsbench.stats.linearity import times_are_linear
from capsbench.stats.median import median_error
from capsbench.stats.scatter import Points, line_errors
from helpers.made import MIB, make_frame, make_record

SLOPE = 0.001


def simulated(random, *, depths, replicates, samples, between, within, slope=SLOPE):
    """Depths, medians and samples of a line whose processes and steps are noisy; shares of a step of 0.1 s."""
    blocks = np.repeat(np.arange(1.0, depths + 1), replicates)
    of_process = (0.1 + slope * blocks) * (1 + between * random.normal(size=blocks.size))
    raw = of_process[:, None] * (1 + within * random.normal(size=(blocks.size, samples)))
    return blocks, np.median(raw, axis=1), raw.tolist()


def slope_interval(blocks, medians, samples=(), *, exact=False):
    """The interval of a time's slope."""
    half = half_width(line_errors(Points(blocks, medians, None, samples), relative=True, exact=exact).slope)
    return interval(fit_slope(blocks, medians).slope, half)


@pytest.mark.parametrize(
    ("depths", "replicates", "samples", "between", "within"),
    [
        (8, 1, 10, 0.01, 0.02),
        (8, 1, 10, 0.02, 0.001),
        (8, 1, 10, 0.0, 0.05),
        (4, 1, 9, 0.01, 0.02),
        (4, 3, 6, 0.01, 0.03),
        (3, 2, 10, 0.01, 0.01),
    ],
    ids=["both", "between processes", "within processes", "few depths", "replicates", "three depths"],
)
def test_the_interval_of_a_time_covers_the_truth(depths, replicates, samples, between, within):
    random = np.random.default_rng(20310203)
    covered, widths, found = [], [], []
    for _ in range(300):
        blocks, medians, raw = simulated(
            random, depths=depths, replicates=replicates, samples=samples, between=between, within=within
        )
        low, high = slope_interval(blocks, medians, raw)
        covered.append(low <= SLOPE <= high)
        widths.append(high - low)
        found.append(fit_slope(blocks, medians).slope)
    assert np.mean(covered) >= 0.93
    # What an interval would be that knew the noise, and what Student's t must add for not knowing it. What the replicates of a
    # depth share cannot be known from them: each depth is one value.
    known = 2 * stats.norm.ppf(0.975) * np.std(found)
    assert np.median(widths) < 1.7 * known * stats.t.ppf(0.975, depths - 2) / stats.norm.ppf(0.975)


def test_noise_within_a_process_is_in_the_interval_although_the_medians_lie_on_a_line():
    blocks = np.arange(1.0, 9)
    medians = 0.1 + SLOPE * blocks
    noisy = [[value * share for share in (0.8, 0.9, 1.0, 1.1, 1.2)] for value in medians]
    low, high = slope_interval(blocks, medians, noisy, exact=True)
    assert low < SLOPE < high
    assert high - low > 1e-3
    low, high = slope_interval(blocks, medians, [[value] * 5 for value in medians], exact=True)
    assert (low, high) == (pytest.approx(SLOPE), pytest.approx(SLOPE))


def test_samples_of_no_time_at_all_are_no_noise():
    with np.errstate(all="raise"):
        assert median_error([0.0, 0.0, 0.0]) == 0
        assert slope_interval(np.arange(3.0), np.zeros(3), [[0.0, 0.0, 0.0]] * 3) == (0, 0)


def test_noise_among_replicates_is_in_the_interval():
    """The interval of two depths shows that replicates differ, even if their means lie on a line by luck."""
    blocks = np.repeat([1.0, 4.0], 4)
    medians = 0.1 + SLOPE * blocks + np.tile([0.01, -0.01], 4)
    low, high = slope_interval(blocks, medians)
    assert low < SLOPE - 1e-3
    assert high > SLOPE + 1e-3


def test_where_noise_is_the_same_everywhere_the_interval_is_the_textbook_s():
    blocks = np.arange(1.0, 7)
    values = 5 + 2 * blocks + np.random.default_rng(5).normal(size=6)
    fit, errors = fit_slope(blocks, values), line_errors(Points(blocks, values), relative=False)
    assert interval(fit.slope, half_width(errors.slope)) == pytest.approx(fit.slope_interval)
    assert interval(fit.intercept, half_width(errors.intercept)) == pytest.approx(fit.intercept_interval)
    # And nearly so where a share of the value is the same everywhere.
    errors = line_errors(Points(blocks, values + 1e6), relative=True)
    assert interval(fit.slope, half_width(errors.slope)) == pytest.approx(fit.slope_interval, rel=1e-4)


@pytest.mark.parametrize("count", [2, 3, 5, 6, 9, 20, 100])
def test_the_error_of_a_median_is_its_deviation(count):
    random = np.random.default_rng(count)
    drawn = random.normal(size=(4000, count))
    found = [median_error(samples) for samples in drawn.tolist()]
    assert np.mean(found) == pytest.approx(np.std(np.median(drawn, axis=1)), rel=0.3)


def test_an_odd_sample_says_nothing_of_the_median():
    assert median_error([1.0] * 8 + [100.0]) == 0
    assert median_error([1.0]) == 0
    assert median_error([1.0, 2.0, 3.0]) > 0


def test_the_interval_of_a_ratio_covers_the_truth():
    random = np.random.default_rng(7)
    covered = 0
    noise = {"depths": 8, "replicates": 1, "samples": 10, "between": 0.01, "within": 0.01}
    for _ in range(200):
        figures = []
        for slope in (0.015, 0.01):
            blocks, medians, raw = simulated(random, slope=slope, **noise)
            low, high = slope_interval(blocks, medians, raw)
            figures += [(low + high) / 2, (high - low) / 2]
        low, high = ratio_interval(*figures)
        covered += low <= 1.5 <= high
        assert high - low < 1.5
    assert covered >= 186


def test_a_ratio_s_interval_is_every_ratio_that_makes_the_difference_0():
    for ratio in ratio_interval(1.5, 0.2, 1.0, 0.3):
        assert abs(1.5 - ratio * 1.0) == pytest.approx(np.hypot(0.2, ratio * 0.3))
    assert ratio_interval(3.0, 0.0, 2.0, 0.0) == (1.5, 1.5)
    assert ratio_interval(3.0, 0.5, 2.0, 0.0) == (pytest.approx(1.25), pytest.approx(1.75))
    assert str(ratio_interval(0.0, 0.0, -2.0, 0.0)) == "(0.0, 0.0)"


def test_a_reference_that_may_be_0_has_no_ratio():
    assert ratio_interval(1.0, 0.1, 1.0, 1.0) is None
    assert ratio_interval(1.0, 0.1, 0.0, 0.0) is None


# The same through data frames.


def timed(times, model="rescapsnet", **fields):
    """Records whose training steps take `times[blocks - 1]`, each a list of samples."""
    for blocks, samples in enumerate(times, start=1):
        record = make_record(model, blocks, **fields)
        yield record.model_copy(update={"time": record.time.model_copy(update={"train_step_seconds": list(samples)})})


def sized(values, column="peak_reserved_bytes", **fields):
    """Records that hold `values[blocks - 1]` bytes."""
    for blocks, nbytes in enumerate(values, start=1):
        record = make_record(blocks=blocks, **fields)
        yield record.model_copy(update={"memory": record.memory.model_copy(update={column: nbytes})})


def row(table, metric, model="rescapsnet"):
    (found,) = (table.iloc[place] for place in np.flatnonzero((table["metric"] == metric) & (table["model"] == model)))
    return found


SAMPLES = np.random.default_rng(9).normal(1, 0.02, size=(2, 6, 12))


def noisy_frame():
    of_models = [(0.1 + 0.02 * np.arange(6), "rescapsnet"), (0.1 + 0.03 * np.arange(6), "mocapsnet")]
    records = [
        record
        for (steps, model), noise in zip(of_models, SAMPLES, strict=True)
        for record in timed(steps[:, None] * noise, model)
    ]
    return make_frame(records)


def test_times_have_wider_intervals_than_their_medians_say():
    found = row(slopes(noisy_frame()), "train")
    alone = row(slopes(noisy_frame().drop(columns="train_step_samples")), "train")
    assert found["slope"] == alone["slope"]
    assert 0 < alone["slope_high"] - alone["slope_low"] < found["slope_high"] - found["slope_low"]
    assert found["slope_low"] < 0.02 < found["slope_high"]


def test_ratios_have_intervals():
    found = row(slopes(noisy_frame()), "train", "mocapsnet")
    assert found["ratio_low"] < found["ratio_to_rescapsnet"] < found["ratio_high"]
    assert found["ratio_low"] < 1.5 < found["ratio_high"]
    assert found["ratio_high"] - found["ratio_low"] < 1
    own = row(slopes(noisy_frame()), "train")
    assert (own["ratio_low"], own["ratio_to_rescapsnet"], own["ratio_high"]) == (1, 1, 1)


def test_exact_bytes_have_exact_ratios(sweep_frame):
    found = row(slopes(sweep_frame), "peak", "mocapsnet")
    assert found["ratio_low"] == found["ratio_to_rescapsnet"] == found["ratio_high"]


def test_two_points_have_a_ratio_without_an_interval():
    frame = make_frame(make_record(model, blocks) for blocks in (1, 2) for model in ("rescapsnet", "mocapsnet"))
    table = slopes(frame)
    assert np.isnan(row(table, "train")["slope_low"])
    found = row(table, "peak", "mocapsnet")
    assert found["ratio_to_rescapsnet"] > 0
    assert np.isnan(found["ratio_low"])


def test_a_line_has_one_interval_whatever_stands_beside_it():
    frame = noisy_frame()
    together = row(slopes(frame), "train", "mocapsnet")
    alone = row(slopes(frame[frame["model"] == "mocapsnet"]), "train", "mocapsnet")
    assert tuple(together[["slope_low", "slope_high"]]) == tuple(alone[["slope_low", "slope_high"]])


# Whether it is a line.


@pytest.mark.parametrize(
    ("values", "linear"),
    [
        ([100 * MIB] * 5, True),
        ([(100 + 2 * blocks) * MIB for blocks in range(5)], True),
        # Up to 512 bytes, the caching allocator's grain.
        ([1000, 1400, 1000, 1400, 1000], True),
        ([1000, 3000, 1000, 3000, 1000], False),
        # 2 % of the range.
        ([0, 10 * MIB, 20 * MIB, 30 * MIB, 41 * MIB], True),
        ([0, 10 * MIB, 20 * MIB, 30 * MIB, 43 * MIB], False),
        ([3042 * MIB, 3044 * MIB, 3600 * MIB, 3900 * MIB, 4294 * MIB, 4290 * MIB, 3270 * MIB, 3276 * MIB], False),
        ([1000, 9000], True),
    ],
)
def test_bytes_are_a_line_or_not(values, linear):
    found = row(slopes(make_frame(sized(values))), "reserved")
    assert found["linear"] == linear
    assert (found["deviation"] > 0.02) or linear


def test_the_deviation_is_the_largest_residual_over_the_range():
    # The line through 0, 0, 3 is level at -0.5 with slope 1.5: residuals of 0.5, 1, 0.5.
    assert fit_slope([0, 1, 2], [0, 0, 3]).deviation == pytest.approx(1 / 3)
    assert fit_slope([0, 1, 2], [5, 5, 5]).deviation == 0
    assert fit_slope([0, 1], [0, 7]).deviation == pytest.approx(0, abs=1e-12)


def linear_times(steps):
    """Return whether these times, `[replicates, depths]`, are called a line."""
    values = np.atleast_2d(steps)
    blocks = np.tile(np.arange(1.0, values.shape[1] + 1), len(values))
    return times_are_linear(blocks, values.ravel(), fit_slope(blocks, values.ravel()).deviation)


def noisy_line(random, depths=8, replicates=1, bend=0.0):
    blocks = np.arange(depths)
    return 0.1 + 0.01 * blocks + bend * blocks**2 + 0.001 * random.normal(size=(replicates, depths))


def test_noise_alone_is_seldom_called_bent():
    random = np.random.default_rng(11)
    bent = sum(not linear_times(noisy_line(random)) for _ in range(500))
    bent += sum(not linear_times(noisy_line(random, 4, 3)) for _ in range(500))
    assert bent <= 20  # 10 expected of 1000


def test_a_bend_is_found():
    random = np.random.default_rng(12)
    assert not linear_times(noisy_line(random, bend=0.003))
    # With replicates fewer depths are enough: what scatters is known.
    assert not linear_times(noisy_line(random, 4, 3, bend=0.003))
    assert linear_times(noisy_line(random, 4, bend=0.003))


def test_a_few_times_that_grow_beyond_chance_are_no_line():
    assert not linear_times([0.01, 0.1, 1.0, 10.0])
    assert not linear_times([0.1, 0.101, 0.102, 1.0])
    assert not linear_times([10.0, 1.0, 0.1])
    assert not linear_times([0.1, 0.2, 1.0])
    assert linear_times([0.1, 10.0])
    # Processes that ran one after the other may differ by a tenth.
    assert linear_times([0.100, 0.112, 0.095, 0.108])
    assert linear_times([0.1, 0.11, 0.15])
    # Times that go up and down are noise.
    assert linear_times([0.2, 0.9, 0.2])


@pytest.mark.parametrize("positions", [(1, 2, 3), (1, 2, 3, 4), (1, 32, 64), (1, 16, 32, 64), (128, 2048, 4096)])
@pytest.mark.parametrize("start", [0.0, 1.0, 20.0])
def test_a_line_of_a_few_times_with_usual_noise_is_seldom_called_bent(positions, start):
    random, blocks = np.random.default_rng(13), np.array(positions, dtype=float)
    bent = 0
    for _ in range(300):
        values = (start + blocks) * np.maximum(1 + 0.1 * random.normal(size=blocks.size), 0.1)
        bent += not times_are_linear(blocks, values, fit_slope(blocks.tolist(), values.tolist()).deviation)
    assert bent <= 6


def test_times_over_four_lengths_that_grow_tenfold_are_not_without_a_measurable_change():
    table = slopes(make_frame(timed([[step] * 9 for step in (0.01, 0.1, 1.0, 10.0)])))
    assert row(table, "train")["shape"] == "not a line"


def test_times_over_four_lengths_of_attention_are_not_without_a_measurable_change():
    lengths = np.array([64.0, 128.0, 256.0, 512.0])
    found = slopes(make_frame(timed([[step] * 9 for step in 1e-3 + 12e-6 * lengths + 5e-8 * lengths**2])))
    assert row(found, "train")["shape"] == "not a line"


@pytest.mark.parametrize("start", [0.0, 1.0, 20.0])
def test_few_times_with_usual_noise_are_seldom_called_bent_in_a_table(start):
    random, shapes = np.random.default_rng(14), []
    for _ in range(100):
        times = (start + np.arange(1, 5)) * np.maximum(1 + 0.1 * random.normal(size=4), 0.1)
        shapes.append(row(slopes(make_frame(timed([[step] * 9 for step in times]))), "train")["shape"])
    assert shapes.count("not a line") <= 6
    assert {"line", "no change measurable"} >= set(shapes) - {"not a line"}


def test_the_table_of_slopes_says_which_times_are_no_line():
    table = slopes(make_frame([*timed([[0.1 + 0.01 * blocks**2] * 9 for blocks in range(6)]), *timed([[0.1]] * 6, "capsnet")]))
    assert not row(table, "train")["linear"]
    assert row(table, "train", "capsnet")["linear"]
    assert row(table, "inference")["linear"]


def test_a_step_is_found_where_a_parabola_fits_no_better():
    steps = np.tile([0.1, 0.1, 0.1, 0.2, 0.1, 0.1, 0.1], (2, 1)) + np.array([[0.0], [1e-4]])
    assert not linear_times(steps)


def test_a_bend_that_nobody_sees_is_a_line():
    # Without noise any bend is significant: 1 % of the range is none.
    blocks = np.arange(8)
    assert linear_times(1 + 0.1 * blocks + 0.0005 * blocks * (7 - blocks))
    assert not linear_times(1 + 0.1 * blocks + 0.003 * blocks * (7 - blocks))


def test_what_is_no_line_has_no_ratio():
    records = [*sized([1000, 3000, 1000, 3000, 1000]), *sized([2000, 4000, 6000, 8000, 10000], model="mocapsnet")]
    table = slopes(make_frame(records))
    for model in ("rescapsnet", "mocapsnet"):
        assert np.isnan(row(table, "reserved", model)["ratio_to_rescapsnet"])
        assert not np.isnan(row(table, "retained", model)["ratio_to_rescapsnet"])
