"""Whole training steps in one process: that both networks step, the published code's step, and the inverses."""

import math
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.child import Bench, Items
from benchmarks.gpu.results import Found
from benchmarks.gpu.stopwatch import profiled, timed
from capsbench.measure.step_memory import memory_figures, probed_step
from capsbench.measure.worker import prepare_process
from capsbench.records import Configuration
from capsbench.sweep.asked import Sweep
from capsbench.sweep.machine import machine_options
from capsbench.sweep.plan import expand
from capsbench.workload import Workload

PUBLISHED = {"kernel": "published", "front": "plain"}
"""Options of a network that computes as the published code does."""

MEMORY = (
    "retained_bytes", "retained_requested_bytes", "peak_allocated_bytes", "peak_requested_bytes", "peak_reserved_bytes",
    "warm_peak_allocated_bytes",
)  # fmt: skip
"""Figures of a step's memory that are kept, where they are known."""


def configuration_of(bench: Bench, model: str, blocks: int, **options: Any) -> Configuration:
    """The configuration of one cell on the bench's device."""
    options = {"batch_size": bench.sizes.batch, **options}
    (cell,) = expand(Sweep((model,), (blocks,), **machine_options(bench.device, None, None), **options))
    return cell.configuration


def of_step(bench: Bench, model: str, blocks: int, **options: Any) -> Found:
    """Memory and times of a network's training step in this process, which has stepped others before."""
    configuration = configuration_of(bench, model, blocks, **options)
    prepare_process(configuration)
    memory = memory_figures(probed_step(configuration)).model_dump()
    found: Found = {name: memory[name] for name in MEMORY if memory.get(name) is not None}
    step = Workload(configuration).train_step
    return found | timed(step, bench.device, rounds=bench.sizes.rounds, warm_seconds=bench.sizes.warm_seconds)


def smoke(bench: Bench) -> Items:
    """A step of both networks, whose loss is finite and falls; then the two ways to compute the convolutions."""
    _, blocks = bench.sizes.ends
    found: Items = {model: partial(_learns, bench, model, blocks) for model in ("rescapsnet", "mocapsnet")}
    for front in ("plain", "chunked"):
        found[f"rescapsnet, 1 block, {front} front"] = partial(of_step, bench, "rescapsnet", 1, front=front)
    return found


def _learns(bench: Bench, model: str, blocks: int) -> Found:
    configuration = configuration_of(bench, model, blocks)
    prepare_process(configuration)
    workload = Workload(configuration)
    losses = []
    for _ in range(8):
        loss = workload.forward()
        workload.backward(loss)
        workload.optimize()
        losses.append(loss.item())
    found: Found = {"kernel": configuration.kernel, "front": configuration.front}
    found |= {"first loss": losses[0], "last loss": losses[-1]}
    if not all(map(math.isfinite, losses)) or losses[-1] >= losses[0]:
        return found | {"error": f"the loss is not finite, or does not fall: {', '.join(f'{loss:g}' for loss in losses)}"}
    found |= of_step(bench, model, blocks)
    if bench.device == "cuda" and (profile := profiled(workload.train_step)) is not None:
        torch.cuda.synchronize()
        for name, (count, ms) in list(profile.by_kernel.items())[:12]:
            print(f"    {ms:9.3f} ms {count:5d} × {name[:90]}")
    return found


def peers(bench: Bench) -> Items:
    """The published code's step, in this package's network, compared with the default."""
    found: Items = {}
    for blocks in bench.sizes.ends:
        for model in ("rescapsnet", "mocapsnet"):
            published = PUBLISHED | ({"rule": "published"} if model == "mocapsnet" else {})
            for way, options in (("published", published), ("auto", {})):
                found[f"{model} {blocks}, {way}"] = partial(of_step, bench, model, blocks, dataset="mnist", **options)
    return found


def inverses(bench: Bench) -> Items:
    """Every inverse compared with stored activations, keeping nothing in the stack."""
    found: Items = {}
    for blocks in bench.sizes.deep:
        found[f"stored, {blocks} blocks"] = partial(of_step, bench, "mocapsnet", blocks, memory="stored")
        for inverse in ("float", "segmented", "exact"):
            found[f"{inverse}, {blocks} blocks"] = partial(of_step, bench, "mocapsnet", blocks, inverse=inverse)
    return found
