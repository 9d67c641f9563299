"""What can be asked for on this machine: `capsbench list`."""

from importlib.metadata import entry_points
from pathlib import Path

from capsbench.analysis.metrics import METRICS
from capsbench.catalog import SPECS
from capsbench.data.datasets import data_directory, load_images
from capsbench.reversible import STRATEGIES
from capsbench.routing import algorithms, kernels, resolve_kernel
from capsbench.workload import BUILT_IN, ENTRY_POINTS

_KERNELS = {
    "reference": "the equations in plain autograd; the specification",
    "published": "the memory pattern of the published code",
    "recompute": "keeps no votes; any device",
}
_STRATEGIES = {
    "stored": "every activation is kept",
    "checkpoint": "what enters a block is kept, the block evaluated again",
    "offload": "what autograd keeps goes to the host's memory",
    "reversible": "MoCapsNet: only the end of the stack is kept",
}


def offers(directory: Path | None = None) -> dict[str, dict[str, str]]:
    """Names and what they stand for, by kind; data sets are looked for on disk."""
    registered = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    return {
        "models": {name: (kind.__doc__ or "").splitlines()[0] for name, kind in BUILT_IN.items()} | registered,
        f"datasets (looked for in {directory or data_directory()})": {name: _dataset(name, directory) for name in SPECS},
        "routing": {name: f"kernels {', '.join(kernels(name))}; auto is {resolve_kernel('auto', name)}" for name in algorithms()},
        "kernels": {name: _KERNELS[name] for name in kernels()},
        "memory": {name: _STRATEGIES[name] for name in STRATEGIES},
        "metrics": {name: f"{metric.title} ({metric.column})" for name, metric in METRICS.items()},
    }


def _dataset(name: str, directory: Path | None) -> str:
    spec = SPECS[name]
    shape = "×".join(map(str, spec.shape))
    source = {"sample": "ships with capsbench", "real": "on disk", "stand-in": "not on disk: the sample stands in"}
    return f"{shape}, {spec.classes} classes; {source[load_images(name, directory).source]}"
