"""Bundles of samples, lengths of capsules and gradients of each block of a network, over depth."""

from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from capsbench.colours import CAPTION, PALE
from capsbench.figures.styles import STYLE

_MOST_SERIES = 6


@dataclass(frozen=True)
class _Panel:
    column: str
    title: str
    unit: str
    logarithmic: bool = True


_PANELS = (
    _Panel("bundle_entropy", "bundle entropy", "nats", logarithmic=False),
    _Panel("bundles", "bundles", "groups of equal samples", logarithmic=False),
    _Panel("mean_length", "mean capsule length", "length"),
    _Panel("gradient_norm", "gradient of the weights", "norm"),
)


def diagnostics_figure(frame: pd.DataFrame, title: str) -> Figure:
    """Diagnostics of a run over depth, a line for each of a few epochs, the later the darker.

    Args:
        frame: a row for each block and epoch, with the columns `epoch`, `block`, `bundle_entropy`, `label_entropy`, `bundles`,
            `mean_length` and `gradient_norm`; a norm that was not finite is missing.
        title: title of the run.
    """
    every = sorted(frame["epoch"].unique())
    # The first, the last, and some between.
    places = np.unique(np.linspace(0, len(every) - 1, min(len(every), _MOST_SERIES)).round().astype(int))
    epochs = [every[place] for place in places]
    colours = mpl.colormaps["viridis_r"](np.linspace(0.15, 1, len(epochs)))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.1 * len(_PANELS), 3.2), layout="constrained")
        for ax, panel in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
            _draw(ax, frame, panel, epochs, colours)
        most = float(frame["label_entropy"].max())
        first = figure.axes[0]
        first.axhline(most, color=PALE, lw=0.9, ls=":")
        first.annotate(
            "no label can be distinguished", (0.02, most), (0, 4), xycoords=("axes fraction", "data"), textcoords="offset points",
            fontsize=7.5, color=CAPTION,
        )  # fmt: skip
        first.set_ylim(-0.04 * most, 1.18 * most)
        figure.axes[1].set_ylim(bottom=0)
        figure.legend(*first.get_legend_handles_labels(), loc="outside right center", title="epoch", title_fontsize=8)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        figure.supxlabel("block (0: what enters the first one)", fontsize=9)
    return figure


def _draw(ax: Axes, frame: pd.DataFrame, panel: _Panel, epochs: list[int], colours: np.ndarray) -> None:
    shown = frame[frame["epoch"].isin(epochs)]
    positive = shown.loc[shown[panel.column] > 0, panel.column]
    # The position of 0 on a logarithmic axis lies below all other values; if all are 0, the axis is linear.
    floor = float(positive.min()) / 1e3 if panel.logarithmic and len(positive) else None
    # If nothing changes, the epochs lie on each other; later ones are smaller, so that all are seen.
    for size, epoch, colour in zip(np.linspace(6.5, 3, len(epochs)), epochs, colours, strict=True):
        rows = shown[shown["epoch"] == epoch].sort_values("block")
        values = rows[panel.column].astype(float)
        at = values if floor is None else values.where(values > 0, floor)
        ax.plot(rows["block"], at, "o-", color=colour, ms=size, lw=1.3, label=str(epoch))
    if floor is None and panel.logarithmic:
        ax.set_ylim(-0.05, 1)
    elif floor is not None:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(numticks=7))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-").replace("e+00", "")))
        ax.yaxis.set_minor_locator(NullLocator())
        if (shown[panel.column] == 0).any():
            ax.axhline(floor, color=PALE, lw=0.9, ls=":")
            ax.annotate("0", (1.01, floor), xycoords=("axes fraction", "data"), fontsize=8, color=CAPTION, va="center")
    ax.set_title(panel.title, loc="left", fontsize=9.5)
    ax.set_ylabel(panel.unit)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
