"""Slopes, cells and accuracies as tables for a terminal."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from capsbench.axes import axis_title, per_unit
from capsbench.frame import AXIS_COLUMN, CERTAINTY_COLUMN, POSITION_COLUMN, along, axes_in, positions, without_axis
from capsbench.sizes import Unit
from capsbench.stats.least_squares import fit_slope
from capsbench.stats.metrics import METRICS, Metric
from capsbench.stats.slopes import by_series, noises, series_columns, series_of
from capsbench.words.accuracy import accuracy_cells
from capsbench.words.along import number_text, places_text
from capsbench.words.disturbances import disturbed_by
from capsbench.words.labels import Names, dataset_title
from capsbench.words.printable import cell as text_cell
from capsbench.words.printable import printable
from capsbench.words.slopes_in_words import (
    INEXACT_NOTE,
    NOISY,
    basis_note,
    column_unit,
    curve_note,
    inexact_mark,
    row_mark,
    row_ratio,
    row_remarks,
    row_shape,
    row_slope,
    within_text,
)
from capsbench.words.units import bytes_text, common_unit, quantity_text, ratio_text, slope_text

_TEXT_WIDTH, _MOST_ROWS = 100, 12
"""Columns and rows of a table in plain text."""
SHOWN = ("retained", "peak", "reserved", "train", "inference")
_OF_A_CELL = ("retained", "peak", "train", "inference")
_STANDING = ("state_bytes", "gradient_bytes", "optimizer_bytes")


def slopes_table(table: pd.DataFrame, *, most: int | None = None) -> Table:
    """The table of `fitted_slopes` along one axis, a row per series, a column per metric.

    Beneath each slope stands its ratio to ResCapsNet with its interval, or that it is not a line. For a slope that cannot be
    distinguished from 0 the table gives its bound. `~` marks noisy times. A line beneath the table names the part of a step that
    slopes of times are of, where cells took turns.

    Args:
        table: the slopes.
        most: largest number of rows; a line beneath the table counts the others. By default all are shown.
    """
    shown = [name for name in SHOWN if (table["metric"] == name).any()]
    datasets = table["dataset"].nunique() > 1
    title = f"slope {per_unit(axis_name(table))}"
    if any(row_ratio(row) for row in table[table["metric"].isin(shown)].to_dict("records")):
        title += ", and its ratio to ResCapsNet"
    groups = list(by_series(table))
    further = 0 if most is None else max(0, len(groups) - most)
    more = [f"and {further} more line{'' if further == 1 else 's'}"] * bool(further)
    own = table[table["metric"].isin(shown)]
    marked = any(row_mark(row) for row in own.to_dict("records"))
    footnote = _footnote(table, *more, basis_note(own), curve_note(own), INEXACT_NOTE if marked else "")
    out = Table(title=title, title_justify="left", title_style="bold", box=None, **footnote)
    out.add_column("model", overflow="fold")
    if datasets:
        out.add_column("dataset", overflow="fold")
    for name in shown:
        out.add_column(METRICS[name].head, justify="right", overflow="fold")
    everyone = Names(series for series, _ in groups)
    units = {name: column_unit(table[table["metric"] == name].to_dict("records")) for name in shown}
    for series, rows in groups[:most]:
        by_metric = {row["metric"]: row for _, row in rows.iterrows()}
        cells = [_slope_cell(by_metric.get(name), units[name]) for name in shown]
        names = [text_cell(everyone.of(series))] + ([text_cell(dataset_title(str(series["dataset"])))] if datasets else [])
        out.add_row(*names, *cells)
    return out


def cross_terms_table(table: pd.DataFrame) -> Table:
    """The table of `cross_terms`: a row per series, metric and term."""
    out = Table(title="costs that two axes share", title_justify="left", title_style="bold", box=None)
    return _filled(out, table, "cost", [_per(row) for row in table.to_dict("records")])


def estimates_table(table: pd.DataFrame, at: Mapping[str, float]) -> Table:
    """The table of `predicted_at`: a row per series and metric."""
    where = ", ".join(places_text(axis, [place]) for axis, place in at.items())
    out = Table(title=f"costs at {where}, from all cells", title_justify="left", title_style="bold", box=None)
    return _filled(out, table, "estimate", [_estimate(row) for row in table.to_dict("records")])


def _per(row: Mapping[Any, Any]) -> str:
    """A cost with its unit: `576.00 KiB per block and sample`."""
    return f"{_estimate(row)} {str(row['unit']).partition(' ')[2]}"


_AT_LEAST = "at least: beyond the measured positions the peak may lie in another moment of the step, and be higher"


def _estimate(row: Mapping[Any, Any]) -> str:
    value, low, high, is_bytes = row["value"], row["low"], row["high"], METRICS[row["metric"]].is_bytes
    if pd.isna(value):
        most = "" if pd.isna(high) else f", but at most {row_mark(row)}{quantity_text(high, is_bytes=is_bytes)}"
        return f"not known{most}: {row['unknown']}"
    if pd.isna(high) and not pd.isna(low):  # a peak outside the positions that were measured
        return f"at least {row_mark(row)}{slope_text(low, low, low, is_bytes=is_bytes)}"
    return row_mark(row) + slope_text(value, low, high, is_bytes=is_bytes)


def _filled(out: Table, table: pd.DataFrame, head: str, texts: Sequence[str]) -> Table:
    """A table with a row per series and metric, and the check by the cell that was left out."""
    notes = [INEXACT_NOTE] * any(row_mark(row) for row in table.to_dict("records"))
    notes += [_AT_LEAST] * any(text.startswith("at least ") for text in texts)
    if notes:
        out.caption, out.caption_justify = "\n".join(notes), "left"
    for name in ("model", "quantity", head, "farthest cell, if left out"):
        out.add_column(name, overflow="fold")
    names = Names(series for series, _ in by_series(table))
    keys = series_columns(table)
    for row, text in zip(table.to_dict("records"), texts, strict=True):
        off = row["held_out_error"]
        check = "-" if pd.isna(off) else "exact" if abs(off) < 1e-12 else f"{100 * off:+.2f} %"
        out.add_row(text_cell(names.of({key: row[key] for key in keys})), METRICS[row["metric"]].title, text, check)
    return out


def cells_table(frame: pd.DataFrame, *, last: int | None = None) -> Table:
    """Records as a row each: positions, memory, times, or the reason that there are none.

    `~` marks noisy times, and `≈` predicted figures that are not exact.

    Args:
        frame: frame from `load`.
        last: number of the last records that are shown; by default all.
    """
    axes = axes_in(frame)
    places = {axis: positions(frame, axis) for axis in axes}
    for axis in axes:
        frame = without_axis(frame, axis)
    rows = frame if last is None else frame.tail(last)
    keys = series_columns(frame)
    everyone = Names(dict(series) for _, series in frame[keys].drop_duplicates().iterrows())
    datasets = frame["dataset"].nunique() > 1
    marked = any(_figure_mark(row, METRICS[name]) for row in rows.to_dict("records") for name in _OF_A_CELL)
    out = Table(box=None, pad_edge=False, **_footnote(rows, INEXACT_NOTE if marked else ""))
    for head in ("model", *(["dataset"] if datasets else []), *(axis_title(axis).lower() for axis in axes)):
        out.add_column(head, overflow="fold")
    for name in _OF_A_CELL:
        out.add_column(METRICS[name].head, justify="right", overflow="fold")
    finished = rows[rows["status"] == "ok"]
    units = {
        name: common_unit(finished[METRICS[name].column].dropna().map(float), is_bytes=METRICS[name].is_bytes)
        for name in _OF_A_CELL
    }
    for (_, row), at in zip(rows.iterrows(), zip(*(places[axis][rows.index] for axis in axes), strict=True), strict=True):
        dataset = [dataset_title(row["dataset"])] if datasets else []
        names = [everyone.of(dict(row[keys])), *dataset, *("-" if pd.isna(place) else number_text(place) for place in at)]
        ended = f"[yellow]{row['status']}[/]"
        figures = [ended] if row["status"] != "ok" else [_figure(row, METRICS[name], units[name]) for name in _OF_A_CELL]
        out.add_row(*map(text_cell, names), *figures)
    return out


def _figure_mark(row: Mapping[Any, Any] | pd.Series, metric: Metric) -> str:
    """The mark before a figure of a record, if it was predicted and is not exact."""
    certainty = row.get(CERTAINTY_COLUMN)
    return inexact_mark(certainty.get(metric.column)) if isinstance(certainty, Mapping) else ""


def _figure(row: pd.Series, metric: Metric, unit: Unit) -> str:
    if pd.isna(row[metric.column]):
        return "-"
    text = _figure_mark(row, metric) + quantity_text(float(row[metric.column]), is_bytes=metric.is_bytes, unit=unit)
    return text + NOISY if row["noise"] and not metric.is_bytes else text


def _footnote(table: pd.DataFrame, *notes: str) -> dict[str, Any]:
    """Arguments with which rich puts lines beneath a table: notes, and the meaning of `~` with the noise."""
    found = noises(table)
    lines = [*filter(None, notes)] + [f"{NOISY} {printable(disturbed_by(found))}"] * bool(found)
    return {"caption": "\n".join(lines), "caption_justify": "left"} if lines else {}


def report_text(frame: pd.DataFrame, table: pd.DataFrame) -> str:
    """A report in plain text: the number of its records, and its slopes, or the last of its records if it has none.

    Args:
        frame: all records.
        table: their slopes.
    """
    tables = [slopes_table(rows, most=_MOST_ROWS) for _, rows in table.groupby(AXIS_COLUMN, sort=False)]
    out = io.StringIO()
    # A name may have colons, which would be read as emoji.
    console = Console(file=out, width=_TEXT_WIDTH, color_system=None, emoji=False, highlight=False)
    for one in tables or [cells_table(frame, last=_MOST_ROWS)]:
        console.print(one)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    count = f"{len(frame)} record{'' if len(frame) == 1 else 's'}"
    return "\n".join([count, *lines])


def accuracies_table(rows: pd.DataFrame, title: str) -> Table:
    """The rows of `stats.seeds.compared_with_paper` as a table."""
    out = Table(title=title, title_justify="left", title_style="bold", box=None)
    heads, lines = accuracy_cells(rows)
    for head in heads:
        left = head in ("data set", "model", "optimizer", "routing")
        out.add_column(head, justify="left" if left else "right", overflow="fold")
    for line in lines:
        out.add_row(*line)
    return out


def axis_name(table: pd.DataFrame) -> str:
    """The axis of a table of slopes along one axis; blocks if it is empty."""
    return str(table[AXIS_COLUMN].iloc[0]) if len(table) else "blocks"


def peak_note(table: pd.DataFrame, frame: pd.DataFrame) -> str | None:
    """A line that explains why the peak hardly moves with depth, if it lies outside the blocks.

    It does if a block adds to the peak only what it adds in weights, gradients and optimizer state.
    """
    frame = along(frame)
    frame, table = (one[one[AXIS_COLUMN] == "blocks"] for one in (frame, table))
    peaks = table[table["metric"] == "peak"]
    keys = series_columns(frame)
    owns = []
    for series, cells in series_of(frame):
        standing = cells[list(_STANDING)].astype("float64").sum(axis=1, min_count=3).dropna()
        blocks = cells.loc[standing.index, POSITION_COLUMN]
        same = peaks[(peaks[keys].map(str) == pd.Series({key: str(series[key]) for key in keys})).all(axis=1)]
        if same.empty or standing.empty:
            continue
        owns.append(fit_slope(blocks.tolist(), standing.tolist()).slope)
        if not abs(same["slope"].iloc[0] - owns[-1]) <= 0.02 * owns[-1]:
            return None
    if not owns:
        return None
    own = max(owns)
    good = frame[(frame["status"] == "ok") & frame["peak_allocated_bytes"].notna()]
    # Each report has a last depth of its own.
    deepest = good[good[POSITION_COLUMN] == good.groupby("report")[POSITION_COLUMN].transform("max")]
    depths = sorted(set(deepest[POSITION_COLUMN]))
    where = f"at {number_text(depths[0])} blocks" if len(depths) == 1 else "at the last depth of each report"
    low, high = (bytes_text(float(value)) for value in deepest["peak_allocated_bytes"].agg(["min", "max"]))
    in_backward = (deepest["peak_backward_bytes"] >= deepest["peak_forward_bytes"]).all()
    return (
        f"The peak ({low if low == high else f'{low} to {high}'} {where}) is reached "
        f"{'in backward ' if in_backward else ''}outside the blocks, so a block moves it only by its weights, gradients and "
        f"optimizer state: {bytes_text(own)}."
    )


def _slope_cell(row: pd.Series | None, unit: Unit) -> str:
    if row is None:
        return "-"
    shape, noisy = row_shape(row), NOISY if row["noise"] else ""
    if shape == "no change measurable":
        reach = max(abs(row["slope_low"]), abs(row["slope_high"]))
        return f"{row_mark(row)}{shape}\n{within_text(reach, is_bytes=METRICS[row['metric']].is_bytes, unit=unit)}{noisy}"
    below = row_remarks(row)
    if shape == "line" and row_ratio(row):
        below.append(f"× {row_mark(row)}{ratio_text(row['ratio_to_rescapsnet'], row['ratio_low'], row['ratio_high'])}")
    return "\n".join([row_slope(row, unit) + noisy, *below])
