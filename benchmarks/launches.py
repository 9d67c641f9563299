"""Kernel launches and waits of capsule layers and blocks on a CUDA device, counted without one.

    python -m benchmarks.launches            prints the tables
    python -m benchmarks.launches --write    keeps them as benchmarks/launches.md

A step is followed on CUDA tensors without values. A *launch* is an operator of torch that computes or copies on the device (views
and empty tensors do not), or the start of a Triton kernel; a library may start more than one kernel for an operator. A *wait* is
a read of a value, for which the host waits until the device has finished everything before it.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from benchmarks.command_line import parser_of, print_page
from benchmarks.layers import LAYERS
from capsbench.models.layers import CapsuleLayer
from capsbench.models.networks import MoCapsNet, ResCapsNet
from capsbench.reversible import MomentumStack, drift, pair
from capsbench.routing.triton import operators
from capsbench.tracing.fake_cuda import fake_cuda
from capsbench.tracing.fakes import Shapes, made_fake
from capsbench.tracing.known import Values
from capsbench.tracing.operator_calls import Call, Operators, Trait, is_composite, tensors_in, written_in_torch

TABLE = Path(__file__).with_suffix(".md")
DEVICE = torch.device("cuda")

_NOT_STARTED = {
    getattr(torch.ops.aten, name)
    for name in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view")
}
"""Operators that make a tensor without starting a kernel."""


BEFORE: dict[str, tuple[int, ...]] = {
    "first, rba": (23, 16, 34, 18),
    "first, sda": (42, 17, 54, 20),
    "block, rba": (23, 17, 35, 19),
    "block, sda": (42, 18, 55, 21),
    "classes, rba": (23, 17, 35, 19),
    "classes, sda": (42, 18, 55, 21),
    "ResCapsNet, stored": (48, 36, 0, 0),
    "MoCapsNet, float": (50, 80, 0, 2),
    "MoCapsNet, float, Σv kept": (50, 48, 0, 2),
    "MoCapsNet, segmented": (50, 80, 0, 4),
    "MoCapsNet, segmented, Σv kept": (50, 48, 0, 4),
    "MoCapsNet, exact": (102, 108, 1, 2),
    "MoCapsNet, exact, Σv kept": (102, 76, 1, 2),
}
"""Counts of the same rows while torch summed the chunks of a round and squashed, and computed the exact inverse."""


class Counts(NamedTuple):
    """Launches and waits of forward and of backward."""

    forward: int
    backward: int
    forward_waits: int
    backward_waits: int

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


class Launches(Operators):
    """A mode that counts launches, by name, and waits, inside `counting`."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.waits = 0

    def run(self, call: Call) -> Any:
        """Run an operator on shapes, and count what it starts."""
        name = call.func._schema.name
        if call.func.namespace == "prim":
            return call.run()  # a query, such as the device of a tensor
        inside = written_in_torch(name)
        if inside is not None:
            with self:
                return inside(*call.args, **call.kwargs)
        if is_composite(call.func):
            with self:
                return call.func.decompose(*call.args, **call.kwargs)
        on_device = any(one.is_cuda for one in call.tensors)
        if Trait.READS in call.traits:
            self.waits += on_device
            return 0
        out = call.run()
        made = tensors_in(out)
        if on_device and any(not one.is_cuda for one in made):
            names = [argument.name for argument in call.func._schema.arguments]
            self.waits += not (dict(zip(names, call.args, strict=False)) | call.kwargs).get("non_blocking", False)
        if (on_device or any(one.is_cuda for one in made)) and self._starts(call, made):
            self.launches[name] += 1
        return out

    @staticmethod
    def _starts(call: Call, made: list[Tensor]) -> bool:
        if call.func.is_view or call.packet in _NOT_STARTED:
            return False
        if call.func._schema.is_mutable:
            return True
        # Some operators return a view where they can, such as `_to_copy` never and `reshape` often.
        given = {one.untyped_storage()._cdata for one in call.tensors}
        return any(one.untyped_storage()._cdata not in given for one in made)


@contextmanager
def counting() -> Iterator[Launches]:
    """Count the launches and waits of what runs inside, on CUDA tensors without values."""
    counts = Launches()

    def started(name: str, *_: Any) -> None:
        counts.launches[name] += 1

    def zeros(tensor: Tensor) -> list[float]:
        # All values of a tensor are read at once.
        counts.waits += tensor.is_cuda
        return [0.0] * tensor.numel()

    with ExitStack() as entered:
        entered.enter_context(fake_cuda())
        entered.enter_context(mock.patch.object(operators, "launch", started))
        # Values are checked as they are in a real step.
        for module in (drift, pair):
            entered.enter_context(mock.patch.object(module, "has_values", return_value=True))
        entered.enter_context(mock.patch.object(FakeTensor, "tolist", zeros))
        entered.enter_context(mock.patch.object(torch.cuda, "Event"))
        entered.enter_context(mock.patch.object(drift, "_UNSETTLED", deque()))
        entered.enter_context(Shapes("cuda"))
        entered.enter_context(counts)
        yield counts


Pass = Callable[[], tuple[Any, Callable[[], object]]]
"""A forward pass, which returns its result and the backward pass of it."""


def counted(make: Callable[[], Pass]) -> Counts:
    """Counts of the forward pass that `make` returns, and of its backward pass."""
    with counting() as counts:
        forward = make()
        found = []
        backward: Callable[[], object] | None = None
        for _ in range(2):
            counts.launches.clear()
            counts.waits = 0
            if backward is None:
                out, backward = forward()
            else:
                backward()
            found += counts.launches.total(), counts.waits
        del out
    return Counts(found[0], found[2], found[1], found[3])


def of_layer(name: str, routing: str, way: str) -> Counts:
    """Counts of one layer of the paper's network.

    Args:
        name: one of `LAYERS`.
        routing: routing algorithm.
        way: `stored` under autograd; `reversible` with the value computed again in backward; `kept` without the rounds there.
    """
    sizes = LAYERS[name]

    def make() -> Pass:
        layer = CapsuleLayer(*sizes[1:], routing=routing, kernel="triton")
        layer = made_fake(layer, DEVICE, Values())
        x = torch.empty(sizes[:3], device=DEVICE, requires_grad=way == "stored")
        grad = torch.empty(sizes.batch, *sizes[3:], device=DEVICE)

        def forward() -> tuple[Any, Callable[[], object]]:
            if way == "stored":
                out = layer(x)
                return out, lambda: torch.autograd.grad(out, [x, *layer.parameters()], grad)
            with torch.no_grad():
                out, kept = layer.forward_keeping(x) if way == "kept" else (layer(x), ())
            return out, lambda: layer.forward_and_vjp(x, grad, kept)

        return forward

    return counted(make)


STACKS: dict[str, Callable[..., nn.Module]] = {
    "ResCapsNet, stored": ResCapsNet,
    **{
        f"MoCapsNet, {inverse}{words}": partial(MoCapsNet, inverse=inverse, memory=memory)
        for inverse in ("float", "segmented", "exact")
        for memory, words in (("reversible", ""), ("reversible-kept", ", Σv kept"))
    },
    **{
        f"MoCapsNet, {inverse}, published rule": partial(MoCapsNet, inverse=inverse, rule="published")
        for inverse in ("float", "segmented")
    },
}
"""Stacks of blocks, by the network that has them and their way back."""


def of_stack(name: str, blocks: int) -> Counts:
    """Counts of the blocks of a network at batch 128, without the rest of the network."""
    sizes = LAYERS["block"]

    return _of_module(lambda: STACKS[name]((1, 28, 28), 10, blocks, kernel="triton", decoder=False).blocks, sizes[:3])


def of_functions(functions: list[nn.Module]) -> Counts:
    """Counts of a reversible stack of functions of 8 features."""
    return _of_module(lambda: MomentumStack(functions, inverse="float"), (16, 8))


def _of_module(made: Callable[[], nn.Module], shape: tuple[int, ...]) -> Counts:
    def make() -> Pass:
        module = made_fake(made(), DEVICE, Values())
        x = torch.empty(shape, device=DEVICE, requires_grad=True)
        grad = torch.empty_like(x, requires_grad=False)

        def forward() -> tuple[Any, Callable[[], object]]:
            out = module(x)
            return out, lambda: torch.autograd.grad(out, [x, *module.parameters()], grad)

        return forward

    return counted(make)


def of_block(name: str) -> Counts:
    """Counts that one block adds to a stack."""
    return of_stack(name, 3) - of_stack(name, 2)


def tables() -> Iterator[str]:
    """The page, line by line."""
    yield "# Launches and waits on CUDA"
    yield ""
    yield "Made by `python -m benchmarks.launches --write`; its docstring says what is counted. Kernel `triton`, batch 128, the"
    yield "layers of the paper's network for 28×28 pixels, three rounds of routing. In brackets stands the count from before"
    yield "kernels summed chunks and squashed, took all rounds of a small layer at once, and moved the exact inverse."
    yield ""
    yield "## One layer"
    yield ""
    yield "*Stored* is plain autograd. *Reversible* computes the value again in backward, together with the gradients; *Σv kept*"
    yield "does so without the rounds of routing. No layer waits."
    yield ""
    yield "| layer | forward | backward stored | backward reversible | backward, Σv kept |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name in LAYERS:
        for routing in ("rba", "sda"):
            ways = [of_layer(name, routing, way) for way in ("stored", "reversible", "kept")]
            assert not any(way.forward_waits or way.backward_waits for way in ways)
            yield _row(f"{name}, {routing}", [ways[0].forward, *(way.backward for way in ways)])
    yield ""
    yield "## One block, and the waits of a step"
    yield ""
    yield "A block is two layers with what its network does between them. *Waits* are those of a stack of 8 blocks in one step."
    yield "The drift is copied while the device works, and read in a later step. The one wait of *exact* reads the largest"
    yield "magnitudes, and cannot be put off: if one is out of range, `auto` computes the step again with `segmented`, and what"
    yield "follows the stack needs the right x. It waits for what has been queued so far; then the queue is filled again."
    yield ""
    yield "| blocks of | launches forward | launches backward | waits forward | waits backward |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name in STACKS:
        block, stack = of_block(name), of_stack(name, 8)
        yield _row(name, [block.forward, block.backward, stack.forward_waits, stack.backward_waits])


def _row(name: str, found: list[int]) -> str:
    """A line of a table: each count, with the former one in brackets if it is known."""
    before = [f" ({one})" for one in BEFORE[name]] if name in BEFORE else [""] * len(found)
    cells = [f"{now}{then}" for now, then in zip(found, before, strict=True)]
    return f"| {' | '.join([name, *cells])} |"


def main() -> None:
    """The command."""
    print_page(tables(), TABLE, write=parser_of(__doc__, TABLE).parse_args().write)


if __name__ == "__main__":
    main()
