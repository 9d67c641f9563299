"""Slopes in a notebook: a data frame that is shown as a table with a small chart in each row."""

from collections.abc import Hashable, Iterable, Mapping
from html import escape
from typing import Any

import pandas as pd

from capsbench.figures.sparks import SparkPoints, scale_of, svg, value_ranges
from capsbench.figures.styles import style_key, styles_of
from capsbench.frame import ROUNDS_COLUMN
from capsbench.gate.findings import Labels
from capsbench.stats.metrics import METRICS
from capsbench.stats.slopes import by_series, fitted_slopes, series_columns, series_of, values_by_depth
from capsbench.words.slopes_in_words import row_basis, row_ratio, row_remarks, row_shape, row_slope

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
        rows = [_row(labels.of(series), row, points, looks[style_key(series)].colour, ranges) for series, row, points in shown]
        more = f"<p>{len(self) - most} more rows</p>" if len(self) > most else ""
        head = "".join(f"<th style='text-align:left'>{name}</th>" for name in _HEADS)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>{more}"


_HEADS = ("line", "quantity", "over depth", "slope per block", "× ResCapsNet", "")
_NEEDED = (
    "metric", "unit", "slope", "slope_low", "slope_high", "intercept", "linear", "noise", "ratio_to_rescapsnet", "ratio_low",
    "ratio_high", "basis", "rest_low",
)  # fmt: skip


def slopes(frame: pd.DataFrame) -> SlopesFrame:
    """The slope of every series and metric in a frame from `load` (`capsbench.stats.slopes.fitted_slopes`).

    Returns:
        The data frame, which a notebook shows as a table with a small chart in each row.
    """
    found = SlopesFrame(fitted_slopes(frame))
    keys = [*series_columns(frame), "metric"]
    points: dict[_Key, list[tuple[float, float]]] = {}
    for series, cells in series_of(frame):
        for metric in METRICS.values():
            known = cells[cells[metric.column].notna()]
            in_turn = not metric.is_bytes and known[ROUNDS_COLUMN].map(bool).any()
            pairs = zip(known["blocks"].astype(float), known[metric.column].astype(float), strict=True)
            points[_key(series | {"metric": metric.name}, keys)] = list(
                values_by_depth(known, metric).items() if in_turn else pairs
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


def _line_of(row: Mapping[Hashable, Any]) -> tuple[float, float] | None:
    return (row["intercept"], row["slope"]) if row_shape(row) == "line" else None


def _heights(row: Mapping[Hashable, Any], points: SparkPoints) -> list[float]:
    """Values in a row's chart: those of the records, and the ends of the fitted line."""
    line, depths = _line_of(row), [depth for depth, _ in points]
    fitted = [line[0] + line[1] * depth for depth in (min(depths), max(depths))] if line and points else []
    return [*(value for _, value in points), *fitted]


def _row(
    label: str,
    row: Mapping[Hashable, Any],
    points: SparkPoints,
    colour: str,
    ranges: Mapping[tuple[str, ...], tuple[float, float]],
) -> str:
    remarks = [*row_remarks(row), *filter(None, [row_basis(row)])]
    remarks += [f"noisy: {row['noise'].replace(',', ', ')}"] if row["noise"] else []
    texts = [
        escape(label),
        METRICS[row["metric"]].title,
        svg(points, _line_of(row), colour, *ranges[scale_of(row, row["metric"])]) if points else "",
        row_slope(row),
        row_ratio(row),
        escape(", ".join(remarks)),
    ]
    return "<tr>" + "".join(f"<td style='text-align:left'>{text}</td>" for text in texts) + "</tr>"
