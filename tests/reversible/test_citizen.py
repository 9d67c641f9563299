"""A stack of capsule layers behaves as any other module does: in several processes, compiled, transformed, checkpointed, copied.

What needs no capsules and no second process is in `test_reversible`.
"""

import copy
import json
import pickle
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

from capsbench.errors import ConfigurationError
from capsbench.models.layers import CapsuleLayer
from capsbench.reversible import PLAIN_STRATEGIES, STRATEGIES, MomentumStack, strategies
from helpers import two_processes
from helpers.commands import together
from helpers.comparing import assert_alive, assert_all_close, assert_close, relative_error

WAYS = {memory: {"memory": memory} for memory in STRATEGIES} | {
    "exact": {"inverse": "exact"},
    "segmented": {"inverse": "segmented", "lipschitz": 1e3},
}
OTHERS = [way for way in WAYS if way != "stored"]
INVERTED = [way for way in OTHERS if way not in PLAIN_STRATEGIES]
KEEPS_HOOKS = strategies._KEEPS_HOOKS


def capsules(depth: int = 3, count: int = 6, dim: int = 4, **options) -> list[nn.Module]:
    """Layers with weights large enough to matter."""
    torch.manual_seed(0)
    layers = [CapsuleLayer(count, dim, count, dim, **options) for _ in range(depth)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.5)
    return layers


def batch(*shape: int) -> Tensor:
    """Input capsules."""
    return torch.randn(shape or (3, 6, 4), generator=torch.Generator().manual_seed(1))


def make_stack(layers: list[nn.Module], way: str) -> MomentumStack:
    """A stack that does it in one of `WAYS`."""
    return MomentumStack(copy.deepcopy(layers), **WAYS[way])


def gradients(stack: MomentumStack, x: Tensor, run=None) -> list[Tensor | None]:
    """Output and gradients of one step, after one that must leave nothing behind; `run` calls the stack."""
    for _ in range(2):
        stack.zero_grad()
        x = x.detach().requires_grad_()
        output = (stack if run is None else run)(x)
        output.square().sum().backward()
    return [output.detach(), x.grad, *(parameter.grad for parameter in stack.parameters())]


# Capsule layers of every kind, and the smallest there are


@pytest.mark.parametrize("kernel", ["reference", "recompute"])
@pytest.mark.parametrize("routing", ["rba", "sda", "em"])
@pytest.mark.parametrize("way", OTHERS)
def test_capsule_layers(way, routing, kernel):
    layers = capsules(routing=routing, kernel=kernel)
    assert_all_close(gradients(make_stack(layers, way), batch()), gradients(make_stack(layers, "stored"), batch()), relative=1e-5)


@pytest.mark.parametrize(("size", "count", "dim"), [(1, 6, 4), (3, 1, 4), (1, 1, 1), (2, 5, 1)])
@pytest.mark.parametrize("way", OTHERS)
def test_a_batch_of_one_and_one_capsule(way, size, count, dim):
    """One capsule in is one capsule out: I = J = 1."""
    layers, x = capsules(3, count, dim), batch(size, count, dim)
    expected = gradients(make_stack(layers, "stored"), x)
    assert_all_close(gradients(make_stack(layers, way), x), expected, relative=1e-5)
    assert_alive(expected[2])


LAYOUTS = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "batch last": lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "every other": lambda x: torch.stack([x, x], dim=-1).flatten(-2)[..., ::2],
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", OTHERS)
def test_inputs_of_any_layout(way, layout):
    x = LAYOUTS[layout](batch())
    assert not x.is_contiguous()
    expected = gradients(make_stack(capsules(), "stored"), x.contiguous())
    assert_all_close(gradients(make_stack(capsules(), way), x), expected, relative=1e-5)


@pytest.mark.parametrize("way", OTHERS)
def test_maps_in_channels_last(way):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)]
    x = batch(2, 3, 5, 5)
    expected = gradients(make_stack(layers, "stored"), x)
    last = gradients(make_stack(layers, way).to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last))
    assert_all_close(last, expected, relative=1e-5)


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-11), (torch.bfloat16, 1e-5), (torch.float16, 1e-5)])
@pytest.mark.parametrize("way", OTHERS)
def test_inputs_of_any_dtype(way, dtype, relative):
    """Narrow inputs are widened before the first layer, and their gradient is narrow again."""
    wide = torch.promote_types(dtype, torch.float32)
    layers = [layer.to(wide) for layer in capsules()]
    actual, expected = (gradients(make_stack(layers, name), batch().to(dtype)) for name in (way, "stored"))
    assert actual[1].dtype == dtype
    # A gradient that is rounded to few bits may fall on the other side.
    of_input = max(relative, torch.finfo(dtype).eps if dtype != torch.float64 else 0)
    assert_close(actual.pop(1), expected.pop(1), relative=of_input)
    assert_all_close(actual, expected, relative=relative)


# Several processes


@pytest.fixture(scope="module")
def in_two_processes(tmp_path_factory, server) -> dict[str, list[float]]:
    """Differences of gradients in two processes from those in one, by case and process."""
    found = tmp_path_factory.mktemp("processes") / "found.json"
    script = two_processes.__file__
    for done in together([server.start(found.parent, script, rank, found, program="python") for rank in range(2)]):
        assert done.status == 0, done.stderr[-2000:]
    return json.loads(found.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("option", two_processes.OPTIONS)
@pytest.mark.parametrize("way", two_processes.WAYS)
def test_distributed_data_parallel(way, option, in_two_processes):
    """Networks with weights shared between layers; unused parameters, a static graph, and gradients that accumulate."""
    errors = in_two_processes[f"{way} {option}"]
    assert len(errors) == 2
    assert max(errors) < 1e-5


@pytest.mark.slow
def test_two_processes_did_exchange_something(in_two_processes):
    assert set(in_two_processes) == {f"{way} {option}" for way, option in product(two_processes.WAYS, two_processes.OPTIONS)}
    assert max(max(errors) for errors in in_two_processes.values()) > 0  # gradients in other orders of summation


# Compiled


FROM_THE_COMPILER = pytest.mark.filterwarnings(
    "ignore::UserWarning:torch._dynamo", "ignore::FutureWarning", "ignore::DeprecationWarning"
)


@pytest.fixture
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
@FROM_THE_COMPILER
@pytest.mark.parametrize("way", ["stored", "checkpoint", "offload", "reversible", "exact", "reversible-kept"])
def test_a_compiled_stack(way):
    expected = gradients(make_stack(capsules(), "stored"), batch())
    stack = make_stack(capsules(), way)
    assert_all_close(gradients(stack, batch(), torch.compile(stack, backend="aot_eager")), expected, relative=1e-5)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("way", INVERTED)
def test_compiled_whole_a_reversible_stack_says_that_it_cannot(way):
    stack = torch.compile(make_stack(capsules(), way), backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="_run_reversible"):
        stack(batch())


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
@FROM_THE_COMPILER
@pytest.mark.parametrize("how", ["wrapped", "in place"])
@pytest.mark.parametrize("way", ["reversible", "exact", "reversible-kept"])
def test_compiled_functions(way, how):
    """A compiled layer's offer is not used: its value would not have the bits of the compiled one."""
    expected = gradients(make_stack(capsules(), "stored"), batch())
    layers = capsules()
    if how == "in place":
        for layer in layers:
            layer.compile(backend="aot_eager")
        stack = MomentumStack(layers, **WAYS[way])
    else:
        stack = MomentumStack([torch.compile(layer, backend="aot_eager") for layer in layers], **WAYS[way])
    assert_all_close(gradients(stack, batch()), expected, relative=1e-5)


# Transformed


@pytest.mark.parametrize("way", WAYS)
def test_torch_func_grad(way):
    stack, x = make_stack(capsules(kernel="reference"), way), batch()
    values = {name: parameter.detach() for name, parameter in stack.named_parameters()}

    def loss(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(stack, values, (x,)).square().sum()

    of_values, of_x = grad(loss, argnums=(0, 1))(values, x)
    _, *expected = gradients(make_stack(capsules(kernel="reference"), "stored"), x)
    assert_all_close([of_x, *of_values.values()], expected, relative=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_vmap(way):
    stack, x = make_stack(capsules(kernel="reference"), way), batch()
    assert_close(vmap(lambda one: stack(one.unsqueeze(0)).squeeze(0))(x), stack(x).detach(), relative=1e-6)


# Checkpointed, hooked, copied


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_around_it(way, reentrant):
    layers = [nn.Sequential(layer, nn.Dropout(0.5)) for layer in capsules()]

    def seeded(way: str, run=None) -> list[Tensor | None]:
        torch.manual_seed(7)
        stack = make_stack(layers, way)
        return gradients(stack, batch(), run and (lambda x: checkpoint(stack, x, use_reentrant=reentrant)))

    assert_all_close(seeded(way, run=True), seeded("stored"), relative=1e-5)


@pytest.mark.parametrize("way", OTHERS if KEEPS_HOOKS else INVERTED)  # elsewhere they are refused, as the next test holds
def test_hooks_of_the_stack_and_of_its_layers(way):
    def hooked(way: str) -> tuple[list[Tensor | None], list[str]]:
        stack, called = make_stack(capsules(), way), []
        stack.register_forward_hook(lambda module, args, output: called.append("stack") or 2 * output)
        stack.functions[1].register_forward_hook(lambda module, args, output: called.append("layer") or 0.5 * output)
        stack.functions[1].register_full_backward_hook(lambda module, gi, go: called.append("backward") or (3 * gi[0],))
        next(stack.parameters()).register_hook(lambda gradient: called.append("gradient") or 4 * gradient)
        return gradients(stack, batch()), called

    (actual, called), (expected, called_stored) = hooked(way), hooked("stored")
    assert_all_close(actual, expected, relative=1e-5)
    for name in ("stack", "backward", "gradient"):
        assert called.count(name) == called_stored.count(name) == 2
    # A layer that is evaluated again is seen again.
    assert called.count("layer") >= called_stored.count("layer") == 2


@pytest.mark.parametrize("way", PLAIN_STRATEGIES[1:])
def test_hooks_that_an_older_torch_would_lose_are_refused(way, monkeypatch):
    stack = make_stack(capsules(), way)
    next(stack.parameters()).register_hook(lambda gradient: None)
    monkeypatch.setattr(strategies, "_KEEPS_HOOKS", False)
    with pytest.raises(ConfigurationError, match="has a hook"):
        stack(batch())


@pytest.mark.parametrize("way", OTHERS)
def test_gradients_arrive_one_by_one_after_backward(way):
    """Hooks that act as each gradient arrives see whole sums, shared weights too."""
    layers = capsules()
    layers[2].weight = layers[0].weight
    seen: dict[str, Tensor] = {}
    stack = make_stack(layers, way)
    for name, parameter in stack.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda one, name=name: seen.update({name: one.grad.clone()}))
    stack(batch()).square().sum().backward()
    _, _, *expected = gradients(make_stack(layers, "stored"), batch())
    assert_all_close([seen[name] for name, _ in stack.named_parameters()], expected, relative=1e-5)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda stack: pickle.loads(pickle.dumps(stack))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("way", OTHERS)
def test_copies_train_alike(way, duplicate):
    stack = make_stack(capsules(), way)
    expected = gradients(stack, batch())
    assert_all_close(gradients(duplicate(stack), batch()), expected, relative=0)


@pytest.mark.parametrize("way", OTHERS)
def test_the_state_is_that_of_the_functions(way):
    stored, other = make_stack(capsules(), "stored"), make_stack([*capsules(2), capsules()[0]], way)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert list(stored.state_dict()) == list(other.state_dict())
    other.load_state_dict(stored.state_dict())
    assert_all_close(gradients(other, batch()), gradients(stored, batch()), relative=1e-5)


@pytest.mark.parametrize("way", OTHERS)
def test_what_drops_and_what_counts(way):
    """Dropout gives the same mask twice, BatchNorm counts a batch once."""
    layers = [nn.Sequential(layer, nn.Dropout(0.3), nn.BatchNorm1d(6)) for layer in capsules()]

    def run(way: str, seed: int = 3) -> list[Tensor | None]:
        torch.manual_seed(seed)
        stack = make_stack(layers, way)
        return [*gradients(stack, batch()), *stack.buffers()]

    expected = run("stored")
    assert_all_close(run(way), expected, relative=1e-4)
    assert expected[-1].item() == 2
    assert relative_error(run("stored", seed=4)[0], expected[0]) > 0.01
