"""State that a network's code changes outside the network: after an estimate it is as before."""

import itertools
from collections.abc import Callable
from functools import cache, lru_cache, wraps
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import capsbench
from capsbench import Case
from capsbench.errors import ConfigurationError
from capsbench.tracing.shared_state import shared_state_replaced
from capsbench.tracing.twins import Twins
from helpers import other_state

CPU = torch.device("cpu")
SEEN: list[Any] = []
BY_NAME: dict[str, Any] = {}
COUNT = 0
COUNTER = itertools.count()
STATE = SimpleNamespace(calls=0)


class Holder:
    """An object of a user's own class."""

    def __init__(self) -> None:
        self.calls = 0


HOLDER = Holder()


def counted(x: Tensor) -> Tensor:
    """A function that counts its calls by an attribute of its own, and keeps what it saw in another."""
    counted.calls += 1
    counted.seen.append(x)
    counted.last = x
    return x


counted.calls, counted.seen = 0, []


def remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function so that it keeps what it returned."""
    known: dict[Any, Any] = {}

    @wraps(function)
    def call(*args: Any) -> Any:
        if args not in known:
            known[args] = function(*args)
        return known[args]

    call.known = known
    return call


@remembering
def positions(length: int, device: torch.device) -> Tensor:
    return torch.arange(length, device=device)


@cache
def mask(length: int, device: torch.device) -> Tensor:
    return torch.ones(length, device=device)


def appended(x: Tensor, seen: list[Any] = []) -> Tensor:  # noqa: B006  (which is the point)
    seen.append(x)
    return x


def rebound(x: Tensor) -> Tensor:
    global COUNT, LATER
    COUNT += 1
    LATER = x
    return x


class Base(nn.Module):
    calls = 0
    seen: ClassVar[list[Any]] = []

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    @staticmethod
    @lru_cache(maxsize=2)
    def scale(size: int, device: torch.device) -> Tensor:
        return torch.full((size,), 2.0, device=device)

    @classmethod
    def count(cls) -> None:
        cls.calls += 1


class Net(Base):
    """A network that changes all that it can reach outside itself."""

    def forward(self, x: Tensor) -> Tensor:
        Base.calls += 1
        self.count()
        type(self).latest = x
        self.seen.append(x)
        SEEN.append(x)
        BY_NAME["x"] = x
        STATE.calls += 1
        HOLDER.calls += next(COUNTER)
        other_state.SEEN.append(x)
        other_state.LATEST = x
        other_state.note(x)
        x = appended(rebound(counted(self.linear(x))))
        return (x * mask(4, x.device) * self.scale(4, x.device) + positions(4, x.device)).sum()


def everything() -> dict[str, Any]:
    """All that the network changes."""
    return {
        "class": (Base.calls, Net.__dict__.get("calls"), list(Base.seen), hasattr(Net, "latest")),
        "globals": (list(SEEN), dict(BY_NAME), COUNT, "LATER" in globals(), repr(COUNTER)),
        "objects": (STATE.calls, HOLDER.calls),
        "another module": (list(other_state.SEEN), other_state.LATEST, other_state.note.calls),
        "function": (counted.calls, list(counted.seen), hasattr(counted, "last")),
        "caches": (dict(positions.known), mask.cache_info().currsize, Base.scale.cache_info().currsize),
        "default": list(appended.__defaults__[0]),
    }


@pytest.fixture
def case():
    return Case(Net(), torch.rand(3, 4))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_nothing_outside_a_network_is_changed(case, device):
    before = everything()
    found = capsbench.estimate(case, device=device)
    assert found.notes == ()
    assert everything() == before
    assert type(mask(4, CPU)) is type(positions(4, CPU)) is Tensor, "no cache has a tensor without values"


def test_nothing_is_changed_by_a_step_that_fails():
    case = Case(Net(), torch.rand(3, 4), loss=lambda out: out.no_such_thing)
    before = everything()
    with pytest.raises(ConfigurationError, match="no_such_thing"):
        capsbench.estimate(case)
    assert everything() == before


def test_the_comparison_notices_every_change(case):
    """Run for real while its state is replaced, the network changes all that is compared."""
    twins = Twins(lambda tensor, registered: tensor, with_globals=False)
    module = twins.of(case.module)
    before = everything()
    with shared_state_replaced(twins):
        module(case.inputs)
        inside = everything()
        assert [name for name, value in before.items() if value == inside[name]] == []
    assert everything() == before


def test_a_module_that_is_imported_meanwhile_stays():
    package = ModuleType("package_of_a_user")
    around = {"__name__": "module_of_a_user", "package": package, "ModuleType": ModuleType}
    exec("def run():\n    package.inner, package.found = ModuleType('package_of_a_user.inner'), 1", around)
    twins = Twins(lambda tensor, registered: tensor, with_globals=False)
    twins.of(around["run"])
    with shared_state_replaced(twins):
        around["run"]()
    assert package.inner.__name__ == "package_of_a_user.inner"
    assert not hasattr(package, "found")
