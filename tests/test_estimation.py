"""Estimates of live networks: the bytes of a prediction of the same case, and nothing of the network is changed."""

import copy
import itertools
import random
import subprocess
import sys
from array import array
from collections import Counter, UserDict, deque
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import capsbench
from capsbench import Case
from capsbench.catalog import OWN_INPUTS
from capsbench.errors import ConfigurationError
from capsbench.figures.one_step import timeline_text
from capsbench.options import Configuration
from capsbench.prediction.predict import predict_memory, trace_for
from capsbench.tracing.twins import Twins
from helpers import networks_of_others as others

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::FutureWarning", "ignore::DeprecationWarning")

FIGURES = ("state_bytes", "gradient_bytes", "optimizer_bytes", "retained_bytes", "peak_allocated_bytes", "peak_reserved_bytes")


def made(name: str) -> Case:
    """A case of others, made as its user would make it."""
    if name in others.PACKAGES:
        pytest.importorskip(others.PACKAGES[name])
    return getattr(others, name)()


# Nothing is changed


def everything(case: Case) -> dict[str, Any]:
    """All that a step could change: values, gradients, hooks, buffers, flags, objects and random states."""
    module = case.module
    tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    tensors |= {f"input {index}": tensor for index, tensor in enumerate(case.tensors())}
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if torch.nn.parameter.is_lazy(tensor):
            found[name] = id(tensor)
            continue
        grad = None if tensor.grad is None else (id(tensor.grad), tensor.grad.clone())
        hooks = dict(tensor._backward_hooks or {}), dict(tensor._post_accumulate_grad_hooks or {})
        found[name] = id(tensor), tensor._version, tensor.detach().clone(), grad, tensor.requires_grad, hooks, type(tensor)
    for name, one in module.named_modules():
        own = {key: value for key, value in vars(one).items() if key not in ("_parameters", "_buffers", "_modules")}
        found[f"module {name}"] = (
            id(one),
            type(one),
            one.training,
            [id(child) for child in one.children()],
            {key: contents(value) for key, value in own.items()},
        )
    found["random"] = random.getstate()
    found["numpy"] = np.random.get_state()[1].copy()
    found["torch"] = torch.get_rng_state()
    return found


def contents(value: Any) -> Any:
    """Contents of a container, or the state of a generator; any other object itself."""
    if isinstance(value, dict | UserDict):
        return {key: contents(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset | deque):
        return [id(value), *map(contents, value)]
    if isinstance(value, Pickled | SimpleNamespace):
        return {name: contents(one) for name, one in vars(value).items()}
    if isinstance(value, itertools.count):
        return repr(value)
    if isinstance(value, Slots):
        return {name: contents(getattr(value, name)) for name in ("seen", "_Slots__calls")}
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, torch.Generator):
        return value.get_state()
    return copy.copy(value) if isinstance(value, np.ndarray | bytearray | array) else value


def same(one: Any, other: Any) -> bool:
    """Return whether two snapshots are equal, to the bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return one is other or one == other


def small() -> Case:
    """A network with statistics, dropout, gradients and a hook."""
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
    module[1].eval()
    module(torch.rand(5, 4)).sum().backward()
    return Case(module, torch.rand(5, 4), loss=Tensor.sum)


class Sequence(list[Any]):
    """A list with an attribute, which is filled only by `add`."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def extend(self, values: Any) -> None:
        raise NotImplementedError

    def add(self, value: Any) -> None:
        self.calls += 1
        self.append(value)


class Group(set[Any]):
    """A set of a class of its own."""


class Slots:
    """An object without a dictionary, one of whose attributes is private and another is empty."""

    __slots__ = ("__calls", "empty", "seen")

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.__calls = 0

    def add(self, value: Any) -> None:
        self.__calls += 1
        self.seen.append(value)


class Pair(NamedTuple):
    """A tuple of two."""

    first: list[Any]
    second: int


class Pickled:
    """An object that says how it is pickled."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        return {}


def fixed_array() -> np.ndarray:
    """An array that cannot be written, until somebody changes that."""
    array = np.zeros(2)
    array.flags.writeable = False
    return array


ACTIVATIONS: dict[str, Any] = {}
RECENT: deque[Any] = deque()
SEEN: list[Any] = []
NUMBERS = np.random.default_rng(0)


KEPT = {
    "deque": (lambda: deque(maxlen=3), lambda held, x: held.append(x)),
    "list": (list, lambda held, x: held.append(x)),
    "subclass of list": (lambda: Sequence(2), lambda held, x: held.add(x)),
    "subclass of set": (Group, lambda held, x: held.add(x)),
    "subclass of dict": (Counter, lambda held, x: held.update([x.shape])),
    "UserDict": (UserDict, lambda held, x: held.update(x=x)),
    "slots": (Slots, lambda held, x: held.add(x)),
    "tuple of a list": (lambda: Pair([], 2), lambda held, x: held.first.append(x)),
    "array": (lambda: np.zeros(2), lambda held, x: held.__iadd__(len(x))),
    "array that cannot be written": (fixed_array, lambda held, x: (held.setflags(write=True), held.__iadd__(len(x)))),
    "counter": (itertools.count, lambda held, x: next(held)),
    "namespace": (SimpleNamespace, lambda held, x: setattr(held, "seen", x)),
    "object that is pickled in its own way": (Pickled, lambda held, x: held.seen.append(x)),
    "array of Python": (lambda: array("i", [0]), lambda held, x: held.append(len(x))),
    "bytes": (lambda: bytearray(b"2"), lambda held, x: held.extend(b"1")),
    "generator of NumPy": (lambda: np.random.default_rng(0), lambda held, x: held.random()),
    "generator of Python": (lambda: random.Random(0), lambda held, x: held.random()),
    "generator of torch": (torch.Generator, lambda held, x: held.manual_seed(7)),
}
"""Objects that a network may keep, with a function that changes one in its forward pass."""


class Keeps(nn.Module):
    """A network that keeps an object, and changes it in each forward pass."""

    def __init__(self, held: Any, change: Any) -> None:
        super().__init__()
        self.linear, self.held, self.change = nn.Linear(4, 2), held, change

    def forward(self, x: Tensor) -> Tensor:
        self.change(self.held, x)
        return self.linear(x)


CHANGES = {
    "value": lambda case: case.module[0].weight.data.add_(1),
    "buffer": lambda case: case.module[1].running_mean.add_(1),
    "gradient": lambda case: case.module[0].weight.grad.add_(1),
    "no gradient": lambda case: case.module.zero_grad(set_to_none=True),
    "flag": lambda case: case.module.train(),
    "hook": lambda case: case.module[0].register_forward_hook(lambda *_: None),
    "hook of a tensor": lambda case: case.module[0].weight.register_hook(lambda grad: grad),
    "attribute": lambda case: setattr(case.module[2], "p", 0.1),
    "frozen": lambda case: case.module[0].weight.requires_grad_(False),
    "parameter": lambda case: setattr(case.module[0], "bias", nn.Parameter(case.module[0].bias.data)),
    "input": lambda case: case.inputs.add_(1),
    "random": lambda case: random.random(),
    "numpy": lambda case: np.random.rand(),
    "torch": lambda case: torch.rand(1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_comparison_itself_notices_a_change(change):
    case = small()
    before = everything(case)
    assert same(before, everything(case))
    change(case)
    assert not same(before, everything(case))


@pytest.mark.parametrize(("make", "change"), KEPT.values(), ids=KEPT)
def test_nothing_that_a_network_keeps_is_changed(make, change):
    case = Case(Keeps(make(), change), torch.rand(3, 4), loss=Tensor.sum)
    before = everything(case)
    capsbench.estimate(case, device="cpu")
    assert same(before, everything(case))
    case.module(case.inputs)
    assert not same(before, everything(case)), "the comparison notices what the network changes"


def test_twins_of_containers_are_as_they_were():
    held = (deque([1], maxlen=3), Sequence(2), Counter("aab"), Pair([1], 2), Slots(), torch.Size((2, 3)), random.Random(3))
    held[1].add("x")
    held[4].add("y")
    twins = Twins(lambda tensor, registered: tensor)
    twin = twins.of(held)
    assert [type(one) for one in twin] == [type(one) for one in held]
    assert list(twin[:4]) == list(held[:4])
    assert (twin[0].maxlen, twin[1].calls, twin[4].seen, twin[4]._Slots__calls) == (3, 3, ["y"], 1)
    assert not hasattr(twin[4], "empty")
    assert twin[6].random() == held[6].random()
    assert all(one is not other for one, other in zip(twin, held, strict=True) if not isinstance(other, torch.Size))
    assert twins.of(held[0]) is twin[0]
    for size in (2, 2**24):
        fixed = np.broadcast_to(np.zeros(1), size).view() if size > 2 else np.zeros(size)
        fixed.flags.writeable = False
        twin = twins.of(fixed)
        assert twin is not fixed
        assert not twin.flags.writeable
        assert np.array_equal(twin, fixed)
        assert np.shares_memory(twin, fixed) == (size > 2), "a large one is not copied"


def test_nothing_global_is_changed_by_hooks_and_losses():
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    seen: deque[Tensor] = deque()
    kept: dict[str, Any] = {}
    module[0].register_forward_hook(lambda one, given, out: ACTIVATIONS.update(x=out))
    module[0].register_forward_hook(lambda one, given, out, kept=kept: kept.update(x=out))
    module[1].register_forward_hook(lambda one, given, out: (RECENT.append(out), seen.append(out), NUMBERS.random())[:0] or None)

    def loss(out: Tensor, *, last: list[Tensor] = SEEN) -> Tensor:
        last.append(out)
        assert ACTIVATIONS["x"].shape == kept["x"].shape == RECENT[-1].shape
        return out.sum() + ACTIVATIONS["x"].sum()

    state = NUMBERS.bit_generator.state
    capsbench.estimate(module, torch.rand(3, 4), loss, device="cpu")
    assert (ACTIVATIONS, kept, list(RECENT), list(seen), SEEN) == ({}, {}, [], [], [])
    assert NUMBERS.bit_generator.state == state


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_nothing_of_a_network_is_changed(device):
    case = small()
    seen: list[Any] = []
    case.module[0].register_forward_hook(lambda *parts: seen.append(parts))
    before = everything(case)
    found = capsbench.estimate(case, device=device)
    assert found.peak_bytes > found.retained_bytes > 0
    assert same(before, everything(case))
    assert seen == []
    case.module(case.inputs)
    assert len(seen) == 1, "the hook is there"


class Fails(nn.Module):
    """A network whose backward or forward pass fails after it has changed all that it can."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.calls, self.seen = nn.BatchNorm1d(4), 0, []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(x)
        self.norm.weight.data.add_(1)
        random.random()
        np.random.rand()
        torch.rand(3)
        out = self.norm(x)
        if self.calls == 2:
            raise RuntimeError("not today")
        return out.sum()


def test_nothing_is_changed_by_a_failure():
    case = Case(Fails(), torch.rand(3, 4))
    before = everything(case)
    with pytest.raises(ConfigurationError, match="not today"):
        capsbench.estimate(case)
    assert same(before, everything(case))
    assert case.module.calls == 0
    assert not torch._C._len_torch_dispatch_stack()


def test_an_optimizer_is_not_touched():
    case = small()
    optimizer = torch.optim.AdamW(case.module.parameters(), lr=0.1)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    found = capsbench.estimate(case.module, case.inputs, Tensor.sum, optimizer)
    assert same(before, optimizer.state_dict())
    assert {id(one) for group in optimizer.param_groups for one in group["params"]} == set(map(id, case.module.parameters()))
    steps = 4 * len(list(case.module.parameters()))
    assert found.optimizer_bytes == 2 * found.gradient_bytes + steps


# The same bytes as a prediction's


def predicted(name: str, device: str) -> tuple[dict[str, Any], dict[str, int]]:
    """The figures of a prediction of a case of others, and its bytes by module."""
    gpu = "h100" if device == "cuda" else None
    asked = Configuration(
        model=f"helpers.networks_of_others:{name}", blocks=0, dataset=OWN_INPUTS, batch_size=None, settings=(),
        device=f"{device}:predicted", gpu=gpu,
    )  # fmt: skip
    step = trace_for(asked)
    memory = predict_memory(asked, step).memory
    return {field: getattr(memory, field) for field in FIGURES}, step.retained_by_module


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", others.NETWORKS)
def test_an_estimate_has_every_byte_of_a_prediction_and_changes_nothing(name, device):
    case = made(name)
    before = everything(case)
    found = capsbench.estimate(case, device=device)
    assert same(before, everything(case))
    figures, by_module = predicted(name, device)
    assert {field: getattr(found.memory, field) for field in FIGURES} == figures
    assert found.by_module == by_module
    assert (found.peak_bytes, found.reserved_bytes) == (figures["peak_allocated_bytes"], figures["peak_reserved_bytes"])


OPTIMIZERS = {
    "none": (None, 2),
    "class": (torch.optim.SGD, 0),
    "factory": (lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9), 1),
    "partial": (partial(torch.optim.AdamW, lr=0.1), 2),
}


@pytest.mark.parametrize(("optimizer", "copies"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers(optimizer, copies):
    found = capsbench.estimate(nn.Linear(64, 64), torch.rand(2, 64), Tensor.sum, optimizer, device="cpu")
    assert found.optimizer_bytes // found.state_bytes == copies


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.Adagrad, torch.optim.SGD, partial(torch.optim.Adam, fused=True)])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("stepped", [False, True])
def test_a_live_optimizer_is_as_one_that_is_made(kind, device, stepped):
    module, given = nn.Linear(64, 8), torch.rand(2, 64)
    live = kind(module.parameters(), lr=0.1)
    if stepped:
        module(given).sum().backward()
        live.step()
    figures = [
        capsbench.estimate(module, given, Tensor.sum, optimizer, device=device).memory
        for optimizer in (live, partial(kind, lr=0.1))
    ]
    assert figures[0] == figures[1]


def test_an_optimizer_that_steps_inside_backward_by_hooks():
    def guarded(hooks: bool):
        module = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
        for parameter in module.parameters() if hooks else ():
            optimizer = torch.optim.SGD([parameter], lr=0.1)

            def step(parameter: Tensor, optimizer: torch.optim.Optimizer = optimizer) -> None:
                parameter.grad = None

            parameter.register_post_accumulate_grad_hook(step)
        return capsbench.estimate(module, torch.rand(2, 64), Tensor.sum, torch.optim.SGD, device="cpu")

    assert guarded(hooks=False).gradient_bytes == 4 * (64 * 64 + 64) * 4
    assert guarded(hooks=True).gradient_bytes == 0


LABELS = torch.randint(8, (16,))
BATCH = {"labels": LABELS}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_labels_of_a_loss_may_be_enclosed_or_global_or_given(device):
    module, given, labels = nn.Linear(4, 8), torch.rand(16, 4), LABELS

    def by_name(out: Tensor, *, labels: Tensor = labels) -> Tensor:
        return cross_entropy(out, labels)

    ways = [
        {"loss": lambda out: cross_entropy(out, labels)},
        {"loss": lambda out: cross_entropy(out, LABELS)},
        {"loss": lambda out: cross_entropy(out, BATCH["labels"])},
        {"loss": lambda out, labels=labels: cross_entropy(out, labels)},
        {"loss": by_name},
        {"loss": cross_entropy, "targets": labels},
        {"loss": nn.CrossEntropyLoss(), "targets": labels},
    ]
    found = [capsbench.estimate(module, given, device=device, **way) for way in ways]
    assert len({one.retained_bytes for one in found}) == 1
    assert len({one.largest("batch_size", "1GiB") for one in found}) == 1


def test_evaluation_of_a_part_is_kept():
    module, given = nn.Sequential(nn.Linear(64, 64), nn.Dropout()), torch.rand(8, 64)
    both = capsbench.estimate(module, given, Tensor.sum, device="cpu").retained_bytes
    module[1].eval()
    assert capsbench.estimate(module, given, Tensor.sum, device="cpu").retained_bytes < both
    module.eval()
    assert capsbench.estimate(module, given, Tensor.sum, device="cpu").retained_bytes == both, "a training step trains"
    assert not module.training


def test_tied_weights_and_meta_tensors():
    def network() -> nn.Module:
        module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        module[2].weight = module[0].weight
        return module

    found = capsbench.estimate(network(), torch.rand(8, 64), Tensor.sum)
    assert found.state_bytes == (64 * 64 + 2 * 64) * 4
    with torch.device("meta"):
        module, given = network(), torch.rand(8, 64)
    assert capsbench.estimate(module, given, Tensor.sum).memory == found.memory


@pytest.mark.slow
def test_a_compiled_network_is_guessed():
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
    plain = capsbench.estimate(module, torch.rand(8, 64), Tensor.sum)
    for compiled in (torch.compile(module), copy.deepcopy(module)):
        if compiled is not module and not hasattr(compiled, "_orig_mod"):
            compiled.compile()
        found = capsbench.estimate(compiled, torch.rand(8, 64), Tensor.sum)
        assert found.retained_bytes == plain.retained_bytes
        assert "torch.compile" in " ".join(found.notes)
        assert set(found.certainty.values()) == {"guessed"}


# A large network

HUGE = """
import resource, time, torch
from torch import nn
from torch.nn.utils import skip_init
import capsbench

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
module = nn.Sequential(*(skip_init(nn.Linear, 8192, 8192) for _ in range(16)))
assert sum(one.nbytes for one in module.parameters()) > 4 * 2**30
capsbench.estimate(nn.Linear(2, 2), torch.rand(2, 2), torch.Tensor.sum)
small = nn.Sequential(*(nn.Linear(8, 8) for _ in range(16)))
began = time.process_time()
capsbench.estimate(small, torch.rand(4, 8), torch.Tensor.sum, gpu="h100")
before, between = peak(), time.process_time()
found = capsbench.estimate(module, torch.rand(4, 8192), torch.Tensor.sum, gpu="h100")
assert found.peak_bytes > 16 * 2**30
print(peak() - before, (time.process_time() - between) / (between - began))
"""


@pytest.mark.slow
def test_a_network_of_four_gigabytes_takes_neither_memory_nor_time():
    printed = subprocess.run([sys.executable, "-c", HUGE], capture_output=True, text=True, check=True).stdout
    nbytes, times_as_long = map(float, printed.split())
    assert nbytes < 100 * 2**20
    assert times_as_long < 10, "as a network of as many small layers"


# What fits


def test_what_fits():
    found = capsbench.estimate(nn.Linear(1024, 1024), torch.rand(8, 1024), Tensor.sum, device="cpu")
    assert found.fits(found.peak_bytes)
    assert not found.fits(found.peak_bytes - 1)
    assert found.fits("1GiB")
    assert not found.fits("1MiB")


@pytest.mark.parametrize(("device", "capacity"), [("cpu", "256MiB"), ("cuda", "1GiB"), ("cuda", None)])
def test_the_largest_batch_fits_and_the_next_one_does_not(device, capacity):
    labels = torch.randint(10, (4,))
    module = nn.Sequential(nn.Linear(4096, 4096), nn.BatchNorm1d(4096), nn.ReLU(), nn.Linear(4096, 10))
    found = capsbench.estimate(
        module, (torch.rand(4, 4096),), lambda out: cross_entropy(out, labels), torch.optim.SGD, device=device
    )
    largest = found.largest("batch_size", capacity)

    def at(count: int) -> capsbench.MemoryEstimate:
        more = torch.zeros(count, dtype=torch.int64)
        return capsbench.estimate(
            module,
            (torch.empty(count, 4096, device="meta"),),
            lambda out: cross_entropy(out, more),
            torch.optim.SGD,
            device=device,
        )

    assert largest > 4
    assert at(largest).fits(capacity)
    assert not at(largest + 1).fits(capacity)


def test_not_even_one_sample_fits():
    found = capsbench.estimate(nn.Linear(1024, 1024), torch.rand(8, 1024), Tensor.sum, device="cpu")
    assert found.largest("batch_size", "2MiB") == 0


# Words


def test_an_estimate_can_be_read():
    module = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
    found = capsbench.estimate(module, torch.rand(32, 64), Tensor.sum, gpu="a100")
    text = repr(found)
    for words in ("Sequential on a100", "retained", "16.00 KiB", "exact", "reserved", "modelled", "fits 40.00 GiB"):
        assert words in text
    assert found._repr_html_().startswith("<table>")
    assert found.certainty["retained_bytes"] == "exact"
    assert found.certainty["peak_bytes"] == found.certainty["reserved_bytes"] == "modelled"
    assert found.certainty["process_bytes"] == "guessed"
    timeline = found.timeline()
    assert timeline.peak.allocated_bytes >= found.memory.peak_requested_bytes
    assert "Sequential: one training step, predicted" in timeline_text(timeline)


LINEAR = nn.Linear(4, 4)
WRONG = {
    "no network": (lambda: capsbench.estimate(4, torch.rand(2, 4)), "`model` is int"),
    "no inputs": (lambda: capsbench.estimate(LINEAR), "`inputs` is missing"),
    "a case and inputs": (lambda: capsbench.estimate(small(), torch.rand(2)), "a case has its own inputs"),
    "no loss": (lambda: capsbench.estimate(LINEAR, torch.rand(2, 4)), "which is not a loss"),
    "a loss that is a number": (lambda: capsbench.estimate(LINEAR, torch.rand(2, 4), 3), "`loss` is int"),
    "an optimizer that is a number": (lambda: capsbench.estimate(LINEAR, torch.rand(2, 4), Tensor.sum, 3), "`optimizer` is int"),
    "inputs that do not fit": (lambda: capsbench.estimate(LINEAR, torch.rand(2, 5), Tensor.sum), "'Linear'"),
    "an unknown GPU": (lambda: capsbench.estimate(LINEAR, torch.rand(2, 4), gpu="h1000"), "`gpu` 'h1000' is not known"),
    "an unknown device": (lambda: capsbench.estimate(LINEAR, torch.rand(2, 4), device="tpu"), "'tpu' is not a kind of device"),
    "a GPU for a CPU": (lambda: capsbench.estimate(LINEAR, torch.rand(2, 4), gpu="h100", device="cpu"), "cannot be combined"),
    "an unknown precision": (lambda: capsbench.estimate(LINEAR, torch.rand(2, 4), precision="fp8"), "`precision` 'fp8'"),
    "an unknown time of the optimizer's step": (
        lambda: capsbench.estimate(LINEAR, torch.rand(2, 4), Tensor.sum, optimizer_step="in_backward"),
        "`optimizer_step` 'in_backward'",
    ),
    "another's parameters": (
        lambda: capsbench.estimate(LINEAR, torch.rand(2, 4), Tensor.sum, torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)),
        "not parameters of the network",
    ),
    "wrapped": (lambda: capsbench.estimate(nn.DataParallel(LINEAR), torch.rand(2, 4), Tensor.sum), "DataParallel"),
    "no capacity": (
        lambda: capsbench.estimate(LINEAR, torch.rand(2, 4), Tensor.sum, device="cpu").fits(),
        "no memory of its own",
    ),
    "another name": (
        lambda: capsbench.estimate(LINEAR, torch.rand(2, 4), Tensor.sum).largest("length"),
        "cannot search for 'length'",
    ),
    "no batch": (
        lambda: (
            capsbench.estimate(
                nn.Bilinear(4, 4, 1), (torch.rand(2, 4), torch.rand(1, 4).expand(2, 4)[:2]), Tensor.sum, targets=None
            )
            and capsbench.estimate(LINEAR, torch.rand(2, 4), lambda out, w: (out * w).sum(), targets=torch.rand(4)).largest()
        ),
        "first dimensions of 2, 4",
    ),
}


@pytest.mark.parametrize(("call", "words"), WRONG.values(), ids=WRONG)
def test_wrong_use_has_two_lines(call, words):
    with pytest.raises(ConfigurationError) as raised:
        call()
    assert words in raised.value.what
    assert len(str(raised.value).splitlines()) == 2
