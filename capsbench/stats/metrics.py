"""The quantities that can be drawn over depth, by name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A column of the data frame, and what people call it."""

    name: str
    """As the command line spells it."""
    column: str
    """As `capsbench.load` spells it."""
    title: str
    """As figures spell it."""
    is_bytes: bool
    """Bytes, or seconds."""

    @property
    def repeats(self) -> bool:
        """Whether a second run gives the same value, as it does for all bytes but those of a whole process."""
        return self.is_bytes and self.name != "process"


MEMORY_METRICS = {
    metric.name: metric
    for metric in (
        Metric("retained", "retained_bytes", "retained for backward", True),
        Metric("peak", "peak_allocated_bytes", "peak allocated", True),
        Metric("reserved", "peak_reserved_bytes", "peak reserved", True),
        Metric("process", "process_bytes", "process memory", True),
    )
}
"""Quantities of memory."""

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
"""All of them, memory first."""
