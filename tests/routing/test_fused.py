"""Kernel `triton` without a GPU: in the interpreter, compiled ahead of time, as fake tensors; and how it is laid over a layer."""

import math
import os
import re
import subprocess
import sys

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from capsbench.errors import ConfigurationError
from capsbench.routing import route
from capsbench.routing.dispatch import ALGORITHMS
from capsbench.routing.triton import launch
from capsbench.routing.triton.launch import LaunchPlan, over_capsules, over_samples
from helpers import ROOT
from helpers.triton_ir import narrow_products

# K, J, D of the layers in benchmarks/triton.md; the module that makes it needs Triton to be imported.
SIZES = (*((8, outputs, out_dim) for outputs in (10, 32, 100) for out_dim in (8, 16)), (8, 64, 16), (16, 32, 16), (16, 100, 16))
LARGEST = max(SIZES, key=math.prod)


def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **variables}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.slow
def test_everything_in_the_interpreter():
    """interpreted.py: outputs and gradients against the reference, operators, torch.compile. What fails is printed."""
    triton = pytest.importorskip("triton")
    try:
        launch.check_interpreter(triton.__version__, numpy.__version__)
    except ConfigurationError as cannot:
        pytest.skip(cannot.what)
    done = run("-m", "pytest", "tests/routing/interpreted.py", "-q", "-p", "no:cacheprovider", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 50
    assert "skipped" not in done.stdout


def figures_of(compiler, line: str) -> list:
    """Numbers of each architecture, from a row of the table."""
    cells = line.strip("| ").split(" | ")[5:]
    assert len(cells) == 3 * len(compiler.ARCHITECTURES)
    return [compiler.Figures(*map(int, cells[at : at + 3])) for at in range(0, len(cells), 3)]


def test_the_tables_have_every_kernel_at_every_size_and_no_spills(compiler):
    tables = compiler.kept()
    # The release of the machine with a GPU that the figures were checked on, and the newest.
    assert [release.rpartition(".")[0] for release in tables] == ["3.8", "3.6"]
    launches = [(size, launched) for size in compiler.SIZES for launched in compiler.launches(size)]
    for rows in tables.values():
        for line, (size, launched) in zip(rows, launches, strict=True):
            cells = [launched.title, *map(str, size), str(32 * launched.plan.warps)]
            assert line.startswith(f"| {' | '.join(cells)} |")
            assert all(found.spills == 0 for found in figures_of(compiler, line)), line


def test_a_page_keeps_the_tables_of_other_releases(compiler, tmp_path, monkeypatch):
    assert compiler.page(compiler.kept()) == compiler.TABLE.read_text(encoding="utf-8")
    monkeypatch.setattr(compiler, "TABLE", tmp_path / "triton.md")
    tables = {"3.6.0": ["| a |"], "3.10.1": ["| b |", "| c |"]}
    compiler.TABLE.write_text(compiler.page(tables), encoding="utf-8")
    assert compiler.kept() == tables
    assert list(compiler.kept()) == ["3.10.1", "3.6.0"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "size",
    # The size with most in registers is always compiled.
    [pytest.param(it, marks=() if it == LARGEST else pytest.mark.slow, id="-".join(map(str, it))) for it in SIZES],
)
def test_kernels_compile_as_the_table_says(compiler, size):
    """Rows compiled now: the very rows of the table of the same Triton, without spills; other releases may spill a few bytes.

    Offsets of layers with 2³¹ values and more have 64 bits before they are multiplied.
    """
    table = compiler.kept().get(pytest.importorskip("triton").__version__)
    for launched in compiler.launches(compiler.Size(*size)):
        compiled = [compiler.compile_for(launched, architecture) for architecture in compiler.ARCHITECTURES]
        row = compiler.row(compiler.Size(*size), launched, compiled)
        assert [one.figures for one in compiled] == figures_of(compiler, row)
        assert all(one.figures.spills <= (32 if table is None else 0) for one in compiled), row
        assert table is None or row in table, f"{row}\nis not in {compiler.TABLE.name}: write it anew"
        assert narrow_products(compiled[-1].ttir) == [], launched.title


def test_every_size_of_the_table_is_compiled(compiler):
    assert {tuple(size) for size in compiler.SIZES} == set(SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_kernels_of_other_dtypes_compile(compiler, dtype):
    for launched in compiler.launches(compiler.Size(5, 3, 7), dtype):
        assert compiler.compile_for(launched, 80).figures.registers > 0


def test_a_kernel_that_spills_is_seen(compiler, monkeypatch):
    monkeypatch.setattr(launch, "_REGISTERS", 32)
    launched = next(it for it in compiler.launches(compiler.Size(8, 32, 8)) if it.kernel == "em_state_vjp")
    assert compiler.compile_for(launched, 80).figures.spills > 0


@pytest.mark.slow
def test_no_offset_can_overflow(compiler):
    """Offsets are multiplied in 64 bits with slices of K and padded votes, too, which no size of the table has."""
    for launched in compiler.launches(compiler.Size(40, 31, 9)):
        assert narrow_products(compiler.compile_for(launched, 90).ttir) == [], launched.title


@pytest.mark.slow
def test_an_offset_that_can_overflow_is_seen(compiler):
    from helpers import offsets

    numbers = torch.empty(8)
    for name, expected in (("narrow", 1), ("narrow_in_a_loop", 1), ("wide", 0)):
        found = compiler.compiled(getattr(offsets, name), (numbers, 5), {}, {"num_warps": 1}, 90)
        assert len(narrow_products(found.ttir)) == expected, name


def real_layer(batch=128, count=1152, in_dim=8, outputs=32, out_dim=8, **options):
    return torch.empty(batch, count, in_dim, **options), torch.empty(count, in_dim, outputs, out_dim, **options)


@pytest.mark.parametrize("algorithm", ["rba", "sda", "sda-published", "em"])
def test_fake_tensors_have_the_shapes_of_real_ones(algorithm):
    """Nothing is computed: this is the first layer at the paper's size, forward and backward."""
    with FakeTensorMode():
        inputs, weight = real_layer(requires_grad=True)
        bias = torch.empty(32, 8, requires_grad=True)
        betas = [torch.empty(32, requires_grad=True) for _ in range(2)]
        extras = {"rba": {}, "em": {"bias": bias, "beta_u": betas[0], "beta_a": betas[1]}}.get(algorithm, {"bias": bias})
        tensors = [inputs, weight, *extras.values()]
        output = route(inputs, weight, **extras, algorithm=algorithm, kernel="triton")
        assert (output.shape, output.dtype) == ((128, 32, 8), torch.float32)
        gradients = torch.autograd.grad(output.sum(), tensors)
        assert [gradient.shape for gradient in gradients] == [tensor.shape for tensor in tensors]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_fake_tensors_have_the_dtypes_of_real_ones(dtype):
    with FakeTensorMode():
        tensors = real_layer(dtype=dtype, requires_grad=True)
        output = ALGORITHMS["rba"].kernels["triton"].route(*tensors, [], 3)
        assert output.dtype == torch.promote_types(dtype, torch.float32)
        assert [gradient.dtype for gradient in torch.autograd.grad(output.sum(), tensors)] == [dtype, dtype]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="in the interpreter it can")
@pytest.mark.parametrize("algorithm", ["rba", "em"])
def test_tensors_on_a_cpu_are_refused(algorithm):
    pytest.importorskip("triton")
    extras = {"beta_u": torch.zeros(4), "beta_a": torch.zeros(4)} if algorithm == "em" else {}
    with pytest.raises(ConfigurationError) as refused:
        route(torch.zeros(2, 3, 2), torch.zeros(3, 2, 4, 2), **extras, algorithm=algorithm, kernel="triton")
    assert "`kernel` triton " in refused.value.what
    assert "'cpu'" in refused.value.what
    assert "recompute" in refused.value.hint


@pytest.mark.slow
def test_without_triton_it_is_imported_but_not_run():
    script = """
import sys
sys.modules["triton"] = None
import torch
from capsbench.routing import route
try:
    route(torch.zeros(2, 3, 2), torch.zeros(3, 2, 4, 2), kernel="triton")
except Exception as error:
    print(type(error).__name__, error)
"""
    done = run("-c", script)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("ConfigurationError")
    assert "not installed" in first
    assert "recompute" in second


LAYERS = st.tuples(st.integers(0, 300), st.integers(1, 3000), st.integers(1, 40), st.integers(1, 300), st.integers(1, 40))


def power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def check_plan(plan: LaunchPlan, walked: int, weight: torch.Tensor) -> None:
    """Every output has a thread, every addend a chunk, and nothing is so large that it would not start."""
    assert plan.chunks * plan.span >= walked
    assert (plan.chunks - 1) * plan.span < max(1, walked), "a chunk without work"
    assert plan.chunks <= 65535
    assert plan.slices <= 65535
    assert power_of_two(plan.warps)
    assert plan.warps <= 16
    _, in_dim, outputs, out_dim = weight.shape
    assert (plan.sizes["K"], plan.sizes["J"], plan.sizes["D"]) == (in_dim, outputs, out_dim)
    for name, real in (("J_PAD", outputs), ("D_PAD", out_dim)):
        assert power_of_two(plan.sizes[name])
        assert real <= plan.sizes[name] < 2 * real


@settings(deadline=None, max_examples=300, derandomize=True)
@given(layer=LAYERS, at_a_time=st.sampled_from([1, 2, 4]))
def test_a_plan_over_samples_covers_the_layer(layer, at_a_time):
    inputs, weight = real_layer(*layer, device="meta")
    batch, count, _ = inputs.shape
    plan = over_samples(inputs, weight, at_a_time)
    check_plan(plan, count, weight)
    assert plan.slices == 1
    assert power_of_two(plan.sizes["S"])
    assert plan.sizes["S"] <= at_a_time
    assert 0 <= plan.programs * plan.sizes["S"] - batch < plan.sizes["S"]


@settings(deadline=None, max_examples=300, derandomize=True)
@given(layer=LAYERS)
def test_a_plan_over_capsules_covers_the_layer(layer):
    inputs, weight = real_layer(*layer, device="meta")
    batch, count, in_dim = inputs.shape
    plan = over_capsules(inputs, weight, share=4)
    check_plan(plan, batch, weight)
    assert plan.programs == count
    span = plan.sizes["SLICE"]
    assert power_of_two(span)
    assert 0 <= plan.slices * span - in_dim < span
    held = span * plan.sizes["J_PAD"] * plan.sizes["D_PAD"]
    assert span == 1 or held <= 32 * plan.warps * launch._REGISTERS // 4, "weights that do not fit into registers"


def test_a_large_layer_fills_a_gpu_and_a_small_one_is_not_cut_to_pieces():
    inputs, weight = real_layer(device="meta")
    plan = over_samples(inputs, weight, 4)
    assert plan.programs * plan.chunks * plan.warps >= 1024
    # What the chunks write is small against the votes, 144 MiB here.
    assert plan.chunks * 128 * 32 * 8 * 4 <= 8 * 2**20
    assert over_capsules(inputs, weight, share=4).chunks == 1
    assert over_samples(*real_layer(count=3, device="meta"), 4).chunks == 1
