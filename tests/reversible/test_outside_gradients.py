"""Reversible stacks and plain autograd: what others brought that gave gradients which were wrong without a word."""

import copy
import random
import textwrap
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from capsbench import CapsNet, CapsuleLoss, MoCapsNet, ResCapsNet
from capsbench.errors import CapsbenchError, ConfigurationError
from capsbench.models.layers import CapsuleLayer
from capsbench.reversible import STRATEGIES, DriftWarning, MomentumStack, strategies
from capsbench.routing import route
from helpers.commands import together
from helpers.comparing import assert_alive, assert_all_close, assert_close, relative_error, saved_by_autograd

WIDTH = 8

WAYS = {memory: {"memory": memory} for memory in STRATEGIES} | {
    "exact": {"inverse": "exact"},
    "segmented": {"inverse": "segmented", "lipschitz": 1e3},
}
REVERSIBLE = ["reversible", "reversible-kept", "exact", "segmented"]
OTHERS = [way for way in WAYS if way != "stored"]


@pytest.fixture(autouse=True)
def strict():
    """Everything here is exact enough: a warning of drift is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DriftWarning)
        yield


def make_stack(functions, way: str, **options) -> MomentumStack:
    return MomentumStack(functions, **WAYS[way], **options)


def linears(depth: int = 3, seed: int = 0) -> list[nn.Module]:
    torch.manual_seed(seed)
    return [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(depth)]


def example(seed: int = 1) -> Tensor:
    return torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(seed))


def gradients(*modules: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for module in modules for parameter in module.parameters()]


# What reaches a function


class Adds(nn.Module):
    """Adds a context to what it computes, wherever it comes from."""

    def __init__(self, context=None) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.held = context

    def forward(self, x: Tensor, context: Tensor | None = None, scale: float = 1.0) -> Tensor:
        if context is None:
            context = self.held[0] if isinstance(self.held, list) else self.held
        return torch.tanh(self.inner(x) + scale * context)


def with_context(way: str, *, also_x: bool = False, call=lambda stack, x, context: stack(x, context)) -> list[Tensor | None]:
    torch.manual_seed(0)
    encoder, stack = nn.Linear(WIDTH, WIDTH), make_stack([Adds() for _ in range(4)], way)
    context = encoder(torch.ones(4, WIDTH))
    output = call(stack, context if also_x else example(), context)
    output.square().sum().backward()
    return [output, *gradients(encoder, stack)]


CALLS = {
    "by place": lambda stack, x, context: stack(x, context),
    "by name": lambda stack, x, context: stack(x, context=context),
    "with a number": lambda stack, x, context: stack(x, context, scale=0.5),
    "detached": lambda stack, x, context: stack(x, context.detach()),
}


@pytest.mark.parametrize("also_x", [False, True])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("way", OTHERS)
def test_context_is_handed_to_every_function_and_gets_its_gradient(way, call, also_x):
    actual, expected = (with_context(one, also_x=also_x, call=CALLS[call]) for one in (way, "stored"))
    assert_all_close(actual, expected, relative=1e-5)
    if call != "detached" or also_x:
        assert_alive(actual[1])


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, parts: dict[str, list[Tensor]], *, mask: Tensor) -> Tensor:
        return torch.tanh(self.inner(x)) * mask + sum(parts["all"])


@pytest.mark.parametrize("way", OTHERS)
def test_context_in_lists_and_dictionaries(way):
    def run(way: str) -> list[Tensor | None]:
        torch.manual_seed(0)
        stack = make_stack([Nested() for _ in range(3)], way)
        first, second = (torch.randn(4, WIDTH, requires_grad=True) for _ in range(2))
        mask = torch.arange(WIDTH) % 2 == 0
        stack(example(), {"all": [first, second, first]}, mask=mask).square().sum().backward()
        return [first.grad, second.grad, *gradients(stack)]

    assert_all_close(run(way), run("stored"), relative=1e-5)


def test_a_context_that_was_changed_before_backward_is_noticed():
    stack = make_stack([Adds() for _ in range(2)], "reversible")
    context = torch.zeros(4, WIDTH)
    output = stack(example(), context)
    context += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


class Hyper(nn.Module):
    """Computes with a weight that is no parameter of its own."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weights = (weight,)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weights[0])


def foreign(case: str) -> list[nn.Module]:
    torch.manual_seed(0)
    if case == "attribute":
        context = nn.Linear(WIDTH, WIDTH)(torch.ones(4, WIDTH))
        return [Adds(context) for _ in range(2)]
    if case == "list":
        return [Adds([torch.randn(4, WIDTH, requires_grad=True)])]
    if case == "hypernetwork":
        return [Hyper(nn.Linear(1, WIDTH * WIDTH)(torch.ones(1)).view(WIDTH, WIDTH))]
    return [Hyper(nn.Parameter(torch.randn(WIDTH, WIDTH)))]


@pytest.mark.parametrize("case", ["attribute", "list", "hypernetwork", "unregistered parameter"])
@pytest.mark.parametrize("way", REVERSIBLE)
def test_what_reaches_a_function_by_the_side_is_an_error_in_forward(way, case):
    stack = make_stack(foreign(case), way)
    with pytest.raises(ConfigurationError, match=r"function 0 .* neither its input nor a parameter") as error:
        stack(example())
    assert "stack(x, context)" in error.value.hint
    with torch.no_grad():
        stack(example())


@pytest.mark.parametrize("way", REVERSIBLE)
def test_context_by_the_side_that_is_also_the_input_is_an_error(way):
    x = example().requires_grad_()
    context = nn.Linear(WIDTH, WIDTH)(x)
    with pytest.raises(ConfigurationError, match="neither its input nor"):
        make_stack([Adds(context)], way)(context)
    with pytest.raises(ConfigurationError, match="neither its input nor"):
        make_stack([Adds(x)], way)(x)


@pytest.mark.parametrize("way", REVERSIBLE)
def test_context_by_the_side_without_a_gradient_is_taken(way):
    functions = [Adds(torch.ones(4, WIDTH)) for _ in range(2)]
    make_stack(functions, way)(example()).sum().backward()
    assert_alive(functions[0].inner.weight.grad)


# What leaves a function


class Gate(nn.Module):
    """Balances, and says how well: by the side, or in what it returns."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner, self.gate = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)
        self.how = how

    def forward(self, x: Tensor):
        weights = torch.softmax(self.gate(x), dim=-1)
        value = torch.tanh(self.inner(x)) * weights[:, :1]
        self.balance = {"by the side": lambda one: one, "detached": Tensor.detach, "returned": lambda one: None}[self.how](
            weights.mean(0).square().sum()
        )
        if self.how == "returned":
            return value, weights.mean(0).square().sum(), weights.argmax(dim=-1)
        return value


@pytest.mark.parametrize("way", REVERSIBLE)
def test_a_loss_kept_on_a_gate_is_an_error_in_forward(way):
    with pytest.raises(ConfigurationError, match="keeps a tensor that was computed from its input") as error:
        make_stack([*linears(1), Gate("by the side")], way)(example())
    assert "(value, *extra)" in error.value.hint
    make_stack([Gate("detached")], way)(example()).sum().backward()


@pytest.mark.parametrize("way", OTHERS)
def test_a_loss_that_a_gate_returns_gets_its_gradient(way):
    def run(way: str) -> list[Tensor | None]:
        torch.manual_seed(0)
        stack = make_stack([Gate("returned"), nn.Linear(WIDTH, WIDTH), Gate("returned")], way)
        x = example().requires_grad_()
        output = stack(x)
        assert [len(extras) for extras in output.extras] == [2, 0, 2]
        assert all(not extras[1].requires_grad and extras[1].dtype == torch.int64 for extras in output.extras[::2])
        balance = output.extras[0][0] + 3 * output.extras[2][0]
        (output.x.sum() + balance).backward()
        return [x.grad, *gradients(stack)]

    assert_all_close(run(way), run("stored"), relative=1e-5)


@pytest.mark.parametrize("way", OTHERS)
def test_the_extras_alone_have_gradients(way):
    def run(way: str) -> list[Tensor | None]:
        torch.manual_seed(0)
        stack = make_stack([Gate("returned") for _ in range(3)], way)
        x = example().requires_grad_()
        stack(x).extras[1][0].backward()
        return [x.grad, *gradients(stack.functions[:1])]

    assert_all_close(run(way), run("stored"), relative=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("of", ["function", "part of a function"])
@pytest.mark.parametrize("way", REVERSIBLE)
def test_features_from_forward_hooks_are_an_error_in_forward(way, of):
    functions, features = linears(), []
    hooked = functions[1] if of == "function" else functions[1][0]
    handle = hooked.register_forward_hook(lambda module, args, output: features.append(output))
    stack = make_stack(functions, way)
    with pytest.raises(ConfigurationError, match=r"function 1 \(Sequential\).*keeps a tensor"):
        stack(example())
    handle.remove()
    hooked.register_forward_hook(lambda module, args, output: features.append(output.detach()))
    stack(example()).sum().backward()


class Penalised(nn.Module):
    """A layer that keeps a penalty of its weights, which does not depend on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        self.penalty = self.inner.weight.square().sum()
        return torch.tanh(self.inner(x))


@pytest.mark.parametrize("way", OTHERS)
def test_a_penalty_of_weights_kept_on_a_function_gets_its_gradient(way):
    def run(way: str) -> list[Tensor | None]:
        torch.manual_seed(0)
        stack = make_stack([Penalised() for _ in range(3)], way)
        output = stack(example())
        (output.sum() + sum(function.penalty for function in stack.functions)).backward()
        return gradients(stack)

    assert_all_close(run(way), run("stored"), relative=1e-5)


@pytest.mark.parametrize("output", [None, (), "text", (torch.zeros(4, WIDTH), 3)])
@pytest.mark.parametrize("way", ["stored", "reversible"])
def test_what_a_function_must_return(way, output):
    class Returns(nn.Module):
        def forward(self, x: Tensor):
            return output

    with pytest.raises(ConfigurationError, match=r"function 0 \(Returns\) of a momentum stack returned a"):
        make_stack([Returns()], way)(example())


# Caches, modes, and what asks for them


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + weight.mT


def parametrized(depth: int = 3) -> list[nn.Module]:
    functions = linears(depth)
    for function in functions:
        parametrize.register_parametrization(function[0], "weight", Symmetric())
    return functions


@pytest.mark.parametrize("backward_inside", [True, False])
@pytest.mark.parametrize("functions", ["each once", "one twice"])
@pytest.mark.parametrize("way", OTHERS)
def test_cached_parametrizations(way, functions, backward_inside):
    def run(way: str) -> list[Tensor | None]:
        layers = parametrized()
        stack = make_stack([*layers, layers[0]] if functions == "one twice" else layers, way)
        with parametrize.cached():
            loss = stack(example()).sum() + stack(example(2)).square().sum()
            if backward_inside:
                loss.backward()
        if not backward_inside:
            loss.backward()
        return gradients(stack)

    assert_all_close(run(way), run("stored"), relative=1e-4)


class Caches(nn.Module):
    """Computes something once, whether gradients are on or not, and has it ready the next time."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(-1, 1, WIDTH))
        self.ready: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.ready is None:
            self.ready = torch.tanh(self.scale)
        return torch.sin(x * self.ready)


@pytest.mark.parametrize("way", [*REVERSIBLE, "offload"])  # a checkpoint that meets such a cache is an error of torch's
def test_a_cache_that_a_function_fills_has_a_graph(way):
    def run(way: str) -> list[Tensor | None]:
        stack = make_stack([Caches() for _ in range(3)], way)
        stack(example()).sum().backward()
        return gradients(stack)

    assert_all_close(run(way), run("stored"), relative=1e-5)


class AsksForGradients(nn.Module):
    """Computes a little less exactly while nobody wants gradients, as inference kernels do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        value = torch.tanh(self.inner(x))
        return value if torch.is_grad_enabled() else value * 0.999


@pytest.mark.parametrize("way", OTHERS)
def test_functions_that_ask_whether_gradients_are_on(way):
    def run(way: str) -> list[Tensor | None]:
        torch.manual_seed(0)
        stack = make_stack([AsksForGradients() for _ in range(12)], way)
        x = example().requires_grad_()
        output = stack(x)
        output.square().sum().backward()
        return [output, x.grad, *gradients(stack)]

    assert_all_close(run(way), run("stored"), relative=1e-5)


@pytest.mark.parametrize("way", ["reversible", "exact", "segmented"])
def test_frozen_transformer_layers_in_eval_mode(way):
    def run(way: str) -> list[Tensor | None]:
        torch.manual_seed(0)
        layers = [nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True).eval().requires_grad_(False) for _ in range(40)]
        x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()
        stack = make_stack(layers, way)
        stack.training = True
        output = stack(x)
        output.square().sum().backward()
        return [output, x.grad]

    assert_all_close(run(way), run("stored"), relative=1e-3)


def test_a_stack_of_stacks():
    def run(memory: str) -> list[Tensor | None]:
        torch.manual_seed(0)
        inner = [MomentumStack(linears(20, seed=place), memory=memory) for place in range(4)]
        stack = MomentumStack(inner, memory=memory)
        x = example().requires_grad_()
        stack(x).square().sum().backward()
        return [x.grad, *gradients(stack)]

    assert_all_close(run("reversible"), run("stored"), relative=1e-4)


@pytest.mark.parametrize("way", OTHERS)
def test_eval_with_gradients_keeps_no_more_than_training(way):
    def kept(mode: str) -> int:
        stack = make_stack(linears(20), way).train(mode == "train")
        weights = {parameter.data_ptr() for parameter in stack.parameters()}
        with saved_by_autograd() as saved:
            stack(example())
        return sum(tensor.nbytes for tensor in saved if tensor.data_ptr() not in weights)

    assert kept("eval") == kept("train")


# Which parameters a function computes with


def replica_of(module: nn.Module) -> nn.Module:
    """The copy that nn.DataParallel makes of a module on another device, with copies in place of parameters."""
    replica = module._replicate_for_data_parallel()
    for name, parameter in module._parameters.items():
        if parameter is None:
            replica._parameters[name] = None
        else:
            setattr(replica, name, parameter * 1)
    for name, child in module._modules.items():
        replica._modules[name] = replica_of(child)
    return replica


def capsule_layers(depth: int = 2, kind: type[CapsuleLayer] = CapsuleLayer) -> list[nn.Module]:
    torch.manual_seed(0)
    layers = [kind(4, WIDTH, 4, WIDTH) for _ in range(depth)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.5)
    return layers


@pytest.mark.parametrize("make", [lambda: [nn.Linear(WIDTH, WIDTH)], capsule_layers], ids=["linear", "capsules"])
@pytest.mark.parametrize("way", REVERSIBLE)
def test_replicas_of_data_parallel_name_what_would_be_right(way, make):
    replica = replica_of(make_stack(make(), way))
    with pytest.raises(ConfigurationError) as error:
        replica(torch.randn(2, 4, WIDTH))
    assert "DistributedDataParallel" in error.value.hint


class OneMore(CapsuleLayer):
    """Has a parameter that its forward does not use."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.unused = nn.Parameter(torch.ones(3))


class Doubles(CapsuleLayer):
    """Has a call of its own."""

    def __call__(self, x: Tensor) -> Tensor:
        return 2 * super().__call__(x)


class Scales(CapsuleLayer):
    """Has a parameter more, and uses it."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * super().forward(x)


@pytest.mark.parametrize("kind", [OneMore, Doubles, Scales])
@pytest.mark.parametrize("way", OTHERS)
def test_subclasses_of_capsule_layers(way, kind):
    def run(way: str) -> list[Tensor | None]:
        stack = make_stack(capsule_layers(3, kind), way)
        x = torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()
        stack(x).square().sum().backward()
        return [x.grad, *gradients(stack)]

    assert_all_close(run(way), run("stored"), relative=1e-5)


def test_an_offer_of_too_few_gradients_is_an_error():
    class Offers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.added = (nn.Parameter(torch.ones(WIDTH)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.used

        def forward_and_vjp(self, x: Tensor, grad: Tensor, kept=()):
            return x * self.used, grad * self.used, ((grad * x).sum(0),)

    output = MomentumStack([Offers()])(example())
    with pytest.raises(ConfigurationError, match="returned 1 gradients for 2 parameters"):
        output.sum().backward()


SHARDED = """
    import sys, torch, torch.distributed as dist
    from torch import nn
    from torch.distributed.fsdp import fully_shard
    from capsbench.errors import ConfigurationError
    from capsbench.reversible import MomentumStack

    which, rank, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{path}")
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))

    def trained(memory, shard):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 8), MomentumStack([nn.Linear(8, 8) for _ in range(3)], memory=memory), nn.Linear(8, 8))
        if shard == "each":
            for function in net[1].functions:
                fully_shard(function, mesh=mesh)
        if shard:
            fully_shard(net, mesh=mesh)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
        for _ in range(3):
            net(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return [p.full_tensor() if hasattr(p, "full_tensor") else p for p in net.parameters()]

    if which == "each":
        try:
            trained("reversible", "each")
        except ConfigurationError as error:
            print("refused", error)
    else:
        pairs = zip(trained("reversible", "whole"), trained("stored", None))
        print("largest difference", max(float((a - b).abs().max()) for a, b in pairs))
    dist.barrier()
    dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("which", "said"), [("each", "refused function 0 (FSDPLinear)"), ("whole", "largest difference")])
def test_sharded_stacks(which, said, tmp_path, server):
    script = tmp_path / "sharded.py"
    script.write_text(textwrap.dedent(SHARDED))
    both = [server.start(tmp_path, script, which, rank, tmp_path / "store", program="python") for rank in range(2)]
    results = [done.stdout for done in together(both)]
    assert all(said in out for out in results), results
    if which == "whole":
        assert all(float(out.split()[-1]) < 1e-5 for out in results)
    else:
        assert all("fully_shard" in out for out in results)


# Precisions


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", WAYS)
def test_a_stack_of_half_precision_functions(way, dtype):
    stack = make_stack(linears(20), way).to(dtype)
    x = example().to(dtype).requires_grad_()
    output = stack(x)
    assert output.dtype == torch.float32
    output.square().sum().backward()
    reference = make_stack(copy.deepcopy(stack.functions), "stored")
    for parameter in reference.parameters():
        parameter.grad = None
    again = x.detach().requires_grad_()
    reference(again).square().sum().backward()
    assert_all_close([x.grad, *gradients(stack)], [again.grad, *gradients(reference)], relative=5 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("decoder", [True, False])
@pytest.mark.parametrize("kind", [CapsNet, ResCapsNet, MoCapsNet])
def test_networks_in_bfloat16(kind, decoder):
    torch.manual_seed(0)
    net = kind((1, 20, 20), 3, 1, channels=16, capsules=4, decoder=decoder)
    for module in net.modules():
        if isinstance(module, CapsuleLayer):
            nn.init.normal_(module.weight, std=0.5)
    images, labels = torch.rand(2, 1, 20, 20), torch.tensor([0, 2])
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        mine = copy.deepcopy(net).to(dtype)
        loss = CapsuleLoss()(mine(images.to(dtype), labels), labels, images.to(dtype))
        loss.backward()
        assert_alive(mine.conv.weight.grad)
        losses.append(loss.detach().float())
    assert_close(losses[1], losses[0], relative=0.05)


@pytest.mark.parametrize("depth", [4, 16, 60])
def test_the_choice_of_auto_is_quiet_under_bfloat16_autocast(depth):
    def run(memory: str, dtype: torch.dtype | None) -> list[Tensor | None]:
        torch.manual_seed(0)
        stack = MomentumStack(linears(depth), memory=memory)
        x = example().requires_grad_()
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            output = stack(x)
        output.square().sum().backward()
        return [x.grad, *gradients(stack)]

    actual, stored, wide = run("reversible", torch.bfloat16), run("stored", torch.bfloat16), run("stored", None)
    for mine, theirs, exact in zip(actual, stored, wide, strict=True):
        assert relative_error(mine, theirs) <= relative_error(theirs, exact) + 1e-6


# What auto refuses


@pytest.mark.parametrize("size", [1e3, 3e3, 1e6])
def test_auto_takes_large_values_at_any_depth(size):
    def run(memory: str) -> list[Tensor | None]:
        stack = MomentumStack(linears(20), memory=memory)
        x = (example() * size).requires_grad_()
        output = stack(x)
        output.sum().backward()
        return [output, x.grad, *gradients(stack)]

    assert_all_close(run("reversible"), run("stored"), relative=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_auto_leaves_what_is_not_finite_to_the_gradient_scaler(value):
    stack = MomentumStack(linears(20))
    x = example()
    x[0, 0] = value
    output = stack(x)
    assert not output.isfinite().all()
    output.sum().backward()
    assert not stack.functions[0][0].weight.grad.isfinite().all()


def test_a_stack_that_changes_its_inverse_counts_once():
    """The stack runs from the start again: buffers and random numbers must be as if it had run once."""

    def run(memory: str) -> list[Tensor | None]:
        torch.manual_seed(0)
        functions = [nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Dropout(0.5), nn.Linear(WIDTH, WIDTH)) for _ in range(20)]
        stack = MomentumStack(functions, memory=memory)
        x = (example() * 3e3).requires_grad_()
        stack(x).sum().backward()
        return [x.grad, *stack.buffers(), *gradients(stack), torch.rand(3)]

    actual, expected = run("reversible"), run("stored")
    assert_all_close(actual, expected, relative=1e-3)


def test_exact_that_was_asked_for_says_what_it_cannot_hold():
    with pytest.raises(ConfigurationError, match="below 2048"):
        MomentumStack(linears(2), inverse="exact")(example() * 1e6)


def test_auto_kernel_takes_many_output_capsules():
    torch.manual_seed(0)
    inputs, weight = torch.randn(1, 2, 2), torch.randn(2, 2, 16_385, 1)
    expected = route(inputs, weight, kernel="reference")
    assert_close(route(inputs, weight), expected, relative=1e-5)
    layer = CapsuleLayer(2, 2, 16_385, 1)
    layer(inputs).sum().backward()
    assert_alive(layer.weight.grad)


# In place, lazy, complex


@pytest.mark.parametrize("way", WAYS)
def test_a_function_that_changes_its_input_is_an_error_in_forward(way):
    functions = [*linears(1), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(WIDTH, WIDTH))]
    with pytest.raises(ConfigurationError, match=r"function 1 \(Sequential\).*in place.*ReLU\(inplace=True\)"):
        make_stack(functions, way)(example().requires_grad_())


@pytest.mark.parametrize("way", WAYS)
def test_a_first_function_that_changes_its_input_is_an_error(way):
    for x in (example(), example().requires_grad_() * 1):
        with pytest.raises(ConfigurationError, match="in place"):
            make_stack([nn.Sequential(nn.ReLU(inplace=True), nn.Linear(WIDTH, WIDTH))], way)(x)


@pytest.mark.parametrize("way", OTHERS)
def test_in_place_after_the_first_module_is_as_good_as_elsewhere(way):
    def run(way: str) -> list[Tensor | None]:
        torch.manual_seed(0)
        stack = make_stack([nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True)) for _ in range(3)], way)
        x = example().requires_grad_()
        stack(x).sum().backward()
        return [x.grad, *gradients(stack)]

    assert_all_close(run(way), run("stored"), relative=1e-5)


@pytest.mark.parametrize("way", REVERSIBLE)
def test_lazy_functions_say_what_to_do(way):
    stack = make_stack([nn.LazyLinear(WIDTH), nn.LazyLinear(WIDTH)], way)
    with pytest.raises(ConfigurationError, match=r"functions\.0\.weight.*lazy") as error:
        stack(example())
    assert "torch.no_grad()" in error.value.hint
    with torch.no_grad():
        stack(example())
    stack(example()).sum().backward()
    assert_alive(stack.functions[1].weight.grad)


@pytest.mark.parametrize("way", REVERSIBLE)
def test_complex_inputs_are_refused_in_forward(way):
    with pytest.raises(CapsbenchError, match="complex64"):
        make_stack([nn.Linear(WIDTH, WIDTH, dtype=torch.complex64)], way)(torch.randn(2, WIDTH, dtype=torch.complex64))


# Draws that are not torch's


class LayerDrop(nn.Module):
    """Leaves itself out half of the time, by some other generator; starts at zero."""

    def __init__(self, draw, seed: int = 0) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.draw = draw
        self.generator = torch.Generator().manual_seed(seed)
        self.numpy = np.random.default_rng(seed)
        self.python = random.Random(seed)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.draw(self) < 0.5:
            return torch.zeros_like(x)
        return self.last(torch.relu(self.first(x)))


def counted(module: LayerDrop) -> float:
    module.calls += 1
    return module.calls % 2


DRAWS = {
    "random": lambda module: random.random(),
    "numpy": lambda module: np.random.rand(),
    "generator of the module": lambda module: torch.rand((), generator=module.generator).item(),
    "numpy generator of the module": lambda module: module.numpy.random(),
    "random generator of the module": lambda module: module.python.random(),
}


def dropped(draw: str, way: str, steps: int = 3) -> tuple[list[Tensor | None], list[float]]:
    torch.manual_seed(0)
    random.seed(5)
    np.random.seed(5)
    stack = make_stack([LayerDrop(DRAWS[draw], seed) for seed in range(8)], way)
    found = []
    for _ in range(steps):
        stack(example()).square().sum().backward()
        found += gradients(stack)
        stack.zero_grad()
    return found, [random.random(), np.random.rand()]


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("way", OTHERS)
def test_draws_of_other_generators_are_replayed(way, draw):
    (actual, after), (expected, after_stored) = dropped(draw, way), dropped(draw, "stored")
    assert any(one is None or one.count_nonzero() == 0 for one in expected)
    assert any(one is not None and one.count_nonzero() for one in expected)
    for mine, theirs in zip(actual, expected, strict=True):
        mine, theirs = (torch.zeros(1) if one is None or not one.count_nonzero() else one for one in (mine, theirs))
        assert_close(mine, theirs, relative=1e-5)
    assert after == after_stored


@pytest.mark.parametrize("way", REVERSIBLE)
def test_a_function_that_counts_its_calls_is_noticed(way):
    torch.manual_seed(0)
    stack = make_stack([LayerDrop(counted) for _ in range(3)], way)
    output = stack(example())
    with pytest.warns(DriftWarning, match="computed differently in backward"):
        output.sum().backward()


def test_exact_notices_a_single_other_bit():
    class Fickle(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return torch.sin(x) * (1 + 2**-22 if self.calls == 2 else 1)

    output = MomentumStack([Fickle(), nn.Tanh()], inverse="exact")(example().requires_grad_())
    with pytest.warns(DriftWarning, match="same bits twice"):
        output.sum().backward()


# What a reviewer found


def generated(kind: str) -> tuple[nn.Module, nn.Module]:
    """A layer whose weight another network makes, and that network."""
    torch.manual_seed(0)
    layer = capsule_layers(1)[0] if kind == "capsules" else nn.Linear(WIDTH, WIDTH, bias=False)
    shape = layer.weight.shape
    maker = nn.Linear(1, layer.weight.numel())
    del layer.weight
    layer.weight = maker(torch.ones(1)).view(shape)
    return layer, maker


@pytest.mark.parametrize("kind", ["capsules", "linear"])
@pytest.mark.parametrize("way", REVERSIBLE)
def test_a_weight_in_place_of_a_parameter_is_an_error(way, kind):
    layer, _ = generated(kind)
    with pytest.raises(ConfigurationError, match="neither its input nor a parameter"):
        make_stack([layer], way)(torch.randn(2, 4, WIDTH))


@pytest.mark.parametrize("kind", ["linear", "capsules"])
@pytest.mark.parametrize("way", OTHERS)
def test_hooks_of_parameters_run_once(way, kind):
    def run(way: str) -> tuple[list[Tensor | None], int]:
        layers = capsule_layers(3) if kind == "capsules" else linears()
        stack = make_stack([*layers, layers[0]], way)
        calls = []
        for parameter in stack.parameters():
            parameter.register_hook(lambda grad: calls.append(1) or grad * 0.5)
        x = torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()
        for _ in range(2):  # they are put back
            stack(x).square().sum().backward()
        return [x.grad, *gradients(stack)], len(calls)

    if way in ("checkpoint", "checkpoint-sqrt", "offload") and not strategies._KEEPS_HOOKS:
        with pytest.raises(ConfigurationError, match="has a hook"):
            run(way)
        return
    (actual, calls), (expected, calls_stored) = run(way), run("stored")
    assert_all_close(actual, expected, relative=1e-5)
    assert calls == calls_stored


class Force(nn.Module):
    """The gradient of an energy: takes gradients in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            return torch.autograd.grad(torch.tanh(self.inner(x)).sum(), x, create_graph=True)[0]


@pytest.mark.parametrize("way", OTHERS)
def test_functions_that_take_gradients_in_forward(way):
    def run(way: str) -> list[Tensor | None]:
        torch.manual_seed(0)
        stack = make_stack([Force() for _ in range(3)], way)
        x = example().requires_grad_()
        stack(x).square().sum().backward()
        return [x.grad, *(function.inner.weight.grad for function in stack.functions)]

    assert_all_close(run(way), run("stored"), relative=1e-5)


class Codebook(nn.Module):
    """Scaled by a buffer, and so small that another value of it moves nothing that can be seen."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("scale", torch.full((WIDTH,), 1e-5))
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "data":
            self.scale.data.mul_(0.5)
        return torch.tanh(self.inner(x)) * self.scale


@pytest.mark.parametrize("way", REVERSIBLE)
def test_a_buffer_written_through_data_is_replayed(way):
    def run(way: str) -> list[Tensor | None]:
        torch.manual_seed(0)
        stack = make_stack([Codebook("data") for _ in range(3)], way)
        stack(example()).square().sum().backward()
        return [function.inner.bias.grad for function in stack.functions]

    assert_all_close(run(way), run("stored"), relative=1e-4)


@pytest.mark.parametrize("way", REVERSIBLE)
def test_a_buffer_that_was_replaced_before_backward_is_put_back(way):
    torch.manual_seed(0)
    stack = make_stack([Codebook("none") for _ in range(3)], way)
    reference = make_stack(copy.deepcopy(stack.functions), "stored")
    output, expected = stack(example()), reference(example())
    for function in (*stack.functions, *reference.functions):
        function.scale = torch.ones(WIDTH)
    output.square().sum().backward()
    expected.square().sum().backward()
    assert_all_close(gradients(stack), gradients(reference), relative=1e-4)
    assert all((function.scale == 1).all() for function in stack.functions)


@pytest.mark.parametrize("way", [*REVERSIBLE, "offload"])  # a checkpoint restores what was there
def test_a_buffer_that_was_changed_before_backward_is_an_error(way):
    stack = make_stack([Codebook("none") for _ in range(3)], way)
    output = stack(example())
    stack.functions[1].scale.mul_(2)
    with pytest.raises(RuntimeError, match=r"change|modified"):
        output.sum().backward()


@pytest.mark.parametrize("way", REVERSIBLE)
def test_half_precision_capsule_layers_compute_alike_under_all_strategies(way):
    def run(way: str) -> list[Tensor | None]:
        stack = make_stack(capsule_layers(16), way).bfloat16()
        x = torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()
        output = stack(x)
        output.square().sum().backward()
        with torch.no_grad():
            again = stack(x)
        return [output, again, x.grad, *gradients(stack)]

    actual, expected = run(way), run("stored")
    assert_all_close(actual[:2], expected[:2], relative=1e-5)
    assert_all_close(actual[2:], expected[2:], relative=2e-2)


class AsksForItsInput(nn.Module):
    """Computes something else where its input has no gradient, as fast paths do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x)) if x.requires_grad else 2 * self.inner(x)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("of_x", [False, True])
@pytest.mark.parametrize("way", OTHERS)
def test_functions_that_ask_whether_their_input_has_a_gradient(way, of_x, frozen):
    def run(way: str) -> list[Tensor | None]:
        torch.manual_seed(0)
        stack = make_stack([AsksForItsInput() for _ in range(4)], way)
        stack.functions[0].requires_grad_(not frozen)
        x = example().requires_grad_(of_x)
        output = stack(x)
        output.square().sum().backward()
        return [output, x.grad, *gradients(stack)]

    assert_all_close(run(way), run("stored"), relative=1e-5)


@pytest.mark.parametrize("way", OTHERS)
def test_a_loss_kept_by_the_first_function_of_an_input_without_a_gradient_is_right(way):
    def run(way: str) -> list[Tensor | None]:
        torch.manual_seed(0)
        stack = make_stack([Gate("by the side"), nn.Linear(WIDTH, WIDTH)], way)
        output = stack(example())
        (output.sum() + 3 * stack.functions[0].balance).backward()
        return gradients(stack)

    assert_all_close(run(way), run("stored"), relative=1e-5)


@pytest.mark.parametrize("way", OTHERS)
def test_functions_past_the_last_gradient_have_none(way):
    def run(way: str) -> list[Tensor | None]:
        torch.manual_seed(0)
        stack = make_stack([Gate("returned") for _ in range(3)], way, learn_gamma=way != "exact")
        x = example().requires_grad_()
        stack(x).extras[1][0].backward()
        return [x.grad, *gradients(stack.functions)]

    actual, expected = run(way), run("stored")
    assert all(one is None for one in expected[-4:])
    assert_all_close(actual, expected, relative=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("made_inside", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_an_input_that_is_written_without_gradients_is_an_error(way, made_inside, mode):
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x[:, :4].mul_(2)
            return x

    x = example()
    with mode():
        x = x.clone() if made_inside else x
        with pytest.raises(ConfigurationError, match="in place"):
            make_stack([Halves()], way)(x)


def test_lazy_functions_that_are_offloaded():
    stack = make_stack([nn.LazyLinear(WIDTH), nn.LazyLinear(WIDTH)], "offload")
    stack(example()).sum().backward()
    assert_alive(stack.functions[1].weight.grad)
