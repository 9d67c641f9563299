"""Kernel `triton` in Triton's interpreter, on a CPU. test_fused.py runs this in a process of its own; by hand:

    TRITON_INTERPRET=1 python -m pytest tests/routing/interpreted.py

The interpreter is slow (milliseconds per tile), so sizes are small; what the real sizes need is compiled in test_fused.py.
"""

import os

import pytest
import torch
from hypothesis import given as any_of
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from capsbench.routing import route_and_vjp, route_keeping
from capsbench.routing.dispatch import ALGORITHMS
from capsbench.routing.triton import launch, operators
from helpers.comparing import assert_alive, assert_all_close, assert_close, saved_by_autograd
from helpers.votes import example, leaf, not_contiguous, outcome

assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1"

RELATIVE = {torch.float64: 1e-9, torch.float32: 1e-4}

# B, I, K, J, D
SIZES = [(2, 5, 3, 4, 5), (1, 5, 5, 3, 2), (3, 1, 4, 5, 3), (2, 3, 1, 1, 7), (5, 2, 2, 3, 2), (1, 1, 2, 1, 2)]
SMALL = (2, 2, 2, 3, 2)
THREE = ("rba", "sda", "em")


@pytest.fixture(autouse=True)
def _nan_in_fresh_buffers():
    """A value that a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["small", "large"])
def rba_of_any_size(request, monkeypatch):
    """All rounds of RBA in one kernel, and a kernel for each."""
    if request.param == "large":
        monkeypatch.setattr(launch, "_SMALL", 0)


@pytest.mark.parametrize(("sizes", "dtype"), [(SIZES[0], torch.float32), *((sizes, torch.float64) for sizes in SIZES)], ids=str)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_equals_the_reference(algorithm, sizes, dtype):
    given = example(sizes, dtype, algorithm=algorithm)
    actual, expected = outcome(given, "triton"), outcome(given, "reference")
    assert_close(actual[0], expected[0], relative=1e-5 if dtype == torch.float32 else 1e-12)
    assert_all_close(actual[1:], expected[1:], relative=RELATIVE[dtype])


@pytest.mark.parametrize("iterations", [1, 4])
@pytest.mark.parametrize("algorithm", THREE)
def test_equals_the_reference_after_any_round(algorithm, iterations):
    given = example(SMALL, algorithm=algorithm)
    assert_all_close(outcome(given, "triton", iterations), outcome(given, "reference", iterations), relative=1e-9)


@settings(deadline=None, max_examples=10, derandomize=True)
@any_of(
    sizes=st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(2, 5)] * 3),
    algorithm=st.sampled_from(THREE),
    least_span=st.integers(1, 3),
    enough_warps=st.sampled_from([1, 4, 2048]),
    small=st.sampled_from([0, 64]),
    most_votes=st.sampled_from([64, 128, 2**13]),
    row_tile=st.sampled_from([4, 128]),
    registers=st.sampled_from([1, 128]),
    seed=st.integers(0, 2**16),
)
def test_equals_the_reference_however_it_is_cut(sizes, algorithm, seed, **constants):
    """Cut into chunks of any length, K into slices, and the votes of a sample into tiles."""
    given = example(sizes, seed=seed, algorithm=algorithm)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in constants.items():
            patch.setattr(launch, f"_{name.upper()}", value)
        actual = outcome(given, "triton", 2)
    # Few votes can nearly cancel, which magnifies rounding.
    assert_all_close(actual, outcome(given, "reference", 2), relative=1e-7)


def test_a_small_layer_may_take_tiles(monkeypatch):
    """Tiles and the other way are used, or the test above would not see them."""
    inputs, weight = torch.zeros(2, 3, 5), torch.zeros(3, 5, 4, 2)
    assert launch.at_once(inputs, weight).sizes["TILE"] == 4
    monkeypatch.setattr(launch, "_MOST_VOTES", 8)
    assert launch.at_once(inputs, weight).sizes["TILE"] == 1
    monkeypatch.setattr(launch, "_SMALL", 0)
    assert launch.at_once(inputs, weight) is None


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_large_layer_equals_the_reference(sizes, monkeypatch):
    monkeypatch.setattr(launch, "_SMALL", 0)
    given = example(sizes)
    assert_all_close(outcome(given, "triton"), outcome(given, "reference"), relative=1e-9)


def test_the_published_temperature():
    given = example(SIZES[0], algorithm="sda-published")
    actual = outcome(given, "triton")
    assert_all_close(actual, outcome(given, "reference"), relative=1e-9)
    with pytest.raises(AssertionError, match="relative error"):
        assert_all_close(actual, outcome(given._replace(algorithm="sda"), "reference"), relative=1e-3)


def test_a_slice_of_k_can_be_a_part(monkeypatch):
    """Slices are used, or the test above would not see them."""
    monkeypatch.setattr(launch, "_REGISTERS", 1)
    inputs, weight = torch.zeros(2, 3, 5), torch.zeros(3, 5, 4, 2)
    assert launch.over_capsules(inputs, weight, share=4).slices == 5


@pytest.mark.usefixtures("rba_of_any_size")
@pytest.mark.parametrize("algorithm", THREE)
def test_the_same_call_has_the_same_bits(algorithm, monkeypatch):
    monkeypatch.setattr(launch, "_LEAST_SPAN", 1)
    given = example(SMALL, torch.float32, algorithm=algorithm)
    for one, two in zip(outcome(given, "triton"), outcome(given, "triton"), strict=True):
        assert torch.equal(one, two)


@pytest.mark.usefixtures("rba_of_any_size")
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("algorithm", ["rba", "sda"])
def test_value_and_gradients_from_one_evaluation(algorithm, iterations):
    given = example(SMALL, torch.float32, algorithm=algorithm)
    output, *gradients = outcome(given, "triton", iterations)
    options = {**given.extras, "algorithm": algorithm, "iterations": iterations, "kernel": "triton"}
    value, found = route_keeping(given.inputs, given.weight, **options)
    assert torch.equal(value, output)
    assert all(tensor.numel() <= output.numel() for tensor in found)
    for kept in ((), found):
        value, together = route_and_vjp(given.inputs, given.weight, given.grad, **options, kept=kept)
        assert torch.equal(value, output), "the exact inverse stands on the same bits"
        assert not value.requires_grad
        assert_all_close(together, gradients, relative=1e-6)


@pytest.mark.parametrize(
    ("algorithm", "small", "kernels"),
    [
        ("rba", 64, ["rounds_at_once", "coupled_sum_vjp"]),
        ("rba", 0, ["coupled_sum", "finish", "squash_vjp", "coupled_sum_vjp"]),
        ("sda", 0, ["coupled_sum", "finish", "squash_vjp", "coupled_sum_vjp"]),
    ],
)
def test_kept_spares_the_rounds(algorithm, small, kernels, monkeypatch):
    monkeypatch.setattr(launch, "_SMALL", small)
    given = example((1, 2, 2, 2, 2), algorithm=algorithm)
    options = {**given.extras, "algorithm": algorithm, "iterations": 5, "kernel": "triton"}
    _, found = route_keeping(given.inputs, given.weight, **options)
    started = []
    monkeypatch.setattr(operators, "launch", lambda name, *rest: started.append(name) or launch.launch(name, *rest))
    route_and_vjp(given.inputs, given.weight, given.grad, **options, kept=found)
    assert started == kernels


@pytest.mark.parametrize("algorithm", THREE)
def test_no_votes_are_kept(algorithm):
    given = example((2, 3, 2, 5, 4), algorithm=algorithm)
    with saved_by_autograd() as saved:
        given.route("triton")
    assert saved
    votes_like = [tensor for tensor in saved if {3, 5} <= set(tensor.shape) and tensor.shape != given.weight.shape]
    assert not votes_like


@pytest.mark.usefixtures("rba_of_any_size")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("algorithm", THREE)
def test_half_inputs_are_summed_in_float32(algorithm, dtype):
    """Given to the kernels as they are; `route` would have cast them."""
    given = example(SIZES[0], torch.float32, algorithm=algorithm)
    given = given._replace(inputs=leaf(given.inputs.to(dtype)), weight=leaf(given.weight.to(dtype)))
    output = ALGORITHMS[algorithm].kernels["triton"].route(given.inputs, given.weight, [*given.extras.values()], 3)
    gradients = torch.autograd.grad(output, given.tensors, given.grad)
    expected, *wanted = outcome(given.map(Tensor.double), "reference")
    assert output.dtype == torch.float32
    assert_close(output.double(), expected, relative=1e-5)
    assert [gradient.dtype for gradient in gradients] == [tensor.dtype for tensor in given.tensors]
    # Rounded (by the interpreter: cut off) once, to the dtype of what it belongs to; EM adds up one for each round.
    rounding = torch.finfo(dtype).eps * (3 if algorithm == "em" else 1)
    assert_all_close([gradient.double() for gradient in gradients], wanted, relative=rounding)


@pytest.mark.usefixtures("rba_of_any_size")
@pytest.mark.parametrize("algorithm", THREE)
def test_tiny_votes_keep_their_gradient(algorithm):
    """The paper's initialisation: weights of 0.01 and inputs far below 1, in float32, against the same in float64."""
    given = example(SMALL, torch.float32, algorithm=algorithm)
    small = given._replace(inputs=leaf(given.inputs * 1e-6), weight=leaf(given.weight * 0.01))
    actual = [tensor.double() for tensor in outcome(small, "triton")]
    expected = outcome(small.map(Tensor.double), "reference")
    assert_all_close(actual, expected, relative=1e-4)
    assert_alive(actual[2])


@pytest.mark.usefixtures("rba_of_any_size")
@pytest.mark.parametrize("algorithm", THREE)
def test_zero_inputs_have_what_the_reference_has(algorithm):
    given = example(SMALL, algorithm=algorithm)
    zero = given._replace(inputs=leaf(torch.zeros_like(given.inputs)))
    assert_all_close(outcome(zero, "triton"), outcome(zero, "reference"), relative=1e-9)


@pytest.mark.usefixtures("rba_of_any_size")
@pytest.mark.parametrize("algorithm", ["rba", "em"])
def test_inputs_need_not_be_contiguous(algorithm):
    given = example(SMALL, algorithm=algorithm)
    strange = given.map(not_contiguous)
    assert not any(tensor.is_contiguous() for tensor in (strange.inputs, strange.weight, strange.grad))
    assert_all_close(outcome(strange, "triton"), outcome(given, "triton"), relative=1e-12)


@pytest.mark.parametrize("needed", [0, 1, 2])
@pytest.mark.parametrize("algorithm", ["sda", "em"])
def test_only_one_needs_a_gradient(algorithm, needed):
    given = example(SMALL, algorithm=algorithm)
    expected = outcome(given, "reference")[1 + needed]
    for index, tensor in enumerate(given.tensors):
        tensor.requires_grad_(index == needed)
    given.route("triton").backward(given.grad)
    assert_close(given.tensors[needed].grad, expected, relative=1e-9)
    assert all(tensor.grad is None for index, tensor in enumerate(given.tensors) if index != needed)


@pytest.mark.usefixtures("rba_of_any_size")
def test_an_empty_batch():
    given = example(SMALL)
    empty = given._replace(inputs=leaf(given.inputs[:0]), grad=given.grad[:0])
    output, of_inputs, of_weight = outcome(empty, "triton")
    assert output.shape == empty.grad.shape
    assert of_inputs.shape == empty.inputs.shape
    assert of_weight.count_nonzero() == 0


@pytest.mark.parametrize("algorithm", THREE)
def test_compiled_equals_eager(algorithm):
    """Forward and backward in one graph, without falling back to Python."""
    given = example(SMALL, algorithm=algorithm)
    compiled = torch.compile(lambda: given.route("triton"), backend="aot_eager", fullgraph=True)
    output = compiled()
    actual = [output, *torch.autograd.grad(output, given.tensors, given.grad)]
    assert_all_close(actual, outcome(given, "triton"), relative=1e-12)


@pytest.mark.parametrize("algorithm", THREE)
def test_functional_gradients(algorithm):
    given = example(SMALL, algorithm=algorithm)

    def loss(*tensors):
        inputs, weight, *extras = tensors
        named = dict(zip(given.extras, extras, strict=True))
        return (given._replace(inputs=inputs, weight=weight, extras=named).route("triton") * given.grad).sum()

    tensors = [tensor.detach() for tensor in given.tensors]
    actual = torch.func.grad(loss, argnums=tuple(range(len(tensors))))(*tensors)
    assert_all_close(actual, outcome(given, "triton")[1:], relative=1e-12)


@pytest.mark.parametrize("algorithm", ["rba", "em"])
def test_differentiating_twice_is_refused(algorithm):
    given = example((1, 2, 2, 2, 2), algorithm=algorithm)
    with pytest.raises(RuntimeError, match="twice"):
        torch.autograd.grad(given.route("triton").sum(), given.inputs, create_graph=True)


def arguments(operator: str, dtype=torch.float32):
    """A call of each operator, by name."""
    batch, count, dim, outputs, out_dim = 3, 2, 3, 4, 2
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    inputs, weight = normal(batch, count, dim), normal(count, dim, outputs, out_dim)
    vectors = [normal(batch, outputs, out_dim) for _ in range(4)]
    scalars = [normal(batch, outputs) for _ in range(2)]
    precision, bias = vectors[1].square(), normal(outputs, out_dim)
    state = (inputs, weight, scalars[0], vectors[0], precision)
    calls = {
        "rba_round": [(inputs, weight, None), (inputs, weight, vectors[0])],
        "rba_rounds": [(inputs, weight, 3)],
        "sda_round": [(inputs, weight, bias), (inputs, weight, bias, vectors[0], torch.tensor(-2.0))],
        "round_vjp": [
            (inputs, weight, *vectors[:2], None, None, False),
            (inputs, weight, *vectors[:2], vectors[2], torch.tensor(-2.0), True),
        ],
        "sda_temperature": [(inputs, weight, vectors[0], False), (inputs, weight, vectors[0], True)],
        "em_round": [state],
        "em_state_vjp": [(*state, vectors[2], scalars[1], vectors[3], vectors[0])],
        "em_votes_vjp": [(*state, vectors[2], scalars[1], vectors[3], vectors[0])],
    }
    return calls[operator]


@pytest.mark.usefixtures("rba_of_any_size")
@pytest.mark.parametrize(
    "operator",
    ["rba_round", "rba_rounds", "sda_round", "round_vjp", "sda_temperature", "em_round", "em_state_vjp", "em_votes_vjp"],
)
def test_operators_are_what_pytorch_expects(operator):
    for call in arguments(operator):
        results = torch.library.opcheck(getattr(torch.ops.capsbench, operator), call)
        assert set(results.values()) == {"SUCCESS"}
