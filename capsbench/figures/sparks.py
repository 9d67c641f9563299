"""Small charts: of block characters for a terminal, of a few points for a notebook."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from math import log2
from typing import Any

from capsbench.axes import in_doubles
from capsbench.frame import AXIS_COLUMN
from capsbench.stats.bases import Curve, Form
from capsbench.stats.linearity import CURVES

BLOCKS = "▁▂▃▄▅▆▇█"
PLAIN = "_.-~=+*#"
"""Characters for a terminal that has no block characters."""

_WIDEST = 12
_CURVE_POINTS = 13

SparkPoints = Sequence[tuple[float, float]]
"""Pairs of position and value."""


def scale_of(series: Mapping[Any, Any], metric: str) -> tuple[str, ...]:
    """A key that is equal for series whose charts share a scale, so that level lines look level: one kind of device, one load."""
    return (
        metric,
        str(series.get(AXIS_COLUMN)),
        str(series.get("dataset")),
        str(series.get("batch_size")),
        str(series.get("device")).partition(":")[0],
    )


def value_ranges(
    values_by_scale: Iterable[tuple[tuple[str, ...], Iterable[float]]],
) -> dict[tuple[str, ...], tuple[float, float]]:
    """The least and the largest value of each scale that has one."""
    found: dict[tuple[str, ...], tuple[float, float]] = {}
    for scale, values in values_by_scale:
        for value in values:
            low, high = found.get(scale, (value, value))
            found[scale] = min(low, value), max(high, value)
    return found


def spark(values: Sequence[float], low: float, high: float, blocks: str = BLOCKS) -> str:
    """A chart such as `▁▂▃▄`, with a character for each value; more than twelve are thinned evenly, first and last kept.

    Args:
        values: finite values.
        low: value of the lowest character.
        high: value of the highest character.
        blocks: the characters, from low to high.
    """
    last = len(blocks) - 1
    span = high - low
    return "".join(blocks[round(last * (value - low) / span) if span > 0 else 0] for value in _few(values))


def fitted_points(fit: Mapping[Any, Any], points: SparkPoints, axis: str) -> list[tuple[float, float]]:
    """The ends of the fitted line, or points of the curve; empty where neither fits.

    Args:
        fit: `shape`, `intercept`, `slope` and `term` of a fit, as in a row of `capsbench.slopes`.
        points: position and value of what was fitted.
        axis: name of the axis; a line is a curve in a chart of doubles.
    """
    shape, places = fit["shape"], [place for place, _ in points]
    if not points or shape not in ("line", *CURVES):
        return []
    doubles = in_doubles(axis, places)
    if shape == "line" and not doubles:
        return [(place, fit["intercept"] + fit["slope"] * place) for place in (min(places), max(places))]
    form: Form = "quadratic" if shape == "quadratic" else "inverse"
    term = 0.0 if shape == "line" else fit["term"]
    curve = Curve(form, fit["intercept"], fit["slope"], term, None, None, 0.0)
    first, last = (log2(end) if doubles else end for end in (min(places), max(places)))
    along = (first + (last - first) * number / (_CURVE_POINTS - 1) for number in range(_CURVE_POINTS))
    return [(place, curve.at(place)) for place in (2**one if doubles else one for one in along)]


def svg(
    points: SparkPoints,
    fitted: SparkPoints,
    colour: str,
    low: float,
    high: float,
    axis: str,
    width: int = 120,
    height: int = 28,
) -> str:
    """Points and the line through them as a scalable picture without text.

    Args:
        points: position and value, at least one.
        fitted: points of the fitted line or curve, by position; empty where none fits.
        colour: colour of both.
        low: the value at the lower edge.
        high: the value at the upper edge; where it is `low`, points lie in the middle.
        axis: name of the axis.
        width: width of the picture in pixels.
        height: height of the picture in pixels.
    """
    scaled: Callable[[float], float] = log2 if in_doubles(axis, [x for x, _ in points]) else float
    places = [scaled(x) for x, _ in points]
    ends = (min(places), max(places))
    margin = 4.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = (scaled(x) - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] else 0.5
        up = (y - low) / (high - low) if high - low > 1e-9 * abs(high) else 0.5
        return margin + across * (width - 2 * margin), height - margin - up * (height - 2 * margin)

    parts = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}"/>' for x, y in (place(*point) for point in points)]
    for (x1, y1), (x2, y2) in pairwise(place(*point) for point in fitted):
        parts.insert(0, f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="1.2"/>')
    return f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" aria-hidden="true">{"".join(parts)}</svg>'


def _few(values: Sequence[float]) -> list[float]:
    if len(values) <= _WIDEST:
        return list(values)
    return [values[round(place * (len(values) - 1) / (_WIDEST - 1))] for place in range(_WIDEST)]
