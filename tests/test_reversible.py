"""A momentum stack gives the same gradients with every memory strategy, and says so where it cannot."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from comparing import assert_all_close, assert_close, relative_error, saved_by_autograd
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from capsbench.errors import ConfigurationError, ShapeError
from capsbench.models.layers import CapsuleLayer
from capsbench.reversible import PLAIN_STRATEGIES, STRATEGIES, MomentumStack, check_strategy, run_steps

WIDTH = 5
OTHERS = [memory for memory in STRATEGIES if memory != "stored"]


def functions(depth: int, dtype=torch.float64, seed: int = 0) -> list[nn.Module]:
    """Residual functions that differ from one another."""
    torch.manual_seed(seed)
    return [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()).to(dtype) for _ in range(depth)]


def example(dtype=torch.float64, seed: int = 1) -> tuple[Tensor, Tensor]:
    """An input and a gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    x, grad = (torch.randn(3, WIDTH, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    return x.requires_grad_(), grad


def outcome(layers: list[nn.Module], memory: str, *, gamma: float = 0.9, dtype=torch.float64, **options) -> list[Tensor | None]:
    """Output, gradient of the input and gradients of all parameters, of a stack of copies."""
    stack = MomentumStack(copy.deepcopy(layers), gamma, memory, **options)
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
    memory=st.sampled_from(OTHERS),
    segment=st.integers(1, 7),
    seed=st.integers(0, 999),
)
def test_strategies_agree(depth, gamma, memory, segment, seed):
    layers = functions(depth, seed=seed)
    expected = outcome(layers, "stored", gamma=gamma)
    # The float inverse magnifies rounding by γ^-depth: 5⁶ here.
    assert_all_close(outcome(layers, memory, gamma=gamma, segment=segment), expected, relative=1e-9)


@pytest.mark.parametrize("gamma", [0.5, 0.9, 1])
@pytest.mark.parametrize("memory", OTHERS)
def test_strategies_agree_in_float32(memory, gamma):
    layers = functions(6, torch.float32)
    options = {"gamma": gamma, "dtype": torch.float32}
    assert_all_close(outcome(layers, memory, **options), outcome(layers, "stored", **options), relative=1e-5)


@pytest.mark.parametrize("memory", PLAIN_STRATEGIES)
def test_gamma_0_is_the_plain_residual_network(memory):
    layers = functions(3)
    output = outcome(layers, memory, gamma=0)[0]
    x, _ = example()
    for layer in layers:
        x = x + layer(x)
    assert_close(output, x, relative=1e-12)


def test_gamma_1_never_moves():
    output, grad_x, *grads = outcome(functions(3), "reversible", gamma=1)
    x, grad = example()
    assert_all_close([output, grad_x], [x, grad], relative=0)
    assert all(gradient.count_nonzero() == 0 for gradient in grads)


# What it keeps


def saved_bytes(memory: str, depth: int) -> int:
    """Bytes that autograd saves, parameters left out."""
    stack = MomentumStack(functions(depth), memory=memory)
    weights = {parameter.data_ptr() for parameter in stack.parameters()}
    with saved_by_autograd() as saved:
        stack(example()[0])
    return sum(tensor.nbytes for tensor in saved if tensor.data_ptr() not in weights)


def live_tensors() -> int:
    """Tensors that Python can reach: what a context holds besides its saved tensors is among them."""
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def test_what_reversible_keeps_does_not_grow_with_depth():
    x, _ = example()
    assert saved_bytes("reversible", 2) == saved_bytes("reversible", 16) == 2 * x.nbytes
    assert saved_bytes("stored", 16) > 4 * saved_bytes("stored", 2)  # or the count would see nothing


def test_reversible_hides_nothing_beside_its_saved_tensors():
    def hidden(depth: int) -> int:
        stack = MomentumStack(functions(depth))
        before = live_tensors()
        output = stack(example()[0])
        found = live_tensors() - before
        # The context holds its parameters, as does the stack: no new tensors. Inputs and output, and no more.
        del output
        return found

    assert hidden(2) == hidden(16)


def test_nothing_leaks_from_step_to_step():
    stack = MomentumStack([nn.Sequential(layer, nn.Dropout(0.5)) for layer in functions(3)])
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


@pytest.mark.parametrize("memory", OTHERS)
@pytest.mark.parametrize("case", CASES)
def test_unusual_functions(case, memory):
    layers = CASES[case]()
    assert_all_close(outcome(layers, memory), outcome(layers, "stored"), relative=1e-11)


@pytest.mark.parametrize("memory", OTHERS)
def test_an_input_that_needs_no_gradient(memory):
    def grads(memory: str) -> list[Tensor | None]:
        stack = MomentumStack(functions(3), memory=memory)
        x, grad = example()
        x = x.detach()
        stack(x).backward(grad)
        return [x.grad, *(parameter.grad for parameter in stack.parameters())]

    assert_all_close(grads(memory), grads("stored"), relative=1e-11)


@pytest.mark.parametrize("wanted", [slice(0, 1), slice(1, None), slice(2, 3), slice(None)], ids=["x", "parameters", "one", "all"])
def test_autograd_grad_gives_what_is_asked_for(wanted):
    def grads(memory: str) -> tuple[Tensor, ...]:
        stack = MomentumStack(functions(3), memory=memory)
        x, grad = example()
        return torch.autograd.grad(stack(x), [x, *stack.parameters()][wanted], grad)

    assert_all_close(grads("reversible"), grads("stored"), relative=1e-11)


def test_gradients_accumulate():
    stack = MomentumStack(functions(3))
    x, grad = example()
    stack(x).backward(grad)
    once = [x.grad.clone(), *(parameter.grad.clone() for parameter in stack.parameters())]
    stack(x).backward(grad)
    assert_all_close([x.grad, *(parameter.grad for parameter in stack.parameters())], [2 * one for one in once], relative=1e-12)


def test_a_retained_graph_gives_the_same_again():
    stack = MomentumStack([nn.Sequential(layer, nn.Dropout(0.5)) for layer in functions(3)])
    x, grad = example()
    output = stack(x)
    first = torch.autograd.grad(output, [x, *stack.parameters()], grad, retain_graph=True)
    assert_all_close(torch.autograd.grad(output, [x, *stack.parameters()], grad), first, relative=0)


def test_a_stack_inside_a_stack():
    def nested(memory: str) -> list[nn.Module]:
        return [
            MomentumStack(functions(2), memory=memory),
            *functions(1, seed=3),
            MomentumStack(functions(2, seed=4), memory=memory),
        ]

    assert_all_close(outcome(nested("reversible"), "reversible"), outcome(nested("stored"), "stored"), relative=1e-10)


# What a replay must not get wrong


@pytest.mark.parametrize("memory", OTHERS)
def test_dropout_is_replayed(memory):
    layers = [nn.Sequential(layer, nn.Dropout(0.5)) if place != 1 else layer for place, layer in enumerate(functions(4))]

    def seeded(memory: str, seed: int = 7) -> tuple[list[Tensor | None], Tensor]:
        torch.manual_seed(seed)
        return outcome(layers, memory), torch.rand(4)

    (actual, after), (expected, after_stored) = seeded(memory), seeded("stored")
    assert_all_close(actual, expected, relative=1e-11)
    # Backward draws the same numbers again; outside nobody notices.
    assert_close(after, after_stored, relative=0)
    assert relative_error(seeded("stored", seed=8)[0][1], expected[1]) > 0.01


def test_the_random_state_outside_survives_an_error_in_backward():
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if torch.is_grad_enabled():  # only while it is evaluated again
                raise ArithmeticError("broken")
            return torch.rand_like(x)

    stack = MomentumStack([*functions(1), Breaks()])
    x, grad = example()
    output = stack(x)
    before = torch.get_rng_state()
    with pytest.raises(ArithmeticError, match="broken"):
        output.backward(grad)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("memory", ["reversible", "offload"])
def test_batch_norm_counts_a_batch_once(memory):
    def run(memory: str) -> list[Tensor]:
        stack = MomentumStack([nn.Sequential(layer, nn.BatchNorm1d(WIDTH).double()) for layer in functions(2)], memory=memory)
        x, grad = example()
        for _ in range(2):
            stack(x).backward(grad)
        return [x.grad, *stack.buffers(), *(parameter.grad for parameter in stack.parameters())]

    assert_all_close(run(memory), run("stored"), relative=1e-10)


def in_autocast(layers: list[nn.Module], memory: str, again: int | None = None) -> list[Tensor | None]:
    """As `outcome`, in float32 under bfloat16 autocast; `again` uses one function once more, outside the stack."""
    stack = MomentumStack(copy.deepcopy(layers), memory=memory)
    x = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = stack(x)
        total = output.square().sum()
        if again is not None:
            total = total + stack.functions[again](output.detach()).float().sum()
    total.backward()
    return [output, x.grad, *(parameter.grad for parameter in stack.parameters())]


@pytest.mark.parametrize("again", [None, 0, 3])
@pytest.mark.parametrize("memory", OTHERS)
def test_autocast_is_replayed(memory, again):
    """`again` meets autocast's cache of cast weights, where an entry made without a graph would cut its gradient off."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)]
    expected = in_autocast(layers, "stored", again)
    assert expected[0].dtype == torch.float32  # x stays wide, whatever the functions compute in
    # A weight that is cast twice gets its gradient in two bfloat16 parts rather than one.
    assert_all_close(in_autocast(layers, memory, again), expected, relative=1e-5 if again is None else 1e-2)
    if again is not None:
        assert relative_error(in_autocast(layers, "stored")[2 + 2 * again], expected[2 + 2 * again]) > 0.1


def test_autocast_is_seen_by_the_functions_in_both_directions():
    seen = []

    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((torch.is_grad_enabled(), x.dtype, torch.is_autocast_enabled("cpu"), (x @ x.mT).dtype))
            return torch.sin(x)

    in_autocast([Looks()], "reversible")
    assert seen == [(forward, torch.float32, True, torch.bfloat16) for forward in (False, True)]


@pytest.mark.parametrize("kernel", ["reference", "published", "recompute"])
@pytest.mark.parametrize("memory", OTHERS)
def test_routing_keeps_its_float32_gradients_under_autocast(memory, kernel):
    """A capsule layer leaves autocast by itself; its backward must not fall back into it."""
    torch.manual_seed(0)
    layers = [CapsuleLayer(6, 8, 6, 8, kernel=kernel) for _ in range(4)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.5)
    assert_all_close(in_autocast(layers, memory), in_autocast(layers, "stored"), relative=1e-5)


@pytest.mark.parametrize("mode", ["eval", "no_grad", "inference"])
@pytest.mark.parametrize("memory", STRATEGIES)
def test_without_training_all_are_a_plain_loop(memory, mode):
    stack = MomentumStack(functions(3), memory=memory)
    x, grad = example()
    expected = MomentumStack(functions(3), memory="stored")(x)
    stack.train(mode != "eval")
    with {"eval": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[mode]():
        output = stack(x)
    assert_close(output, expected, relative=0)
    assert output.requires_grad == (mode == "eval")
    if mode == "eval":
        assert "Reversible" not in output.grad_fn.name()
        (actual,) = torch.autograd.grad(output, x, grad)
        assert_close(actual, torch.autograd.grad(expected, x, grad)[0], relative=1e-12)


# What is refused


def test_a_second_backward_is_refused():
    x, grad = example()
    output = MomentumStack(functions(2))(x)
    output.backward(grad)
    with pytest.raises(RuntimeError, match="second time"):
        output.backward(grad)


def test_a_double_backward_is_refused():
    x, grad = example()
    (first,) = torch.autograd.grad(MomentumStack(functions(2))(x), x, grad.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("place", [0, 1])
def test_a_parameter_changed_before_backward_is_noticed(place):
    stack = MomentumStack(functions(2))
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
    """Backward starts from the output: torch refuses to go on when it was written over."""
    x, grad = example()
    output = MomentumStack(functions(2))(x)
    output.mul_(2)
    with pytest.raises(RuntimeError, match="inplace"):
        output.backward(grad)


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
def test_hooks_on_saved_tensors(hooks):
    expected = outcome(functions(3), "stored")
    with hooks():
        actual = outcome(functions(3), "reversible")
    assert_all_close(actual, expected, relative=1e-11)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gamma": 0}, "gamma 0 "),
        ({"gamma": -0.1}, "-0.1"),
        ({"gamma": 1.5, "memory": "stored"}, "1.5"),
        ({"gamma": float("nan")}, "nan"),
        ({"memory": "revertible"}, "'revertible'"),
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
    with pytest.raises(ConfigurationError, match=r"'reversible'.*\n.*stored"):
        check_strategy("reversible", PLAIN_STRATEGIES)


@pytest.mark.parametrize("shape", [(3, 4), (1, WIDTH), (WIDTH,)], ids=str)
@pytest.mark.parametrize("memory", STRATEGIES)
def test_a_function_that_changes_the_shape_is_refused(memory, shape):
    class Reshapes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_zeros(shape)

    with pytest.raises(ShapeError) as refused:
        MomentumStack([*functions(1), Reshapes()], memory=memory)(example()[0])
    assert str([3, WIDTH]) in refused.value.what
    assert str(list(shape)) in refused.value.what


# As any other module


@pytest.mark.parametrize("memory", STRATEGIES)
def test_an_empty_stack_returns_its_input(memory):
    x, grad = example()
    output = MomentumStack([], memory=memory)(x)
    output.backward(grad)
    assert_all_close([output, x.grad], [x, grad], relative=0)


@pytest.mark.parametrize("memory", STRATEGIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_inputs_become_float32(dtype, memory):
    output = MomentumStack(functions(2, torch.float32), memory=memory)(torch.ones(3, WIDTH, dtype=dtype))
    assert output.dtype == torch.float32


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda stack: pickle.loads(pickle.dumps(stack))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("memory", STRATEGIES)
def test_copies_compute_the_same(memory, duplicate):
    stack = MomentumStack(functions(2), 0.8, memory)
    stack(example()[0]).sum().backward()  # a step leaves nothing behind that could not be copied
    twin = duplicate(stack)
    assert (twin.gamma, twin.memory) == (0.8, memory)
    assert_close(twin(example()[0]), stack(example()[0]), relative=0)
    assert not {parameter.data_ptr() for parameter in twin.parameters()} & {
        parameter.data_ptr() for parameter in stack.parameters()
    }


@pytest.mark.parametrize("memory", OTHERS)
def test_state_moves_between_strategies(memory):
    one, other = MomentumStack(functions(2), memory="stored"), MomentumStack(functions(2, seed=9), memory=memory)
    assert relative_error(other(example()[0]), one(example()[0])) > 0.01
    other.load_state_dict(one.state_dict())
    assert_close(other(example()[0]), one(example()[0]), relative=0)


def test_run_steps_knows_no_stack():
    x, _ = example()
    for memory in PLAIN_STRATEGIES:
        y, count = run_steps([lambda x, n: (x * 2, n + 1)] * 3, (x, torch.zeros(())), memory, segment=2)
        assert_all_close([y, count], [x * 8, torch.tensor(3.0)], relative=0)


def test_a_function_that_uses_what_it_writes_is_replayed_from_where_it_was():
    """Spectral normalisation turns its own buffers in every forward pass, and its value depends on them."""
    torch.manual_seed(0)
    layers = [nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)).double() for _ in range(6)]
    expected = outcome(layers, "stored")
    assert_all_close(outcome(layers, "reversible"), expected, relative=1e-9)


def test_parameters_that_were_replaced_for_the_call_are_noticed():
    stack = MomentumStack(functions(3))
    x, grad = example()
    swapped = {name: parameter.detach().clone().requires_grad_() for name, parameter in stack.named_parameters()}
    output = torch.func.functional_call(stack, swapped, (x,))
    with pytest.raises(RuntimeError, match="replaced between forward and backward"):
        output.backward(grad)
