"""Slopes in a notebook: a data frame that is shown as a table with a small chart in each row."""

from collections.abc import Hashable, Iterable, Mapping
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from capsbench.axes import per_unit
from capsbench.figures.sparks import SparkPoints, fitted_points, scale_of, svg, value_ranges
from capsbench.figures.styles import style_key, styles_of
from capsbench.frame import AXIS_COLUMN, POSITION_COLUMN, ROUNDS_COLUMN
from capsbench.frame import along as placed_along
from capsbench.gate.findings import Labels
from capsbench.stats.line_fit import values_by_position
from capsbench.stats.metrics import METRICS
from capsbench.stats.slopes import by_series, fitted_slopes, series_columns, series_of
from capsbench.words.along import over_text
from capsbench.words.disturbances import disturbed_by
from capsbench.words.slopes_in_words import row_basis, row_cost, row_ratio, row_remarks, row_slope

_Key = tuple[str, ...]


class SlopesFrame(pd.DataFrame):
    """The data frame of `slopes`, which a notebook shows with charts."""

    _metadata = ["_points", "_keys"]  # noqa: RUF012  pandas' own way to say what slices inherit

    @property
    def _constructor(self) -> Any:
        return SlopesFrame

    def _repr_html_(self) -> str | None:
        """A table with a chart in each row; the table of pandas if columns are missing."""
        keys: list[str] | None = getattr(self, "_keys", None)
        if not keys or self.empty or not {*keys, *_NEEDED} <= set(self.columns):
            return super()._repr_html_()  # type: ignore[misc]
        most = pd.get_option("display.max_rows") or len(self)
        table = pd.DataFrame(self.iloc[:most])
        groups = list(by_series(table))
        labels, looks = Labels(series for series, _ in groups), styles_of(series for series, _ in groups)
        each = [(series, row) for series, rows in groups for row in rows.to_dict("records")]
        shown = [(series, row, self._points.get(_key(row, keys), [])) for series, row in each]
        ranges = value_ranges((scale_of(row, row["metric"]), _heights(row, points)) for _, row, points in shown)
        more = f"<p>{len(self) - most} more rows</p>" if len(self) > most else ""
        axes = list(dict.fromkeys(table[AXIS_COLUMN]))
        alone = axes[0] if len(axes) == 1 else None
        heads = (
            "line",
            "quantity",
            over_text(alone) if alone else "chart",
            f"slope {per_unit(alone)}" if alone else "slope",
        )
        rows = [
            _row(labels.of(series), row, points, looks[style_key(series)].colour, ranges, per=not alone)
            for series, row, points in shown
        ]
        ratio = "× ResCapsNet" if any(row_ratio(row) for _, row, _ in shown) else ""
        head = "".join(f"<th style='text-align:left'>{name}</th>" for name in (*heads, ratio, ""))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>{more}"


_NEEDED = (
    "axis", "metric", "unit", "slope", "slope_low", "slope_high", "intercept", "shape", "noise", "ratio_to_rescapsnet",
    "ratio_low", "ratio_high", "basis", "rest_low", "term", "term_low", "term_high", "declared", "misfit", "certainty",
)  # fmt: skip


def slopes(frame: pd.DataFrame, along: str | None = None) -> SlopesFrame:
    """The slope of every series and metric in a frame from `load` (`capsbench.stats.slopes.fitted_slopes`).

    Args:
        frame: frame with a row per record.
        along: name of the one axis; by default each that a report varies.

    Returns:
        The data frame, which a notebook shows as a table with a small chart in each row.
    """
    frame = placed_along(frame, along)
    found = SlopesFrame(fitted_slopes(frame))
    keys = [*series_columns(frame), "metric"]
    points: dict[_Key, list[tuple[float, float]]] = {}
    for series, cells in series_of(frame):
        positions, took_turns = cells[POSITION_COLUMN].to_numpy(dtype=float), cells[ROUNDS_COLUMN].map(bool).to_numpy(dtype=bool)
        for metric in METRICS.values():
            values = cells[metric.column].to_numpy(dtype=float, na_value=np.nan)
            known = ~np.isnan(values)
            in_turn = not metric.is_bytes and took_turns[known].any()
            points[_key(series | {"metric": metric.name}, keys)] = list(
                values_by_position(cells[known], metric).items()
                if in_turn
                else zip(positions[known].tolist(), values[known].tolist(), strict=True)
            )
    # As attributes, not columns; pandas would warn otherwise.
    object.__setattr__(found, "_keys", keys)
    object.__setattr__(found, "_points", points)
    return found


def _key(row: Mapping[Any, Any] | Mapping[Hashable, Any], names: Iterable[str]) -> _Key:
    """Values that distinguish a row from others, in any representation of numbers that pandas has."""
    return tuple(
        "" if pd.isna(row[name]) else f"{row[name]:g}" if isinstance(row[name], float) else str(row[name]) for name in names
    )


def _heights(row: Mapping[Hashable, Any], points: SparkPoints) -> list[float]:
    """Values in a row's chart: those of the records, and those of the fitted line or curve."""
    return [value for _, value in (*points, *fitted_points(row, points, row["axis"]))]


def _row(
    label: str,
    row: Mapping[Hashable, Any],
    points: SparkPoints,
    colour: str,
    ranges: Mapping[tuple[str, ...], tuple[float, float]],
    *,
    per: bool,
) -> str:
    """A row of the table; `per` names the unit of the axis, after the slope."""
    remarks = [*row_remarks(row), *filter(None, [row_basis(row)])]
    remarks += [disturbed_by(row["noise"].split(","))] if row["noise"] else []
    texts = [
        escape(label),
        METRICS[row["metric"]].title,
        svg(points, fitted_points(row, points, row["axis"]), colour, *ranges[scale_of(row, row["metric"])], row["axis"])
        if points
        else "",
        row_cost(row) if per else row_slope(row),
        row_ratio(row),
        escape(", ".join(remarks)),
    ]
    return "<tr>" + "".join(f"<td style='text-align:left'>{text}</td>" for text in texts) + "</tr>"
