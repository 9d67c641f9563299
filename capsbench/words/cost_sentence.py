"""The cost of a series in a sentence: memory, then time, in the same words on a terminal and on a page."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from capsbench.axes import per_unit
from capsbench.frame import AXIS_COLUMN
from capsbench.stats.linearity import CURVES, Shape
from capsbench.words.disturbances import disturbed_by
from capsbench.words.slopes_in_words import Row, declared_remarks, row_basis, row_ratio, row_shape, row_slope

Piece = tuple[bool, str]
"""A piece of text, with True if it is emphasised."""

_MEMORY = {
    "retained": ("retains", "retained memory"),
    "peak": ("allocates at its peak", "peak of allocated memory"),
    "reserved": ("reserves at its peak", "peak of reserved memory"),
    "process": ("takes in its process", "process memory"),
}
"""Memory that a sentence may name, the most telling first: its verb, and its noun."""


@dataclass(frozen=True)
class CostWords:
    """The slope of one quantity, in words."""

    unit: str
    """Unit of the axis: `per block`."""
    shape: Shape
    slope: float
    """Bytes or seconds per unit of the axis."""
    text: str
    """The slope with its interval, without the unit of the axis; a curve has the units of both terms."""
    has_interval: bool
    """True if the slope has an interval; bytes may need none."""
    ratio: str = ""
    """The ratio to ResCapsNet's slope; empty if there is none."""
    declared: str = ""
    """Remarks on a basis that was declared; empty if there are none."""
    basis: str = ""
    """The part of a step whose slope it is, if cells took turns."""
    noise: str = ""
    """Names of what disturbed the times, separated by commas."""


def cost_words(row: Row) -> CostWords:
    """The slope of one row of a table of slopes, in words."""
    return CostWords(
        unit=per_unit(str(row[AXIS_COLUMN])),
        shape=row_shape(row),
        slope=float(row["slope"]),
        text=row_slope(row),
        has_interval=not np.isnan(float(row["slope_low"])),
        ratio=row_ratio(row),
        declared=", ".join(declared_remarks(row)),
        basis=row_basis(row),
        noise=str(row["noise"]),
    )


def named_memory(shapes: Mapping[str, Shape]) -> str | None:
    """The memory that a sentence names: the first, or a later one with a curve if the first is not a line; None without any.

    Args:
        shapes: shapes of the metrics that have a slope, by their names.
    """
    known = [name for name in _MEMORY if name in shapes]
    if known and shapes[known[0]] == "not a line":
        return next((name for name in known if shapes[name] in CURVES), known[0])
    return known[0] if known else None


def cost_pieces(costs: Mapping[str, CostWords]) -> list[Piece]:
    """The verbs of a sentence: `retains 0 B more per block; its training step takes 3.7 ± 0.2 ms longer per block`.

    Args:
        costs: slopes by the name of their metric.

    Returns:
        The pieces, without a full stop; none if neither memory nor training time has a slope.
    """
    pieces: list[Piece] = []
    memory = named_memory({name: cost.shape for name, cost in costs.items()})
    if memory is not None:
        pieces += _memory(costs[memory], memory)
    if "train" in costs:
        pieces += [(False, "; its training step " if pieces else "has a training step that "), *_time(costs["train"])]
    return pieces


def _memory(cost: CostWords, metric: str) -> list[Piece]:
    """The bytes that each further block, or other unit, takes."""
    verb, noun = _MEMORY[metric]
    if cost.shape == "no change measurable":
        return [(False, f"shows in its {noun} {cost.text} {cost.unit}")]
    if cost.shape in CURVES:
        return [(False, f"{verb} "), (not cost.declared, cost.text), *_shape_note(cost)]
    text = (cost.shape == "line", cost.text)
    if cost.slope < 0:
        return [(False, f"changes its {noun} by "), text, (False, f" {cost.unit}"), *_ratio(cost), *_shape_note(cost)]
    return [(False, f"{verb} "), text, (False, f" more {cost.unit}"), *_ratio(cost), *_shape_note(cost)]


def _time(cost: CostWords) -> list[Piece]:
    """The time that each further block, or other unit, takes, or a note that it is not known."""
    text = (cost.shape == "line" and cost.has_interval, cost.text)
    if cost.shape in CURVES:
        pieces: list[Piece] = [(False, "takes "), (not cost.declared, cost.text), (False, " longer")]
    elif cost.shape == "no change measurable":
        pieces = [(False, f"shows {cost.text} {cost.unit}")]
    elif cost.slope < 0:
        pieces = [(False, "changes by "), text, (False, f" {cost.unit}")]
    else:
        pieces = [(False, "takes "), text, (False, f" longer {cost.unit}"), *_ratio(cost)]
    if not cost.has_interval:
        pieces.append((False, ", by two values alone, which give no interval"))
    how = [f"timed {cost.basis}"] if cost.basis else []
    how += [disturbed_by(cost.noise.split(","))] if cost.noise else []
    return [*pieces, *_shape_note(cost), *([(False, f", {' and '.join(how)}")] if how else [])]


def _ratio(cost: CostWords) -> list[Piece]:
    # A slope of 0 is said as such: a ratio of 0 adds nothing to it.
    if cost.ratio == "1" and cost.slope:
        return [(False, ", as much as ResCapsNet")]
    return [(False, ", "), (True, f"{cost.ratio} times"), (False, " as much as ResCapsNet")] if cost.ratio and cost.slope else []


def _shape_note(cost: CostWords) -> list[Piece]:
    remarks = ["though the values do not lie on a line"] if cost.shape == "not a line" else []
    remarks += [cost.declared] if cost.declared else []
    return [(False, f", {', '.join(remarks)}")] if remarks else []
