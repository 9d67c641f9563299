"""Reversal without a depth limit: fixed point comes back bit for bit, segments stay within their bound, drift is reported."""

import copy
import math
import warnings
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from capsbench.errors import ConfigurationError
from capsbench.reversible import (
    DRIFT_BOUND,
    INVERSES,
    DriftWarning,
    MomentumStack,
    drift_bound,
    resolve_inverse,
    retained_bits,
    segment_length,
)
from capsbench.reversible.fixed_point import LIMIT, Remainders, from_units, largest, largest_in_units, ratio_of, to_units
from helpers.comparing import assert_alive, assert_all_close, assert_close, relative_error, saved_by_autograd

WIDTH = 8
GAMMAS = [0.5, 0.9, 0.99]
UNIT = 2.0**-50


class Small(nn.Module):
    """tanh(x·W): a residual function that takes no time."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.05 * torch.randn(WIDTH, WIDTH, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight)


def functions(depth: int) -> nn.ModuleList:
    """Functions that differ from one another, float64."""
    torch.manual_seed(0)
    return nn.ModuleList(Small() for _ in range(depth))


def example(dtype=torch.float32) -> tuple[Tensor, Tensor]:
    """An input and a gradient of the output, the same numbers in each dtype."""
    generator = torch.Generator().manual_seed(1)
    x, grad = (torch.randn(2, WIDTH, generator=generator).to(dtype) for _ in range(2))
    return x.requires_grad_(), grad


def gradients(layers: nn.ModuleList, dtype=torch.float32, **options) -> list[Tensor]:
    """Gradients of the input and all parameters, as float64."""
    stack = MomentumStack(copy.deepcopy(layers).to(dtype), **options)
    x, grad = example(dtype)
    stack(x).backward(grad)
    return [x.grad.double(), *(parameter.grad.double() for parameter in stack.parameters())]


def worst(actual: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative error of a gradient."""
    return max(relative_error(mine, theirs) for mine, theirs in zip(actual, expected, strict=True))


# Products that can be undone


def chain(gamma: float, products: int, seed: int = 0) -> tuple[list[Tensor], list[Tensor], Remainders]:
    """v before each product and what is added after it, and the remainders: v ← v·n/d + added."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.randint(-LIMIT, LIMIT, (50,), generator=generator)
    passed, added, remainders = [v], [], Remainders(torch.zeros_like(v))
    for _ in range(products):
        added.append(torch.randint(-(2**50), 2**50, (50,), generator=generator))
        v = remainders.multiply(v, ratio_of(gamma)) + added[-1]
        passed.append(v)
    return passed, added, remainders


@pytest.mark.parametrize(
    ("gamma", "words"), [(0.5, 62), (0.9, 9), (0.99, 1), (1 / 3, 99), (0.123456, 188), (2**-16, 1000), (1, 0)]
)
def test_2000_products_are_undone_bit_for_bit(gamma, words):
    passed, added, remainders = chain(gamma, 2000)
    tensors, rebuild = remainders.saved()
    assert len(tensors) == 1 + words
    remainders, v = rebuild(tensors), passed[-1]
    for before, what in zip(reversed(passed[:-1]), reversed(added), strict=True):
        v = remainders.undo(v - what, ratio_of(gamma))
        assert torch.equal(v, before)
    assert remainders.store.count_nonzero() == 0
    kept = 8 * sum(tensor.nbytes for tensor in tensors) / 50
    # The limit of information theory, and the last word.
    assert 2000 * math.log2(1 / gamma) <= kept <= 2000 * math.log2(1 / gamma) + 32


@settings(deadline=None, max_examples=60, derandomize=True)
@given(gamma=st.floats(0.01, 0.99) | st.just(1.0), products=st.integers(1, 60), seed=st.integers(0, 999))
def test_any_gamma_is_undone(gamma, products, seed):
    passed, added, remainders = chain(gamma, products, seed)
    v = passed[-1]
    for before, what in zip(reversed(passed[:-1]), reversed(added), strict=True):
        v = remainders.undo(v - what, ratio_of(gamma))
        assert torch.equal(v, before)
    assert remainders.products == 0


def test_a_product_is_the_product():
    (before, _), _, remainders = chain(0.9, 1)
    product = remainders.multiply(before, ratio_of(0.9)).tolist()
    exact = [Fraction(9, 10) * v for v in before.tolist()]
    # The store's digit is below n, so it moves the result by less than n units.
    assert all(abs(have - want) < 9 for have, want in zip(product, exact, strict=True))


def test_the_ratio_that_stands_for_gamma():
    assert [ratio_of(gamma) for gamma in (0.9, 0.99, 0.5, 1)] == [Fraction(9, 10), Fraction(99, 100), Fraction(1, 2), 1]
    for gamma in (math.pi / 4, 0.9999, 1e-4, 1 - 2**-16):
        assert abs(ratio_of(gamma) - Fraction(gamma)) <= Fraction(1, 1000) * min(Fraction(gamma), 1 - Fraction(gamma))
    # The nearest ratio would be another γ: the identity, or another share of f(x).
    for gamma in (1e-6, 1e-5, 0.99999, 0.999999):
        with pytest.raises(ConfigurationError, match=f"{gamma}"):
            ratio_of(gamma)


@settings(deadline=None, derandomize=True)
@given(value=st.floats(-2048, 2048, width=32, exclude_min=True, exclude_max=True))
def test_what_a_unit_can_hold(value):
    number = torch.tensor([value], dtype=torch.float32)
    back = from_units(to_units(number), torch.float32).item()
    assert abs(back - value) <= (0 if abs(value) >= 2**-27 else UNIT / 2)
    assert largest_in_units(number).item() == abs(value) / UNIT < LIMIT


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_the_largest_magnitude(dtype):
    assert largest(torch.tensor([1, -3, 2], dtype=dtype)).item() == 3
    assert largest(torch.zeros(0, dtype=dtype)).item() == 0
    if dtype.is_floating_point:
        assert largest(torch.tensor([1, float("nan"), 2], dtype=dtype)).isnan()
        assert largest(torch.tensor([1, -math.inf], dtype=dtype)).item() == math.inf


# A stack that comes back


class Recorder(nn.Module):
    """Remembers what it was given, forward and in backward."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach())
        return self.function(x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gamma", "depth", "dtype"),
    [
        *((gamma, 2000, torch.float32) for gamma in GAMMAS),
        (1 / 3, 100, torch.float32),
        (0.9, 100, torch.float64),
        (1, 5, torch.float64),
    ],
)
def test_exact_rebuilds_every_input_bit_for_bit(gamma, depth, dtype):
    recorders = [Recorder(layer) for layer in functions(depth).to(dtype)]
    stack = MomentumStack(recorders, gamma, inverse="exact")
    x, grad = example(dtype)
    stack(x).backward(grad)
    assert all(len(recorder.seen) == 2 and torch.equal(*recorder.seen) for recorder in recorders)
    assert torch.equal(recorders[0].seen[1], x)  # the numbers of `example` have no bit below a unit
    assert gamma == 1 or relative_error(recorders[-1].seen[0], recorders[0].seen[0]) > 0.01


def test_the_input_is_rounded_to_a_unit():
    recorder = Recorder(functions(1)[0].float())
    tiny = torch.full((1, WIDTH), 2.6 * UNIT)
    MomentumStack([recorder], inverse="exact")(tiny)
    assert_close(recorder.seen[0], torch.full_like(tiny, 3 * UNIT), relative=0)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("depth", [80, pytest.param(2000, marks=pytest.mark.slow)])
def test_gradients_are_those_of_float32_stored(depth, gamma):
    layers = functions(depth)
    truth = gradients(layers, torch.float64, gamma=gamma, memory="stored")
    stored = worst(gradients(layers, gamma=gamma, memory="stored"), truth)
    for inverse in ("exact", "segmented"):
        with warnings.catch_warnings():
            warnings.simplefilter("error", DriftWarning)
            error = worst(gradients(layers, gamma=gamma, inverse=inverse), truth)
        assert 0 < error <= 3 * stored


@pytest.mark.parametrize("memory", ["stored", "reversible"])
def test_gamma_1_moves_nothing(memory):
    layers = functions(5)
    actual = gradients(layers, gamma=1, memory=memory, inverse="exact")
    assert_close(actual[0], example()[1].double(), relative=0)


@pytest.mark.slow
@pytest.mark.parametrize("gamma", GAMMAS)
def test_exact_keeps_little_more_than_theory_asks_for(gamma):
    def bits(depth: int) -> float:
        stack = MomentumStack(functions(depth).float(), gamma, inverse="exact")
        weights = {parameter.data_ptr() for parameter in stack.parameters()}
        x, _ = example()
        with saved_by_autograd() as saved:
            stack(x)
        return 8 * sum(tensor.nbytes for tensor in saved if tensor.data_ptr() not in weights) / x.numel()

    per_layer = (bits(2000) - 128) / 2000
    assert math.log2(1 / gamma) <= per_layer <= math.log2(1 / gamma) + 0.017
    if gamma == 0.9:
        assert per_layer <= 0.2
    # What the choice of `auto` counts with, up to one word.
    for depth in (80, 2000):
        assert abs(bits(depth) - retained_bits("exact", depth, gamma)) <= 32


@pytest.mark.parametrize("depth", [1, 16, 17, 80])
def test_segmented_keeps_what_is_said(depth):
    stack = MomentumStack(functions(depth).float(), inverse="segmented")
    weights = {parameter.data_ptr() for parameter in stack.parameters()}
    x, _ = example()
    with saved_by_autograd() as saved:
        stack(x)
    found = 8 * sum(tensor.nbytes for tensor in saved if tensor.data_ptr() not in weights) / x.numel()
    assert found == retained_bits("segmented", depth, 0.9)


# What fixed point cannot hold


class Gives(nn.Module):
    """A function with one value for any input."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.value)


@pytest.mark.parametrize(
    ("values", "start", "said"),
    [
        ([1, float("nan"), 1], 0, "after function 1 is NaN"),
        ([1, 1, float("inf")], 0, "after function 2"),
        ([-1e30], 0, "after function 0"),
        ([4097], 0, "after function 0"),
        ([1, 1], 3000, "in the stack's input"),
        ([1], float("nan"), "in the stack's input is NaN"),
        ([2000] * 5, 1000, "after function 1"),  # no value is too large, their sum is
        ([-2000] * 5, -1000, "after function 1"),
        ([1e4, *[1e18] * 60], 0, "after function 0"),  # and wrapping round later changes nothing
    ],
    ids=str,
)
def test_what_leaves_the_range_is_refused(values, start, said):
    stack = MomentumStack([Gives(value) for value in values], 0.5, inverse="exact")
    x = torch.tensor([[0.5, start], [0, 0]], requires_grad=True)  # one element is enough
    with pytest.raises(ConfigurationError) as refused:
        stack(x)
    assert said in refused.value.what
    assert "inverse" in refused.value.hint


def test_auto_goes_on_where_exact_cannot(caplog):
    """The first step past the range is computed again with `segmented`, and all later ones at once; it is logged once."""
    stack = MomentumStack(functions(20).float())
    segmented = copy.deepcopy(stack)
    segmented.inverse = "segmented"
    assert stack.resolved_inverse() == "exact"

    def gradients_of(one: MomentumStack, scale: float) -> list[Tensor]:
        one.zero_grad()
        x, grad = example()
        one(x * scale).backward(grad)
        return [x.grad, *(parameter.grad.clone() for parameter in one.parameters())]

    gradients_of(stack, 10)
    assert not stack.left_range
    found = [gradients_of(stack, 3000) for _ in range(2)]
    assert stack.resolved_inverse() == "segmented"
    (said,) = caplog.messages
    assert "in the stack's input" in said
    assert "segmented" in said
    expected = gradients_of(segmented, 3000)
    for one in found:
        assert_all_close(one, expected, relative=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_auto_hands_on_what_is_no_number(value, caplog):
    """Infinities and NaN come out as from stored activations; the next step may be sound."""
    stack = MomentumStack([*functions(20).float(), Gives(value)])
    x, _ = example()
    output = stack(x)
    output.sum().backward()
    assert not output.isfinite().any()
    assert (stack.left_range, stack.resolved_inverse(), caplog.messages) == (False, "exact", [])


@pytest.mark.parametrize("sign", [1, -1])
def test_the_edge_of_the_range_comes_back(sign):
    """Sums do not overflow for the largest x and values, in both signs."""
    layers = [Recorder(Gives(sign * (-1) ** place * 4090.0)) for place in range(40)]
    stack = MomentumStack(layers, 0.5, inverse="exact")
    x = torch.full((1, 1), -2000.0 * sign, requires_grad=True)
    stack(x).backward(torch.ones(1, 1))
    assert all(torch.equal(*layer.seen) for layer in layers)


@pytest.mark.parametrize("inverse", INVERSES)
def test_a_batch_of_none(inverse):
    stack = MomentumStack(functions(20).float(), inverse=inverse)
    x = torch.zeros(0, WIDTH, requires_grad=True)
    stack(x).sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("inverse", INVERSES)
def test_shapes_without_values(inverse):
    """Memory is predicted on meta tensors."""
    stack = MomentumStack(functions(40).float(), inverse=inverse).to("meta")
    x = torch.zeros(2, WIDTH, device="meta", requires_grad=True)
    stack(x).sum().backward()
    assert x.grad.shape == x.shape


def test_gamma_too_small_for_a_ratio_is_refused_at_once():
    with pytest.raises(ConfigurationError, match="1e-06"):
        MomentumStack(functions(1), 1e-6, inverse="exact")
    assert resolve_inverse("auto", 100, 1e-6) == "segmented"


def test_gamma_near_1_still_learns():
    """The ratio would be 1 here, and the stack the identity."""
    assert resolve_inverse("auto", 200, 0.999999) != "exact"
    stack = MomentumStack(functions(200), 0.999999).float()
    stack(torch.randn(3, 8)).sum().backward()
    assert_alive(next(stack.parameters()).grad)


# Drift is reported


def warned(layers: nn.ModuleList, **options) -> list[str]:
    """Warnings of a training step about drift."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gradients(layers, **options)
    return [str(warning.message) for warning in caught if warning.category is DriftWarning]


def test_a_float_inverse_that_drifts_says_so():
    layers = functions(200)
    truth = gradients(layers, torch.float64, memory="stored")
    with pytest.warns(DriftWarning, match="drifted by .*function 0"):
        lost = gradients(layers, inverse="float")
    assert worst(lost, truth) > 0.01
    assert not warned(functions(40), inverse="float")


class Steep(nn.Module):
    """Far from what is assumed: its slope changes sign from place to place, and reaches 40."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(40.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.weight * x)


def test_segments_that_drift_say_so():
    steep = nn.ModuleList(Steep() for _ in range(48))
    said = warned(steep, inverse="segmented")
    assert said
    assert all("gradients are wrong" in line and "'segmented'" in line for line in said)
    # Given the right bound, it takes segments short enough.
    assert not warned(steep, inverse="segmented", lipschitz=40.0)
    assert not warned(steep, inverse="exact")


def test_a_function_that_gives_other_bits_is_noticed():
    class Fickle(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return torch.sin(x) * (1.001 if self.calls == 2 else 1)

    said = warned(nn.ModuleList(Fickle() for _ in range(3)), inverse="exact")
    assert len(said) == 1
    assert "same bits twice" in said[0]


@pytest.mark.parametrize("inverse", ["float", "segmented", "exact"])
def test_drift_of_nothing_is_nothing(inverse):
    """An input of zeros has no size to compare with."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DriftWarning)
        for layers in ([Gives(0)] * 3, [Gives(1), *functions(10).float()]):
            x = torch.zeros(2, WIDTH, requires_grad=True)
            MomentumStack(layers, inverse=inverse)(x).sum().backward()


@pytest.mark.slow
@settings(deadline=None, max_examples=40, derandomize=True)
@given(gamma=st.floats(0.2, 0.999), slope=st.floats(-2, 2), seed=st.integers(0, 999))
def test_a_segment_stays_within_its_bound(gamma, slope, seed):
    """Errors grow as fast as the bound with a positive slope; x stays near its value, as the bound assumes."""
    generator = torch.Generator().manual_seed(seed)
    x, near = torch.randn(2, 64, generator=generator)

    class Anchored(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            return slope * (y - anchor + 1e-4 * near)

    anchor = x.clone()
    stack = MomentumStack([Anchored()] * segment_length(gamma, abs(slope)), gamma, inverse="float")
    x.requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error", DriftWarning)
        stack(x).sum().backward()
    assert_alive(x.grad)


def test_segment_lengths():
    assert [segment_length(gamma) for gamma in (0.5, 0.9, 0.99, 1)] == [6, 16, 31, None]
    lengths = [segment_length(0.9, lipschitz) for lipschitz in (0, 0.01, 0.5, 1, 10, 1e6)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] == 1
    for gamma in GAMMAS:
        length = segment_length(gamma)
        assert drift_bound(length, gamma) <= DRIFT_BOUND < drift_bound(length + 1, gamma)
    assert drift_bound(5000, 0.5) == math.inf
    assert drift_bound(5000, 1) == 0
    assert segment_length(0.9, bound=10 * DRIFT_BOUND) > segment_length(0.9) > segment_length(0.9, bound=DRIFT_BOUND / 10)


# What auto is


def test_auto_is_float_in_the_papers_range_and_then_what_keeps_less():
    assert [resolve_inverse("auto", 2 * blocks, 0.9) for blocks in range(1, 9)] == ["float"] * 8
    assert resolve_inverse("auto", 17, 0.9) == "exact"
    assert resolve_inverse("auto", 2000, 1) == "float"
    assert [resolve_inverse("auto", depth, 0.9, dtype=torch.float64) for depth in (16, 17)] == ["float", "segmented"]
    for gamma in GAMMAS:
        for depth in (1, 10, 100, 2000):
            chosen = resolve_inverse("auto", depth, gamma)
            kept = {inverse: retained_bits(inverse, depth, gamma) for inverse in ("float", "exact", "segmented")}
            assert kept[chosen] == min(kept.values()) < math.inf


def test_what_is_asked_for_is_not_changed():
    assert [resolve_inverse(inverse, 2000, 0.9) for inverse in INVERSES[1:]] == list(INVERSES[1:])
    for asked, gamma, said in (("exactly", 0.9, "'exactly'"), ("auto", 0, "`gamma` 0"), ("exact", 1e-9, "1e-09")):
        with pytest.raises(ConfigurationError, match=said):
            resolve_inverse(asked, 3, gamma)


def test_auto_of_a_stack_follows_its_functions():
    stack = MomentumStack(functions(16).float())
    assert (stack.inverse, stack.resolved_inverse()) == ("auto", "float")
    stack.functions.extend(functions(100).float())
    assert (stack.inverse, stack.resolved_inverse()) == ("auto", "exact")
    x, grad = example()
    stack(x).backward(grad)
    assert_all_close([x.grad.double()], gradients(nn.ModuleList(stack.functions), inverse="exact")[:1], relative=0)
    with pytest.raises(ConfigurationError, match="`lipschitz` -1"):
        MomentumStack(functions(1), lipschitz=-1)
