"""Axes that change nothing: of which every figure of memory and every operation is the same at all places."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from capsbench.axes import position_in_words
from capsbench.records import Record

_COUNTED = (
    "state_bytes", "gradient_bytes", "optimizer_bytes", "retained_bytes", "peak_forward_bytes", "peak_backward_bytes",
    "peak_allocated_bytes",
)  # fmt: skip


class Unchanged(NamedTuple):
    """A series along which nothing changes."""

    records: list[Record]
    """Records at two places or more on the axis."""
    note: str
    """The remark for a reader."""


def unchanged(records: Iterable[Record], axes: Sequence[str]) -> list[Unchanged]:
    """The series of records along whose axis neither bytes nor operations change.

    Args:
        records: records, of which those that ended well are looked at.
        axes: axes of their plan.
    """
    # Without its operations, nobody knows that a step takes no longer.
    known = [record for record in records if record.status == "ok" and record.memory is not None and record.believed_step()]
    found: list[Unchanged] = []
    # Threads share the same operations, and change their time alone.
    for axis in (axis for axis in axes if axis != "threads"):
        all_series: dict[tuple[object, ...], list[Record]] = {}
        for record in known:
            it = record.cell
            key = (record.kind, it.source, it.replicate, record.environment, it.configuration.series(axis))
            all_series.setdefault(key, []).append(record)
        for several in all_series.values():
            by_position = {it.position(axis): it for it in (record.cell.configuration for record in several)}
            cells = [by_position[position] for position in sorted(one for one in by_position if one is not None)]
            if len(cells) > 1 and len({_figures(record) for record in several}) == 1:
                places = ", ".join(position_in_words(it, axis) for it in cells)
                note = f"{axis.replace('_', ' ')} changes nothing of {cells[0].model}: the same bytes at {places}"
                found.append(Unchanged(several, note))
    return found


def _figures(record: Record) -> tuple[object, ...]:
    """All that depends on what a step computes, and not on the process that it ran in."""
    step = record.believed_step()
    operations = (step.flops, tuple(sorted(step.retained_by_module.items()))) if step is not None else ()
    return *(getattr(record.memory, name) for name in _COUNTED), operations
