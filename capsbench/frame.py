"""Records as a data frame: the columns of `capsbench.load`, units in their names."""

from collections.abc import Iterable
from pathlib import Path
from statistics import median

import pandas as pd

from capsbench.records import Configuration, MemoryFigures, Record, TimeFigures

MEMORY_COLUMNS = tuple(name for name in MemoryFigures.model_fields if name.endswith("_bytes"))
TIME_COLUMNS = tuple(name for name in TimeFigures.model_fields if name.endswith("_seconds"))
LINE_COLUMNS = tuple(name for name in Configuration.model_fields if name != "blocks")
"""What tells one line of a figure from another."""


def to_frame(records: Iterable[tuple[Path, Record]]) -> pd.DataFrame:
    """A row per record; times are the medians of their samples."""
    columns = ["report", *Configuration.model_fields, "replicate", "status", "kind", "message", "data_source"]
    columns += ["environment", "probe", *MEMORY_COLUMNS, *TIME_COLUMNS]
    frame = pd.DataFrame([_row(report, record) for report, record in records], columns=columns)
    # Bytes stay whole numbers where some cells have none.
    return frame.astype(dict.fromkeys(MEMORY_COLUMNS, "Int64") | dict.fromkeys(TIME_COLUMNS, "float64"))


def _row(report: Path, record: Record) -> dict[str, object]:
    row: dict[str, object] = {"report": report.name, **record.cell.configuration.model_dump()}
    row |= {"replicate": record.cell.replicate, "status": record.status, "kind": record.kind}
    row |= {"message": record.message, "data_source": record.data_source, "environment": record.environment}
    if record.memory is not None:
        row |= record.memory.model_dump()
    if record.time is not None:
        row |= {name: median(samples) for name in TIME_COLUMNS if (samples := getattr(record.time, name))}
    return row
