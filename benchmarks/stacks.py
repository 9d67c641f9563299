"""Time of reversible stacks alone, forward and backward, over the same functions with all activations stored.

    python -m benchmarks.stacks [--only capsules,depths,floors,tiny] [--write]

prints four tables, and with `--write` puts them into `benchmarks/stacks.md`: every inverse, keeping nothing and keeping Σv,
on blocks of 32 capsules of dimension 8; `inverse='auto'`, which is what a user gets, from 1 block to 1,000; the floor of both,
which is the time of the compiled kernels alone, called for one layer again and again; and the overhead for each of a hundred
functions that compute nearly nothing, in addition to the parts that no stack can save: torch's own evaluation of such a
function with a graph, and the engine's call for its gradients. All ways of one row are timed in turn in one process with a
quiet malloc and subnormal numbers flushed; a ratio is the median of the ratios within each round. Takes about three minutes on
two cores; run nothing else meanwhile.
"""

import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from benchmarks.command_line import parser_of, print_page
from benchmarks.limits import in_turn, ratio
from capsbench.measure.variables import variables_of
from capsbench.models.layers import CapsuleLayer
from capsbench.models.networks import BlockStack
from capsbench.reversible import DriftWarning, MomentumStack
from capsbench.routing import resolve_kernel
from capsbench.routing.compiled import CompiledPasses
from capsbench.routing.rounds import Rounds

TARGET = Path(__file__).with_suffix(".md")
GAMMA = 0.9
INVERSES = ("float", "segmented", "exact", "auto")
STRATEGIES = {"nothing kept": "reversible", "Σv kept": "reversible-kept"}
TINY = 100
"""Number of tiny functions."""


def step(stack: nn.Module, x: Tensor, grad: Tensor) -> None:
    """Forward and backward."""
    stack.zero_grad()
    stack(x.clone().requires_grad_()).backward(grad)


def capsule_layers(blocks: int) -> list[nn.Module]:
    """Two layers for each block, as in the paper's networks."""
    torch.manual_seed(0)
    return [CapsuleLayer(32, 8, 32, 8, kernel=resolve_kernel("auto")) for _ in range(2 * blocks)]


def capsule_steps(layers: list[nn.Module], batch: int, ways: dict[str, tuple[str, str]]) -> dict[str, Callable[[], object]]:
    """A step of ResCapsNet's stored stack, and one of each way, given as a memory strategy and an inverse."""
    x, grad = torch.randn(2, batch, 32, 8)
    stacks: dict[str, nn.Module] = {"stored": BlockStack(layers, shortcut=True, memory="stored")}
    stacks |= {name: MomentumStack(layers, GAMMA, memory, inverse, segment=2) for name, (memory, inverse) in ways.items()}
    return {name: partial(step, stack, x, grad) for name, stack in stacks.items()}


def capsules() -> Iterator[str]:
    """Every inverse, at the depths and batch sizes of a usual run."""
    yield f"| batch | blocks | kept | {' | '.join(INVERSES)} |"
    yield "| --- | --- | --- |" + " --- |" * len(INVERSES)
    for batch, blocks, rounds in ((32, 20, 40), (32, 40, 20), (128, 20, 20), (128, 40, 10)):
        ways = {f"{kept} {inverse}": (memory, inverse) for kept, memory in STRATEGIES.items() for inverse in INVERSES}
        taken = in_turn(capsule_steps(capsule_layers(blocks), batch, ways), rounds)
        for kept in STRATEGIES:
            found = " | ".join(f"{ratio(taken, f'{kept} {inverse}', 'stored'):.2f}" for inverse in INVERSES)
            yield f"| {batch} | {blocks} | {kept} | {found} |"


def depths() -> Iterator[str]:
    """The choice of `auto`, at every scale of depth."""
    yield "| blocks | `auto` is | nothing kept | Σv kept |"
    yield "| --- | --- | --- | --- |"
    for blocks, rounds in ((1, 200), (2, 100), (4, 60), (8, 40), (9, 40), (16, 20), (40, 20), (100, 10), (300, 6), (1000, 4)):
        layers = capsule_layers(blocks)
        taken = in_turn(capsule_steps(layers, 32, {kept: (memory, "auto") for kept, memory in STRATEGIES.items()}), rounds)
        found = " | ".join(f"{ratio(taken, kept, 'stored'):.2f}" for kept in STRATEGIES)
        yield f"| {blocks} | {MomentumStack(layers, GAMMA).resolved_inverse()} | {found} |"


def floors() -> Iterator[str]:
    """Ratios of the kernels' time alone."""
    yield "| batch | nothing kept | Σv kept |"
    yield "| --- | --- | --- |"
    (layer,) = capsule_layers(1)[:1]
    for batch in (32, 128):
        x, grad = torch.randn(2, batch, 32, 8)
        weight = layer.get_parameter("weight").detach()
        alone, rounds = CompiledPasses(x, weight, limited=False), Rounds()
        _, s, *state = alone.last_round(rounds, [], 3)
        taken = in_turn(
            {
                "forward": partial(alone.last_round, rounds, [], 3),
                "stored": partial(alone.vjp, tuple(state), s, grad, True, True),
                "nothing kept": partial(alone.rounds_and_vjp, rounds, [], 3, grad),
                "Σv kept": partial(alone.value_and_vjp, tuple(state), [], grad),
            },
            300,
        )
        medians = {name: statistics.median(times) for name, times in taken.items()}
        stored = medians["forward"] + medians["stored"]
        found = [f"{(medians['forward'] + medians[kept]) / stored:.2f}" for kept in STRATEGIES]
        yield f"| {batch} | {' | '.join(found)} |"


def tiny() -> Iterator[str]:
    """Microseconds for each of a hundred functions `nn.Linear(8, 8)`, on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    functions = [nn.Linear(8, 8) for _ in range(TINY)]
    stacks = {"stored": MomentumStack(functions, GAMMA, "stored")}
    stacks |= {inverse: MomentumStack(functions, GAMMA, inverse=inverse) for inverse in ("float", "segmented", "exact")}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in stacks}
    x, grad = torch.randn(2, 4, 8)
    for turn in range(60):
        for name, stack in stacks.items():
            stack.zero_grad()
            given = x.clone().requires_grad_()
            began = time.perf_counter()
            output = stack(given)
            between = time.perf_counter()
            with warnings.catch_warnings():
                # A hundred functions are past the depth that `float` is meant for.
                warnings.simplefilter("ignore", DriftWarning)
                output.backward(grad)
            if turn >= 10:
                taken[name].append((between - began, time.perf_counter() - between))
    yield "| | forward, µs a function | backward | backward, over stored |"
    yield "| --- | --- | --- | --- |"
    medians = {name: [1e6 / TINY * statistics.median(part) for part in zip(*both, strict=True)] for name, both in taken.items()}
    for name, (forward, backward) in medians.items():
        yield f"| {name} | {forward:.0f} | {backward:.0f} | {backward - medians['stored'][1]:.0f} |"
    evaluation, engine = [1e6 * statistics.median(part) for part in zip(*of_torch(functions[0], x, grad), strict=True)]
    yield f"| torch alone: the function with a graph, and the engine's call | | {evaluation:.0f} + {engine:.0f} | |"
    yield from BOUND


BOUND = (
    "",
    "No stack can save the last row: on the way back each function is evaluated again with a graph, and autograd's engine is",
    "asked for its gradients, both outside the stack's own loop here. The rest is a walk through that graph, which must be",
    "the one of forward, the steps of x, v and their gradients, and the Python around them. The whole table grows with what else",
    "the machine does: compare rows with `stored`.",
)
"""Text that says what bounds the overhead."""


def of_torch(function: nn.Module, x: Tensor, grad: Tensor) -> Iterator[tuple[float, float]]:
    """Seconds of a function's evaluation with a graph, and of `autograd.grad`'s call of the engine for it."""
    parameters = tuple(function.parameters())
    for _ in range(2000):
        given = x.detach().requires_grad_()
        began = time.perf_counter()
        value = function(given)
        between = time.perf_counter()
        Variable._execution_engine.run_backward(
            (value,), (grad,), False, False, (given, *parameters), allow_unreachable=True, accumulate_grad=False
        )
        yield between - began, time.perf_counter() - between


PARTS = {
    "capsules": (capsules, "Every inverse: time over ResCapsNet's stored stack"),
    "depths": (depths, "What a user gets: `inverse='auto'`, batch 32, time over ResCapsNet's stored stack"),
    "floors": (floors, "Floors: time of the compiled kernels alone, over that of the stored stack's"),
    "tiny": (tiny, "Overhead: a hundred functions `nn.Linear(8, 8)`, batch 4, one thread"),
}


def lines(only: str) -> Iterator[str]:
    """The page, line by line; each part has a process of its own, since glibc reads its malloc's settings at the start of one."""
    yield "# Time of reversible stacks"
    yield ""
    yield f"Made by `python -m benchmarks.stacks --write`, {torch.get_num_threads()} CPU threads, torch {torch.__version__},"
    yield f"kernel `{resolve_kernel('auto')}`; its docstring says what is measured, and `benchmarks/inverses.md` has the bytes."
    for part in only.split(","):
        yield ""
        yield f"## {PARTS[part][1]}"
        yield ""
        command = [sys.executable, "-m", "benchmarks.stacks", "--rows", part]
        with subprocess.Popen(command, env=variables_of("time"), stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            yield from (line.rstrip("\n") for line in child.stdout)
        if child.returncode:
            raise SystemExit(f"the part {part!r} ended with status {child.returncode}.\nIts traceback is above.")


def main() -> None:
    """The command line."""
    parser = parser_of(__doc__, TARGET)
    parser.add_argument("--only", default=",".join(PARTS), help="a comma list of " + ", ".join(PARTS))
    parser.add_argument("--rows", choices=PARTS, help="the bare table of one part, in this process")
    options = parser.parse_args()
    if options.rows:
        torch.set_flush_denormal(True)
        for line in PARTS[options.rows][0]():
            print(line, flush=True)
        return
    print_page(lines(options.only), TARGET, write=options.write)


if __name__ == "__main__":
    main()
