"""The choice of a launcher: what is refused, before anything is measured."""

import pytest

import capsbench
from capsbench.cli.types import parse_parameter
from capsbench.errors import ConfigurationError
from capsbench.sweep.launchers import options
from capsbench.sweep.launchers.options import Launching
from capsbench.sweep.machine import resolve_device


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"launcher": "rays"}, r"^`launcher` 'rays' is not known\ndid you mean ray\?"),
        (
            {"address": "here:6379"},
            r"^`address` has no effect with `launcher` local\nadd `launcher` ray, or leave `address` out$",
        ),
        ({"slurm": {"time": 3}, "launcher": "ray"}, r"^`slurm` has no effect with `launcher` ray\nadd `launcher` slurm"),
        ({"exclusive_node": True}, r"^`exclusive_node` has no effect with `launcher` local"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, words, tmp_path):
    with pytest.raises(ConfigurationError, match=words):
        Launching(**arguments).check()
    with pytest.raises(ConfigurationError, match=words):
        capsbench.run("rescapsnet", depths=1, device="cpu", out=tmp_path / "mine", **arguments)
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(("launcher", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_launcher_that_is_not_installed_says_how_to_install_it(monkeypatch, launcher, package):
    monkeypatch.setattr(options.importlib.util, "find_spec", lambda name: None)
    words = rf"^`launcher` {launcher} needs the package {package}, .*\n.*pip install 'capsbench\[{launcher}\]'$"
    with pytest.raises(ConfigurationError, match=words):
        Launching(launcher).check()


def test_the_default_needs_nothing(monkeypatch):
    monkeypatch.setattr(options.importlib.util, "find_spec", lambda name: None)
    Launching().check()
    assert Launching().is_local()


def test_the_command_line_names_the_flags(command, tmp_path):
    done = command("run", "--models", "rescapsnet", "--depth", "1", "--device", "cpu", "--address", "here:1")
    assert done.status == 2
    assert "--address has no effect with --launcher local\nadd --launcher ray, or leave --address out" in done.stderr
    done = command("run", "--models", "rescapsnet", "--depth", "1", "--device", "cpu", "--launcher", "slurm", "--slurm", "gpu")
    assert "--slurm 'gpu' is not a name with a value\nwrite NAME=VALUE" in done.stderr
    done = command("run", "--models", "rescapsnet", "--depth", "1", "--device", "cpu", "--slurm", "a=1", "--slurm", "a=2")
    assert "--slurm a is given twice" in done.stderr


def test_parameters_of_slurm():
    parsed = [
        parse_parameter("--slurm", text) for text in ("partition=gpu", "time=60", "requeue=true", "cpu-freq=high", "begin=now+1")
    ]
    assert parsed == [("partition", "gpu"), ("time", 60), ("requeue", True), ("cpu_freq", "high"), ("begin", "now+1")]


def test_a_worker_s_own_gpu_is_the_first_that_it_sees():
    assert resolve_device("cuda", here=False) == "cuda:0"
    with pytest.raises(ConfigurationError, match=r"`device` cuda:1 names one GPU.*\ngive `device` cuda$"):
        resolve_device("cuda:1", here=False)
    assert resolve_device("cpu", here=False) == "cpu"
