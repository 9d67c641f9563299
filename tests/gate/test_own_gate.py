"""The project's own gate: what its networks keep, predicted, against the committed baseline.

Where a change is meant, make the baseline again (in a fresh folder) and commit it:

    capsbench run --models all --depth 1-2 --batch-size 32 --front plain --device cuda:predicted --out reports/own
    capsbench check reports/own --baseline baselines/predicted.json --update
"""

import json
import shlex

import pytest
import torch

from capsbench.models import layers
from capsbench.models.layers import CapsuleLayer
from helpers import ROOT

BASELINE = ROOT / "baselines" / "predicted.json"
RUN = next(line.strip() for line in (__doc__ or "").splitlines() if "capsbench run" in line)


def judged(command, folder):
    _, *arguments = shlex.split(RUN.replace("reports/own", str(folder)))
    assert command(*arguments).status == 0
    return command("check", folder, "--baseline", BASELINE, "--json")


@pytest.mark.slow
def test_nothing_grew(command, tmp_path):
    result = judged(command, tmp_path / "own")
    assert result.status == 0, result.stdout + result.stderr
    assert json.loads(result.stdout)["passed"] is True


def keep_one_more(monkeypatch):
    """A layer's product with something constant, both of which backward keeps."""
    plain = CapsuleLayer.forward

    def forward(self, x):
        out = plain(self, x)
        return out * out.detach().sign().abs()

    monkeypatch.setattr(CapsuleLayer, "forward", forward)


def save_votes(monkeypatch):
    """Routing keeps the votes of the last round for backward."""
    plain = layers.route

    def route(inputs, weight, *rest, **options):
        votes = torch.einsum("bik,ikjd->bijd", inputs, weight)
        return plain(inputs, weight, *rest, **options) + 0 * votes.square().sum(1)

    monkeypatch.setattr(layers, "route", route)


def drop_reversal(monkeypatch):
    """A reversible stack stores every activation after all."""
    monkeypatch.setattr("capsbench.reversible.stack.REVERSIBLE_STRATEGIES", ())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [(keep_one_more, "blocks"), (save_votes, "blocks"), (drop_reversal, "blocks")],
    ids=lambda it: getattr(it, "__name__", it),
)
def test_a_seeded_regression_turns_it_red(command, tmp_path, monkeypatch, fault, said):
    with monkeypatch.context() as seeded:
        fault(seeded)
        result = judged(command, tmp_path / "own")
    assert result.status == 1, result.stdout
    assert said in result.stdout
