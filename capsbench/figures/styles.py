"""Styles of figures and series, in print and on a page.

Colour stands for what differs: for the network, or, if all series of a chart are of one network, for its report, or else for the
series. Markers and dashes distinguish the rest.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from capsbench.colours import COLOURS
from capsbench.frame import AXIS_COLUMN
from capsbench.stats.slopes import series_of
from capsbench.words.labels import Series, is_predicted

# If models agree to the byte, their markers lie on each other; later ones are smaller, so that all are seen.
MODEL_STYLES = {"capsnet": (COLOURS[2], "^", 10.0), "rescapsnet": (COLOURS[1], "s", 6.5), "mocapsnet": (COLOURS[0], "o", 4.0)}
_OTHER_SIZE = 5.5
_NESTED_SIZES = (9.0, 7.0, 5.5, 4.0)
"""Sizes of the markers of series of one network, which often agree to the byte."""
_MORE_MARKERS = "DvPX*"
Dash = str | tuple[int, tuple[float, ...]]
# A broken line without dots is predicted.
_DASHES: tuple[Dash, ...] = ("-", "-.", ":", (0, (5, 2, 1, 2, 1, 2)))
_PREDICTED_DASHES: tuple[Dash, ...] = ("--", (0, (8, 3)), (0, (3, 1)), (0, (12, 3)))

STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 3.0,  # room for dashes on both sides of the marker
    "text.parse_math": False,  # a name is no formula, whatever signs it has
    "svg.fonttype": "none",
    "pdf.fonttype": 42,  # TrueType, whole: type 3 is refused by many publishers
    "ps.fonttype": 42,
    "axes.titlesize": 9.5,
    "svg.hashsalt": "capsbench",
    "figure.dpi": 100,
    "savefig.dpi": 160,
}

SMALL_STYLE: Any = {
    "font.size": 7,
    "axes.titlesize": 6.8,
    "legend.fontsize": 5.8,
    "legend.handlelength": 2.4,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
} | dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6)
"""Parameters for a figure of a printed page's width."""


@dataclass(frozen=True)
class SeriesStyle:
    """Style of a series in matplotlib's terms."""

    colour: str
    marker: str
    dash: Dash
    size: float


def series_styles(frame: pd.DataFrame) -> dict[str, SeriesStyle]:
    """Styles by `style_key`, as in `styles_of`."""
    return styles_of(series for series, _ in series_of(frame))


def styles_of(all_series: Iterable[Series]) -> dict[str, SeriesStyle]:
    """Styles of series by `style_key`; those along one axis share a chart.

    Each network has its own colour and marker, and its further series have other markers and dashes. If a chart has one network
    alone, each report has its own colour, or, in a single report, each series. Predictions have dashes of their own. Looks repeat
    beyond a hundred series of a network.
    """
    charts: dict[object, dict[str, Series]] = {}
    for series in all_series:
        charts.setdefault(series.get(AXIS_COLUMN), {}).setdefault(style_key(series), series)
    styles: dict[str, SeriesStyle] = {}
    for charted in charts.values():
        styles |= _styles_on_a_chart(charted)
    return styles


def _styles_on_a_chart(charted: Mapping[str, Series]) -> dict[str, SeriesStyle]:
    models, reports = (list(dict.fromkeys(str(it.get(name)) for it in charted.values())) for name in ("model", "report"))
    strangers = [model for model in models if model not in MODEL_STYLES]
    own = {
        model: (COLOURS[3:][place % 4], _MORE_MARKERS[place % len(_MORE_MARKERS)], _OTHER_SIZE)
        for place, model in enumerate(strangers)
    } | MODEL_STYLES
    by_report = len(models) == 1 and len(reports) > 1
    measured = sum(not is_predicted(it) for it in charted.values())
    by_series = len(models) == len(reports) == 1 and max(measured, len(charted) - measured) > 1
    looks: dict[tuple[str, bool], Iterator[tuple[str, str, Dash, float]]] = {}
    taken: set[tuple[str, str, Dash]] = set()
    styles: dict[str, SeriesStyle] = {}
    for key, series in charted.items():
        first, predicted = own[str(series["model"])], is_predicted(series)
        group = str(series["report" if by_report else "model"])
        if by_report:
            first = (_colours_from(first[0])[reports.index(group) % len(COLOURS)], *first[1:])
        dashes = _PREDICTED_DASHES if predicted else _DASHES
        fresh = looks.setdefault((group, predicted), (_hues if by_series else _shapes)(first, dashes))
        colour, marker, dash, size = next((look for look in fresh if look[:3] not in taken), (*first[:2], dashes[0], first[2]))
        taken.add((colour, marker, dash))
        # If a prediction is right, its marker lies on the measured one, inside it.
        styles[key] = SeriesStyle(colour, marker, dash, 0.6 * size if predicted else size)
    return styles


def _colours_from(first: str) -> list[str]:
    return [first, *(other for other in COLOURS if other != first)]


def _markers_from(first: str, size: float) -> list[tuple[str, float]]:
    return [(first, size), *((other, _OTHER_SIZE) for other in _MORE_MARKERS if other != first)]


def _shapes(own: tuple[str, str, float], dashes: Sequence[Dash]) -> Iterator[tuple[str, str, Dash, float]]:
    """Colour, marker, dash and size for series of one network among others: another marker and dash each, then other colours."""
    colour, marker, size = own
    markers = _markers_from(marker, size)
    for one in (colour, *(other for other in COLOURS[3:] if other != colour)):
        for turn in range(len(dashes)):
            for place, (shape, its_size) in enumerate(markers):
                yield one, shape, dashes[(place + turn) % len(dashes)], its_size


def _hues(own: tuple[str, str, float], dashes: Sequence[Dash]) -> Iterator[tuple[str, str, Dash, float]]:
    """Colour, marker, dash and size for series of the only network: another colour and marker each, then other dashes."""
    colour, marker, size = own
    markers = _markers_from(marker, size)
    for dash in dashes:
        for turn in range(len(markers)):
            for place, one in enumerate(_colours_from(colour)):
                yield one, markers[(place + turn) % len(markers)][0], dash, _NESTED_SIZES[place % len(_NESTED_SIZES)]


def style_key(series: Series) -> str:
    """A key that is equal for series that differ in the data set alone."""
    return repr([(name, str(value)) for name, value in series.items() if name != "dataset"])
