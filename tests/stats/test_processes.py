"""Intervals of slopes contain what processes and runs differ by, whether a run has one process or several, and not much more."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special

from capsbench.stats.intervals import Interval, StandardError
from capsbench.stats.lasting import Lasting
from capsbench.stats.paired import centre, paired_ratio_interval
from capsbench.stats.processes import (
    BETWEEN_PROCESSES,
    PRIOR_DEGREES,
    RATIO_BETWEEN_PROCESSES,
    SHARED,
    equal_processes,
    error_of_run,
    moderated,
    of_mean,
    pooled_centre,
    pooled_ratio_interval,
    process_error,
    rounds_error,
)

ROUNDS = 40
QUANTILE = float(special.stdtrit(PRIOR_DEGREES, 0.975))
"""Half the width of the interval of one process, over the deviation that the prior expects."""


def taken(
    random: np.random.Generator, processes: int, between: float, rounds: int = ROUNDS, noise: float = 0.05, shared: float = 0.0
) -> NDArray[np.float64]:
    """Slopes of rounds that processes divide among them, about 1; `shared` is the share of their variance that a run has."""
    own = (1 - shared) ** 0.5 * random.standard_normal(processes)
    of_process = 1 + between * (own + shared**0.5 * random.standard_normal())
    return np.asarray(np.repeat(of_process, rounds // processes) * (1 + noise * random.standard_normal(rounds)))


def numbers(processes: int, rounds: int = ROUNDS) -> list[int]:
    """The process of each of these rounds."""
    return [number for number in range(processes) for _ in range(rounds // processes)]


def covered(
    processes: int, between: float, count: int = 400, truth: float = 1.0, *, shared: float = 0.0, drawn: bool = False
) -> float:
    """Share of simulated intervals that hold the true slope.

    Args:
        shared: share of the variance that processes of one run have in common.
        drawn: whether the scatter of each run is drawn from the prior, which has `between` in its middle.
    """
    random, held = np.random.default_rng(17), 0
    for _ in range(count):
        scatter = between * float((PRIOR_DEGREES / random.chisquare(PRIOR_DEGREES)) ** 0.5) if drawn else between
        interval = pooled_centre(taken(random, processes, scatter, shared=shared), numbers(processes)).interval
        assert interval is not None
        held += interval[0] <= truth <= interval[1]
    return held / count


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("shared", [0.0, SHARED])
@pytest.mark.parametrize("between", [0.0, BETWEEN_PROCESSES])
def test_the_interval_holds_the_slope_where_the_prior_is_right(processes: int, shared: float, between: float) -> None:
    assert covered(processes, between, shared=shared) >= 0.93


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("shared", [0.0, SHARED])
def test_the_interval_holds_the_slope_where_the_scatter_is_drawn_from_the_prior(processes: int, shared: float) -> None:
    assert covered(processes, BETWEEN_PROCESSES, shared=shared, drawn=True) >= 0.93


def test_the_variance_of_runs_is_divided_as_far_as_their_processes_do_not_share_it() -> None:
    single = error_of_run(0.1, [], 1)
    assert single == StandardError(pytest.approx(0.1), PRIOR_DEGREES)
    assert error_of_run(0.1, [], 4).value == pytest.approx(0.1 * (SHARED + (1 - SHARED) / 4) ** 0.5)
    assert error_of_run(0.1, [], 4, 0.0).value == pytest.approx(0.05)
    seen = StandardError(0.3, 1e9)
    assert error_of_run(0.1, [seen], 1, 0.25).value == pytest.approx(0.3 / 0.75**0.5)


@pytest.mark.parametrize(("processes", "shared", "share"), [(1, 0.5, 0.73), (4, 0.0, 0.96), (4, 0.5, 0.78), (4, 1.0, 0.64)])
def test_the_docstring_says_how_often_it_holds_it_where_processes_differ_by_twice_as_much(
    processes: int, shared: float, share: float
) -> None:
    assert covered(processes, 2 * BETWEEN_PROCESSES, 1000, shared=shared) == pytest.approx(share, abs=0.03)
    assert f"{share:.0%}".replace("%", " %") in (pooled_centre.__doc__ or "")


def test_the_share_of_intervals_falls_where_the_slope_is_another() -> None:
    assert covered(4, BETWEEN_PROCESSES, 100, truth=1.1) < 0.5


def width(interval: Interval | None) -> float:
    assert interval is not None
    return interval[1] - interval[0]


def test_processes_that_disagree_widen_the_interval_but_not_as_if_nothing_were_known() -> None:
    random, of = np.random.default_rng(6), numbers(2)
    alike = taken(random, 2, 0.0, noise=0.01)
    apart = alike + 0.2 * np.array(of)
    agreeing, disagreeing = pooled_centre(alike, of), pooled_centre(apart, of)
    assert width(disagreeing.interval) > 1.5 * width(agreeing.interval)
    # Student's t with one degree of freedom would have 12.7 standard errors of 0.1.
    assert width(disagreeing.interval) < 2 * 12.7 * 0.1 / 3
    low, high = disagreeing.interval or (np.nan, np.nan)
    assert low < 1.05
    assert high > 1.15


def test_one_process_has_the_prior_alone() -> None:
    values = taken(np.random.default_rng(1), 1, 0.0, noise=0.001)
    found = pooled_centre(values, numbers(1))
    assert found.scatter == StandardError(0.0, 0.0)
    assert found.of_rounds == centre(values).interval
    assert found.of_processes == pytest.approx(QUANTILE * BETWEEN_PROCESSES, rel=0.01)
    assert width(found.interval) == pytest.approx(2 * found.of_processes, rel=0.01)
    assert pooled_centre(3 * values, numbers(1)).of_processes == pytest.approx(3 * found.of_processes)


def test_too_few_values_have_no_interval() -> None:
    found = pooled_centre(np.ones(5), [0] * 5)
    assert (found.value, found.interval, found.of_rounds) == (1.0, None, None)


def test_several_processes_narrow_what_runs_differ_by_but_not_by_half() -> None:
    values = np.ones(40)
    one, four = (pooled_centre(values, numbers(count)).of_processes for count in (1, 4))
    assert four == pytest.approx((SHARED + (1 - SHARED) / 4) ** 0.5 * one)


def test_lasting_effects_are_drawn_anew_by_each_process() -> None:
    values, lasting = np.ones(40), Lasting(StandardError(0.1, 6.0), StandardError(0.0, 0.0))
    one, four = (pooled_centre(values, numbers(count), share=0.0, lasting=lasting).of_processes for count in (1, 4))
    assert four == pytest.approx(one / 2)
    assert one == pytest.approx(0.1 * float(special.stdtrit(6.0, 0.975)))
    wider = pooled_centre(values, numbers(1), share=0.0, lasting=lasting, confidence=0.99).of_processes
    assert wider == pytest.approx(0.1 * float(special.stdtrit(6.0, 0.995)))
    both = pooled_centre(values, numbers(1), lasting=lasting).of_processes
    assert both == pytest.approx(np.hypot(one, pooled_centre(values, numbers(1)).of_processes))


def test_lasting_effects_that_cells_show_are_in_the_scatter() -> None:
    shown = StandardError(0.2, 5.0)
    found = pooled_centre(np.ones(40), numbers(1), lasting=Lasting(StandardError(0.1, 6.0), shown))
    assert found.scatter == shown


@pytest.mark.parametrize("between", [0.02, 0.05])
def test_the_scatter_of_processes_is_that_beyond_their_rounds(between: float) -> None:
    random = np.random.default_rng(3)
    found = [process_error(taken(random, 8, between, 80), numbers(8, 80)) for _ in range(200)]
    assert np.mean([one.value**2 for one in found]) == pytest.approx(between**2, rel=0.2)
    assert all(0 <= one.degrees <= 7 for one in found)
    alone = process_error(taken(random, 8, between, 80, noise=0.0), numbers(8, 80))
    assert alone.degrees == pytest.approx(7)


def test_rounds_that_explain_the_scatter_leave_it_no_degrees() -> None:
    random = np.random.default_rng(3)
    found = [process_error(taken(random, 4, 0.0), numbers(4)).degrees for _ in range(100)]
    assert np.mean(found) < 1
    assert process_error(taken(random, 1, 0.1), numbers(1)) == StandardError(0.0, 0.0)


def test_processes_with_few_rounds_show_no_scatter() -> None:
    values, of = np.ones(24), [0] * 19 + [1] * 5
    assert process_error(values + np.array(of), of) == StandardError(0.0, 0.0)


def test_estimates_of_one_error_are_weighted_by_their_degrees() -> None:
    assert moderated([StandardError(3.0, 8.0), StandardError(5.0, 2.0)]) == StandardError(pytest.approx(12.2**0.5), 10.0)
    assert moderated([StandardError(3.0, 8.0), StandardError(0.0, 0.0)]) == StandardError(3.0, 8.0)
    assert moderated([StandardError(0.0, 0.0)]) == StandardError(0.0, 0.0)


def test_the_mean_of_estimates_is_as_good_as_their_number() -> None:
    assert of_mean(StandardError(3.0, 8.0), 9) == StandardError(1.0, 8.0)


def test_unequal_processes_count_for_fewer() -> None:
    assert equal_processes(numbers(4)) == pytest.approx(4)
    assert equal_processes([0] * 8 + [1] * 9 + [2] * 3) == pytest.approx(400 / 154)
    assert equal_processes([0] * 100 + [1]) == pytest.approx(1, abs=0.03)


def test_the_error_of_rounds_is_that_of_their_interval() -> None:
    assert rounds_error((-2.262, 2.262), 10) == StandardError(pytest.approx(1, rel=1e-3), 9.0)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_interval_of_a_ratio_holds_it_although_processes_differ(processes: int) -> None:
    random, held, of = np.random.default_rng(5), 0, numbers(processes)
    for _ in range(400):
        common = taken(random, processes, 0.1)
        own = np.repeat(1 + RATIO_BETWEEN_PROCESSES * random.standard_normal(processes), ROUNDS // processes)
        values = 1.3 * common * own * (1 + 0.03 * random.standard_normal(ROUNDS))
        interval = pooled_ratio_interval(values, common, of)
        assert interval is not None
        held += interval[0] <= 1.3 <= interval[1]
    assert held / 400 >= 0.93


def test_a_ratio_in_rounds_without_noise_has_what_processes_differ_by() -> None:
    random = np.random.default_rng(5)
    reference = taken(random, 1, 0.0)
    rounds, whole = (
        paired_ratio_interval(1.3 * reference, reference),
        pooled_ratio_interval(1.3 * reference, reference, numbers(1)),
    )
    assert width(rounds) == pytest.approx(0, abs=1e-9)
    assert width(whole) == pytest.approx(2 * QUANTILE * 1.3 * RATIO_BETWEEN_PROCESSES, rel=0.01)
    assert pooled_ratio_interval(reference, random.random(ROUNDS) - 0.5, numbers(1)) is None
