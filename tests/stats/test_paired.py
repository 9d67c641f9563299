"""The slope of cells that took turns: right, narrow, and not moved by what disturbs whole rounds or a few samples."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from capsbench.stats.paired import centre, paired_ratio_interval, row_slopes

DEPTHS = tuple(map(float, range(1, 9)))


def simulated(random: np.random.Generator, slope: float = 0.005, full: int = 7, ends: int = 20) -> NDArray[np.float64]:
    """Rounds of a machine that drifts by 10 %, where one sample in twenty takes half as long again: `[rounds, depths]`."""
    rounds = []
    for number in range(full + ends):
        depths = DEPTHS if number < full else (DEPTHS[0], DEPTHS[-1])
        drift = 1 + 0.1 * np.sin(number / 5) + 0.03 * random.standard_normal()
        noise = 1 + 0.01 * random.standard_normal(len(depths)) + 0.5 * (random.random(len(depths)) < 0.05)
        taken = {depth: (0.8 + slope * depth) * drift * one for depth, one in zip(depths, noise, strict=True)}
        rounds.append([taken.get(depth, np.nan) for depth in DEPTHS])
    return np.array(rounds)


def covered(count: int, slope: float, simulated_slope: float | None = None, **kinds: int) -> tuple[float, float]:
    """Share of simulated intervals that hold the slope, and their median width."""
    random = np.random.default_rng(7)
    found = [centre(row_slopes(np.array(DEPTHS), simulated(random, simulated_slope or slope, **kinds))) for _ in range(count)]
    ends = [one.interval for one in found if one.interval is not None]
    assert len(ends) == count
    return sum(low <= slope <= high for low, high in ends) / count, float(np.median([high - low for low, high in ends]))


@pytest.mark.parametrize("kinds", [{"full": 7, "ends": 0}, {"full": 7, "ends": 20}, {"full": 30, "ends": 40}], ids=str)
def test_the_interval_holds_the_slope_in_95_of_100_simulations(kinds: dict[str, int]) -> None:
    share, _ = covered(600, 0.005, **kinds)
    assert share >= 0.93


def test_the_share_of_intervals_falls_where_the_slope_is_another() -> None:
    assert covered(100, 0.005, simulated_slope=0.01)[0] < 0.5


def test_the_interval_is_far_narrower_than_that_of_medians_of_each_cell() -> None:
    random = np.random.default_rng(3)
    apart = []
    for _ in range(200):
        # Each cell has its own stretch of time, as if it were timed alone.
        medians = np.median(simulated(random, full=9, ends=0), axis=0) * (1 + 0.05 * random.standard_normal(len(DEPTHS)))
        apart.append(np.polyfit(DEPTHS, medians, 1)[0])
    _, width = covered(100, 0.005)
    assert width < 0.5 * 3.92 * float(np.std(apart))


def test_the_slope_of_a_round_is_least_squares_over_the_depths_that_took_part() -> None:
    random = np.random.default_rng(1)
    depths, rounds = np.array(DEPTHS), random.random((50, len(DEPTHS)))
    rounds[random.random(rounds.shape) < 0.4] = np.nan
    known = [np.polyfit(depths[there], one[there], 1)[0] if (there := ~np.isnan(one)).sum() > 1 else np.nan for one in rounds]
    assert row_slopes(depths, rounds) == pytest.approx(known, nan_ok=True)


def test_rounds_of_fewer_than_two_depths_have_no_slope() -> None:
    rounds = np.array([[0.5, np.nan, np.nan], [np.nan] * 3, [1.0, np.nan, 2.0]])
    assert row_slopes(np.array([1.0, 2.0, 3.0]), rounds) == pytest.approx([np.nan, np.nan, 0.5], nan_ok=True)


def test_a_common_state_of_the_machine_drops_out() -> None:
    rounds = 100.0 * np.arange(8)[:, None] + 0.25 * np.array(DEPTHS)
    assert row_slopes(np.array(DEPTHS), rounds) == pytest.approx([0.25] * 8, rel=1e-12)


@pytest.mark.parametrize("count", [6, 7, 12, 30, 50])
def test_the_ends_are_those_that_the_signed_rank_test_just_does_not_reject(count: int) -> None:
    values = np.random.default_rng(count).standard_normal(count)
    interval = centre(values).interval
    assert interval is not None
    for end, inward in zip(interval, (1, -1), strict=True):
        for shift, rejected in ((1e-9, False), (-1e-9, True)):
            p_value = stats.wilcoxon(values - end - inward * shift, method="exact").pvalue
            assert (p_value <= 0.05) == rejected


def test_the_normal_approximation_takes_over_smoothly() -> None:
    values = np.random.default_rng(0).standard_normal(52)
    exact = [centre(values[:count]) for count in (49, 50)]
    normal = [centre(values[:count]) for count in (51, 52)]
    widths = [one.interval[1] - one.interval[0] for one in (*exact, *normal) if one.interval]
    assert len(widths) == 4
    assert max(widths) < 1.1 * min(widths)


def test_five_rounds_have_no_interval() -> None:
    assert centre([1.0, 2.0, 3.0, 4.0, 5.0]) == (3.0, None)
    assert centre([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == (3.5, (1.0, 6.0))


def test_the_centre_is_the_median_of_averages_of_pairs() -> None:
    values = np.random.default_rng(5).exponential(size=9)
    averages = [(one + other) / 2 for one, other in itertools.combinations_with_replacement(values, 2)]
    assert centre(values).value == pytest.approx(np.median(averages))


def test_the_ratio_of_pairs_holds_the_true_ratio_in_95_of_100_simulations() -> None:
    random = np.random.default_rng(11)
    held = 0
    for _ in range(500):
        common = 1 + 0.1 * random.standard_normal(20)
        interval = paired_ratio_interval(
            1.5 * common + 0.1 * random.standard_normal(20), common + 0.1 * random.standard_normal(20)
        )
        assert interval is not None
        held += interval[0] <= 1.5 <= interval[1]
    assert 0.93 <= held / 500 < 0.99


@pytest.mark.parametrize("sign", [1, -1])
def test_the_ratio_s_ends_are_where_the_centre_of_the_difference_may_just_be_0(sign: int) -> None:
    random = np.random.default_rng(4)
    own, reference = 3 + random.standard_normal(12), sign * (2 + 0.8 * random.standard_normal(12))
    interval = paired_ratio_interval(own, reference)
    assert interval is not None
    for end, inward in zip(interval, (1, -1), strict=True):
        for shift, contained in ((1e-6, True), (-1e-6, False)):
            ends = centre(own - (end + inward * shift) * reference).interval
            assert ends is not None
            assert (ends[0] <= 0 <= ends[1]) == contained


def test_there_is_no_ratio_to_what_may_be_0() -> None:
    random = np.random.default_rng(4)
    assert paired_ratio_interval(1 + random.random(12), random.random(12) - 0.5) is None
    assert paired_ratio_interval(np.ones(5), np.ones(5)) is None
