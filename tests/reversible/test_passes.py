"""Passes of a reversible stack in C: the exact inverse's give the bits of torch's operators, at the edges of int64 too."""

from collections import Counter
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from capsbench.errors import ConfigurationError
from capsbench.reversible import MomentumStack, passes
from capsbench.reversible.fixed_point import LIMIT, UNITS
from capsbench.reversible.momentum import gradients_before
from capsbench.reversible.pair import FixedPair
from helpers.comparing import assert_all_close
from helpers.exact import RATIOS, advanced_by_torch, assert_same, at_edges, halves_of_a_unit, rounded_by_torch

pytestmark = pytest.mark.skipif(passes.library().library is None, reason=f"no passes: {passes.library().reason}")


def assert_both_agree(x: Tensor, v: Tensor, store: Tensor, value: Tensor, ratio: Fraction) -> None:
    """Assert that the passes give torch's bits forward, and the start again on the way back."""
    scale = float(1 - ratio) * UNITS
    expected = advanced_by_torch(x, v, store, value, ratio)
    moved = [x.clone(), v.clone(), store.clone()]
    assert_same([*moved, *passes.advance(*moved, value, ratio, scale, value.dtype)], expected)
    next_x, next_v, _ = (one.clone() for one in moved)
    rounded = passes.retreat_x(next_x, next_v, value.dtype)
    assert_same([next_x, rounded], [x, rounded_by_torch(x, value.dtype)])
    before, moved[0] = x - v, next_x
    rounded = passes.retreat(*moved, value, ratio, scale, value.dtype)
    assert_same([*moved, rounded], [before, v, store, rounded_by_torch(before, value.dtype)])


@pytest.mark.parametrize("ratio", RATIOS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edges_have_torchs_bits(ratio, dtype):
    assert_both_agree(*at_edges(ratio, dtype), ratio)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_halves_of_a_unit_round_as_torch_rounds_them(dtype):
    assert_both_agree(*halves_of_a_unit(dtype), Fraction(1, 2))


@settings(deadline=None, max_examples=200, derandomize=True)
@given(d=st.integers(2, 2**16), n=st.integers(1, 2**16), count=st.integers(0, 40), seed=st.integers(0, 999))
def test_any_ratio_has_torchs_bits(d, n, count, seed):
    ratio = Fraction(n % d or 1, d)
    generator = torch.Generator().manual_seed(seed)
    x, v = (torch.randint(-LIMIT, LIMIT, (count,), generator=generator) for _ in range(2))
    store = torch.randint(0, 2**63 // ratio.denominator, (count,), generator=generator)
    assert_both_agree(x, v, store, torch.randn(count, generator=generator), ratio)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_elements(threads):
    before = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    x, v, store = (torch.randint(0, LIMIT // 10, (3 * 4096 + 5,), generator=generator) for _ in range(3))
    value = torch.randn(x.shape, generator=generator)
    value[-1] = 2000.0
    try:
        torch.set_num_threads(threads)
        assert_both_agree(x, v, store, value, Fraction(9, 10))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_peaks_show_what_is_no_number(wrong):
    zeros = torch.zeros(3, 20, dtype=torch.int64)
    value = torch.zeros(20)
    value[7] = wrong
    peak = passes.advance(*zeros, value, Fraction(9, 10), 0.1 * UNITS, torch.float32)[-1]
    assert not peak.item() < LIMIT


class Plain(nn.Module):
    """A function with a value of any dtype and layout."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((8,), 0.7, dtype=torch.float64))
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x * self.weight.to(x.dtype)).to(self.dtype).transpose(0, 1).contiguous().transpose(0, 1)


@pytest.mark.parametrize("x", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gamma", [0.5, 0.9, 1])
def test_a_stack_has_the_same_bits_without_passes(monkeypatch, x, value, gamma):
    """All dtypes of values, and a layout that is not that of x; 250 products move words out of the store."""
    stack = MomentumStack([Plain(value)] * 250, gamma, inverse="exact")
    given = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1)).to(x)

    def run() -> list[Tensor]:
        stack.zero_grad()
        mine = given.clone().transpose(0, 2).requires_grad_()
        output = stack(mine.transpose(0, 2))
        output.square().sum().backward()
        return [output.detach(), mine.grad, *(one.grad for one in stack.parameters())]

    fused = run()
    monkeypatch.setattr(passes, "has_passes", lambda *_: False)
    assert_all_close(fused, run(), relative=0)


def moved_there_and_back(value: Tensor) -> list[Tensor]:
    """Tensors of a pair that has moved past a function and back."""
    pair = FixedPair.start(value)
    pair.advance(value, 0.9)
    pair.retreat_x()
    pair.retreat_v(value, 0.9)
    return [pair.x, pair.units_x, pair.units_v, pair.remainders.store, *pair.peaks]


def test_fakes_have_the_shapes_of_values():
    value = torch.randn(3, 8)
    with FakeTensorMode() as mode:
        fakes = moved_there_and_back(mode.from_tensor(value))
    for fake, real in zip(fakes, moved_there_and_back(value), strict=True):
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


def test_operators_hold_torchs_checks():
    x, v, store = torch.arange(36).reshape(3, 3, 4).unbind()
    for operator, arguments in (
        (torch.ops.capsbench.exact_advance, (x, v, store, torch.randn(3, 4), 9, 10, 0.1 * UNITS)),
        (torch.ops.capsbench.exact_retreat_x, (x, v, torch.float32)),
        (torch.ops.capsbench.momentum_gradients, (*torch.randn(3, 5, 6), 0.9, 0.1)),
        (torch.ops.capsbench.exact_retreat, (x, v, store, torch.randn(3, 4), 9, 10, 0.1 * UNITS)),
    ):
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [4095, 4096, 12_345])
def test_gradients_are_those_of_torch(monkeypatch, dtype, count):
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(count, generator=generator, dtype=dtype) for _ in range(3)]
    assert passes.takes_gradients(*given) == (count >= 4096)
    fused = gradients_before(*given, 0.9, 0.7)
    monkeypatch.setattr(passes, "takes_gradients", lambda *_: False)
    assert_all_close(fused, gradients_before(*given, 0.9, 0.7), relative=4 * torch.finfo(dtype).eps)


def test_gradients_of_other_layouts_and_kinds_are_left_to_torch():
    good = torch.randn(128, 64)
    assert passes.takes_gradients(good, good)
    for other in (good.double(), torch.randn(64, 128).T, torch.zeros(()).expand(128, 64), good.to("meta"), good.half()):
        assert not passes.takes_gradients(good, other)


class Watching(TorchDispatchMode):
    """Counts the package's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "capsbench":
            self.seen[func.name()] += 1
        return func(*args, **kwargs or {})


def profiled() -> Counter[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step_of_64()
    return Counter(event.name for event in profile.events() if event.name.startswith("capsbench::"))


def dispatched() -> Counter[str]:
    with Watching() as mode:
        step_of_64()
    return mode.seen


def step_of_64() -> None:
    stack = MomentumStack([nn.Linear(64, 64) for _ in range(3)], inverse="exact")
    stack(torch.randn(64, 64, requires_grad=True)).backward(torch.randn(64, 64))


@pytest.mark.parametrize("watch", [profiled, dispatched])
def test_who_watches_operators_sees_the_passes(watch):
    names = {"exact_advance": 3, "exact_retreat_x": 1, "exact_retreat": 3, "momentum_gradients": 2}
    assert watch() == {f"capsbench::{name}": count for name, count in names.items()}


def test_a_subclass_of_tensors_sees_the_passes():
    class Own(Tensor):
        pass

    plain = torch.zeros(3)
    assert passes._is_plain(plain, plain)
    assert not passes._is_plain(plain, plain.as_subclass(Own))
    assert not passes._is_plain(plain.to("meta"))


def test_a_wrong_layout_is_refused():
    x = torch.zeros(3, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="strides"):
        torch.ops.capsbench.exact_retreat(x, x, x, torch.zeros(4, 3).T, 9, 10, 0.1 * UNITS)


def test_the_helper_sees_other_bits():
    x = torch.arange(3)
    with pytest.raises(AssertionError):
        assert_same([x], [x + torch.tensor([0, 0, 1])])
    with pytest.raises(AssertionError):
        assert_same([x], [x.float()])


def test_without_a_compiler_the_reason_is_given(monkeypatch):
    monkeypatch.setattr(passes, "library", lambda: passes.NativeLibrary(None, "none here"))
    assert not passes.has_passes(torch.zeros(1, dtype=torch.int64), torch.float32)
    with pytest.raises(ConfigurationError, match="none here"):
        passes._function.__wrapped__("advance", torch.float32)
