"""Functions of scripts and notebooks: sent to the processes that measure them, named in records, and resumed."""

import json
import os
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path

import pytest

import capsbench
from capsbench.cases.carried import carried, imported_name
from capsbench.cases.factories import name_of
from capsbench.cases.fingerprint import fingerprint_of_function
from capsbench.errors import ConfigurationError
from capsbench.report import Report
from helpers import ROOT
from helpers import networks_of_others as others

CELL = """
import torch
from torch import nn
import capsbench

WIDTH = 8

class Net(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(blocks))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x).sigmoid()
        return x

def summed(out):
    return out.sum()

def tiny(blocks=1, batch_size=2):
    return capsbench.Case(Net(blocks), torch.ones(batch_size, WIDTH), loss=summed)
"""

SCRIPT = (
    CELL
    + """
import sys
report = capsbench.run(tiny, depths="1,2", only="memory", device="cpu", out="mine", resume="--resume" in sys.argv)
print(len(report.records))
"""
)


def cells(*texts: str) -> dict[str, object]:
    """The namespace after cells of a notebook, which are in no file."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, text in enumerate(texts):
        exec(compile(text, f"<cell {number}>", "exec"), namespace)
    return namespace


def run_script(folder: Path, text: str, *arguments: str) -> str:
    (folder / "script.py").write_text(text, encoding="utf-8")
    # The number of threads is a part of the machine's description, and forks have one.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "script.py", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


@pytest.fixture
def run_fork(server, tmp_path) -> Callable[..., str]:
    """Run a script as a fork, whose processes are forks, too."""

    def run(text: str, *arguments: str) -> str:
        (tmp_path / "script.py").write_text(text, encoding="utf-8")
        ended = server(tmp_path, "script.py", *arguments, program="python")
        assert ended.status == 0, ended.stderr
        return ended.stdout.strip()

    return run


@pytest.mark.slow
def test_a_script_measures_its_own_function_and_resumes(tmp_path, run_fork):
    assert run_script(tmp_path, SCRIPT) == "2"
    records = Report(tmp_path / "mine").records
    assert [(one.status, one.cell.configuration.model, one.cell.configuration.blocks) for one in records] == [
        ("ok", "tiny", 1), ("ok", "tiny", 2)
    ]  # fmt: skip
    assert len({one.cell.source for one in records}) == 1
    assert records[0].cell.source
    # Another line and a comment change nothing; another width does.
    assert run_fork("# the same\n\n" + SCRIPT, "--resume") == "2"
    assert run_fork(SCRIPT.replace("WIDTH = 8", "WIDTH = 16"), "--resume") == "4"


@pytest.mark.slow
def test_a_script_in_another_folder_measures_a_function_of_a_module_next_to_it(tmp_path):
    experiments = tmp_path / "experiments"
    experiments.mkdir()
    (experiments / "own_nets.py").write_text(CELL, encoding="utf-8")
    calls = 'capsbench.run([own_nets.tiny, here], depths=1, only="memory", device="cpu", out="mine")'
    script = f"import capsbench\nimport own_nets\n\ndef here(blocks=1):\n    return own_nets.tiny(blocks)\n\n{calls}\n"
    (experiments / "script.py").write_text(script, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "experiments/script.py"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    found = {one.cell.configuration.model: (one.status, one.message) for one in Report(tmp_path / "mine").records}
    assert found == {"own_nets:tiny": ("ok", None), "here": ("ok", None)}


@pytest.mark.slow
def test_a_cell_measures_its_own_function_and_resumes(tmp_path):
    tiny = cells(CELL)["tiny"]
    report = capsbench.run([tiny], depths="1,2", only="memory", device="cpu", out=tmp_path / "mine")
    assert [record.status for record in report.records] == ["ok", "ok"]
    state = report.records[1].memory.state_bytes
    assert state == 2 * (8 * 8 + 8) * 4
    again = capsbench.run([cells(CELL)["tiny"]], depths="1-3", only="memory", device="cpu", out=tmp_path / "mine", resume=True)
    assert [record.cell.configuration.blocks for record in again.records] == [1, 2, 3]
    changed = cells(CELL.replace("sigmoid", "exp"))["tiny"]
    capsbench.run([changed], depths=1, only="memory", device="cpu", out=tmp_path / "mine", resume=True)
    assert len({record.cell.source for record in Report(tmp_path / "mine").records}) == 2
    plan = json.loads((tmp_path / "mine" / "plan.json").read_text(encoding="utf-8"))
    assert "tiny" in plan["command"]


@pytest.mark.slow
def test_a_cell_predicts_its_own_function():
    report = capsbench.predict([cells(CELL)["tiny"], others.lora], depths="1,2", device="cpu")
    assert [(one.status, one.cell.configuration.model.rpartition(":")[2]) for one in report.records] == [
        ("ok", "tiny"), ("ok", "lora"), ("ok", "tiny"), ("ok", "lora")
    ]  # fmt: skip


def inside():
    """A function inside another one."""

    def nested(blocks=1):
        return others.lora(blocks)

    return nested


def test_names():
    assert imported_name(others.lora) == f"{others.__name__}:lora"
    assert imported_name(inside()) is None
    assert name_of(inside()) == "nested"
    found = carried("nested")
    assert found is not None
    assert isinstance(found.function(), capsbench.Case)
    assert found.fingerprint == fingerprint_of_function(inside())
    assert carried("another") is None
    assert carried("../nested") is None


def test_a_function_of_a_module_that_no_file_holds():
    module = types.ModuleType("made_here")
    sys.modules["made_here"] = module
    try:
        exec("def here(blocks=1):\n    return blocks + ONE\nONE = 1", vars(module))
        assert name_of(module.here) == "here"
    finally:
        del sys.modules["made_here"]
    assert carried("here").function(2) == 3


CHANGES = {
    "a number": ("WIDTH = 8", "WIDTH = 9"),
    "a method": ("x + layer(x)", "x - layer(x)"),
    "a constant": ("batch_size=2", "batch_size=3"),
    "a function that is named": ("return out.sum()", "return out.mean()"),
    "a base": ("class Net(nn.Module)", "class Net(nn.Identity)"),
}


@pytest.mark.parametrize(("before", "after"), CHANGES.values(), ids=CHANGES)
def test_a_change_of_the_code_changes_the_fingerprint(before, after):
    assert before in CELL
    same, other = (
        fingerprint_of_function(cells(text)["tiny"]) for text in ("\n\n# a comment\n" + CELL, CELL.replace(before, after))
    )
    assert same == fingerprint_of_function(cells(CELL)["tiny"])
    assert same.digest != other.digest


def test_a_fingerprint_is_the_same_in_another_process(tmp_path):
    text = CELL + "\nfrom capsbench.cases.fingerprint import fingerprint_of_function as found\nprint(found(tiny).digest)\n"
    known = {"x": {"one", "two", "three"}}
    text = text.replace("WIDTH = 8", f"WIDTH = 8\nKNOWN = {known!r}").replace(
        "return out.sum()", "return out.sum() if KNOWN else None"
    )
    assert run_script(tmp_path, text) == run_script(tmp_path, text) != ""


def test_a_file_that_a_function_imports_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    digests = []
    for width in (8, 9):
        (tmp_path / "its_own.py").write_text(f"WIDTH = {width}\n", encoding="utf-8")
        sys.modules.pop("its_own", None)
        found = fingerprint_of_function(cells("import its_own\ndef tiny():\n    return its_own.WIDTH")["tiny"])
        assert list(found.files) == [str(tmp_path / "its_own.py")]
        assert found.is_current()
        digests.append(found.digest)
    assert digests[0] != digests[1]
    sys.modules.pop("its_own")


LOCK = threading.Lock()


def locks():
    def locked(blocks=1, lock=LOCK):
        return lock

    return locked


def named_as_another():
    def mocapsnet(blocks=1):
        return None

    return mocapsnet


WRONG = {
    "holds a lock": ([locks()], "locked cannot be sent to the processes that measure it"),
    "has no name": ([lambda: None], "`models` has a lambda, which has no name"),
    "has the name of a network": ([named_as_another()], "mocapsnet, which is the name of another network"),
    "has the name of another": ([inside(), inside()], "two networks of the name nested"),
}


@pytest.mark.parametrize(("models", "words"), WRONG.values(), ids=WRONG)
def test_wrong_functions_are_refused_in_two_lines(models, words):
    with pytest.raises(ConfigurationError) as raised:
        capsbench.run(models, only="memory")
    assert words in raised.value.what
    assert len(str(raised.value).splitlines()) == 2


def test_what_cannot_be_read_is_said(tmp_path, monkeypatch):
    (tmp_path / "broken.pickle").write_bytes(b"nothing")
    monkeypatch.setenv("CAPSBENCH_FUNCTIONS", str(tmp_path))
    with pytest.raises(ConfigurationError, match="'broken' cannot be read in another process"):
        carried("broken")
