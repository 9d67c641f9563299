"""The driver of a sweep whose cells are measured elsewhere: order, losses, memory that runs out, Ctrl-C. Nothing is measured."""

import shutil
from collections import Counter
from types import SimpleNamespace

import pytest

from capsbench.cases.fingerprint import package_digest
from capsbench.errors import ConfigurationError, StoreError
from capsbench.records import Cell, Plan, Round, Turn
from capsbench.report import Report
from capsbench.sweep import runner
from capsbench.sweep.launchers.driver import MOST_TRIES, Driver, machine_in_words, renumbered
from capsbench.sweep.launchers.protocol import Findings, Task
from capsbench.sweep.local import Sources
from capsbench.sweep.runner import remaining, run_sweep
from helpers.engines import HERE, FakeEngine
from helpers.made import make_configuration, make_record

MODELS = ("rescapsnet", "mocapsnet")


def plan(depths=(1, 2, 3), models=MODELS, replicates=1, passes=("memory",), **fields):
    cells = [
        Cell(configuration=make_configuration(model, blocks, **{"threads": 2} | fields), replicate=replicate)
        for replicate in range(replicates)
        for blocks in depths
        for model in models
    ]
    return Plan(command="capsbench run", cells=cells, passes=list(passes))


@pytest.fixture
def store(tmp_path):
    return Report(tmp_path / "report")


def drive(planned, store, engine=None, *, sources=None, **options):
    """Drive a sweep to its end, and return its engine."""
    engine = engine or FakeEngine()
    store.folder.mkdir(exist_ok=True)
    none = Sources(planned.model_copy(update={"cells": []}))
    Driver(planned, store, engine, sources or none, **options).run()
    return engine


def outcomes(store):
    return {
        (record.cell.configuration.model, record.cell.configuration.blocks): record.status
        for record in Report(store.folder).records
    }


def last(tasks):
    return tasks[-1]


def test_each_cell_comes_back_once_whatever_the_order(store):
    engine = drive(plan(replicates=2), store, FakeEngine(order=last, at_once=3))
    assert len(engine.submitted) == 12
    assert [len(task.cells()) for task in engine.submitted] == [1] * 12
    assert {record.cell for record in Report(store.folder).records} == set(plan(replicates=2).cells)
    assert remaining(plan(replicates=2), store) == []
    assert Report(store.folder).environments == {"abcd": HERE}


def test_tasks_are_submitted_in_the_order_of_the_plan_so_that_replicates_interleave(store):
    engine = drive(plan(replicates=2), store)
    assert [task.cells()[0] for task in engine.submitted] == plan(replicates=2).cells


def in_series(statuses, **more):
    return {("rescapsnet", blocks): status for blocks, status in enumerate(statuses, start=1)} | more


@pytest.mark.parametrize("order", [lambda tasks: tasks[0], last, lambda tasks: tasks[len(tasks) // 2]])
@pytest.mark.parametrize("at_once", [1, 2, 100])
@pytest.mark.parametrize("statuses", [["ok", "ok", "oom", "oom", "oom", "oom"], ["ok", "oom", "oom", "ok", "oom", "oom"]])
def test_what_runs_out_of_memory_leaves_the_records_of_a_sweep_on_one_device(store, tmp_path, order, at_once, statuses):
    planned, found = plan(depths=range(1, 7), models=("rescapsnet",), replicates=2), in_series(statuses)
    drive(planned, store, FakeEngine(found, order=order, at_once=at_once))
    alone = Report(tmp_path / "alone")
    alone.folder.mkdir()
    by_itself = FakeEngine(found)
    run_sweep(planned, alone, lambda cell: by_itself.record(SimpleNamespace(plan=planned), cell, by_itself._chosen(cell), "abcd"))

    def told(report):
        return {record.cell.key(): (record.status, record.message) for record in report.records}

    differing = {key for key in told(alone) if told(store)[key] != told(alone)[key]}
    # Only a cell that did fit, although a smaller one before it did not, is kept in place of one that is skipped.
    assert all(told(store)[key][0] == "ok" and told(alone)[key][0] == "skipped" for key in differing)
    assert not differing or statuses[3] == "ok"


def test_a_larger_cell_in_flight_is_cancelled_and_skipped(store):
    engine = drive(plan(depths=(1, 2, 3), models=("rescapsnet",)), store, FakeEngine({("rescapsnet", 1): "oom"}))
    assert engine.cancelled == [2, 3]
    assert outcomes(store) == in_series(["oom", "skipped", "skipped"])
    assert all("out of memory at 1" in record.message for record in store.records[1:])


def test_an_earlier_run_s_out_of_memory_is_known_before_anything_is_submitted(store):
    store.folder.mkdir()
    store.append(make_record("rescapsnet", 1, status="oom"))
    engine = drive(plan(models=("rescapsnet",)), store)
    assert engine.submitted == []
    assert outcomes(store) == in_series(["oom", "skipped", "skipped"])


def test_a_lost_task_is_measured_elsewhere(store):
    engine = drive(plan(), store, FakeEngine({("mocapsnet", 2): ["lost", "lost", "ok"]}))
    assert set(outcomes(store).values()) == {"ok"}
    assert Counter(task.number for task in engine.submitted).most_common(1)[0][1] == 3


def test_tasks_that_are_lost_together_are_one_message(store):
    told = []
    outcomes = {("mocapsnet", 2): ["lost", "ok"], ("mocapsnet", 3): ["lost", "ok"]}
    engine = drive(plan(), store, FakeEngine(outcomes, at_once=6), notify=told.append)
    assert told == ["note: 2 cells are measured again, since a worker was lost: node7 died"]
    assert len(engine.submitted) == 8


@pytest.mark.parametrize("order", [None, last])
def test_a_lost_cell_is_not_measured_again_if_it_has_become_too_large(store, order):
    found = {("rescapsnet", 1): "oom", ("rescapsnet", 3): ["lost", "ok"]}
    engine = drive(plan(models=("rescapsnet",)), store, FakeEngine(found, at_once=3, **({"order": order} if order else {})))
    assert len(engine.submitted) == 3
    assert outcomes(store) == in_series(["oom", "ok" if order else "skipped", "skipped"])


def test_gpus_that_only_workers_have_are_named(store):
    store.folder.mkdir()

    def told(gpus, **fields):
        texts, planned = [], plan(models=("rescapsnet",), **fields)
        Driver(planned, store, FakeEngine(gpus=gpus), Sources(planned), notify=texts.append).note_unused_gpus()
        return texts

    assert told(0) == []
    assert told(2, device="cuda:0", threads=None) == []
    assert told(2) == ["note: this machine has no GPU, so that `device` auto is cpu; give `device` cuda for the workers' GPUs"]


def test_a_cell_that_loses_every_worker_is_an_error_that_says_so(store):
    engine = drive(plan(), store, FakeEngine({("mocapsnet", 2): "lost"}))
    (record,) = [record for record in store.records if record.status != "ok"]
    assert record.status == "error"
    assert record.message == f"{MOST_TRIES} workers were lost while they measured it, the last one because node7 died"
    assert len(engine.submitted) == 6 + MOST_TRIES - 1


def test_a_machine_that_dies_counts_less_than_a_worker(store):
    found = {("rescapsnet", 1): ["node lost"] * 11 + ["ok"], ("rescapsnet", 2): ["lost", *["node lost"] * 8]}
    drive(plan(models=("rescapsnet",)), store, FakeEngine(found))
    assert outcomes(store) == in_series(["ok", "error", "ok"])
    (failed,) = [record for record in store.records if record.status == "error"]
    assert failed.message.startswith("9 workers were lost")


def test_a_cell_that_fills_every_machine_is_out_of_memory(store):
    drive(plan(models=("rescapsnet",)), store, FakeEngine({("rescapsnet", 2): "full"}, order=last))
    assert outcomes(store) == in_series(["ok", "oom", "ok"])


def test_tasks_that_were_never_begun_are_submitted_without_limit(store):
    engine = drive(plan(), store, FakeEngine({("mocapsnet", 1): ["unreached"] * 7 + ["ok"]}))
    assert set(outcomes(store).values()) == {"ok"}
    assert len(engine.submitted) == 6 + 7


def test_faults_are_tried_again_by_the_next_driver_alone(store):
    drive(plan(), store, FakeEngine({("mocapsnet", 2): "error", ("mocapsnet", 3): "timeout"}))
    assert Counter(outcomes(store).values()) == {"ok": 4, "error": 1, "timeout": 1}
    engine = drive(plan(), store)
    assert len(engine.submitted) == 2
    assert set(outcomes(store).values()) == {"ok"}
    assert drive(plan(), store).submitted == []


def test_ctrl_c_keeps_what_has_come_back(store):
    engine = FakeEngine({("rescapsnet", 2): [KeyboardInterrupt(), "ok"]}, at_once=1)

    def wait(seconds, usual=engine.wait):
        if seconds == 0:
            engine.at_once = 2
            return usual(0)
        return usual(seconds)

    engine.wait = wait
    with pytest.raises(KeyboardInterrupt):
        drive(plan(), store, engine)
    # Two came before, and two were there when it was pressed.
    assert Counter(outcomes(store).values()) == {"ok": 4}
    drive(plan(), store)
    assert Counter(outcomes(store).values()) == {"ok": 6}


def test_a_driver_that_was_killed_has_lost_nothing_that_had_come_back(store):
    class Killed(BaseException):
        pass

    with pytest.raises(Killed):
        drive(plan(), store, FakeEngine({("rescapsnet", 3): Killed()}))
    assert Counter(outcomes(store).values()) == {"ok": 4}
    again = drive(plan(), store)
    assert len(again.submitted) == 2


def test_what_workers_found_for_a_driver_that_was_killed_is_taken(store):
    planned, digest = plan(), package_digest()
    cells, fake = planned.cells, FakeEngine()
    stranger = Cell(configuration=make_configuration("rescapsnet", 7, threads=2))
    behind = []
    for number, (cell, package) in enumerate([(cells[0], digest), (cells[1], "another"), (stranger, digest)]):
        task = Task(number=number, plan=planned.model_copy(update={"cells": [cell]}), package=package)
        found = Findings(records=[fake.record(task, cell, "ok", "abcd")], environment="abcd", description=HERE)
        behind.append((task, found))
    engine = drive(planned, store, FakeEngine(behind=behind))
    assert [task.cells()[0] for task in engine.submitted] == cells[1:]
    assert {record.cell for record in store.records} == set(cells)


def test_a_worker_without_the_package_ends_the_sweep_with_two_lines(store):
    with pytest.raises(ConfigurationError, match=r"^node7 cannot measure\ninstall it$"):
        drive(plan(), store, FakeEngine({("rescapsnet", 1): "refused"}, at_once=3))
    assert len(store.records) == 2  # what came back with it is kept


def test_a_cell_for_which_there_is_no_gpu_is_refused_at_once(store):
    cell = Cell(configuration=make_configuration("rescapsnet", 1, device="cuda:0", threads=None))
    with pytest.raises(ConfigurationError, match=r"`device` cuda needs a GPU\n"):
        drive(Plan(command="", cells=[cell]), store)


def test_without_room_nothing_is_submitted_or_taken(store, monkeypatch):
    engine, usage = FakeEngine(), shutil.disk_usage(".")
    free = iter([usage.free, usage.free, 1000, 1000])
    monkeypatch.setattr(runner.shutil, "disk_usage", lambda _: SimpleNamespace(free=next(free)))
    with pytest.raises(StoreError, match="1000 bytes left"):
        drive(plan(), store, engine)
    assert len(store.records) == 1


def test_an_edited_network_is_no_record_of_the_first_source(store):
    cell = Cell(configuration=make_configuration("cases:gpt2", 1, dataset="own"), source="0123")
    changes = iter([False, True])
    sources = SimpleNamespace(has_changed=lambda one: next(changes))
    drive(Plan(command="", cells=[cell], passes=["memory"]), store, sources=sources)
    assert store.records[0].status == "error"
    assert "was changed after this cell was planned" in store.records[0].message


def test_predicted_cells_are_left_to_the_caller(store):
    cells = [Cell(configuration=make_configuration("rescapsnet", 1, device="cpu:predicted"))]
    assert drive(Plan(command="", cells=cells), store).submitted == []


class Listener:
    def __init__(self):
        self.begun, self.ended, self.turns = [], [], []

    def started(self, cell):
        self.begun.append(cell)

    def finished(self, record):
        self.ended.append(record)

    def took_turns(self, state):
        self.turns.append(state)


def test_observers_hear_of_every_record_and_of_what_has_been_in_flight_longest(store):
    listener = Listener()
    drive(plan(), store, FakeEngine(order=last), observers=[listener])
    assert listener.ended == [*Report(store.folder).records]
    assert listener.begun == [plan().cells[0]]  # it comes back last


# Cells that take turns.


def both(**fields):
    return plan(passes=("time", "memory"), **fields)


def test_memory_is_counted_cell_by_cell_and_then_a_group_takes_turns_in_one_task(store):
    listener = Listener()
    engine = drive(both(replicates=2), store, observers=[listener])
    alone, together = engine.submitted[:12], engine.submitted[12:]
    assert all(task.plan.passes == ["memory"] and not task.in_turn for task in alone)
    assert [task.in_turn for task in together] == [True, True]
    assert [task.cells() for task in together] == [both(replicates=2).cells[:6], both(replicates=2).cells[6:]]
    assert {record.memory is not None for record in together[0].known} == {True}
    assert remaining(both(replicates=2), store) == []
    assert [len(state.cells) for state in listener.turns] == [6, 6]


def test_a_cell_whose_memory_failed_takes_no_turns_and_the_others_do(store):
    engine = FakeEngine({("rescapsnet", 3): "oom", ("mocapsnet", 1): "error"})
    engine_record = engine.record
    engine.record = lambda task, cell, status, node: engine_record(task, cell, "ok" if task.in_turn else status, node)
    drive(both(), store, engine)
    assert sum(task.in_turn for task in engine.submitted) == 1
    assert len(engine.submitted[-1].known) == 6


def test_a_cell_that_runs_out_of_memory_beside_others_skips_none(store):
    engine = FakeEngine()
    usual = engine.record
    engine.record = lambda task, cell, status, node: usual(
        task, cell, "oom" if task.in_turn and cell.configuration.model == "rescapsnet" else status, node
    )
    drive(both(), store, engine)
    assert Counter(outcomes(store).values()) == {"oom": 3, "ok": 3}


def test_what_happens_between_memory_and_times_sees_all_memory(store):
    seen = []
    planned = both()
    store.folder.mkdir()
    engine = FakeEngine()
    driver = Driver(planned, store, engine, Sources(planned.model_copy(update={"cells": []})))
    driver.run(between=lambda: seen.append([len(store.records), len(engine.submitted)]))
    assert seen == [[6, 6]]


def test_a_lost_group_ends_in_errors_that_keep_the_memory(store):
    engine = FakeEngine()
    usual = engine._outcome

    def lost_in_turn(task):
        engine.outcomes = {("rescapsnet", 1): "lost"} if task.in_turn else {}
        return usual(task)

    engine._outcome = lost_in_turn
    drive(both(), store, engine)
    assert {record.status for record in store.records} == {"error"}
    assert all(record.memory is not None and record.time is None for record in store.records)
    assert sum(task.in_turn for task in engine.submitted) == MOST_TRIES


def times_of_turns(record, rounds, processes):
    numbers = {"rounds": rounds, "processes": processes}
    samples = dict.fromkeys(("train_step_seconds", "forward_seconds", "inference_seconds"), [0.1] * len(rounds))
    return record.model_copy(update={"time": record.time.model_copy(update=numbers | samples)})


def a_round(number, cells, process=0):
    turns = [Turn(cell=cell.key(), train_step_seconds=1, forward_seconds=0.5, inference_seconds=0.3) for cell in cells]
    return Round(number=number, process=process, clock="made up", warmup_steps=1, turns=turns)


def test_rounds_of_several_workers_have_numbers_of_their_own(store):
    engine = FakeEngine()
    usual = engine.record

    def record(task, cell, status, node):
        made = usual(task, cell, status, node)
        return times_of_turns(made, [0, 1, 2, 3, 4], [0, 0, 0, 1, 1]) if task.in_turn else made

    engine.record = record
    drive(both(replicates=3), store, engine)
    by_replicate = {record.cell.replicate: (record.time.rounds, record.time.processes) for record in store.records}
    assert by_replicate == {
        number: ([*range(5 * number, 5 * number + 5)], [2 * number] * 3 + [2 * number + 1] * 2) for number in range(3)
    }
    assert len({tuple(record.time.rounds) for record in store.records if record.cell.replicate == 1}) == 1


def test_numbers_that_a_worker_was_given_stay_what_they_are(tmp_path):
    planned = both(depths=(1, 2), models=("rescapsnet",))
    one, other = planned.cells
    report = Report(tmp_path)
    report.append(times_of_turns(make_record("rescapsnet", 7), [0, 1, 2], [0, 0, 0]))
    had = times_of_turns(make_record("rescapsnet", 1), [0, 1], [0, 0])
    task = Task(number=1, plan=planned, in_turn=True, known=[had], rounds=[a_round(5, [other], process=1)], package="x")
    report.append_round(task.rounds[0])
    found = Findings(
        records=[times_of_turns(had, [0, 1, 6, 7], [0, 0, 2, 2]), times_of_turns(make_record("rescapsnet", 2), [5, 6], [1, 2])],
        rounds=[a_round(5, [other], process=1), a_round(8, [one], process=2)],
    )
    records, rounds = renumbered(found, task, report)
    assert [(record.time.rounds, record.time.processes) for record in records] == [([0, 1, 6, 7], [0, 0, 2, 2]), ([5, 6], [1, 2])]
    report.append(times_of_turns(make_record("rescapsnet", 9), [10], [4]))
    records, rounds = renumbered(found, task, report)
    assert [(record.time.rounds, record.time.processes) for record in records] == [
        ([0, 1, 11, 12], [0, 0, 5, 5]),
        ([5, 11], [1, 5]),
    ]
    assert [(one.number, one.process) for one in rounds] == [(13, 5)]


def test_turns_that_a_killed_driver_kept_go_along_to_the_worker(store):
    planned = both(depths=(1, 2), models=("rescapsnet",))
    store.folder.mkdir()
    for cell in planned.cells:
        made = make_record("rescapsnet", cell.configuration.blocks)
        store.append(made.model_copy(update={"time": None}))
    store.append_round(a_round(0, planned.cells))
    engine = drive(planned, store)
    (task,) = engine.submitted
    assert [one.number for one in task.rounds] == [0]
    assert [record.time for record in task.known] == [None, None]


# Kinds of machines.


def test_cells_that_are_compared_are_measured_on_one_kind_of_machine(store):
    several = [*plan(batch_size=4).cells, *plan(batch_size=8).cells]
    engine = drive(Plan(command="", cells=several, passes=["memory"]), store, FakeEngine(kinds={"a100": 4, "h100": 2}))
    kinds = {}
    for task in engine.submitted:
        kinds.setdefault(task.cells()[0].configuration.batch_size, set()).add(task.kind)
    # The second goes where two tasks of one more home find as much room.
    assert kinds == {4: {"a100"}, 8: {"h100"}}


def test_a_single_kind_of_machine_limits_nothing(store):
    assert {task.kind for task in drive(plan(), store, FakeEngine(kinds={"abcd": 3})).submitted} == {None}


def test_a_series_that_was_begun_goes_on_where_it_was(store):
    store.folder.mkdir()
    store.append(make_record("rescapsnet", 1).model_copy(update={"environment": "h100"}))
    engine = drive(plan(), store, FakeEngine(kinds={"a100": 4, "h100": 2}))
    assert {task.kind for task in engine.submitted} == {"h100"}


def test_a_series_on_two_kinds_of_machines_is_said_once(store):
    heard = []
    drive(plan(), store, FakeEngine(nodes=("one", "two")), notify=heard.append)
    assert len(heard) == 1
    assert "two kinds of machines" in heard[0]
    assert {record.environment for record in store.records} == {"one", "two"}


def test_a_kind_that_has_died_out_is_replaced(store):
    engine = FakeEngine({("mocapsnet", 3): ["lost", "ok"]}, kinds={"a100": 4, "h100": 2})
    usual = engine._outcome

    def outcome(task):
        found = usual(task)
        engine.machines = {"h100": 2, "l4": 1}
        return found

    engine._outcome = outcome
    heard = []
    drive(plan(), store, engine, notify=heard.append)
    assert engine.submitted[-1].kind == "h100"
    assert any("two kinds of machines" in text for text in heard)


def test_a_machine_is_named_by_its_gpu_or_its_processor():
    gpu = {"cuda": {"available": True, "devices": [{"name": "NVIDIA L4"}]}, "packages": {"torch": "2.9"}}
    assert machine_in_words(gpu) == "NVIDIA L4 with torch 2.9"
    assert machine_in_words(HERE | {"cuda": {"available": False}}) == "a CPU with torch 2.9"
    assert machine_in_words({}) == "a machine of unknown kind"
