"""Tests that need a CUDA device."""

import subprocess
import sys
from statistics import median

import pytest
import torch
from torch import Tensor

from capsbench import CapsuleLoss, MoCapsNet
from capsbench.measure.cell import measure_cell
from capsbench.measure.memory import CudaProbe
from capsbench.records import Cell, Plan
from capsbench.routing import algorithms, kernels, resolve_kernel, route_and_vjp, route_keeping
from helpers.comparing import assert_all_close, assert_close, relative_error
from helpers.made import MIB, make_configuration
from helpers.turns import take_rounds
from helpers.votes import example, outcome

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


# B, I, K, J, D: layers of the paper's networks for 28×28 and 32×32 pixels, of 100 classes, and odd ones
LAYERS = [
    (128, 1152, 8, 32, 8),
    (32, 2048, 8, 32, 8),
    (32, 1152, 8, 100, 16),
    (32, 2048, 8, 10, 16),
    (128, 32, 8, 10, 16),
    (16, 64, 16, 100, 16),
    (7, 33, 5, 31, 9),
    (1, 1, 2, 1, 2),
]


def on_device(sizes, dtype=torch.float32, algorithm="rba"):
    """Votes of about the length of their capsule, so that agreement does not end with one output alone."""
    given = example(sizes, torch.float64, algorithm=algorithm)
    given = given._replace(weight=given.weight * (sizes[2] * sizes[4]) ** -0.5)
    return given.map(lambda tensor: tensor.to("cuda", dtype))


def double(found):
    return [tensor.double() for tensor in found]


@pytest.mark.parametrize("sizes", LAYERS, ids=str)
@pytest.mark.parametrize("algorithm", algorithms())
def test_triton_is_as_exact_as_recompute(algorithm, sizes):
    """Both in float32, against recompute in float64; outputs and every gradient."""
    given = on_device(sizes, algorithm=algorithm)
    exact = outcome(given.map(Tensor.double), "recompute")
    triton, recompute = (double(outcome(given, kernel)) for kernel in ("triton", "recompute"))
    for mine, theirs, truth in zip(triton, recompute, exact, strict=True):
        assert relative_error(mine, truth) <= 4 * relative_error(theirs, truth) + 2e-6


@pytest.mark.parametrize("sizes", [(4, 32, 8, 32, 8), (3, 37, 5, 7, 9), (1, 1, 2, 1, 2)], ids=str)
@pytest.mark.parametrize(
    ("algorithm", "kernel"),
    [(name, kernel) for name in algorithms() for kernel in kernels(name) if kernel not in ("reference", "compiled")],
)
def test_kernels_agree_with_the_reference(algorithm, kernel, sizes):
    given = on_device(sizes, torch.float64, algorithm)
    assert_all_close(outcome(given, kernel), outcome(given, "reference"), relative=1e-6)


@pytest.mark.parametrize("sizes", [LAYERS[0], LAYERS[4]], ids=str)
@pytest.mark.parametrize("algorithm", algorithms())
def test_triton_has_the_same_bits_every_time(algorithm, sizes):
    given = on_device(sizes, algorithm=algorithm)
    for one, two in zip(outcome(given, "triton"), outcome(given, "triton"), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("algorithm", algorithms())
def test_value_and_gradients_from_one_evaluation(algorithm, kept):
    given = on_device((64, 96, 8, 32, 8), algorithm=algorithm)
    output, *gradients = outcome(given, "triton")
    options = {**given.extras, "algorithm": algorithm, "kernel": "triton"}
    value, found = route_keeping(given.inputs, given.weight, **options)
    assert torch.equal(value, output)
    value, together = route_and_vjp(given.inputs, given.weight, given.grad, **options, kept=found if kept else ())
    assert torch.equal(value, output), "the exact inverse stands on the same bits"
    assert_all_close(together, gradients, relative=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("algorithm", algorithms())
def test_half_precision_costs_what_rounding_costs(algorithm, dtype):
    """Against float64 at most twice the error of plain torch at the same precision."""
    given = on_device((32, 96, 8, 32, 8), algorithm=algorithm)
    narrow = given.map(lambda tensor: tensor.to(dtype))
    narrow = narrow._replace(grad=given.grad)
    exact = outcome(narrow.map(Tensor.double)._replace(grad=given.grad.double()), "reference")
    with torch.autocast("cuda", dtype=dtype):
        triton, plain = (double(outcome(narrow, kernel)) for kernel in ("triton", "reference"))
    for mine, theirs, truth in zip(triton, plain, exact, strict=True):
        assert relative_error(mine, truth) <= 2 * relative_error(theirs, truth) + 2e-6


@pytest.mark.parametrize("algorithm", algorithms())
def test_compiled_equals_eager(algorithm):
    given = on_device((16, 40, 8, 32, 8), algorithm=algorithm)
    compiled = torch.compile(lambda: given.route("triton"), fullgraph=True)
    output = compiled()
    actual = [output, *torch.autograd.grad(output, given.tensors, given.grad)]
    expected = outcome(given, "triton")
    assert_close(actual[0], expected[0], relative=1e-5)
    # EM divides by variances down to 1e-4.
    assert_all_close(actual[1:], expected[1:], relative=1e-2 if algorithm == "em" else 1e-4)


@pytest.mark.parametrize("algorithm", algorithms())
def test_triton_does_not_wait_for_the_device(algorithm):
    given = on_device((16, 40, 8, 32, 8), algorithm=algorithm)
    outcome(given, "triton")
    torch.cuda.set_sync_debug_mode("error")
    try:
        outcome(given, "triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("algorithm", algorithms())
def test_triton_holds_no_votes(algorithm):
    """The votes of this layer take 144 MiB; what chunks write and the gradients of each round, a quarter of that."""
    given = on_device(LAYERS[0], algorithm=algorithm)
    outcome(given, "triton")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found = outcome(given, "triton")
    of_gradients = sum(tensor.nbytes for tensor in found)
    assert torch.cuda.max_memory_allocated() - before - of_gradients <= 36 * MIB


def test_auto_is_triton():
    assert resolve_kernel("auto", "rba", "cuda") == "triton"


@pytest.mark.parametrize("rule", ["paper", "published"])
def test_a_reversible_stack_has_the_gradients_of_the_stored_one(rule):
    gradients = []
    images = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0)).cuda()
    labels = torch.arange(4).cuda()
    for memory in ("stored", "reversible"):
        torch.manual_seed(0)
        net = MoCapsNet((1, 28, 28), 10, 2, memory=memory, rule=rule).double().cuda()
        CapsuleLoss()(net(images.double(), labels), labels, images.double()).backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    for stored, reversible in zip(*gradients, strict=True):
        scale = stored.abs().max().item()
        torch.testing.assert_close(reversible, stored, rtol=1e-6, atol=1e-6 * scale)


def test_the_probe_counts_what_is_allocated():
    with CudaProbe(torch.device("cuda")) as probe, probe.phase("step"):
        kept = torch.empty(3 * MIB, dtype=torch.uint8, device="cuda")
        passing = torch.empty(5 * MIB, dtype=torch.uint8, device="cuda")
        del passing
    step = probe.phases()["step"]
    assert step.end - step.start == kept.nbytes
    assert step.peak - step.start == 8 * MIB
    assert probe.peak_reserved() >= step.peak


def measure(model="mocapsnet", blocks=2, **fields):
    cell = Cell(configuration=make_configuration(model, blocks, device="cuda", threads=None, **fields))
    return measure_cell(cell, Plan(command="", cells=[cell]), environment="abcd")


def test_a_cell_has_all_figures():
    record = measure(batch_size=16)
    assert record.status == "ok", record.message
    assert record.memory.probe == "cuda"
    assert record.time.clock == "cuda events"
    memory = record.memory
    missing = {name for name, value in memory if value is None} - {"certainty"}  # of predictions alone
    # NVML does not say everywhere (containers, some drivers); then a note says why.
    assert missing <= {"process_bytes", "context_bytes"}
    assert any("is not known: " in note for note in record.notes) == bool(missing)
    assert memory.retained_requested_bytes <= memory.retained_bytes
    assert memory.peak_requested_bytes <= memory.peak_allocated_bytes <= memory.peak_reserved_bytes
    assert memory.step_reserved_bytes >= memory.peak_requested_bytes
    if memory.process_bytes is not None:
        assert memory.process_bytes > memory.peak_reserved_bytes
    for samples in (record.time.train_step_seconds, record.time.forward_seconds, record.time.inference_seconds):
        assert len(samples) >= 5
        assert min(samples) > 0
    assert record.tf32 is False


def test_a_trace_retains_what_the_device_was_asked_for():
    for model in ("rescapsnet", "mocapsnet"):
        record = measure(model, batch_size=16)
        assert record.step.agrees, record.notes
        assert sum(record.step.retained_by_module.values()) == record.memory.retained_requested_bytes


@pytest.mark.parametrize("optimizer_step", [None, "backward"])
def test_the_device_alone_is_no_slower_than_a_step(optimizer_step):
    """A step that waits for nothing can be held back as a whole, and then runs without gaps."""
    record = measure("rescapsnet", batch_size=16, optimizer_step=optimizer_step)
    for name in ("train_step_seconds", "inference_seconds"):
        alone, samples = getattr(record.time, f"device_{name}"), getattr(record.time, name)
        assert len(alone) == 3
        assert 0 < median(alone) < 1.05 * median(samples)
    assert len(record.time.launch_yardstick_seconds) >= 1
    assert record.time.warmup_steps > 2


def test_with_the_cache_turned_off_bytes_are_unknown(monkeypatch):
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    record = measure(batch_size=16)
    assert record.status == "ok", record.message
    assert record.memory.retained_bytes is record.memory.peak_allocated_bytes is record.memory.peak_reserved_bytes is None
    assert any("were not counted" in note for note in record.notes)
    assert record.time.train_step_seconds


def test_a_sweep_makes_no_context_of_its_own():
    """The process that starts measurements would count as another one on the device."""
    script = (
        "import torch; from capsbench.measure.environment import describe; from capsbench.measure.processes import *\n"
        "describe(); device_identity('cuda:0'); print(available_bytes('cuda:0'))\n"
        "assert nvml_process_bytes(torch.device('cuda:0'))[0] is None, 'it has a context'"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_the_same_cell_has_the_same_bytes():
    # The driver's figures move with what else is loaded.
    driver = {"process_bytes", "context_bytes"}
    one, two = (measure(batch_size=16).memory.model_dump(exclude=driver) for _ in range(2))
    assert one == two


def test_a_block_of_mocapsnet_retains_nothing():
    one, three = (measure(blocks=blocks, batch_size=16).memory.retained_bytes for blocks in (1, 3))
    assert one == three


def test_a_published_block_retains_what_the_published_code_does():
    one, two = (measure("rescapsnet", blocks, batch_size=128, kernel="published").memory.retained_bytes for blocks in (1, 2))
    assert (two - one) / MIB == pytest.approx(73.8, rel=0.02)


def test_a_capacity_that_does_not_suffice_is_out_of_memory():
    record = measure("rescapsnet", 1, batch_size=128, kernel="published", capacity=1024 * MIB)
    assert record.status == "oom", record.message
    assert record.memory is None


def test_cells_take_turns_and_their_edges_are_events():
    cells = {
        f"{model} {blocks}": make_configuration(model, blocks, device="cuda:0", threads=None, batch_size=16)
        for model in ("rescapsnet", "mocapsnet")
        for blocks in (1, 8)
    }
    rounds, failed, ended = take_rounds(cells, 8)
    assert (failed, ended) == ({}, None)
    for _, one in rounds:
        assert one.clock == "cuda events"
        for turn in one.turns:
            assert 0 < turn.growing_forward_seconds < turn.growing_train_step_seconds < turn.train_step_seconds
            assert 0 < turn.growing_inference_seconds < turn.inference_seconds
    for model in ("rescapsnet", "mocapsnet"):
        few, many = (
            median(turn.growing_train_step_seconds for _, one in rounds for turn in one.turns if turn.cell == f"{model} {blocks}")
            for blocks in (1, 8)
        )
        assert few < many
