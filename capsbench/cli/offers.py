"""What can be asked for on this machine: `capsbench list`."""

from importlib.metadata import entry_points
from pathlib import Path

from capsbench.catalog import SPECS
from capsbench.data.datasets import data_directory, load_images
from capsbench.devices import GPUS, Gpu
from capsbench.measure.facts import asked
from capsbench.models import FRONTS
from capsbench.reversible import INVERSES, STRATEGIES
from capsbench.routing import algorithm_of, algorithms, kernels
from capsbench.stats.metrics import METRICS
from capsbench.words.units import bytes_text
from capsbench.workload import BUILT_IN, ENTRY_POINTS, OPTIMIZER_STEPS

_KERNELS = {
    "reference": "the equations in plain autograd; the specification",
    "published": "the memory pattern of the published code",
    "recompute": "keeps no votes; any device",
    "compiled": "keeps no votes, in C; CPU",
    "triton": "keeps no votes, on the GPU's own memory; CUDA",
}
_FRONTS = {
    "auto": "chunked where a batch is large enough for it to cost nothing",
    "plain": "the two convolutions one after the other",
    "chunked": "a part of the batch at a time; backward keeps the images alone",
}
_STRATEGIES = {
    "stored": "every activation is kept",
    "checkpoint": "what enters a block is kept, the block evaluated again",
    "checkpoint-sqrt": "the same with √n blocks at a time: the least that checkpoints of n blocks keep",
    "offload": "what autograd keeps goes to the host's memory; no effect on a CPU",
    "reversible": "MoCapsNet: only the end of the stack is kept",
    "reversible-kept": "the same, and of each layer the summed outputs that spare its routing in backward (not of em)",
}
_INVERSES = {
    "auto": "float where it holds at that depth, else whichever of the others keeps less",
    "float": "keeps nothing; drifts with depth",
    "exact": "fixed point; keeps the bits that a product with γ drops, and drifts at no depth",
    "segmented": "float, and keeps the state every k layers, against which it is checked",
}
_OPTIMIZER_STEPS = {
    "after": "after backward, with all gradients alive",
    "backward": "for each parameter as its gradient arrives, and lets go of it",
}


def offers(directory: Path | None = None) -> dict[str, dict[str, str]]:
    """Names and what they stand for, by kind; data sets are looked for on disk."""
    registered = asked(lambda: {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}) or {}
    return {
        "models": {name: (kind.__doc__ or "").splitlines()[0] for name, kind in BUILT_IN.items()} | registered,
        f"datasets (looked for in {directory or data_directory()})": {name: _dataset(name, directory) for name in SPECS},
        "routing": {name: _routing(name) for name in algorithms()},
        "kernels": {name: _KERNELS[name] for routing in algorithms() for name in kernels(routing)},
        "front": {name: _FRONTS[name] for name in FRONTS},
        "memory": {name: _STRATEGIES[name] for name in STRATEGIES},
        "inverse": {name: _INVERSES[name] for name in INVERSES},
        "gpus to predict for": {name: _gpu(gpu) for name, gpu in GPUS.items()},
        "optimizer step": {name: _OPTIMIZER_STEPS[name] for name in OPTIMIZER_STEPS},
        "metrics": {name: f"{metric.title} ({metric.column})" for name, metric in METRICS.items()},
    }


def _gpu(gpu: Gpu) -> str:
    return f"{bytes_text(gpu.memory_bytes)}, compute capability {'.'.join(map(str, gpu.capability))}"


def _routing(name: str) -> str:
    return f"{algorithm_of(name).title}; kernels {', '.join(kernels(name))}"


def _dataset(name: str, directory: Path | None) -> str:
    spec = SPECS[name]
    shape = "×".join(map(str, spec.shape))
    source = {"sample": "ships with capsbench", "real": "on disk", "stand-in": "not on disk: the sample stands in"}
    return f"{shape}, {spec.classes} classes; {source[load_images(name, directory).source]}"
