"""The chunked front: the two convolutions' outputs and gradients, what it keeps, and how it lives with PyTorch."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from capsbench.errors import ConfigurationError
from capsbench.measure.memory import ProfilerProbe
from capsbench.measure.worker import memory_pass
from capsbench.models import CapsNet, MoCapsNet, ResCapsNet
from capsbench.models import front as front_module
from capsbench.models.convolution import LibraryGradients, OffsetGradients
from capsbench.models.front import CHUNKS, FRONTS, can_chunk, check_front, chunked_front, resolve_front
from capsbench.records import Configuration
from capsbench.tracing.step_trace import trace_step
from helpers.card import DEVICE, needs_card
from helpers.comparing import assert_alive, assert_all_close, assert_close, relative_error, saved_by_autograd
from helpers.made import make_configuration

PLACES = ("images", "weight 1", "bias 1", "weight 2", "bias 2")


def convolutions(channels=12, in_channels=2, stride=2, dtype=torch.float64, kernel=9) -> tuple[nn.Conv2d, nn.Conv2d]:
    torch.manual_seed(0)
    first = nn.Conv2d(in_channels, channels, kernel, dtype=dtype)
    return first, nn.Conv2d(channels, channels + 1, kernel, stride=stride, dtype=dtype)


def pictures(batch=5, channels=2, height=20, width=19, dtype=torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, height, width, generator=generator, dtype=dtype).requires_grad_()


def plain(images, first, second, **_):
    return second(torch.relu(first(images)))


def outcome(front, images, first, second, **options) -> list[Tensor]:
    """The maps, and the gradients of everything in the order of `PLACES`; no two outputs count alike."""
    maps = front(images, first, second, **options)
    loss = (maps * torch.arange(maps.numel(), device=maps.device).sin().view_as(maps)).sum()
    inputs = [it for it in (images, *first.parameters(), *second.parameters()) if it.requires_grad]
    return [maps, *torch.autograd.grad(loss, inputs)]


# The same as the two convolutions.


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7])
def test_gradients_are_those_of_the_convolutions(chunk):
    images, layers = pictures(), convolutions()
    expected = outcome(plain, images, *layers)
    for part in expected:
        assert_alive(part)
    assert_all_close(outcome(chunked_front, images, *layers, chunk=chunk), expected, relative=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_shape(data):
    kernel, stride = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    channels, in_channels = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    batch, chunk = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 8))
    sides = [data.draw(st.integers(2 * kernel - 1, 2 * kernel + 9)) for _ in range(2)]
    images, layers = pictures(batch, in_channels, *sides), convolutions(channels, in_channels, stride, kernel=kernel)
    with torch.no_grad():
        layers[0].bias.fill_(0.5)  # a ReLU that lets nothing through has no gradients to compare
    expected = outcome(plain, images, *layers)
    assert_all_close(outcome(chunked_front, images, *layers, chunk=chunk), expected, relative=1e-12)


def test_the_chunk_changes_rounding_only():
    images, layers = pictures(33, 1, 28, 28, dtype=torch.float32), convolutions(16, 1, dtype=torch.float32)
    results = [outcome(chunked_front, images, *layers, chunk=chunk) for chunk in (4, 33, 4)]
    assert_all_close(results[1], results[0], relative=1e-5)
    assert_all_close(results[2], results[0], relative=0)  # and one chunk gives the same bits every time


def test_on_a_gpu_forward_takes_more_images_at_a_time_than_backward(monkeypatch):
    """A chunk of backward would not fill the multiprocessors in forward."""
    monkeypatch.setattr(front_module, "kind_of", lambda _: "cuda")
    monkeypatch.setitem(CHUNKS, "cuda", 2)
    taken, hidden = [], front_module._hidden
    monkeypatch.setattr(front_module, "_hidden", lambda images, *given: taken.append(len(images)) or hidden(images, *given))
    images, layers = pictures(7), convolutions()
    assert_all_close(outcome(chunked_front, images, *layers), outcome(plain, images, *layers), relative=1e-12)
    assert taken == [4, 3, 2, 2, 2, 1]
    taken.clear()
    outcome(chunked_front, images, *layers, chunk=3)
    assert taken == [3, 3, 1] * 2


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_both_ways_to_the_gradients_of_a_convolution(needs):
    images, (layer, _) = pictures(), convolutions(stride=1)
    results = []
    for kind in (LibraryGradients, OffsetGradients):
        gradients = kind(layer.weight.detach(), 1, need_inputs=needs[0], need_weight=needs[1])
        grads = layer(images).detach().sin()
        parts = [gradients.add(*pair) for pair in zip(images.detach().split(2), grads.split(2), strict=True)]
        results.append([*parts, gradients.weight_gradient()])
    assert_all_close(results[1], results[0], relative=1e-12)
    assert [part is not None for part in results[0]] == [needs[0]] * 3 + [needs[1]]


@pytest.mark.cuda
@needs_card
@pytest.mark.parametrize("chunk", [2, None])
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=str)
def test_on_a_card(dtype, relative, chunk, monkeypatch):
    """A batch of 131 images is by default one chunk of 128 in forward, and a rest."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    images = pictures(5 if chunk else 131, dtype=dtype).detach().to(DEVICE).requires_grad_()
    layers = [it.to(DEVICE) for it in convolutions(dtype=dtype)]
    expected = outcome(plain, images, *layers)
    assert_all_close(outcome(chunked_front, images, *layers, chunk=chunk), expected, relative=relative)


def test_values_that_the_relu_stops_stop_gradients():
    images, (first, second) = pictures(), convolutions()
    with torch.no_grad():
        first.bias.fill_(-1e3)
    for gradient in outcome(chunked_front, images, first, second, chunk=2)[1:4]:
        assert gradient.count_nonzero() == 0


@pytest.mark.parametrize("frozen", [(place,) for place in range(5)] + [(0, 1, 2), (3, 4), (0, 3), (1, 2, 3, 4)], ids=str)
def test_only_what_asks_gets_a_gradient(frozen):
    images, layers = pictures(), convolutions()
    everything = [images, *layers[0].parameters(), *layers[1].parameters()]
    for place in frozen:
        everything[place].requires_grad_(False)
    got, expected = (outcome(front, images, *layers, chunk=2) for front in (chunked_front, plain))
    assert len(got) == 6 - len(frozen)
    assert_all_close(got, expected, relative=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast_it_errs_no_more_than_the_convolutions(dtype):
    images, layers = pictures(9, dtype=torch.float32), convolutions(dtype=torch.float32)
    exact = outcome(plain, images.detach().double().requires_grad_(), *(copy.deepcopy(layer).double() for layer in layers))
    errors = {}
    for front in (plain, chunked_front):
        with torch.autocast("cpu", dtype=dtype):
            found = outcome(front, images, *layers, chunk=2)
        assert [it.dtype for it in found] == [dtype] + [torch.float32] * 5
        errors[front] = [relative_error(mine.double(), true) for mine, true in zip(found, exact, strict=True)]
    for mine, theirs in zip(errors[chunked_front], errors[plain], strict=True):
        assert theirs > 1e-5  # half precision was used
        assert mine <= 2 * theirs


def test_autocast_leaves_float64_alone():
    images, layers = pictures(), convolutions()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(chunked_front(images, *layers, chunk=2), plain(images, *layers), relative=1e-12)


@pytest.mark.parametrize("layout", ["channels last", "expanded", "transposed"])
def test_any_layout(layout):
    images, layers = pictures(4, 2, 20, 20), convolutions()
    expected_of = images.detach()
    if layout == "channels last":
        layers = tuple(layer.to(memory_format=torch.channels_last) for layer in layers)
        images = expected_of.contiguous(memory_format=torch.channels_last)
    elif layout == "expanded":
        images = expected_of[:1].expand(4, -1, -1, -1)
    else:
        images = expected_of.mT
    images = images.requires_grad_()
    assert_all_close(outcome(chunked_front, images, *layers, chunk=3), outcome(plain, images, *layers), relative=1e-12)


def test_a_batch_of_nothing():
    layers = convolutions()
    maps = chunked_front(pictures(0), *layers, chunk=2)
    assert maps.shape == plain(pictures(0), *layers).shape


# What it keeps.


def test_only_the_images_are_kept():
    images, layers = pictures(6), convolutions()
    own = {it.untyped_storage().data_ptr() for it in (images, *layers[0].parameters(), *layers[1].parameters())}
    with saved_by_autograd() as saved:
        maps = chunked_front(images, *layers, chunk=2)
    assert {it.untyped_storage().data_ptr() for it in saved} <= own
    with saved_by_autograd() as saved:
        plain(images, *layers)
    assert not {it.untyped_storage().data_ptr() for it in saved} <= own
    assert maps.requires_grad


def peak(net: nn.Module, images: Tensor, *, train: bool) -> int:
    """Bytes above what was there, at most, in one pass."""
    probe = ProfilerProbe()
    with probe, probe.phase("pass"):
        if train:
            net(images).lengths.sum().backward()
        else:
            with torch.inference_mode():
                net(images)
    found = probe.phases()["pass"]
    return found.peak - found.start


@pytest.mark.parametrize("train", [True, False])
def test_the_peak_of_a_pass_falls(train):
    images = torch.rand(96, 1, 28, 28)
    peaks = {}
    for front in ("plain", "chunked"):
        torch.manual_seed(0)
        net = ResCapsNet((1, 28, 28), 10, 0, channels=32, capsules=4, front=front, decoder=False).train(train)
        peaks[front] = peak(net, images, train=train)
    assert 2 * peaks["chunked"] < peaks["plain"]


@pytest.mark.slow
@pytest.mark.parametrize(("step", "at_most"), [(None, 235), ("backward", 200)])
def test_the_peak_of_a_whole_step(step, at_most):
    """Weights, gradients and Adam's state take 156 MiB of it, or 137 where gradients never live together."""
    configuration = Configuration(
        model="mocapsnet", blocks=8, dataset="sample", batch_size=128, device="cpu", front="chunked", optimizer_step=step
    )
    figures = memory_pass(configuration).memory
    assert 117 * 2**20 < figures.peak_allocated_bytes <= at_most * 2**20


# In the networks.


def network(make=ResCapsNet, front="chunked", **options):
    torch.manual_seed(0)
    net = make((1, 20, 20), 4, 1, channels=16, capsules=4, front=front, **options)
    with torch.no_grad():
        for weight in (net.first.weight, net.classes.weight, *net.blocks.parameters(), net.primary.conv.weight):
            weight.mul_(20)
    return net


def trained(net: nn.Module, batch: int = CHUNKS["cpu"] + 4) -> list[Tensor]:
    images = torch.rand(batch, 1, 20, 20, generator=torch.Generator().manual_seed(2))
    out = net(images, torch.arange(batch) % 4)
    (out.lengths.sum() + out.reconstruction.square().sum()).backward()
    return [out.lengths, *(parameter.grad for parameter in net.parameters())]


def called(net: nn.Module) -> bool:
    """Return whether a step calls the chunked operator."""
    with torch.profiler.profile() as profile:
        trained(net)
    return any(event.name == "capsbench::front" for event in profile.events())


@pytest.mark.parametrize("front", ["auto", "chunked"])
@pytest.mark.parametrize("make", [CapsNet, ResCapsNet, MoCapsNet])
def test_networks_give_the_same(make, front):
    expected = trained(network(make, "plain"))
    for part in expected:
        assert_alive(part)
    net = network(make, front)
    assert_all_close(trained(net), expected, relative=2e-5)
    assert called(net)


def test_names_of_parameters_are_the_same():
    names = {front: list(network(front=front).state_dict()) for front in FRONTS}
    assert names["plain"] == names["chunked"] == names["auto"]
    assert {"conv.weight", "conv.bias", "primary.conv.weight", "primary.conv.bias"} <= set(names["plain"])


def test_half_precision_capsules_are_float32():
    net = network()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net._primaries(torch.rand(2, 1, 20, 20)).dtype == torch.float32


@pytest.mark.parametrize(
    ("front", "batch", "device", "expected"),
    [
        ("auto", CHUNKS["cpu"], "cpu", "plain"),
        ("auto", CHUNKS["cpu"] + 1, "cpu", "chunked"),
        ("auto", CHUNKS["cuda"], "cuda", "plain"),
        ("auto", CHUNKS["cuda"] + 1, "cuda", "chunked"),
        ("auto", 1000, "mps", "plain"),
        ("plain", 1000, "cpu", "plain"),
        ("chunked", 1, "cpu", "chunked"),
    ],
)
def test_auto_chunks_what_is_more_than_a_chunk(front, batch, device, expected):
    assert resolve_front(front, batch, device) == expected


@pytest.mark.parametrize("call", [check_front, lambda name: resolve_front(name, 1, "cpu"), lambda name: network(front=name)])
def test_an_unknown_front(call):
    with pytest.raises(ConfigurationError, match=r"`front` 'fast' is not known\n.*auto, plain, chunked"):
        call("fast")


class Halved(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) / 2


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("path", ["conv", "primary", "primary.conv"])
@pytest.mark.parametrize(
    "method",
    ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook", "register_full_backward_pre_hook"],
)
def test_hooks_are_called(path, method):
    net = network()
    seen = []
    getattr(net.get_submodule(path), method)(lambda module, *_: seen.append(module))
    assert not called(net)
    assert seen == [net.get_submodule(path)]


@pytest.mark.parametrize(
    "change",
    [
        lambda net: parametrizations.weight_norm(net.conv),
        lambda net: parametrizations.weight_norm(net.primary.conv),
        lambda net: setattr(net, "conv", Halved(1, 16, 9)),
        lambda net: setattr(net.primary, "conv", nn.Sequential(net.primary.conv)),
        lambda net: setattr(net, "conv", nn.Conv2d(1, 16, 9, bias=False)),
        lambda net: setattr(net, "conv", nn.Conv2d(1, 16, 7, padding=2, dilation=2)),
        lambda net: setattr(net, "conv", nn.Conv2d(1, 16, 9, padding="valid")),
        lambda net: setattr(net.primary, "conv", nn.Conv2d(16, 16, 9, stride=2, groups=2)),
        lambda net: setattr(net.primary, "conv", nn.Conv2d(16, 32, 9, stride=(2, 4))),
        lambda net: setattr(net.conv, "forward", lambda x: nn.Conv2d.forward(net.conv, x) / 2),
    ],
)
def test_what_somebody_put_in_place_is_used(change):
    net, same = network(), network(front="plain")
    change(net)
    assert not can_chunk(net.conv, net.primary.conv)
    change(same)
    same.load_state_dict(net.state_dict())
    assert_all_close(trained(net), trained(same), relative=0)


def test_hooks_on_all_modules_are_called():
    net, seen = network(), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    try:
        assert not called(net)
    finally:
        handle.remove()
    assert seen.count(nn.Conv2d) == 2


@pytest.mark.parametrize("front", ["plain", "chunked"])
def test_what_the_front_retains_is_found_under_its_modules(front):
    options = {"batch_size": 4, "kernel": "recompute", "device": "cpu:predicted", "threads": None}
    kept = trace_step(make_configuration("mocapsnet", 1, **options, front=front)).retained_by_module
    primary, images, capsules = kept["primary"], 4 * 28 * 28 * 4, 4 * 1152 * 8 * 4
    assert primary >= capsules
    # Outside the modules there are lengths, losses and images: nothing of the size of capsules.
    assert kept.get("", 0) < 2 * images


def test_a_replaced_primary_layer_is_used():
    net = network()
    net.primary = nn.Sequential(nn.Flatten(), nn.LazyLinear(64), nn.Unflatten(1, (8, 8)))
    assert not called(net)


# A good citizen.


def test_gradients_of_gradients_are_refused():
    images, layers = pictures(), convolutions()
    (gradient,) = torch.autograd.grad(chunked_front(images, *layers).square().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once; use front='plain'"):
        gradient.sum().backward()


def test_backward_twice_and_changed_weights_are_refused():
    images, layers = pictures(), convolutions()
    loss = chunked_front(images, *layers).sum()
    loss.backward(retain_graph=True)
    with torch.no_grad():
        layers[1].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    loss = chunked_front(images, *layers).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_gradients_accumulate():
    images, layers = pictures(), convolutions()
    weight = layers[1].weight
    chunked_front(images, *layers).sum().backward()
    once = weight.grad.clone()
    chunked_front(images, *layers).sum().backward()
    assert_close(weight.grad, 2 * once, relative=1e-12)


class Front(nn.Module):
    def __init__(self, front):
        super().__init__()
        self.front, (self.first, self.second) = front, convolutions()

    def forward(self, images):
        return self.front(images, self.first, self.second, chunk=2)


def test_functional_gradients():
    images = pictures().detach()

    def gradients(front):
        net = Front(front)
        return torch.func.grad(lambda values: torch.func.functional_call(net, values, images).square().sum())(
            {name: value.detach() for name, value in net.named_parameters()}
        )

    mine, theirs = gradients(chunked_front), gradients(plain)
    assert_all_close(list(mine.values()), list(theirs.values()), relative=1e-12)


@pytest.mark.slow
def test_compiled():
    images, net = pictures(), Front(chunked_front)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    results = []
    for model in (net, compiled):
        maps = model(images)
        results.append([maps, *torch.autograd.grad(maps.square().sum(), [images, *net.parameters()])])
    assert_all_close(results[1], results[0], relative=1e-12)


def test_inside_a_checkpoint():
    images, layers = pictures(), convolutions()
    expected = outcome(plain, images, *layers)
    found = outcome(lambda *it: checkpoint(chunked_front, *it, use_reentrant=False), images, *layers)
    assert_all_close(found, expected, relative=1e-12)


def test_the_operators_are_what_they_say():
    images, (first, second) = pictures().detach(), convolutions()
    values = [it.detach() for it in (*first.parameters(), *second.parameters())]
    maps = torch.ops.capsbench.front(images, *values, 2, 2)
    torch.library.opcheck(torch.ops.capsbench.front.default, (images, *values, 2, 2))
    for needs in ([True] * 5, [False, True, False, False, True]):
        torch.library.opcheck(
            torch.ops.capsbench.front_backward.default, (torch.ones_like(maps), images, *values[:3], 2, 2, needs)
        )
