"""Slopes as tables for LaTeX, in the style of the package booktabs."""

import math
from collections.abc import Mapping, Sequence
from string import ascii_lowercase
from typing import Any

import pandas as pd

from capsbench.axes import axis_unit
from capsbench.frame import AXIS_COLUMN
from capsbench.gate.findings import Labels
from capsbench.stats.linearity import CURVES
from capsbench.stats.metrics import METRICS
from capsbench.stats.slopes import by_series
from capsbench.terminal.tables import SHOWN
from capsbench.words.disturbances import disturbed_by
from capsbench.words.latex import latex_text
from capsbench.words.slopes_in_words import (
    INEXACT_NOTE,
    Row,
    column_unit,
    is_reference,
    row_mark,
    row_remarks,
    row_shape,
    row_slope,
)
from capsbench.words.units import number_with, range_text, ratio_parts, slope_number

_UNKNOWN = r"\textit{n.s.}"


class _Marks:
    """The letters after slopes, one for each different remark, and the legend that explains them."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}
        self._has_unknown = self._has_inexact = False

    def letters(self, row: Row) -> str:
        """The marks of a row's remarks; those of a slope that is not measurable are its noise alone."""
        unknown = row_shape(row) == "no change measurable"
        self._has_unknown |= unknown
        self._has_inexact |= bool(row_mark(row))
        remarks = [] if unknown else row_remarks(row)
        remarks += [disturbed_by(row["noise"].split(","))] if row["noise"] else []
        letters = [self._letters.setdefault(remark, _letter(len(self._letters))) for remark in remarks]
        return f"$^{{{','.join(letters)}}}$" if letters else ""

    def legend(self) -> list[str]:
        """A comment for each sign and letter that was used."""
        unknown = ["% n.s.: no change measurable within the bound that follows it"] * self._has_unknown
        inexact = [f"% {INEXACT_NOTE}"] * self._has_inexact
        return [*unknown, *inexact, *(f"% {letter}: {remark}" for remark, letter in self._letters.items())]


def slopes_latex(table: pd.DataFrame) -> str:
    """The table of `fitted_slopes` for LaTeX: a tabular per axis, a row per series, the unit of each column in its head.

    Slopes have their 95 % intervals, and ratios to ResCapsNet a column of their own with theirs.
    Letters refer to remarks in the legend above the table: that a slope has no interval, that its times are noisy.
    """
    marks = _Marks()
    parts = [_tabular(str(axis), rows, marks) for axis, rows in table.groupby(AXIS_COLUMN, sort=False)]
    body = "\n\n".join(parts)
    return "\n".join([r"% \usepackage{booktabs}; slopes with their 95 % intervals", *marks.legend(), body])


def _tabular(axis: str, table: pd.DataFrame, marks: _Marks) -> str:
    groups = [(series, {row["metric"]: row for row in rows.to_dict("records")}) for series, rows in by_series(table)]
    labels = Labels(series for series, _ in groups)
    found: dict[str, list[Mapping[Any, Any]]] = {name: [rows[name] for _, rows in groups if name in rows] for name in SHOWN}
    columns = [_Column(name, rows, marks) for name, rows in found.items() if rows]
    heads = ["Network", *(text for column in columns for text in column.heads())]
    units = ["", *(text for column in columns for text in column.units(axis_unit(axis)))]
    lines = [[latex_text(labels.of(series)), *(text for it in columns for text in it.cells(rows))] for series, rows in groups]
    aligned = "l" + "".join("rl" if column.has_ratios else "r" for column in columns)
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{aligned}}}",
            r"\toprule",
            _line(heads),
            _line(units),
            r"\midrule",
            *map(_line, lines),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


class _Column:
    """One metric: a column of slopes in one unit, and one of ratios if there are any."""

    def __init__(self, metric: str, rows: Sequence[Row], marks: _Marks) -> None:
        self._metric = metric
        self._marks = marks
        self._is_bytes = METRICS[metric].is_bytes
        self._unit = column_unit(rows)
        # The terms of a curve have units of their own.
        self._shares_unit = any(row_shape(row) not in CURVES for row in rows)
        self.has_ratios = any(_ratio(row) for row in rows)

    def heads(self) -> list[str]:
        return [METRICS[self._metric].head.capitalize(), *([r"$\times$ ResCapsNet"] if self.has_ratios else [])]

    def units(self, per: str) -> list[str]:
        return [latex_text(f"({self._unit[1]}/{per})") if self._shares_unit else "", *([""] if self.has_ratios else [])]

    def cells(self, rows: Mapping[str, Row]) -> list[str]:
        row = rows.get(self._metric)
        slope, ratio = ("--", "") if row is None else (self._slope(row) + self._marks.letters(row), _ratio(row))
        return [slope, *([ratio] if self.has_ratios else [])]

    def _slope(self, row: Row) -> str:
        size, _, decimals = self._unit
        low, high, mark = row["slope_low"], row["slope_high"], latex_text(row_mark(row))
        if row_shape(row) in CURVES:
            return latex_text(row_slope(row))
        if row_shape(row) == "no change measurable":
            return rf"{mark}{_UNKNOWN} ($\pm${number_with(max(abs(low), abs(high)) / size, decimals)})"
        return mark + latex_text(slope_number(row["slope"], low, high, is_bytes=self._is_bytes, unit=self._unit))


def _ratio(row: Row) -> str:
    """The ratio of a row to ResCapsNet's slope with its interval; empty where there is none, or where it is that slope."""
    if math.isnan(float(row["ratio_to_rescapsnet"])) or is_reference(row):
        return ""
    value, *ends = ratio_parts(row["ratio_to_rescapsnet"], row["ratio_low"], row["ratio_high"])
    value = latex_text(row_mark(row)) + value
    return f"{value} ({latex_text(range_text(*ends))})" if ends else value


def _letter(index: int) -> str:
    """The letter of a remark: a to z, then aa, bb and so on."""
    return ascii_lowercase[index % 26] * (index // 26 + 1)


def _line(cells: list[str]) -> str:
    return f"{' & '.join(cells)} \\\\"
