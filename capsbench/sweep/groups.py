"""Groups of cells that take turns in one process.

All cells that are compared to each other are one group, if they fit into memory together. If not, the group is halved until its
parts fit; the ends of each series along each axis are in both halves, so that all inner cells can be compared to them.
"""

import math
from collections.abc import Mapping, Sequence

from capsbench.records import Cell, MemoryFigures, Plan, Record
from capsbench.report import Report

_COMPARED = ("device", "threads", "gpu", "dataset", "batch_size", "precision")
"""Options that cells of one group share: they change the environment, or make steps that nobody compares if no axis is one."""

_USABLE_SHARE = 0.8
"""Share of the free memory that a group may need by its figures: heaps have holes, and processes grow."""


def groups_of(plan: Plan) -> list[list[Cell]]:
    """The cells of a plan that take turns, group by group; a cell that nothing can be compared to is in none.

    A limit on memory holds for a process, so that a cell with one is timed alone.
    """
    found: dict[tuple[object, ...], list[Cell]] = {}
    if "time" in plan.passes:
        for cell in plan.cells:
            if cell.configuration.capacity is None and not cell.configuration.is_predicted():
                # A user's module may set what holds for a whole process, such as flags of torch.
                found.setdefault((cell.replicate, cell.source, *compared(cell, plan)), []).append(cell)
    return [group for group in found.values() if len(group) > 1]


def compared(cell: Cell, plan: Plan) -> tuple[object, ...]:
    """The values of a cell's options that all cells have to which it is compared."""
    return tuple(getattr(cell.configuration, name) for name in _COMPARED if name != "batch_size" or name not in plan.axes)


def left_of(group: Sequence[Cell], plan: Plan, report: Report) -> list[Cell]:
    """The cells of a group that have no times yet, and whose memory pass, if there was one, ended well."""
    records, settled = {record.cell.key(): record for record in report.records}, report.settled(plan.passes)

    def may_be_timed(record: Record | None) -> bool:
        if "memory" not in plan.passes:
            return True
        return record is not None and record.status == "ok" and record.memory is not None

    return [cell for cell in group if cell.key() not in settled and may_be_timed(records.get(cell.key()))]


def that_fit(
    cells: list[Cell], memory: Mapping[str, MemoryFigures], available: int | None, axes: Sequence[str] = ("blocks",)
) -> list[list[Cell]]:
    """Groups of these cells that fit into memory together.

    Args:
        cells: cells that take turns.
        memory: figures of the cells by key, as far as they were counted.
        available: free bytes; None if it is not known.
        axes: axes of the plan.
    """
    if len(cells) == 1 or available is None or needed_bytes(cells, memory) <= _USABLE_SHARE * available:
        return [cells]
    return [fitting for fewer in halves(cells, axes) for fitting in that_fit(fewer, memory, available, axes)]


def needed_bytes(cells: Sequence[Cell], memory: Mapping[str, MemoryFigures]) -> int:
    """Bytes that a process of these cells needs: what each keeps between its steps, and the highest step above that."""
    known = [memory[cell.key()] for cell in cells if cell.key() in memory]
    kept = [one.state_bytes + one.optimizer_bytes for one in known]
    peaks = [
        base if one.peak_allocated_bytes is None else one.peak_allocated_bytes for one, base in zip(known, kept, strict=True)
    ]
    return sum(kept) + max((peak - base for peak, base in zip(peaks, kept, strict=True)), default=0)


def halves(cells: list[Cell], axes: Sequence[str] = ("blocks",)) -> list[list[Cell]]:
    """Two smaller groups that contain these cells; none of a single cell.

    The inner cells are divided by their places on the axes, and the ends of every series are in both groups. Where there is one
    inner place, it is parted from the ends. Where there are ends alone, the series along the first axis are divided, and the ends
    of a single series are parted.
    """
    ends = ends_of(cells, axes)
    places = sorted({_place(cell, axes) for cell in cells if cell not in ends})
    if len(places) > 1:
        low = places[: (len(places) + 1) // 2]
        return [[cell for cell in cells if cell in ends or (_place(cell, axes) in low) == is_low] for is_low in (True, False)]
    if places:
        return [ends, [cell for cell in cells if cell not in ends]]
    series = list(dict.fromkeys(cell.configuration.series(axes[0]) for cell in cells))
    if len(series) > 1:
        first = series[: len(series) // 2]
        return [
            [cell for cell in cells if (cell.configuration.series(axes[0]) in first) == is_first] for is_first in (True, False)
        ]
    return [[cell] for cell in cells] if len(cells) > 1 else []


def ends_of(cells: Sequence[Cell], axes: Sequence[str] = ("blocks",)) -> list[Cell]:
    """The cells at the ends of each series along each axis, which determine its slope best; one without others is an end."""
    ends: set[str] = set()
    inner: set[str] = set()
    for axis in axes:
        all_series: dict[str, dict[str, float]] = {}
        for cell in cells:
            position = cell.configuration.position(axis)
            if position is not None:
                all_series.setdefault(cell.configuration.series(axis), {})[cell.key()] = position
        for positions in all_series.values():
            low, high = min(positions.values()), max(positions.values())
            if low < high:
                ends |= {key for key, position in positions.items() if position in (low, high)}
                inner |= {key for key, position in positions.items() if low < position < high}
    return [cell for cell in cells if cell.key() in ends or cell.key() not in inner]


def _place(cell: Cell, axes: Sequence[str]) -> tuple[float, ...]:
    """The place of a cell on the axes; below everything on one that its network does not have."""
    found = (cell.configuration.position(axis) for axis in axes)
    return tuple(-math.inf if position is None else position for position in found)
