"""The exact inverse's passes on CUDA in Triton's interpreter, on a CPU. test_triton_passes.py runs this in a process of its own.

TRITON_INTERPRET=1 python -m pytest tests/reversible/interpreted_passes.py
"""

import os
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from capsbench.reversible import MomentumStack, passes, triton_passes
from capsbench.reversible.fixed_point import LIMIT, UNITS
from helpers.exact import RATIOS, advanced_by_torch, assert_same, at_edges, halves_of_a_unit, rounded_by_torch

assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1"


def assert_both_agree(x: Tensor, v: Tensor, store: Tensor, value: Tensor, ratio: Fraction) -> None:
    """Assert that the passes give torch's bits forward, and the start again on the way back."""
    n, d, scale = ratio.numerator, ratio.denominator, float(1 - ratio) * UNITS
    *expected, peak = advanced_by_torch(x, v, store, value, ratio)
    moved = [x.clone(), v.clone(), store.clone()]
    rounded, peaks = triton_passes.advance(*moved, value, n, d, scale)
    assert_same([*moved, rounded], expected)
    assert len(peaks) == -(-x.numel() // triton_passes._SIZE)
    assert torch.equal(peaks.amax(), peak)
    next_x, next_v, _ = (one.clone() for one in moved)
    rounded = triton_passes.retreat_x(next_x, next_v, value.dtype)
    assert_same([next_x, rounded], [x, rounded_by_torch(x, value.dtype)])
    before, moved[0] = x - v, next_x
    rounded = triton_passes.retreat(*moved, value, n, d, scale)
    assert_same([*moved, rounded], [before, v, store, rounded_by_torch(before, value.dtype)])


@pytest.mark.parametrize("ratio", RATIOS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edges_have_torchs_bits(ratio, dtype):
    assert_both_agree(*at_edges(ratio, dtype), ratio)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_halves_of_a_unit_round_as_torch_rounds_them(dtype):
    assert_both_agree(*halves_of_a_unit(dtype), Fraction(1, 2))


@pytest.mark.parametrize("shape", [(1,), (), (3, 5), (5, 9, 31), (2, 3, 700)])
def test_any_shape_and_layout(shape):
    generator = torch.Generator().manual_seed(0)
    x, v, store = (torch.randint(0, LIMIT // 10, shape, generator=generator) for _ in range(3))
    value = torch.randn(shape, generator=generator)
    if len(shape) == 3:
        x, v, store, value = (one.permute(2, 0, 1).contiguous().permute(1, 2, 0) for one in (x, v, store, value))
        assert not x.is_contiguous()
    assert_both_agree(x, v, store, value, Fraction(9, 10))


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_peaks_show_what_is_no_number(wrong):
    zeros = torch.zeros(3, 2000, dtype=torch.int64)
    value = torch.zeros(2000)
    value[1200] = wrong
    first, second = triton_passes.advance(*zeros, value, 9, 10, 0.1 * UNITS)[-1].tolist()
    assert first == 0
    assert not second < LIMIT
    assert (second != second) == (wrong != wrong)


def stack_gradients(depth: int) -> list[Tensor]:
    torch.manual_seed(0)
    stack = MomentumStack([nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(depth)], inverse="exact")
    x = torch.randn(140, 8, requires_grad=True)
    out = stack(x)
    out.sum().backward()
    return [out.detach(), x.grad, *(parameter.grad for parameter in stack.parameters())]


def test_a_stack_has_the_same_bits(monkeypatch):
    """Enough products that words are moved out of the store."""
    monkeypatch.setattr(passes, "has_passes", lambda *_: False)
    expected = stack_gradients(420)
    used = []

    def as_on_cuda(name):
        own = getattr(triton_passes, name)

        def run(*given):
            used.append(name)
            return own(*given)

        return run

    monkeypatch.setattr(passes, "has_passes", lambda *_: True)
    monkeypatch.setattr(passes, "_is_plain", lambda *_: False)
    operators = {f"exact_{name}": as_on_cuda(name) for name in ("advance", "retreat_x", "retreat")}
    monkeypatch.setattr(
        torch.ops, "capsbench", type("Operators", (), {name: staticmethod(one) for name, one in operators.items()})
    )
    found = stack_gradients(420)
    assert {name: used.count(name) for name in set(used)} == {"advance": 420, "retreat_x": 1, "retreat": 420}
    assert_same(found, expected)
