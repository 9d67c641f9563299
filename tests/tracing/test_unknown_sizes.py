"""Steps in which sizes of tensors depend on values that are not known: the trace takes the smallest, and says so."""

from dataclasses import asdict

import pytest
import torch
from torch import Tensor, nn

import capsbench
from capsbench import Case
from capsbench.catalog import OWN_INPUTS
from capsbench.options import Configuration
from capsbench.prediction.fit import largest_fit
from capsbench.prediction.predict import predict_memory, trace_for
from capsbench.terminal.prediction import fit_text


class Chooses(nn.Module):
    """A layer, of whose outputs some are chosen by their values."""

    def __init__(self, choose) -> None:
        super().__init__()
        self.layer, self.choose = nn.Linear(8, 8), choose

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return self.choose(y).sum() + y.sum()


CHOICES = {
    "mask": lambda y: y[y > 0],
    "rows": lambda y: y[y.sum(1) > 0],
    "mask next to a slice": lambda y: y[y.sum(1) > 0, 2:],
    "nonzero": lambda y: y[torch.where(y > 0)],
    "masked_select": lambda y: torch.masked_select(y, y > 0),
}


def chooses(kind="mask", size=4):
    return Case(Chooses(CHOICES[kind]), torch.randn(size, 8))


@pytest.mark.parametrize("kind", CHOICES)
def test_what_a_mask_chooses_is_taken_for_nothing(kind):
    asked = Configuration(
        model=f"{__name__}:chooses", blocks=0, dataset=OWN_INPUTS, batch_size=None, settings=(("kind", kind),), device="cpu",
        threads=1,
    )  # fmt: skip
    traced = trace_for(asked)
    (note,) = traced.notes
    assert "depend on values" in note
    assert "the bytes are a lower bound" in note
    found = predict_memory(asked, traced)
    assert set(found.memory.certainty.values()) == {"guessed"}
    assert found.lower_bound


def known():
    return Case(Chooses(lambda y: y[torch.arange(4) > 1]), torch.randn(4, 8))


def test_a_mask_of_known_values_is_no_guess():
    asked = Configuration(
        model=f"{__name__}:known", blocks=0, dataset=OWN_INPUTS, batch_size=None, settings=(), device="cpu", threads=1
    )
    traced = trace_for(asked)
    assert traced.notes == ()
    assert not predict_memory(asked, traced).lower_bound


def test_an_estimate_of_what_a_mask_chooses_says_that_more_may_be_taken():
    found = str(capsbench.estimate(chooses(), gpu="a100"))
    assert "; the bytes are a lower bound, so that a run may not fit" in found
    assert "note: sizes of tensors depend on values" in found
    assert "lower bound" not in str(capsbench.estimate(known(), gpu="a100"))


def test_a_search_says_that_less_may_fit():
    asked = Configuration(
        model=f"{__name__}:chooses", blocks=0, dataset=OWN_INPUTS, batch_size=None, settings=(("size", 2**17),),
        device="cuda:predicted", gpu="a100", capacity=560 * 2**20,
    )  # fmt: skip
    fit = largest_fit(asked, "size")
    assert fit.lower_bound
    words = "these bytes are a lower bound, since sizes of tensors depend on values: less may fit"
    assert fit_text(asked, **asdict(fit)).endswith(words)
