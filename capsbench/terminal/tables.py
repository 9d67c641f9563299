"""Slopes, cells and accuracies as tables for a terminal."""

from typing import Any

import pandas as pd
from rich.table import Table

from capsbench.stats.least_squares import fit_slope
from capsbench.stats.metrics import METRICS, Metric
from capsbench.stats.slopes import by_series, noises, series_columns, series_of
from capsbench.words.accuracy import accuracy_cells
from capsbench.words.labels import Names, dataset_title
from capsbench.words.printable import cell as text_cell
from capsbench.words.printable import printable
from capsbench.words.slopes_in_words import basis_note, row_remarks, row_shape, row_slope, within_text
from capsbench.words.units import bytes_text, quantity_text, ratio_text

_NOISY = "~"
SHOWN = ("retained", "peak", "reserved", "train", "inference")
_OF_A_CELL = ("retained", "peak", "train", "inference")
_STANDING = ("state_bytes", "gradient_bytes", "optimizer_bytes")
HEADS = {"retained": "retained", "peak": "peak", "reserved": "reserved", "train": "train step", "inference": "inference"}


def slopes_table(table: pd.DataFrame) -> Table:
    """The table of `fitted_slopes`, a row per series, a column per metric.

    Beneath each slope stands its ratio to ResCapsNet with its interval, or that it is not a line. For a slope that cannot be
    distinguished from 0 the table gives its bound. `~` marks noisy times. A line beneath the table names the part of a step that
    slopes of times are of, where cells took turns.
    """
    shown = [name for name in SHOWN if (table["metric"] == name).any()]
    datasets = table["dataset"].nunique() > 1
    title = "slope per block, and its ratio to ResCapsNet"
    footnote = _footnote(table, basis_note(table[table["metric"].isin(shown)]))
    out = Table(title=title, title_justify="left", title_style="bold", box=None, **footnote)
    out.add_column("model", overflow="fold")
    if datasets:
        out.add_column("dataset", no_wrap=True)
    for name in shown:
        out.add_column(HEADS[name], justify="right", overflow="fold")
    groups = list(by_series(table))
    everyone = Names(series for series, _ in groups)
    for series, rows in groups:
        by_metric = {row["metric"]: row for _, row in rows.iterrows()}
        cells = [_slope_cell(by_metric.get(name)) for name in shown]
        names = [text_cell(everyone.of(series))] + ([text_cell(dataset_title(str(series["dataset"])))] if datasets else [])
        out.add_row(*names, *cells)
    return out


def cells_table(frame: pd.DataFrame, *, last: int | None = None) -> Table:
    """Records as a row each: depth, memory, times, or the reason that there are none; `~` marks noisy times."""
    rows = frame if last is None else frame.tail(last)
    keys = series_columns(frame)
    everyone = Names(dict(series) for _, series in frame[keys].drop_duplicates().iterrows())
    datasets = frame["dataset"].nunique() > 1
    out = Table(box=None, pad_edge=False, **_footnote(rows))
    for head in ("model", *(["dataset"] if datasets else []), "blocks"):
        out.add_column(head)
    for name in _OF_A_CELL:
        out.add_column(HEADS[name], justify="right")
    for _, row in rows.iterrows():
        dataset = [dataset_title(row["dataset"])] if datasets else []
        names = [everyone.of(dict(row[keys])), *dataset, str(row["blocks"])]
        ended = f"[yellow]{row['status']}[/]"
        figures = [ended] if row["status"] != "ok" else [_figure(row, METRICS[name]) for name in _OF_A_CELL]
        out.add_row(*map(text_cell, names), *figures)
    return out


def _figure(row: pd.Series, metric: Metric) -> str:
    if pd.isna(row[metric.column]):
        return "-"
    text = quantity_text(float(row[metric.column]), is_bytes=metric.is_bytes)
    return text + _NOISY if row["noise"] and not metric.is_bytes else text


def _footnote(table: pd.DataFrame, note: str = "") -> dict[str, Any]:
    """Arguments with which rich puts lines beneath a table: a note, and the meaning of `~` with the noise."""
    found = noises(table)
    lines = [note] * bool(note) + [f"{_NOISY} noisy: {printable(', '.join(found))}"] * bool(found)
    return {"caption": "\n".join(lines), "caption_justify": "left"} if lines else {}


def accuracies_table(rows: pd.DataFrame, title: str) -> Table:
    """The rows of `stats.seeds.beside_paper` as a table."""
    out = Table(title=title, title_justify="left", title_style="bold", box=None)
    heads, lines = accuracy_cells(rows)
    for head in heads:
        out.add_column(head, justify="left" if head in ("data set", "model", "optimizer", "routing") else "right", no_wrap=True)
    for line in lines:
        out.add_row(*line)
    return out


def peak_note(table: pd.DataFrame, frame: pd.DataFrame) -> str | None:
    """A line that explains why the peak hardly moves with depth, if it lies outside the blocks.

    It does if a block adds to the peak only what it adds in weights, gradients and optimizer state.
    """
    peaks = table[table["metric"] == "peak"]
    keys = series_columns(frame)
    owns = []
    for series, cells in series_of(frame):
        standing = cells[list(_STANDING)].astype("float64").sum(axis=1, min_count=3).dropna()
        blocks = cells.loc[standing.index, "blocks"]
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
    deepest = good[good["blocks"] == good["blocks"].max()]
    low, high = (bytes_text(float(value)) for value in deepest["peak_allocated_bytes"].agg(["min", "max"]))
    in_backward = (deepest["peak_backward_bytes"] >= deepest["peak_forward_bytes"]).all()
    return (
        f"The peak ({low if low == high else f'{low} to {high}'} at {deepest['blocks'].iloc[0]} blocks) is reached "
        f"{'in backward ' if in_backward else ''}outside the blocks, so a block moves it only by its weights, gradients and "
        f"optimizer state: {bytes_text(own)}."
    )


def _slope_cell(row: pd.Series | None) -> str:
    if row is None:
        return "-"
    shape, noisy = row_shape(row), _NOISY if row["noise"] else ""
    if shape == "no change measurable":
        reach = max(abs(row["slope_low"]), abs(row["slope_high"]))
        return f"{shape}\n{within_text(reach, is_bytes=row['unit'] == 'bytes')}{noisy}"
    below = row_remarks(row)
    if shape == "line" and not pd.isna(ratio := row["ratio_to_rescapsnet"]):
        below.append(f"× {ratio_text(ratio, row['ratio_low'], row['ratio_high'])}")
    return "\n".join([row_slope(row) + noisy, *below])
