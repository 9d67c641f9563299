"""Kernel `triton` on a CUDA device; `helpers.card` says how the same tests run on a CPU."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from capsbench.measure.memory import probe_for
from capsbench.routing import algorithms, kernels, resolve_kernel, route_and_vjp, route_keeping
from capsbench.routing.dispatch import ALGORITHMS
from helpers import ROOT
from helpers.card import DEVICE, KERNEL, ON_CARD, counting_waits, either, needs_card, room_for, synchronize
from helpers.comparing import assert_all_close, assert_close, relative_error
from helpers.made import MIB
from helpers.votes import example, outcome

pytestmark = [pytest.mark.cuda, needs_card]

# B, I, K, J, D: layers of the paper's networks for 28×28 and 32×32 pixels, of 100 classes, and odd ones
LAYERS = either(
    [
        (128, 1152, 8, 32, 8),
        (32, 2048, 8, 32, 8),
        (32, 1152, 8, 100, 16),
        (32, 2048, 8, 10, 16),
        (128, 32, 8, 10, 16),
        (16, 64, 16, 100, 16),
        (7, 33, 5, 31, 9),
        (1, 1, 2, 1, 2),
    ],
    [(2, 65, 2, 2, 2), (3, 5, 3, 4, 2), (2, 3, 2, 3, 2), (1, 1, 2, 1, 2)],
)
LARGE, SMALL = LAYERS[0], either((128, 32, 8, 10, 16), (3, 5, 3, 4, 2))
FLOORS = {"rba": 2e-6, "sda": 1e-5, "sda-published": 1e-5, "em": 1e-5}
"""Errors that count as none: Triton's exponential, division and root are approximate, to some units in the last place."""


def on_device(sizes, dtype=torch.float32, algorithm="rba"):
    """Votes of about the length of their capsule, so that agreement does not end with one output alone."""
    given = example(sizes, torch.float64, algorithm=algorithm)
    given = given._replace(weight=given.weight * (sizes[2] * sizes[4]) ** -0.5)
    return given.map(lambda tensor: tensor.to(DEVICE, dtype))


def double(found):
    return [tensor.double() for tensor in found]


def assert_as_exact(found, plain, exact, *, factor, floor):
    """Assert that errors are at most `factor` times those of plain torch in the same precision, and print both."""
    errors = [
        (relative_error(mine, truth), relative_error(theirs, truth))
        for mine, theirs, truth in zip(double(found), double(plain), exact, strict=True)
    ]
    print("error, and of the reference:", *(f"{mine:.2g} {theirs:.2g}" for mine, theirs in errors), sep="  ")  # noqa: T201
    for mine, theirs in errors:
        assert mine <= factor * theirs + floor, errors


@pytest.mark.parametrize("sizes", LAYERS, ids=str)
@pytest.mark.parametrize("algorithm", algorithms())
def test_as_exact_as_the_reference(algorithm, sizes):
    """Both in float32, against the reference in float64; outputs and every gradient."""
    given = on_device(sizes, algorithm=algorithm)
    exact = outcome(given.map(Tensor.double), "recompute")
    assert_as_exact(outcome(given, KERNEL), outcome(given, "reference"), exact, factor=4, floor=FLOORS[algorithm])


def test_an_error_is_seen():
    given = on_device(SMALL)
    plain = outcome(given, "reference")
    wrong = [plain[0] * (1 + 1e-4), *plain[1:]]
    with pytest.raises(AssertionError):
        assert_as_exact(wrong, plain, double(plain), factor=4, floor=2e-6)


@pytest.mark.parametrize("sizes", either([(4, 32, 8, 32, 8), (3, 37, 5, 7, 9), (1, 1, 2, 1, 2)], LAYERS[1:]), ids=str)
@pytest.mark.parametrize(
    ("algorithm", "kernel"),
    [
        (name, kernel)
        for name in algorithms()
        for kernel in kernels(name)
        if kernel not in ("reference", "compiled") and (kernel != "triton" or KERNEL == "triton")
    ],
)
def test_kernels_agree_with_the_reference(algorithm, kernel, sizes):
    given = on_device(sizes, torch.float64, algorithm)
    assert_all_close(outcome(given, kernel), outcome(given, "reference"), relative=1e-6)


@pytest.mark.parametrize("sizes", [LARGE, SMALL], ids=str)
@pytest.mark.parametrize("algorithm", algorithms())
def test_the_same_bits_every_time(algorithm, sizes):
    given = on_device(sizes, algorithm=algorithm)
    for one, two in zip(outcome(given, KERNEL), outcome(given, KERNEL), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("algorithm", algorithms())
def test_value_and_gradients_from_one_evaluation(algorithm, kept):
    given = on_device(either((64, 96, 8, 32, 8), LARGE), algorithm=algorithm)
    output, *gradients = outcome(given, KERNEL)
    options = {**given.extras, "algorithm": algorithm, "kernel": KERNEL}
    value, found = route_keeping(given.inputs, given.weight, **options)
    assert torch.equal(value, output)
    value, together = route_and_vjp(given.inputs, given.weight, given.grad, **options, kept=found if kept else ())
    assert torch.equal(value, output), "the exact inverse stands on the same bits"
    assert_all_close(together, gradients, relative=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("algorithm", algorithms())
def test_half_precision_costs_what_rounding_costs(algorithm, dtype):
    """Against float64 at most twice the error of plain torch at the same precision."""
    given = on_device(either((32, 96, 8, 32, 8), SMALL), algorithm=algorithm)
    narrow = given.map(lambda tensor: tensor.to(dtype))
    narrow = narrow._replace(grad=given.grad)
    exact = outcome(narrow.map(Tensor.double)._replace(grad=given.grad.double()), "reference")
    with torch.autocast(DEVICE.type, dtype=dtype):
        found, plain = outcome(narrow, KERNEL), outcome(narrow, "reference")
    assert_as_exact(found, plain, exact, factor=2, floor=FLOORS[algorithm])


@pytest.mark.parametrize("algorithm", algorithms())
def test_compiled_equals_eager(algorithm):
    given = on_device(either((16, 40, 8, 32, 8), SMALL), algorithm=algorithm)
    compiled = torch.compile(lambda: given.route(KERNEL), fullgraph=True, backend=either("inductor", "aot_eager"))
    output = compiled()
    actual = [output, *torch.autograd.grad(output, given.tensors, given.grad)]
    expected = outcome(given, KERNEL)
    assert_close(actual[0], expected[0], relative=1e-5)
    # EM divides by variances down to 1e-4.
    assert_all_close(actual[1:], expected[1:], relative=1e-2 if algorithm == "em" else 1e-4)


@pytest.mark.parametrize("sizes", [LARGE, SMALL], ids=str)
@pytest.mark.parametrize("algorithm", algorithms())
def test_nothing_waits_for_the_device(algorithm, sizes):
    given = on_device(sizes, algorithm=algorithm)
    outcome(given, KERNEL)
    with counting_waits() as counted:
        outcome(given, KERNEL)
    assert counted.waits == 0


@pytest.mark.parametrize("algorithm", algorithms())
def test_no_votes_are_held(algorithm):
    """The votes of this layer take 144 MiB; what chunks write and the gradients of each round, a quarter of that."""
    with probe_for(DEVICE) as probe:
        given = on_device(LARGE, algorithm=algorithm)
        outcome(given, KERNEL)
        with probe.phase("step"):
            found = outcome(given, KERNEL)
    step, of_gradients = probe.phases()["step"], sum(tensor.nbytes for tensor in found)
    assert step.peak - step.start - of_gradients <= 36 * MIB


def test_auto_is_triton():
    assert resolve_kernel("auto", "rba", "cuda") == "triton"


@pytest.mark.parametrize("algorithm", ["rba", "em"])
def test_more_than_two_to_the_31_inputs(algorithm):
    """All samples but the first and last few are 0; these have the results that they have alone, as has the weight."""
    count, dim, outputs, out_dim, ends = *either((64, 32), (3, 4)), 4, 4, 3
    batch = either(2**31 // (count * dim) + 5, 9)
    if not room_for(6 * 2**31):
        pytest.skip("needs 12 GiB of free memory")
    given = on_device((2 * ends, count, dim, outputs, out_dim), torch.float32, algorithm)
    given = given._replace(inputs=given.inputs.detach().to(torch.bfloat16).float().requires_grad_())
    expected = outcome(given, "reference")
    # Only the kernels of Triton take inputs and weights of two dtypes.
    narrow = torch.bfloat16 if KERNEL == "triton" else torch.float32
    inputs = torch.zeros(batch, count, dim, dtype=narrow, device=DEVICE)
    grad = torch.zeros(batch, outputs, out_dim, device=DEVICE)
    for wide, few in ((inputs, given.inputs.detach()), (grad, given.grad)):
        wide[:ends], wide[-ends:] = few[:ends], few[-ends:]
    extras = list(given.extras.values())
    output = ALGORITHMS[algorithm].kernels[KERNEL].route(inputs.requires_grad_(), given.weight, extras, 3)
    of_inputs, *others = torch.autograd.grad(output, [inputs, given.weight, *extras], grad)
    assert of_inputs[ends:-ends].count_nonzero() == 0 or algorithm == "em"
    actual = [torch.cat([one[:ends], one[-ends:]]).float() for one in (output.detach(), of_inputs)]
    assert_close(actual[0], expected[0], relative=1e-4)
    assert_close(actual[1], expected[1], relative=1e-2)  # rounded to bfloat16
    assert_all_close(others, expected[2:], relative=1e-3)


@pytest.mark.skipif(ON_CARD and shutil.which("compute-sanitizer") is None, reason="needs compute-sanitizer")
@pytest.mark.parametrize("tool", either(["memcheck", "racecheck"], ["memcheck"]))
def test_no_access_is_out_of_bounds(tool):
    """The layers of odd sizes again, under NVIDIA's checker of accesses; torch's cache would hide accesses next to a tensor."""
    checker = ["compute-sanitizer", "--tool", tool, "--target-processes", "all", "--error-exitcode", "9"] if ON_CARD else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-m", "cuda"]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    named = ["-k", "agree_with_the_reference and triton" if KERNEL == "triton" else "agree_with_the_reference and recompute"]
    done = subprocess.run(
        [*checker, *command, *named], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    synchronize()
