"""Slopes as tables for LaTeX, in the style of the package booktabs."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from capsbench.axes import axis_unit
from capsbench.frame import AXIS_COLUMN
from capsbench.gate.findings import Labels
from capsbench.stats.linearity import CURVES
from capsbench.stats.metrics import METRICS
from capsbench.stats.slopes import by_series
from capsbench.terminal.tables import HEADS, SHOWN
from capsbench.words.slopes_in_words import column_unit, is_reference, row_shape, row_slope
from capsbench.words.units import joined_text, ratio_parts, slope_values

Row = Mapping[Any, Any]

_PLAIN = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "−": "$-$", "–": "--",
    "γ": r"$\gamma$", "µ": r"\textmu{}", "√": r"$\surd$", "²": r"$^2$",
}  # fmt: skip
"""Signs that LaTeX reads as commands, or lacks."""

_UNKNOWN = r"\textit{n.s.}"
_BENT = r"$^\ast$"
_LEGEND = {
    _UNKNOWN: r"% n.s.: no change measurable within the bound that follows it",
    _BENT: r"% *: not a line",
}


def slopes_latex(table: pd.DataFrame) -> str:
    """The table of `fitted_slopes` for LaTeX: a tabular per axis, a row per series, the unit of each column in its head.

    Slopes have half the width of their 95 % intervals, and ratios to ResCapsNet a column of their own with their intervals.
    """
    parts = [_tabular(str(axis), rows) for axis, rows in table.groupby(AXIS_COLUMN, sort=False)]
    body = "\n\n".join(parts)
    legend = [text for sign, text in _LEGEND.items() if sign in body]
    return "\n".join([r"% \usepackage{booktabs}; slopes with half the width of their 95 % intervals", *legend, body])


def _tabular(axis: str, table: pd.DataFrame) -> str:
    groups = [(series, {row["metric"]: row for row in rows.to_dict("records")}) for series, rows in by_series(table)]
    labels = Labels(series for series, _ in groups)
    columns = [_Column(name, [rows[name] for _, rows in groups if name in rows]) for name in SHOWN if _has(groups, name)]
    heads = ["Network", *(text for column in columns for text in column.heads())]
    units = ["", *(text for column in columns for text in column.units(axis_unit(axis)))]
    lines = [[_escaped(labels.of(series)), *(text for it in columns for text in it.cells(rows))] for series, rows in groups]
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


def _has(groups: Sequence[tuple[object, Mapping[str, object]]], metric: str) -> bool:
    return any(metric in rows for _, rows in groups)


class _Column:
    """One metric: a column of slopes in one unit, and one of ratios if there are any."""

    def __init__(self, metric: str, rows: list[Row]) -> None:
        self._metric = metric
        self._is_bytes = METRICS[metric].is_bytes
        self._unit = column_unit(rows)
        self.has_ratios = any(_ratio(row) for row in rows)

    def heads(self) -> list[str]:
        return [HEADS[self._metric].capitalize(), *([r"$\times$ ResCapsNet"] if self.has_ratios else [])]

    def units(self, per: str) -> list[str]:
        return [_escaped(f"({self._unit[1]}/{per})"), *([""] if self.has_ratios else [])]

    def cells(self, rows: Mapping[str, Row]) -> list[str]:
        row = rows.get(self._metric)
        slope, ratio = ("--", "") if row is None else (self._slope(row), _ratio(row))
        return [slope, *([ratio] if self.has_ratios else [])]

    def _slope(self, row: Row) -> str:
        size, _, decimals = self._unit
        low, high = row["slope_low"], row["slope_high"]
        if row_shape(row) in CURVES:
            return _escaped(row_slope(row))
        if row_shape(row) == "no change measurable":
            return rf"{_UNKNOWN} ($\pm${joined_text(max(abs(low), abs(high)) / size, decimals=decimals)})"
        values = slope_values(row["slope"], low, high, is_bytes=self._is_bytes)
        text = _escaped(joined_text(*(value / size for value in values), decimals=decimals if any(values) else 0))
        return text + (_BENT if row_shape(row) == "not a line" else "")


def _ratio(row: Row) -> str:
    """The ratio of a row to ResCapsNet's slope with its interval; empty where there is none, or where it is that slope."""
    if math.isnan(float(row["ratio_to_rescapsnet"])) or is_reference(row):
        return ""
    value, *ends = ratio_parts(row["ratio_to_rescapsnet"], row["ratio_low"], row["ratio_high"])
    return f"{value} ({'--'.join(ends)})" if ends else value


def _escaped(text: str) -> str:
    return re.sub("|".join(map(re.escape, _PLAIN)), lambda sign: _PLAIN[sign[0]], text)


def _line(cells: list[str]) -> str:
    return f"{' & '.join(cells)} \\\\"
