"""A momentum stack gives the same gradients with every memory strategy, and says so where it cannot."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from capsbench.errors import ConfigurationError, ShapeError
from capsbench.models.layers import CapsuleLayer
from capsbench.reversible import PLAIN_STRATEGIES, MomentumStack, check_strategy, run_steps
from helpers.comparing import assert_all_close, assert_close, relative_error, saved_by_autograd
from helpers.stacks import OTHERS, WAYS, WIDTH, example, functions

INVERTED = [way for way in OTHERS if way not in PLAIN_STRATEGIES]


def make_stack(layers: list[nn.Module], way: str, gamma: float = 0.9, **options) -> MomentumStack:
    """A stack that does it in one of `WAYS`."""
    return MomentumStack(layers, gamma, **WAYS[way], **options)


def outcome(layers: list[nn.Module], way: str, *, gamma: float = 0.9, dtype=torch.float64, **options) -> list[Tensor | None]:
    """Output, gradient of the input and gradients of all parameters, of a stack of copies."""
    stack = make_stack(copy.deepcopy(layers), way, gamma, **options)
    x, grad = example(dtype)
    output = stack(x)
    output.backward(grad)
    return [output, x.grad, *(parameter.grad for parameter in stack.parameters())]


def test_stored_is_algorithm_1():
    layers, gamma = functions(4), 0.7
    actual = outcome(layers, "stored", gamma=gamma)
    x, grad = example()
    state, velocity = x, torch.zeros_like(x)
    for layer in layers:
        velocity = gamma * velocity + (1 - gamma) * layer(state)
        state = state + velocity
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    assert_all_close(actual, [state, *torch.autograd.grad(state, [x, *parameters], grad)], relative=1e-12)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    depth=st.integers(1, 6),
    gamma=st.floats(0.2, 1),
    way=st.sampled_from(OTHERS),
    segment=st.integers(1, 7),
    seed=st.integers(0, 999),
)
def test_strategies_agree(depth, gamma, way, segment, seed):
    layers = functions(depth, seed=seed)
    expected = outcome(layers, "stored", gamma=gamma)
    # The float inverse magnifies rounding by γ^-depth: 5⁶ here.
    assert_all_close(outcome(layers, way, gamma=gamma, segment=segment), expected, relative=1e-9)


@pytest.mark.parametrize("gamma", [0.5, 0.9, 1])
@pytest.mark.parametrize("way", OTHERS)
def test_strategies_agree_in_float32(way, gamma):
    layers = functions(6, torch.float32)
    options = {"gamma": gamma, "dtype": torch.float32}
    assert_all_close(outcome(layers, way, **options), outcome(layers, "stored", **options), relative=1e-5)


@pytest.mark.parametrize("way", PLAIN_STRATEGIES)
def test_gamma_0_is_the_plain_residual_network(way):
    layers = functions(3)
    output = outcome(layers, way, gamma=0)[0]
    x, _ = example()
    for layer in layers:
        x = x + layer(x)
    assert_close(output, x, relative=1e-12)


@pytest.mark.parametrize("way", INVERTED)
def test_gamma_1_never_moves(way):
    output, grad_x, *grads = outcome(functions(3), way, gamma=1)
    x, grad = example()
    assert_close(output, x, relative=1e-15)  # fixed point rounds an input of float64
    assert_close(grad_x, grad, relative=0)
    assert all(gradient.count_nonzero() == 0 for gradient in grads)


# What it keeps


def saved_by(stack: nn.Module) -> int:
    """Bytes that autograd saves, parameters left out."""
    weights = {parameter.data_ptr() for parameter in stack.parameters()}
    with saved_by_autograd() as saved:
        stack(example()[0])
    return sum(tensor.nbytes for tensor in saved if tensor.data_ptr() not in weights)


def saved_bytes(way: str, depth: int) -> int:
    """The outcome of a stack of `count` functions."""
    return saved_by(make_stack(functions(depth), way))


def live_tensors() -> int:
    """Tensors that Python can reach: what a context holds in addition to its saved tensors is among them."""
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def test_what_reversible_keeps_does_not_grow_with_depth():
    x, _ = example()
    assert saved_bytes("reversible", 2) == saved_bytes("reversible", 16) == 2 * x.nbytes
    assert saved_bytes("stored", 16) > 4 * saved_bytes("stored", 2)  # or the count would see nothing


@pytest.mark.slow
@pytest.mark.parametrize("way", ["reversible", "reversible-kept", "exact"])  # those that save as many tensors at any depth
def test_nothing_is_hidden_beside_the_saved_tensors(way):
    def hidden(depth: int) -> int:
        stack = make_stack(functions(depth), way)
        before = live_tensors()
        output = stack(example()[0])
        found = live_tensors() - before
        # The context holds its parameters, as does the stack: no new tensors. Inputs and output, and no more.
        del output
        return found

    assert hidden(2) == hidden(16)


@pytest.mark.slow
@pytest.mark.parametrize("way", INVERTED)
def test_nothing_leaks_from_step_to_step(way):
    stack = make_stack([nn.Sequential(layer, nn.Dropout(0.5)) for layer in functions(3)], way)
    optimizer = torch.optim.SGD(stack.parameters(), lr=0.1)
    counts = []
    for _ in range(4):
        x, grad = example()
        output = stack(x)
        gone = [weakref.ref(x), weakref.ref(output), weakref.ref(output.grad_fn)]
        output.backward(grad)
        optimizer.step()
        optimizer.zero_grad()
        del x, grad, output
        assert [reference() for reference in gone] == [None] * 3
        counts.append(live_tensors())
    assert counts[1:] == counts[1:2] * 3


# Which gradients


class Ignorant(nn.Module):
    """Ignores its input, yet has a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.linspace(-1, 1, WIDTH, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.value.expand_as(x)


class Constant(nn.Module):
    """Neither looks at its input nor has a parameter."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, 0.5)


class Spare(nn.Module):
    """Has a parameter that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = (nn.Parameter(torch.full((WIDTH,), 0.3, dtype=torch.float64)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x * self.used)


def shared() -> list[nn.Module]:
    """One module in two places, and one weight in two modules."""
    first, second, third = functions(3)
    third[0].weight = first[0].weight
    return [first, second, first, third]


def frozen(*names: str) -> list[nn.Module]:
    layers = functions(3)
    for name in names:
        layers[1].get_parameter(name).requires_grad_(False)
    return layers


CASES = {
    "shared": shared,
    "frozen": lambda: frozen("0.weight", "0.bias"),
    "partly frozen": lambda: frozen("0.weight"),
    "all frozen": lambda: [layer.requires_grad_(False) for layer in functions(3)],
    "ignores its input": lambda: [*functions(1), Ignorant(), *functions(1, seed=5)],
    "constant": lambda: [*functions(1), Constant(), *functions(1, seed=5)],
    "only constant": lambda: [Constant(), Constant()],
    "returns its input": lambda: [nn.Identity(), *functions(1), nn.Identity()],
    "unused parameter": lambda: [Spare(), *functions(1), Spare()],
}


@pytest.mark.parametrize("way", OTHERS)
@pytest.mark.parametrize("case", CASES)
def test_unusual_functions(case, way):
    layers = CASES[case]()
    assert_all_close(outcome(layers, way), outcome(layers, "stored"), relative=1e-11)


@pytest.mark.parametrize("way", OTHERS)
def test_an_input_that_needs_no_gradient(way):
    def grads(way: str) -> list[Tensor | None]:
        stack = make_stack(functions(3), way)
        x, grad = example()
        x = x.detach()
        stack(x).backward(grad)
        return [x.grad, *(parameter.grad for parameter in stack.parameters())]

    assert_all_close(grads(way), grads("stored"), relative=1e-11)


@pytest.mark.parametrize("wanted", [slice(0, 1), slice(1, None), slice(2, 3), slice(None)], ids=["x", "parameters", "one", "all"])
@pytest.mark.parametrize("way", OTHERS)
def test_autograd_grad_gives_what_is_asked_for(way, wanted):
    def grads(way: str) -> tuple[Tensor, ...]:
        stack = make_stack(functions(3), way)
        x, grad = example()
        return torch.autograd.grad(stack(x), [x, *stack.parameters()][wanted], grad)

    assert_all_close(grads(way), grads("stored"), relative=1e-11)


@pytest.mark.parametrize("way", OTHERS)
def test_gradients_accumulate(way):
    stack = make_stack(functions(3), way)
    x, grad = example()
    stack(x).backward(grad)
    once = [x.grad.clone(), *(parameter.grad.clone() for parameter in stack.parameters())]
    stack(x).backward(grad)
    assert_all_close([x.grad, *(parameter.grad for parameter in stack.parameters())], [2 * one for one in once], relative=1e-12)


@pytest.mark.parametrize("way", OTHERS)
def test_a_retained_graph_gives_the_same_again(way):
    stack = make_stack([nn.Sequential(layer, nn.Dropout(0.5)) for layer in functions(3)], way)
    x, grad = example()
    output = stack(x)
    first = torch.autograd.grad(output, [x, *stack.parameters()], grad, retain_graph=True)
    assert_all_close(torch.autograd.grad(output, [x, *stack.parameters()], grad), first, relative=0)


@pytest.mark.parametrize("way", OTHERS)
def test_a_stack_inside_a_stack(way):
    def nested(way: str) -> list[nn.Module]:
        return [
            make_stack(functions(2), way),
            *functions(1, seed=3),
            make_stack(functions(2, seed=4), way),
        ]

    assert_all_close(outcome(nested(way), way), outcome(nested("stored"), "stored"), relative=1e-10)


# What a replay must not get wrong


@pytest.mark.parametrize("way", OTHERS)
def test_dropout_is_replayed(way):
    layers = [nn.Sequential(layer, nn.Dropout(0.5)) if place != 1 else layer for place, layer in enumerate(functions(4))]

    def seeded(way: str, seed: int = 7) -> tuple[list[Tensor | None], Tensor]:
        torch.manual_seed(seed)
        return outcome(layers, way), torch.rand(4)

    (actual, after), (expected, after_stored) = seeded(way), seeded("stored")
    assert_all_close(actual, expected, relative=1e-11)
    # Backward draws the same numbers again; outside nobody notices.
    assert_close(after, after_stored, relative=0)
    assert relative_error(seeded("stored", seed=8)[0][1], expected[1]) > 0.01


@pytest.mark.parametrize("way", INVERTED)
def test_the_random_state_outside_survives_an_error_in_backward(way):
    class Breaks(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > 1:  # only while it is evaluated again
                raise ArithmeticError("broken")
            return torch.rand_like(x)

    stack = make_stack([*functions(1), Breaks()], way)
    x, grad = example()
    output = stack(x)
    before = torch.get_rng_state()
    with pytest.raises(ArithmeticError, match="broken"):
        output.backward(grad)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("way", OTHERS)
def test_batch_norm_counts_a_batch_once(way):
    def run(way: str) -> list[Tensor]:
        stack = make_stack([nn.Sequential(layer, nn.BatchNorm1d(WIDTH).double()) for layer in functions(2)], way)
        x, grad = example()
        for _ in range(2):
            stack(x).backward(grad)
        return [x.grad, *stack.buffers(), *(parameter.grad for parameter in stack.parameters())]

    assert_all_close(run(way), run("stored"), relative=1e-10)


def in_autocast(layers: list[nn.Module], way: str, again: int | None = None) -> list[Tensor | None]:
    """Result of `outcome` in float32 under bfloat16 autocast; `again` uses one function once more, outside the stack."""
    stack = make_stack(copy.deepcopy(layers), way)
    x = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = stack(x)
        total = output.square().sum()
        if again is not None:
            total = total + stack.functions[again](output.detach()).float().sum()
    total.backward()
    return [output, x.grad, *(parameter.grad for parameter in stack.parameters())]


@pytest.mark.parametrize("again", [None, 0, 3])
@pytest.mark.parametrize("way", OTHERS)
def test_autocast_is_replayed(way, again):
    """`again` meets autocast's cache of cast weights, where an entry made without a graph would cut its gradient off."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)]
    expected = in_autocast(layers, "stored", again)
    assert expected[0].dtype == torch.float32  # x stays wide, whatever the functions compute in
    # A weight that is cast twice gets its gradient in two bfloat16 parts rather than one.
    assert_all_close(in_autocast(layers, way, again), expected, relative=1e-5 if again is None else 1e-2)
    if again is not None:
        assert relative_error(in_autocast(layers, "stored")[2 + 2 * again], expected[2 + 2 * again]) > 0.1


def test_autocast_is_seen_by_the_functions_in_both_directions():
    seen = []

    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((torch.is_grad_enabled(), x.dtype, torch.is_autocast_enabled("cpu"), (x @ x.mT).dtype))
            return torch.sin(x)

    in_autocast([Looks()], "reversible")
    assert seen == [(True, torch.float32, True, torch.bfloat16) for _ in range(2)]


@pytest.mark.parametrize("kernel", ["reference", "published", "recompute"])
@pytest.mark.parametrize("way", OTHERS)
def test_routing_keeps_its_float32_gradients_under_autocast(way, kernel):
    """A capsule layer leaves autocast by itself; its backward must not fall back into it."""
    torch.manual_seed(0)
    layers = [CapsuleLayer(6, 8, 6, 8, kernel=kernel) for _ in range(4)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.5)
    assert_all_close(in_autocast(layers, way), in_autocast(layers, "stored"), relative=1e-5)


@pytest.mark.parametrize("mode", ["no_grad", "inference"])
@pytest.mark.parametrize("way", WAYS)
def test_without_gradients_all_are_a_plain_loop(way, mode):
    stack = make_stack(functions(3), way)
    expected = MomentumStack(functions(3), memory="stored")(example()[0])
    with {"no_grad": torch.no_grad, "inference": torch.inference_mode}[mode]():
        output = stack(example()[0])
    assert_close(output, expected, relative=0)
    assert not output.requires_grad


@pytest.mark.parametrize("way", OTHERS)
def test_eval_with_gradients_keeps_to_the_strategy(way):
    layers = [nn.Sequential(layer, nn.Dropout(0.5), nn.BatchNorm1d(WIDTH).double()) for layer in functions(4)]
    (actual, kept), (expected, _), (_, training) = (
        evaluated_with_gradients(layers, way, mode) for way, mode in ((way, "eval"), ("stored", "eval"), (way, "train"))
    )
    assert_all_close(actual, expected, relative=1e-9)
    assert kept <= training


def evaluated_with_gradients(layers: list[nn.Module], way: str, mode: str) -> tuple[list[Tensor | None], int]:
    """Output and gradients of a stack of copies in a mode, and the bytes that autograd saved for them."""
    stack = make_stack(copy.deepcopy(layers), way).train(mode == "train")
    weights = {parameter.data_ptr() for parameter in stack.parameters()}
    x, grad = example()
    with saved_by_autograd() as saved:
        output = stack(x)
    kept = sum(tensor.nbytes for tensor in saved if tensor.data_ptr() not in weights)
    output.backward(grad)
    return [output, x.grad, *(parameter.grad for parameter in stack.parameters())], kept


# What is refused


@pytest.mark.parametrize("way", OTHERS)
def test_a_second_backward_is_refused(way):
    x, grad = example()
    output = make_stack(functions(2), way)(x)
    output.backward(grad)
    with pytest.raises(RuntimeError, match="second time"):
        output.backward(grad)


@pytest.mark.parametrize("way", INVERTED)
def test_a_double_backward_is_refused(way):
    """The error comes at once: a penalty on a gradient without a graph would drop out of the loss silently."""
    x, _ = example()
    output = make_stack(functions(2), way)(x)
    with pytest.raises(RuntimeError, match=r"differentiated twice.*memory='stored'"):
        torch.autograd.grad(output.sum(), x, create_graph=True)


@pytest.mark.parametrize("way", PLAIN_STRATEGIES)
def test_a_double_backward_is_right(way):
    def penalty(way: str) -> Tensor:
        stack = make_stack(functions(2), way)
        x, _ = example()
        (first,) = torch.autograd.grad(stack(x).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), stack.functions[0][0].weight)[0]

    assert_close(penalty(way), penalty("stored"), relative=1e-12)
    assert penalty(way).count_nonzero() > 0


@pytest.mark.parametrize("way", INVERTED)
@pytest.mark.parametrize("place", [0, 1])
def test_a_parameter_changed_before_backward_is_noticed(place, way):
    stack = make_stack(functions(2), way)
    x, grad = example()
    output = stack(x)
    with torch.no_grad():
        stack.functions[place][0].weight.add_(1)
    with pytest.raises(RuntimeError, match="inplace"):
        output.backward(grad)


def test_a_frozen_parameter_changed_before_backward_is_noticed():
    """The inverse needs it as much as any other; plain autograd refuses it too."""
    stack = MomentumStack(frozen("0.weight", "0.bias"))
    x, grad = example()
    output = stack(x)
    with torch.no_grad():
        stack.functions[1][0].weight.add_(1)
    with pytest.raises(RuntimeError, match="inplace"):
        output.backward(grad)


def test_a_changed_output_never_gives_wrong_gradients():
    """A float inverse starts from the output: torch refuses to go on when it was written over."""
    x, grad = example()
    output = MomentumStack(functions(2))(x)
    output.mul_(2)
    with pytest.raises(RuntimeError, match="inplace"):
        output.backward(grad)
    # Fixed point has its own copy.
    x, grad = example()
    MomentumStack(functions(2), inverse="exact")(x).mul_(2).backward(grad)
    assert_close(x.grad, 2 * outcome(functions(2), "stored")[1], relative=1e-12)


def test_a_changed_input_changes_no_gradient():
    """Nothing of the input is needed once x can be rebuilt from the output."""
    expected = outcome(functions(2), "stored")[1]
    leaf, grad = example()
    x = leaf.clone()
    output = MomentumStack(functions(2))(x)
    with torch.no_grad():
        x.zero_()
    output.backward(grad)
    assert_close(leaf.grad, expected, relative=1e-12)


@pytest.mark.parametrize(
    "hooks",
    [torch.autograd.graph.save_on_cpu, lambda: torch.autograd.graph.saved_tensors_hooks(Tensor.clone, Tensor.clone)],
    ids=["save_on_cpu", "clones"],
)
@pytest.mark.parametrize("way", INVERTED)
def test_hooks_on_saved_tensors(way, hooks):
    expected = outcome(functions(3), "stored")
    with hooks():
        actual = outcome(functions(3), way)
    assert_all_close(actual, expected, relative=1e-11)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gamma": 0}, "`gamma` 0 "),
        ({"gamma": -0.1}, "-0.1"),
        ({"gamma": 1.5, "memory": "stored"}, "1.5"),
        ({"gamma": float("nan")}, "nan"),
        ({"memory": "revertible"}, "`memory` revertible"),
        ({"inverse": "exactly"}, "'exactly'"),
    ],
    ids=str,
)
def test_options_that_make_no_sense(options, said):
    with pytest.raises(ConfigurationError) as refused:
        MomentumStack(functions(1), **options)
    assert said in refused.value.what
    assert refused.value.hint


def test_a_strategy_must_be_offered():
    check_strategy("reversible")
    with pytest.raises(ConfigurationError, match=r"`memory` reversible .*\n.*stored"):
        check_strategy("reversible", PLAIN_STRATEGIES)


@pytest.mark.parametrize("shape", [(3, 4), (1, WIDTH), (WIDTH,)], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_a_function_that_changes_the_shape_is_refused(way, shape):
    class Reshapes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_zeros(shape)

    with pytest.raises(ShapeError) as refused:
        make_stack([*functions(1), Reshapes()], way)(example()[0])
    assert str([3, WIDTH]) in refused.value.what
    assert str(list(shape)) in refused.value.what


# As any other module


@pytest.mark.parametrize("way", WAYS)
def test_an_empty_stack_returns_its_input(way):
    x, grad = example()
    output = make_stack([], way)(x)
    output.backward(grad)
    assert_all_close([output, x.grad], [x, grad], relative=0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_inputs_become_float32(dtype, way):
    output = make_stack(functions(2, torch.float32), way)(torch.ones(3, WIDTH, dtype=dtype))
    assert output.dtype == torch.float32


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda stack: pickle.loads(pickle.dumps(stack))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("way", WAYS)
def test_copies_compute_the_same(way, duplicate):
    stack = make_stack(functions(2), way, 0.8)
    stack(example()[0]).sum().backward()  # a step leaves nothing behind that could not be copied
    twin = duplicate(stack)
    assert (twin.gamma, twin.memory, twin.inverse) == (0.8, stack.memory, stack.inverse)
    assert_close(twin(example()[0]), stack(example()[0]), relative=0)
    assert not {parameter.data_ptr() for parameter in twin.parameters()} & {
        parameter.data_ptr() for parameter in stack.parameters()
    }


@pytest.mark.parametrize("way", OTHERS)
def test_state_moves_between_strategies(way):
    one, other = MomentumStack(functions(2), memory="stored"), make_stack(functions(2, seed=9), way)
    assert relative_error(other(example()[0]), one(example()[0])) > 0.01
    other.load_state_dict(one.state_dict())
    assert_close(other(example()[0]), one(example()[0]), relative=1e-14 if way == "exact" else 0)


def test_run_steps_knows_no_stack():
    x, _ = example()
    for memory in PLAIN_STRATEGIES:
        y, count = run_steps([lambda x, n: (x * 2, n + 1)] * 3, (x, torch.zeros(())), memory, segment=2)
        assert_all_close([y, count], [x * 8, torch.tensor(3.0)], relative=0)


@pytest.mark.parametrize("way", OTHERS)
def test_a_function_that_uses_what_it_writes_is_replayed_from_where_it_was(way):
    """Spectral normalisation turns its own buffers in every forward pass, and its value depends on them."""
    torch.manual_seed(0)
    layers = [nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)).double() for _ in range(6)]
    expected = outcome(layers, "stored")
    assert_all_close(outcome(layers, way), expected, relative=1e-9)


@pytest.mark.parametrize("way", INVERTED)
def test_parameters_that_were_replaced_for_the_call_are_noticed(way):
    stack = make_stack(functions(3), way)
    x, grad = example()
    swapped = {name: parameter.detach().clone().requires_grad_() for name, parameter in stack.named_parameters()}
    output = torch.func.functional_call(stack, swapped, (x,))
    with pytest.raises(RuntimeError, match="replaced between forward and backward"):
        output.backward(grad)


# Every √n blocks


@pytest.mark.parametrize(
    ("steps", "segment", "kept"), [(9, 1, 3), (16, 1, 4), (10, 1, 3), (18, 2, 3), (17, 2, 3), (1, 2, 1), (3, 1, 2)]
)
def test_checkpoint_sqrt_keeps_the_root_of_the_blocks(steps, segment, kept):
    """The input of each segment is kept: ⌈n / ⌈√n⌉⌉ segments of n blocks."""
    with saved_by_autograd() as entered:
        run_steps([lambda x: (torch.sin(x),)] * steps, (example()[0],), "checkpoint-sqrt", segment=segment)
    # Up to torch 2.11 a checkpoint also saves a tensor of 0 bytes, which makes it part of the graph.
    assert len({tensor.data_ptr() for tensor in entered if tensor.numel()}) == kept


def test_strategies_keep_in_order():
    kept = {memory: saved_bytes(memory, 16) for memory in ("stored", "checkpoint", "checkpoint-sqrt", "reversible")}
    assert sorted(kept, key=kept.__getitem__, reverse=True) == list(kept)


# What a function may offer


class Offers(nn.Module):
    """sin(x·W + b), which shares work between value and gradients, and may keep sin's derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(WIDTH, WIDTH, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(WIDTH, dtype=torch.float64))
        self.calls: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append("forward")
        return torch.sin(x @ self.weight + self.bias)

    def forward_keeping(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        assert not torch.is_grad_enabled()
        self.calls.append("forward_keeping")
        inner = x @ self.weight + self.bias
        return torch.sin(inner), (torch.cos(inner),)

    def forward_and_vjp(self, x, grad, kept=()):
        assert not torch.is_grad_enabled()
        self.calls.append(f"forward_and_vjp {len(kept)}")
        inner = x @ self.weight + self.bias
        grad_inner = grad * (kept[0] if kept else torch.cos(inner))
        grads = (x.mT @ grad_inner, grad_inner.sum(0))
        wanted = tuple(one if mine.requires_grad else None for mine, one in zip(self.parameters(), grads, strict=True))
        return torch.sin(inner), grad_inner @ self.weight.mT, wanted


def offering(depth: int = 3, kind: type[nn.Module] = Offers) -> list[nn.Module]:
    torch.manual_seed(0)
    return [kind() for _ in range(depth)]


def offered_calls(layers: list[nn.Module], way: str) -> set[tuple[str, ...]]:
    """Calls of a training step, after a check of its gradients."""
    expected = outcome(layers, "stored")
    mine = copy.deepcopy(layers)
    stack = make_stack(mine, way)
    x, grad = example()
    output = stack(x)
    output.backward(grad)
    assert_all_close([output, x.grad, *(parameter.grad for parameter in stack.parameters())], expected, relative=1e-11)
    return {tuple(module.calls) for module in stack.modules() if hasattr(module, "calls")}


@pytest.mark.parametrize(
    ("way", "calls"),
    [
        ("stored", ("forward",)),
        ("checkpoint", ("forward", "forward")),
        ("reversible-kept", ("forward_keeping", "forward_and_vjp 1")),
        *((way, ("forward", "forward_and_vjp 0")) for way in ("reversible", "exact", "segmented")),
    ],
)
def test_what_a_function_offers_is_used(way, calls):
    assert offered_calls(offering(), way) == {calls}


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_offers_of_frozen_functions(name):
    layers = offering()
    layers[1].get_parameter(name).requires_grad_(False)
    assert offered_calls(layers, "reversible-kept") == {("forward_keeping", "forward_and_vjp 1")}


def test_offers_of_shared_functions():
    layers = offering()
    layers[2].weight = layers[0].weight
    assert offered_calls([*layers, layers[0]], "reversible-kept") > {("forward_keeping", "forward_and_vjp 1")}


class Overrides(Offers):
    """A layer whose `forward` is not the one that the offers stand for."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Inherits(Offers):
    """Changes nothing."""


def hooked(register: str) -> list[nn.Module]:
    layers = offering()
    hook = {
        "register_forward_hook": lambda module, args, output: 2 * output,
        "register_forward_pre_hook": lambda module, args: (2 * args[0],),
        "register_full_backward_hook": lambda module, grad_input, grad_output: (2 * grad_input[0],),
        "register_full_backward_pre_hook": lambda module, grad_output: (2 * grad_output[0],),
    }[register]
    for layer in layers:
        getattr(layer, register)(hook)
    return layers


def parametrized() -> list[nn.Module]:
    layers = offering()
    for layer in layers:
        nn.utils.parametrizations.weight_norm(layer)
    return layers


def patched() -> list[nn.Module]:
    layers = offering()
    for layer in layers:
        layer.forward = Patched(layer)
    return layers


class Patched:
    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        return 3 * type(self.layer).forward(self.layer, x)


ALTERED = {
    "overridden": lambda: offering(kind=Overrides),
    "forward hook": lambda: hooked("register_forward_hook"),
    "forward pre-hook": lambda: hooked("register_forward_pre_hook"),
    "backward hook": lambda: hooked("register_full_backward_hook"),
    "backward pre-hook": lambda: hooked("register_full_backward_pre_hook"),
    "parametrized": parametrized,
    "patched": patched,
    "wrapped": lambda: [nn.Sequential(layer) for layer in offering()],
}


@pytest.mark.parametrize("way", ["reversible", "reversible-kept", "exact"])
@pytest.mark.parametrize("case", ALTERED)
def test_what_does_not_stand_for_a_call_is_not_used(case, way):
    calls = offered_calls(ALTERED[case](), way)
    assert calls == {("forward", "forward")}
    assert offered_calls(offering(kind=Inherits), way) != calls


def test_hooks_of_all_modules_are_heeded():
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: 2 * output)
    try:
        # The stack's own output is doubled alike.
        assert offered_calls(offering(), "reversible-kept") == {("forward", "forward")}
    finally:
        handle.remove()


@pytest.mark.parametrize("late", [True, False])
def test_a_hook_registered_between_forward_and_backward(late):
    """The tensors that forward kept are then not needed."""
    layers, seen = offering(), []
    stack = make_stack(layers, "reversible-kept")
    x, grad = example()
    output = stack(x)
    if late:
        layers[1].register_full_backward_hook(lambda module, grad_input, grad_output: seen.append(grad_output[0].shape))
    output.backward(grad)
    assert seen == [x.shape] * late
    assert_close(x.grad, outcome(offering(), "stored")[1], relative=1e-11)


def test_a_function_that_writes_buffers_is_replayed_whole():
    class Counts(Offers):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward_keeping(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            self.count += 1
            return super().forward_keeping(x)

    layers = offering(kind=Counts)
    make_stack(layers, "reversible-kept")(example()[0]).sum().backward()
    assert [layer.count.item() for layer in layers] == [1] * 3
    assert layers[0].calls == ["forward_keeping", "forward"]


def test_what_functions_keep_is_saved_where_hooks_can_see_it():
    x, _ = example()
    kept = {depth: saved_by(make_stack(offering(depth), "reversible-kept")) for depth in (2, 10)}
    assert kept[10] - kept[2] == 8 * x.nbytes
    assert saved_by(make_stack(offering(10), "reversible")) == kept[2] - 2 * x.nbytes


class Fades(nn.Module):
    """A layer that replaces its buffer by another tensor, rather than writing into it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
        self.register_buffer("share", torch.ones((), dtype=torch.float64))

    def forward(self, x):
        value = torch.tanh(x @ self.weight) * self.share
        self.share = self.share * 0.999
        return value


@pytest.mark.parametrize("memory", ["checkpoint", "reversible"])
def test_a_buffer_that_is_replaced(memory):
    found = []
    for way in ("stored", memory):
        stack = MomentumStack([Fades(seed) for seed in range(3)], 0.9, way)
        x = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
        stack(x).sum().backward()
        found.append([x.grad, *(parameter.grad for parameter in stack.parameters()), *stack.buffers()])
    assert_all_close(found[1], found[0], relative=1e-12)
