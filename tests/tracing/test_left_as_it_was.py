"""Networks and inputs that an estimate leaves as they are, and whose steps it follows all the same."""

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import capsbench
from capsbench import Case
from capsbench.errors import ConfigurationError
from capsbench.tracing import follow
from helpers.held import Held


class Stored(Held, MutableMapping[str, Any]):
    """A mapping that keeps its items in a dictionary, and has no method for copies."""

    def __setitem__(self, name: str, value: Any) -> None:
        self._held[name] = value

    def __delitem__(self, name: str) -> None:
        del self._held[name]


class Net(nn.Module):
    """A linear layer whose call a test gives."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.call = call

    def forward(self, given: Any) -> Tensor:
        return self.call(self, given)


def summed(net: Net, given: Any) -> Tensor:
    return net.linear(given["x"]).sum()


def test_a_mapping_keeps_its_tensors():
    given = Stored(x=torch.rand(4, 8))
    Case(Net(summed), inputs=(given,)).map_tensors(lambda tensor: tensor.double())
    capsbench.estimate(Net(summed), (given,), gpu="a100").largest()
    assert given["x"].shape == (4, 8)
    assert given["x"].dtype == torch.float32


@dataclass
class Graph:
    """Inputs that hold themselves, and a part that is not set yet."""

    x: Tensor
    parent: "Graph | None" = None
    later: Tensor = field(init=False)


def test_a_data_class_may_hold_itself_and_leave_a_field_for_later():
    graph = Graph(torch.rand(4, 8))
    graph.parent = graph
    twin = (
        Case(Net(lambda net, it: net.linear(it.x).sum()), inputs=(graph,)).map_tensors(lambda tensor: tensor.double()).inputs[0]
    )
    assert twin.parent is twin
    assert twin.x.dtype == torch.float64
    assert graph.parent is graph
    assert graph.x.dtype == torch.float32


class Resource:
    """An object that frees what it holds when it ends."""

    freed = 0

    def __del__(self) -> None:
        type(self).freed += 1


RESOURCE = Resource()


def test_the_end_of_an_estimate_frees_nothing():
    net = Net(lambda net, x: (RESOURCE, net.own)[1] and net.linear(x).sum())
    net.own = Resource()
    before = Resource.freed
    capsbench.estimate(net, torch.rand(4, 8), device="cpu")
    assert Resource.freed == before


def until_small(net: Net, x: Tensor) -> Tensor:
    while (net.linear(x).abs() > 1e-3).all():
        x = x / 2
    return x.sum()


def test_a_loop_over_values_that_are_guessed_ends(monkeypatch):
    assert follow._MOST_READS == 10_000  # which take 20 seconds
    monkeypatch.setattr(follow, "_MOST_READS", 100)
    with pytest.raises(ConfigurationError, match="over 100 times"):
        capsbench.estimate(Net(until_small), torch.rand(4, 8), device="cpu")


def test_a_guess_that_all_is_true_is_noted():
    found = capsbench.estimate(
        Net(lambda net, x: net.linear(x).sum() * (1 if (net.linear(x) > 0).all() else 2)), torch.rand(4, 8), device="cpu"
    )
    assert any("asks if all values of a tensor are true" in note for note in found.notes)


class Sizes(SimpleNamespace):
    """A namespace whose constructor needs an argument."""

    def __init__(self, width: int) -> None:
        super().__init__(width=width)


@lru_cache
def table(number: int) -> int:
    table.hits += 1
    return number


table.hits = 0


def with_everything(net: Net, x: Tensor) -> Tensor:
    torch.random.get_rng_state()
    drawn = torch.rand(8, generator=torch.random.default_generator)
    return (net.linear(x) + drawn).sum() * net.sizes.width * table(3)


def test_namespaces_caches_and_the_generator_of_torch_are_followed():
    net = Net(with_everything)
    net.sizes = Sizes(8)
    state = torch.get_rng_state()
    found = capsbench.estimate(net, torch.rand(4, 8, generator=torch.Generator().manual_seed(0)), device="cpu")
    assert found.memory.retained_bytes > 0
    assert table.hits == 0
    assert torch.equal(torch.get_rng_state(), state)


SPARSE = torch.eye(3).to_sparse()


def test_a_sparse_tensor_that_no_operator_gets_is_left_alone():
    def call(net: Net, x: Tensor) -> Tensor:
        return torch.sparse.sum(SPARSE) if x.dim() == 5 else net.linear(x).sum()

    capsbench.estimate(Net(call), torch.rand(4, 8), device="cpu")
    assert SPARSE.is_sparse
