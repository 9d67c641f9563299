"""Members of lists that keep less: the same values, gradients and random numbers bit for bit, in fewer bytes."""

import copy
import random
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from capsbench.errors import ConfigurationError
from capsbench.reversible.members import keep_less, lists_kept_less, refuse_uncalled
from helpers.comparing import assert_all_close, saved_by_autograd

WIDTH = 6


@dataclass
class Found:
    """An output that is no tensor."""

    value: Tensor
    times: int


class Layer(nn.Module):
    """A layer with dropout and a running mean, which takes a nested argument by name and returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop, self.norm = nn.Linear(WIDTH, WIDTH), nn.Dropout(0.4), nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor, times: int = 1, *, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        shift, scale = pair
        y = torch.tanh(self.norm(self.linear(self.drop(x)) * scale + shift * times))
        return x + y * random.random(), {"found": Found(y, times)}


class Net(nn.Module):
    """A network of layers, between others."""

    def __init__(self, layers: int, make: Any = Layer) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(make() for _ in range(layers))

    def forward(self, x: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
        x = self.first(x)
        for index, layer in enumerate(self.layers):
            x, more = layer(x, times=index, pair=pair)
            assert more["found"].times == index
            x = x + more["found"].value
        return x


def example() -> tuple[Tensor, tuple[Tensor, Tensor]]:
    torch.manual_seed(3)
    return torch.randn(5, WIDTH), (torch.randn(WIDTH, requires_grad=True), torch.randn(5, WIDTH, requires_grad=True))


def outcome(memory: str, layers: int = 3, steps: int = 2) -> list[Tensor]:
    """Values, gradients, buffers and the next random numbers of some steps of a network."""
    x, pair = example()
    torch.manual_seed(0)
    random.seed(0)
    net = Net(layers)
    keep_less(net, memory)
    found = []
    for _ in range(steps):
        y = net(x, pair)
        y.square().sum().backward()
        found.append(y.detach())
    gradients = [one.grad for one in [*net.parameters(), *pair]]
    return [*found, *gradients, *(buffer.double() for buffer in net.buffers()), torch.rand(2), torch.tensor(random.random())]


@pytest.mark.parametrize("memory", ["checkpoint", "offload"])
@pytest.mark.parametrize("layers", [1, 3])
def test_every_bit_is_the_same(memory, layers):
    assert_all_close(outcome(memory, layers), outcome("stored", layers), relative=0)


def test_a_checkpoint_keeps_inputs_alone():
    def kept(memory: str, layers: int) -> int:
        x, pair = example()
        net = Net(layers)
        keep_less(net, memory)
        with saved_by_autograd() as saved:
            net(x, pair).sum()
        return len({tensor.untyped_storage().data_ptr() for tensor in saved if tensor.numel() == x.numel()})

    per_layer = {memory: kept(memory, 5) - kept(memory, 4) for memory in ("stored", "checkpoint")}
    assert per_layer["checkpoint"] == 1 < per_layer["stored"]


def test_names_and_copies_stay():
    net, plain = Net(2), Net(2)
    keep_less(net, "checkpoint")
    assert list(net.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in net.named_modules()] == [name for name, _ in plain.named_modules()]
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    x, pair = example()
    twin.eval()
    twin(x, pair).sum().backward()
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(parameter.grad is not None for parameter in twin.parameters())


def test_without_gradients_nothing_is_kept_and_nothing_changes():
    x, pair = example()
    net = Net(2).eval()
    random.seed(1)
    expected = net(x, pair)
    keep_less(net, "checkpoint")
    random.seed(1)
    with torch.inference_mode():
        found = net(x, pair)
    assert torch.equal(found, expected)


def test_a_tensor_changed_in_place_before_backward_is_an_error():
    """The value at which a member is evaluated again would be another one."""
    x, (shift, scale) = example()
    changing = shift.detach().clone()
    net = Net(2)
    keep_less(net, "checkpoint")
    loss = net(x, (changing, scale)).sum()
    changing.add_(1)
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()


def like(*kinds: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(*(kind() if kind is Layer else kind(WIDTH, WIDTH) for kind in kinds))


class Two(nn.Module):
    """A network of an encoder and a decoder, and a longer list of simple layers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.ModuleList(Net(3) for _ in range(2)), nn.ModuleList(Net(1) for _ in range(1))
        self.heads = nn.ModuleList(nn.Linear(2, 2) for _ in range(7))


LISTS = {
    "layers": (lambda: Net(3), {"layers": 3}),
    "the whole network": (lambda: like(Layer, Layer), {"": 2}),
    "simple layers": (lambda: like(nn.Linear, nn.Linear), {"": 2}),
    "one layer": (lambda: Net(1), {"layers": 1}),
    "the same class": (
        lambda: nn.ModuleDict({"a": nn.ModuleList([Layer(), Layer()]), "b": nn.ModuleList([Layer()]), "c": like(nn.Linear)}),
        {"a": 2, "b": 1},
    ),
    "the longest": (Two, {"encoder.0.layers": 3, "encoder.1.layers": 3, "decoder.0.layers": 1}),
    "sequences": (
        lambda: nn.ModuleDict(
            {"a": nn.Sequential(like(Layer, Layer), like(nn.Linear), like(Layer)), "b": nn.Sequential(like(nn.Linear))}
        ),
        {"a": 3},
    ),
    "one member twice": (lambda: nn.Sequential(*[Layer()] * 3), {"": 1}),
}


@pytest.mark.parametrize(("make", "expected"), LISTS.values(), ids=LISTS)
def test_lists_whose_members_keep_less(make, expected):
    net = make()
    assert lists_kept_less(net) == {}
    keep_less(net, "stored")
    assert lists_kept_less(net) == {}
    keep_less(net, "checkpoint")
    assert lists_kept_less(net) == expected


NAMED = {
    "the heads": ("checkpoint:heads", {"heads": 7}),
    "a list inside another": ("checkpoint:encoder.1.layers", {"encoder.1.layers": 3}),
    "two lists": ("offload:encoder+decoder", {"encoder": 2, "decoder": 1}),
    "one list twice": ("checkpoint:decoder+decoder", {"decoder": 1}),
}


@pytest.mark.parametrize(("memory", "expected"), NAMED.values(), ids=NAMED)
def test_lists_are_chosen_by_name(memory, expected):
    net = Two()
    keep_less(net, memory)
    assert lists_kept_less(net) == expected


def test_a_list_that_is_named_may_have_layers_of_several_classes():
    net = nn.ModuleDict({"a": like(nn.Linear, Layer), "b": like(Layer, Layer)})
    keep_less(net, "checkpoint:a")
    assert lists_kept_less(net) == {"a": 2}


@pytest.mark.parametrize("memory", ["checkpoint:layers", "offload:layers"])
def test_every_bit_of_a_named_list_is_the_same(memory):
    assert_all_close(outcome(memory), outcome("stored"), relative=0)


def test_each_list_that_is_named_must_be_called():
    x = example()[0]
    net = nn.ModuleDict({name: nn.ModuleList([Changing(lambda aux, y: None)]) for name in ("encoder", "decoder")})
    keep_less(net, "checkpoint:encoder+decoder")
    net["encoder"][0](x, None)
    with pytest.raises(ConfigurationError, match="no layer Changing of 'decoder' is called"):
        refuse_uncalled(net)
    net["decoder"][0](x, None)
    refuse_uncalled(net)


@pytest.mark.parametrize(
    ("memory", "make", "words", "hint"),
    [
        ("checkpoint:layer", Two, "Two has no list of layers 'layer'", "it has heads, encoder, decoder, encoder.0.layers"),
        ("offload:heads+none", Two, "no list of layers 'none'", "it has heads"),
        ("checkpoint:encoder.", Two, "no list of layers 'encoder.'", "it has heads"),
        ("checkpoint:0", lambda: like(nn.Linear, nn.Linear), "no list of layers '0'", "leave the name out"),
        ("checkpoint:encoder.0.layers+encoder", Two, "'encoder.0.layers' lies inside 'encoder'", "checkpoint:encoder"),
        ("stored:encoder", Two, "has no effect on the lists", "stored alone"),
        ("reversible:encoder", Two, "can be inverted", "MomentumStack"),
    ],
)
def test_names_of_lists_that_are_none(memory, make, words, hint):
    with pytest.raises(ConfigurationError) as raised:
        keep_less(make(), memory)
    assert words in raised.value.what
    assert hint in raised.value.hint


@pytest.mark.parametrize(
    ("memory", "make", "words"),
    [
        ("checkpoint", lambda: like(nn.Linear, Layer), "no list of layers in Sequential"),
        ("offload", lambda: nn.Linear(2, 2), "no list of layers in Linear"),
        ("checkpoint", lambda: torch.jit.script(like(nn.Linear, nn.Linear)), "no list of layers"),
        ("reversible", lambda: Net(2), "inverted"),
        ("checkpoint-sqrt", lambda: Net(2), "checkpoint-sqrt is not offered"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::DeprecationWarning")
def test_what_cannot_keep_less_is_refused(memory, make, words):
    with pytest.raises(ConfigurationError) as raised:
        keep_less(make(), memory)
    assert words in raised.value.what
    assert raised.value.hint


class Cache:
    """A cache of keys, as those of language models are."""

    def __init__(self, keys: list[Tensor]) -> None:
        self.keys = keys

    def get_seq_length(self) -> int:
        return len(self.keys)


class Caching(nn.Module):
    """A layer that adds to a cache, if it is given one, and sums over all that is there."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        keys = [*(cache.keys if cache else []), self.linear(x)]
        if cache is not None:
            cache.keys.append(keys[-1])
        return x + torch.stack(keys).sum(0).tanh()


@pytest.mark.parametrize("by_name", [False, True])
def test_an_empty_cache_is_not_written_to_twice(by_name):
    layers, x = nn.ModuleList([Caching()]), example()[0]
    expected = layers[0](x)
    keep_less(layers, "checkpoint")
    cache = Cache([])
    found = layers[0](x, cache=cache) if by_name else layers[0](x, cache)
    assert torch.equal(found, expected)
    found.sum().backward()
    assert cache.keys == []
    with pytest.raises(ConfigurationError, match="has a cache of 1 tokens"):
        layers[0](x, Cache([x]))


class Changing(nn.Module):
    """A layer that does something to what it is given."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.linear, self.change = nn.Linear(WIDTH, WIDTH), change

    def forward(self, x: Tensor, aux: Any) -> Tensor:
        y = self.linear(x).tanh()
        self.change(aux, y)
        return x + y


def setting(name: str) -> Any:
    return lambda aux, y: setattr(aux, name, y)


CHANGES = {
    "a list": (list, list.append),
    "an item": (lambda: [1], lambda aux, y: aux.__setitem__(0, y.sum())),
    "the order": (lambda: [1, 2], lambda aux, y: aux.reverse()),
    "a dictionary": (dict, lambda aux, y: aux.update(loss=y.sum())),
    "a list inside": (lambda: {"a": ([],)}, lambda aux, y: aux["a"][0].append(y.sum())),
    "an attribute": (SimpleNamespace, setting("loss")),
    "a list of an object": (lambda: SimpleNamespace(aux=[]), lambda aux, y: aux.aux.append(y.sum())),
    "an empty list of an object": (SimpleNamespace, lambda aux, y: setattr(aux, "aux", [])),
    "an object of an object": (
        lambda: [SimpleNamespace(one=SimpleNamespace(count=0))],
        lambda aux, y: setting("count")(aux[0].one, 1),
    ),
    "a tensor of an object": (lambda: SimpleNamespace(sum=torch.zeros(())), lambda aux, y: aux.sum.add_(y.detach().sum())),
    "a set": (set, lambda aux, y: aux.add(3)),
}


@pytest.mark.parametrize(("make", "change"), CHANGES.values(), ids=CHANGES)
def test_what_a_member_changes_of_its_arguments_is_refused(make, change):
    """An outcome in it would be lost, or be there twice, and gradients would be wrong without an error."""
    x = example()[0]
    for memory in ("stored", "offload"):
        layers = nn.ModuleList([Changing(change)])
        keep_less(layers, memory)
        layers[0](x, make()).sum().backward()
    layers = nn.ModuleList([Changing(change)])
    keep_less(layers, "checkpoint")
    with pytest.raises(ConfigurationError, match=r"layer Changing changes an? .* that it is given") as raised:
        layers[0](x, make())
    assert raised.value.hint == "use `memory` stored or offload"


def test_arguments_that_are_only_read_are_no_change():
    x = example()[0]
    layers = nn.ModuleList([Changing(lambda aux, y: [*aux["a"], aux["b"].scale])])
    keep_less(layers, "checkpoint")
    aux = {"a": [x, 1000.5, None, {"c": [x]}], "b": SimpleNamespace(scale=x, more=[{}, {3}]), "c": torch.float32, "d": layers}
    aux["b"].self = aux["b"]
    layers[0](x, aux).sum().backward()
    assert layers[0].linear.weight.grad is not None


def test_an_object_that_the_network_changes_between_layers_is_refused_in_backward():
    """The first layer would be evaluated again with the value of the last one."""
    x, state = example()[0], SimpleNamespace(index=0)
    layers = nn.ModuleList([Changing(lambda aux, y: y.mul_(aux.index + 1)) for _ in range(2)])
    keep_less(layers, "checkpoint")
    for index, layer in enumerate(layers):
        state.index = index
        x = layer(x, state)
    with pytest.raises(ConfigurationError, match="is given an object that is changed before backward"):
        x.sum().backward()


def test_a_compiled_member_that_changes_a_list_is_refused_too():
    layers = nn.ModuleList([Changing(lambda aux, y: aux.append(y))])
    keep_less(layers, "checkpoint")

    def loss(x: Tensor) -> Tensor:
        aux: list[Tensor] = []
        y: Tensor = layers[0](x, aux).sum()
        return y + sum(one.sum() for one in aux)

    with pytest.raises(Exception, match="changes a list"):
        torch.compile(loss, backend="eager")(example()[0])


@pytest.mark.parametrize("compiled", [False, True])
def test_members_that_are_never_called_are_refused(compiled):
    x = example()[0]
    net = nn.ModuleList(Changing(lambda aux, y: None) for _ in range(2))
    refuse_uncalled(net)
    keep_less(net, "checkpoint")
    with pytest.raises(ConfigurationError, match="`memory` checkpoint has no effect: no layer Changing is called"):
        refuse_uncalled(net)
    with torch.no_grad():
        net[0](x, None)
    with pytest.raises(ConfigurationError, match="no layer Changing"):
        refuse_uncalled(net)

    def one(x: Tensor) -> Any:
        return net[0](x, None)

    (torch.compile(one, backend="eager") if compiled else one)(x)
    refuse_uncalled(net)
