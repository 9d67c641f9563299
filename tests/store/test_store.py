"""Records on disk: what is lost when, and what is said of it."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pandas as pd
import pytest

from capsbench import load
from capsbench.errors import LostWorkError, StoreError
from capsbench.records import SCHEMA_VERSION, Plan, Record
from capsbench.report import Report
from capsbench.store.files import ENVIRONMENT, PLAN, RECORDS, report_folders
from helpers.made import MIB, make_record

RECORD_COUNT = 4


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "report"
    folder.mkdir()
    return Report(folder)


@pytest.fixture
def filled(store):
    for blocks in range(1, RECORD_COUNT + 1):
        store.append(make_record(blocks=blocks))
    return store


def blocks_of(store):
    return [record.cell.configuration.blocks for record in Report(store.folder).records]


def lines_of(store):
    return store.path.read_bytes().splitlines(keepends=True)


def test_what_is_appended_is_read(filled):
    assert Report(filled.folder).records == [make_record(blocks=blocks) for blocks in range(1, RECORD_COUNT + 1)]
    assert Report(filled.folder).damages == []


def test_a_folder_without_records_has_none(store):
    assert Report(store.folder).records == []
    assert Report(store.folder).settled() == set()


def test_the_last_record_of_a_cell_wins(filled):
    again = make_record(blocks=2, status="oom")
    filled.append(again)
    assert blocks_of(filled) == [1, 2, 3, 4]
    assert Report(filled.folder).records[1] == again


def test_finished_are_results_but_not_faults(store):
    for blocks, status in enumerate(["ok", "oom", "skipped", "timeout", "error"], start=1):
        store.append(make_record(blocks=blocks, status=status))
    assert Report(store.folder).settled() == {make_record(blocks=blocks).cell.key() for blocks in (1, 2, 3)}


@pytest.mark.parametrize("kept", [1, 40, 0.5, -2], ids=["one byte", "forty bytes", "half", "all but its last brace"])
def test_a_cut_costs_the_last_line_alone(filled, kept):
    *before, last = lines_of(filled)
    kept = int(kept * len(last)) if isinstance(kept, float) else kept
    filled.path.write_bytes(b"".join(before) + last[:kept])

    contents = Report(filled.folder)
    assert [record.cell.configuration.blocks for record in contents.records] == [1, 2, 3]
    assert [damage.line for damage in contents.damages] == [4]
    assert str(filled.path) in str(contents.damages[0])
    assert "line 4" in str(contents.damages[0])

    # The record after the damage must not be spoiled by it.
    filled.append(make_record(blocks=4))
    assert blocks_of(filled) == [1, 2, 3, 4]
    assert [damage.line for damage in Report(filled.folder).damages] == [4]


def test_a_line_without_its_end_alone_is_no_damage(filled):
    filled.path.write_bytes(filled.path.read_bytes().rstrip(b"\n"))
    filled.append(make_record(blocks=9))
    assert blocks_of(filled) == [1, 2, 3, 4, 9]
    assert Report(filled.folder).damages == []


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage",
        b"\xff\xfe\x00",
        b"{}",
        b"[]",
        b"null",
        b'"text"',
        b"\x00" * 64,
        b'{"schema_version": 1, "status": "ok"}',
        b"NaN",
    ],
    ids=repr,
)
def test_garbage_in_the_middle_costs_that_line_alone(filled, garbage):
    lines = lines_of(filled)
    lines[1] = garbage + b"\n"
    filled.path.write_bytes(b"".join(lines))
    assert blocks_of(filled) == [1, 3, 4]
    assert [damage.line for damage in Report(filled.folder).damages] == [2]


def test_an_empty_line_is_none(filled):
    filled.path.write_bytes(b"\n".join(lines_of(filled)))
    assert blocks_of(filled) == [1, 2, 3, 4]
    assert Report(filled.folder).damages == []


def test_a_record_of_a_newer_schema_is_not_guessed_at(filled):
    newer = json.loads(make_record(blocks=5).model_dump_json()) | {"schema_version": SCHEMA_VERSION + 1, "novelty": 1}
    with filled.path.open("a") as file:
        file.write(json.dumps(newer) + "\n")
    for read in (lambda: Report(filled.folder).records, Report(filled.folder).settled, lambda: load(filled.folder)):
        with pytest.raises(
            StoreError, match=rf"{re.escape(str(filled.path))} line 5 .*version {SCHEMA_VERSION + 1}.*\n.*upgrade"
        ):
            read()


HOLD = """
import sys, time
from pathlib import Path
from capsbench.report import Report
with Report(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=lambda how: how.name)
def test_a_lock_keeps_a_second_process_out_until_its_holder_is_gone(store, how):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(store.folder)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(StoreError, match=f"{re.escape(str(store.folder))} is in use"), store.lock():
                pytest.fail("two processes hold one lock")
        finally:
            holder.send_signal(how)
            holder.wait()
    with store.lock():
        pass


def test_a_lock_is_free_again_after_an_error(store):
    with pytest.raises(ZeroDivisionError), store.lock():
        1 / 0  # noqa: B018
    with store.lock():
        pass


@pytest.mark.parametrize("written", [0, 1, 100], ids="{} bytes find room".format)
@pytest.mark.parametrize("records", [0, RECORD_COUNT], ids="{} records before".format)
def test_a_full_disk_loses_nothing(store, monkeypatch, tmp_path, written, records):
    for blocks in range(1, records + 1):
        store.append(make_record(blocks=blocks))
    before = store.path.read_bytes() if records else b""
    record = make_record(blocks=7)
    write = os.write
    calls = []

    def write_then_fill(descriptor, data):
        calls.append(descriptor)
        if len(calls) == 1 and written:
            return write(descriptor, data[:written])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setattr(os, "write", write_then_fill)
    with pytest.raises(LostWorkError) as raised:
        store.append(record)
    monkeypatch.undo()

    assert raised.value.exit_status == 1
    assert "No space left" in str(raised.value)
    assert "`resume`" in raised.value.hint
    assert store.path.read_bytes() == before
    (rescued,) = scratch.iterdir()
    assert str(rescued) in str(raised.value)
    assert Record.model_validate_json(rescued.read_bytes()) == record

    store.append(record)
    assert blocks_of(store) == [*range(1, records + 1), 7]


def test_a_record_that_finds_no_room_anywhere_is_in_the_message(store, monkeypatch):
    def fill(*_arguments, **_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", fill)
    monkeypatch.setattr("tempfile.NamedTemporaryFile", fill)
    record = make_record(blocks=7)
    with pytest.raises(LostWorkError) as raised:
        store.append(record)
    assert record.model_dump_json() in raised.value.what
    assert len(str(raised.value).splitlines()) == 2


def test_a_folder_that_cannot_be_is_said_so(tmp_path):
    # A file in its place: the superuser, too, fails at that.
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "report"):
        with pytest.raises(StoreError, match=r"cannot be written") as raised, Report(folder).lock():
            pytest.fail("a file served as a folder")
        assert str(folder) in raised.value.what
        assert "`out`" in raised.value.hint


def test_a_plan_that_finds_no_folder_is_said_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"plan.json cannot be written"):
        Report(tmp_path / "file").write_plan(Plan(command="", cells=[]))


def test_records_that_cannot_be_opened_are_said_so(store):
    store.path.mkdir()
    with pytest.raises(StoreError, match=r"records.jsonl cannot be read"):
        _ = Report(store.folder).records


def test_a_plan_comes_back(store):
    assert Report(store.folder).plan is None
    plan = Plan(command="capsbench run", cells=[make_record("mocapsnet").cell])
    store.write_plan(plan)
    assert Report(store.folder).plan == plan
    assert [path.name for path in store.folder.iterdir()] == [PLAN]


def test_axes_of_a_report_are_what_its_cells_differ_in_whatever_an_earlier_version_wrote(store):
    sizes = [make_record("mocapsnet", 3, batch_size=size) for size in (16, 32, 64)]
    for record in sizes:
        store.append(record)
    assert store.axes == Report(store.folder).axes == ("batch_size",)
    # Earlier versions called depth the axis of such a plan.
    store.write_plan(Plan(command="capsbench run", cells=[record.cell for record in sizes], axes=("blocks",)))
    assert store.axes == Report(store.folder).axes == ("batch_size",)
    assert set(Report(store.folder).slopes["unit"]) == {"bytes per sample", "seconds per sample"}
    # An unfinished sweep has the axes of its plan, not of what it measured so far.
    cells = [make_record("mocapsnet", depth, batch_size=size).cell for depth in (3, 4) for size in (16, 32, 64)]
    store.write_plan(Plan(command="capsbench run", cells=cells))
    assert store.axes == ("blocks",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema_version": 1, "comm', "damaged"),
        ("[]", "damaged"),
        ('{"schema_version": 1, "command": "", "cells": [{"replicate": 0}]}', r"damaged: cells\.0\.configuration"),
        ('{"schema_version": 99, "anything": 1}', "schema version 99"),
    ],
)
def test_a_plan_that_cannot_be_read_is_not_overwritten_in_silence(store, text, message):
    (store.folder / PLAN).write_text(text)
    with pytest.raises(StoreError, match=message) as raised:
        _ = Report(store.folder).plan
    assert str(store.folder / PLAN) in raised.value.what


def test_a_plan_that_cannot_be_written_leaves_the_old_one(store, monkeypatch):
    old = Plan(command="old", cells=[])
    store.write_plan(old)

    def fail(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match=r"plan.json cannot be written: No space left"):
        store.write_plan(Plan(command="new", cells=[]))
    assert Report(store.folder).plan == old
    assert [path.name for path in store.folder.iterdir()] == [PLAN]


def test_machines_are_added_up(store):
    store.add_environment("a", {"cpu": 1})
    store.add_environment("b", {"cpu": 2})
    store.add_environment("a", {"cpu": 3})
    assert Report(store.folder).environments == {"a": {"cpu": 1}, "b": {"cpu": 2}}
    assert json.loads((store.folder / ENVIRONMENT).read_text()) == Report(store.folder).environments


CONTRACT = [
    "model",
    "blocks",
    "dataset",
    "batch_size",
    "kernel",
    "routing",
    "memory",
    "precision",
    "device",
    "replicate",
    "status",
    "kind",
    "state_bytes",
    "gradient_bytes",
    "optimizer_bytes",
    "retained_bytes",
    "peak_forward_bytes",
    "peak_backward_bytes",
    "peak_allocated_bytes",
    "peak_reserved_bytes",
    "process_bytes",
    "train_step_seconds",
    "forward_seconds",
    "inference_seconds",
]


def test_load_gives_the_columns_that_were_promised(filled):
    filled.append(make_record("mocapsnet", 1, status="oom"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = load(str(filled.folder))
    assert set(CONTRACT) <= set(frame.columns)
    assert len(frame) == RECORD_COUNT + 1
    first, last = frame.iloc[0], frame.iloc[-1]
    assert (first["model"], first["blocks"], first["status"], first["kind"]) == ("rescapsnet", 1, "ok", "measured")
    assert first["retained_bytes"] == 11 * MIB
    # The median of 0.12, four times, and 12.
    assert first["train_step_seconds"] == pytest.approx(0.12)
    assert last["status"] == "oom"
    assert pd.isna(last["retained_bytes"])
    assert pd.isna(last["train_step_seconds"])


def test_bytes_stay_whole_numbers_and_times_floats_whatever_is_missing(store):
    store.append(make_record(status="oom"))
    exact = 80 * 2**30 + 1
    record = make_record(blocks=2)
    store.append(record.model_copy(update={"memory": record.memory.model_copy(update={"retained_bytes": exact})}))
    frame = load(store.folder)
    for column in frame.columns:
        if column.endswith("_bytes") and "_ratio_" not in column:
            assert frame[column].dtype == "Int64", column
        elif column.endswith("_seconds"):
            assert frame[column].dtype == "float64", column
    assert int(frame["retained_bytes"].iloc[1]) == exact


def test_load_warns_of_damage_with_its_place(filled):
    filled.path.write_bytes(b"garbage\n" + filled.path.read_bytes())
    with pytest.warns(UserWarning, match=r"records.jsonl line 1 is damaged"):
        frame = load(filled.folder)
    assert len(frame) == RECORD_COUNT


def test_many_damages_are_one_warning(filled):
    filled.path.write_bytes(b"garbage\n" * 40 + filled.path.read_bytes())
    with pytest.warns(UserWarning, match="40 lines are damaged, the first is line 1") as told:
        load(filled.folder)
    assert len(told) == 1


@pytest.mark.parametrize(
    "figures", [{"peak_allocated_bytes": -1}, {"retained_bytes": 10**30}, {"retained_bytes": "5"}, {"retained_bytes": 5.5}]
)
def test_figures_that_cannot_be(filled, figures):
    record = json.loads(make_record(blocks=9).model_dump_json())
    record["memory"] |= figures
    filled.path.write_text(json.dumps(record) + "\n")
    contents = Report(filled.folder)
    assert (len(contents.records), len(contents.damages)) == (0, 1)


def test_a_file_is_no_folder_of_reports(filled):
    with pytest.raises(StoreError, match=r"records.jsonl is not a folder"):
        load(filled.path)


def test_a_folder_that_cannot_be_read_is_not_passed_over(filled, monkeypatch):
    (filled.folder / "locked").mkdir()
    real = os.scandir

    def scandir(path):
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(StoreError, match=r"locked cannot be read: Permission denied"):
        load(filled.folder)


def test_load_reads_every_report_below_a_folder(tmp_path):
    for name in ("b", "a", "deep/er"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        Report(folder).append(make_record())
    assert [path.relative_to(tmp_path) for path in report_folders(tmp_path)] == [Path("a"), Path("b"), Path("deep/er")]
    assert sorted(load(tmp_path)["report"]) == ["a", "b", "er"]


@pytest.mark.parametrize(("name", "message"), [("", "holds no records"), ("missing", "does not exist")])
def test_load_of_nothing_says_so(tmp_path, name, message):
    with pytest.raises(StoreError, match=message):
        load(tmp_path / name)


def test_a_records_file_holds_one_record_a_line(filled):
    lines = (filled.folder / RECORDS).read_text().splitlines()
    assert [json.loads(line)["cell"]["configuration"]["blocks"] for line in lines] == [1, 2, 3, 4]
