"""States of torch's generators, with a stand-in for that of a CUDA device, and functions inside a CUDA graph."""

import pytest
import torch
from torch import nn

from capsbench.errors import ConfigurationError
from capsbench.reversible import MomentumStack, evaluate, pair, reversal
from capsbench.reversible.replay import Buffers, RandomState, RefusedDraws
from helpers.stacks import example, functions

CUDA = torch.device("cuda:0")


class Generator:
    """A generator of a device that is not here."""

    def __init__(self) -> None:
        self.seed, self.offset = 2**63 + 5, 8

    def initial_seed(self) -> int:
        return self.seed

    def get_offset(self) -> int:
        return self.offset

    def manual_seed(self, seed: int) -> None:
        self.seed, self.offset = seed, 0

    def set_offset(self, offset: int) -> None:
        self.offset = offset


@pytest.fixture
def generator(monkeypatch):
    made = Generator()
    monkeypatch.setattr(torch.cuda, "default_generators", (made,))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return made


def test_a_state_is_itself_until_something_is_drawn():
    before = RandomState.capture(torch.device("cpu"))
    assert before.now() is before
    expected = torch.rand(3)
    after = before.now()
    assert after is not before
    before.restore()
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.get_rng_state(), after.host)


def test_the_state_of_a_device_is_its_seed_and_offset(generator):
    before = RandomState.capture(CUDA)
    generator.offset += 4
    after = before.now()
    assert after is not before
    assert (after.philox.seed, after.philox.offset) == (2**63 + 5, 12)
    assert after.host is before.host, "where only the device drew, the host's state is kept once"
    generator.manual_seed(1)
    before.restore()
    assert (generator.seed, generator.offset) == (2**63 + 5, 8)
    assert before.now() is before


def test_another_seed_with_the_same_offset_is_another_state(generator):
    before = RandomState.capture(CUDA)
    generator.seed += 1
    assert before.now() is not before


def test_what_the_host_draws_is_seen_beside_a_device(generator):
    before = RandomState.capture(CUDA)
    expected = torch.rand(3)
    after = before.now()
    assert after.philox == before.philox
    assert not torch.equal(after.host, before.host)
    before.restore()
    assert torch.equal(torch.rand(3), expected)


def test_inside_a_graph_the_devices_state_is_left_alone(generator, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    before = RandomState.capture(CUDA)
    generator.offset += 4
    assert before.philox is None
    assert before.now() is before
    before.restore()
    assert generator.offset == 12


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: torch.dropout(x, 0.5, train=True),
        torch.rand_like,
        torch.bernoulli,
        lambda x: x.uniform_(),
        lambda x: nn.functional.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.5),
        lambda x: torch.native_dropout(x, 0.0, train=True),
    ],
)
def test_draws_are_refused(draw):
    with RefusedDraws("function 3 (Draws)"), pytest.raises(ConfigurationError) as refused:
        draw(torch.full((4, 8), 0.5))
    assert "function 3 (Draws)" in refused.value.what
    assert "memory='stored'" in refused.value.hint


@pytest.mark.parametrize(
    "run",
    [
        lambda x: torch.dropout(x, 0.5, train=False),
        lambda x: torch.native_dropout(x, 0.5, train=False)[0],
        lambda x: nn.functional.rrelu(x, training=False),
        lambda x: x @ x.mT,
        lambda x: nn.functional.scaled_dot_product_attention(x[None], x[None], x[None]),
    ],
)
def test_nothing_else_is_refused(run):
    x = torch.full((4, 8), 0.5)
    with RefusedDraws("function 3 (Draws)"):
        found = run(x)
    assert torch.equal(found, run(x))


@pytest.mark.parametrize(
    ("dropout", "train", "draws"), [(0.0, True, False), (0.5, True, True), (0.5, False, False), (0.0, False, False)]
)
def test_a_recurrent_layer_of_cudnn_draws_for_dropout_alone(dropout, train, draws):
    def run() -> None:
        x, state = torch.empty(3, 2, 4, device="meta"), torch.empty(1, 2, 5, device="meta")
        weights = [torch.empty(shape, device="meta") for shape in ((20, 4), (20, 5), (20,), (20,))]
        # An LSTM (mode 2) of one layer with biases.
        torch.ops.aten._cudnn_rnn(x, weights, 4, None, state, state, 2, 5, 0, 1, False, dropout, train, False, [], None)

    with RefusedDraws("function 3 (LSTM)"):
        if draws:
            with pytest.raises(ConfigurationError, match="_cudnn_rnn"):
                run()
        else:
            run()


@pytest.fixture
def capturing(monkeypatch):
    """A stack takes each step for one that is recorded in a CUDA graph."""
    for module in (evaluate, pair, reversal):
        monkeypatch.setattr(module, "is_capturing", lambda _: True)


@pytest.mark.usefixtures("capturing")
def test_a_function_that_draws_is_refused_inside_a_graph():
    stack = MomentumStack([*functions(1), nn.Dropout(0.5)])
    x, _ = example()
    with pytest.raises(ConfigurationError, match=r"function 1 \(Dropout\)"):
        stack(x)
    stack.eval()
    assert stack(x).requires_grad


@pytest.mark.usefixtures("capturing")
def test_inside_a_graph_auto_needs_no_answer_of_the_device():
    x, grad = example(torch.float32)
    stack = MomentumStack(functions(40, torch.float32))
    assert stack.resolved_inverse() == "exact"
    stack(x).backward(grad)
    found, x.grad = x.grad, None
    MomentumStack(stack.functions, inverse="segmented")(x).backward(grad)
    assert torch.equal(found, x.grad)
    with pytest.raises(ConfigurationError, match="`inverse` exact reads the largest magnitude"):
        MomentumStack(stack.functions, inverse="exact")(x)


class OnDevice(torch.Tensor):
    """A tensor of the host that says that it is on a device."""

    is_cuda = True


class Statistics(nn.Module):
    """A module with a buffer that it may change behind torch's back."""

    def __init__(self, size: int, writes: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size).as_subclass(OnDevice))
        self.writes = writes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.writes:
            self.mean.data.add_(1)
        return x


@pytest.mark.parametrize(
    ("size", "writes", "waiting", "compared", "changed"),
    [
        (8, False, False, False, True),
        (8, True, False, False, True),
        (8, False, True, True, False),
        (8, True, True, True, True),
        (2**15, False, False, True, False),
        (2**15, True, False, True, True),
    ],
)
def test_small_buffers_on_a_device_are_kept_rather_than_compared(size, writes, waiting, compared, changed, monkeypatch):
    """A comparison would wait for the device. Whether they are kept depends on nothing that a prediction cannot know."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    asked = []
    equal = torch.equal
    monkeypatch.setattr(torch, "equal", lambda *given: asked.append(given) or equal(*given))
    function = Statistics(size, writes)
    before = Buffers.capture(function)
    function(torch.zeros(1))
    assert before.changed(waiting=waiting) is changed
    assert bool(asked) is compared
