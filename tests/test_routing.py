"""Every kernel computes the same routing, outputs and gradients; the reference equals a loop written here."""

import itertools
import math

import numpy as np
import pytest
import torch
from comparing import assert_all_close, assert_close, saved_by_autograd
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from capsbench.errors import ConfigurationError, ShapeError
from capsbench.routing import algorithms, check_routing, kernels, published, recompute, resolve_kernel, route, squash

RELATIVE = {torch.float64: 1e-12, torch.float32: 1e-5}

# B, I, K, J, D
SIZES = [(2, 6, 3, 4, 5), (1, 7, 5, 3, 2), (3, 1, 4, 5, 3), (5, 11, 1, 1, 7), (2, 9, 3, 5, 1), (1, 1, 1, 1, 1), (4, 33, 8, 31, 8)]


@pytest.fixture(autouse=True, scope="module")
def exact_published():
    """The epsilon of the published squash is the one thing in which that kernel may differ; test_golden.py keeps it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "_EPSILON", 0.0)
        yield


def example(sizes, dtype=torch.float64, seed=0) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, weight, and a gradient of the output; votes large enough that agreement matters."""
    batch, count, dim, outputs, out_dim = sizes
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(batch, count, dim, generator=generator, dtype=torch.float64)
    weight = torch.randn(count, dim, outputs, out_dim, generator=generator, dtype=torch.float64)
    grad = torch.randn(batch, outputs, out_dim, generator=generator, dtype=torch.float64)
    return inputs.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), grad.to(dtype)


def outcome(inputs: Tensor, weight: Tensor, grad: Tensor, kernel: str, iterations: int = 3) -> list[Tensor]:
    """The output and the gradients of both inputs."""
    output = route(inputs, weight, iterations=iterations, kernel=kernel)
    return [output, *torch.autograd.grad(output, (inputs, weight), grad)]


def naive_rba(inputs: np.ndarray, weight: np.ndarray, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """Procedure 1 of Sabour et al., one number at a time: outputs `[B, J, D]` and the last coupling `[B, I, J]`."""
    batch, count, _ = inputs.shape
    outputs, dim = weight.shape[2:]
    v = np.zeros((batch, outputs, dim))
    coupling = np.zeros((batch, count, outputs))
    for b in range(batch):
        logits = np.zeros((count, outputs))
        for _ in range(iterations):
            for i in range(count):
                coupling[b, i] = np.exp(logits[i]) / np.exp(logits[i]).sum()
            for j in range(outputs):
                s = sum(coupling[b, i, j] * (inputs[b, i] @ weight[i, :, j]) for i in range(count))
                norm = np.sqrt((s**2).sum())
                v[b, j] = norm**2 / (1 + norm**2) * s / norm
            for i, j in itertools.product(range(count), range(outputs)):
                logits[i, j] += (inputs[b, i] @ weight[i, :, j]) @ v[b, j]
    return v, coupling


@pytest.mark.parametrize("iterations", [1, 2, 3, 4])
@pytest.mark.parametrize("sizes", SIZES[:-1], ids=str)
def test_reference_equals_the_naive_loop(sizes, iterations):
    inputs, weight, grad = example(sizes)
    expected, coupling = naive_rba(inputs.detach().numpy(), weight.detach().numpy(), iterations)
    # The last weighted sum is all that sees a gradient: its coupling is a constant.
    last = squash(torch.einsum("bij,bik,ikjd->bjd", torch.from_numpy(coupling), inputs, weight))
    assert_close(last, expected, relative=1e-12)
    gradients = torch.autograd.grad(last, (inputs, weight), grad)
    assert_all_close(outcome(inputs, weight, grad, "reference", iterations), [last, *gradients], relative=1e-12)


def test_iterations_matter():
    """Without this the tests above could not tell one round from four."""
    inputs, weight, grad = example(SIZES[0])
    for fewer in (1, 2, 3):
        with pytest.raises(AssertionError, match="relative error"):
            assert_all_close(
                outcome(inputs, weight, grad, "reference", fewer),
                outcome(inputs, weight, grad, "reference", fewer + 1),
                relative=1e-3,
            )


@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("iterations", [1, 2, 3, 4])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kernel", ["published", "recompute"])
def test_kernels_equal_the_reference(kernel, sizes, iterations, dtype):
    arguments = example(sizes, dtype)
    actual = outcome(*arguments, kernel, iterations)
    assert_all_close(actual, outcome(*arguments, "reference", iterations), relative=RELATIVE[dtype])


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    sizes=st.tuples(*[st.integers(1, 9)] * 5),
    iterations=st.integers(1, 4),
    kernel=st.sampled_from(["published", "recompute"]),
    tile_bytes=st.integers(1, 20_000),
    seed=st.integers(0, 2**16),
)
def test_kernels_equal_the_reference_at_any_size(sizes, iterations, kernel, tile_bytes, seed):
    arguments = example(sizes, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recompute._TILE_BYTES, "cpu", tile_bytes)
        actual = outcome(*arguments, kernel, iterations)
    # One-dimensional votes can nearly cancel, which magnifies rounding.
    assert_all_close(actual, outcome(*arguments, "reference", iterations), relative=1e-8)


@pytest.mark.parametrize("capsules_a_tile", [1, 2, 5, 10, 11, 100])
def test_tiles_of_any_size_agree(capsules_a_tile, monkeypatch):
    """Also where the last tile is smaller than the others, and where there is only one."""
    sizes = batch, _, _, outputs, out_dim = (3, 11, 4, 5, 6)
    arguments = example(sizes)
    monkeypatch.setitem(recompute._TILE_BYTES, "cpu", capsules_a_tile * batch * outputs * out_dim * 8)
    inputs, weight, _ = arguments
    assert len(list(recompute._tiles(inputs, weight))) == -(-11 // capsules_a_tile)
    assert_all_close(outcome(*arguments, "recompute"), outcome(*arguments, "reference"), relative=1e-12)


def test_tiny_votes_keep_their_gradient():
    """The paper's initialisation: weights of 0.01 and inputs far below 1, in float32."""
    inputs, weight, grad = example(SIZES[-1], torch.float32)
    small = (inputs * 1e-6).detach().requires_grad_(), (weight * 0.01).detach().requires_grad_(), grad
    assert_all_close(outcome(*small, "recompute"), outcome(*small, "reference"), relative=1e-5)


def test_zero_inputs_give_zero_and_no_nan():
    for kernel in ("reference", "recompute"):
        inputs, weight, grad = example(SIZES[0])
        with torch.no_grad():
            inputs.zero_()
        assert all(tensor.count_nonzero() == 0 for tensor in outcome(inputs, weight, grad, kernel))


def not_contiguous(tensor: Tensor) -> Tensor:
    """The same values with the order of the dimensions in memory reversed."""
    dims = tuple(reversed(range(tensor.dim())))
    return tensor.permute(dims).contiguous().permute(dims)


@pytest.mark.parametrize("kernel", kernels())
def test_inputs_need_not_be_contiguous(kernel):
    inputs, weight, grad = example(SIZES[0])
    expected = outcome(inputs, weight, grad, kernel)
    strange = [not_contiguous(tensor.detach()) for tensor in (inputs, weight, grad)]
    assert not any(tensor.is_contiguous() for tensor in strange)
    assert_all_close(
        outcome(strange[0].requires_grad_(), strange[1].requires_grad_(), strange[2], kernel), expected, relative=1e-12
    )


@pytest.mark.parametrize("kernel", kernels())
def test_an_input_expanded_over_the_batch(kernel):
    inputs, weight, grad = example(SIZES[0])
    one = inputs[:1].detach().requires_grad_()
    actual = torch.autograd.grad(route(one.expand(2, -1, -1), weight, kernel=kernel), (one, weight), grad)
    twice = one.detach().repeat(2, 1, 1).requires_grad_()
    by_sample, of_weight = torch.autograd.grad(route(twice, weight, kernel="reference"), (twice, weight), grad)
    assert_all_close(actual, [by_sample.sum(0, keepdim=True), of_weight], relative=1e-12)


@pytest.mark.parametrize("frozen", ["inputs", "weight"])
@pytest.mark.parametrize("kernel", kernels())
def test_only_one_needs_a_gradient(kernel, frozen):
    inputs, weight, grad = example(SIZES[0])
    _, grad_inputs, grad_weight = outcome(inputs, weight, grad, "reference")
    needed, expected = (weight, grad_weight) if frozen == "inputs" else (inputs, grad_inputs)
    (inputs if frozen == "inputs" else weight).requires_grad_(False)
    route(inputs, weight, kernel=kernel).backward(grad)
    assert_close(needed.grad, expected, relative=1e-12)
    assert (inputs if frozen == "inputs" else weight).grad is None


@pytest.mark.parametrize("kernel", kernels())
def test_without_gradients_there_is_no_graph(kernel):
    inputs, weight, _ = example(SIZES[0])
    with torch.no_grad():
        output = route(inputs, weight, kernel=kernel)
    assert not output.requires_grad
    assert_close(output, route(inputs, weight, kernel=kernel), relative=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kernel", kernels())
def test_half_precision_is_routed_in_float32(kernel, dtype):
    inputs, weight, grad = (tensor.detach() for tensor in example(SIZES[0], dtype))
    wide = [inputs.float().requires_grad_(), weight.float().requires_grad_(), grad.float()]
    expected, *gradients = outcome(*wide, kernel)
    output, *narrow = outcome(inputs.requires_grad_(), weight.requires_grad_(), grad.float(), kernel)
    assert_close(output, expected, relative=0)
    # A gradient has the dtype of what it belongs to, rounded once.
    assert_all_close(narrow, [gradient.to(dtype) for gradient in gradients], relative=0)


@pytest.mark.parametrize("kernel", kernels())
def test_autocast_leaves_routing_in_float32(kernel):
    arguments = example(SIZES[0], torch.float32)
    expected = outcome(*arguments, kernel)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = route(*arguments[:2], kernel=kernel)
        # Or nothing is proved: here a plain product does lose precision.
        assert (arguments[0] @ arguments[1].flatten(2)[:1]).dtype == torch.bfloat16
    assert_all_close([output, *torch.autograd.grad(output, arguments[:2], arguments[2])], expected, relative=0)


def saved_shapes(kernel: str, sizes) -> set[tuple[int, ...]]:
    inputs, weight, _ = example(sizes)
    with saved_by_autograd() as saved:
        route(inputs, weight, kernel=kernel)
    return {tuple(tensor.shape) for tensor in saved}


@pytest.mark.parametrize("sizes", [(3, 11, 2, 7, 5), (3, 13, 2, 17, 5)], ids=str)
def test_recompute_saves_no_votes(sizes):
    batch, count, dim, outputs, out_dim = sizes
    allowed = {(batch, count, dim), (count, dim, outputs, out_dim), (batch, outputs, out_dim)}
    assert saved_shapes("recompute", sizes) == allowed
    for keeps_votes in ("reference", "published"):
        others = saved_shapes(keeps_votes, sizes) - allowed
        assert max(math.prod(shape) for shape in others) >= batch * count * outputs


@pytest.mark.parametrize("kernel", kernels())
def test_a_second_backward_is_refused(kernel):
    inputs, weight, grad = example(SIZES[0])
    output = route(inputs, weight, kernel=kernel)
    output.backward(grad)
    with pytest.raises(RuntimeError, match="second time"):
        output.backward(grad)


def test_a_retained_graph_gives_the_same_gradient_again():
    inputs, weight, grad = example(SIZES[0])
    output = route(inputs, weight, kernel="recompute")
    first = torch.autograd.grad(output, (inputs, weight), grad, retain_graph=True)
    assert_all_close(torch.autograd.grad(output, (inputs, weight), grad), first, relative=0)


def test_recompute_refuses_a_double_backward():
    inputs, weight, grad = example(SIZES[0])
    first = torch.autograd.grad(route(inputs, weight, kernel="recompute"), inputs, grad.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first[0].sum().backward()


@pytest.mark.parametrize("changed", ["inputs", "weight"])
def test_recompute_notices_a_change_before_backward(changed):
    inputs, weight, grad = example(SIZES[0])
    output = route(inputs, weight, kernel="recompute")
    with torch.no_grad():
        (inputs if changed == "inputs" else weight).mul_(2)
    with pytest.raises(RuntimeError, match="inplace"):
        output.backward(grad)


@pytest.mark.parametrize("kernel", kernels())
def test_gradcheck(kernel):
    """With one iteration the coupling is a constant in truth, so numeric and analytic gradients are the same thing."""
    inputs, weight, _ = example((2, 3, 2, 3, 2))
    assert torch.autograd.gradcheck(lambda u, w: route(u, w, iterations=1, kernel=kernel), (inputs, weight))


@pytest.mark.parametrize(
    ("inputs", "weight"),
    [
        ([2, 6], [6, 3, 4, 5]),
        ([2, 6, 3], [6, 3, 20]),
        ([2, 7, 3], [6, 3, 4, 5]),
        ([2, 6, 4], [6, 3, 4, 5]),
        ([2, 6, 3], [6, 3, 0, 5]),
    ],
    ids=str,
)
def test_shapes_that_do_not_fit(inputs, weight):
    with pytest.raises(ShapeError) as refused:
        route(torch.zeros(inputs), torch.zeros(weight))
    assert str(inputs) in refused.value.what
    assert str(weight) in refused.value.what
    assert refused.value.hint


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"algorithm": "agreement"}, "'agreement'"),
        ({"kernel": "fastest"}, "'fastest'"),
        ({"iterations": 0}, "0"),
        ({"iterations": -3}, "-3"),
        ({"bias": torch.zeros(4, 5)}, "[4, 5]"),
    ],
    ids=str,
)
def test_options_that_make_no_sense(options, said):
    inputs, weight, _ = example(SIZES[0])
    with pytest.raises(ConfigurationError) as refused:
        route(inputs, weight, **options)
    assert said in refused.value.what
    assert refused.value.hint


def test_names():
    assert algorithms() == ("rba",)
    assert kernels() == ("reference", "published", "recompute")
    assert [resolve_kernel(kernel) for kernel in ("auto", *kernels())] == ["recompute", *kernels()]
    with pytest.raises(ConfigurationError, match=r"'em'.*\n.*rba"):
        kernels("em")
    with pytest.raises(ConfigurationError, match=r"'x'.*\n.*auto.*recompute"):
        check_routing("rba", "x", 3)


def test_auto_is_recompute():
    arguments = example(SIZES[0])
    assert_all_close(outcome(*arguments, "auto"), outcome(*arguments, "recompute"), relative=0)
