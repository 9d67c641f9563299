"""Records as a data frame: the columns of `capsbench.load`, units in their names."""

from collections.abc import Iterable
from statistics import median
from typing import Any

import pandas as pd

from capsbench.records import Configuration, MemoryFigures, Record, StepFigures, TimeFigures

MEMORY_COLUMNS = tuple(name for name in MemoryFigures.model_fields if name.endswith("_bytes"))
TIME_COLUMNS = tuple(name for name in TimeFigures.model_fields if name.endswith("_seconds"))
SERIES_COLUMNS = tuple(name for name in Configuration.model_fields if name != "blocks")
"""Columns that distinguish the series of a figure."""

SAMPLE_COLUMNS = {
    "train_step_seconds": "train_step_samples",
    "forward_seconds": "forward_samples",
    "inference_seconds": "inference_samples",
}
"""Column of raw samples of each time's column."""

ROUNDS_COLUMN, PROCESSES_COLUMN = "sample_rounds", "sample_processes"
"""Columns of the round and the process of each sample."""

GROWING_COLUMNS = {column: f"growing_{samples}" for column, samples in SAMPLE_COLUMNS.items()}
"""Column of the part that grows with depth in each raw sample of a time's column."""

_STEP_COLUMNS = ("flops", "floor_flops", "floor_bytes")
_QUOTIENTS = ("train_step_relative", "flops_per_second", "floor_ratio_bytes", "floor_ratio_time")


def to_frame(records: Iterable[tuple[str, Record]]) -> pd.DataFrame:
    """A row per record, with the name of its report; times are medians of their samples in seconds, memory is in bytes.

    Beside the fields of records:

    - `noise`: names of the disturbances of the times, joined by commas; empty if there were none, or nothing was timed.
    - `train_step_relative`: the training step over the yardstick's product of matrices at the same time, which can be
      compared even if the machine's speed has changed.
    - `flops_per_second`: achieved in the training step.
    - `floor_ratio_bytes`: peak allocated over the memory that any computation of the step needs.
    - `floor_ratio_time`: the training step over the least time that it needs, at the speed of the yardstick.
    - `train_step_samples`, `forward_samples`, `inference_samples`: tuples of seconds in the order in which they were taken.
    - `sample_rounds`, `sample_processes`: round and process of each sample; cells with samples of one round took turns. Empty for
      cells that were timed alone.
    - `growing_train_step_samples`, `growing_forward_samples`, `growing_inference_samples`: seconds of the parts that grow with
      depth in each sample; missing where they are not known.
    - `notes`: further remarks, joined by semicolons; empty if there are none.
    """
    columns = ["report", *Configuration.model_fields, "replicate", "status", "kind", "message", "data_source"]
    columns += ["environment", "source", "probe", *MEMORY_COLUMNS, *TIME_COLUMNS, "noise", *_STEP_COLUMNS, *_QUOTIENTS]
    columns += [*SAMPLE_COLUMNS.values(), ROUNDS_COLUMN, PROCESSES_COLUMN, *GROWING_COLUMNS.values(), "notes"]
    frame = pd.DataFrame([_row(report, record) for report, record in records], columns=columns)
    # Whole numbers stay whole even if some cells have none.
    whole = dict.fromkeys((*MEMORY_COLUMNS, *_STEP_COLUMNS), "Int64")
    return frame.astype(whole | dict.fromkeys((*TIME_COLUMNS, *_QUOTIENTS), "float64"))


def _row(report: str, record: Record) -> dict[str, object]:
    row: dict[str, object] = {"report": report, **record.cell.configuration.options(), ROUNDS_COLUMN: (), PROCESSES_COLUMN: ()}
    row |= {"replicate": record.cell.replicate, "status": record.status, "kind": record.kind}
    row |= {"message": record.message, "data_source": record.data_source, "environment": record.environment}
    row |= {"source": record.cell.source}
    if record.memory is not None:
        row |= {"probe": record.memory.probe} | {name: getattr(record.memory, name) for name in MEMORY_COLUMNS}
    if record.time is not None:
        row |= {name: median(samples) for name in TIME_COLUMNS if (samples := getattr(record.time, name))}
        row |= {column: tuple(getattr(record.time, name)) for name, column in SAMPLE_COLUMNS.items()}
        row |= {ROUNDS_COLUMN: tuple(record.time.rounds), PROCESSES_COLUMN: tuple(record.time.processes)}
        if record.time.growing is not None:
            row |= {column: tuple(getattr(record.time.growing, name)) for name, column in GROWING_COLUMNS.items()}
    step = record.believed_step()
    if step is not None:
        row |= {name: getattr(step, name) for name in _STEP_COLUMNS}
    row["noise"] = ",".join(record.time.noise) if record.time else ""
    row["notes"] = "; ".join([*record.notes, *(record.step.notes if record.step else [])])
    return row | _quotients(record.memory, record.time, step)


def _quotients(memory: MemoryFigures | None, time: TimeFigures | None, step: StepFigures | None) -> dict[str, float]:
    """Quotients of several figures of one record, as far as they are there."""
    train = median(time.train_step_seconds) if time and time.train_step_seconds else None
    yardstick = median(time.yardstick_seconds) if time and time.yardstick_seconds else None
    found: dict[str, float] = {}
    if train and yardstick:
        found["train_step_relative"] = train / yardstick
    if train and step and step.flops:
        found["flops_per_second"] = step.flops / train
    if memory and memory.peak_allocated_bytes is not None and step and step.floor_bytes:
        found["floor_ratio_bytes"] = memory.peak_allocated_bytes / step.floor_bytes
    if train and yardstick and time and time.yardstick_flops and step and step.floor_flops:
        found["floor_ratio_time"] = train / (step.floor_flops * yardstick / time.yardstick_flops)
    return found


def plain(value: Any) -> Any:
    """A value of a frame as Python's own: None if it is missing, and whole numbers whole."""
    if value is None or value is pd.NA or value != value:
        return None
    if isinstance(value, bool | str | int):
        return value
    number = float(value)
    return int(number) if number.is_integer() else number
