"""The paper's accuracy tables, trained again: which runs, what is left of them, and how they compare with the paper."""

import json
import math
import types
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from capsbench.data.datasets import load_parts
from capsbench.data.preprocess import prepare
from capsbench.errors import ConfigurationError, TrainingError
from capsbench.figures.paper_accuracy import accuracy_figure
from capsbench.paper.accuracy_tables import ACCURACY_TABLES, accuracy_table
from capsbench.stats.seeds import KEY, compared_with_paper
from capsbench.training import table_runs
from capsbench.training.settings import TrainingSettings
from capsbench.words.accuracy import accuracy_markdown
from helpers.made import make_configuration
from helpers.sets import write_mnist
from helpers.trained import save_lively


def test_every_row_that_the_paper_prints():
    assert {name: len(accuracy_table(name)) for name in ACCURACY_TABLES} == {
        "table1": 32,
        "table2": 32,
        "table3": 27,
        "table5": 12,
    }
    first = accuracy_table("table1")[0]
    assert (first.dataset, first.model, first.blocks, first.accuracy_percent) == ("mnist", "rescapsnet", 1, 99.41)
    assert first.std_percent == 0.01
    assert accuracy_table("table2")[-2].std_percent is None


def test_the_baselines_of_table_3_are_sabour_s_networks():
    baselines = [row for row in accuracy_table("table3") if not row.blocks]
    assert [(row.model, row.networks) for row in baselines] == [("capsnet-1conv", 1), ("capsnet-2conv", 1), ("capsnet-2conv", 4)]


def test_table_5_is_two_blocks_with_ranger21():
    rows = accuracy_table("table5")
    assert {(row.blocks, row.optimizer, row.dataset) for row in rows} == {(2, "ranger21", "cifar10")}
    assert (rows[-1].learning_rate, rows[4].batch_size, rows[6].capsules) == (0.1, 256, 64)


def test_an_unknown_table():
    with pytest.raises(ConfigurationError, match="table4"):
        accuracy_table("table4")


def runs(percents, paper=70.0, paper_std=1.0, **fields):
    usual = dict.fromkeys(KEY, 1) | {"dataset": "cifar10", "model": "mocapsnet", "optimizer": "adam", "routing": "rba"}
    usual |= {"scale": 1.0, "epochs": 30, "paper_epochs": 30, "paper_percent": paper, "paper_std_percent": paper_std}
    return pd.DataFrame([{**usual, **fields, "accuracy_percent": one} for one in percents])


def test_mean_and_deviation_of_known_numbers():
    (row,) = compared_with_paper(runs([69.0, 70.0, 72.5])).to_dict("records")
    assert row["runs"] == 3
    assert row["accuracy_percent"] == pytest.approx(70.5)
    assert row["std_percent"] == pytest.approx(math.sqrt((1.5**2 + 0.5**2 + 2**2) / 2))
    assert row["difference"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("percents", "paper_std", "within"),
    [
        ([69.0, 72.0], 1.0, True),
        ([70.4, 70.6], 1.0, False),  # our own deviation is smaller than the difference
        ([69.0, 73.0], 0.5, False),  # the paper's is
        ([69.0, 72.0], math.nan, True),
        ([70.5], 1.0, True),
        ([70.5], math.nan, None),
        ([math.nan], 1.0, None),
    ],
)
def test_within_both_intervals(percents, paper_std, within):
    (row,) = compared_with_paper(runs(percents, paper_std=paper_std)).to_dict("records")
    assert row["within"] is within


def test_rows_stay_apart_and_in_order():
    both = pd.concat([runs([1.0], blocks=8), runs([2.0], blocks=2), runs([3.0], blocks=8)])
    assert [(row["blocks"], row["runs"]) for row in compared_with_paper(both).to_dict("records")] == [(8, 2), (2, 1)]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"scale": 0.05, "epochs": 2}, "5 % of data, 2 of 30 epochs"),
        ({"epochs": 1}, "all data, 1 of 30 epochs"),
        ({}, "as the paper"),
    ],
)
def test_every_row_says_how_long_it_was_trained(fields, words):
    table = compared_with_paper(pd.concat([runs([1.0], **fields), runs([2.0], blocks=2, **fields)]))
    lines = [line for line in accuracy_markdown(table, "made").splitlines() if "MoCapsNet" in line]
    assert len(lines) == 2
    assert all(words in line for line in lines)


@pytest.mark.parametrize("fields", [{}, {"optimizer": "ranger21"}], ids=["over blocks", "row by row"])
def test_a_figure_draws_every_row_and_the_paper_s(fields):
    parts = [runs([69.0, 72.0], blocks=1), runs([71.0, math.nan], blocks=2)]
    if fields:
        parts.append(runs([50.0], **fields))
    (ax,) = accuracy_figure(compared_with_paper(pd.concat(parts)), "made").axes
    drawn = np.concatenate([np.ravel(line.get_xydata()) for line in ax.lines])
    assert np.isin([70.5, 71.0, 70.0], drawn).all()


# Which runs there are.


def configure(row, seed):
    network = make_configuration(row.model, max(row.blocks, 1), dataset="sample")
    return TrainingSettings(network=network, seed=seed, learning_rate=row.learning_rate)


def test_ensembles_share_networks_with_the_row_of_one(tmp_path):
    rows = [row for row in accuracy_table("table3") if row.model == "capsnet-2conv"]
    trials = table_runs.trials_of(rows, 2, configure, tmp_path)
    assert [[member.seed for member in trial.members] for trial in trials] == [[0], [0, 1, 2, 3], [1], [4, 5, 6, 7]]
    assert sorted(member.seed for member in table_runs.networks_of(trials)) == list(range(8))


def test_a_run_that_diverges_leaves_the_others(tmp_path):
    rows = accuracy_table("table1")[:3]
    members = table_runs.networks_of(table_runs.trials_of(rows, 1, configure, tmp_path))
    tried = []

    def train(settings, folder, resume):
        tried.append(folder)
        if len(tried) == 2:
            raise TrainingError("loss is nan", "choose a smaller learning rate")
        return "done"

    found = [result for _, result in table_runs.run_members(members, train)]
    assert len(tried) == 3
    assert found[0] == found[2] == "done"
    assert isinstance(found[1], TrainingError)


@pytest.mark.slow
def test_several_networks_decide_together_and_once(tmp_path, monkeypatch):
    row = next(row for row in accuracy_table("table3") if row.networks > 1)
    asked = [TrainingSettings(network=make_configuration("mocapsnet", 1, capsules=4), seed=seed) for seed in range(3)]
    members = tuple(table_runs.Member(row, one.seed, one, tmp_path / f"seed{one.seed}") for one in asked)
    for member in members:
        member.folder.mkdir()
    networks = [save_lively(member.folder / "best.pt", member.settings, member.seed) for member in members]
    monkeypatch.setattr(table_runs.Member, "result", lambda self: types.SimpleNamespace(test_loss=float(losses[self.seed])))
    losses = [1, 2, 3]
    trial = table_runs.Trial(row, 0, members)
    parts = load_parts("sample")
    test = replace(parts.test, images=parts.test.images[:40], labels=parts.test.labels[:40])
    monkeypatch.setattr(table_runs, "load_parts", lambda *_: parts._replace(test=test))
    images, labels, _ = prepare(test.images, test.labels, "paper", "sample")
    with torch.inference_mode():
        lengths = torch.stack([network(images).lengths for network in networks])
    expected = (lengths.mean(0).argmax(1) == labels).double().mean().item()
    assert table_runs.accuracy_of(trial) == pytest.approx(expected)
    alone = [(one.argmax(1) == labels).double().mean().item() for one in lengths]
    assert any(one != pytest.approx(expected) for one in alone)
    # Kept, and computed again where a network is another one or what was kept is damaged.
    (kept,) = tmp_path.glob("*.json")
    kept.write_text(kept.read_text().replace(json.dumps(expected), "0.125"))
    assert table_runs.accuracy_of(trial) == 0.125
    losses[1] = 4
    assert table_runs.accuracy_of(trial) == pytest.approx(expected)
    kept.write_text("{")
    assert table_runs.accuracy_of(trial) == pytest.approx(expected)


def test_what_was_cut_off_goes_on(tmp_path):
    (member,) = table_runs.networks_of(table_runs.trials_of(accuracy_table("table1")[:1], 1, configure, tmp_path))
    member.folder.mkdir(parents=True)
    (member.folder / table_runs.CHECKPOINT).touch()
    asked = []
    list(table_runs.run_members([member], lambda settings, folder, resume: asked.append(resume)))
    assert asked == [True]


# The command.


@pytest.fixture
def mnist(tmp_path):
    """A small MNIST of real images in its exact format."""
    sample = load_parts("sample").train
    folder = tmp_path / "data"
    write_mnist(folder / "MNIST" / "raw", sample.images[:300].numpy(), sample.labels[:300].numpy())
    return folder


@pytest.mark.slow
def test_a_table_is_trained_and_not_trained_twice(capsbench, mnist, tmp_path):
    asked = ("reproduce", "table1", "--dataset", "mnist", "--models", "mocapsnet", "--depth", "1", "--seeds", "2")
    asked += ("--scale", "0.5", "--epochs", "2", "--data-dir", mnist, "--out", "out")
    result = capsbench(*asked, "--json")
    assert result.status == 0, result.stderr
    assert "2 networks to train, 1 epoch each" in result.stderr
    (row,) = json.loads(result.stdout)
    assert (row["runs"], row["scale"], row["paper_percent"]) == (2, 0.5, 99.42)
    folder = tmp_path / "out"
    found = [json.loads(path.read_text())["test_accuracy"] for path in sorted(folder.glob("runs/*/result.json"))]
    assert row["accuracy_percent"] == pytest.approx(100 * np.mean(found))
    assert row["std_percent"] == pytest.approx(100 * np.std(found, ddof=1))
    assert {path.name for path in folder.iterdir()} >= {"table1.csv", "table1.md", "table1.svg", "table1.png", "runs"}
    again = capsbench(*asked)
    assert again.status == 0
    assert "0 networks to train, 1 epoch each; 2 are done" in again.stderr
    assert "99.42 ± 0.04" in again.stdout
    assert "50 % of data, 1 of 30 epochs" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("table1", "--depth", "9"), ("--depth 9", "1, 2, 3")),
        (("table5", "--dataset", "mnist"), ("--dataset mnist", "cifar10")),
        (("table1", "--seeds", "0"), ("--seeds 0", "1")),
        (("table1", "--scale", "2"), ("--scale '2'", "up to 1")),
        (("table2",), ("cifar10", "--download")),
        (("table4", "--seeds", "1"), ("--seeds",)),
        (("table9",), ("table9",)),
    ],
    ids=" ".join,
)
def test_what_makes_no_table(command, arguments, words, tmp_path):
    more = ("--data-dir", tmp_path) if arguments == ("table2",) else ()
    result = command("reproduce", *arguments, *more)
    assert result.status == 2
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr


def test_what_is_left_can_be_looked_at(command, mnist):
    result = command("reproduce", "table1", "--dataset", "mnist", "--data-dir", mnist, "--dry-run", "--seeds", "1")
    assert result.status == 0
    assert "16 networks to train" in result.stderr
    assert "mnist-mocapsnet-8-adam-rba" in result.stderr


def test_the_networks_of_a_table_are_those_that_are_chosen(command):
    result = command("reproduce", "table1", "--models", "rescapsnet", "--depth", "2,3", "--dry-run", "--seeds", "1")
    left = [line.strip().rpartition("/")[2].split("-adam-")[0] for line in result.stderr.splitlines()[1:]]
    assert sorted(left) == sorted(f"{data}-rescapsnet-{blocks}" for data in ("mnist", "svhn") for blocks in (2, 3)), result
