"""One configuration, measured on this CPU and traced without it."""

from typing import Any, NamedTuple

from capsbench.measure.step_memory import ProbedStep, memory_figures, probed_step
from capsbench.options import Configuration
from capsbench.prediction.predict import predict_memory, trace_for
from capsbench.records import MemoryFigures
from capsbench.sweep.asked import Sweep
from capsbench.sweep.plan import expand
from capsbench.tracing.step_trace import TracedStep

EVERY_FIGURE = (
    "state_bytes", "gradient_bytes", "optimizer_bytes", "retained_bytes", "peak_backward_bytes", "peak_allocated_bytes",
    "at_peak",
)  # fmt: skip
"""Figures that a trace has to the byte. Forward may be highest where a kernel takes some bytes for a number."""


class Measured(NamedTuple):
    """A step that was measured, and its trace."""

    step: ProbedStep
    measured: MemoryFigures
    traced: TracedStep
    predicted: MemoryFigures

    def differing(self) -> dict[str, tuple[Any, Any]]:
        """Return the figures that were measured and predicted differently, with both values."""
        both = {name: (getattr(self.measured, name), getattr(self.predicted, name)) for name in EVERY_FIGURE}
        return {name: values for name, values in both.items() if values[0] != values[1]}


def configured(model: str, blocks: int = 2, settings: dict[str, Any] | None = None, **options: Any) -> Configuration:
    """The only configuration of a sweep over one model, on one thread of a CPU."""
    sweep = Sweep((model,), [blocks], "cpu", depths_chosen=False, settings=settings, threads=1, **options)
    (cell,) = expand(sweep)
    return cell.configuration


def measured(configuration: Configuration) -> Measured:
    """A configuration, measured and traced."""
    step = probed_step(configuration)
    traced = trace_for(configuration)
    return Measured(step, memory_figures(step), traced, predict_memory(configuration, traced).memory)
