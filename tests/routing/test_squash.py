"""Length and squash: exact for tiny vectors, safe at the zero vector."""

import pytest
import torch

from capsbench.routing import length, squash
from capsbench.routing.squash import squash_vjp
from helpers.comparing import assert_close

DIRECTION = torch.tensor([0.6, 0.0, -0.8])


@pytest.fixture(params=[False, True], ids=["denormals kept", "denormals flushed"])
def flush(request):
    if request.param and not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormal numbers")
    yield request.param
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("exponent", [-18, -15, -10, -5, 0, 5, 15])
def test_gradient_of_length_is_the_unit_vector(exponent, flush):
    v = (DIRECTION * 10.0**exponent).requires_grad_()
    norm = length(v)
    norm.backward()
    assert_close(norm, torch.tensor(10.0**exponent), relative=1e-6)
    assert_close(v.grad, DIRECTION, relative=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-25, 1e-38, 1e-44])
def test_gradient_of_length_is_finite_below(size, flush):
    v = (DIRECTION * size).requires_grad_()
    length(v).backward()
    assert torch.isfinite(v.grad).all()
    assert v.grad.norm() <= 1 + 1e-6  # the unit vector while float32 can distinguish it, 0 from there on
    if size == 0:
        assert v.grad.count_nonzero() == 0


def test_length_keeps_or_drops_the_dimension():
    v = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert length(v).tolist() == [5.0, 0.0]
    assert length(v, keepdim=True).tolist() == [[5.0], [0.0]]


@pytest.mark.parametrize(
    ("norm", "expected"), [(0.0, 0.0), (1e-10, 1e-20), (1e-3, 1e-6 / (1 + 1e-6)), (1.0, 0.5), (3.0, 0.9), (1e4, 1.0), (1e15, 1.0)]
)
def test_squash_by_hand(norm, expected, flush):
    assert_close(squash(DIRECTION * norm), DIRECTION * expected, relative=1e-6)


@pytest.mark.parametrize("norm", [0.0, 1e-18, 1e-10, 1e-4, 1.0, 1e4, 1e6])
def test_gradient_of_squash_has_its_closed_form(norm, flush):
    """The derivative is 2‖s‖/(1+‖s‖²)² along s, and ‖s‖/(1+‖s‖²) across."""
    across = torch.tensor([0.8, 0.0, 0.6])
    for direction, slope in ((DIRECTION, 2 * norm / (1 + norm**2) ** 2), (across, norm / (1 + norm**2))):
        s = (DIRECTION * norm).requires_grad_()
        (squash(s) * direction).sum().backward()
        # Where the radial slope dies as ‖s‖⁻³ it is the difference of two far larger terms.
        scale = max(slope, norm / (1 + norm**2))
        assert (s.grad - slope * direction).abs().max() <= 1e-6 * scale
        assert (squash_vjp(s.detach(), direction) - s.grad).abs().max() <= 1e-6 * scale


def test_zero_vectors_among_others_get_no_gradient():
    s = torch.stack([DIRECTION, torch.zeros(3), DIRECTION * 1e-30]).requires_grad_()
    squash(s).sum().backward()
    for gradient in (s.grad, squash_vjp(s.detach(), torch.ones(3, 3))):
        assert torch.isfinite(gradient).all()
        assert gradient.count_nonzero(dim=1)[:2].tolist() == [3, 0]


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1.0, 1e3])
def test_squash_vjp_equals_autograd(size):
    generator = torch.Generator().manual_seed(0)
    s, grad = (torch.randn(4, 5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    s = (s * size).requires_grad_()
    (expected,) = torch.autograd.grad(squash(s), s, grad)
    assert_close(squash_vjp(s.detach(), grad), expected, relative=1e-12)


def test_gradcheck():
    s = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(squash, s)
    assert torch.autograd.gradcheck(length, s)
