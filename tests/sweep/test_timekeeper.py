"""Cells that take turns: how long, what is kept, and what happens when one fails. A process of made-up times stands in."""

from types import SimpleNamespace

import numpy as np
import pytest

from capsbench.measure.together import ProcessEnded
from capsbench.measure.turns import Built, Failed
from capsbench.records import Cell, Plan, Round, Turn
from capsbench.report import Report
from capsbench.sweep import timekeeper
from capsbench.sweep.timekeeper import Timekeeper, is_known, slopes_share
from helpers.made import make_configuration, make_record

BLOCK = {"rescapsnet": 0.004, "mocapsnet": 0.006}


class Process:
    """A process whose cells take a second a step, and some milliseconds a block."""

    noise = 0.0
    faults: dict = {}  # noqa: RUF012 - a test sets it for all
    fits = 100
    started: list = []  # noqa: RUF012

    def __init__(self, request, timeout_seconds):
        self.request, self.built, self.failed = request, {}, {}
        self.random = np.random.default_rng(request.process)
        self.orders = []

    def __enter__(self):
        self.started.append(self)
        if len(self.request.cells) > self.fits:
            raise ProcessEnded("oom", "too many", None)
        for key, configuration in self.request.cells.items():
            fault = self.faults.get((configuration.model, configuration.blocks))
            if isinstance(fault, ProcessEnded):
                raise ProcessEnded(fault.status, fault.message, key)
            if fault == "oom" and len(self.request.cells) == 1:
                fault = None
            if fault:
                self.failed[key] = Failed(cell=key, status=fault, message="it broke")
            else:
                self.built[key] = Built(cell=key, data_source="sample", notes=["a note"])
        return self

    def __exit__(self, *_):
        pass

    def round(self, number, cells):
        self.orders.append(cells)
        turns = [self.turn(key) for key in cells if key in self.built]
        return Round(
            number=number, process=self.request.process, clock="made up", warmup_steps=2, turns=turns,
            modules={key: ["blocks"] for key in cells}, edges_seconds=1e-5,
        )  # fmt: skip

    def turn(self, key):
        it = self.request.cells[key]
        growing = it.blocks * BLOCK[it.model] * (1 + self.noise * abs(self.random.normal()))
        return Turn(
            cell=key, train_step_seconds=1 + growing, forward_seconds=0.3, inference_seconds=0.25,
            growing_train_step_seconds=growing, growing_forward_seconds=growing / 3, growing_inference_seconds=growing / 3,
        )  # fmt: skip


@pytest.fixture
def process(monkeypatch):
    """Made-up processes in place of real ones."""
    made = type("Made", (Process,), {"started": []})
    monkeypatch.setattr(timekeeper, "Together", made)
    return made


class Observer:
    def __init__(self):
        self.finished_cells, self.states = [], []

    def started(self, cell):
        raise AssertionError("cells that take turns are not started one by one")

    def finished(self, record):
        self.finished_cells.append(record)

    def took_turns(self, state):
        self.states.append(state)


def cells(depths=(1, 2, 3, 4), models=("rescapsnet", "mocapsnet")):
    return [Cell(configuration=make_configuration(model, blocks)) for blocks in depths for model in models]


def keep(tmp_path, plan, observer=None, *, memory=True):
    report = Report(tmp_path)
    known = {record.cell.key() for record in report.records}
    for cell in plan.cells if memory else ():
        if cell.key() not in known:
            made = make_record(cell.configuration.model, cell.configuration.blocks, threads=1)
            report.append(made.model_copy(update={"cell": cell, "time": None}))
    keeper = Timekeeper(plan, report, "abcd", observers=[observer] if observer else [])
    keeper.run()
    return report


def plan_of(several=None, **fields):
    return Plan(command="", cells=several or cells(), **({"samples": 5, "budget_seconds": 20} | fields))


def by_cell(report):
    return {(record.cell.configuration.model, record.cell.configuration.blocks): record for record in report.records}


def test_all_cells_take_turns_until_the_slopes_are_known(tmp_path, process):
    observer = Observer()
    report = keep(tmp_path, plan_of(), observer)
    (one,) = process.started
    # Whole rounds until each cell has its samples, and then the ends, until there is an interval.
    assert [len(order) for order in one.orders] == [8] * 5 + [4] * 7
    assert len({tuple(order) for order in one.orders}) > 3, "the order is drawn anew"
    found = by_cell(report)
    assert len(found) == 8
    assert {record.status for record in found.values()} == {"ok"}
    assert found["mocapsnet", 1].time.rounds == [*range(12)]
    assert found["mocapsnet", 2].time.rounds == [0, 1, 2, 3, 4]
    assert found["mocapsnet", 2].time.growing.train_step_seconds == pytest.approx([0.012] * 5)
    assert found["mocapsnet", 2].time.noise == []
    assert found["mocapsnet", 2].memory is not None
    assert found["mocapsnet", 2].notes == ["a note"]
    assert observer.finished_cells == report.records
    assert [state.rounds for state in observer.states] == [*range(1, 13)]
    assert observer.states[-1].slopes_share == pytest.approx(0, abs=1e-6)
    assert not (tmp_path / "rounds.jsonl").exists()


def test_a_slope_that_stays_unknown_costs_the_budget_of_all_cells(tmp_path, process):
    process.noise = 10.0
    report = keep(tmp_path, plan_of(budget_seconds=10))
    spent = sum(sum(record.time.train_step_seconds) + sum(record.time.inference_seconds) for record in report.records)
    assert 80 <= spent < 100
    assert all("unsettled" in record.time.noise for record in report.records)


def test_samples_are_never_fewer_than_asked_for(tmp_path, process):
    report = keep(tmp_path, plan_of(samples=9, budget_seconds=0))
    assert {len(record.time.train_step_seconds) for record in report.records} == {9}


def test_cells_of_one_depth_take_turns_until_their_medians_are_known(tmp_path, process):
    report = keep(tmp_path, plan_of(cells(depths=(3,))))
    assert {len(record.time.train_step_seconds) for record in report.records} == {6}


def test_times_alone_need_no_memory(tmp_path, process):
    report = keep(tmp_path, plan_of(passes=["time"]), memory=False)
    assert len(report.records) == 8
    assert all(record.status == "ok" and record.time and record.memory is None for record in report.records)
    assert {record.data_source for record in report.records} == {"sample"}


def test_cells_whose_memory_ended_badly_are_not_timed(tmp_path, process):
    report = Report(tmp_path)
    bad = make_record("mocapsnet", 4, status="oom", threads=1)
    report.append(bad)
    found = by_cell(keep(tmp_path, plan_of()))
    assert found["mocapsnet", 4].status == "oom"
    assert found["mocapsnet", 3].time is not None


@pytest.mark.parametrize("status", ["error", "timeout"])
def test_a_cell_that_fails_is_recorded_and_the_others_go_on(tmp_path, process, status):
    process.faults = {("mocapsnet", 2): status}
    found = by_cell(keep(tmp_path, plan_of()))
    assert (found["mocapsnet", 2].status, found["mocapsnet", 2].message) == (status, "it broke")
    assert found["mocapsnet", 2].memory is not None, "what was measured stays"
    assert all(record.status == "ok" and record.time for name, record in found.items() if name != ("mocapsnet", 2))


def test_a_process_that_dies_of_a_cell_is_started_again_without_it(tmp_path, process):
    process.faults = {("rescapsnet", 3): ProcessEnded("error", "was ended by SIGSEGV", None)}
    found = by_cell(keep(tmp_path, plan_of()))
    assert "SIGSEGV" in found["rescapsnet", 3].message
    assert [len(one.request.cells) for one in process.started] == [8, 7]
    assert all(record.status == "ok" and record.time for name, record in found.items() if name != ("rescapsnet", 3))


def test_a_process_that_cannot_begin_is_started_once(tmp_path, process, monkeypatch):
    def broken(self):
        self.started.append(self)
        raise ProcessEnded("error", "no module named torch", None)

    monkeypatch.setattr(process, "__enter__", broken)
    report = keep(tmp_path, plan_of())
    assert len(process.started) == 1
    assert {(record.status, record.message) for record in report.records} == {("error", "no module named torch")}


def test_a_later_failure_costs_no_times(tmp_path, process, monkeypatch):
    """Halves share the ends of a series: one of them fails in the second half, after its turns in the first."""
    process.fits = 3
    enter = Process.__enter__

    def broken_later(self):
        depths = {it.blocks: key for key, it in self.request.cells.items()}
        if set(depths) == {1, 3, 4}:
            self.started.append(self)
            raise ProcessEnded("error", "it broke late", depths[1])
        return enter(self)

    monkeypatch.setattr(process, "__enter__", broken_later)
    found = by_cell(keep(tmp_path, plan_of(cells(models=("mocapsnet",)))))
    assert [sorted(it.blocks for it in one.request.cells.values()) for one in process.started] == [
        [1, 2, 3, 4], [1, 2, 4], [1, 3, 4], [3, 4],
    ]  # fmt: skip
    assert all(record.status == "ok" and record.time is not None for record in found.values())


@pytest.mark.parametrize("fits", [7, 5, 3, 1])
def test_out_of_memory_means_fewer_at_a_time(tmp_path, process, fits):
    process.fits = fits
    report = keep(tmp_path, plan_of(budget_seconds=0))
    assert len(report.records) == 8
    assert all(record.status == "ok" and record.time for record in report.records)
    numbers = [set(record.time.rounds) for record in by_cell(report).values()]
    assert all(numbers)
    # No round has a number of another one.
    taken = [number for one in process.started for number, _ in enumerate(one.orders)]
    assert len(set().union(*numbers)) <= len(taken)


def test_a_cell_that_does_not_fit_beside_others_is_timed_alone(tmp_path, process):
    process.faults = {("mocapsnet", 4): "oom"}
    found = by_cell(keep(tmp_path, plan_of()))
    assert all(record.status == "ok" and record.time for record in found.values())
    assert not set(found["mocapsnet", 4].time.rounds) & set(found["mocapsnet", 3].time.rounds)


def test_a_sweep_that_was_cut_off_goes_on_with_its_rounds(tmp_path, process, monkeypatch):
    calls = []

    def interrupted(self, number, order):
        calls.append(number)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return Process.round(self, number, order)

    monkeypatch.setattr(process, "round", interrupted)
    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path, plan_of())
    assert len((tmp_path / "rounds.jsonl").read_text().splitlines()) == 3
    again = Report(tmp_path)
    assert {len(record.time.rounds) for record in again.records} == {3}

    calls += [0]
    found = by_cell(keep(tmp_path, plan_of()))
    assert found["mocapsnet", 1].time.rounds == [*range(12)]
    assert found["mocapsnet", 1].time.processes == [0] * 3 + [1] * 9
    assert len(process.started) == 2
    # All is done: nothing starts again.
    keep(tmp_path, plan_of())
    assert len(process.started) == 2


def test_depths_that_are_added_later_take_turns_among_themselves(tmp_path, process):
    keep(tmp_path, plan_of(cells(depths=(1, 2))))
    found = by_cell(keep(tmp_path, plan_of(cells(depths=(1, 2, 3, 4)))))
    assert set(found["mocapsnet", 1].time.rounds) == set(found["mocapsnet", 2].time.rounds)
    assert set(found["mocapsnet", 3].time.rounds) == set(found["mocapsnet", 4].time.rounds)
    assert not set(found["mocapsnet", 1].time.rounds) & set(found["mocapsnet", 4].time.rounds)


def test_a_changed_source_is_not_timed(tmp_path, process, monkeypatch):
    monkeypatch.setattr(timekeeper.Sources, "has_changed", lambda _, cell: cell.configuration.blocks == 2)
    found = by_cell(keep(tmp_path, plan_of()))
    assert {name for name, record in found.items() if record.status == "error"} == {("rescapsnet", 2), ("mocapsnet", 2)}


def rounds_of(slopes, several):
    """Rounds in which a block took these seconds."""
    return [
        Round(
            number=number, process=0, clock="made up", warmup_steps=2,
            turns=[
                Turn(
                    cell=cell.key(), train_step_seconds=1 + slope * cell.configuration.blocks, forward_seconds=0.1,
                    inference_seconds=0.1,
                )
                for cell in several
            ],
        )
        for number, slope in enumerate(slopes)
    ]  # fmt: skip


def test_slopes_are_known_within_a_share_of_themselves():
    several = cells(models=("mocapsnet",))
    steady, noisy = rounds_of([0.01] * 12, several), rounds_of([0.01, 0.02, 0.03] * 4, several)
    assert is_known(several, steady, 0.2)
    assert not is_known(several, steady[:-1], 0.2), "few rounds may agree by luck"
    assert not is_known(several, noisy, 0.2)
    assert slopes_share(several, noisy) == pytest.approx(1, rel=0.5)
    assert slopes_share(several, rounds_of([0.01] * 5, several)) is None
    assert slopes_share(several, rounds_of([0.0] * 9, several)) is None


def test_the_state_is_what_observers_hear(tmp_path, process):
    heard = []
    observer = SimpleNamespace(started=None, finished=lambda _: None, took_turns=heard.append)
    keep(tmp_path, plan_of(), observer)
    assert heard[0].seconds_left > heard[-1].seconds_left > 0


@pytest.mark.parametrize(
    ("noise", "budget", "said"),
    [
        (0.0, 20, ["known within ± 0%", "four times as many would halve that"]),
        (0.5, 10, ["not ± 10%", "40 seconds of `time_budget` would halve"]),
        (0.0, 0, ["5 rounds are too few"]),
    ],
)
def test_what_a_longer_run_would_buy_is_said_at_the_end(tmp_path, process, noise, budget, said):
    process.noise = noise
    heard = []
    report = Report(tmp_path)
    plan = plan_of(budget_seconds=budget, passes=["time"])
    Timekeeper(plan, report, "abcd", notify=heard.append).run()
    (text,) = heard
    assert all(words in text for words in said), text


def test_a_slope_within_its_noise_is_said_to_be_so(tmp_path, process, monkeypatch):
    monkeypatch.setattr(timekeeper, "slopes_share", lambda *_: 30.0)
    heard = []
    Timekeeper(plan_of(budget_seconds=10, passes=["time"]), Report(tmp_path), "abcd", notify=heard.append).run()
    (text,) = heard
    assert "cannot be distinguished from 0" in text
    assert "40 seconds of `time_budget` would halve its interval" in text
