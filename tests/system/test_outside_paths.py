"""One meaning of a path, wherever it is given and wherever a user's module takes the process."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pandas as pd
import pytest
import torch

import capsbench as package
from capsbench.cli import timeline
from capsbench.cli.command import Command
from capsbench.cli.group import cli
from capsbench.data.datasets import data_directory
from capsbench.data.images import read_images
from capsbench.errors import ConfigurationError, StoreError
from capsbench.inference import Classifier
from capsbench.measure.messages import Reply
from capsbench.report import Report, summary_in
from capsbench.system.locks import holding
from capsbench.system.paths import absolute, expanded, new_folder, starting_here, typed, with_typed_paths
from capsbench.training import load_checkpoint, save_checkpoint
from helpers.commands import process_environment, subcommands
from helpers.made import make_configuration, make_record
from helpers.seeded import seeded_run, write_report

MOVERS = ("import", "factory", "forward")
MOVER = """
import os, tempfile
from torch import nn
{at_import}
class Net(nn.Sequential):
    def forward(self, x):
        {in_forward}
        return super().forward(x)

def make(in_shape, num_classes, blocks):
    {in_factory}
    blocks = [nn.Linear(16, 16) for _ in range(blocks)]
    return Net(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(49, 16), *blocks, nn.Linear(16, num_classes))
"""
MOVE = "os.chdir(tempfile.mkdtemp())"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with a report of the same name as one that a command writes."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# The home folder.


def test_a_home_folder_means_the_same_in_every_option(forked, tmp_path, home):
    here = tmp_path / "here"
    here.mkdir()
    write_report(home / "good", seeded_run())
    (home / "data").mkdir()
    for given in (
        "plot ~/good",
        "show ~/good",
        "report ~/good --out=~/page.html",
        "check ~/good --baseline=~/base.json --update",
        "check ~/good --baseline ~/base.json --last ~/good --junit=~/check.xml --markdown=~/check.md --badge=~/check.svg",
        "compare ~/good ~/base.json",
        "run --models helpers.tiny:make_plain --depth 1,2 --batch-size 2 --device cpu:predicted --out=~/x --data-dir=~/data",
        "timeline --model helpers.tiny:make_plain --batch-size 2 --device cpu:predicted --out=~/t",
        "train --model helpers.tiny:make --batch-size 64 --epochs 1 --device cpu --out=~/trained",
        "classify ~/trained ~/trained/../picture.png",
    ):
        if given.startswith("classify"):
            from PIL import Image

            Image.new("L", (28, 28), 9).save(home / "picture.png")
        done = forked(here, given, HOME=str(home))
        assert done.status == 0, (given, done)
    assert names(here) == []
    written = {"good", "data", "page.html", "base.json", "check.xml", "check.md", "check.svg", "x", "t", "trained", "picture.png"}
    assert set(names(home)) - {".cache", ".config", ".local"} == written
    assert {"plan.json", "records.jsonl", "slopes.csv", "figure3.svg", "index.html"} <= set(names(home / "x"))


@pytest.mark.slow
def test_a_home_folder_means_the_same_in_python(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_report(home / "good", seeded_run())
    assert len(package.load("~/good")) == 8
    assert len(Report(Path("~/good")).records) == 8
    assert len(summary_in("~/good")[0].lines) == 2
    paths = Report.of(make_record(blocks=blocks) for blocks in (1, 2)).write("~/good")
    assert {path.parent for path in paths} == {home / "good"}
    assert len(pd.read_csv(home / "good" / "slopes.csv")) > 0
    monkeypatch.setenv("CAPSBENCH_DATA", "~/data")
    assert data_directory() == home / "data"
    assert names(tmp_path) == ["home"]


def test_checkpoints_and_pictures_in_the_home_folder(home, tmp_path, monkeypatch):
    from PIL import Image

    from capsbench.catalog import spec_of
    from capsbench.training.checkpoint import build_network
    from helpers.trained import trained

    monkeypatch.chdir(tmp_path)
    settings = trained("capsnet")
    save_checkpoint("~/net.pt", settings, build_network(settings).state_dict())
    assert load_checkpoint("~/net.pt").settings == settings
    assert Classifier("~/net.pt").paths == (home / "net.pt",)
    Image.new("L", (28, 28), 7).save(home / "one.png")
    assert torch.equal(read_images("~/one.png", spec_of("sample")), torch.full((1, 1, 28, 28), 7.0))
    assert names(tmp_path) == ["home"]


def test_what_is_called_like_a_home_folder_and_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expanded("~nobody-has-this-name/x") == Path("~nobody-has-this-name/x")
    assert expanded("x/~/y") == Path("x/~/y")
    assert expanded("./~") == Path("~")
    monkeypatch.setattr(os.path, "expanduser", lambda path: os.fspath(path))
    with pytest.raises(ConfigurationError, match=r"'~/x' begins with ~, and .*no home folder\nset HOME"):
        expanded("~/x")


# Modules that change folder.


def mover(folder, where):
    """Write a network whose module changes the working directory."""
    moves = {f"{'at' if name == 'import' else 'in'}_{name}": MOVE if name == where else "pass" for name in MOVERS}
    (folder / "mover.py").write_text(MOVER.format(**moves))


@pytest.mark.parametrize("where", MOVERS)
def test_a_module_that_changes_folder_takes_nothing_with_it(forked, tmp_path, where):
    mover(tmp_path, where)
    sweep = "run --models mover:make --batch-size 2 --device cpu:predicted --depth"
    commands = {
        f"{sweep} 1,2 --out a": "a/index.html",
        "train --model mover:make --batch-size 64 --epochs 1 --device cpu": "runs",
    }
    if where == "import":
        commands |= {
            f"{sweep} 1,2,3 --out a --resume": "a/slopes.csv",
            f"{sweep} 1": "reports",
            "timeline --model mover:make --batch-size 2 --device cpu:predicted --out c": "c/timeline.json",
            "train --model mover:make --batch-size 64 --epochs 1 --device cpu --out d": "d/result.json",
            # Workers begin where the command was typed, and find the module there.
            "run --models mover:make --depth 1 --batch-size 2 --device cpu --time-budget 0.01 --out e": "e/index.html",
        }
    for typed_, written in commands.items():
        done = forked(tmp_path, typed_)
        assert done.status == 0, (typed_, done)
        assert (tmp_path / written).exists(), typed_
        assert str(tmp_path) not in done.stdout + done.stderr  # paths are shown as they were typed
    assert len(Report(tmp_path / "a").records) == (3 if where == "import" else 2)
    assert set(names(tmp_path)) <= {"mover.py", "a", "c", "d", "e", "reports", "runs", "__pycache__"}


# Names that nobody gave.


def test_sweeps_of_one_second_have_folders_of_their_own(forked, tmp_path):
    setup = (
        "import datetime as d\n"
        "class Still(d.datetime):\n"
        "    @classmethod\n"
        "    def now(cls, tz=None): return cls(2026, 1, 2, 3, 4, 5, tzinfo=tz)\n"
        "d.datetime = Still\n"
        "import capsbench.cli.sweeps, capsbench.cli.train, capsbench.cli.timeline\n"
        "for it in (capsbench.cli.sweeps, capsbench.cli.train, capsbench.cli.timeline): it.datetime = Still\n"
    )
    for given in (
        "run --models helpers.tiny:make_plain --depth 1 --batch-size 2 --device cpu:predicted",
        "timeline --model helpers.tiny:make_plain --batch-size 2 --device cpu:predicted",
        "train --model helpers.tiny:make --batch-size 64 --epochs 1 --device cpu",
    ):
        for _ in range(3):
            done = forked(tmp_path, given, setup=setup, forks=True)
            assert done.status == 0, (given, done)
    name = "2026-01-02-030405"
    expected = {f"{before}{name}{after}" for before in ("", "timeline-") for after in ("", "-2", "-3")}
    assert set(names(tmp_path / "reports")) == expected
    assert len(names(tmp_path / "runs")) == 3
    assert all((tmp_path / "runs" / one / "result.json").exists() for one in names(tmp_path / "runs"))
    # What was named is refused as ever, and what is only announced makes nothing.
    assert forked(tmp_path, f"run --models capsnet --device cpu:predicted --out reports/{name}").status == 2
    assert forked(tmp_path, "run --models capsnet --depth 1 --device cpu:predicted --dry-run", setup=setup).status == 0
    assert len(names(tmp_path / "reports")) == 6


def test_a_new_folder_is_nobody_else_s(tmp_path):
    found = [new_folder(tmp_path / "deep" / "name") for _ in range(3)]
    assert [path.name for path in found] == ["name", "name-2", "name-3"]
    (tmp_path / "file").write_text("")
    assert new_folder(tmp_path / "file").name == "file-2"
    (tmp_path / "dangling").symlink_to("nowhere")
    for parent in ("file", "dangling"):
        with pytest.raises(StoreError, match=r"cannot be written: .*\nchoose an `out`"):
            new_folder(tmp_path / parent / "name")


def test_what_came_to_nothing_leaves_no_folder(forked, tmp_path):
    for given in (
        "train --model helpers.tiny:make --batch-size 999999 --device cpu",
        "timeline --model helpers.tiny:make_explosive --batch-size 999999 --device cpu",
        "timeline --model helpers.tiny:make_none --batch-size 2 --device cpu:predicted",
    ):
        assert forked(tmp_path, given).status == 2, given
    assert [path for path in tmp_path.rglob("*") if path.name != "reports"] == []


# Words.


def test_paths_are_shown_as_they_were_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with starting_here():
        assert absolute("reports/mine") == tmp_path / "reports/mine"
        assert with_typed_paths(f"wrote {tmp_path}/reports/mine/x, {tmp_path}/y") == "wrote reports/mine/x, y"
        assert with_typed_paths(f"/other{tmp_path}/x") == f"/other{tmp_path}/x"
        assert absolute(tmp_path / "reports") == tmp_path / "reports"
        assert typed(tmp_path / "full") == tmp_path / "full"
        assert with_typed_paths(f"{tmp_path}/full/x {tmp_path}/reports") == f"{tmp_path}/full/x reports"
        monkeypatch.chdir("/")
        assert absolute("reports") == tmp_path / "reports"
    assert absolute("reports") == Path("/reports")
    assert with_typed_paths(f"{tmp_path}/y") == f"{tmp_path}/y"


def test_every_command_has_paths_that_stay():
    def leaves(group):
        for one in subcommands(group).values():
            yield from leaves(one) if isinstance(one, click.Group) else [one]

    assert all(isinstance(one, Command) for one in leaves(cli))


def test_what_others_are_given_begins_where_the_command_was_typed(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("capsbench.measure.cell.run_pass", lambda request, *_: asked.append(request) or Reply(status="error"))
    monkeypatch.chdir(tmp_path)
    with starting_here():
        monkeypatch.chdir("/")
        timeline._look(make_configuration(), None, 60, Path("out/snapshot"), Path("out"))
        assert asked[0].snapshot == tmp_path / "out" / "snapshot"
        with holding(tmp_path / "lock", Path("out")):
            assert json.loads((tmp_path / "lock.holder").read_text())["folder"] == str(tmp_path / "out")


def test_a_lock_is_held_for_a_folder_that_nobody_can_name(tmp_path, monkeypatch):
    monkeypatch.setattr("capsbench.system.paths._here", lambda: None)
    with holding(tmp_path / "lock", Path("out")):
        assert (tmp_path / "lock").exists()


def test_a_folder_that_is_gone(tmp_path):
    script = f"mkdir gone; cd gone; rmdir ../gone; {shlex.quote(sys.executable)} -P -m capsbench.cli slopes reports"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=process_environment(tmp_path), capture_output=True, text=True,
        timeout=100, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "error: the folder that this process is in does not exist any more",
        "go to another folder",
    ]
