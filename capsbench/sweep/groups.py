"""Groups of cells that take turns in one process, as large as fit into memory together."""

from collections.abc import Mapping, Sequence

from capsbench.records import Cell, MemoryFigures, Plan

_COMPARED = ("device", "threads", "gpu", "dataset", "batch_size", "precision")
"""Options that cells of one group share: they change the environment, or make steps that nobody compares."""

_SHARE = 0.8
"""Share of the free memory that a group may need by its figures: heaps have holes, and processes grow."""


def groups_of(plan: Plan) -> list[list[Cell]]:
    """The cells of a plan that take turns, group by group; a cell that nothing can be compared to is in none.

    A limit on memory holds for a process, so that a cell with one is timed alone.
    """
    found: dict[tuple[object, ...], list[Cell]] = {}
    if "time" in plan.passes:
        for cell in plan.cells:
            it = cell.configuration
            if it.capacity is None and not it.is_predicted():
                # A user's module may set what holds for a whole process, such as flags of torch.
                found.setdefault((cell.replicate, cell.source, *(getattr(it, name) for name in _COMPARED)), []).append(cell)
    return [group for group in found.values() if len(group) > 1]


def that_fit(cells: list[Cell], memory: Mapping[str, MemoryFigures], available: int | None) -> list[list[Cell]]:
    """Groups of these cells that fit into memory together.

    Args:
        cells: cells that take turns.
        memory: figures of the cells by key, as far as they were counted.
        available: free bytes; None if it is not known.
    """
    if len(cells) == 1 or available is None or needed_bytes(cells, memory) <= _SHARE * available:
        return [cells]
    return [fitting for fewer in halves(cells) for fitting in that_fit(fewer, memory, available)]


def needed_bytes(cells: Sequence[Cell], memory: Mapping[str, MemoryFigures]) -> int:
    """Bytes that a process of these cells needs: what each keeps between its steps, and the highest step above that."""
    known = [memory[cell.key()] for cell in cells if cell.key() in memory]
    kept = [one.state_bytes + one.optimizer_bytes for one in known]
    peaks = [
        base if one.peak_allocated_bytes is None else one.peak_allocated_bytes for one, base in zip(known, kept, strict=True)
    ]
    return sum(kept) + max((peak - base for peak, base in zip(peaks, kept, strict=True)), default=0)


def halves(cells: list[Cell]) -> list[list[Cell]]:
    """Two smaller groups: with half of the inner depths each and the ends of every series in both, or else half of the series.

    Shared ends keep inner depths comparable. A series of two depths or fewer falls apart into single cells.
    """
    ends = ends_of(cells)
    inner = [cell for cell in cells if cell not in ends]
    if inner:
        depths = sorted({cell.configuration.blocks for cell in inner})
        low = set(depths[: (len(depths) + 1) // 2]) if len(depths) > 1 else set()
        parts = [[cell for cell in inner if (cell.configuration.blocks in low) == first] for first in (True, False)]
        return (
            [[cell for cell in cells if cell in ends or cell in part] for part in parts if part] if all(parts) else [ends, inner]
        )
    series = list(dict.fromkeys(cell.configuration.series() for cell in cells))
    if len(series) > 1:
        low_half = set(series[: len(series) // 2])
        return [[cell for cell in cells if (cell.configuration.series() in low_half) == first] for first in (True, False)]
    return [[cell] for cell in cells] if len(cells) > 1 else []


def ends_of(cells: Sequence[Cell]) -> list[Cell]:
    """The cells of the first and the last depth of each series: they tell the slope best."""
    depths: dict[str, list[int]] = {}
    for cell in cells:
        depths.setdefault(cell.configuration.series(), []).append(cell.configuration.blocks)
    return [cell for cell in cells if cell.configuration.blocks in _ends(depths[cell.configuration.series()])]


def _ends(depths: Sequence[int]) -> tuple[int, int]:
    return min(depths), max(depths)
