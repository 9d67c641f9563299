"""The schema: what it refuses, and names that must not change."""

import json

import pytest
from pydantic import ValidationError

from capsbench.options import OPTIONS, type_of
from capsbench.records import SCHEMA_VERSION, Cell, Configuration, MemoryFigures, Plan, Record, newer_than_known
from helpers.made import make_configuration, make_record


@pytest.mark.parametrize("status", ["ok", "oom", "timeout", "error", "skipped"])
def test_a_record_comes_back_from_its_json_as_it_was(status):
    record = make_record("mocapsnet", 3, replicate=2, status=status)
    assert Record.model_validate_json(record.model_dump_json()) == record


def test_a_plan_comes_back_from_its_json_as_it_was():
    plan = Plan(command="capsbench run", cells=[make_record(blocks=blocks).cell for blocks in (1, 2)])
    assert Plan.model_validate_json(plan.model_dump_json(exclude_none=True)) == plan
    varied = plan.model_copy(update={"axes": ("length", "batch_size")})
    assert Plan.model_validate_json(varied.model_dump_json()) == varied


def test_a_plan_from_before_there_were_axes_is_over_blocks():
    assert Plan.model_validate({"schema_version": 6, "command": "capsbench run", "cells": []}).axes == ("blocks",)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("surprise",), 1),
        (("cell", "surprise"), 1),
        (("cell", "configuration", "surprise"), 1),
        (("memory", "surprise"), 1),
        (("status",), "fine"),
        (("cell", "configuration", "blocks"), -1),
        (("cell", "configuration", "batch_size"), 0),
        (("cell", "replicate"), -1),
        (("memory", "retained_bytes"), 1.5),
        (("memory", "retained_bytes"), None),
        (("duration_seconds"), float("nan")),
        (("time", "train_step_seconds"), [0.1, float("nan")]),
        (("time", "train_step_seconds"), [0.1, float("inf")]),
        (("time", "train_step_seconds"), [0.1, "soon"]),
    ],
)
def test_what_is_no_record_is_refused(path, value):
    data = make_record().model_dump()
    *parents, last = (path,) if isinstance(path, str) else path
    place = data
    for name in parents:
        place = place[name]
    place[last] = value
    with pytest.raises(ValidationError):
        Record.model_validate(data)
    with pytest.raises(ValidationError):
        # As it would stand in a file: json writes NaN and Infinity, and reads them.
        Record.model_validate(json.loads(json.dumps(data)))


def test_a_label_names_what_is_not_usual():
    assert Cell(configuration=make_configuration(batch_size=128, threads=None)).label() == "rescapsnet 1, sample, recompute"
    cell = Cell(configuration=make_configuration("mocapsnet", 4, dataset="mnist", routing="sda", threads=2), replicate=1)
    assert cell.label() == "mocapsnet 4, mnist, batch 4, recompute, sda, reversible, float, threads 2 #2"


def test_a_label_of_a_case_names_its_settings():
    fields = {"dataset": "own", "batch_size": 8, "threads": None, "settings": {"length": 256, "prompt": "a, b"}}
    assert Cell(configuration=make_configuration("cases.py:gpt2", 4, **fields)).label() == (
        'cases.py:gpt2 4, batch 8, length 256, prompt "a, b"'
    )
    without = fields | {"batch_size": None, "settings": {"length": 256}}
    assert Cell(configuration=make_configuration("cases.py:gpt2", 0, **without)).label() == "cases.py:gpt2, length 256"


@pytest.mark.parametrize("name", OPTIONS)
def test_labels_of_cells_that_differ_in_one_option_differ(name):
    # `auto` is resolved before there is a cell.
    choices = [value for value in OPTIONS[name].choices if value != "auto"]
    values = choices or {str: ["one", "another"], int: [1, 2], float: [0.5, 0.25]}[type_of(name)]
    usual = make_configuration("mocapsnet", 4)
    assert len({Cell(configuration=usual.model_copy(update={name: value})).label() for value in values}) == len(values)


def test_records_do_not_change():
    record = make_record()
    with pytest.raises(ValidationError):
        record.status = "error"


def test_bytes_may_be_unknown_on_cuda_alone_and_only_together():
    known = make_record().memory.model_dump()
    names = ("retained_bytes", "peak_forward_bytes", "peak_backward_bytes", "peak_allocated_bytes")
    unknown = dict.fromkeys(names)
    assert MemoryFigures(**known | unknown | {"probe": "cuda"}).retained_bytes is None
    for changed in (unknown, {"probe": "cuda", "retained_bytes": None}, {"probe": "trace", **unknown}):
        with pytest.raises(ValidationError, match="are not known"):
            MemoryFigures(**known | changed)


# A key that changed would make `--resume` measure everything again: these are written down.
@pytest.mark.parametrize(
    ("cell", "key"),
    [
        (
            Cell(configuration=make_configuration("mocapsnet", 4, front=None, threads=2)),
            "9782bfb4dbf98327",
        ),  # version 1 had no front
        (Cell(configuration=make_configuration("module:name", 1, threads=2), replicate=1), "fe54b803011abbea"),
    ],
)
def test_keys_stay_what_they_were(cell, key):
    assert cell.key() == key


def test_a_key_ignores_fields_that_are_none():
    plain = Cell(configuration=make_configuration("module:name", 1))
    explicit = Cell(configuration=make_configuration("module:name", 1, kernel=None, capacity=None, gamma=None))
    assert plain.key() == explicit.key()


@pytest.mark.parametrize(
    "change",
    [{"blocks": 2}, {"batch_size": 5}, {"dataset": "mnist"}, {"kernel": "published"}, {"capacity": 2**30}, {"precision": "bf16"}],
    ids=str,
)
def test_every_field_is_in_the_key(change):
    one = make_configuration()
    assert Cell(configuration=one).key() != Cell(configuration=one.model_copy(update=change)).key()


def test_replicates_have_keys_of_their_own():
    assert Cell(configuration=make_configuration()).key() != Cell(configuration=make_configuration(), replicate=1).key()


def test_a_line_is_what_all_depths_share():
    assert make_configuration(blocks=1).series() == make_configuration(blocks=8).series()
    assert make_configuration(batch_size=4).series() != make_configuration(batch_size=8).series()


CASE = Configuration(
    model="module:gpt2", blocks=4, dataset="own", batch_size=2, device="cpu", threads=1, settings={"length": 128, "tied": True}
)


@pytest.mark.parametrize(
    ("configuration", "axis", "position"),
    [
        (make_configuration(blocks=3), "blocks", 3.0),
        (make_configuration(batch_size=4), "batch_size", 4.0),
        (make_configuration(capsules=16), "capsules", 16.0),
        (make_configuration(dataset="cifar100"), "classes", 100.0),
        (make_configuration(dataset="cifar10"), "image_shape", 1024.0),
        (make_configuration(image_shape="3x64x32"), "image_shape", 2048.0),
        (make_configuration(classes=196), "classes", 196.0),
        (make_configuration(), "length", None),
        (make_configuration("module:name"), "capsules", None),
        (CASE, "length", 128.0),
        (CASE, "tied", None),
        (CASE, "blocks", 4.0),
        (CASE, "image_shape", None),
        (CASE.model_copy(update={"batch_size": None}), "batch_size", None),
        (CASE.model_copy(update={"settings": (("capsules", 7),)}), "capsules", 7.0),
    ],
)
def test_a_cell_lies_somewhere_on_each_axis_that_its_network_has(configuration, axis, position):
    assert configuration.position(axis) == position


@pytest.mark.parametrize(
    ("axis", "change"),
    [("blocks", {"blocks": 9}), ("batch_size", {"batch_size": 9}), ("length", {"settings": (("length", 9), ("tied", True))})],
)
def test_a_series_is_everything_but_its_axis(axis, change):
    moved = CASE.model_copy(update=change)
    assert moved.series(axis) == CASE.series(axis)
    for other in {"blocks", "batch_size", "length", "width"} - {axis}:
        assert moved.series(other) != CASE.series(other)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"schema_version": SCHEMA_VERSION}, None),
        ({"schema_version": SCHEMA_VERSION + 1}, SCHEMA_VERSION + 1),
        ({"schema_version": "new"}, None),
        ({}, None),
        ([SCHEMA_VERSION + 1], None),
        (None, None),
    ],
)
def test_a_newer_version_is_known_as_such(data, expected):
    assert newer_than_known(data) == expected
