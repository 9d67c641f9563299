"""Styles of figures and series, in print and on a page: colour and marker stand for the model, dashes for the rest."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from capsbench.stats.slopes import series_of
from capsbench.words.labels import Series, is_predicted

# Okabe and Ito's palette suits every kind of colour vision; shapes distinguish the rest, also in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# A dark page needs lighter tones of these hues.
DARK_COLOURS = ("#56A8E8", "#F08A4B", "#2EC4A0", "#E3A3C6", "#F0B840", "#8CCBF5", "#D8DCE2")
# If models agree to the byte, their markers lie on each other; later ones are smaller, so that all are seen.
MODEL_STYLES = {"capsnet": (COLOURS[2], "^", 10.0), "rescapsnet": (COLOURS[1], "s", 6.5), "mocapsnet": (COLOURS[0], "o", 4.0)}
_OTHER_SIZE = 5.5
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
    "legend.handlelength": 3.0,  # room for dashes beside the marker
    "text.parse_math": False,  # a name is no formula, whatever signs it has
    "svg.fonttype": "none",
    "pdf.fonttype": 42,  # TrueType, whole: type 3 is refused by many publishers
    "ps.fonttype": 42,
    "axes.titlesize": 9.5,
    "svg.hashsalt": "capsbench",
    "figure.dpi": 100,
    "savefig.dpi": 160,
}

SMALL: Any = {
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
    """Styles by `style_key`: colour and marker by model; dashes by other differences, and dashes of their own for predictions.

    If a model has more series than there are dashes, later ones have other markers, and then other colours. Looks repeat
    beyond a hundred series of a model.
    """
    return styles_of(series for series, _ in series_of(frame))


def styles_of(all_series: Iterable[Series]) -> dict[str, SeriesStyle]:
    """Styles of series whose common values are known."""
    styles: dict[str, SeriesStyle] = {}
    strangers: dict[str, tuple[str, str, float]] = {}
    taken: set[tuple[str, str, Dash]] = set()
    for series in all_series:
        key, model = style_key(series), str(series["model"])
        if key in styles:
            continue
        if model not in MODEL_STYLES and model not in strangers:
            place = len(strangers)
            strangers[model] = (COLOURS[3:][place % 4], _MORE_MARKERS[place % len(_MORE_MARKERS)], _OTHER_SIZE)
        own = MODEL_STYLES.get(model) or strangers[model]
        dashes = _PREDICTED_DASHES if is_predicted(series) else _DASHES
        look = next((look for look in _looks(own, dashes) if look[:3] not in taken), (*own[:2], dashes[0], own[2]))
        taken.add(look[:3])
        colour, marker, dash, size = look
        # If a prediction is right, its marker lies on the measured one, inside it.
        styles[key] = SeriesStyle(colour, marker, dash, 0.6 * size if is_predicted(series) else size)
    return styles


def _looks(own: tuple[str, str, float], dashes: Sequence[Dash]) -> Iterator[tuple[str, str, Dash, float]]:
    """Colour, marker, dash and size: a model's own marker first, then others, then other colours."""
    colour, marker, size = own
    others = [(one, _OTHER_SIZE) for one in _MORE_MARKERS if one != marker]
    for one in (colour, *(other for other in COLOURS[3:] if other != colour)):
        for shape, its_size in [(marker, size), *others]:
            yield from ((one, shape, dash, its_size) for dash in dashes)


def style_key(series: Series) -> str:
    """A key that is equal for series that differ in the data set alone."""
    return repr([(name, str(value)) for name, value in series.items() if name != "dataset"])
