"""Legends of panels over depth: inside while there is room, beneath where there is none."""

import textwrap
from collections.abc import Sequence
from itertools import accumulate

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from capsbench.figures.styles import STYLE

_LEGEND_WIDTH, _SMALL_LEGEND_WIDTH = 42, 34
"""Characters of a row of a legend, and of one on a printed page."""
_MOST_INSIDE = 7
"""Rows of a legend that a panel has room for."""
LEGEND_ROW = 1.35
"""Height of a row of a legend over its font's size."""


def place_legend(ax: Axes, handles: Sequence[Line2D], *, may_grow: bool) -> int:
    """Room for a legend and, where there is something to name, the legend: inside, or beneath a panel that has no room for it.

    Args:
        ax: the panel.
        handles: what is named.
        may_grow: whether the figure may become higher. Where it may not, a legend names as many as there is room for.

    Returns:
        How many rows lie beneath the panel.
    """
    if not may_grow:
        handles = _few(handles)
    rows = sum(map(_rows, handles))
    inside = rows <= _MOST_INSIDE or not may_grow
    _fit_range(ax, entries=min(rows, _MOST_INSIDE) if inside else 0)
    if handles and inside:
        ax.legend(handles=handles, loc="upper left", borderaxespad=0.2).set_in_layout(False)
    elif handles:
        # Under the axis and its name.
        under = ScaledTranslation(0, -3.6 * mpl.rcParams["font.size"] / 72, ax.figure.dpi_scale_trans)
        ax.legend(handles=handles, loc="upper left", borderaxespad=0, bbox_to_anchor=(0, 0), bbox_transform=ax.transAxes + under)
    return 0 if inside else rows + 1


def _rows(handle: Line2D) -> int:
    return 1 + str(handle.get_label()).count("\n")


def _few(handles: Sequence[Line2D]) -> list[Line2D]:
    """As many lines as a panel has room for, and how many more there are; what is said of nothing drawn stays."""
    if sum(map(_rows, handles)) <= _MOST_INSIDE:
        return list(handles)
    notes = [handle for handle in handles if _is_note(handle)]
    lines = [handle for handle in handles if not _is_note(handle)]
    room = _MOST_INSIDE - 1 - sum(map(_rows, notes))
    named = [handle for handle, rows in zip(lines, accumulate(map(_rows, lines)), strict=True) if rows <= room]
    return [*named, nothing_drawn(f"and {len(lines) - len(named)} more"), *notes]


def _is_note(handle: Line2D) -> bool:
    """Whether a legend's entry says something of what is not drawn."""
    return handle.get_linestyle() == "None" and handle.get_marker() == "None"


def nothing_drawn(label: str) -> Line2D:
    """What a legend says of nothing that is drawn."""
    return Line2D([], [], ls="none", label=label)


def legend_text(label: str, fit: str) -> str:
    """A label that matplotlib shows as it is: it hides those that begin with an underscore; a panel has no room for more."""
    width = _LEGEND_WIDTH if mpl.rcParams["legend.fontsize"] == STYLE["legend.fontsize"] else _SMALL_LEGEND_WIDTH
    rows = textwrap.wrap(label + ":" * bool(fit), width, max_lines=2, placeholder="…") or [":" * bool(fit)]
    if fit and len(rows[-1]) + len(fit) < width:
        rows[-1] += f" {fit}"
    elif fit:
        rows.append(fit)
    return "\n".join(rows) if not rows[0].startswith("_") else "\n".join(["\u200b" + rows[0], *rows[1:]])


def _fit_range(ax: Axes, entries: int) -> None:
    """A range in which level lines look level, with room above for a legend; the caption says that it may not start at 0."""
    low, high = ax.dataLim.intervaly
    if not high >= low:
        return
    span = max(high - low, 0.05 * high, 1e-12)
    top = high + (0.15 + 0.18 * entries) * span
    # A line at 0 lies beside the axis, not in it.
    ax.set_ylim(max(-0.03 * top, low - 0.25 * span), top)
