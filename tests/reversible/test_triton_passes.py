"""The exact inverse's passes on CUDA without a GPU: in Triton's interpreter, compiled ahead of time, and as fake tensors."""

import os
import re
import subprocess
import sys
from fractions import Fraction
from unittest import mock

import numpy
import pytest
import torch

from capsbench.errors import ConfigurationError
from capsbench.reversible import passes, triton_passes
from capsbench.reversible.fixed_point import UNITS
from capsbench.routing.triton.launch import check_interpreter
from capsbench.tracing import fake_cuda
from capsbench.tracing.fakes import Shapes
from helpers import ROOT
from helpers.triton_ir import narrow_products


@pytest.mark.slow
def test_everything_in_the_interpreter():
    """interpreted_passes.py: bit for bit what the operators of torch give. What fails is printed."""
    triton = pytest.importorskip("triton")
    try:
        check_interpreter(triton.__version__, numpy.__version__)
    except ConfigurationError as cannot:
        pytest.skip(cannot.what)
    command = [sys.executable, "-m", "pytest", "tests/reversible/interpreted_passes.py", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 20
    assert "skipped" not in done.stdout


def started(dtype: torch.dtype) -> list[tuple]:
    """Name and arguments of the launches of one function, forward and back."""
    units, value = torch.zeros(3, 7, dtype=torch.int64), torch.zeros(3, 7, dtype=dtype)
    with mock.patch.object(triton_passes, "_launch") as launch:
        triton_passes.advance(units, units, units, value, 9, 10, 0.1 * UNITS)
        triton_passes.retreat_x(units, units, dtype)
        triton_passes.retreat(units, units, units, value, 9, 10, 0.1 * UNITS)
    return [call.args for call in launch.call_args_list]


def rounds_every_product(ptx: str) -> bool:
    """True if the assembler cannot make one instruction, with one rounding, of a product and a sum."""
    found = set(re.findall(r"\b(?:fma|mul|add|sub)\.\S*f64", ptx))
    assert found, "no arithmetic in float64"
    return found <= {"mul.rn.f64", "add.rn.f64", "sub.rn.f64"}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_compile_without_spills_and_round_every_product(compiler, dtype, architecture):
    from capsbench.reversible import triton_kernels

    launches = started(dtype)
    assert len(launches) == 3
    for name, *arguments in launches:
        sizes = {"SIZE": triton_passes._SIZE}
        found = compiler.compiled(getattr(triton_kernels, name), arguments, sizes, triton_passes.OPTIONS, architecture)
        assert found.figures.spills == 0, name
        assert narrow_products(found.ttir) == [], name
        assert rounds_every_product(found.ptx), name


@pytest.mark.slow
def test_a_contracted_product_is_seen(compiler):
    from capsbench.reversible import triton_kernels

    name, *arguments = started(torch.float32)[0]
    options = triton_passes.OPTIONS | {"enable_fp_fusion": True}
    found = compiler.compiled(getattr(triton_kernels, name), arguments, {"SIZE": triton_passes._SIZE}, options, 90)
    assert not rounds_every_product(found.ptx)


@pytest.mark.skipif(not fake_cuda.can_follow(), reason=fake_cuda.reason_not_followed())
def test_fake_tensors_take_the_passes():
    """The largest magnitudes have the parts of a run."""
    pytest.importorskip("triton")
    with fake_cuda.fake_cuda(), Shapes("cuda"):
        units = torch.zeros(3, 700, dtype=torch.int64, device="cuda")
        assert passes.has_passes(units, torch.float32)
        rounded, peaks = passes.advance(units, units, units, units.float(), Fraction(9, 10), 1.0, torch.float32)
        assert rounded.dtype is torch.float32
        assert (peaks.shape, peaks.dtype) == ((3,), torch.float64)


def test_without_triton_there_are_no_passes_on_cuda(monkeypatch):
    monkeypatch.setattr(triton_passes, "is_installed", lambda: False)
    units = mock.Mock(is_cuda=True, numel=lambda: 5)
    assert not passes.has_passes(units, torch.float32)
