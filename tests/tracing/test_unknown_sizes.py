"""Steps in which sizes of tensors depend on values that are not known: the trace takes the smallest, and says so."""

import pytest
import torch
from torch import Tensor, nn

from capsbench import Case
from capsbench.catalog import OWN_INPUTS
from capsbench.options import Configuration
from capsbench.prediction.predict import predict_memory, trace_for


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


def chooses(kind="mask"):
    return Case(Chooses(CHOICES[kind]), torch.randn(4, 8))


@pytest.mark.parametrize("kind", CHOICES)
def test_what_a_mask_chooses_is_taken_for_nothing(kind):
    asked = Configuration(
        model=f"{__name__}:chooses", blocks=0, dataset=OWN_INPUTS, batch_size=None, settings=(("kind", kind),), device="cpu",
        threads=1,
    )  # fmt: skip
    traced = trace_for(asked)
    (note,) = traced.notes
    assert "depend on values" in note
    assert set(predict_memory(asked, traced).memory.certainty.values()) == {"guessed"}


def known():
    return Case(Chooses(lambda y: y[torch.arange(4) > 1]), torch.randn(4, 8))


def test_a_mask_of_known_values_is_no_guess():
    asked = Configuration(
        model=f"{__name__}:known", blocks=0, dataset=OWN_INPUTS, batch_size=None, settings=(), device="cpu", threads=1
    )
    assert trace_for(asked).notes == ()
