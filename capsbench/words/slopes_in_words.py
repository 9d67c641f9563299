"""A slope in words, alike wherever it is printed: a number, no measurable change, or no line."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from capsbench.axes import basis_form, basis_text, per_unit, term_unit
from capsbench.frame import AXIS_COLUMN
from capsbench.sizes import Unit
from capsbench.stats.linearity import CURVES, Shape
from capsbench.stats.metrics import METRICS
from capsbench.stats.slopes import REFERENCE_MODEL
from capsbench.words.units import common_unit, quantity_text, ratio_in_words, slope_text, slope_values

Row = Mapping[Any, Any] | pd.Series
"""A row of the table of slopes."""

NOISY = "~"
"""Sign after a time that something disturbed."""
INEXACT = "≈ "
"""Mark before every predicted figure that is not exact, and before every slope of such figures and its ratio."""
INEXACT_NOTE = "≈ marks predicted figures that are not exact, and what follows from them"


def row_shape(row: Row) -> Shape:
    """Shape of the values behind a slope."""
    shape: Shape = row["shape"]
    return shape


def inexact_mark(certainty: object) -> str:
    """The mark before a figure of this certainty: empty for an exact one and for a measured one, which has none."""
    return INEXACT if certainty in ("modelled", "guessed") else ""


def row_mark(row: Row) -> str:
    """The mark before the slope of a row, or before another estimate in it."""
    return inexact_mark(row.get("certainty"))


def within_text(reach: float, *, is_bytes: bool, unit: Unit | None = None) -> str:
    """Bound on a slope that cannot be distinguished from 0: `within ± 76.6 ms`."""
    return f"within ± {quantity_text(reach, is_bytes=is_bytes, unit=unit)}"


def slope_in_words(shape: Shape, slope: float, low: float, high: float, *, is_bytes: bool, unit: Unit | None = None) -> str:
    """Text `8.3 ± 0.4 ms`, or `no change measurable within ± 76.6 ms` for a slope that cannot be distinguished from 0.

    Args:
        shape: shape of the values behind it.
        slope: bytes or seconds per unit of the axis.
        low: one end of its interval; NaN where there is none.
        high: the other end.
        is_bytes: whether its unit is bytes.
        unit: unit to print it in; by default the one that suits it.
    """
    if shape == "no change measurable":
        return f"{shape} {within_text(max(abs(low), abs(high)), is_bytes=is_bytes, unit=unit)}"
    return slope_text(slope, low, high, is_bytes=is_bytes, unit=unit)


def column_unit(rows: Iterable[Row]) -> Unit:
    """The unit in which the slopes of several rows of one metric are printed in one column."""
    known, is_bytes = [], True
    for row in rows:
        is_bytes = METRICS[row["metric"]].is_bytes
        if row_shape(row) == "no change measurable":
            known.append(max(abs(row["slope_low"]), abs(row["slope_high"])))
        elif row_shape(row) not in CURVES:
            known += slope_values(row["slope"], row["slope_low"], row["slope_high"], is_bytes=is_bytes)
    return common_unit(known, is_bytes=is_bytes)


def row_slope(row: Row, unit: Unit | None = None) -> str:
    """The slope of a row in words, without its unit; a curve has both: `12.30 KiB per token and 48 B per pair of tokens`.

    A slope of predicted figures that are not exact is marked: `≈ 8.00 KiB`.
    """
    is_bytes = METRICS[row["metric"]].is_bytes
    if row_shape(row) in CURVES:
        return row_mark(row) + curve_in_words(row, is_bytes=is_bytes)
    text = slope_in_words(row_shape(row), row["slope"], row["slope_low"], row["slope_high"], is_bytes=is_bytes, unit=unit)
    return row_mark(row) + text


def curve_in_words(row: Row, *, is_bytes: bool) -> str:
    """The terms of a curve: `12.30 KiB per token and 48 B per pair of tokens`, `8.00 GiB divided by world size`.

    A line that cannot be distinguished from none is left out: `48 B per pair of tokens`.
    """
    axis, shape = str(row[AXIS_COLUMN]), row_shape(row)
    term = slope_text(row["term"], row["term_low"], row["term_high"], is_bytes=is_bytes)
    if shape == "inverse":
        return f"{term} {term_unit(axis, shape)}"
    per_pair = f"{term} {term_unit(axis, 'quadratic')}"
    if float(row["slope_low"]) <= 0 <= float(row["slope_high"]):
        return per_pair
    slope = slope_text(row["slope"], row["slope_low"], row["slope_high"], is_bytes=is_bytes)
    return f"{slope} {per_unit(axis)} and {per_pair}"


def row_cost(row: Row) -> str:
    """The slope of a row with its unit: `10.00 MiB per block`."""
    text = row_slope(row)
    return text if row_shape(row) in CURVES else f"{text} {per_unit(str(row[AXIS_COLUMN]))}"


def is_reference(row: Row) -> bool:
    """Return whether a row is of the series that others are compared with, and which needs no ratio to itself."""
    return bool(row["model"] == REFERENCE_MODEL and row["memory"] == "stored")


def row_ratio(row: Row) -> str:
    """The ratio of a row with its interval; empty where there is none, and for the reference itself.

    It has the mark of its slope, since the reference's figures are never less certain than those of the network that is compared.
    """
    ratio = row["ratio_to_rescapsnet"]
    known = not is_reference(row) and not pd.isna(ratio)
    return row_mark(row) + ratio_in_words(ratio, row["ratio_low"], row["ratio_high"]) if known else ""


def row_remarks(row: Row) -> list[str]:
    """Remarks on the slope of a row: `not a line`, `no interval` if two values alone give none, that the rest grows too.

    A declared basis has one if it does not fit, or if the positions are too few for it or for a check of it.
    """
    found = ["not a line"] if row_shape(row) == "not a line" else []
    unknown = bool(np.isnan(float(row["slope_low"])))
    found += ["no interval"] if unknown and not METRICS[row["metric"]].repeats else []
    found += declared_remarks(row)
    return [*found, "whole step: its rest grows too"] if row["basis"] == "turns" and not np.isnan(row["rest_low"]) else found


def declared_remarks(row: Row) -> list[str]:
    """Remarks on a basis that was declared: `off {1, n} by up to 12.00 KiB`."""
    declared: object = row["declared"]
    if not isinstance(declared, str):  # missing, if the basis was found
        return []
    shape, metric = row_shape(row), METRICS[row["metric"]]
    form = basis_form(str(row[AXIS_COLUMN]), declared)
    if not np.isnan(float(row["misfit"])):
        return [f"off {basis_text(form)} by up to {quantity_text(row['misfit'], is_bytes=metric.is_bytes)}"]
    if form != "line" and shape != form:
        return [f"too few positions for {basis_text(form)}"]
    return [f"no position left to check {basis_text(form)}"] if shape in CURVES and np.isnan(float(row["term_low"])) else []


def row_basis(row: Row) -> str:
    """The part of a step that was timed, if cells took turns: `in the blocks and the optimizer`; empty otherwise."""
    if row["basis"] == "cells":
        return ""
    step = "step" if row["metric"] == "train" else "pass"
    growing = "blocks" if row[AXIS_COLUMN] == "blocks" else "growing parts"
    if row["basis"] == "turns":
        return f"over the whole {step}"
    return f"in the {growing}{' and the optimizer' if row['metric'] == 'train' else ''}"


def curve_note(table: pd.DataFrame) -> str:
    """The way to a curve, if bytes over an axis other than blocks lie on no line and no basis was declared; else empty.

    Args:
        table: slopes along one axis.
    """
    for row in table[table["shape"] == "not a line"].to_dict("records"):
        axis, metric = str(row[AXIS_COLUMN]), METRICS[row["metric"]]
        if metric.repeats and metric.name != "reserved" and axis != "blocks" and not isinstance(row["declared"], str):
            basis = f"--basis {axis.replace('_', '-')}=1,n,n²"
            return f"bytes on no line: a square shows in four positions or more if it is exact, and {basis} fits one in any case"
    return ""


def basis_note(table: pd.DataFrame) -> str:
    """The parts of a step that slopes of times are of, for all rows: `training time over the whole step`; empty for none."""
    found: dict[str, list[str]] = {}
    for row in table[table["basis"] != "cells"].to_dict("records"):
        found.setdefault(row["metric"], []).append(row_basis(row))
    parts = [f"{METRICS[name].title} {' or '.join(dict.fromkeys(words))}" for name, words in found.items()]
    return f"cells were timed in turn: {', '.join(parts)}" if parts else ""
