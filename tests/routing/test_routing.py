"""Every kernel computes the same routing, outputs and gradients; the reference equals a loop written here."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from capsbench.errors import ConfigurationError, ShapeError
from capsbench.routing import (
    algorithms,
    check_routing,
    kernels,
    published,
    reference,
    resolve_kernel,
    route,
    route_and_vjp,
    route_keeping,
    squash,
    tiles,
)
from helpers.comparing import assert_alive, assert_all_close, assert_close, relative_error, saved_by_autograd
from helpers.votes import SIZES, example, leaf, not_contiguous, outcome

RELATIVE = {torch.float64: 1e-12, torch.float32: 2e-5}


# Without a GPU `triton` runs in an interpreter, in a process of its own: test_fused.py.
PAIRS = [(algorithm, kernel) for algorithm in algorithms() for kernel in kernels(algorithm) if kernel != "triton"]
CANDIDATES = [(algorithm, kernel) for algorithm, kernel in PAIRS if kernel != "reference"]


@pytest.fixture(autouse=True, scope="module")
def exact_published():
    """The epsilon of the published squash is the one thing in which that kernel may differ; test_golden.py keeps it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "_EPSILON", 0.0)
        yield


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


def naive_limited(inputs: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """SDA's votes `[B, I, J, D]`, one at a time."""
    u_hat = np.einsum("bik,ikjd->bijd", inputs, weight)
    for b, i, j in np.ndindex(u_hat.shape[:3]):
        norm = np.linalg.norm(u_hat[b, i, j])
        u_hat[b, i, j] *= min(norm, np.linalg.norm(inputs[b, i])) / norm
    return u_hat


def naive_sda(inputs: np.ndarray, weight: np.ndarray, bias: np.ndarray, iterations: int, published: bool) -> tuple:
    """Votes `[B, I, J, D]` and the last coupling `[B, I, J]` of scaled-distance agreement."""
    u_hat = naive_limited(inputs, weight)
    outputs = weight.shape[2]
    logits = np.zeros(u_hat.shape[:3])
    for _ in range(iterations):
        coupling = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        s = (coupling[..., None] * u_hat).sum(1) + bias
        norm = np.linalg.norm(s, axis=-1, keepdims=True)
        d = np.linalg.norm((norm / (1 + norm**2) * s)[:, None] - u_hat, axis=-1)
        far, near = d.mean(), 0.5 * d.mean()
        wanted, rest = np.log(0.9 * (outputs - 1)), np.log(1 - 0.9)
        t = wanted - rest / (near - far + 1e-12) if published else (wanted - rest) / (near - far + 1e-12)
        logits = t * d
    return u_hat, coupling


def naive_em(inputs, weight, bias, beta_u, beta_a, iterations) -> np.ndarray:
    """EM routing of procedure 1 (Hinton et al. 2018), sample by sample and output capsule by output capsule."""
    batch, count, _ = inputs.shape
    outputs, dim = weight.shape[2:]
    result = np.zeros((batch, outputs, dim))
    for b in range(batch):
        votes = np.einsum("ik,ikjd->ijd", inputs[b], weight) + bias
        a = np.linalg.norm(inputs[b], axis=-1)
        responsibility = np.full((count, outputs), 1 / outputs)
        for index in range(iterations):
            density, a_out = np.zeros((count, outputs)), np.zeros(outputs)
            for j in range(outputs):
                mass = responsibility[:, j] * a
                mean = sum(mass[i] * votes[i, j] for i in range(count)) / mass.sum()
                variance = sum(mass[i] * (votes[i, j] - mean) ** 2 for i in range(count)) / mass.sum() + 1e-4
                cost = sum((beta_u[j] + 0.5 * np.log(variance[h])) * mass.sum() for h in range(dim))
                a_out[j] = 1 / (1 + np.exp(-0.01 * (1 - 0.95 ** (index + 1)) * (beta_a[j] - cost)))
                normal = np.exp(-((votes[:, j] - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
                density[:, j] = a_out[j] * normal.prod(-1)
                result[b, j] = a_out[j] * mean / np.linalg.norm(mean)
            responsibility = density / density.sum(-1, keepdims=True)
    return result


@pytest.mark.parametrize("iterations", [1, 2, 3, 4])
@pytest.mark.parametrize("sizes", SIZES[:-1], ids=str)
def test_reference_equals_the_naive_loop(sizes, iterations):
    given = example(sizes)
    expected, coupling = naive_rba(given.inputs.detach().numpy(), given.weight.detach().numpy(), iterations)
    # The last weighted sum is all that sees a gradient: its coupling is a constant.
    last = squash(torch.einsum("bij,bik,ikjd->bjd", torch.from_numpy(coupling), given.inputs, given.weight))
    assert_close(last, expected, relative=1e-12)
    gradients = torch.autograd.grad(last, given.tensors, given.grad)
    assert_all_close(outcome(given, "reference", iterations), [last, *gradients], relative=1e-12)


@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("sizes", [sizes for sizes in SIZES if sizes[3] > 1], ids=str)
@pytest.mark.parametrize("algorithm", ["sda", "sda-published"])
def test_sda_equals_the_naive_loop(algorithm, sizes, iterations):
    given = example(sizes, algorithm=algorithm)
    arrays = [tensor.detach().numpy() for tensor in given.tensors]
    u_hat, coupling = naive_sda(*arrays, iterations, algorithm == "sda-published")
    norm, most = np.linalg.norm(u_hat, axis=-1), np.linalg.norm(arrays[0], axis=-1)[..., None]
    assert (norm <= most * (1 + 1e-12)).all()
    # Autograd through the limit as the equation has it: min(‖û‖, ‖u‖)/‖û‖.
    votes = torch.einsum("bik,ikjd->bijd", given.inputs, given.weight)
    length_of_votes = votes.norm(dim=-1, keepdim=True)
    limited = votes * torch.minimum(length_of_votes, given.inputs.norm(dim=-1)[..., None, None]) / length_of_votes
    last = squash(torch.einsum("bij,bijd->bjd", torch.from_numpy(coupling), limited) + given.extras["bias"])
    gradients = torch.autograd.grad(last, given.tensors, given.grad)
    assert_all_close(outcome(given, "reference", iterations), [last, *gradients], relative=1e-10)


def test_sda_limits_some_votes_and_not_others():
    """Some votes are limited and others not, or the tests above would not see both."""
    given = example(SIZES[-1], algorithm="sda")
    votes = torch.einsum("bik,ikjd->bijd", given.inputs, given.weight).norm(dim=-1)
    share = (votes > given.inputs.norm(dim=-1, keepdim=True)).double().mean().item()
    assert 0.1 < share < 0.9


def test_the_two_temperatures_differ():
    given = example(SIZES[0], algorithm="sda")
    with pytest.raises(AssertionError, match="relative error"):
        assert_all_close(
            outcome(given._replace(algorithm="sda-published"), "reference"), outcome(given, "reference"), relative=1e-3
        )


@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_em_equals_the_naive_loop(sizes, iterations):
    given = example(sizes, algorithm="em")
    expected = naive_em(*(tensor.detach().numpy() for tensor in given.tensors), iterations)
    assert_close(given.route("reference", iterations), expected, relative=1e-9)


@pytest.mark.parametrize("algorithm", algorithms())
def test_iterations_matter(algorithm):
    """Rounds differ, or the tests above could not distinguish one round from four."""
    given = example(SIZES[0], algorithm=algorithm)
    for fewer in (1, 2, 3):
        with pytest.raises(AssertionError, match="relative error"):
            assert_all_close(outcome(given, "reference", fewer), outcome(given, "reference", fewer + 1), relative=1e-4)


@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("iterations", [1, 2, 3, 4])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("algorithm", "kernel"), CANDIDATES)
def test_kernels_equal_the_reference(algorithm, kernel, sizes, iterations, dtype):
    given = example(sizes, dtype, algorithm=algorithm)
    actual, expected = outcome(given, kernel, iterations), outcome(given, "reference", iterations)
    assert_close(actual[0], expected[0], relative=RELATIVE[dtype])
    if sizes[4] == 1 and (algorithm == "em" or (sizes[2] == 1 and algorithm != "rba")):
        return  # a direction in one dimension has gradient 0, of which rounding is all that is left
    # EM's float32 gradients divide by variances down to 1e-4.
    assert_all_close(actual[1:], expected[1:], relative=RELATIVE[dtype] * (500 if algorithm == "em" else 10))


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    sizes=st.tuples(*[st.integers(1, 9)] * 2, *[st.integers(2, 9)] * 3),
    iterations=st.integers(1, 4),
    pair=st.sampled_from(CANDIDATES),
    tile_bytes=st.integers(1, 20_000),
    seed=st.integers(0, 2**16),
)
def test_kernels_equal_the_reference_at_any_size(sizes, iterations, pair, tile_bytes, seed):
    algorithm, kernel = pair
    given = example(sizes, seed=seed, algorithm=algorithm)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiles.TILE_BYTES, "cpu", tile_bytes)
        actual = outcome(given, kernel, iterations)
    # Few votes can nearly cancel, which magnifies rounding.
    assert_all_close(actual, outcome(given, "reference", iterations), relative=1e-7)


@pytest.mark.parametrize("algorithm", algorithms())
@pytest.mark.parametrize("capsules_a_tile", [1, 2, 5, 10, 11, 100])
def test_tiles_of_any_size_agree(capsules_a_tile, algorithm, monkeypatch):
    """The last tile may be smaller than the others, or the only one."""
    sizes = batch, _, _, outputs, out_dim = (3, 11, 4, 5, 6)
    given = example(sizes, algorithm=algorithm)
    monkeypatch.setitem(tiles.TILE_BYTES, "cpu", capsules_a_tile * batch * outputs * out_dim * 8)
    assert len(list(tiles.tiles(given.inputs, given.weight))) == -(-11 // capsules_a_tile)
    assert_all_close(outcome(given, "recompute"), outcome(given, "reference"), relative=1e-11)


@pytest.mark.parametrize("algorithm", ["rba", "em"])
def test_outputs_do_not_depend_on_how_a_batch_is_split(algorithm):
    given = example((6, 11, 4, 5, 6), algorithm=algorithm)
    parts = [given._replace(inputs=part).route("recompute") for part in given.inputs.split([1, 3, 2])]
    assert_close(torch.cat(parts), given.route("recompute"), relative=1e-12)


def test_sda_depends_on_its_batch_as_documented():
    given = example((6, 11, 4, 5, 6), algorithm="sda")
    with pytest.raises(AssertionError, match="relative error"):
        assert_close(given._replace(inputs=given.inputs[:3]).route("recompute"), given.route("recompute")[:3], relative=1e-6)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("algorithm", "kernel"), PAIRS)
def test_value_and_gradients_from_one_evaluation(algorithm, kernel, dtype, iterations, kept):
    given = example(SIZES[-1], dtype, algorithm=algorithm)
    output, *gradients = outcome(
        given._replace(grad=given.grad.to(torch.promote_types(dtype, torch.float32))), kernel, iterations
    )
    options = {"algorithm": algorithm, "iterations": iterations, "kernel": kernel}
    value, found = route_keeping(given.inputs, given.weight, **given.extras, **options)
    assert torch.equal(value, output)
    value, together = route_and_vjp(given.inputs, given.weight, given.grad, **given.extras, **options, kept=found if kept else ())
    assert torch.equal(value, output), "the exact inverse stands on the same bits"
    assert not value.requires_grad
    assert_all_close(together, gradients, relative=1e-6 if dtype != torch.bfloat16 else 1e-2)


@pytest.mark.parametrize("algorithm", ["rba", "sda", "sda-published"])
def test_what_is_kept_has_no_input_capsules_in_its_shape(algorithm):
    given = example((3, 11, 2, 7, 5), algorithm=algorithm)
    _, found = route_keeping(given.inputs, given.weight, **given.extras, algorithm=algorithm)
    assert found
    assert sum(tensor.numel() for tensor in found) <= 3 * 7 * 5 + 1


@pytest.mark.parametrize("algorithm", ["rba", "sda"])
def test_kept_spares_the_rounds(algorithm, monkeypatch):
    given = example(SIZES[-1], algorithm=algorithm)
    options = {"algorithm": algorithm, "iterations": 5, "kernel": "recompute"}
    _, found = route_keeping(given.inputs, given.weight, **given.extras, **options)
    counted = []
    monkeypatch.setattr(
        tiles.torch, "softmax", lambda *args, **kwargs: counted.append(1) or torch.nn.functional.softmax(*args, **kwargs)
    )
    route_and_vjp(given.inputs, given.weight, given.grad, **given.extras, **options, kept=found)
    with_kept = len(counted)
    route_and_vjp(given.inputs, given.weight, given.grad, **given.extras, **options)
    assert with_kept == 1
    assert len(counted) - with_kept == 4


@pytest.mark.parametrize("algorithm", algorithms())
def test_tiny_votes_keep_their_gradient(algorithm):
    """The paper's initialisation: weights of 0.01 and inputs far below 1, in float32."""
    given = example(SIZES[-1], torch.float32, algorithm=algorithm)
    small = given._replace(inputs=leaf(given.inputs * 1e-6), weight=leaf(given.weight * 0.01))
    actual, expected = outcome(small, "recompute"), outcome(small, "reference")
    if algorithm == "em":
        # Where votes are all but the bias, float32 cannot show what an input changes: the reference does no better.
        actual[1] = expected[1]
    assert_all_close(actual, expected, relative=1e-4)
    assert_alive(actual[2])


@pytest.mark.parametrize(("algorithm", "kernel"), [pair for pair in PAIRS if pair[1] != "published"])
def test_zero_inputs_give_no_nan(algorithm, kernel):
    given = example(SIZES[0], algorithm=algorithm)
    zero = given._replace(inputs=leaf(torch.zeros_like(given.inputs)))
    found = outcome(zero, kernel)
    assert all(tensor.isfinite().all() for tensor in found)
    if algorithm == "rba":
        assert all(tensor.count_nonzero() == 0 for tensor in found)


@pytest.mark.parametrize(("algorithm", "kernel"), PAIRS)
def test_inputs_need_not_be_contiguous(algorithm, kernel):
    given = example(SIZES[0], algorithm=algorithm)
    strange = given.map(not_contiguous)
    assert not any(tensor.is_contiguous() for tensor in (strange.inputs, strange.weight, strange.grad))
    assert_all_close(outcome(strange, kernel), outcome(given, kernel), relative=1e-11)


@pytest.mark.parametrize(("algorithm", "kernel"), PAIRS)
def test_an_input_expanded_over_the_batch(algorithm, kernel):
    given = example(SIZES[0], algorithm=algorithm)
    one = leaf(given.inputs[:1])
    actual = torch.autograd.grad(given._replace(inputs=one.expand(2, -1, -1)).route(kernel), (one, given.weight), given.grad)
    twice = given._replace(inputs=leaf(one.repeat(2, 1, 1)))
    _, by_sample, of_weight, *_ = outcome(twice, "reference")
    assert_all_close(actual, [by_sample.sum(0, keepdim=True), of_weight], relative=1e-11)


@pytest.mark.parametrize("needed", [0, 1, 2])
@pytest.mark.parametrize(("algorithm", "kernel"), PAIRS)
def test_only_one_needs_a_gradient(algorithm, kernel, needed):
    given = example(SIZES[0], algorithm=algorithm)
    if needed >= len(given.tensors):
        pytest.skip(f"{algorithm} has no third parameter")
    expected = outcome(given, "reference")[1 + needed]
    for index, tensor in enumerate(given.tensors):
        tensor.requires_grad_(index == needed)
    given.route(kernel).backward(given.grad)
    assert_close(given.tensors[needed].grad, expected, relative=1e-11)
    assert all(tensor.grad is None for index, tensor in enumerate(given.tensors) if index != needed)


@pytest.mark.parametrize(("algorithm", "kernel"), PAIRS)
def test_without_gradients_there_is_no_graph(algorithm, kernel):
    given = example(SIZES[0], algorithm=algorithm)
    with torch.no_grad():
        output = given.route(kernel)
    assert not output.requires_grad
    assert_close(output, given.route(kernel), relative=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("algorithm", "kernel"), PAIRS)
def test_half_precision_is_routed_in_float32(algorithm, kernel, dtype):
    narrow = example(SIZES[0], dtype, algorithm=algorithm)
    narrow = narrow._replace(grad=narrow.grad.float())
    expected, *gradients = outcome(narrow.map(Tensor.float), kernel)
    output, *found = outcome(narrow, kernel)
    assert_close(output, expected, relative=0)
    # A gradient has the dtype of what it belongs to, rounded once.
    assert_all_close(found, [gradient.to(dtype) for gradient in gradients], relative=0)


@pytest.mark.parametrize(("algorithm", "kernel"), PAIRS)
def test_autocast_leaves_routing_in_float32(algorithm, kernel):
    given = example(SIZES[0], torch.float32, algorithm=algorithm)
    expected = outcome(given, kernel)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = given.route(kernel)
        # Or nothing is proved: here a plain product does lose precision.
        assert (given.inputs @ given.weight.flatten(2)[:1]).dtype == torch.bfloat16
    assert_all_close([output, *torch.autograd.grad(output, given.tensors, given.grad)], expected, relative=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("algorithm", "kernel"), CANDIDATES)
def test_rounding_is_no_worse_than_plain_torch(algorithm, kernel, dtype):
    """Under autocast, against float64: at most twice the error of the equations in plain torch at the same precision."""
    given = example((8, 33, 8, 10, 8), algorithm=algorithm).map(lambda tensor: tensor.to(dtype))
    truth = outcome(given.map(Tensor.double), "reference")
    plain = given.map(Tensor.float)
    with torch.autocast("cpu", dtype=dtype):
        kernels_of = reference.sda if algorithm.startswith("sda") else getattr(reference, algorithm)
        slip = {"published": algorithm == "sda-published"} if algorithm.startswith("sda") else {}
        output = kernels_of(*plain.tensors, 3, **slip)
    theirs = [output, *torch.autograd.grad(output, plain.tensors, plain.grad.to(output.dtype))]
    with torch.autocast("cpu", dtype=dtype):
        output = plain.route(kernel)
    ours = [output, *torch.autograd.grad(output, plain.tensors, plain.grad)]
    for mine, other, true in zip(ours, theirs, truth, strict=True):
        assert relative_error(mine.double(), true) <= 2 * relative_error(other.double(), true)


def saved_shapes(kernel: str, sizes, algorithm: str) -> set[tuple[int, ...]]:
    given = example(sizes, algorithm=algorithm)
    with saved_by_autograd() as saved:
        given.route(kernel)
    return {tuple(tensor.shape) for tensor in saved}


@pytest.mark.parametrize("sizes", [(3, 11, 2, 7, 5), (3, 13, 2, 17, 5)], ids=str)
@pytest.mark.parametrize("algorithm", algorithms())
def test_recompute_saves_no_votes(algorithm, sizes):
    batch, count, dim, outputs, out_dim = sizes
    with_both = [
        shape
        for shape in saved_shapes("recompute", sizes, algorithm)
        if count in shape and outputs in shape and shape != (count, dim, outputs, out_dim)
    ]
    assert not with_both
    for keeps_votes in kernels(algorithm):
        if keeps_votes in ("reference", "published"):
            shapes = saved_shapes(keeps_votes, sizes, algorithm)
            assert max(math.prod(shape) for shape in shapes - {(count, dim, outputs, out_dim)}) >= batch * count * outputs


@pytest.mark.parametrize(("algorithm", "kernel"), PAIRS)
def test_a_second_backward_is_refused(algorithm, kernel):
    given = example(SIZES[0], algorithm=algorithm)
    output = given.route(kernel)
    output.backward(given.grad)
    with pytest.raises(RuntimeError, match="second time"):
        output.backward(given.grad)


@pytest.mark.parametrize("algorithm", algorithms())
def test_a_retained_graph_gives_the_same_gradient_again(algorithm):
    given = example(SIZES[0], algorithm=algorithm)
    output = given.route("recompute")
    first = torch.autograd.grad(output, given.tensors, given.grad, retain_graph=True)
    assert_all_close(torch.autograd.grad(output, given.tensors, given.grad), first, relative=0)


@pytest.mark.parametrize("algorithm", algorithms())
@pytest.mark.parametrize("kernel", ["recompute", "compiled"])
def test_a_double_backward_is_refused_at_once(algorithm, kernel):
    """The error comes early: added to another loss, a gradient without a graph is a constant."""
    if kernel not in kernels(algorithm):
        pytest.skip(f"no {kernel} for {algorithm}")
    given = example(SIZES[0], algorithm=algorithm)
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(given.route(kernel).sum(), given.inputs, create_graph=True)


@pytest.mark.parametrize(("algorithm", "kernel"), PAIRS)
def test_second_derivatives_of_torch_func_are_right_or_refused(algorithm, kernel):
    given = example(SIZES[0], algorithm=algorithm)

    def penalty(kernel):
        def total(inputs):
            output = route(inputs, given.weight, **given.extras, algorithm=algorithm, kernel=kernel)
            return (output * given.grad).sum()

        return torch.func.grad(lambda inputs: torch.func.grad(total)(inputs).square().sum())(given.inputs)

    expected = penalty("reference")
    assert_alive(expected)
    if kernel in ("recompute", "compiled"):
        with pytest.raises(RuntimeError, match="differentiated twice"):
            penalty(kernel)
    else:
        assert_close(penalty(kernel), expected, relative=1e-9)


@pytest.mark.parametrize("algorithm", ["sda", "sda-published"])
@pytest.mark.parametrize("kernel", ["recompute", "compiled"])
@pytest.mark.parametrize("size", [1e-12, 1e-15, 1e-17])
def test_the_limit_of_short_votes(kernel, algorithm, size):
    given = example(SIZES[-1], torch.float32, algorithm=algorithm)
    short = given._replace(inputs=leaf(given.inputs * size), extras={"bias": leaf(given.extras["bias"])})
    assert_all_close(outcome(short, kernel, 1)[1:], outcome(short, "reference", 1)[1:], relative=1e-5)


@pytest.mark.parametrize("changed", [0, 1])
@pytest.mark.parametrize("algorithm", algorithms())
def test_recompute_notices_a_change_before_backward(algorithm, changed):
    given = example(SIZES[0], algorithm=algorithm)
    output = given.route("recompute")
    with torch.no_grad():
        given.tensors[changed].mul_(2)
    with pytest.raises(RuntimeError, match="inplace"):
        output.backward(given.grad)


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize(("algorithm", "kernel"), PAIRS)
def test_gradcheck(algorithm, kernel, iterations):
    """The equation lets all gradients through here: with one iteration the coupling of RBA and SDA is a true constant."""
    if iterations > 1 and algorithm != "em":
        pytest.skip("no gradient through the loop, by definition")
    given = example((2, 3, 2, 3, 2), algorithm=algorithm)

    def outputs(inputs, weight, *extras):
        options = dict(zip(given.extras, extras, strict=True))
        return route(inputs, weight, **options, algorithm=algorithm, iterations=iterations, kernel=kernel)

    assert torch.autograd.gradcheck(outputs, given.tensors)


@pytest.mark.parametrize(("algorithm", "kernel"), PAIRS)
def test_under_torch_func_grad(algorithm, kernel):
    given = example(SIZES[0], algorithm=algorithm)

    def total(inputs, weight):
        options = {"algorithm": algorithm, "kernel": kernel}
        return (route(inputs, weight, **given.extras, **options) * given.grad).sum()

    found = torch.func.grad(total, argnums=(0, 1))(given.inputs, given.weight)
    assert_all_close(found, outcome(given, kernel)[1:3], relative=1e-11)


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
        ({"iterations": 2.5}, "2.5"),
        ({"bias": torch.zeros(4, 5)}, "[4, 5]"),
        ({"beta_u": torch.zeros(4)}, "[4]"),
        ({"algorithm": "sda", "beta_a": torch.zeros(4)}, "[4]"),
        ({"algorithm": "em"}, "beta_u"),
        ({"algorithm": "em", "beta_u": torch.zeros(4)}, "beta_a"),
        ({"algorithm": "em", "kernel": "published"}, "'published'"),
    ],
    ids=str,
)
def test_options_that_make_no_sense(options, said):
    given = example(SIZES[0])
    with pytest.raises(ConfigurationError) as refused:
        route(given.inputs, given.weight, **options)
    assert said in refused.value.what
    assert refused.value.hint


def test_tensors_of_the_wrong_kind():
    given = example(SIZES[0])
    with pytest.raises(ConfigurationError, match=r"complex128.*\n.*real"):
        route(given.inputs.to(torch.complex128), given.weight)
    with pytest.raises(ConfigurationError, match=r"cpu and meta.*\n.*one device"):
        route(given.inputs, given.weight.to("meta"))


@pytest.mark.parametrize("shape", [(5, 4), (4,), (1, 4, 5)])
def test_a_bias_that_does_not_fit(shape):
    given = example(SIZES[0])
    with pytest.raises(ShapeError, match=r"bias.*\n.*\[4, 5\]"):
        route(given.inputs, given.weight, torch.zeros(shape), algorithm="sda")


def test_a_bias_left_out_is_zero():
    given = example(SIZES[0], algorithm="sda")
    zero = given._replace(extras={"bias": torch.zeros_like(given.extras["bias"])})
    assert_close(given._replace(extras={}).route("recompute"), zero.route("recompute"), relative=0)


def test_names():
    assert algorithms() == ("rba", "sda", "sda-published", "em")
    assert (
        kernels() == kernels("sda") == kernels("sda-published") == ("reference", "published", "recompute", "compiled", "triton")
    )
    assert kernels("em") == ("reference", "recompute", "triton")
    assert [resolve_kernel(kernel) for kernel in ("auto", *kernels())] == ["compiled", *kernels()]
    with pytest.raises(ConfigurationError, match=r"'ema'.*\n.*rba"):
        kernels("ema")
    with pytest.raises(ConfigurationError, match=r"'x'.*\n.*auto.*recompute"):
        check_routing("rba", "x", 3)


def test_auto_is_triton_on_cuda_where_it_is_installed(monkeypatch):
    assert resolve_kernel("auto", "em", "cuda:1") == "triton"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert resolve_kernel("auto", "em", "cuda:1") == "recompute"


@pytest.mark.parametrize("algorithm", algorithms())
def test_auto_is_compiled_on_a_cpu_where_it_can_be(algorithm):
    given = example(SIZES[0], algorithm=algorithm)
    expected = "recompute" if algorithm == "em" else "compiled"
    assert_all_close(outcome(given, "auto"), outcome(given, expected), relative=0)
