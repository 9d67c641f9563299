"""`capsbench predict`, and sweeps for devices that are not here: what is printed, kept and refused."""

import importlib
import json
import pickle
import sys
from collections.abc import Callable

import pytest

from capsbench.prediction import apart
from capsbench.records import Record
from capsbench.report import Report, load
from capsbench.sweep import local
from helpers.commands import Result

pytestmark = pytest.mark.usefixtures("warm")

WARM = ("transformers.models.gpt2.modeling_gpt2",)
OWN = ("--depth", "1,2", "--batch-size", "4")

MLP = """
from torch import nn


def make(in_shape, num_classes, blocks):
    layers = [layer for _ in range(blocks) for layer in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), *layers, nn.Linear(64, num_classes))
"""

MODEL = """
import numpy as np
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(784, 10)

    def forward(self, images):
        x = images.flatten(1)
        {forward}


def make(in_shape, num_classes, blocks):
    {make}
    return Net()
"""


@pytest.fixture
def own_model(own_model, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """The fixture of `conftest`, for commands in this process."""
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    importlib.invalidate_caches()
    return own_model


def lines(result: Result) -> list[str]:
    """Lines on standard error, progress left out."""
    return [line for line in result.stderr.splitlines() if line.strip()]


def assert_refused(result: Result, *words: str) -> None:
    """Two lines: what was wrong, and what to do."""
    assert result.status == 2
    assert result.stderr.startswith("error: ")
    assert len(lines(result)) == 2
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


@pytest.mark.slow
def test_a_table_and_how_sure_it_is(command, own_model):
    result = command("predict", "--models", own_model(MLP), *OWN)
    assert result.status == 0
    assert "retained" in result.stdout
    assert "≈" in result.stdout
    assert "guess" in result.stdout


def test_json_alone_is_on_standard_output(command, own_model):
    result = command("predict", "--models", own_model(MLP), *OWN, "--json", "--gpu", "A100")
    assert result.status == 0
    records = [Record.model_validate(one) for one in json.loads(result.stdout)]
    assert [record.cell.configuration.blocks for record in records] == [1, 2]
    assert {record.kind for record in records} == {"predicted"}
    assert {record.cell.configuration.gpu for record in records} == {"a100"}
    # A block: what its ReLU makes, which the next layer saves too.
    first, second = (record.memory.retained_bytes for record in records)
    assert second - first == 4 * 64 * 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--capacity", "3"), ("--capacity '3'", "GiB")),
        (("--capacity", "2MiB"), ("--capacity", "context")),
        (("--capacity", "much"), ("--capacity 'much'",)),
        (("--gpu", "h900"), ("--gpu 'h900'", "h100")),
        (("--gpu", "h100", "--device", "cpu"), ("--gpu h100", "--device cpu")),
        (("--fit", "depth", "--device", "cpu"), ("--fit depth", "--capacity")),
        (("--fit", "depth", "--capacity", "1GiB"), ("--depth", "--fit depth")),
        (("--fit", "batch", "--batch-size", "4"), ("--batch-size", "--fit batch")),
        (("--fit", "batch", "--out", "x"), ("--fit batch", "--out")),
        (
            ("--fit", "tokens"),
            ("--fit tokens", "takes no whole number of this name", "search for one of depth, batch, iterations,"),
        ),
        (("--fit", "iteratons"), ("--fit iteratons", "did you mean iterations? If not, search for one of depth, batch,")),
        (("--fit", "Image-sise"), ("did you mean image_size?",)),
        (("--fit", "capsules", "--capsules", "8"), ("--capsules has no effect with --fit capsules",)),
        (("--fit", "image-size", "--vary", "image-size=32"), ("--vary image_size has no effect with --fit image_size",)),
        (("--fit", "length", "--set", "length=3"), ("--set length has no effect with --fit length",)),
        (("--threads", "2"), ("--threads 2", "--device cuda")),
        (("--resume",), ("--resume", "--out")),
        (("--kernel", "compiled"), ("--kernel compiled", "cuda")),
        (("--models", "nothing:here"), ("--models", "nothing:here")),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_makes_no_sense_is_refused(command, options, words):
    assert_refused(command("predict", "--models", "rescapsnet", "--depth", "1", *options), *words)


@pytest.mark.parametrize(
    ("forward", "make", "words"),
    [
        ("return self.layer(x)", "raise KeyError('no such thing')", ("KeyError", "no such thing")),
        ("return self.layer(x)", "return 7", ("returned int", "torch.nn.Module")),
        ("return self.layer(x)[:, :3]", "pass", ("returned shape [4, 3]", "class scores")),
        ("return {'scores': self.layer(x)}", "pass", ("returned dict", "class scores")),
        ("return self.layer(x + x.untyped_storage()[0])", "pass", ("cannot be traced without values", "'meta'")),
        ("return self.layer(x.bad)", "pass", ("AttributeError", "bad")),
    ],
    ids=["construction", "not a module", "wrong shape", "wrong kind", "memory", "attribute"],
)
def test_a_model_that_cannot_be_traced(command, own_model, forward, make, words):
    result = command("predict", "--models", own_model(MODEL.format(forward=forward, make=make)), *OWN)
    assert result.status == 1
    told = [line for line in lines(result) if line.startswith("error: ")]
    assert len(told) == 1
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def test_a_model_that_reads_values_is_told_of(command, own_model):
    forward = "return self.layer(x if x.sum() > 0 else -x)"
    result = command("predict", "--models", own_model(MODEL.format(forward=forward, make="pass")), *OWN)
    assert result.status == 0
    assert "note: the model reads a tensor's value" in result.stdout


def test_a_device_that_is_full_is_a_result(command, own_model):
    source = MLP.replace("64", "4096")
    result = command("predict", "--models", own_model(source), *OWN, "--gpu", "a100", "--capacity", "700MiB")
    assert result.status == 0
    assert "out of memory" in result.stdout


@pytest.mark.slow
def test_what_fits(command, own_model):
    small = ("--device", "cpu", "--capacity", "8MiB")
    result = command("predict", "--models", own_model(MLP), "--depth", "1,2", *small, "--fit", "batch", "--json")
    assert result.status == 0
    found = json.loads(result.stdout)
    assert [one["blocks"] for one in found] == [1, 2]
    assert found[0]["value"] > found[1]["value"] > 0
    assert all(one["memory_bytes"] <= 8 * 2**20 for one in found)
    told = command("predict", "--models", found[0]["model"], "--batch-size", "4", *small, "--fit")
    assert told.status == 0
    assert "blocks fit this CPU" in told.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "axis", "step"), [("helpers.networks_of_others:gpt2", "length", 1), ("helpers.networks_of_others:gpt2", "width", 4)]
)
def test_the_largest_value_of_an_axis_that_fits(command, monkeypatch, model, axis, step):
    pytest.importorskip("transformers")
    found_before = {}

    def call(function, *args):
        """The result of a call in this process, which imports transformers once; what was searched for is not searched again."""
        key = pickle.dumps((function, args))
        if key not in found_before:
            found_before[key] = function(*args)
        return found_before[key]

    monkeypatch.setattr(apart, "call", call)
    small = ("--device", "cpu", "--capacity", "4MiB", "--depth", "1")
    result = command("predict", "--models", model, *small, "--fit", axis, "--json")
    assert result.status == 0, result.stderr
    (found,) = json.loads(result.stdout)
    assert (found["what"], found["bounded"], found["value"] % step) == (axis, True, 0)
    assert 0.9 * 4 * 2**20 < found["memory_bytes"] <= 4 * 2**20
    larger = found["value"] + max(step, found["value"] // 100)
    beyond = command("predict", "--models", model, *small, "--set", f"{axis}={larger}", "--json")
    assert [one["status"] for one in json.loads(beyond.stdout)] == ["oom"]
    told = command("predict", "--models", model, *small, "--fit", axis)
    assert f"{axis} {found['value']:,} fits this CPU" in " ".join(told.stdout.split())


@pytest.mark.slow
def test_kept_predictions_are_records_like_others(command, own_model, tmp_path):
    model = own_model(MLP)
    result = command("predict", "--models", model, *OWN, "--out", "kept")
    assert result.status == 0
    frame = load(tmp_path / "kept")
    assert set(frame["kind"]) == {"predicted"}
    assert list(frame["status"]) == ["ok", "ok"]
    assert (tmp_path / "kept" / "figure4.svg").exists()
    assert command("slopes", "kept").status == 0
    assert_refused(command("predict", "--models", model, *OWN, "--out", "kept"), "--out kept", "--resume")


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Blocks of the cells that are traced from here on."""
    found: list[int] = []
    real = local.predict_cell

    def note(cell):
        found.append(cell.configuration.blocks)
        return real(cell)

    monkeypatch.setattr(local, "predict_cell", note)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cuda:predicted", "cpu:predicted"])
def test_a_sweep_for_a_device_that_is_not_here_goes_on(command: Callable[..., Result], own_model, traced, tmp_path, device):
    asked = ("run", "--models", own_model(MLP), *OWN, "--device", device, "--out", "there")
    assert command(*asked).status == 0
    assert traced == [1, 2]
    before = Report(tmp_path / "there").records
    assert {record.cell.configuration.device for record in before} == {device}
    assert command(*asked, "--resume").status == 0
    assert traced == [1, 2]
    assert command(*[{"1,2": "1-3"}.get(one, one) for one in asked], "--resume").status == 0
    assert traced == [1, 2, 3]
    assert len(Report(tmp_path / "there").records) == 3


def test_each_line_of_what_fits_names_its_series(command):
    small = ("--models", "rescapsnet", "--memory", "stored,checkpoint", "--device", "cpu", "--capacity", "48MiB")
    result = command("predict", *small, "--batch-size", "1", "--fit", "depth")
    assert result.status == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("ResCapsNet")]
    assert [line.partition(":")[0] for line in lines] == ["ResCapsNet (stored)", "ResCapsNet (checkpoint)"]


def test_a_table_has_each_network_once(command):
    small = ("--models", "capsnet,rescapsnet", "--device", "cpu", "--batch-size", "1", "--depth", "1,2")
    result = command("predict", *small)
    assert result.status == 0, result.stderr
    title, *heads = [line for line in result.stdout.splitlines() if line[:1].strip()][:3]
    assert title == "predicted for a CPU, batch 1"
    assert [line.split()[0] for line in heads] == ["CapsNet", "ResCapsNet"]
    assert [line.split()[0] for line in result.stdout.splitlines() if line.strip()[:1].isdigit()] == ["1", "2", "1", "2"]
