"""A stack of blocks captured as a CUDA graph, compared with the same stack launched kernel by kernel."""

from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.gpu.child import Bench, Items
from benchmarks.gpu.results import Found
from benchmarks.gpu.stopwatch import Run, timed
from capsbench.errors import ConfigurationError
from capsbench.models.networks import MoCapsNet, ResCapsNet
from capsbench.routing import resolve_kernel

STACKS = {
    "ResCapsNet, stored": partial(ResCapsNet),
    "MoCapsNet, float": partial(MoCapsNet, inverse="float"),
    "MoCapsNet, exact": partial(MoCapsNet, inverse="exact"),
}
"""Networks by the names of their stacks in `benchmarks/launches.md`."""

CAPSULES = (32, 8)


def items(bench: Bench) -> Items:
    """Forward and backward of each stack, as a graph and without."""
    return {name: partial(_graphed, bench, name) for name in STACKS}


def _graphed(bench: Bench, name: str) -> Found:
    blocks = bench.sizes.ends[1]
    torch.manual_seed(0)
    kernel = resolve_kernel("auto", "rba", bench.device)
    stack = STACKS[name]((1, 28, 28), 10, blocks, kernel=kernel, decoder=False).blocks.to(bench.device)
    x = torch.randn(bench.sizes.batch, *CAPSULES, device=bench.device).mul_(0.1).requires_grad_()
    grad = torch.randn_like(x, requires_grad=False)
    options = {"rounds": bench.sizes.rounds, "warm_seconds": bench.sizes.warm_seconds}
    eager = _both_ways(stack, x, grad)
    plain = timed(eager, bench.device, **options)
    expected = _gradients(eager, stack, x)
    found: Found = {f"launched, {key}": value for key, value in plain.items()}
    if bench.device != "cuda":
        return found
    try:
        captured = torch.cuda.make_graphed_callables(stack, (x,))
    except ConfigurationError as error:  # `exact` waits for its range, which a graph cannot
        return found | {"graph": f"refused: {error.what}"}
    replayed = _both_ways(captured, x, grad)
    found |= {f"graph, {key}": value for key, value in timed(replayed, bench.device, **options).items()}
    same = all(torch.equal(one, other) for one, other in zip(expected, _gradients(replayed, stack, x), strict=True))
    found["gradients"] = "the same bits" if same else "other bits"
    return found if same else found | {"error": "a graph computes other gradients"}


def _both_ways(stack: nn.Module, x: Tensor, grad: Tensor) -> Run:
    """Forward and backward, which leave gradients at the input and the parameters."""

    def run() -> None:
        x.grad = None
        stack.zero_grad(set_to_none=True)
        stack(x).backward(grad)

    return run


def _gradients(run: Run, stack: nn.Module, x: Tensor) -> list[Tensor]:
    run()
    return [one.grad.clone() for one in (x, *stack.parameters()) if one.grad is not None]
