"""The parts of networks that grow with depth, and the clock at their edges."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from capsbench import CapsNet, MoCapsNet, MomentumStack, ResCapsNet
from capsbench.measure.clock import CpuClock
from capsbench.measure.edges import Edges, edges_cost, growing_modules, hooks_change, optimizer_share, recorded


class Counting(CpuClock):
    """A clock that goes on by a second whenever something happens."""

    now = 0.0

    def stamp(self):
        return self.now


class Ticking(torch.autograd.Function):
    """The identity, which takes some seconds, and ten times as many on the way back."""

    @staticmethod
    def forward(ctx, x, clock, seconds):
        ctx.clock, ctx.seconds = clock, seconds
        clock.now += seconds
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.clock.now += 10 * ctx.seconds
        return gradient, None, None


class Tick(nn.Module):
    """A layer that takes some seconds forward and backward."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds, self.linear = clock, seconds, nn.Linear(2, 2)

    def forward(self, x):
        return Ticking.apply(self.linear(x), self.clock, self.seconds)


class Listed(nn.Module):
    """A network whose blocks are a list, between a stem and a head."""

    def __init__(self, blocks, clock=None, run=None):
        super().__init__()
        clock = clock or Counting()
        self.stem, self.head = Tick(clock, 100), Tick(clock, 1000)
        self.layers = nn.ModuleList(Tick(clock, 1) for _ in range(blocks))
        self.run = run or (lambda layer, x: layer(x))

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = x + self.run(layer, x)
        return self.head(x)


class Repeated(nn.Module):
    """A network whose depth is how often one layer is called."""

    def __init__(self, blocks):
        super().__init__()
        self.stem, self.layer, self.blocks = nn.Linear(2, 2), nn.Linear(2, 2), blocks

    def forward(self, x):
        x = self.stem(x)
        for _ in range(self.blocks):
            x = self.layer(x)
        return x


class TwoStacks(nn.Module):
    """A network that grows in two places."""

    def __init__(self, blocks):
        super().__init__()
        self.encoder = nn.Sequential(*(nn.Linear(2, 2) for _ in range(blocks)))
        self.middle = nn.Linear(2, 2)
        self.decoder = nn.Sequential(*(nn.Linear(2, 2) for _ in range(blocks)))

    def forward(self, x):
        return self.decoder(self.middle(self.encoder(x)))


class Scattered(nn.Module):
    """A network whose blocks are attributes of its own."""

    def __init__(self, blocks):
        super().__init__()
        self.stem, self.blocks = nn.Linear(2, 2), blocks
        for number in range(blocks):
            setattr(self, f"block{number}", nn.Linear(2, 2))

    def forward(self, x):
        x = self.stem(x)
        for number in range(self.blocks):
            x = getattr(self, f"block{number}")(x)
        return x


class InForward(nn.Module):
    """A network that grows by operators of its own."""

    def __init__(self, blocks):
        super().__init__()
        self.stem, self.blocks = nn.Linear(2, 2), blocks

    def forward(self, x):
        x = self.stem(x)
        for _ in range(self.blocks):
            x = x * 1.5
        return x


def structures(make, depths=(1, 3)):
    found = []
    for blocks in depths:
        network = make(blocks)
        with recorded(network) as one:
            network(torch.ones(1, 2))
        found += one
    return found


@pytest.mark.parametrize(
    ("make", "modules"),
    [
        (Listed, [["layers"]]),
        (Repeated, [["layer"]]),
        (TwoStacks, [["encoder", "decoder"]]),
        (Scattered, []),
        (InForward, []),
        (lambda blocks: Listed(2), []),
        (
            lambda blocks: nn.Sequential(nn.Linear(2, 2), MomentumStack([nn.Linear(2, 2) for _ in range(blocks)])),
            [["1"], ["1.functions"]],
        ),
        (lambda blocks: nn.Sequential(nn.Sequential(nn.Linear(2, 2), Repeated(blocks)), nn.Linear(2, 2)), [["0.1.layer"]]),
        (lambda blocks: nn.Sequential(nn.Linear(2, 2), Listed(blocks)), [["1"], ["1.layers"]]),
    ],
)
def test_the_smallest_modules_that_hold_the_growth_are_found(make, modules):
    assert growing_modules(structures(make)) == modules


@pytest.mark.parametrize("network", [CapsNet, ResCapsNet, MoCapsNet])
def test_the_networks_of_the_paper_grow_in_their_blocks(network):
    found = []
    for blocks in (1, 2):
        model = network(in_shape=(1, 28, 28), num_classes=10, blocks=blocks, capsules=4, channels=8)
        with recorded(model) as one:
            model(torch.rand(1, 1, 28, 28))
        found += one
    assert growing_modules(found)[0] == ["blocks"]


class Wide(nn.Module):
    """A network of which one setting changes the width of its middle, and another everything."""

    def __init__(self, width=2, inner=2, blocks=3):
        super().__init__()
        self.stem = nn.Linear(2, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, inner), nn.Linear(inner, width)) for _ in range(blocks))
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_a_container_of_which_everything_differs_in_size_is_one_part():
    assert growing_modules(structures(lambda inner: Wide(inner=inner))) == [["blocks"]]
    assert growing_modules(structures(lambda inner: Wide(inner=inner, blocks=1))) == [["blocks.0"]]


def test_a_network_of_which_everything_differs_has_no_part_of_its_own():
    assert growing_modules(structures(lambda width: Wide(width=width))) == []
    assert growing_modules(structures(lambda width: nn.Sequential(nn.Linear(2, 2), Wide(width=width)))) == [["1"]]


def test_too_many_parts_are_none():
    class Alternating(nn.Module):
        def __init__(self, width, count):
            super().__init__()
            even = [nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, width), nn.Linear(width, 2))) for _ in range(count)]
            self.layers = nn.Sequential(*even)

        def forward(self, x):
            return self.layers(x)

    assert growing_modules(structures(lambda width: Alternating(width, 3))) == [[f"layers.{place}.1" for place in range(3)]]
    assert growing_modules(structures(lambda width: Alternating(width, 40))) == []


def test_recording_a_structure_leaves_no_hook():
    network = Listed(2)
    structures(lambda _: network)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def seconds_of(network, modules, clock, *, inference=False):
    """Seconds at the edges of a second step, since hooks must forget the first."""
    with recorded(network) as found:
        network(torch.ones(1, 2))
    edges = Edges(network, modules, found[0], clock)
    for _ in range(2):
        with torch.inference_mode(inference), edges.forward(training=not inference):
            out = network(torch.ones(1, 2))
        if not inference:
            out.sum().backward()
    found = edges.seconds()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    return found


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_time_inside_the_blocks_alone_is_counted(blocks):
    clock = Counting()
    assert seconds_of(Listed(blocks, clock), ["layers"], clock) == (blocks, 10 * blocks)
    assert seconds_of(Listed(blocks, clock), ["layers"], clock, inference=True) == (blocks, 0)


@pytest.mark.parametrize("reentrant", [True, False])
def test_calls_in_backward_are_no_edges(reentrant):
    clock = Counting()

    def run(layer, x):
        return checkpoint(layer, x, use_reentrant=reentrant)

    found = seconds_of(Listed(3, clock, run), ["layers"], clock)
    # Backward calls each layer again. The tensors of a reentrant checkpoint's own backward cannot be seen in forward.
    assert found == (None if reentrant else (3, 10 * 3))


def test_a_part_without_gradients_has_no_time_for_backward():
    clock = Counting()
    network = Listed(2, clock)
    network.requires_grad_(requires_grad=False)
    network.head.requires_grad_(requires_grad=True)
    assert seconds_of(network, ["layers"], clock) == (2, 0)


def test_a_first_part_whose_input_needs_no_gradient_is_not_known():
    clock = Counting()
    network = nn.Sequential(Listed(2, clock).layers[0], Tick(clock, 5))
    assert seconds_of(network, ["0"], clock) is None


class Zipped(nn.Module):
    """A network whose blocks are spread over two lists."""

    def __init__(self, blocks, clock):
        super().__init__()
        self.stem, self.head = Tick(clock, 100), Tick(clock, 1000)
        self.ones = nn.ModuleList(Tick(clock, 1) for _ in range(blocks))
        self.twos = nn.ModuleList(Tick(clock, 2) for _ in range(blocks))

    def forward(self, x):
        x = self.stem(x)
        for one, two in zip(self.ones, self.twos, strict=True):
            x = two(one(x))
        return self.head(x)


@pytest.mark.parametrize("blocks", [1, 4])
def test_parts_that_are_called_by_turns_are_counted_once(blocks):
    clock = Counting()
    assert growing_modules(structures(lambda depth: Zipped(depth, Counting()))) == [["ones", "twos"]]
    assert seconds_of(Zipped(blocks, clock), ["ones", "twos"], clock) == (3 * blocks, 30 * blocks)


class TwoOutputs(Tick):
    def forward(self, x):
        out = super().forward(x)
        return out, out * 2


def test_two_outputs_are_no_way_out_of_backward():
    clock = Counting()
    first, last = TwoOutputs(clock, 1), Tick(clock, 5)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = first, last

        def forward(self, x):
            return self.last(sum(self.first(x)))

    assert seconds_of(Net(), ["first"], clock) is None


def test_several_parts_add_up():
    clock = Counting()
    network = nn.Sequential(Tick(clock, 1), Tick(clock, 100), Tick(clock, 2), Tick(clock, 300))
    network.insert(0, nn.Linear(2, 2))
    assert seconds_of(network, ["1", "3"], clock) == (3, 30)


def test_gradients_are_those_without_edges():
    torch.manual_seed(0)
    network = MoCapsNet(in_shape=(1, 28, 28), num_classes=10, blocks=2, capsules=4, channels=8)
    images = torch.rand(2, 1, 28, 28)

    def gradients():
        network.zero_grad()
        network(images).lengths.sum().backward()
        return [one.grad.clone() for one in network.parameters() if one.grad is not None]

    without = gradients()
    with recorded(network) as found:
        network(images)
    edges = Edges(network, ["blocks"], found[0], CpuClock())
    with edges.forward(training=True):
        with_edges = gradients()
    assert edges.seconds() is not None
    assert all(map(torch.equal, without, with_edges))


def test_the_cost_of_edges_is_small_and_never_negative():
    cost = edges_cost(CpuClock(), torch.device("cpu"), 2)
    assert 0 <= cost < 0.01


class Encoder(nn.Module):
    """A network of transformer layers, which take a way of their own in inference unless there are hooks."""

    def __init__(self, blocks):
        super().__init__()
        self.stem, self.head = nn.Linear(2, 8), nn.Linear(8, 2)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(blocks))

    def forward(self, x):
        x = self.stem(x)[:, None]
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, 0])


class Changing(nn.Module):
    """A network that runs one operator more whenever it is called."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(2, 2), 0

    def forward(self, x):
        self.calls += 1
        for _ in range(self.calls):
            x = x * 2
        return self.layer(x)


def hooks_change_inference_of(network, modules):
    network.eval()
    with recorded(network) as found:
        network(torch.ones(1, 2))
    with torch.inference_mode():
        return hooks_change(network, lambda: network(torch.ones(1, 2)), Edges(network, modules, found[0], CpuClock()))


def test_hooks_that_change_what_inference_runs_are_found():
    assert hooks_change_inference_of(Encoder(2), ["layers"])
    assert hooks_change_inference_of(Changing(), ["layer"])
    assert not hooks_change_inference_of(Listed(2), ["layers"])
    # Hooks of a module around the layers leave these their way.
    assert not hooks_change_inference_of(nn.Sequential(nn.Linear(2, 2), Encoder(2)), ["1"])


def test_a_network_that_cannot_be_recorded_gets_no_hooks_in_inference():
    network = Listed(1)
    with recorded(network) as found:
        network(torch.ones(1, 2))
    edges = Edges(network, ["layers"], found[0], CpuClock())

    def refusing():
        raise RuntimeError("this network is compiled")

    assert hooks_change(network, refusing, edges)


def test_modules_have_the_share_of_the_optimizer_that_their_parameters_have():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 8, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert optimizer_share(model, ["0", "2"], optimizer) == 48 / 64
    assert optimizer_share(model, [""], optimizer) == 1
    assert optimizer_share(model, ["0"], None) == 0


def test_a_shared_parameter_counts_once_and_a_frozen_one_not_at_all():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD([model[0].weight], lr=0.1)
    assert optimizer_share(model, ["0", "1"], optimizer) == 1
    assert optimizer_share(model, ["2"], optimizer) == 0
