"""Times that can be believed: when sampling ends, what disturbs it, and what the machine did meanwhile."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pynvml
import pytest
import torch

from capsbench.measure import timing, watch
from capsbench.measure.clock import CpuClock
from capsbench.measure.noise import NOISES, Machine, is_settled, median_interval, noise_of
from capsbench.measure.timing import MAX_SAMPLES, Yardstick, measure_time
from capsbench.measure.watch import Watch, cores_are_shared
from capsbench.phases import Phases
from capsbench.records import TimeFigures

QUIET = [1.0, 1.005, 0.995, 1.002, 0.998, 1.001, 0.999, 1.003, 0.997, 1.0]
ORDER = np.random.default_rng(0).permutation(40)
"""Forty samples without a trend."""


# Names for noise, from samples alone.


@pytest.mark.parametrize(("count", "lower"), [(6, 1), (8, 1), (9, 2), (10, 2), (20, 6), (30, 10), (50, 18), (100, 40)])
def test_the_interval_of_a_median_is_between_the_textbook_s_ranks(count, lower):
    samples = np.random.default_rng(count).permutation(count) + 1.0
    assert median_interval(samples.tolist()) == (lower, count + 1 - lower)


@pytest.mark.parametrize("count", range(1, 6))
def test_the_range_of_five_samples_is_too_little(count):
    assert median_interval([1.0] * count) is None
    assert not is_settled([1.0] * count)


def test_the_interval_of_a_median_covers_it():
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(1000):
        low, high = median_interval(random.exponential(size=15).tolist())
        covered += low <= np.log(2) <= high
    assert covered >= 940  # 96.5 % expected


def test_quiet_samples_have_no_noise():
    assert noise_of(QUIET, QUIET, Machine(others=0.01, clocks=[3000.0] * 9)) == []


@pytest.mark.parametrize(
    ("width", "held"),
    [(0.09, False), (0.11, True), (-0.11, True)],
    ids=["the middle half spans 9 %", "11 %", "11 %, from above"],
)
def test_spread_is_the_middle_half_over_the_median(width, held):
    samples = (1 + width * (ORDER - 19.5) / 19.5).tolist()  # the quartiles of 0, 1, … 39 lie 19.5 apart
    assert ("spread" in noise_of(samples, QUIET, Machine())) == held
    assert ("spread" in noise_of(QUIET, samples, Machine())) == held
    # As many outliers as are no quarter of the samples spread nothing.
    assert "spread" not in noise_of([*QUIET, 9.0, 9.0], QUIET, Machine())


@pytest.mark.parametrize(("change", "held"), [(0.04, False), (0.06, True), (-0.06, True), (0.5, True)])
def test_drift_is_from_the_first_sample_to_the_last(change, held):
    steady = np.linspace(1, 1 + change, 30)
    assert ("drift" in noise_of(steady.tolist(), QUIET, Machine())) == held
    assert "drift" not in noise_of(np.random.default_rng(3).permutation(steady).tolist(), QUIET, Machine())


def test_a_trend_that_matters_may_still_be_chance():
    assert "drift" not in noise_of([1.0, 1.1, 1.05, 1.2, 1.0, 1.12], QUIET, Machine())


@pytest.mark.parametrize(
    ("machine", "names"),
    [
        (Machine(others=0.049), []),
        (Machine(others=0.051), ["load"]),
        (Machine(others=None), []),
        (Machine(clocks=[3000, 3000, 2750, 2800, 2750, 2750]), []),
        (Machine(clocks=[3000, 3000, 2900, 2800, 2600, 2600]), ["throttled"]),
        (Machine(clocks=[2000, 2500, 3000]), []),
        (Machine(clocks=[3000, 1000]), []),
        (Machine(gpu_throttled=True), ["throttled"]),
        (Machine(others=0.5, gpu_throttled=True), ["throttled", "load"]),
    ],
)
def test_what_the_machine_did_has_a_name(machine, names):
    assert noise_of(QUIET, QUIET, machine) == names


def test_every_noise_can_be_raised_and_has_a_sentence():
    worst = np.linspace(1, 9, 10).tolist()
    assert noise_of(worst, worst, Machine(others=1.0, gpu_throttled=True, compiled=True), of_device=([0.1], [])) == list(NOISES)
    assert all(len(sentence.split()) > 5 for sentence in NOISES.values())


# When sampling ends: a workload and a clock whose time is made up.


class Stage:
    """Stands in for clock and workload: each training step takes what `steps` says, an inference a tenth of it."""

    name = "made up"
    device = torch.device("cpu")

    def __init__(self, steps):
        self.now, self.calls, self._marks = 0.0, [], []
        self._steps, self._current = iter(steps), 0.0

    def monotonic(self):
        return self.now

    def mark(self):
        self._marks.append(self.now)

    def laps(self):
        marks, self._marks = self._marks, []
        return np.diff(marks).tolist()

    def _take(self, what, share):
        self.calls.append(what)
        self.now += share * self._current

    def train_step(self, observer=None):
        if observer is None:  # it warms up
            return
        self._current = next(self._steps)
        with Phases(observer) as phases:
            self._take("forward", 0.3)
            phases.begin_backward([])
            self._take("backward", 0.6)
            phases.begin_optimizer()
            self._take("optimize", 0.1)

    def inference(self):
        self._take("inference", 0.1)

    def evaluating(self):
        return self

    def __enter__(self):
        pass

    def __exit__(self, *error):
        pass

    def product(self, *matrices, out):
        self.calls.append("yardstick")
        self.now += 0.02


@pytest.fixture
def sampled(monkeypatch):
    """Measures made-up steps; gives the figures and the stage."""

    def measure(steps, samples=5, budget_seconds=10.0, machine=None):
        stage = Stage(steps)
        monkeypatch.setattr(timing, "clock_for", lambda device: stage)
        monkeypatch.setattr(timing, "time", stage)
        monkeypatch.setattr(timing, "Watch", lambda device: SimpleNamespace(look=lambda: None, seen=lambda: machine or Machine()))
        monkeypatch.setattr(torch, "mm", stage.product)
        return measure_time(stage, samples, budget_seconds), stage

    return measure


def cycle(*steps):
    while True:
        yield from steps


def test_sampling_ends_when_the_median_is_known(sampled):
    figures, _ = sampled(cycle(0.5))
    # Six samples are the fewest that have an interval.
    assert len(figures.train_step_seconds) == 6
    assert figures.train_step_seconds == pytest.approx([0.5] * 6)
    assert figures.forward_seconds == pytest.approx([0.15] * 6)
    assert figures.inference_seconds == pytest.approx([0.05] * 6)
    assert figures.noise == []
    assert TimeFigures.model_validate_json(figures.model_dump_json()) == figures


def test_noise_is_sampled_until_it_averages_out(sampled):
    random = np.random.default_rng(4)
    figures, _ = sampled(iter((0.05 * random.normal(1, 0.05, size=5000)).tolist()), budget_seconds=1000)
    assert 10 < len(figures.train_step_seconds) < 200
    assert is_settled(figures.train_step_seconds)
    assert not is_settled(figures.train_step_seconds[:-1])
    assert "unsettled" not in figures.noise


@pytest.mark.parametrize("budget", [3.0, 12.0])
def test_a_median_that_stays_unknown_costs_the_budget_and_no_more(sampled, budget):
    figures, stage = sampled(cycle(0.2, 0.3), budget_seconds=budget)
    assert budget <= stage.now < budget + 1
    assert figures.noise == ["spread", "unsettled"]


@pytest.mark.parametrize("samples", [5, 8, 1200])
def test_there_are_never_fewer_samples_than_asked_for(sampled, samples):
    figures, _ = sampled(cycle(0.01, 0.02), samples=samples, budget_seconds=0)
    assert len(figures.train_step_seconds) == len(figures.inference_seconds) == samples


def test_quick_steps_fill_a_second_and_are_not_sampled_for_ever(sampled):
    figures, stage = sampled(cycle(0.01))
    assert 1.0 <= stage.now < 1.2
    figures, _ = sampled(cycle(1e-4, 2e-4))
    assert len(figures.train_step_seconds) == MAX_SAMPLES
    assert "unsettled" in figures.noise


def test_what_was_seen_of_the_machine_is_told(sampled):
    assert sampled(cycle(0.5), machine=Machine(others=0.3))[0].noise == ["load"]


def test_steps_and_inferences_are_interleaved(sampled):
    _, stage = sampled(cycle(0.5))
    # The first inference and product warm up.
    steps = [call for call in stage.calls if call != "yardstick"]
    assert steps == ["inference", *["forward", "backward", "optimize", "inference"] * 6]


@pytest.mark.parametrize(("step", "least"), [(0.5, 6), (0.001, 4)])
def test_the_yardstick_takes_a_tenth_of_the_time_at_most(sampled, step, least):
    figures, stage = sampled(cycle(step))
    assert least <= len(figures.yardstick_seconds) <= len(figures.train_step_seconds)
    assert figures.yardstick_seconds == pytest.approx([0.02] * len(figures.yardstick_seconds))
    assert sum(figures.yardstick_seconds) <= 0.1 * stage.now + 0.02 + 1e-9
    assert figures.yardstick_flops == 2 * 1024**3


def test_times_stand_without_a_yardstick_where_there_is_no_room_for_it(sampled, monkeypatch):
    def full(*matrices, out):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Stage, "product", full)
    figures, _ = sampled(cycle(0.5))
    assert (figures.yardstick_seconds, figures.yardstick_flops) == ([], None)
    assert figures.train_step_seconds == pytest.approx([0.5] * 6)


def test_the_yardstick_leaves_random_numbers_alone():
    before = torch.random.get_rng_state()
    yardstick = Yardstick(torch.device("cpu"), CpuClock())
    yardstick.warm_up()
    assert yardstick.seconds == []
    assert yardstick.is_due()
    yardstick.measure()
    assert not yardstick.is_due()
    assert len(yardstick.seconds) == 1
    assert yardstick.seconds[0] > 0
    assert torch.equal(torch.random.get_rng_state(), before)


# Looking at the machine.


class Sleeper(Stage):
    """A workload that uses no core at all, in real time."""

    def _take(self, what, share):
        time.sleep(0.3 * share)


@pytest.fixture
def busy():
    """Start as many spinning processes as there are cores."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(psutil.cpu_count())]
    yield
    for process in spinning:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_other_processes_are_load(busy):
    assert "load" in measure_time(Sleeper(cycle(1.0)), 5, 0).noise


class Account:
    """Stands in for what the system says of cores' time, in seconds."""

    def __init__(self, monkeypatch, cores=4):
        self.now, self.own = 100.0, 50.0
        self.system = {"user": 500.0, "system": 100.0, "idle": 3000.0, "iowait": 10.0, "steal": 5.0, "guest": 40.0}
        monkeypatch.setattr(watch.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
        monkeypatch.setattr("capsbench.system.cores.quota", lambda: None)

        def cpu_times(percpu):
            assert percpu
            share = {name: seconds / cores for name, seconds in self.system.items()}
            return [SimpleNamespace(_asdict=lambda: dict(share))] * cores

        monkeypatch.setattr(psutil, "cpu_times", cpu_times)
        monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(cpu_times=lambda: (self.own, 0.0, 0.0, 0.0, 9.0)))
        monkeypatch.setattr(psutil, "cpu_freq", lambda percpu: [])


@pytest.mark.parametrize(
    ("taken", "own", "others"),
    [
        ({"idle": 40.0}, 0.0, 0.0),
        ({"user": 20.0, "idle": 20.0}, 20.0, 0.0),
        ({"user": 18.0, "system": 2.0, "idle": 20.0}, 20.0, 0.0),
        ({"user": 24.0, "idle": 16.0}, 20.0, 0.1),
        ({"user": 20.0, "steal": 4.0, "idle": 16.0}, 20.0, 0.1),
        # Waiting for a disk is not work, and a guest's time is in user time already.
        ({"user": 20.0, "iowait": 20.0}, 20.0, 0.0),
        ({"user": 20.0, "guest": 20.0, "idle": 20.0}, 20.0, 0.0),
    ],
)
def test_others_are_what_is_neither_own_nor_idle(monkeypatch, taken, own, others):
    account = Account(monkeypatch)
    seen = Watch(torch.device("cpu"))
    account.now += 10.0
    account.own += own
    for name, seconds in taken.items():
        account.system[name] += seconds
    assert seen.seen().others == pytest.approx(others)


def test_a_short_watch_says_nothing_of_others(monkeypatch):
    account = Account(monkeypatch)
    seen = Watch(torch.device("cpu"))
    account.now += 0.1
    account.system["user"] += 0.4
    assert seen.seen().others is None


@pytest.mark.parametrize(("share", "shared"), [(0.25, True), (0.15, False)])
def test_a_look_tells_shared_cores_from_a_quiet_machine(monkeypatch, share, shared):
    account = Account(monkeypatch)

    def sleep(seconds):
        account.now += seconds
        account.system["user"] += share * seconds * len(os.sched_getaffinity(0))

    monkeypatch.setattr("capsbench.measure.watch.time.sleep", sleep)
    assert cores_are_shared() == shared


def test_the_clock_is_that_of_the_fastest_core(monkeypatch):
    Account(monkeypatch)
    seen = Watch(torch.device("cpu"))
    for fastest in (3000.0, 2000.0):
        clocks = [SimpleNamespace(current=value) for value in (800.0, fastest, 900.0)]
        monkeypatch.setattr(psutil, "cpu_freq", lambda percpu, clocks=clocks: clocks)
        seen.look()
    assert seen.seen().clocks == [3000.0, 2000.0]


@pytest.mark.parametrize(
    ("reasons", "throttled"),
    [
        (pynvml.nvmlClocksThrottleReasonGpuIdle, False),
        (pynvml.nvmlClocksThrottleReasonApplicationsClocksSetting, False),
        (pynvml.nvmlClocksThrottleReasonSwPowerCap, True),
        (pynvml.nvmlClocksThrottleReasonGpuIdle | pynvml.nvmlClocksThrottleReasonHwThermalSlowdown, True),
    ],
)
def test_a_gpu_that_slows_itself_down_is_noticed(monkeypatch, reasons, throttled):
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: asked.append(uuid) or "handle")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCurrentClocksThrottleReasons", lambda handle: reasons)
    seen = Watch(torch.device("cuda", 0))
    assert not seen.seen().gpu_throttled
    seen.look()
    assert seen.seen().gpu_throttled == throttled
    assert asked == ["GPU-abc"]


def test_a_driver_that_does_not_answer_is_no_error(monkeypatch):
    def refuse():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    seen = Watch(torch.device("cuda", 0))
    seen.look()
    assert not seen.seen().gpu_throttled
