"""Legends of panels over an axis: inside a panel that has room, beneath one that has none."""

import re
import textwrap
from collections.abc import Sequence
from itertools import accumulate

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from capsbench.figures.styles import STYLE

_LEGEND_WIDTH, _SMALL_LEGEND_WIDTH = 42, 34
"""Characters in a row of a legend, and in one on a printed page."""
_MOST_INSIDE = 7
"""Number of legend rows that a panel has room for."""
_MOST_SERIES_INSIDE = 5
"""Number of series that a panel of a new figure, which may be higher, names inside."""
_MOST_LABEL_ROWS = 2
"""Number of rows that a label takes at most."""
LEGEND_ROW = 1.35
"""Height of a legend row over its font's size."""
_LETTER = 0.56
"""Width of a letter over its font's size."""
_WIDER, _LOWER = 1.1, 0.9
"""Factors from the size of a panel of a new figure to the size that it has once all axes have their names, a little too small."""
_MOST_OF_HEIGHT = 0.6
"""Largest share of a panel's height that is kept for a legend."""
_LEAST_ROOM = 0.9
"""Share of a panel's height below which all values lie."""


def place_legend(ax: Axes, handles: Sequence[Line2D], *, may_grow: bool) -> int:
    """Place a legend, if there is anything to name, inside a panel or beneath one that has no room for it.

    Args:
        ax: the panel.
        handles: handles that the legend names.
        may_grow: whether the figure may become higher. If not, a legend names as many series as it has room for.

    Returns:
        The number of rows beneath the panel.
    """
    if not may_grow:
        handles = _few(handles)
    rows = sum(map(_rows, handles))
    inside = (rows <= _MOST_INSIDE and len(handles) <= _MOST_SERIES_INSIDE) or not may_grow
    _fit_range(ax, *(_share_of_legend(ax, handles, is_new=may_grow) if inside and handles else (0.0, 0.0)))
    if handles and inside:
        ax.legend(handles=handles, loc="upper left", borderaxespad=0.2).set_in_layout(False)
    elif handles:
        # Below the axis and its name.
        under = ScaledTranslation(0, -3.6 * mpl.rcParams["font.size"] / 72, ax.figure.dpi_scale_trans)
        ax.legend(handles=handles, loc="upper left", borderaxespad=0, bbox_to_anchor=(0, 0), bbox_transform=ax.transAxes + under)
    return 0 if inside else rows + 1


def _rows(handle: Line2D) -> int:
    return 1 + str(handle.get_label()).count("\n")


def _few(handles: Sequence[Line2D]) -> list[Line2D]:
    """The handles that a panel has room for, and the number of further ones; notes on series that are not drawn stay."""
    if sum(map(_rows, handles)) <= _MOST_INSIDE:
        return list(handles)
    notes = [handle for handle in handles if _is_note(handle)]
    lines = [handle for handle in handles if not _is_note(handle)]
    room = _MOST_INSIDE - 1 - sum(map(_rows, notes))
    named = [handle for handle, rows in zip(lines, accumulate(map(_rows, lines)), strict=True) if rows <= room]
    return [*named, nothing_drawn(f"and {len(lines) - len(named)} more"), *notes]


def _is_note(handle: Line2D) -> bool:
    """Return whether a legend's entry is a note on series that are not drawn."""
    return handle.get_linestyle() == "None" and handle.get_marker() == "None"


def nothing_drawn(label: str) -> Line2D:
    """Handle of a note on something that is not drawn."""
    return Line2D([], [], ls="none", label=label)


def legend_text(label: str, fit: str) -> str:
    """A label that matplotlib shows as it is, though it hides those with a leading underscore; a panel has no room for more."""
    width = _LEGEND_WIDTH if mpl.rcParams["legend.fontsize"] == STYLE["legend.fontsize"] else _SMALL_LEGEND_WIDTH
    rows = textwrap.wrap(label + ":" * bool(fit), width) or [":" * bool(fit)]
    if len(rows) > _MOST_LABEL_ROWS:
        rows = _shortened(label + ":" * bool(fit), width)
    if fit and len(rows[-1]) + len(fit) < width:
        rows[-1] += f" {fit}"
    elif fit:
        # A number stays on one line with its sign and unit, and the bound of a change with its axis.
        bound = re.sub(r"(?<=[\d±)]) (?=\w)", "\u00a0", fit)
        bound = re.sub(r"within .*", lambda found: found[0].replace(" ", "\u00a0"), bound)
        apart, joined = textwrap.wrap(bound, width), textwrap.wrap(f"{rows[-1]} {bound}", width)
        rows = [*rows[:-1], *joined] if len(joined) <= len(apart) else [*rows, *apart]
        rows = [row.replace("\u00a0", " ") for row in rows]
    return "\n".join(rows) if not rows[0].startswith("_") else "\n".join(["\u200b" + rows[0], *rows[1:]])


def _shortened(label: str, width: int) -> list[str]:
    """The two rows of a label that is too long, without its middle: names often begin alike, and differ at their end."""
    return [label[:width], label[width:]] if len(label) <= 2 * width else [f"{label[: width - 1]}…", label[-width:]]


def _share_of_legend(ax: Axes, handles: Sequence[Line2D], *, is_new: bool) -> tuple[float, float]:
    """Shares of a panel's width and height that a legend inside it takes; those of a new figure do not have their final size."""
    extent, font = ax.get_window_extent(), mpl.rcParams["legend.fontsize"] * ax.figure.dpi / 72
    wide, high = (_WIDER * extent.width, _LOWER * extent.height) if is_new else (extent.width, extent.height)
    longest = max(len(row) for handle in handles for row in str(handle.get_label()).split("\n"))
    across = (_LETTER * longest + mpl.rcParams["legend.handlelength"] + 2) * font
    up = LEGEND_ROW * sum(map(_rows, handles)) * font
    return min(1.0, across / wide + 0.03), min(_MOST_OF_HEIGHT, up / high + 0.05)


def _fit_range(ax: Axes, across: float, up: float) -> None:
    """Widen the range so that level lines look level, and all that is drawn lies beneath a legend or next to it.

    The caption says that 0 may be outside.

    Args:
        ax: the panel.
        across: share of its width that the legend in its upper left corner takes.
        up: share of its height that the legend takes.
    """
    low, high = ax.dataLim.intervaly
    if not high >= low:
        return
    span = max(high - low, 0.05 * high, 1e-12)
    bottom = max(-0.03 * high, low - 0.25 * span) if low >= 0 else low - 0.05 * span
    beneath = _highest(ax, across) if across else low
    top = bottom + max((low + span - bottom) / _LEAST_ROOM, (beneath - bottom) / (1 - up))
    # A line at 0 lies next to the axis, not on it.
    ax.set_ylim(max(-0.03 * top, bottom) if low >= 0 else bottom, top)


def _highest(ax: Axes, across: float) -> float:
    """The highest value that is drawn in this share of a panel's width, from its left edge."""
    ax.get_xlim()  # which brings the range of positions up to date
    found = [ax.dataLim.y0]
    drawn = [np.asarray(line.get_xydata()) for line in ax.lines]
    drawn += [np.asarray(one) for bars in ax.collections if isinstance(bars, LineCollection) for one in bars.get_segments()]
    on_data = [line.get_transform().contains_branch_seperately(ax.transData)[0] for line in ax.lines]
    for number, points in enumerate(drawn):
        if not len(points):
            continue
        places, values = points[:, 0], points[:, 1]
        if number >= len(on_data) or on_data[number]:
            places = (ax.transScale + ax.transLimits).transform(points)[:, 0]
        found += values[places <= across].tolist()
        if places.min() <= across <= places.max():
            found.append(float(np.interp(across, places, values)))
    return max(found)
