"""The comparison helpers fail on wrong input: without that no other test proves anything."""

import numpy as np
import pytest
import torch

from helpers.comparing import assert_alive, assert_all_close, assert_close, kept_bytes, relative_error, saved_by_autograd

RIGHT = torch.tensor([1.0, -4.0, 0.0])

WRONG = {
    "value": torch.tensor([1.0, -4.0, 0.01]),
    "sign": -RIGHT,
    "shape": RIGHT.unsqueeze(0),
    "broadcastable shape": torch.tensor(1.0),
    "dtype": RIGHT.double(),
    "nan": torch.tensor([1.0, -4.0, torch.nan]),
    "inf": torch.tensor([1.0, -torch.inf, 0.0]),
    "zeros": torch.zeros(3),
}


def test_error_is_relative_to_the_largest_expected_value():
    assert relative_error(torch.tensor([1.0, -4.0, 1.0]), RIGHT) == 0.25


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_input_is_refused(wrong):
    with pytest.raises(AssertionError):
        assert_close(wrong, RIGHT, relative=1e-3)
    with pytest.raises(AssertionError):
        assert_all_close([RIGHT, wrong], [RIGHT, RIGHT], relative=1e-3)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_an_expectation_that_is_not_finite_is_refused(bad):
    with pytest.raises(AssertionError, match="expected is not finite"):
        assert_close(torch.tensor([1.0]), torch.tensor([bad]), relative=1.0)


def test_zeros_are_close_to_zeros_alone():
    assert_close(torch.zeros(3), torch.zeros(3), relative=0)
    with pytest.raises(AssertionError):
        assert_close(torch.tensor([0.0, 0.0, 1e-30]), torch.zeros(3), relative=1e9)


def test_nothing_is_no_proof():
    with pytest.raises(AssertionError, match="nothing"):
        assert_close(torch.zeros(0), torch.zeros(0), relative=1)
    with pytest.raises(AssertionError, match="nothing"):
        assert_all_close([], [], relative=1)


def test_right_input_passes_from_numpy_too():
    assert_close(RIGHT + 1e-5, RIGHT, relative=1e-5)
    assert_close(RIGHT.numpy(), np.array([1, -4, 0], dtype=np.float32), relative=0)
    assert_all_close([RIGHT, None], [RIGHT, None], relative=0)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [([RIGHT], [RIGHT, RIGHT]), ([None], [RIGHT]), ([RIGHT], [None]), ([torch.zeros(3)], [None])],
    ids=["count", "missing", "superfluous", "zeros for none"],
)
def test_missing_tensors_are_refused(actual, expected):
    with pytest.raises(AssertionError):
        assert_all_close(actual, expected, relative=1e9)


@pytest.mark.parametrize("dead", [None, torch.zeros(3), torch.tensor([1.0, torch.nan]), torch.tensor([torch.inf])])
def test_what_is_not_alive_is_refused(dead):
    assert_alive(torch.tensor([0.0, 1e-30]))
    with pytest.raises(AssertionError):
        assert_alive(dead)


def test_saved_tensors_are_seen():
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    with saved_by_autograd() as saved:
        a + b
        assert len(saved) == 0
        a * b
    a * b
    assert len(saved) == 2


def test_kept_bytes_are_those_of_storages_that_a_loss_needs():
    x, other = torch.ones(3, requires_grad=True), torch.ones(8)

    def forward():
        (x.exp() * torch.ones(1000)[:3]).exp()  # its graph ends here
        halves = other.exp().split(4)
        return x.exp().sum() + (halves[0][:3] * x).sum() + (halves[1][:3] * x).sum()

    numbers, result, whole = 3 * 4, 4, 8 * 4
    assert kept_bytes(forward, [x]) == numbers + whole + result
    assert kept_bytes(lambda: (other[:3] * x).sum(), [x]) == other.nbytes + result
    assert kept_bytes(lambda: (other[:3] * x).sum(), [x, other]) == result
