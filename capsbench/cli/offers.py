"""Names that options take on this machine: `capsbench list`."""

from importlib.metadata import entry_points
from pathlib import Path

from capsbench.catalog import SPECS
from capsbench.data.datasets import data_directory, load_images
from capsbench.devices import GPUS, Gpu
from capsbench.measure.facts import asked
from capsbench.options import OPTIONS, Option, noun_of
from capsbench.routing import algorithms, kernels
from capsbench.stats.metrics import METRICS
from capsbench.words.units import bytes_text
from capsbench.workload import BUILT_IN, ENTRY_POINTS


def offers(directory: Path | None = None) -> dict[str, dict[str, str]]:
    """Names and their meanings, by kind; data sets are looked up on disk."""
    registered = asked(lambda: {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}) or {}
    return {
        "models": {name: (kind.__doc__ or "").splitlines()[0] for name, kind in BUILT_IN.items()} | registered,
        f"datasets (looked for in {directory or data_directory()})": {name: _dataset(name, directory) for name in SPECS},
        "options": {option.flag: _option(option) for option in OPTIONS.values()},
        **{noun_of(name): dict(option.choices) for name, option in OPTIONS.items() if option.choices and name != "dataset"},
        "routing": {name: _routing(name) for name in algorithms()},
        "gpus to predict for": {name: _gpu(gpu) for name, gpu in GPUS.items()},
        "metrics": {name: f"{metric.title} ({metric.column})" for name, metric in METRICS.items()},
    }


def _option(option: Option) -> str:
    default = "" if option.default is None else f" [{option.default}]"
    return f"{option.help}{default}"


def _gpu(gpu: Gpu) -> str:
    return f"{bytes_text(gpu.memory_bytes)}, compute capability {'.'.join(map(str, gpu.capability))}"


def _routing(name: str) -> str:
    return f"{OPTIONS['routing'].choices[name]}; kernels {', '.join(kernels(name))}"


def _dataset(name: str, directory: Path | None) -> str:
    spec = SPECS[name]
    shape = "×".join(map(str, spec.shape))
    source = {"sample": "ships with capsbench", "real": "on disk", "stand-in": "not on disk: the sample stands in"}
    return f"{shape}, {spec.classes} classes; {source[load_images(name, directory).source]}"
