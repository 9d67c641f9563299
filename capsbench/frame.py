"""Records as a data frame: the columns of `capsbench.load`, units in their names."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from statistics import median
from typing import TYPE_CHECKING, Any

import pandas as pd

from capsbench.axes import IMAGE_SIZE, AxisForm
from capsbench.catalog import SPECS
from capsbench.errors import ConfigurationError, suggesting
from capsbench.options import AXES_OF_FIELDS, channels_of, settings_text
from capsbench.records import Configuration, MemoryFigures, Record, StepFigures, TimeFigures

if TYPE_CHECKING:
    from capsbench.store.folder import ReportFolder

MEMORY_COLUMNS = tuple(name for name in MemoryFigures.model_fields if name.endswith("_bytes"))
TIME_COLUMNS = tuple(name for name in TimeFigures.model_fields if name.endswith("_seconds"))
SERIES_COLUMNS = tuple(Configuration.model_fields)
"""Columns of options, which distinguish the series of a figure; along an axis, its own one is empty."""

AXES_COLUMN, POSITIONS_COLUMN, SETTINGS_COLUMN = "axes", "positions", "settings_by_name"
"""Columns of what a report varies, of where a cell lies on each axis that its network has, and of the settings of a case."""

SQUARE_COLUMN = "square_images"
"""Column of whether the network is given square images, whose position on the axis `image_shape` is then the square of a side."""

BASES_COLUMN = "bases"
"""Column of the declared forms of costs over axes, by the axis's name (`capsbench.axes.AxisForm`)."""

CERTAINTY_COLUMN = "certainty"
"""Column of the certainty of each figure of a predicted record, by the figure's name; missing for measured ones."""

AXIS_COLUMN, POSITION_COLUMN = "axis", "position"
"""Columns that `along` adds: the name of the axis, and where a cell lies on it."""

SAMPLE_COLUMNS = {
    "train_step_seconds": "train_step_samples",
    "forward_seconds": "forward_samples",
    "inference_seconds": "inference_samples",
}
"""Column of raw samples of each time's column."""

ROUNDS_COLUMN, PROCESSES_COLUMN = "sample_rounds", "sample_processes"
"""Columns of the round and the process of each sample."""

GROWING_COLUMNS = {column: f"growing_{samples}" for column, samples in SAMPLE_COLUMNS.items()}
"""Column of the part that grows along an axis in each raw sample of a time's column."""

GROWING_AXIS_COLUMN = "growing_axis"
"""Column of the name of that axis."""

_STEP_COLUMNS = ("flops", "floor_flops", "floor_bytes")
_QUOTIENTS = ("train_step_relative", "flops_per_second", "floor_ratio_bytes", "floor_ratio_time")


def to_frame(
    records: Iterable[tuple[str, Record]],
    axes: Iterable[Sequence[str]] | None = None,
    bases: Iterable[Mapping[str, AxisForm]] | None = None,
) -> pd.DataFrame:
    """A row per record, with the name of its report; times are medians of their samples in seconds, memory is in bytes.

    In addition to the fields of records:

    - `axes`: names of what the report varies, such as `("blocks",)` or `("length", "batch_size")`.
    - `positions`: where the cell lies on each axis that its network has, by the axis's name.
    - `square_images`: whether the network is given images that are as wide as they are high.
    - `bases`: declared forms of costs over axes, by the axis's name; empty where the basis is to be found.
    - `certainty`: the certainty of each figure of a predicted record, by its name; missing for measured ones.
    - `settings`, `settings_by_name`: settings of a case as one text, and as a dictionary; missing for other networks.

    - `noise`: names of the disturbances of the times, joined by commas; empty if there were none, or nothing was timed.
    - `train_step_relative`: the training step over the yardstick's product of matrices at the same time, which can be
      compared even if the machine's speed has changed.
    - `flops_per_second`: achieved in the training step.
    - `floor_ratio_bytes`: peak allocated over the memory that any computation of the step needs.
    - `floor_ratio_time`: the training step over the least time that it needs, at the speed of the yardstick.
    - `train_step_samples`, `forward_samples`, `inference_samples`: tuples of seconds in the order in which they were taken.
    - `sample_rounds`, `sample_processes`: round and process of each sample; cells with samples of one round took turns. Empty for
      cells that were timed alone.
    - `growing_train_step_samples`, `growing_forward_samples`, `growing_inference_samples`: seconds of the parts that grow along
      an axis in each sample; missing where they are not known.
    - `growing_axis`: name of that axis.
    - `notes`: further remarks, joined by semicolons; empty if there are none.

    Args:
        records: names of reports, and their records.
        axes: what the report of each record varies; by default blocks.
        bases: forms that are declared in the report of each record; by default none.
    """
    columns = ["report", *Configuration.model_fields, "replicate", "status", "kind", "message", "data_source"]
    columns += ["environment", "source", "probe", *MEMORY_COLUMNS, *TIME_COLUMNS, "noise", *_STEP_COLUMNS, *_QUOTIENTS]
    columns += [
        *SAMPLE_COLUMNS.values(),
        ROUNDS_COLUMN,
        PROCESSES_COLUMN,
        *GROWING_COLUMNS.values(),
        GROWING_AXIS_COLUMN,
        "notes",
    ]
    columns += [AXES_COLUMN, POSITIONS_COLUMN, SQUARE_COLUMN, SETTINGS_COLUMN, BASES_COLUMN, CERTAINTY_COLUMN]
    named = zip(records, repeat(("blocks",)) if axes is None else axes, repeat({}) if bases is None else bases, strict=False)
    rows = [
        _row(report, record) | {AXES_COLUMN: tuple(names), BASES_COLUMN: dict(forms)} for (report, record), names, forms in named
    ]
    frame = pd.DataFrame(rows, columns=columns)
    # Whole numbers stay whole even if some cells have none.
    whole = dict.fromkeys((*MEMORY_COLUMNS, *_STEP_COLUMNS), "Int64")
    return frame.astype(whole | dict.fromkeys((*TIME_COLUMNS, *_QUOTIENTS), "float64"))


def frame_of(reports: Iterable["ReportFolder"]) -> pd.DataFrame:
    """The records of several reports as one data frame."""
    records = [(report, record) for report in reports for record in report.records]
    return to_frame(
        ((report.name, record) for report, record in records),
        [report.axes for report, _ in records],
        [report.bases for report, _ in records],
    )


def _row(report: str, record: Record) -> dict[str, object]:
    row: dict[str, object] = {"report": report, **record.cell.configuration.options(), ROUNDS_COLUMN: (), PROCESSES_COLUMN: ()}
    row |= {"replicate": record.cell.replicate, "status": record.status, "kind": record.kind}
    row |= {"message": record.message, "data_source": record.data_source, "environment": record.environment}
    row |= {"source": record.cell.source}
    settings = record.cell.configuration.settings
    row |= {SETTINGS_COLUMN: None if settings is None else dict(settings)}
    row |= {POSITIONS_COLUMN: _positions(record.cell.configuration)}
    row |= {SQUARE_COLUMN: record.cell.configuration.images_are_square()}
    if record.memory is not None:
        row |= {"probe": record.memory.probe} | {name: getattr(record.memory, name) for name in MEMORY_COLUMNS}
        row[CERTAINTY_COLUMN] = record.memory.certainty
    if record.time is not None:
        row |= {name: median(samples) for name in TIME_COLUMNS if (samples := getattr(record.time, name))}
        row |= {column: tuple(getattr(record.time, name)) for name, column in SAMPLE_COLUMNS.items()}
        row |= {ROUNDS_COLUMN: tuple(record.time.rounds), PROCESSES_COLUMN: tuple(record.time.processes)}
        if record.time.growing is not None:
            row |= {column: tuple(getattr(record.time.growing, name)) for name, column in GROWING_COLUMNS.items()}
            row[GROWING_AXIS_COLUMN] = record.time.growing.axis
    step = record.believed_step()
    if step is not None:
        row |= {name: getattr(step, name) for name in _STEP_COLUMNS}
    row["noise"] = ",".join(record.time.noise) if record.time else ""
    row["notes"] = "; ".join([*record.notes, *(record.step.notes if record.step else [])])
    return row | _quotients(record.memory, record.time, step)


def _positions(configuration: Configuration) -> dict[str, float]:
    """Positions of a cell, by the axes that its network has."""
    # Records may be of a data set that this version does not have, whose images have no size that is known.
    unknown = () if configuration.dataset in SPECS else ("classes", "image_shape")
    names = (*(axis for axis in AXES_OF_FIELDS if axis not in unknown), *dict(configuration.settings or ()))
    return {axis: place for axis in names if (place := configuration.position(axis)) is not None}


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


def axes_in(frame: pd.DataFrame) -> list[str]:
    """Names of what the reports of a frame vary, in the order of first mention."""
    if AXES_COLUMN not in frame.columns:
        return ["blocks"]
    return list(dict.fromkeys(name for names in frame[AXES_COLUMN] for name in names)) or ["blocks"]


def along(frame: pd.DataFrame, axis: str | None = None) -> pd.DataFrame:
    """A frame from `load` along an axis: with the columns `axis` and `position`, and without the axis among the series' options.

    Args:
        frame: frame with a row per record; one that lies along an axis already is returned as it is.
        axis: name of the axis, whose rows are those that have a position on it. By default each report lies along its own axes:
            its records once for each. A network that lacks the first of them has its position 0 there.

    Raises:
        ConfigurationError: no row has a position on the given axis.
    """
    if AXIS_COLUMN in frame.columns:
        return frame if axis is None else frame[frame[AXIS_COLUMN] == axis]
    if axis is not None:
        at = positions(frame, axis)
        if axis == IMAGE_SIZE and at.isna().all():
            return along(frame, "image_shape")  # the images of a network that has no setting of this name
        if len(frame) and at.isna().all():
            named = sorted({name for names in frame.get(POSITIONS_COLUMN, ()) for name in names})
            known = [name for name in named if positions(frame, name).nunique() > 1] or named
            hint = suggesting(axis, known, f"`along` is one of {', '.join(known)}")
            raise ConfigurationError(f"no record here lies on the axis '{axis}'", hint)
        return without_axis(frame, axis).assign(axis=axis, position=at)[at.notna()]
    names = axes_in(frame)
    if names == ["blocks"]:
        return without_axis(frame, "blocks").assign(axis="blocks", position=positions(frame, "blocks").fillna(0.0))
    parts = []
    for name in names:
        rows = frame[[name in own for own in frame[AXES_COLUMN]]]
        at = positions(rows, name)
        first = [own[0] == name for own in rows[AXES_COLUMN]]
        at = at.where(at.notna() | ~pd.Series(first, index=rows.index), 0.0)
        part = without_axis(rows, name).assign(axis=name, position=at)
        parts.append(part[at.notna()])
    return pd.concat(parts, ignore_index=True)


def along_with_levels(frame: pd.DataFrame, axis: str) -> pd.DataFrame:
    """A frame along one axis, with the rows of networks that lack it though it is the first axis of their report.

    Args:
        frame: frame from `load`, or from `along`.
        axis: name of the axis.
    """
    if AXIS_COLUMN in frame.columns:
        return along(frame, axis)
    levels = along(along(frame), axis)
    levels = levels[lacking(levels)]
    if len(levels) and positions(frame, axis).isna().all():
        return levels
    placed = along(frame, axis)
    return pd.concat([placed, levels], ignore_index=True) if len(levels) else placed


def positions(frame: pd.DataFrame, axis: str) -> pd.Series:
    """Positions on an axis of the rows of a frame from `load`; NaN for those that do not lie on it."""
    if POSITIONS_COLUMN not in frame.columns:
        return frame[axis].astype("float64") if axis in frame.columns else pd.Series(float("nan"), index=frame.index)
    return pd.Series([known.get(axis, float("nan")) for known in frame[POSITIONS_COLUMN]], index=frame.index, dtype="float64")


def all_square(frame: pd.DataFrame) -> bool:
    """Return whether all rows of a frame are of square images."""
    return SQUARE_COLUMN in frame.columns and len(frame) > 0 and bool(frame[SQUARE_COLUMN].all())


def lacking(frame: pd.DataFrame) -> pd.Series:
    """Mask of the rows of a frame along an axis whose networks do not have it."""
    if POSITIONS_COLUMN not in frame.columns:
        return pd.Series(False, index=frame.index)
    pairs = zip(frame[AXIS_COLUMN], frame[POSITIONS_COLUMN], strict=True)
    return pd.Series([axis not in known for axis, known in pairs], index=frame.index, dtype=bool)


def without_axis(frame: pd.DataFrame, axis: str) -> pd.DataFrame:
    """A frame whose options no longer distinguish positions on an axis."""
    if axis == "image_shape" and axis in frame.columns:
        shapes = [channels_of(str(dataset), plain(shape)) for dataset, shape in zip(frame["dataset"], frame[axis], strict=True)]
        return frame.assign(**{axis: pd.Series(shapes, index=frame.index, dtype=object)})
    if axis in frame.columns and axis in Configuration.model_fields:
        return frame.assign(**{axis: None})
    if SETTINGS_COLUMN not in frame.columns:
        return frame
    rest = [
        {name: value for name, value in known.items() if name != axis} if isinstance(known, Mapping) else None
        for known in frame[SETTINGS_COLUMN]
    ]
    texts = [settings_text(tuple(known.items())) if known else None for known in rest]
    settings, by_name = (pd.Series(known, index=frame.index, dtype=object) for known in (texts, rest))
    return frame.assign(settings=settings, settings_by_name=by_name)
