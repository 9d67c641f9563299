"""Checks of the drift whose values are still on their way from a device, with events that a test lets happen."""

import math
import threading
import warnings
from collections import deque
from types import SimpleNamespace

import pytest
import torch

from capsbench.reversible import DriftWarning, drift
from capsbench.reversible.drift import check_drift, settle


class Device:
    """A device that is through with as many copies as the test says."""

    def __init__(self) -> None:
        self.started, self.done, self.waited = 0, 0, 0

    def start(self, check, values):
        self.started += 1
        number = self.started
        event = SimpleNamespace(query=lambda: number <= self.done, synchronize=lambda: self.wait(number))
        return drift._Unsettled(check, values, event)

    def wait(self, number: int) -> None:
        self.waited += number > self.done
        self.done = max(self.done, number)


@pytest.fixture
def device(monkeypatch):
    device = Device()
    monkeypatch.setattr(drift, "_is_awaited", lambda _: True)
    monkeypatch.setattr(drift, "_UNSETTLED", deque())
    monkeypatch.setattr(drift._Unsettled, "start", device.start)
    return device


def check(off: float, depth: int = 0) -> list[str]:
    """Warnings that a check gives at once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_drift(torch.tensor([0.0, -off]), [torch.tensor([-1.0, 0.5])], inverse="float", depth=depth)
    return [str(one.message) for one in caught if one.category is DriftWarning]


def test_a_warning_comes_with_the_first_check_after_its_values(device):
    assert check(0.5, depth=1) == []
    assert check(0.0, depth=2) == []
    assert device.waited == 0
    device.done = 1
    (text,) = check(0.0, depth=3)
    assert "drifted by 0.5 (bound 0.0001) on its way back to function 1" in text
    assert device.waited == 0
    device.done = 3
    assert check(0.0) == []


def test_at_the_end_nothing_is_left_out(device):
    for depth in range(3):
        assert check(0.1, depth) == []
    with pytest.warns(DriftWarning) as found:
        settle()
    assert [str(one.message).split(":")[0][-10:] for one in found] == ["function 0", "function 1", "function 2"]
    assert not drift._UNSETTLED
    settle()


def test_the_number_of_checks_that_wait_has_a_bound(device, monkeypatch):
    monkeypatch.setattr(drift, "_MOST_UNSETTLED", 2)
    assert [bool(check(0.1)) for _ in range(5)] == [False, False, True, True, True]
    assert len(drift._UNSETTLED) == 2


def test_a_warning_that_is_an_error_loses_no_other_check(device):
    """The check that gives the warning of an earlier one is itself still to come."""
    assert check(0.5, depth=1) == []
    device.done = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DriftWarning, match="function 1"):
            check_drift(torch.tensor(0.25), [torch.tensor(1.0)], inverse="float", depth=2)
    with pytest.warns(DriftWarning, match=r"0\.25.*function 2"):
        settle()


def test_while_a_graph_is_captured_nothing_is_checked(device, monkeypatch):
    monkeypatch.setattr(drift, "is_capturing", lambda _: True)
    assert check(0.5) == []
    assert device.started == 0


def test_checks_of_several_threads_are_each_settled_once(device):
    """Each device has a thread of its own for backward."""
    for depth in range(200):
        assert check(0.0, depth) == []
    device.done = 200
    seen = []
    for unsettled in drift._UNSETTLED:
        object.__setattr__(unsettled, "check", seen.append)
    threads = [threading.Thread(target=settle) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 200
    assert not drift._UNSETTLED


def test_on_a_cpu_a_warning_comes_at_once():
    (text,) = check(float("nan"))
    assert "drifted by nan" in text
    assert check(1e-5) == []
    assert not drift._UNSETTLED


@pytest.mark.parametrize("states", [[math.inf], [math.nan], [1.0, -math.inf], [math.nan, 1.0]])
def test_values_that_were_not_finite_are_nobodys_fault(states):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_drift(torch.tensor(math.nan), [torch.tensor(one) for one in states], inverse="float", depth=0)
        check_drift(torch.zeros(0), [torch.zeros(0)], inverse="float", depth=0)


def test_the_largest_state_is_the_scale():
    states = [torch.zeros(3), torch.tensor([0.0, 2.0, -4.0])]
    with pytest.warns(DriftWarning, match=r"drifted by 0\.25 "):
        check_drift(torch.tensor([0.5, -1.0, 0.0]), states, inverse="float", depth=0)
    with pytest.warns(DriftWarning, match="drifted by inf"):
        check_drift(torch.tensor(5), [torch.tensor(0)], inverse="exact", depth=0, bound=0)
