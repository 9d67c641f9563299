"""Sweeps along axes, typed as commands."""

import json

import pytest

from helpers.commands import assert_refused

CASE = '''
import torch
from torch import nn
from torch.nn import functional

from capsbench import Case


class Tiny(nn.Module):
    """A transformer in the manner of GPT-2, with tied embeddings."""

    def __init__(self, blocks, length, width):
        super().__init__()
        self.tokens, self.places = nn.Embedding(64, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=True, norm_first=True) for _ in range(blocks)
        )
        self.mask = nn.Transformer.generate_square_subsequent_mask(length)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.places.weight
        for block in self.blocks:
            x = block(x, src_mask=self.mask, is_causal=True)
        return x @ self.tokens.weight.T


def gpt2(blocks=2, length=16, batch_size=2, width=16, unused=1, prompt="a, b"):
    tokens = torch.randint(64, (batch_size, length))
    if length == 24:
        raise ValueError("no such length")
    return Case(
        Tiny(blocks, length, width), tokens, loss=lambda out: functional.cross_entropy(out.flatten(0, 1), tokens.flatten())
    )
'''
HERE = ("--models", "tiny.py:gpt2", "--device", "cpu", "--threads", "1")


@pytest.fixture(autouse=True)
def case_in_a_file(tmp_path):
    (tmp_path / "tiny.py").write_text(CASE, encoding="utf-8")


def records(folder):
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return {json.dumps(line["cell"], sort_keys=True): line for line in lines}.values()


def plan(folder):
    return json.loads((folder / "plan.json").read_text())


@pytest.mark.slow
def test_a_case_is_measured_over_its_length(capsbench, tmp_path):
    done = capsbench("run", *HERE, "--vary", "length=8-32:8", "--out", "over")
    assert done.status == 1, "one length makes no network"
    assert "error: tiny.py:gpt2 at length 24: " in done.stderr
    found = {dict(one["cell"]["configuration"]["settings"])["length"]: one for one in records(tmp_path / "over")}
    assert {length: one["status"] for length, one in found.items()} == {8: "ok", 16: "ok", 24: "error", 32: "ok"}
    assert "no such length" in found[24]["message"]
    assert plan(tmp_path / "over")["axes"] == ["length"]
    assert "--vary length=8-32:8" in plan(tmp_path / "over")["command"]
    good = [found[length] for length in (8, 16, 32)]
    rounds = [set(one["time"]["rounds"]) for one in good]
    assert len(set.intersection(*rounds)) >= 3, "they took turns"
    retained = [one["memory"]["retained_bytes"] for one in good]
    assert retained[0] < retained[1] < retained[2]


def test_memory_alone_is_measured_and_time_is_added_later(capsbench, tmp_path):
    typed = ("run", *HERE, "--vary", "length=8,16", "--out", "part")
    assert capsbench(*typed, "--only", "memory").status == 0
    assert plan(tmp_path / "part")["passes"] == ["memory"]
    assert all(one["memory"] and not one["time"] for one in records(tmp_path / "part"))
    assert capsbench(*typed, "--only", "time", "--time-budget", "1", "--resume").status == 0
    assert all(one["memory"] and one["time"] for one in records(tmp_path / "part"))
    assert capsbench(*typed, "--only", "speed").status == 2


@pytest.mark.slow
def test_a_grid_is_measured_and_resumed_with_more(capsbench, tmp_path):
    typed = ("run", *HERE, "--out", "grid", "--vary", "length=8,16")
    assert capsbench(*typed, "--vary", "batch-size=1,2").status == 0
    assert plan(tmp_path / "grid")["axes"] == ["length", "batch_size"]
    before = {one["cell"]["configuration"]["batch_size"] for one in records(tmp_path / "grid")}
    done = capsbench(*typed, "--vary", "batch-size=1,2,4", "--resume")
    assert done.status == 0, done.stderr
    assert "2 cells to measure over length and batch size, 4 already measured" in done.stderr
    found = list(records(tmp_path / "grid"))
    assert before == {1, 2}
    assert {one["cell"]["configuration"]["batch_size"] for one in found} == {1, 2, 4}
    assert len(found) == 6
    assert all(one["status"] == "ok" for one in found)


@pytest.mark.slow
def test_an_axis_that_changes_nothing_is_said_to(capsbench, tmp_path):
    done = capsbench("run", *HERE, "--vary", "unused=1,2", "--out", "over")
    assert done.status == 0, done.stderr
    said = "unused changes nothing of tiny.py:gpt2: the same bytes at unused 1, unused 2"
    assert f"warning: {said}" in done.stderr
    assert all(said in one["notes"] for one in records(tmp_path / "over"))
    assert all(one["time"] for one in records(tmp_path / "over"))


@pytest.mark.slow
def test_a_case_is_predicted_over_a_grid(command):
    done = command("predict", *HERE[:4], "--vary", "length=8,16", "--vary", "blocks=1-2", "--set", 'prompt="x, y",z', "--json")
    assert done.status == 0, done.stderr
    found = [one["cell"]["configuration"] for one in json.loads(done.stdout)]
    assert [(it["settings"]["length"], it["blocks"]) for it in found] == [
        (length, blocks) for length in (8, 16) for blocks in (1, 2) for _ in range(2)
    ]
    assert {it["settings"]["prompt"] for it in found} == {"x, y", "z"}


@pytest.mark.slow
def test_images_of_a_shape_and_classes_of_a_number(capsbench, tmp_path):
    typed = ("--models", "rescapsnet", "--device", "cpu", "--shape", "3x24x32", "--classes", "7", "--batch-size", "2")
    done = capsbench("run", *typed, "--depth", "1", "--threads", "1", "--out", "shaped")
    assert done.status == 0, done.stderr
    (record,) = records(tmp_path / "shaped")
    assert record["data_source"] == "random"
    assert "data 3×24×32 of 7 classes: random images" in done.stderr
    done = capsbench("predict", *typed, "--depth", "1", "--json")
    (predicted,) = json.loads(done.stdout)
    for name in ("state_bytes", "retained_bytes", "optimizer_bytes"):
        assert predicted["memory"][name] == record["memory"][name]
    assert predicted["cell"]["configuration"]["image_shape"] == "3x24x32"


WRONG = {
    "no axis": (["--vary", "depth=1"], "--vary depth: model 'mocapsnet' takes no depth", "did you mean blocks?"),
    "twice": (["--vary", "capsules=1", "--vary", "capsules=2"], "--vary capsules is given twice", "capsules=1,2,4"),
    "no values": (["--vary", "capsules="], "--vary 'capsules=' is not a name with values", "NAME=VALUES"),
    "no number": (["--vary", "capsules=many"], "--vary capsules 'many' is not a number", "128-1024:128"),
    "and the depth": (["--vary", "blocks=1-2", "--depth", "3"], "--vary blocks: its values are given by --depth too", "leave"),
    "and the option": (["--vary", "batch-size=1,2", "--batch-size", "3"], "given by --batch-size too", "leave"),
    "no shape": (["--shape", "227x227"], "--shape: shape '227x227' is not that of an image", "3x227x227"),
    "no classes": (["--classes", "0"], "--classes 0 is too small", "give 1 or more"),
}


@pytest.mark.parametrize("name", ["batch-size", "batch_size"])
def test_an_axis_is_typed_with_a_hyphen_or_an_underscore(command, name, tmp_path):
    typed = ("run", "--models", "mocapsnet", "--device", "cpu:predicted", "--vary", f"{name}=2,4", "--out", "mine", "--dry-run")
    done = command(*typed)
    assert done.status == 0, done.stderr
    assert "2 cells to predict over batch" in done.stderr
    assert "batch size 2, 4" in done.stdout


@pytest.mark.parametrize(("typed", "what", "hint"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("verb", ["run", "predict"])
def test_wrong_axes_are_refused_in_two_lines(command, verb, typed, what, hint):
    assert_refused(command(verb, "--models", "mocapsnet", "--device", "cpu", *typed), what, hint)


def test_a_case_takes_no_shape_of_images(command):
    assert_refused(
        command("run", *HERE, "--shape", "3x32x32"), "model 'tiny.py:gpt2' takes no --shape", "it takes blocks, length"
    )
    assert_refused(
        command("run", *HERE, "--vary", "lenght=8,16"), "--vary lenght: model 'tiny.py:gpt2' takes no lenght", "length"
    )


def test_a_basis_is_kept_in_the_plan_and_resuming_adds_another(command, tmp_path):
    typed = ("predict", "--models", "tiny.py:gpt2", "--device", "cpu", "--vary", "length=8,16,32", "--out", "declared")
    assert command(*typed, "--basis", "length=1,n,n²").status == 0
    assert plan(tmp_path / "declared")["bases"] == {"length": "quadratic"}
    assert command(*typed, "--vary", "batch-size=1,2", "--basis", "batch-size=1,n", "--resume").status == 0
    assert plan(tmp_path / "declared")["bases"] == {"length": "quadratic", "batch_size": "line"}
    assert "bytes per pair of tokens" in (tmp_path / "declared" / "slopes.csv").read_text(encoding="utf-8")
    assert_refused(command(*typed, "--basis", "width=1,n", "--resume"), "--basis names the axis 'width'", "length")
    assert_refused(command("predict", "--models", "mocapsnet", "--fit", "--basis", "blocks=1,n"), "--basis", "--fit depth")


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        (("predict", "--models", "rescapsnet", "--batch-size", "16,32"), ", or vary it: --vary batch-size=16,32"),
        (("run", "--models", "rescapsnet", "--capsules", "8-16:8"), ", or vary it: --vary capsules=8-16:8"),
        (("run", "--models", "rescapsnet", "--batch-size", "many"), ""),
        (("train", "--model", "rescapsnet", "--batch-size", "1,2"), ""),
        (("run", "--models", "rescapsnet", "--repeats", "1,2"), ""),
        (("run", "--models", "rescapsnet", "--processes", "2-4"), ""),
    ],
)
def test_several_numbers_where_one_is_taken_name_the_option_that_varies_it(command, typed, hint):
    done = command(*typed)
    assert done.status == 2
    assert done.stderr.splitlines() == [
        f"error: {typed[-2]} '{typed[-1]}' is not a whole number",
        f"give one whole number, 1 or larger{hint}",
    ]
