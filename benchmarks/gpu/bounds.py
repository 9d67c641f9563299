"""Kernels of single layers, compared with `recompute` and with the least time that this card needs for them.

What a layer cannot do without are the bytes of its inputs, weights and outputs and of their gradients, each moved once, and
the operations of one evaluation of the votes, of the rounds over them, and of the two gradients. The card's bandwidth and its
operations a second are measured here, by a copy and a product of matrices.
"""

import gc
from functools import partial

import torch

from benchmarks.gpu.child import Bench, Items
from benchmarks.gpu.results import Found, PartResults
from benchmarks.gpu.stopwatch import profiled, queued_ms, timed, warm
from benchmarks.launches import STACKS
from benchmarks.layers import LAYERS, Layer, make_step
from capsbench.routing import algorithms, resolve_kernel, route

CARD = "the card"
ROUNDS = 3
TINY_LAUNCHES = 100
GIB = 2**30


def items(bench: Bench) -> Items:
    """The card's limits, every layer with every algorithm, and the launches of a block."""
    found: Items = {CARD: partial(limits_of_card, bench)}
    for name, layer in LAYERS.items():
        for routing in algorithms():
            found[f"{name}, {routing}"] = partial(_layer, bench, layer, routing)
    if bench.device == "cuda":
        found |= {f"launches, {name}": partial(_launches, bench, name) for name in STACKS}
    return found


def limits_of_card(bench: Bench) -> Found:
    """Bytes a second of a copy, operations a second of products, and the time of a launch."""
    options = {"rounds": bench.sizes.rounds, "warm_seconds": bench.sizes.warm_seconds}
    source = torch.empty(int(bench.sizes.gibibytes * GIB), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    copy = timed(partial(target.copy_, source), bench.device, **options)
    found: Found = {"bandwidth, GB/s": 2 * source.nbytes / copy["step_ms"] / 1e6}
    del source, target
    gc.collect()
    side = bench.sizes.side
    for words, dtype, tf32 in (("fp32", torch.float32, False), ("TF32", torch.float32, True), ("bf16", torch.bfloat16, False)):
        one, other = (torch.randn(side, side, device=bench.device).to(dtype) for _ in range(2))
        torch.backends.cuda.matmul.allow_tf32 = tf32
        product = timed(partial(torch.mm, one, other), bench.device, **options)
        torch.backends.cuda.matmul.allow_tf32 = False
        found[f"{words}, TFLOP/s"] = 2 * side**3 / product["step_ms"] / 1e9
    if bench.device == "cuda":
        tiny = torch.zeros(1, device=bench.device)
        warm(partial(tiny.add_, 1), bench.device, bench.sizes.warm_seconds)
        found["a launch, µs"] = 1e3 * queued_ms(partial(tiny.add_, 1), TINY_LAUNCHES)
    return found


def least_bytes(layer: Layer) -> int:
    """Bytes of inputs, weight and outputs forward, and of these and their gradients backward, in float32."""
    inputs = layer.batch * layer.in_capsules * layer.in_dim
    weight = layer.in_capsules * layer.in_dim * layer.out_capsules * layer.out_dim
    outputs = layer.batch * layer.out_capsules * layer.out_dim
    return 4 * (inputs + weight + outputs) + 4 * (2 * inputs + 2 * weight + outputs)


def least_operations(layer: Layer) -> int:
    """Operations of the votes once, of two products with them a round (the first has a sum alone), and of two gradients."""
    outputs = layer.batch * layer.in_capsules * layer.out_capsules * layer.out_dim
    return 2 * outputs * layer.in_dim + (2 * ROUNDS - 1) * 2 * outputs + 2 * 2 * outputs * layer.in_dim


def _layer(bench: Bench, layer: Layer, routing: str) -> Found:
    layer = layer._replace(batch=min(layer.batch, bench.sizes.batch))
    given = make_step(layer, routing)
    options = {"rounds": bench.sizes.rounds, "warm_seconds": bench.sizes.warm_seconds}

    def step(kernel: str) -> None:
        outputs = route(given.inputs, given.weight, **given.extras, algorithm=routing, kernel=kernel)
        torch.autograd.grad(outputs, [given.inputs, given.weight, *given.extras.values()], given.grad)

    kernel = resolve_kernel("auto", routing, bench.device)
    mine, theirs = (timed(partial(step, name), bench.device, **options) for name in (kernel, "recompute"))
    found: Found = {"kernel": kernel, **mine}
    found["recompute_ms"] = theirs["step_ms"]
    found["recompute, over it"] = theirs["step_ms"] / mine["step_ms"]
    card = PartResults(bench.folder, "kernels").items().get(CARD, {})
    if "error" not in card and card:
        found["by its bytes_ms"] = least_bytes(layer) / card["bandwidth, GB/s"] / 1e6
        found["by its operations_ms"] = least_operations(layer) / card["fp32, TFLOP/s"] / 1e9
        took = mine.get("busy_ms", mine["step_ms"])
        found["over the larger"] = took / max(found["by its bytes_ms"], found["by its operations_ms"])
    if bench.device == "cuda" and (profile := profiled(partial(step, kernel))) is not None:
        for name, (count, ms) in profile.by_kernel.items():
            print(f"    {1e3 * ms:9.1f} µs {count:4d} × {name[:90]}")
    return found


def _launches(bench: Bench, name: str) -> Found:
    """Kernels, copies and fills that a block adds to a stack of two, forward and backward."""
    counts = {blocks: _of_stack(bench, name, blocks) for blocks in (2, 3)}
    return {key: counts[3][key] - counts[2][key] for key in counts[3]}


def _of_stack(bench: Bench, name: str, blocks: int) -> dict[str, int]:
    layer = LAYERS["block"]
    network = STACKS[name]((1, 28, 28), 10, blocks, kernel="triton", decoder=False)
    stack = network.blocks.to(bench.device)
    x = torch.randn(layer.batch, layer.in_capsules, layer.in_dim, device=bench.device).mul_(0.1).requires_grad_()
    grad = torch.randn_like(x, requires_grad=False)
    inputs = [x, *stack.parameters()]
    torch.autograd.grad(stack(x), inputs, grad)
    held = []
    forward = profiled(lambda: held.append(stack(x)))
    backward = profiled(lambda: torch.autograd.grad(held[0], inputs, grad))
    if forward is None or backward is None:
        raise RuntimeError("the profiler reports no kernels on this machine")
    return {
        "forward": forward.kernels,
        "forward, copies": forward.copies,
        "backward": backward.kernels,
        "backward, copies": backward.copies,
    }
