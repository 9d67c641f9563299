"""Lasting effects of cells are no growth of the rest of a step, and hide none that is larger than they are."""

from collections.abc import Sequence

import numpy as np
import pytest

from capsbench.stats.intervals import StandardError
from capsbench.stats.lasting import LASTING, LASTING_DEGREES, expected_lasting, lasting_effects
from capsbench.stats.turn_times import TurnFit, TurnTimes, fit_turns

REST, BLOCK = 0.8, 0.004
"""Seconds of the rest of a step, and of a block."""


def taken(
    random: np.random.Generator, depths: Sequence[int], processes: int, *, lasting: float, full: int = 10, ends: int = 0,
    grows: float = 0.0, noise: float = 0.02, edges: bool = True,
) -> TurnTimes:  # fmt: skip
    """Rounds of processes each of whose cells has an effect of its own on the rest of its step.

    Args:
        lasting: standard deviation of these effects.
        full: rounds of all depths of each process.
        ends: further rounds of its first and last depth.
        grows: share of the rest that each block adds to it.
        noise: standard deviation of the rest in a round; one sample in thirty takes longer by a third.
        edges: whether the parts that grow are known.
    """
    blocks, rounds = np.array(depths, dtype=float), full + ends
    effects = np.repeat(1 + lasting * random.standard_normal((processes, blocks.size)), rounds, axis=0)
    shape = effects.shape
    drift = 1 + 0.03 * random.standard_normal((shape[0], 1))
    long = 0.3 * (random.random(shape) < 1 / 30)
    rest = REST * (1 + grows * blocks) * effects * drift * (1 + noise * random.standard_normal(shape) + long)
    growing = BLOCK * blocks * drift * (1 + 0.03 * random.standard_normal(shape))
    growing[np.tile(np.arange(rounds) >= full, processes), 1:-1] = np.nan
    turns = [(0, number) for number in range(shape[0])]
    return TurnTimes(blocks, turns, np.repeat(np.arange(processes), rounds).tolist(), rest + growing, growing if edges else None)


def fits(count: int, depths: Sequence[int], processes: int, **kinds: float) -> list[TurnFit]:
    """Fits of simulated runs."""
    random = np.random.default_rng(5)
    found = [fit_turns(taken(random, depths, processes, **kinds)) for _ in range(count)]
    return [fit for fit in found if fit is not None]


RUNS = {
    "two depths, one process": ((1, 8), 1, {"full": 12}),
    "three depths, one process": ((1, 2, 8), 1, {"full": 12}),
    "the first command": (range(1, 9), 1, {"full": 5, "ends": 8}),
    "the gate": ((1, 2, 8), 4, {}),
}


@pytest.mark.parametrize("lasting", [0.0, LASTING, 1.5 * LASTING])
@pytest.mark.parametrize("run", RUNS)
def test_lasting_effects_are_no_growth(run: str, lasting: float) -> None:
    depths, processes, kinds = RUNS[run]
    found = fits(100, depths, processes, lasting=lasting, **kinds)
    assert len(found) == 100
    assert sum(fit.rest_grows for fit in found) <= 5


def test_processes_show_effects_that_are_larger_than_usual() -> None:
    assert sum(fit.rest_grows for fit in fits(100, (1, 2, 8), 4, lasting=0.05)) <= 8


@pytest.mark.parametrize("run", RUNS)
def test_a_rest_that_grows_is_still_seen(run: str) -> None:
    depths, processes, kinds = RUNS[run]
    assert sum(fit.rest_grows for fit in fits(50, depths, processes, lasting=LASTING, grows=0.03, **kinds)) >= 40
    if processes > 1:
        assert sum(fit.rest_grows for fit in fits(50, depths, processes, lasting=LASTING, grows=0.01, **kinds)) >= 45


@pytest.mark.parametrize("run", RUNS)
def test_the_slope_of_whole_steps_contains_lasting_effects(run: str) -> None:
    depths, processes, kinds = RUNS[run]
    found = [fit.slope.interval for fit in fits(200, depths, processes, lasting=LASTING, edges=False, **kinds)]
    held = sum(one is not None and one[0] <= BLOCK <= one[1] for one in found)
    assert held >= 186
    wrong = BLOCK + 0.03 * REST
    assert sum(one is not None and one[0] <= wrong <= one[1] for one in found) < 50


def test_two_depths_show_no_effects_and_have_what_is_expected() -> None:
    random = np.random.default_rng(0)
    times = taken(random, (1, 8), 1, lasting=0.1)
    found = lasting_effects(times.depths, times.whole, times.processes)
    assert found.shown == StandardError(0.0, 0.0)
    assert found.expected.degrees == LASTING_DEGREES
    assert found.expected.value == pytest.approx(LASTING * np.median(times.whole) * 2**0.5 / 7)


@pytest.mark.parametrize("kinds", [{"full": 20}, {"full": 6, "ends": 12}], ids=str)
def test_the_distances_from_a_line_show_the_size_of_the_effects(kinds: dict[str, int]) -> None:
    random, squares, scatter = np.random.default_rng(1), [], []
    for _ in range(150):
        times = taken(random, range(1, 9), 2, lasting=0.03, noise=0.01, **kinds)
        assert times.growing is not None
        rest = times.whole - times.growing
        found = lasting_effects(times.depths, rest, times.processes)
        squares.append(found.shown.value**2)
        assert found.shown.degrees <= 12
        fit = fit_turns(times)
        assert fit is not None
        assert fit.rest is not None
        scatter.append(sum(fit.rest) / 2)
    # The mean over two processes varies half as much as the slope of one.
    assert np.mean(squares) == pytest.approx(2 * np.mean(np.square(scatter)), rel=0.25)


def test_cells_on_a_line_show_none() -> None:
    depths = np.array([1.0, 2.0, 8.0])
    values = (1 + np.arange(6)[:, None] / 10) * (0.8 + 0.01 * depths)
    assert lasting_effects(depths, values, [0] * 6).shown.value == pytest.approx(0, abs=1e-12)


def test_the_noise_of_rounds_is_no_lasting_effect() -> None:
    random = np.random.default_rng(2)
    degrees = []
    for _ in range(50):
        times = taken(random, (1, 2, 8), 4, lasting=0.0)
        degrees.append(lasting_effects(times.depths, times.whole, times.processes).shown.degrees)
    assert np.mean(degrees) < 1


def test_depths_that_a_process_lacks_are_none_of_its_cells() -> None:
    random = np.random.default_rng(3)
    depths = np.array([1.0, 2.0, 5.0, 8.0])
    effects = 1 + 0.05 * random.standard_normal((2, 4))
    values = np.repeat(effects, 10, axis=0) * (1 + 0.001 * random.standard_normal((20, 4)))
    values[:10, 2] = np.nan
    values[10:, 1] = np.nan
    found = lasting_effects(depths, values, [0] * 10 + [1] * 10)
    assert 1.9 < found.shown.degrees <= 2
    assert found.shown.value > 0


def test_what_is_expected_is_a_share_of_the_step() -> None:
    assert expected_lasting(2.0) == StandardError(2 * LASTING, LASTING_DEGREES)
