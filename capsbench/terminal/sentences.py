"""Costs and faults in sentences, with which a sweep ends on a terminal."""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from capsbench.axes import position_in_words
from capsbench.gate.findings import Labels
from capsbench.records import Configuration, Record
from capsbench.stats.slopes import by_series
from capsbench.words.along import places_text
from capsbench.words.cost_sentence import cost_pieces, cost_words, named_memory
from capsbench.words.slopes_in_words import Row, row_shape


def cost_sentences(table: pd.DataFrame, most: int = 4) -> list[str]:
    """A sentence for each series: `MoCapsNet retains 0 B more per block; its training step takes 3.7 ± 0.2 ms longer per block.`.

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
    name = named_memory({name: row_shape(row) for name, row in by_metric.items()})
    return 0.0 if name is None else float(by_metric[name]["slope"])


def _costs(by_metric: Mapping[str, Row]) -> str:
    """The cost in memory and in time."""
    pieces = cost_pieces({name: cost_words(row) for name, row in by_metric.items()})
    return "".join(text for _, text in pieces) or "has no slope"
