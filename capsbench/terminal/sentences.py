"""Costs and faults in sentences, with which a sweep ends on a terminal."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from capsbench.axes import axis_unit, position_in_words
from capsbench.frame import AXIS_COLUMN
from capsbench.gate.findings import Labels
from capsbench.records import Configuration, Record
from capsbench.stats.linearity import CURVES
from capsbench.stats.metrics import METRICS
from capsbench.stats.slopes import by_series
from capsbench.words.along import places_text
from capsbench.words.slopes_in_words import row_basis, row_cost, row_ratio, row_shape, row_slope

_MEMORY = ("retained", "peak", "reserved")

Row = Mapping[Hashable, Any]


def cost_sentences(table: pd.DataFrame, most: int = 4) -> list[str]:
    """A sentence for each series: `MoCapsNet retains 0 B per block; its training step takes 3.7 ± 0.2 ms longer per block.`.

    Args:
        table: result of `fitted_slopes`.
        most: largest number of sentences; of more series, those with the smallest and the largest slopes of memory have one.
    """
    groups = [(series, {row["metric"]: row for row in rows.to_dict("records")}) for series, rows in by_series(table)]
    labels = Labels(series for series, _ in groups)
    by_memory = sorted(range(len(groups)), key=lambda index: _memory_slope(groups[index][1]))
    chosen = sorted({*by_memory[: (most + 1) // 2], *by_memory[len(groups) - most // 2 :]})
    return [f"{labels.of(groups[index][0])} {_costs(groups[index][1])}." for index in chosen]


def fault_sentences(records: Iterable[Record], axes: Sequence[str]) -> list[str]:
    """A line for each network and message of cells that failed: `error: net at 1, 2, 4 blocks: ValueError: no such head`.

    Args:
        records: records of these cells.
        axes: axes of their report.
    """
    alike: dict[tuple[str, str, str], list[Configuration]] = {}
    for record in records:
        key = (record.status, record.cell.configuration.model, record.message or "")
        alike.setdefault(key, []).append(record.cell.configuration)
    return [f"{status}: {model}{_where(cells, axes)}: {message}" for (status, model, message), cells in alike.items()]


def _where(cells: Sequence[Configuration], axes: Sequence[str]) -> str:
    """Positions of cells: ` at 1, 2, 4 blocks`, or cell by cell on several axes: ` at 1 block, batch 32; 2 blocks, batch 64`."""
    if all(it.position(axis) is None for it in cells for axis in axes):
        return ""
    if len(axes) > 1 or any(it.position(axes[0]) is None for it in cells) or axes[0] == "image_shape":
        return f" at {'; '.join(dict.fromkeys(', '.join(position_in_words(it, axis) for axis in axes) for it in cells))}"
    return f" at {places_text(axes[0], sorted({it.position(axes[0]) or 0.0 for it in cells}))}"


def _memory_slope(by_metric: Mapping[str, Row]) -> float:
    row = _memory(by_metric)
    return 0.0 if row is None else float(row["slope"])


def _memory(by_metric: Mapping[str, Row]) -> Row | None:
    """The row of the memory that a sentence names: what is retained, if it is known."""
    return next((by_metric[name] for name in _MEMORY if name in by_metric), None)


def _costs(by_metric: Mapping[str, Row]) -> str:
    """The cost in memory and in time."""
    parts = []
    if (memory := _memory(by_metric)) is not None:
        title = METRICS[memory["metric"]].title
        if row_shape(memory) == "no change measurable":
            parts.append(f"shows in its memory ({title}) {row_cost(memory)}")
        else:
            verb = "retains" if memory["metric"] == "retained" else f"needs ({title})"
            parts.append(f"{verb} {row_cost(memory)}{_ratio(memory)}{_not_a_line(memory)}")
    if (train := by_metric.get("train")) is not None:
        parts.append(f"its training step {_time(train)}")
    return "; ".join(parts) or "has no slope"


def _time(row: Row) -> str:
    """The cost in time: `takes 3.7 ± 0.2 ms longer per block, 1.27 × ResCapsNet's (blocks and optimizer, in turn)`."""
    shape = row_shape(row)
    if shape == "no change measurable":
        return f"shows {row_cost(row)}"
    if shape in CURVES:
        return f"takes {row_slope(row)} longer"
    unit = axis_unit(str(row[AXIS_COLUMN]))
    if row["slope"] < 0:
        return f"changes by {row_slope(row)} per {unit}{_not_a_line(row)}"
    basis = row_basis(row)
    return f"takes {row_slope(row)} longer per {unit}{_ratio(row)}{_not_a_line(row)}{f' ({basis})' if basis else ''}"


def _ratio(row: Row) -> str:
    """The ratio to ResCapsNet's slope; empty where there is none, or where it is that slope."""
    text = row_ratio(row)
    return f", {text} × ResCapsNet's" if text else ""


def _not_a_line(row: Row) -> str:
    return " (not a line)" if row_shape(row) == "not a line" else ""
