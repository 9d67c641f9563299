"""Behaviour on every release of torch, Triton and Python that the package allows (`tox -e oldest`, `tox -e device`)."""

import configparser
import tomllib

import pytest
import torch
from packaging.requirements import Requirement
from torch import Tensor, nn

from capsbench import predict
from capsbench.errors import ConfigurationError
from capsbench.models.front import chunked_front
from capsbench.reversible import PLAIN_STRATEGIES, STRATEGIES, MomentumStack
from capsbench.routing.autograd import full_precision, is_autocasting
from capsbench.routing.triton.launch import check_interpreter
from capsbench.tracing import fake_cuda
from helpers import ROOT
from helpers.comparing import assert_all_close


def test_the_oldest_releases_are_those_that_are_allowed():
    """Each dependency has one lower bound, and tests/oldest.txt pins that very release."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    allowed = [Requirement(it) for it in (*project["dependencies"], *project["optional-dependencies"]["train"])]
    lines = (ROOT / "tests" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if not line.startswith("#")]
    assert {it.name: [(one.operator, one.version) for one in it.specifier] for it in pinned} == {
        it.name: [("==", one.version) for one in it.specifier if one.operator == ">="] for it in allowed
    }
    assert len(pinned) == len(allowed)


def test_the_tests_of_other_releases_are_there():
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    named = tox["versions"]["tests"].split()
    files = [sorted((ROOT / name).glob("test_*.py")) if (ROOT / name).is_dir() else [ROOT / name] for name in named]
    assert all(files)
    found = [path for some in files for path in some]
    assert len(found) == len(set(found)) > 20
    assert all(path.is_file() for path in found)


@pytest.mark.skipif(not fake_cuda.can_follow(), reason=fake_cuda.reason_not_followed())
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_convolutions_of_every_precision_are_predicted(precision):
    """Torch 2.9 asks the driver which library computes convolutions of bfloat16."""
    (record,) = predict("rescapsnet", depths=1, batch_size=2, precision=precision).records
    assert record.status == "ok", record.message


class Breaks(nn.Module):
    """Raises in the given call, counted from 1."""

    def __init__(self, call: int, error: BaseException) -> None:
        super().__init__()
        self.left, self.error = call, error

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if not self.left:
            raise self.error
        return x.sin()


def gradient(x: Tensor) -> Tensor:
    """Derivative of sin(x)² by a graph that saves tensors: sin(2x)."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(x.sin().square().sum(), x)[0]


@pytest.mark.parametrize("error", [ArithmeticError("broken"), torch.OutOfMemoryError("full"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("memory", STRATEGIES)
def test_a_forward_that_fails_leaves_nothing_in_force(memory, error):
    """The error is kept, as a debugger and a record keep it: what is computed meanwhile is computed by its own functions."""
    stack = MomentumStack([nn.Tanh(), Breaks(1, error)], memory=memory)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    with pytest.raises(type(error)) as kept:
        stack(x)
    assert kept.value is error
    assert_all_close([gradient(x)], [(2 * x.detach()).sin()], relative=1e-12)


@pytest.mark.parametrize("memory", [it for it in STRATEGIES if it not in {"stored", "offload"}])
def test_an_error_while_a_function_is_evaluated_again_is_raised_in_backward(memory):
    broken = Breaks(2, ArithmeticError("broken"))
    output = MomentumStack([broken, nn.Tanh()], memory=memory)(torch.randn(3, 4, requires_grad=True))
    with pytest.raises(ArithmeticError, match="broken"):
        output.sum().backward()


@pytest.mark.parametrize("memory", PLAIN_STRATEGIES)
def test_a_stack_that_failed_can_be_used_again(memory):
    stack = MomentumStack([nn.Tanh(), Breaks(1, ArithmeticError())], memory=memory)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ArithmeticError):
        stack(x)
    expected = MomentumStack([nn.Tanh(), Breaks(0, ArithmeticError())], memory="stored")(x).sum()
    assert_all_close(torch.autograd.grad(stack(x).sum(), x), torch.autograd.grad(expected, x), relative=1e-12)


def doubled(x: Tensor) -> Tensor:
    with full_precision(x.device):
        return (x @ x) * (2 if is_autocasting(x.device) else 1)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("autocast", [False, True])
def test_what_asks_for_autocast_is_compiled(autocast, device):
    compiled = torch.compile(doubled, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = compiled(torch.ones(2, 2, device=device))
        assert not is_autocasting(torch.device("meta"))
    assert found.dtype == torch.float32
    if device == "cpu":
        assert found.tolist() == [[2.0, 2.0]] * 2


@pytest.mark.parametrize("autocast", [False, True])
def test_a_compiled_front_has_the_dtype_that_autocast_gives(autocast):
    first, second, images = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3), torch.randn(5, 1, 9, 9)
    compiled = torch.compile(lambda it: chunked_front(it, first, second, chunk=2), fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        maps, expected = compiled(images), chunked_front(images, first, second, chunk=2)
    assert maps.dtype == expected.dtype == (torch.bfloat16 if autocast else torch.float32)
    assert_all_close([maps.float()], [expected.float()], relative=1e-6)


@pytest.mark.parametrize(
    ("triton", "numpy", "works"),
    [
        ("3.6.0", "2.4.0", False),
        ("3.5.1", "2.10.0", False),
        ("3.6.0", "2.3.5", True),
        ("3.7.1", "2.4.6", True),
        ("3.10.0", "3.0", True),
    ],
)
def test_an_interpreter_that_cannot_work_is_refused(triton, numpy, works):
    if works:
        return check_interpreter(triton, numpy)
    with pytest.raises(ConfigurationError) as refused:
        check_interpreter(triton, numpy)
    assert triton in refused.value.what
    assert numpy in refused.value.what
    assert "below 2.4" in refused.value.hint
    return None
