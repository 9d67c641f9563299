"""The forecast of a sweep before anything runs."""

import torch
from torch import nn

import capsbench
from capsbench.records import Cell
from capsbench.sweep.asked import Sweep
from capsbench.sweep.forecast import forecast
from capsbench.sweep.plan import expand


def divided(width: int = 64) -> capsbench.Case:
    if width % 4:
        raise ValueError(f"width {width} is not divisible by 4")
    return capsbench.Case(nn.Linear(width, width), torch.rand(2, width), loss=torch.Tensor.sum)


def cells(**settings: list[int]) -> list[Cell]:
    return expand(Sweep((f"{__file__}:divided",), (1,), "cpu", depths_chosen=False, vary=settings))


def test_the_peaks_of_both_ends_are_predicted() -> None:
    found = forecast(cells(width=[64, 128, 256]))
    first, last = found.peaks
    assert 0 < first < last
    assert not found.failures


def test_a_network_that_cannot_be_made_is_known_before_anything_runs() -> None:
    found = forecast(cells(width=[64, 65]))
    assert not found.peaks
    (text,) = found.failures
    assert "cannot be made: ValueError: width 65 is not divisible by 4 (test_forecast.py:" in text
