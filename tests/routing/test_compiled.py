"""The C kernels: bits that no thread changes, shapes without data, and machines without a compiler."""

import os
import shlex
import shutil

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from capsbench.errors import ConfigurationError
from capsbench.measure.memory import probe_for
from capsbench.routing import compiled, resolve_kernel, route
from capsbench.system import native
from helpers.commands import together
from helpers.comparing import assert_all_close, assert_close, saved_by_autograd
from helpers.forked import in_fork
from helpers.votes import SIZES, Example, example, outcome

pytestmark = pytest.mark.skipif(not compiled.available(), reason=f"no compiled kernels: {compiled.library().reason}")

ALGORITHMS = ["rba", "sda"]
OPERATORS = torch.ops.capsbench


@pytest.fixture
def threads():
    """Set the number of threads, and restore it."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("sizes", [(70, 5, 4, 9, 3), (3, 40, 8, 32, 8)], ids=str)
def test_the_number_of_threads_changes_nothing(algorithm, sizes, threads):
    given = example(sizes, torch.float32, algorithm=algorithm)
    found = []
    for number in (1, 2, 5):
        threads(number)
        found.append(outcome(given, "compiled"))
    assert_all_close(found[1], found[0], relative=0)
    assert_all_close(found[2], found[0], relative=0)


def test_a_sample_has_the_same_bits_in_any_batch():
    given = example((70, 5, 4, 9, 3), torch.float32)
    alone = [given._replace(inputs=given.inputs[index : index + 1]).route("compiled", 4) for index in (0, 33, 69)]
    assert torch.equal(torch.cat(alone), given.route("compiled", 4)[[0, 33, 69]])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("outputs", [1, 7, 8, 9, 100])
@pytest.mark.parametrize("dim", [1, 5, 8, 16])
def test_any_number_of_output_capsules(algorithm, outputs, dim):
    given = example((6, 13, 8, outputs, dim), torch.float64, algorithm=algorithm)
    assert_all_close(outcome(given, "compiled"), outcome(given, "reference"), relative=1e-9)


def test_large_logits_do_not_overflow():
    given = example((4, 9, 8, 32, 8), torch.float32)
    large = given._replace(inputs=(given.inputs * 300).detach().requires_grad_())
    truth = outcome(
        Example("rba", *(tensor.detach().double().requires_grad_() for tensor in large.tensors), {}, large.grad.double()),
        "reference",
    )
    error = [
        (mine.double() - true).abs().max() / true.abs().max()
        for mine, true in zip(outcome(large, "compiled"), truth, strict=True)
    ]
    assert max(error) < 1e-4


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_is_never_lost(algorithm, dtype):
    given = example(SIZES[-1], dtype, algorithm=algorithm)
    with torch.no_grad():
        given.inputs[1, 3, 0] = torch.nan
    output = given.route("compiled")
    assert output[1].isnan().all()
    if algorithm == "rba":  # SDA's temperature is of the whole batch
        assert output[[0, 2, 3]].isfinite().all()


def operands(dtype=torch.float32, device="cpu") -> dict[str, Tensor]:
    """B 5, I 6, K 4, J 3, D 2, P 8."""
    made = {"inputs": (5, 6, 4), "weight": (6, 4, 3, 2), "state": (5, 2, 8), "grad": (5, 3, 2), "bias": (2, 8)}
    generator = torch.Generator().manual_seed(0)
    found = {name: torch.randn(shape, generator=generator, dtype=dtype).to(device) for name, shape in made.items()}
    return {**found, "t": torch.tensor(-1.0, dtype=dtype, device=device)}


@pytest.mark.parametrize("limited", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operators_are_what_torch_expects(dtype, limited):
    given = operands(dtype)
    inputs, weight, grad, bias = (given[name] for name in ("inputs", "weight", "grad", "bias"))
    layer = (inputs, weight, given["state"], given["t"] if limited else None, limited)
    for operator, arguments in (
        ("votes_round", (*layer, bias)),
        ("votes_round", (*layer, None)),
        ("votes_rounds", (inputs, weight, 2)),
        ("votes_distance", (inputs, weight, given["state"])),
        ("votes_vjp", (*layer, grad.flip(0), grad)),
        ("votes_value_and_vjp", (*layer, bias, grad)),
        ("votes_rounds_and_vjp", (inputs, weight, 3, grad)),
    ):
        found = getattr(OPERATORS, operator).default
        torch.library.opcheck(found, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("kept", [0, 1, 3, 100])
@pytest.mark.parametrize("rounds", [2, 4])
@pytest.mark.parametrize(("shape", "dtype"), [((7, 5, 3, 11, 2), torch.float32), ((7, 6, 8, 32, 8), torch.float64)])
def test_votes_kept_between_rounds_change_no_bit(monkeypatch, kept, rounds, shape, dtype):
    """Blocks of as many samples as fit, and of none."""
    given = example(shape, dtype)
    inputs, weight = (one.detach() for one in (given.inputs, given.weight))
    of_sample = inputs.element_size() * shape[1] * shape[4] * (shape[3] + -shape[3] % 8)
    monkeypatch.setattr(compiled, "_KEPT_BYTES", kept * of_sample)
    state = OPERATORS.votes_rounds(inputs, weight, rounds - 1)
    expected = OPERATORS.votes_value_and_vjp(inputs, weight, state, None, False, None, given.grad)
    for mine, theirs in zip(OPERATORS.votes_rounds_and_vjp(inputs, weight, rounds, given.grad), expected, strict=True):
        assert torch.equal(mine, theirs)


def test_operators_take_any_layout_and_refuse_other_kinds():
    given = operands()
    strange = given["inputs"].mT.contiguous().mT
    assert not strange.is_contiguous()
    expected = OPERATORS.votes_rounds(given["inputs"], given["weight"], 2)
    assert_close(OPERATORS.votes_rounds(strange, given["weight"], 2), expected, relative=0)
    with pytest.raises(TypeError, match="float32 or float64"):
        OPERATORS.votes_rounds(given["inputs"], given["weight"].double(), 2)


def test_more_output_capsules_than_a_stack_holds():
    with pytest.raises(ConfigurationError, match=r"20000 capsules.*\n.*recompute"):
        route(torch.randn(1, 1, 1), torch.randn(1, 1, 20_000, 1), kernel="compiled")


@pytest.mark.parametrize("outputs", [1, 8, 10])
def test_no_padding_is_kept(outputs):
    given = example((6, 13, 8, outputs, 4), torch.float32)
    with saved_by_autograd() as saved:
        given.route("compiled")
    # Inputs, weight, s and Σv, and not the padding of a view's storage.
    expected = 4 * (given.inputs.numel() + given.weight.numel() + 2 * given.grad.numel())
    assert sum(tensor.untyped_storage().nbytes() for tensor in saved) == expected


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_shapes_without_data(algorithm):
    options = {"algorithm": algorithm, "kernel": "compiled"}
    with torch.device("meta"):
        inputs, weight = torch.empty(5, 6, 4, requires_grad=True), torch.empty(6, 4, 3, 2, requires_grad=True)
    output = route(inputs, weight, **options)
    output.sum().backward()
    assert (output.device.type, output.shape, weight.grad.shape) == ("meta", (5, 3, 2), weight.shape)
    with FakeTensorMode():
        assert route(torch.empty(5, 6, 4), torch.empty(6, 4, 3, 2), **options).shape == (5, 3, 2)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_under_torch_compile(algorithm):
    given = example((4, 6, 3, 4, 5), torch.float32, algorithm=algorithm)

    def loss(inputs, weight):
        return (route(inputs, weight, algorithm=algorithm, kernel="compiled") * given.grad).sum()

    expected = torch.autograd.grad(loss(given.inputs, given.weight), (given.inputs, given.weight))
    compiled_loss = torch.compile(loss, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled_loss(given.inputs, given.weight), (given.inputs, given.weight))
    assert_all_close(found, expected, relative=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["compiled", "recompute"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_first_layer_needs_seven_mebibytes(algorithm, kernel):
    """Above inputs, weight and their gradients, at the paper's sizes; scratch is seen too."""
    inputs_and_weight = 4 * (128 * 1152 * 8 + 1152 * 8 * 32 * 8)
    with probe_for(torch.device("cpu")) as probe:
        given = example((128, 1152, 8, 32, 8), torch.float32, algorithm=algorithm)
        with probe.phase("step"):
            outcome(given, kernel)
    phase = probe.phases()["step"]
    assert 0 < phase.peak - phase.start - inputs_and_weight <= 7 * 2**20


def forget() -> None:
    """Forget the library, as in a new process."""
    native.built.cache_clear()
    compiled.library.cache_clear()


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Nothing built before, a cache of one's own, and a compiler that takes a second because it optimizes nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = next((path for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (path := shutil.which(name))), None)
    if found is not None:
        quick = tmp_path / "quick"
        quick.write_text(f'#!/bin/sh\nexec {shlex.quote(found)} "$@" -O0\n')
        quick.chmod(0o755)
        monkeypatch.setenv("CC", str(quick))
    forget()
    yield tmp_path
    forget()


def test_without_a_compiler_auto_is_recompute(fresh, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert resolve_kernel("auto") == "recompute"
    given = example(SIZES[0])
    assert_all_close(outcome(given, "auto"), outcome(given, "recompute"), relative=0)
    with pytest.raises(ConfigurationError, match=r"`kernel` compiled .*no C compiler.*\n.*recompute"):
        given.route("compiled")


def test_it_can_be_switched_off(fresh, monkeypatch):
    monkeypatch.setenv(native.DISABLED, "1")
    assert not compiled.available()
    assert native.DISABLED in compiled.library().reason


def test_a_compiler_that_fails_is_quoted(fresh, monkeypatch):
    broken = fresh / "broken"
    broken.write_text("#!/bin/sh\necho 'no such target' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    assert not compiled.available()
    assert compiled.library().reason == "broken failed: no such target"
    assert not list(fresh.rglob("*.so"))


@pytest.mark.slow
def test_built_once(fresh):
    assert compiled.available()
    (made,) = (fresh / "cache").rglob("*.so")
    stamp = made.stat().st_mtime_ns
    forget()
    assert compiled.available()
    assert [path.stat().st_mtime_ns for path in (fresh / "cache").rglob("*.so")] == [stamp]


@pytest.mark.slow
def test_a_damaged_library_is_built_again(fresh):
    assert compiled.available()
    (made,) = (fresh / "cache").rglob("*.so")
    size = made.stat().st_size
    made.unlink()  # this process has it open
    made.write_bytes(b"not a library")
    assert in_fork(compiled.available)
    assert made.stat().st_size == size


def test_without_a_cache_to_write_to(fresh, monkeypatch, tmp_path_factory):
    (fresh / "cache").write_text("a file where a folder should be")
    elsewhere = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    assert compiled.available()
    assert not list(elsewhere.iterdir())


@pytest.mark.slow
def test_what_others_may_write_is_not_loaded(fresh):
    assert compiled.available()
    (made,) = (fresh / "cache").rglob("*.so")
    made.chmod(0o777)
    stamp = made.stat().st_mtime_ns
    assert in_fork(compiled.available)
    assert made.stat().st_mtime_ns != stamp, "it was compiled again"
    assert not made.stat().st_mode & 0o022
    made.parent.chmod(0o777)
    assert in_fork(compiled.available)


@pytest.mark.slow
def test_several_processes_may_build_at_once(fresh, server):
    script = fresh / "program.py"
    script.write_text("from capsbench.routing import compiled\nassert compiled.available(), compiled.library()\n")
    variables = {name: os.environ[name] for name in ("XDG_CACHE_HOME", "CC") if name in os.environ}
    started = [server.start(fresh, script, program="python", **variables) for _ in range(3)]
    assert [done.status for done in together(started)] == [0, 0, 0]
    assert len(list((fresh / "cache").rglob("*.so"))) == 1
