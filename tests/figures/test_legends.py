"""Legends have room where nothing is drawn, and take no more of a panel than they need."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from capsbench.figures.legends import legend_text, place_legend
from capsbench.figures.styles import STYLE

LABELS = ["my_cases.py:gpt (width=64):\n4.1 ± 0.6 ms per sample", "my_cases.py:gpt (width=32):\n1.2 ± 0.1 ms per sample"]


@pytest.mark.parametrize(
    ("label", "fit", "text"),
    [
        ("CapsNet", "96.00 KiB per block", "CapsNet: 96.00 KiB per block"),
        (
            "CapsNet",
            "no change measurable within ± 716.2 ms per block",
            "CapsNet: no change measurable\nwithin ± 716.2 ms per block",
        ),
        ("my_cases.py:gpt (width=64)", "722.00 KiB per sample", "my_cases.py:gpt (width=64):\n722.00 KiB per sample"),
        (
            "my_cases.py:gpt (width=64)",
            "no change measurable within ± 3 ms per sample",
            "my_cases.py:gpt (width=64): no change\nmeasurable within ± 3 ms per sample",
        ),
    ],
)
def test_no_word_of_a_slope_stands_alone(label: str, fit: str, text: str) -> None:
    with mpl.rc_context(STYLE):
        assert legend_text(label, fit) == text


def drawn(values: list[float], bars: list[tuple[float, float]]) -> Axes:
    """A panel with two series of these values and bars, and its legend."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.7, 3.4), layout="constrained")
        ax: Axes = figure.subplots()
        handles: list[Any] = []
        for label, factor in zip(LABELS, (1.0, 0.3), strict=True):
            ends = factor * np.array(bars).T
            made = ax.errorbar([2, 4, 6, 8], factor * np.array(values), ends, marker="o", ls="none", label=label)
            handles.append(made.lines[0])
            made.lines[0].set_label(label)
        place_legend(ax, handles, may_grow=True)
        figure.draw_without_rendering()
    return ax


def ends_of(ax: Axes) -> list[np.ndarray]:
    """Both ends of all bars, in pixels."""
    bars = [one for one in ax.collections if isinstance(one, LineCollection)]
    return [ax.transData.transform(segment) for one in bars for segment in one.get_segments()]


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([20, 21, 48, 44], [(1, 1), (20, 39), (39, 38), (1, 1)]),
        ([20, 30, 40, 50], [(1, 1)] * 4),
        ([50, 40, 30, 20], [(1, 30), (1, 1), (1, 1), (1, 1)]),
        ([50, 50, 50, 50], [(0, 0)] * 4),
    ],
)
def test_nothing_is_drawn_beneath_a_legend(values: list[float], bars: list[tuple[float, float]]) -> None:
    ax = drawn(values, bars)
    legend: Any = ax.get_legend()
    box = legend.get_window_extent()
    for (x, low), (_, high) in ends_of(ax):
        assert x > box.x1 or max(low, high) < box.y0
    top = ax.get_window_extent().y1
    assert all(max(low, high) < top for (_, low), (_, high) in ends_of(ax))


def test_a_legend_takes_no_more_room_than_it_needs() -> None:
    """The bars of the last position lie next to the legend, and end just below the top."""
    ax = drawn([20, 21, 44, 48], [(1, 1), (20, 39), (1, 1), (39, 38)])
    assert ax.get_ylim()[1] < 1.2 * 86


def test_values_below_0_are_inside_the_panel() -> None:
    assert drawn([20, -1, 48, 44], [(1, 1)] * 4).get_ylim()[0] < -2
