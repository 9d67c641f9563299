"""Reports on a terminal: slopes, each with a small chart of the values behind it."""

import textwrap
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import pandas as pd
from rich.text import Text

from capsbench.axes import per_unit
from capsbench.figures.sparks import BLOCKS, scale_of, spark, value_ranges
from capsbench.frame import AXIS_COLUMN, POSITION_COLUMN, along, plain
from capsbench.gate.findings import Labels
from capsbench.stats.line_fit import values_by_position
from capsbench.stats.linearity import CURVES
from capsbench.stats.metrics import METRICS
from capsbench.stats.slopes import by_series, series_of
from capsbench.terminal.tables import SHOWN
from capsbench.words.along import over_text, places_text
from capsbench.words.labels import Series
from capsbench.words.slopes_in_words import (
    INEXACT_NOTE,
    basis_note,
    curve_note,
    row_mark,
    row_ratio,
    row_remarks,
    row_shape,
    row_slope,
)


def show_lines(frame: pd.DataFrame, table: pd.DataFrame, blocks: str = BLOCKS) -> list[Text]:
    """Slopes with charts, under the name of each series; nothing is wider than 80 columns, except single words of names.

    Args:
        frame: all records.
        table: their slopes.
        blocks: the characters of charts, from low to high.
    """
    placed = along(frame)
    axes = list(dict.fromkeys((*placed[AXIS_COLUMN], *table[AXIS_COLUMN])))
    return [
        line
        for axis in axes
        for line in _lines_along(axis, placed[placed[AXIS_COLUMN] == axis], table[table[AXIS_COLUMN] == axis], blocks)
    ]


def _lines_along(axis: str, frame: pd.DataFrame, table: pd.DataFrame, blocks: str) -> list[Text]:
    """The lines of `show_lines` along one axis."""
    values, full = _values(frame), _full(frame)
    ranges = value_ranges((scale, own) for (_, scale), own in values.items())
    groups = list(by_series(table))
    fitted = {_name(series)[:-1] for series, _ in groups}
    # Series that ran out of memory before they had a slope follow those that have one.
    unfitted = [(series, at) for name, (series, at) in full.items() if name not in fitted]
    labels = Labels(series for series, _ in [*groups, *unfitted])
    found = []
    for series, rows in groups:
        name = _name(series)
        found += _title(labels.of(series), axis, full[name[:-1]][1] if name[:-1] in full else None)
        by_metric = {row["metric"]: row for row in rows.to_dict("records")}
        for metric in (METRICS[name] for name in SHOWN if name in by_metric):
            scale = scale_of(series, metric.name)
            own = values.get((name, scale), [])
            chart = spark(own, *ranges[scale], blocks) if own else ""
            found += map(Text, _filled(f"  {metric.head:<{_NAME}}{chart:<{_CHART}}", _figures(by_metric[metric.name])))
    per = per_unit(axis)
    over = over_text(axis) if len(over_text(axis)) <= _CHART else "chart"
    head = Text(f"  {per:<{_NAME}}{over:<{_CHART}}{'slope':>20}{'× ResCapsNet':>20}", style="dim")
    ended = [text for series, at in unfitted for text in _title(labels.of(series), axis, at)]
    shown = table[table["metric"].isin(SHOWN)]
    notes = [basis_note(shown), curve_note(shown), INEXACT_NOTE if any(row_mark(row) for row in shown.to_dict("records")) else ""]
    wrapped = [line for note in notes for line in textwrap.wrap(note, _WIDTH, initial_indent="  ", subsequent_indent=_INDENT)]
    beneath = [Text(line, style="dim") for line in wrapped]
    return [*([head, *found, *beneath] if found else []), *ended]


Name = tuple[object, ...]
_Key = tuple[Name, tuple[str, ...]]
"""A series, and the scale of its chart."""

_WIDTH = 80
_NAME, _CHART = 11, 13
"""Widths of the columns of names and charts."""
_COLUMNS = 66
"""Width in columns without remarks."""
_INDENT = "    "


def _title(label: str, axis: str, full: float | None) -> list[Text]:
    """The name of a series, and the position at which it ran out of memory."""
    remark = "" if full is None else f"  out of memory at {places_text(axis, [full])}" if full else "  out of memory"
    *above, last = textwrap.wrap(label, _WIDTH, subsequent_indent=_INDENT, break_long_words=False) or [label]
    fits = len(last) + len(remark) <= _WIDTH
    title = [Text(text, style="bold") for text in (*above, last)]
    if fits:
        title[-1].append(remark, style="not bold yellow")
    return title if fits else [*title, Text(f"  {remark}", style="yellow")]


def _filled(start: str, parts: Iterable[str]) -> list[str]:
    """A line of text with its parts after it; those that do not fit go beneath."""
    found = [start]
    for part in filter(str.strip, parts):
        # A part as wide as its column still has a space around it.
        apart = part if " " in (part[0], found[-1][-1]) else f" {part}"
        if len(found[-1]) + len(apart) <= _WIDTH:
            found[-1] += apart
        else:
            found.append(f"{_INDENT}{part.strip()}".rjust(_COLUMNS))
    return found


def _name(series: Series) -> Name:
    return tuple(plain(value) for value in series.values())


def _values(frame: pd.DataFrame) -> dict[_Key, list[float]]:
    """Values by series and metric, in the order of positions."""
    found: dict[_Key, list[float]] = {}
    for series, cells in series_of(frame):
        for name in SHOWN:
            known = cells[cells[METRICS[name].column].notna()]
            means = values_by_position(known, METRICS[name])
            if means:
                found[_name(series), scale_of(series, name)] = list(means.values())
    return found


def _full(frame: pd.DataFrame) -> dict[Name, tuple[Series, float]]:
    """Series that ran out of memory, on any machine, and the least position at which they did."""
    found: dict[Name, tuple[Series, float]] = {}
    for series, rows in by_series(frame[frame["status"] == "oom"]):
        name, at = _name(series)[:-1], float(rows[POSITION_COLUMN].min())
        found[name] = series, min(found[name][1] if name in found else at, at)
    return found


def _figures(row: Mapping[Hashable, Any]) -> list[str]:
    """The columns of a slope: slope, ratio and remarks. A note that no change is measurable takes the room of the ratio too."""
    remarks = f"  {', '.join([*row_remarks(row), *(['disturbed'] if row['noise'] else [])])}"
    if row_shape(row) == "no change measurable":
        return [f"{row_slope(row):>40}", remarks]
    if row_shape(row) in CURVES:
        return [f"  {row_slope(row)}", remarks]
    return [f"{row_slope(row):>20}", f"{row_ratio(row):>20}", remarks]
