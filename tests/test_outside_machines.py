"""Machines, stores and locks as others have them: edited sources, foreign cores, file systems without locks, other sweeps."""

import json
import os
import sys
from pathlib import Path

import pytest
from conftest import make_record

from capsbench import load, slopes
from capsbench.analysis.compare import compare
from capsbench.analysis.summary import summarize
from capsbench.records import Plan
from capsbench.report.labels import Names
from capsbench.store import Store
from capsbench.sweep.plan import Sweep, expand
from capsbench.sweep.runner import remaining
from capsbench.sweep.session import begin, choose_folder

# Edited sources.

NETWORK = """
from torch import nn
from {helper} import width

def make(in_shape, num_classes, blocks):
    body = [nn.Sequential(nn.Linear(width(), width()), nn.ReLU()) for _ in range(blocks)]
    return nn.Sequential(nn.AvgPool2d(7), nn.Flatten(), nn.Linear(16, width()), *body, nn.Linear(width(), num_classes))
"""
HELPER = "def width():\n    return {}\n"


@pytest.fixture
def network(tmp_path, own_model):
    """A network whose width is in a module beside it; its name, and a function that edits that module."""
    helper = f"own_helper_{os.path.basename(tmp_path)}".replace("-", "_")

    def edit(width):
        (tmp_path / f"{helper}.py").write_text(HELPER.format(width), encoding="utf-8")

    edit(8)
    return own_model(NETWORK.format(helper=helper)), edit


def cells_of(model, *depths, **fields):
    return expand(Sweep(models=(model,), depths=depths, device="cpu", batch_size=4, threads=1, **fields))


def keys(cells):
    return [cell.key() for cell in cells]


def test_a_key_knows_the_modules_that_a_network_imports(network):
    name, edit = network
    before = keys(cells_of(name, 1, 2))
    assert keys(cells_of(name, 1, 2)) == before
    edit(16)
    after = keys(cells_of(name, 1, 2))
    assert not set(before) & set(after)
    edit(8)
    assert keys(cells_of(name, 1, 2)) == before


@pytest.mark.parametrize(
    "first_lines",
    [
        "from parts import block",
        "import parts.block",
        "def late():\n    from parts.block import WIDTH",
        "import importlib\nfound = importlib.import_module('parts.' + 'block').Block",
        "import other",
    ],
    ids=["from a package", "a submodule", "inside a function", "by a name made at run time", "through another module"],
)
def test_modules_are_found_however_they_are_imported(tmp_path, own_model, first_lines, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "__init__.py").write_text("")
    (tmp_path / "other.py").write_text("from parts.block import WIDTH\n")
    block = tmp_path / "parts" / "block.py"
    block.write_text("WIDTH = 8\nclass Block: pass\n")
    name = own_model(f"{first_lines}\ndef make(in_shape, num_classes, blocks): pass\n")
    try:
        before = keys(cells_of(name, 1))
        block.write_text("WIDTH = 16\nclass Block: pass\n")
        assert keys(cells_of(name, 1)) != before
    finally:
        for module in [module for module in sys.modules if module.split(".")[0] in ("parts", "other")]:
            del sys.modules[module]


def test_a_relative_import_is_followed(tmp_path, monkeypatch):
    package = tmp_path / "relative_package"
    (package / "deep").mkdir(parents=True)
    for folder in (package, package / "deep"):
        (folder / "__init__.py").write_text("")
    (package / "sizes.py").write_text("WIDTH = 8\n")
    (package / "deep" / "net.py").write_text("from ..sizes import WIDTH\ndef make(in_shape, num_classes, blocks): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = keys(cells_of("relative_package.deep.net:make", 1))
    (package / "sizes.py").write_text("WIDTH = 16\n")
    assert keys(cells_of("relative_package.deep.net:make", 1)) != before


def test_modules_beside_a_network_that_it_does_not_import_change_nothing(tmp_path, network):
    name, _ = network
    before = keys(cells_of(name, 1))
    (tmp_path / "stranger.py").write_text("WIDTH = 1\n")
    assert keys(cells_of(name, 1)) == before


def test_networks_of_the_package_have_the_keys_that_they_had():
    (cell,) = cells_of("rescapsnet", 1)
    assert cell.source is None
    assert "source" not in json.dumps(cell.model_dump(mode="json", exclude_none=True))


def record_of(cell, kib):
    """A record whose retained bytes are so many KiB per block."""
    it = cell.configuration
    record = make_record(it.model, it.blocks)
    memory = record.memory.model_copy(update={"retained_bytes": 1024 * kib * it.blocks})
    return record.model_copy(update={"cell": cell, "memory": memory})


@pytest.fixture
def edited(tmp_path, network):
    """A report that was begun with one source and gone on with after an edit: 4 KiB per block before it, 2 after it."""
    name, edit = network
    store = Store(tmp_path / "report")
    store.folder.mkdir()
    plan = begin(store, Plan(command="", cells=cells_of(name, 1, 2)), resume=False)
    for cell in plan.cells:
        store.append(record_of(cell, 4))
    edit(16)
    plan = begin(store, Plan(command="", cells=cells_of(name, 1, 2, 3)), resume=True)
    left = remaining(plan, store)
    for cell in left:
        store.append(record_of(cell, 2))
    return store, name, left


def test_an_edited_network_is_measured_again(edited):
    store, _, left = edited
    assert [cell.configuration.blocks for cell in left] == [1, 2, 3]
    assert len(store.read().records) == 5, "what was measured before stays"
    assert [cell.configuration.blocks for cell in store.read_plan().cells] == [1, 2, 3]


def test_no_line_mixes_two_sources(edited):
    store, _, _ = edited
    table = slopes(load(store.folder))
    found = table[table["metric"] == "retained"].sort_values("points")
    assert (found["slope"] / 1024).tolist() == pytest.approx([4, 2])
    assert found["points"].tolist() == [2, 3]
    lines = found.to_dict("records")
    names = Names(lines)
    assert len({names.of(line) for line in lines}) == 2


def test_a_gate_looks_at_the_latest_source_alone(edited):
    store, name, _ = edited
    summary, notes = summarize([(store.folder, record) for record in store.read().records], {})
    (line,) = summary.lines
    assert [cell.bytes["retained"] for cell in line.cells] == [2048, 4096, 6144]
    assert len(notes) == 1
    assert "2 records" in notes[0]
    # And a network that was edited is still held against what it was.
    before, _ = summarize([(Path("a"), record) for record in store.read().records[:2]], {})
    compared = compare(before, summary)
    slope = next(it for it in compared.comparisons if it.scope == "slope" and it.quantity == "retained")
    assert (slope.before, slope.after, slope.verdict) == (4096, 2048, "better")


def test_an_older_report_never_lends_cells_of_another_source(edited, tmp_path):
    store, _, _ = edited
    old = [record for record in store.read().records[:2] if record.cell.configuration.blocks == 1]
    new = [record for record in store.read().records[2:] if record.cell.configuration.blocks > 1]
    new = [record.model_copy(update={"started_at": "2031-01-01T00:00:00+00:00"}) for record in new]
    summary, notes = summarize([(Path("old"), record) for record in old] + [(Path("new"), record) for record in new], {})
    (line,) = summary.lines
    assert [cell.blocks for cell in line.cells] == [2, 3]
    assert any("report old" in note for note in notes)


def test_a_report_is_found_again_after_an_edit(tmp_path, network, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, edit = network
    store = Store(Path("reports/one"))
    store.folder.mkdir(parents=True)
    begin(store, Plan(command="", cells=cells_of(name, 1)), resume=False)
    edit(16)
    assert choose_folder(Plan(command="", cells=cells_of(name, 1)), None, resume=True, now=None) == store.folder


def test_records_of_a_user_s_network_without_a_source_are_read_and_not_taken(tmp_path, network):
    name, _ = network
    store = Store(tmp_path / "report")
    store.folder.mkdir()
    (cell,) = cells_of(name, 1)
    old = record_of(cell.model_copy(update={"source": None}), 4)
    data = json.loads(old.model_dump_json()) | {"schema_version": 3}
    del data["cell"]["source"]
    store.path.write_text(json.dumps(data) + "\n")
    assert len(store.read().records) == 1
    assert remaining(Plan(command="", cells=[cell]), store) == [cell]


def test_an_edit_during_a_sweep_is_no_record_of_the_first_source(network):
    from capsbench.measure.cell import run_pass
    from capsbench.measure.worker import Request

    name, edit = network
    (cell,) = cells_of(name, 1)
    edit(16)
    reply = run_pass(Request(configuration=cell.configuration, what="memory", samples=5, source=cell.source), 300)
    assert reply.status == "error"
    assert "changed" in reply.message


def test_resuming_after_an_edit_from_the_command_line(capsbench, network):
    name, edit = network
    sweep = ["run", "--models", name, "--device", "cpu:predicted", "--batch-size", "4", "--out", "report"]
    assert capsbench(*sweep, "--depth", "1,2").status == 0
    edit(32)
    resumed = capsbench(*sweep, "--depth", "1,2,3", "--resume")
    assert resumed.status == 0
    assert "the source of" in resumed.stderr
    assert "3 cells to measure" in resumed.stderr
    alone = capsbench(*sweep[:-1], "alone", "--depth", "1,2,3")
    assert alone.status == 0
    table = slopes(load("report"))
    found = table[table["metric"] == "retained"].sort_values("points")
    wanted = slopes(load("alone"))
    assert len(found) == 2
    assert found["slope"].iloc[1] == wanted[wanted["metric"] == "retained"]["slope"].iloc[0]
    assert found["slope"].iloc[0] < found["slope"].iloc[1]
