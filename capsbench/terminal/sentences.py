"""Costs in sentences, with which a sweep ends on a terminal."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from capsbench.gate.findings import Labels
from capsbench.stats.slopes import by_series
from capsbench.words.cost_sentence import CostWords, cost_pieces, cost_words, named_memory
from capsbench.words.disturbances import disturbed_by
from capsbench.words.slopes_in_words import Row, row_shape


def cost_sentences(table: pd.DataFrame, most: int = 4) -> list[str]:
    """A sentence for each series: `MoCapsNet retains 0 B more per block; its training step takes 3.7 ± 0.2 ms longer per block.`.

    Args:
        table: result of `fitted_slopes`.
        most: largest number of series; of more, those with the smallest and the largest slopes of memory have a sentence.

    Returns:
        The sentences; a further one says once what disturbed the training times, if it is the same for all of several series.
    """
    groups = [(series, {row["metric"]: row for row in rows.to_dict("records")}) for series, rows in by_series(table)]
    labels = Labels(series for series, _ in groups)
    by_memory = sorted(range(len(groups)), key=lambda index: _memory_slope(groups[index][1]))
    chosen = sorted({*by_memory[: (most + 1) // 2], *by_memory[len(groups) - most // 2 :]})
    costs = {index: {name: cost_words(row) for name, row in groups[index][1].items()} for index in chosen}
    noises = {known["train"].noise for known in costs.values() if "train" in known}
    shared = noises.pop() if len(chosen) > 1 and len(noises) == 1 else ""
    if shared:
        costs = {index: {name: replace(cost, noise="") for name, cost in known.items()} for index, known in costs.items()}
    found = [f"{labels.of(groups[index][0])} {_costs(costs[index])}." for index in chosen]
    return found + [f"All of these training times were {disturbed_by(shared.split(','))}."] * bool(shared)


def _memory_slope(by_metric: Mapping[str, Row]) -> float:
    name = named_memory({name: row_shape(row) for name, row in by_metric.items()})
    return 0.0 if name is None else float(by_metric[name]["slope"])


def _costs(by_metric: Mapping[str, CostWords]) -> str:
    """The cost in memory and in time."""
    pieces = cost_pieces(by_metric)
    return "".join(text for _, text in pieces) or "has no slope"
