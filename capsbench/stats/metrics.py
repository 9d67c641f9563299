"""The quantities that can be drawn over depth, by name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A column of the data frame, and its names."""

    name: str
    """Name on the command line."""
    column: str
    """Name of the column in `capsbench.load`."""
    title: str
    """Name in figures."""
    is_bytes: bool
    """True for bytes, False for seconds."""

    @property
    def repeats(self) -> bool:
        """Return whether a second run gives the same value, as for all bytes but those of a whole process."""
        return self.is_bytes and self.name != "process"


MEMORY_METRICS = {
    metric.name: metric
    for metric in (
        Metric("retained", "retained_bytes", "retained for backward", True),
        Metric("peak", "peak_allocated_bytes", "peak allocated", True),
        Metric("reserved", "peak_reserved_bytes", "peak reserved", True),
        Metric("process", "process_bytes", "process memory", True),
        Metric("inference-peak", "inference_peak_bytes", "peak of inference", True),
        Metric("inference-kept", "inference_kept_bytes", "kept by inference", True),
    )
}
"""Memory figures by name."""

TIME_METRICS = {
    metric.name: metric
    for metric in (
        Metric("train", "train_step_seconds", "training time", False),
        Metric("forward", "forward_seconds", "forward time", False),
        Metric("inference", "inference_seconds", "inference time", False),
    )
}
"""Times of one step."""

METRICS = MEMORY_METRICS | TIME_METRICS
"""All metrics, memory first."""
