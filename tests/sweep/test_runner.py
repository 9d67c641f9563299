"""A sweep with a launcher that measures nothing: what is run, in which order, and what is kept when it is cut off."""

import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest

from capsbench.errors import LostWorkError, StoreError
from capsbench.records import Cell, Plan
from capsbench.report import Report
from capsbench.sweep.runner import remaining, run_sweep
from helpers.made import make_configuration, make_record


class Launcher:
    """A launcher that ends each cell with its outcome in `outcomes`, by model and blocks, or else with `ok`."""

    def __init__(self, store, outcomes=None):
        self.store = store
        self.outcomes = outcomes or {}
        self.launched = []

    def __call__(self, cell):
        it = cell.configuration
        self.launched.append((it.model, it.blocks))
        # Each earlier cell is on the disk before this one starts.
        assert len(Report(self.store.folder).records) >= len(self.launched) - 1
        outcome = self.outcomes.get((it.model, it.blocks), "ok")
        if isinstance(outcome, BaseException):
            raise outcome
        return make_record(it.model, it.blocks, status=outcome, replicate=cell.replicate)


class Listener:
    def __init__(self):
        self.heard = []

    def started(self, cell):
        self.heard.append(("started", cell.configuration.model, cell.configuration.blocks))

    def finished(self, record):
        it = record.cell.configuration
        self.heard.append((record.status, it.model, it.blocks))


@pytest.fixture
def store(tmp_path):
    return Report(tmp_path)


def plan(depths=(1, 2, 3), models=("rescapsnet", "mocapsnet"), replicates=1):
    cells = [
        Cell(configuration=make_configuration(model, blocks, threads=2), replicate=replicate)
        for replicate in range(replicates)
        for blocks in depths
        for model in models
    ]
    return Plan(command="capsbench run", cells=cells)


@pytest.mark.parametrize(("axis", "skipped"), [("batch_size", ["oom", "skipped"]), ("length", ["oom", "ok"])])
def test_what_ran_out_of_memory_is_not_tried_larger_where_more_takes_more(store, axis, skipped):
    def cell(value):
        usual = make_configuration("cases.py:gpt2", 1, dataset="own")
        settings = {"settings": (("length", value),)} if axis == "length" else {"batch_size": value}
        return Cell(configuration=usual.model_copy(update=settings))

    def launch(one):
        return make_record(status="oom" if one == cell(2) else "ok").model_copy(update={"cell": one})

    planned = Plan(command="", cells=[cell(2), cell(4)], axes=(axis,))
    run_sweep(planned, store, launch)
    assert [record.status for record in store.records] == skipped
    assert skipped[1] == "ok" or store.records[1].message == "out of memory at batch 2 of this line"


def outcomes(store):
    found = {}
    for record in Report(store.folder).records:
        found[record.cell.configuration.model, record.cell.configuration.blocks] = record.status
    return found


def records_on_disk(store):
    """Lines by cell, those that were superseded too."""
    return Counter(json.dumps(json.loads(line)["cell"], sort_keys=True) for line in store.path.read_text().splitlines())


def test_cells_run_in_the_order_of_the_plan_and_observers_hear_of_each(store):
    launch, listener = Launcher(store), Listener()
    run_sweep(plan(), store, launch, (listener,))
    wanted = [(cell.configuration.model, cell.configuration.blocks) for cell in plan().cells]
    assert launch.launched == wanted
    assert listener.heard == [(what, *cell) for cell in wanted for what in ("started", "ok")]
    assert [record.cell for record in Report(store.folder).records] == plan().cells


def test_a_record_is_on_the_disk_when_its_observers_hear_of_it(store):
    seen = []

    def finished(record):
        seen.append(record in Report(store.folder).records)

    observer = SimpleNamespace(started=lambda cell: None, finished=finished)
    run_sweep(plan(), store, Launcher(store), (observer,))
    assert seen == [True] * 6


def test_after_out_of_memory_the_deeper_cells_of_that_line_alone_are_skipped(store):
    launch, listener = Launcher(store, {("rescapsnet", 2): "oom"}), Listener()
    run_sweep(plan(depths=(1, 2, 3, 4)), store, launch, (listener,))
    assert outcomes(store) == {
        **{("rescapsnet", blocks): status for blocks, status in enumerate(["ok", "oom", "skipped", "skipped"], start=1)},
        **{("mocapsnet", blocks): "ok" for blocks in (1, 2, 3, 4)},
    }
    assert ("rescapsnet", 3) not in launch.launched
    assert ("started", "rescapsnet", 3) not in listener.heard
    assert ("skipped", "rescapsnet", 3) in listener.heard
    skipped = next(record for record in Report(store.folder).records if record.status == "skipped")
    assert "2 blocks" in skipped.message


def test_an_earlier_run_s_out_of_memory_counts(store):
    store.append(make_record("rescapsnet", 1, status="oom"))
    run_sweep(plan(), store, Launcher(store))
    assert outcomes(store)["rescapsnet", 2] == "skipped"


def test_a_line_that_differs_in_anything_is_another_line(store):
    store.append(make_record("rescapsnet", 1, status="oom", batch_size=512))
    run_sweep(plan(), store, Launcher(store))
    assert outcomes(store)["rescapsnet", 2] == "ok"


def test_shallower_cells_are_tried_after_out_of_memory(store):
    run_sweep(plan(depths=(3, 1, 2, 4)), store, Launcher(store, {("rescapsnet", 3): "oom"}))
    found = outcomes(store)
    assert [found["rescapsnet", blocks] for blocks in (1, 2, 3, 4)] == ["ok", "ok", "oom", "skipped"]


@pytest.mark.parametrize("fault", ["error", "timeout"])
def test_faults_do_not_stop_a_sweep(store, fault):
    run_sweep(plan(), store, Launcher(store, {("rescapsnet", 1): fault}))
    assert outcomes(store)["rescapsnet", 1] == fault
    assert Counter(outcomes(store).values()) == {"ok": 5, fault: 1}


def test_resuming_does_what_is_left_and_tries_faults_again(store):
    first = Launcher(store, {("mocapsnet", 1): "error", ("rescapsnet", 2): "timeout", ("mocapsnet", 2): KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        run_sweep(plan(), store, first)
    assert outcomes(store) == {("rescapsnet", 1): "ok", ("mocapsnet", 1): "error", ("rescapsnet", 2): "timeout"}

    second = Launcher(store)
    run_sweep(plan(), store, second)
    assert second.launched == [("mocapsnet", 1), ("rescapsnet", 2), ("mocapsnet", 2), ("rescapsnet", 3), ("mocapsnet", 3)]
    assert set(outcomes(store).values()) == {"ok"}
    assert len(Report(store.folder).records) == 6
    assert remaining(plan(), store) == []

    run_sweep(plan(), store, Launcher(store, dict.fromkeys(second.launched, AssertionError("measured twice"))))


def test_only_faults_are_on_disk_twice(store):
    run_sweep(plan(replicates=2), store, Launcher(store, {("mocapsnet", 1): "error"}))
    run_sweep(plan(replicates=2), store, Launcher(store))
    assert Counter(records_on_disk(store).values()) == {1: 10, 2: 2}


def test_without_room_nothing_is_measured(store, monkeypatch):
    launch = Launcher(store)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(StoreError, match=r"1000 bytes left.*\n.*`resume`"):
        run_sweep(plan(), store, launch)
    assert launch.launched == []


def test_a_record_that_finds_no_room_ends_the_sweep(store, monkeypatch):
    launch = Launcher(store)

    def fail(record):
        raise LostWorkError("no room")

    monkeypatch.setattr(store, "append", fail)
    with pytest.raises(LostWorkError):
        run_sweep(plan(), store, launch)
    assert len(launch.launched) == 1


def test_an_interrupt_while_measuring_leaves_what_was_measured(store):
    with pytest.raises(KeyboardInterrupt):
        run_sweep(plan(), store, Launcher(store, {("rescapsnet", 2): KeyboardInterrupt()}))
    assert outcomes(store) == {("rescapsnet", 1): "ok", ("mocapsnet", 1): "ok"}


def test_an_interrupt_while_a_record_is_written_waits_for_it(store, monkeypatch):
    write = os.write
    sent = []

    def interrupt_then_write(descriptor, data):
        if not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", interrupt_then_write)
    launch = Launcher(store)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(plan(), store, launch)
    assert sent
    assert launch.launched == [("rescapsnet", 1)]
    assert outcomes(store) == {("rescapsnet", 1): "ok"}
    assert Report(store.folder).damages == []
    # And the signal is let through again afterwards.
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


def test_ctrl_c_while_a_record_is_written_with_other_threads_about(store, monkeypatch):
    """Another thread may take the signal, whatever this one has masked; Python raises in this one all the same."""
    stop = threading.Event()
    threading.Thread(target=stop.wait, daemon=True).start()
    write = os.write

    def interrupt_then_write(descriptor, data):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", interrupt_then_write)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(plan(), store, Launcher(store))
    stop.set()
    assert outcomes(store) == {("rescapsnet", 1): "ok"}


def test_a_cell_without_a_pass_that_is_asked_for_is_measured_again(store):
    whole = make_record()
    store.append(whole.model_copy(update={"time": None}))
    assert whole.cell.key() in Report(store.folder).settled(["memory"])
    assert whole.cell.key() not in Report(store.folder).settled(["time", "memory"])
    store.append(whole)
    assert whole.cell.key() in Report(store.folder).settled(["time", "memory"])
