"""A machine that does not answer questions about itself ends no measurement."""

import importlib.metadata
import json
import os
import platform
import pwd
import sys
from pathlib import Path
from types import SimpleNamespace

import platformdirs
import psutil
import pytest
import torch

import capsbench.measure.watch as watching
from capsbench.data.datasets import data_directory
from capsbench.measure.environment import describe, key_of
from capsbench.measure.facts import Facts, asked
from capsbench.report import Report
from capsbench.routing import compiled
from capsbench.system import native
from capsbench.system.paths import user_cache, user_data
from helpers.fakes import fake_nvml

SOURCES = [
    (psutil, "cpu_freq"), (psutil, "cpu_count"), (psutil, "virtual_memory"), (os, "getloadavg"), (importlib.metadata, "version"),
    (platform, "release"), (platform, "python_version"), (platform, "processor"), (torch.backends.cpu, "get_cpu_capability"),
    (torch.cuda, "is_available"), (Path, "read_text"),
]  # fmt: skip
ERRORS = [
    OSError(2, "no"),
    RuntimeError("no"),
    KeyError("no"),
    NotImplementedError(),
    UnicodeDecodeError("utf-8", b"x", 0, 1, "no"),
]

SILENT = """
# A machine that answers no question: no clock, no load, no counts, no metadata, no user.
import importlib.metadata, os, platform, pwd, psutil

def no(*given, **more):
    raise RuntimeError("no answer")

for home, names in (
    (psutil, "cpu_freq cpu_count virtual_memory cpu_times"), (os, "getloadavg"), (platform, "release processor"),
):
    for name in names.split():
        setattr(home, name, no)

version = importlib.metadata.version
importlib.metadata.version = lambda name: no() if name == "capsbench" else version(name)

def nobody(*given):
    raise KeyError("getpwuid(): uid not found")

pwd.getpwuid = nobody
for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
    os.environ.pop(name, None)
"""


@pytest.fixture
def nobody(monkeypatch):
    """A user without a home folder, as in many a container."""

    def raises(*_):
        raise KeyError("getpwuid(): uid not found: 12345")

    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", raises)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("home", "name"), SOURCES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_source_that_raises_is_an_absent_fact(monkeypatch, home, name, error):
    usual = describe()

    def raises(*_, **__):
        raise error

    monkeypatch.setattr(home, name, raises)
    found = describe()
    assert json.dumps(found)
    assert found.keys() - {"notes"} == usual.keys()
    assert key_of(found)
    # What is left is as before, and what is absent is named with its kind of error.
    for note in found.get("notes", []):
        assert note.endswith(f" is not known ({type(error).__name__})")
    absent = [key for key, value in found["cpu"].items() if value is None and usual["cpu"][key] is not None]
    for key in absent:
        assert f"{key} is not known ({type(error).__name__})" in found["notes"]


def test_what_changes_by_the_minute_and_fails_is_no_other_machine(monkeypatch):
    usual = describe()

    def raises():
        raise OSError

    monkeypatch.setattr(os, "getloadavg", raises)
    found = describe()
    assert found["cpu"]["load_1_min"] is None
    assert found["notes"] == ["load_1_min is not known (OSError)"]
    assert key_of(found) == key_of(usual)
    assert "notes" not in usual


def test_facts():
    facts = Facts()
    assert facts.each({"one": lambda: 1, "two": lambda: 1 // 0}) == {"one": 1, "two": None}
    assert facts.notes == ["two is not known (ZeroDivisionError)"]
    assert (asked(lambda: 3), asked(lambda: {}["x"])) == (3, None)
    with pytest.raises(KeyboardInterrupt):
        asked(lambda: (_ for _ in ()).throw(KeyboardInterrupt))


def test_who_takes_the_cores_may_stay_unknown(monkeypatch):
    def raises(*_, **__):
        raise RuntimeError("no answer")

    for name in ("cpu_freq", "cpu_times", "cpu_count"):
        monkeypatch.setattr(psutil, name, raises)
    watch = watching.Watch(torch.device("cpu"))
    watch.look()
    monkeypatch.setattr(watching, "_SHORTEST", 0.0)
    seen = watch.seen()
    assert (seen.others, list(seen.clocks), seen.gpu_throttled) == (None, [], False)


@pytest.mark.parametrize(
    "typed",
    [
        "env", "env --json", "list", "--version",
        "train --model helpers.tiny:make --batch-size 64 --epochs 1 --device cpu --out trained",
        "run --models helpers.tiny:make_plain --depth 1,2 --batch-size 2 --device cpu:predicted --out predicted",
        "predict --models helpers.tiny:make_plain --depth 1 --batch-size 2 --device cpu",
    ],
)  # fmt: skip
def test_commands_on_a_machine_that_answers_nothing(forked, tmp_path, typed):
    done = forked(tmp_path, typed, setup=SILENT, forks=True)
    assert done.status == 0, done
    assert "Traceback" not in done.stderr
    if typed.startswith("train"):
        environment = json.loads((tmp_path / "trained" / "result.json").read_text())["environment"]
        assert "megahertz is not known (RuntimeError)" in environment["notes"]
        assert environment["cpu"]["load_1_min"] is None


def test_a_sweep_on_a_machine_that_answers_nothing(forked, tmp_path):
    typed = "run --models helpers.tiny:make_plain --depth 1 --batch-size 2 --device cpu --time-budget 0.01 --out mine"
    done = forked(tmp_path, typed, setup=SILENT, forks=True, CAPSBENCH_NO_COMPILER="1")
    assert done.status == 0, done.stderr
    (record,) = Report(tmp_path / "mine").records
    assert record.status == "ok"
    assert record.time is not None
    (environment,) = Report(tmp_path / "mine").environments.values()
    assert environment["cpu"]["megahertz"] is None


def test_nobody_has_a_home_folder_and_all_goes_on(nobody, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("CAPSBENCH_DATA", raising=False)
    assert user_cache() is None
    assert user_data() == data_directory() == tmp_path / f"capsbench-{os.getuid()}"
    # Kernels are compiled for this process alone.
    native.built.cache_clear()
    found = compiled.library()
    native.built.cache_clear()
    assert found.library is not None, found.reason
    assert list(tmp_path.iterdir()) == []


def test_a_home_folder_that_platformdirs_makes_up_is_none(monkeypatch):
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda *_, **__: "~/.cache/capsbench")
    assert user_cache() is None


@pytest.mark.parametrize("nvml", ["not installed", "no driver"])
def test_a_gpu_of_which_nvml_says_nothing_is_described(monkeypatch, nvml):
    """The clock and driver of a slice of a GPU, or in a container, may be unknown; the rest is there."""
    properties = SimpleNamespace(name="some GPU MIG 1g.10gb", major=9, minor=0, total_memory=10 * 2**30)

    def raises(*_):
        raise RuntimeError("Not Supported")

    monkeypatch.setitem(sys.modules, "pynvml", None if nvml == "not installed" else fake_nvml(init_fails=True)[0])
    answers = {"is_available": lambda: True, "device_count": lambda: 1, "get_device_properties": lambda _: properties}
    for name, answer in (answers | {"clock_rate": raises}).items():
        monkeypatch.setattr(torch.cuda, name, answer)
    found = describe()
    (device,) = found["cuda"]["devices"]
    assert (device["name"], device["memory_bytes"], device["sm_megahertz"]) == ("some GPU MIG 1g.10gb", 10 * 2**30, None)
    assert found["cuda"]["driver"] is None
    assert found["cuda"]["tf32"] is False
    assert key_of(found)
