"""Cells that take turns: how long, what is kept, and what happens when one fails. A process of made-up times stands in."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from capsbench.measure.together import ProcessEnded
from capsbench.measure.turn_messages import Built, Failed
from capsbench.records import Cell, Plan, Round, Turn
from capsbench.report import Report
from capsbench.stats.turn_times import fit_turns
from capsbench.sweep import group_rounds, slopes_so_far, timekeeper
from capsbench.sweep.timekeeper import Timekeeper
from helpers.made import make_configuration, make_record

BLOCK = {"rescapsnet": 0.004, "mocapsnet": 0.006}


class Process:
    """A process whose cells take a second a step, and some milliseconds a block.

    Attributes:
        noise: noise of the parts that grow, as a share of them.
        load: mean delay of a turn by other processes, as a share of it.
        rest_per_block: seconds that a block adds to the rest of the step, noisily.
        seed: seed of all these.
    """

    noise = load = rest_per_block = 0.0
    seed = 0
    faults: dict = {}  # noqa: RUF012 - a test sets it for all
    fits = 100
    started: list = []  # noqa: RUF012

    def __init__(self, request, timeout_seconds):
        self.request, self.built, self.failed = request, {}, {}
        self.random = np.random.default_rng((self.seed, request.process))
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
        it, delay = self.request.cells[key], 1 + self.load * self.random.exponential()
        growing = delay * it.blocks * BLOCK[it.model] * (1 + self.noise * abs(self.random.normal()))
        rest = delay + self.rest_per_block * it.blocks * (1 + abs(self.random.normal()))
        return Turn(
            cell=key, train_step_seconds=rest + growing, forward_seconds=0.3 * delay + growing / 3,
            inference_seconds=0.25 * delay + growing / 3,
            growing_train_step_seconds=growing, growing_forward_seconds=growing / 3, growing_inference_seconds=growing / 3,
        )  # fmt: skip


@pytest.fixture
def process(monkeypatch):
    """Made-up processes in place of real ones, on a machine that does nothing else."""
    made = type("Made", (Process,), {"started": []})
    monkeypatch.setattr(group_rounds, "Together", made)
    monkeypatch.setattr(group_rounds, "cores_are_shared", lambda: False)
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


def interrupt_at(round_number, process, monkeypatch):
    """Interrupt the sweep at this round, counted from 1, and at no other."""
    calls = []

    def interrupted(self, number, order):
        calls.append(number)
        if len(calls) == round_number:
            raise KeyboardInterrupt
        return Process.round(self, number, order)

    monkeypatch.setattr(process, "round", interrupted)


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
    assert observer.states[-1].slopes_share == pytest.approx(0.12, abs=0.03), "rounds agree, but processes may differ"
    assert not (tmp_path / "rounds.jsonl").exists()


@pytest.mark.parametrize(("budget", "chosen", "shared"), [(20, False, True), (1, False, False), (20, True, False)])
def test_threads_are_to_sleep_while_other_work_has_the_cores(tmp_path, process, monkeypatch, budget, chosen, shared):
    """Unless rounds are so short that the look would cost more, or a user has chosen how threads wait."""
    monkeypatch.setattr(group_rounds, "cores_are_shared", lambda: True)
    monkeypatch.setattr(group_rounds, "wait_is_chosen", lambda: chosen)
    keep(tmp_path, plan_of(budget_seconds=budget))
    assert [one.request.shared for one in process.started] == [shared]


def test_rounds_are_divided_among_processes(tmp_path, process):
    report = keep(tmp_path, plan_of(samples=30, processes=4))
    assert [one.request.process for one in process.started] == [0, 1, 2, 3]
    assert [len(one.orders) for one in process.started] == [8, 7, 8, 7]
    (times,) = {tuple(record.time.processes) for record in report.records}
    assert times == (*[0] * 8, *[1] * 7, *[2] * 8, *[3] * 7)
    assert {record.status for record in report.records} == {"ok"}


def test_each_process_takes_rounds_enough_to_show_what_processes_differ_by(tmp_path, process):
    report = keep(tmp_path, plan_of(samples=5, processes=4))
    sizes = [[len(order) for order in one.orders] for one in process.started]
    assert sizes[:3] == [[8, 8, 4, 4, 4, 4], *[[8, 4, 4, 4, 4, 4]] * 2]
    assert sizes[3][:6] == [8, 4, 4, 4, 4, 4], "the last one takes what is needed beyond it"
    found = by_cell(report)
    assert found["mocapsnet", 1].time.processes[:24] == [*[0] * 6, *[1] * 6, *[2] * 6, *[3] * 6]
    assert found["mocapsnet", 2].time.processes == [0, 0, 1, 2, 3]


def test_a_sweep_of_several_processes_that_was_cut_off_goes_on(tmp_path, process, monkeypatch):
    interrupt_at(9, process, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path, plan_of(samples=5, processes=4))
    found = by_cell(keep(tmp_path, plan_of(samples=5, processes=4)))
    assert found["mocapsnet", 1].time.processes[:24] == [*[0] * 6, *[1] * 2, *[2] * 4, *[3] * 6, *[4] * 6]


def test_a_cell_that_fails_in_one_process_is_left_out_of_the_next(tmp_path, process, monkeypatch):
    real = Process.round

    def fail(self, number, order):
        if self.request.process == 1 and not self.failed:
            key = order[0]
            self.failed[key] = Failed(cell=key, status="error", message="broken")
            self.built.pop(key)
        return real(self, number, order)

    monkeypatch.setattr(process, "round", fail)
    report = keep(tmp_path, plan_of(samples=10, processes=4))
    (bad,) = (record for record in report.records if record.status == "error")
    assert bad.message == "broken"
    assert [bad.cell.key() in one.request.cells for one in process.started] == [True, True, False, False]
    assert len([record for record in report.records if record.status == "ok"]) == 7


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
    interrupt_at(4, process, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path, plan_of())
    assert len((tmp_path / "rounds.jsonl").read_text().splitlines()) == 3
    again = Report(tmp_path)
    assert {len(record.time.rounds) for record in again.records} == {3}

    found = by_cell(keep(tmp_path, plan_of()))
    assert found["mocapsnet", 1].time.rounds == [*range(12)]
    assert found["mocapsnet", 1].time.processes == [0] * 3 + [1] * 9
    assert len(process.started) == 2
    # All is done: nothing starts again.
    keep(tmp_path, plan_of())
    assert len(process.started) == 2


def lines_of(tmp_path):
    return len((tmp_path / "records.jsonl").read_text().splitlines())


@pytest.mark.parametrize("added", [8, 3])
def test_a_depth_that_is_added_later_takes_turns_with_the_ends_of_its_series(tmp_path, process, added):
    process.noise = 0.05
    keep(tmp_path, plan_of(cells(depths=(1, 2, 4)), slope_share=0.05))
    before = by_cell(Report(tmp_path))
    observer = Observer()
    keep(tmp_path, plan_of(cells(depths=(1, 2, 4, added)), slope_share=0.05), observer)
    report = Report(tmp_path)
    found = by_cell(report)
    assert sorted(it.blocks for it in process.started[1].request.cells.values()) == sorted([1, 1, 4, 4, added, added])
    for model in BLOCK:
        new = found[model, added].time
        assert set(new.processes) == {1}
        assert len(new.rounds) >= 5
        for end in (1, 4):
            earlier, now = before[model, end].time, found[model, end].time
            # Nothing that was measured is lost, and each round of the new depth has the ends.
            assert now.rounds[: len(earlier.rounds)] == earlier.rounds
            assert now.train_step_seconds[: len(earlier.rounds)] == earlier.train_step_seconds
            assert now.growing.train_step_seconds[: len(earlier.rounds)] == earlier.growing.train_step_seconds
            assert len(set(now.rounds)) == len(now.rounds) == len(now.processes) == len(now.growing.train_step_seconds)
            assert len(set(new.rounds) & set(now.rounds)) >= 5
        assert found[model, 2] == before[model, 2]
    # A cell has one record, and those that are measured again are not announced as new ones.
    assert len(report.records) == len(found) == 8
    assert {record.cell.configuration.blocks for record in observer.finished_cells} == {added}
    table = report.slopes[report.slopes["metric"].isin(["train", "forward", "inference"])]
    assert set(table["basis"]) == {"edges"}
    assert set(table["points"]) == {4}
    assert not (tmp_path / "rounds.jsonl").exists()


def test_ends_of_another_machine_are_not_measured_again(tmp_path, process):
    keep(tmp_path, plan_of(cells(depths=(1, 2)), passes=["time"]), memory=False)
    Timekeeper(plan_of(cells(depths=(1, 2, 3)), passes=["time"]), Report(tmp_path), "other").run()
    assert [it.blocks for it in process.started[1].request.cells.values()] == [3, 3]


def test_rounds_of_an_earlier_sweep_are_no_part_of_what_more_would_buy(tmp_path, process):
    process.noise = 2.0
    heard = []
    for depths in ((1, 2), (1, 2, 4)):
        plan = plan_of(cells(depths=depths), passes=["time"], budget_seconds=10, slope_share=0.01)
        Timekeeper(plan, Report(tmp_path), "abcd", notify=heard.append).run()
    assert "would be about 50% narrower" in heard[0]
    assert narrowed(heard[1]) < 0.4
    assert "more rounds cannot halve it" not in heard[1], "rounds of an earlier sweep are the reason"


def narrowed(text):
    """The share by which a longer run would narrow an interval, as a sweep said at its end."""
    return int(re.search(r"would be about (\d+)% narrower", text)[1]) / 100


def test_processes_that_differ_are_said_not_to_be_helped_by_rounds(tmp_path, process, monkeypatch):
    process.noise = 0.05
    heard = []
    for depths, slower in (((1, 2), 1), ((1, 2, 4), 3)):
        monkeypatch.setitem(BLOCK, "mocapsnet", slower * BLOCK["mocapsnet"])
        plan = plan_of(cells(depths=depths, models=("mocapsnet",)), passes=["time"], budget_seconds=20)
        Timekeeper(plan, Report(tmp_path), "abcd", notify=heard.append).run()
    assert "narrower" in heard[0]
    assert narrowed(heard[0]) < 0.45
    reasons = ("more rounds cannot halve it", "processes differ from each other by more")
    assert sum(text in heard[0] for text in reasons) == 1
    assert "processes differ from each other by more than their rounds do" in heard[1]


def test_an_end_that_was_timed_alone_gets_rounds(tmp_path, process):
    report = Report(tmp_path)
    alone = make_record("mocapsnet", 1, threads=1)
    report.append(alone)
    found = by_cell(keep(tmp_path, plan_of(cells(depths=(1, 2), models=("mocapsnet",)))))
    assert found["mocapsnet", 1].time.rounds == found["mocapsnet", 2].time.rounds
    assert lines_of(tmp_path) == 4, "what was measured alone stays on the disk"


def test_an_added_depth_that_is_cut_off_goes_on(tmp_path, process, monkeypatch):
    small = plan_of(cells(depths=(1, 2), models=("mocapsnet",)))
    larger = plan_of(cells(depths=(1, 2, 4), models=("mocapsnet",)))
    keep(tmp_path, small)
    finished = by_cell(Report(tmp_path))["mocapsnet", 1].time.rounds
    interrupt_at(4, process, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path, larger)
    cut_off = by_cell(Report(tmp_path))
    assert len(cut_off["mocapsnet", 1].time.rounds) == len(finished) + 3
    assert len(cut_off["mocapsnet", 4].time.rounds) == 3
    found = by_cell(keep(tmp_path, larger))
    assert found["mocapsnet", 4].time.processes == [1] * 3 + [2] * 9
    assert found["mocapsnet", 1].time.processes == [0] * len(finished) + [1] * 3 + [2] * 9
    assert len(set(found["mocapsnet", 1].time.rounds)) == len(finished) + 12
    assert not (tmp_path / "rounds.jsonl").exists()


def test_an_end_that_fails_later_keeps_its_times_and_its_further_turns(tmp_path, process, monkeypatch):
    keep(tmp_path, plan_of(cells(depths=(1, 2), models=("mocapsnet",))))
    before = by_cell(Report(tmp_path))["mocapsnet", 1].time.rounds

    def failing(self, number, order):
        depths = {it.blocks: key for key, it in self.request.cells.items()}
        if number == len(before) + 2:
            self.failed[depths[1]] = Failed(cell=depths[1], status="error", message="it broke")
            self.built.pop(depths[1])
        return Process.round(self, number, order)

    monkeypatch.setattr(process, "round", failing)
    found = by_cell(keep(tmp_path, plan_of(cells(depths=(1, 2, 4), models=("mocapsnet",)))))
    assert found["mocapsnet", 1].status == "ok"
    assert len(found["mocapsnet", 1].time.rounds) == len(before) + 2
    assert found["mocapsnet", 4].time is not None
    assert not (tmp_path / "rounds.jsonl").exists()


def spent_by(report, process):
    """Seconds of the turns that a process took."""
    return sum(
        train + inference
        for record in report.records
        for number, train, inference in zip(
            record.time.processes, record.time.train_step_seconds, record.time.inference_seconds, strict=True
        )
        if number == process
    )


def test_each_group_has_a_budget_of_its_own(tmp_path, process):
    process.noise, process.fits = 10.0, 6
    report = keep(tmp_path, plan_of(budget_seconds=20))
    groups = [one for one in process.started if one.orders]
    assert [len(one.request.cells) for one in groups] == [6, 6]
    for one in groups:
        assert spent_by(report, one.request.process) >= 20 * 6


def test_a_group_that_was_cut_off_goes_on_with_what_is_left_of_its_budget(tmp_path, process, monkeypatch):
    process.noise = 10.0
    interrupt_at(8, process, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path, plan_of(budget_seconds=20))
    report = keep(tmp_path, plan_of(budget_seconds=20))
    parts = [spent_by(report, number) for number in (0, 1)]
    assert all(parts)
    assert 20 * 8 <= sum(parts) < 20 * 8 + 20


def test_a_changed_source_is_not_timed(tmp_path, process, monkeypatch):
    monkeypatch.setattr(timekeeper.Sources, "has_changed", lambda _, cell: cell.configuration.blocks == 2)
    found = by_cell(keep(tmp_path, plan_of()))
    assert {name for name, record in found.items() if record.status == "error"} == {("rescapsnet", 2), ("mocapsnet", 2)}


def test_timing_ends_by_the_slopes_that_a_report_gives(tmp_path, process):
    """The parts that grow are known at once, but the rest of the step grows too, so that a report has the whole step's slope."""
    process.rest_per_block = 0.02
    heard = []
    report = Report(tmp_path)
    plan = plan_of(passes=["time"], budget_seconds=200, slope_share=0.2)
    Timekeeper(plan, report, "abcd", notify=heard.append).run()
    table = report.slopes[report.slopes["metric"] == "train"]
    assert set(table["basis"]) == {"turns"}
    widths = (table["slope_high"] - table["slope_low"]) / table["slope"]
    (one,) = process.started
    assert len(one.orders) > 12, "the parts that grow would have been enough after twelve rounds"
    assert f"after {len(one.orders)} rounds the 95 % intervals of slopes of training time are up to {max(widths):.0%}" in heard[0]
    assert "so that more `processes` would help more" in heard[0]


def test_slopes_are_fitted_once_for_each_look(tmp_path, process, monkeypatch):
    looked = []

    def counting(times):
        looked.append((times.depths.tolist(), times.whole.tobytes()))
        return fit_turns(times)

    monkeypatch.setattr(slopes_so_far, "fit_turns", counting)
    process.noise = 1.0
    keep(tmp_path, plan_of(budget_seconds=50))
    assert len(looked) > 12
    assert len(set(map(str, looked))) == len(looked)


def test_the_state_is_what_observers_hear(tmp_path, process):
    heard = []
    observer = SimpleNamespace(started=None, finished=lambda _: None, took_turns=heard.append)
    keep(tmp_path, plan_of(), observer)
    assert heard[0].seconds_left > heard[-1].seconds_left > 0


@pytest.mark.parametrize(
    ("noise", "budget", "said"),
    [
        (
            0.0,
            20,
            [
                " of the slope wide; with four",
                "with four times as many rounds the widest interval would be about 0% narrower",
                "more `processes` would help",
            ],
        ),
        (0.5, 10, ["where 20% was asked for (`slope_share`)", "with `time_budget` 40 the widest interval would be about 4"]),
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
    monkeypatch.setattr(slopes_so_far.SlopesSoFar, "share", property(lambda _: 30.0))
    heard = []
    Timekeeper(plan_of(budget_seconds=10, passes=["time"]), Report(tmp_path), "abcd", notify=heard.append).run()
    (text,) = heard
    assert "cannot be distinguished from 0" in text
    assert "with `time_budget` 40 the widest interval would be about" in text


def widths_under_load(folder, budget):
    """Widths of the two slopes on a machine whose cores are taken away at random, and what the sweep said at its end."""
    heard = []
    folder.mkdir()
    plan = plan_of(cells(depths=(1, 8)), passes=["time"], budget_seconds=budget, slope_share=0.01)
    Timekeeper(plan, Report(folder), "abcd", notify=heard.append).run()
    report = Report(folder)
    assert sum(spent_by(report, process) for process in (0, 1)) >= budget * 4
    assert all("unsettled" in record.time.noise for record in report.records)
    table = report.slopes[report.slopes["metric"] == "train"]
    return (table["slope_high"] - table["slope_low"]).tolist(), heard[0]


@pytest.mark.slow
def test_under_load_rounds_go_on_to_the_budget_and_four_times_as_much_halves_the_intervals(tmp_path, process):
    process.load = 0.5
    ratios = []
    for seed in range(6):
        process.seed = seed
        short, said = widths_under_load(tmp_path / f"{seed} short", 50)
        long, _ = widths_under_load(tmp_path / f"{seed} long", 200)
        assert "with `time_budget` 200 the widest interval" in said
        assert 0.3 < narrowed(said) <= 0.5, "all but what processes differ by"
        ratios += [one / other for one, other in zip(long, short, strict=True)]
    assert 0.4 < np.median(ratios) < 0.6
