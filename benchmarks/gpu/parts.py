"""The parts of a day with a GPU, in their order of worth, and the sizes that they run at. Needs no package."""

from typing import NamedTuple


class Part(NamedTuple):
    """One part of the day."""

    name: str
    title: str
    """Heading of its table."""
    seconds: float
    """Most seconds that it may take in one call of the command."""
    items: str
    """The function that makes its items, as `module:name`; it takes a `Bench` and returns a dictionary of functions."""


PARTS = (
    Part("smoke", "Both networks step", 60, "benchmarks.gpu.whole_steps:smoke"),
    Part("tests", "Tests marked `cuda`", 150, "benchmarks.gpu.suite:items"),
    Part("first", "The first command: all networks at three depths", 110, "benchmarks.gpu.day_reports:first"),
    Part("table4", "Table 4, figures 3 and 4: as published, and `auto`", 200, "benchmarks.gpu.day_reports:table4"),
    Part("peers", "The published code's step and `auto`", 50, "benchmarks.gpu.whole_steps:peers"),
    Part("predicted", "Predicted and measured", 110, "benchmarks.gpu.foretold:items"),
    Part("kernels", "Kernels, `recompute` and the card's limits", 90, "benchmarks.gpu.bounds:items"),
    Part("inverses", "Inverses of a reversible stack", 60, "benchmarks.gpu.whole_steps:inverses"),
    Part("training", "Fashion-MNIST", 100, "benchmarks.gpu.learning:items"),
    Part("allocator", "Settings of the allocator", 50, "benchmarks.gpu.day_reports:allocator"),
    Part("graphs", "A block under CUDA graphs", 30, "benchmarks.gpu.graphs:items"),
)
"""All parts, most valuable first."""


class Sizes(NamedTuple):
    """Sizes that the parts run at."""

    batch: int
    depths: tuple[int, ...]
    """Depths of the first command."""
    ends: tuple[int, int]
    """The shallowest and the deepest network of table 4."""
    deep: tuple[int, ...]
    """Depths of the inverses."""
    rounds: int
    """Samples of a time."""
    warm_seconds: float
    """Least time that a step runs before it is timed: a clock that starts at 345 MHz needs half a second."""
    sampling_seconds: float
    """Time budget of a cell of a report."""
    epochs: int
    share: float
    """The fraction of the training set that is used."""
    gibibytes: float
    """Size of the copy that measures the card's bandwidth."""
    side: int
    """Side of the matrices that measure its operations."""


SIZES = {
    "cuda": Sizes(128, (1, 4, 8), (1, 8), (8, 64), 40, 0.5, 2.0, 5, 1.0, 1.0, 4096),
    "cpu": Sizes(4, (1, 2), (1, 2), (2,), 2, 0.0, 0.01, 1, 0.02, 0.01, 64),
}
"""Sizes by the kind of device."""
