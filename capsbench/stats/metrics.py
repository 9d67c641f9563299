"""The quantities that are measured, drawn and compared, by name, with their titles."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A column of the data frame, and its names."""

    name: str
    """Name on the command line."""
    column: str
    """Name of the column in `capsbench.load`."""
    title: str
    """Title in figures and sentences."""
    head: str
    """Shorter title, for the head of a column and for findings."""
    is_bytes: bool
    """True for bytes, False for seconds."""

    @property
    def repeats(self) -> bool:
        """Return whether a second run gives the same value, as for all bytes but those of a whole process."""
        return self.is_bytes and self.name != "process"

    @property
    def is_highest(self) -> bool:
        """Return whether it is the highest of several moments, of which another one may be highest at other positions."""
        return self.name in ("peak", "reserved", "process", "inference-peak")


MEMORY_METRICS = {
    metric.name: metric
    for metric in (
        Metric("retained", "retained_bytes", "retained for backward", "retained", True),
        Metric("peak", "peak_allocated_bytes", "peak allocated", "peak", True),
        Metric("reserved", "peak_reserved_bytes", "peak reserved", "reserved", True),
        Metric("process", "process_bytes", "process memory", "process", True),
        Metric("inference-peak", "inference_peak_bytes", "peak of inference", "peak of inference", True),
        Metric("inference-kept", "inference_kept_bytes", "kept by inference", "kept by inference", True),
    )
}
"""Memory figures by name."""

TIME_METRICS = {
    metric.name: metric
    for metric in (
        Metric("train", "train_step_seconds", "training time", "train step", False),
        Metric("forward", "forward_seconds", "forward time", "forward", False),
        Metric("inference", "inference_seconds", "inference time", "inference", False),
    )
}
"""Times of one step."""

METRICS = MEMORY_METRICS | TIME_METRICS
"""All metrics that can be drawn, memory first."""

STATE_METRICS = {
    metric.name: metric
    for metric in (
        Metric("state", "state_bytes", "weights", "weights", True),
        Metric("gradient", "gradient_bytes", "gradients", "gradients", True),
        Metric("optimizer", "optimizer_bytes", "optimizer state", "optimizer state", True),
    )
}
"""Memory of the parameters and what belongs to them, by name; runs are compared by it."""

QUANTITIES = METRICS | STATE_METRICS
"""All quantities of a cell."""
