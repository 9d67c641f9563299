"""Performance of the operators compared with the published memory pattern, and with the goals that this project set itself.

    python -m benchmarks.limits [--only layers,step,blocks,depth,wide] [--write]

prints the rows, and with `--write` puts them into `benchmarks/limits.md`. Ratios only, of medians taken in
turn in one process (A B A B), with a heap that keeps its memory (`QUIET_MALLOC`) and subnormal numbers flushed, as every
timing process of `capsbench run`; memory is counted by fresh processes, as there too. Each part has a process of its own,
because the heap that an earlier part left moved a ratio by more than its limit's margin. Takes about eight minutes on two
cores; run nothing else meanwhile.
"""

import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import bootstrap
from torch import Tensor, nn

from benchmarks.command_line import parser_of, print_page
from benchmarks.inverses import OF_PAIR, error, train_step
from benchmarks.layers import LAYERS, Layer, make_step, peak_bytes, step
from capsbench.measure.cell import run_pass
from capsbench.measure.messages import Request
from capsbench.measure.variables import variables_of
from capsbench.records import Configuration, MemoryFigures
from capsbench.reversible import MomentumStack
from capsbench.routing import resolve_kernel
from capsbench.sizes import MIB
from capsbench.workload import Workload

TARGET = Path(__file__).with_suffix(".md")
DEEP, GAMMA = 2000, 0.9
EXPLAINED = """\
*Published* is the memory pattern of the published routing in this package's network (`kernel='published'`), or the paper's
own figure where it is named; *asked for* is the goal that this project set itself. The *first layer* of capsules follows the
convolutions, a *block layer* is one of the two in a block, and the *classes layer* is the last. *Σv kept* is the memory
strategy `reversible-kept`, and γ is the factor of MoCapsNet's momentum.

The Triton kernels are checked against `reference` by Triton's interpreter, and compiled ahead of time for sm_80 and sm_90
without spills ([registers and shared memory](triton.md)). They have not been timed on a GPU yet; `tox -e cuda` does that.

"""


class Row(NamedTuple):
    """One line of the table."""

    what: str
    published: str
    here: str
    limit: str


def in_turn(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each function, taken one after the other in every round, after one round to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if turn:
                taken[name].append(time.perf_counter() - began)
    return taken


def ratio(taken: dict[str, list[float]], name: str, to: str) -> float:
    """The median of the ratios within each round."""
    return statistics.median(mine / theirs for mine, theirs in zip(taken[name], taken[to], strict=True))


def of_medians(mine: "np.ndarray[Any, Any]", theirs: "np.ndarray[Any, Any]") -> str:
    """The ratio of two medians taken in the same rounds, with the interval that the rounds leave it (bootstrap, 95 %)."""

    def value(one: "np.ndarray[Any, Any]", other: "np.ndarray[Any, Any]", axis: int) -> "np.ndarray[Any, Any]":
        return np.median(one, axis) / np.median(other, axis)

    found = bootstrap((mine, theirs), value, paired=True, vectorized=True, method="percentile", rng=0).confidence_interval
    return f"{value(mine, theirs, 0):.2f} ({found.low:.2f} to {found.high:.2f})"


def memory(**options: object) -> MemoryFigures:
    """Bytes of a step, counted in a process of its own."""
    given = {
        "dataset": "sample",
        "batch_size": 128,
        "device": "cpu",
        "kernel": resolve_kernel("auto"),
        "routing": "rba",
        **options,
    }
    reply = run_pass(Request(configuration=Configuration.model_validate(given), what="memory", samples=5), 1800)
    if reply.memory is None:
        raise SystemExit(f"{options}: {reply.message}")
    return reply.memory


def workload(**options: object) -> Workload:
    """A network, ready to step."""
    given = {"dataset": "sample", "device": "cpu", "kernel": resolve_kernel("auto"), "routing": "rba", **options}
    return Workload(Configuration.model_validate(given))


def layers() -> Iterator[Row]:
    """Time and peak of single layers."""
    for routing in ("rba", "sda-published"):
        for name, rounds, limit in (("first", 5, "≤ 1/15"), ("block", 30, "≤ 1/8"), ("classes", 30, "")):
            layer: Layer = LAYERS[name]
            kernels = ("published", "recompute", "compiled")
            made = make_step(layer, routing)
            taken = in_turn({kernel: partial(step, *made, routing, kernel) for kernel in kernels}, rounds)
            faster = ", ".join(f"1/{ratio(taken, 'published', kernel):.1f} {kernel}" for kernel in kernels[1:])
            yield Row(f"{name} layer, {routing}: forward + backward, time", "1", faster, limit)
            if name == "first":
                given = made.inputs.numel() + made.weight.numel()
                above = {kernel: (peak_bytes(layer, kernel, routing) - 4 * given) / MIB for kernel in kernels}
                here = ", ".join(f"{above[kernel]:.2f} MiB {kernel}" for kernel in kernels[1:])
                what = f"{name} layer, {routing}: peak above inputs, weights and their gradients"
                yield Row(what, f"{above['published']:,.0f} MiB", here, "≤ 7 MiB")


def whole_step() -> Iterator[Row]:
    """The whole training step at 28×28, batch 128, 8 blocks."""
    published = memory(model="mocapsnet", blocks=8, kernel="published", front="plain")
    for name, limit, options in (
        ("", "≤ 235 MiB", {}),
        (", optimizer stepping inside backward", "≤ 200 MiB", {"optimizer_step": "backward"}),
    ):
        found = memory(model="mocapsnet", blocks=8, front="chunked", **options)
        yield Row(
            f"training step, 8 blocks: peak allocated{name}",
            f"{published.peak_allocated_bytes / MIB:,.0f} MiB",
            f"{found.peak_allocated_bytes / MIB:.1f} MiB",
            limit,
        )
    ours = workload(model="mocapsnet", blocks=8, batch_size=128, front="chunked")
    theirs = workload(model="mocapsnet", blocks=8, batch_size=128, front="plain", kernel="published")
    first, second = nn.Conv2d(1, 256, 9), nn.Conv2d(256, 256, 9, stride=2)
    images = ours.case.inference

    def convolutions() -> None:
        second(torch.relu(first(images))).sum().backward()
        first.zero_grad()
        second.zero_grad()

    taken = in_turn({"convolutions": convolutions, "here": ours.train_step, "published": theirs.train_step}, 7)
    yield Row(
        "the same step's time, over the two convolutions alone",
        f"{ratio(taken, 'published', 'convolutions'):.2f}",
        f"{ratio(taken, 'here', 'convolutions'):.2f}",
        "≤ 1.15",
    )


def blocks() -> Iterator[Row]:
    """The cost of a block: time of MoCapsNet over ResCapsNet, and retained bytes."""
    ways = {
        "stored": {"model": "rescapsnet", "memory": "stored"},
        "reversible": {"model": "mocapsnet", "memory": "reversible", "inverse": "float"},
        "reversible-kept": {"model": "mocapsnet", "memory": "reversible-kept", "inverse": "float"},
        # Past 8 blocks `auto` is `exact`.
        "exact": {"model": "mocapsnet", "memory": "reversible", "inverse": "exact"},
        "exact-kept": {"model": "mocapsnet", "memory": "reversible-kept", "inverse": "exact"},
    }
    made = {(way, deep): workload(blocks=deep, batch_size=32, **options) for way, options in ways.items() for deep in (8, 40)}
    taken = in_turn({f"{way} {deep}": one.train_step for (way, deep), one in made.items()}, 61)
    cost = {way: np.subtract(taken[f"{way} 40"], taken[f"{way} 8"]) for way in ways}
    for way, limit, kept in (
        ("reversible", "≤ 1.4", "nothing retained"),
        ("reversible-kept", "≤ 1.15", "Σv kept"),
        ("exact", "≤ 1.5", "as `auto` past 8 blocks, nothing retained"),
        ("exact-kept", "≤ 1.25", "as `auto` past 8 blocks, Σv kept"),
    ):
        yield Row(
            f"training time per block, MoCapsNet {kept}, over ResCapsNet stored",
            "1.8 (paper)",
            of_medians(cost[way], cost["stored"]),
            limit,
        )
    for routing, published in (("rba", "0.88 MiB (its code)"), ("sda", "—")):
        added = [
            memory(model="mocapsnet", blocks=deep, routing=routing, inverse="float", batch_size=32).retained_bytes
            for deep in (2, 8)
        ]
        yield Row(f"retained bytes per added block, reversible, {routing}", published, f"{(added[1] - added[0]) / 6:g}", "0")


def depth() -> Iterator[Row]:
    """Gradients after 2,000 layers."""
    truth = train_step(DEEP, GAMMA, 0.1, "stored", torch.float64).gradients
    stored = error(train_step(DEEP, GAMMA, 0.1, "stored").gradients, truth)
    for way in ("exact", "segmented"):
        found = train_step(DEEP, GAMMA, 0.1, way)
        yield Row(
            f"gradient error against float64, 1,000 blocks, {way}, over float32 stored",
            "lost past 60 blocks by a float inverse",
            f"{error(found.gradients, truth) / stored:.2f}",
            "≤ 3",
        )
        if way == "exact":
            layers_alone = (found.bits - OF_PAIR[way]) / DEEP
            said = f"{layers_alone:.3f} (with the last x and v {found.bits / DEEP:.3f})"
            yield Row("retained bits per element and layer, exact, γ 0.9", "—", said, "≤ 0.2")
    yield Row("the stack's input, reconstructed by the exact inverse", "—", _reconstructed(), "bit for bit")


def _reconstructed() -> str:
    """Return whether the first function's x in backward has the bits that it had in forward."""
    seen: list[Tensor] = []

    class Remembers(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            return torch.tanh(x)

    stack = MomentumStack([Remembers() for _ in range(DEEP)], GAMMA, inverse="exact")
    stack(torch.randn(4, 32, 8, requires_grad=True)).sum().backward()
    return "bit for bit" if torch.equal(seen[0], seen[-1]) and len(seen) == 2 * DEEP else "not the same"


def wide() -> Iterator[Row]:
    """64 instead of 32 capsules per layer."""
    narrow, broad = (memory(model="rescapsnet", blocks=1, front="chunked", capsules=capsules) for capsules in (32, 64))

    def state(figures: MemoryFigures) -> int:
        return figures.state_bytes + figures.gradient_bytes + figures.optimizer_bytes

    more, expected = broad.peak_allocated_bytes - narrow.peak_allocated_bytes, state(broad) - state(narrow)
    yield Row(
        "64 capsules, not 32, ResCapsNet: peak",
        "+ 85 % (paper: 14.6 GB, not 7.9)",
        f"+ {more / MIB:.1f} MiB; weights, gradients and Adam {expected / MIB:.1f}",
        "only what these add",
    )


PARTS = {"layers": layers, "step": whole_step, "blocks": blocks, "depth": depth, "wide": wide}


def _alone(part: str) -> Iterator[str]:
    """The rows of one part, from a fresh process: glibc reads how its malloc is to behave when a process starts."""
    command = [sys.executable, "-m", "benchmarks.limits", "--rows", part]
    with subprocess.Popen(command, env=variables_of("time"), stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            yield line.rstrip("\n")
    if child.returncode:
        raise SystemExit(f"the part {part!r} ended with status {child.returncode}.\nIts traceback is above.")


def main() -> None:
    """The command line."""
    parser = parser_of(__doc__, TARGET)
    parser.add_argument("--only", default=",".join(PARTS), help="a comma list of " + ", ".join(PARTS))
    parser.add_argument("--rows", choices=PARTS, help="the bare rows of one part, in this process")
    options = parser.parse_args()
    if options.rows:
        torch.set_flush_denormal(True)
        for row in PARTS[options.rows]():
            print(f"| {' | '.join(row)} |", flush=True)
        return
    head = [
        "# What the operators reach",
        "",
        f"Made by `python -m benchmarks.limits --write`, {torch.get_num_threads()} CPU threads, torch {torch.__version__};",
        "its docstring describes how: medians taken in turn in one process, and bytes counted by the allocator's events.",
        "",
        *EXPLAINED.splitlines(),
        "| what | published | here | asked for |",
        "| --- | --- | --- | --- |",
    ]
    rows = (row for part in options.only.split(",") for row in _alone(part))
    print_page(itertools.chain(head, rows), TARGET, write=options.write)


if __name__ == "__main__":
    main()
