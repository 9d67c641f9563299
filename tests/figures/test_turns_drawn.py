"""Figures, tables and words of cells that took turns."""

from typing import Any

import pytest
from matplotlib.axes import Axes

from capsbench.figures.depth import figure3, figure4
from capsbench.page.answers import _time
from capsbench.page.cells import _fit
from capsbench.page.notebook import slopes
from capsbench.stats.slopes import fitted_slopes
from capsbench.terminal.show import show_lines
from capsbench.words.slopes_in_words import basis_note, row_basis, row_remarks
from helpers.made import SECONDS_PER_BLOCK, make_frame, make_record, make_turns

MODELS = ("capsnet", "rescapsnet", "mocapsnet")


def caption(panel: Axes) -> str:
    """The caption beneath a figure, on one line."""
    text: Any = panel.figure
    return " ".join(text._supxlabel.get_text().split())


def markers(panel: Axes) -> dict[str, list[tuple[float, float]]]:
    """Depth and value of each marker of a panel, by the first word of the series' label."""
    found: dict[str, list[tuple[float, float]]] = {}
    for bars in panel.containers:
        line: Any = bars[0]
        pairs = zip(line.get_xdata(), line.get_ydata(), strict=True)
        found[bars.get_label().split(":")[0]] = [(float(x), float(y)) for x, y in pairs]
    return found


def test_times_rise_as_the_parts_that_grow_do() -> None:
    panel = figure4(make_frame(make_turns(MODELS, range(1, 9), noise=0.05)))[0][2]
    drawn = markers(panel)
    for title, model in (("CapsNet", "capsnet"), ("ResCapsNet", "rescapsnet"), ("MoCapsNet", "mocapsnet")):
        (_, first), *_, (_, last) = drawn[title]
        assert (last - first) / 7 == pytest.approx(SECONDS_PER_BLOCK[model], rel=0.1)
    assert "the rest of a step is drawn equal at all depths" in caption(panel)
    assert "depths took turns" in caption(panel)


def test_markers_that_agree_stand_side_by_side() -> None:
    drawn = markers(figure3(make_frame(make_turns(MODELS)))[0][0])
    shifts = {name: points[0][0] - 1 for name, points in drawn.items()}
    assert shifts["CapsNet"] == pytest.approx(-shifts["ResCapsNet"])
    assert shifts["CapsNet"] < -0.05
    assert shifts["MoCapsNet"] == 0


def test_cells_that_took_no_turns_are_drawn_where_they_were() -> None:
    panel = figure3(make_frame([make_record(model, blocks) for model in MODELS for blocks in (1, 2, 3)]))[0][0]
    assert {x for points in markers(panel).values() for x, _ in points} == {1, 2, 3}
    assert "side by side" not in caption(panel)


def test_a_slope_that_cannot_be_told_from_0_has_no_line() -> None:
    frame = make_frame(make_turns(["rescapsnet"], range(1, 9), growing=False, slower=0, noise=0.1))
    panel = figure4(frame)[0][2]
    assert "no change" in panel.get_legend_handles_labels()[1][0]
    assert len(panel.get_lines()) == len(panel.containers) * 3  # markers with their caps, and no line


def test_a_rest_that_grows_is_said() -> None:
    frame = make_frame(make_turns(["rescapsnet"], range(1, 9), rest_per_block=0.05))
    assert "where the rest grows too, whole steps are drawn" in caption(figure4(frame)[0][2])
    row = fitted_slopes(frame).set_index("metric").reset_index().set_index("metric", drop=False).loc["train"]
    assert row_remarks(row) == ["whole step: its rest grows too"]
    assert row_basis(row) == "whole step, in turn"


def test_the_part_of_a_step_is_named_with_its_slope() -> None:
    frame = make_frame(make_turns(MODELS))
    table = fitted_slopes(frame)
    assert basis_note(table).startswith("training time: blocks and optimizer, in turn; forward time: blocks, in turn")
    shown = "\n".join(line.plain for line in show_lines(frame, table))
    assert "training time: blocks and optimizer, in turn; inference time: blocks, in turn" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "blocks and optimizer, in turn" in slopes(frame)._repr_html_()
    row = next(row for row in table.to_dict("records") if row["metric"] == "train")
    assert "(blocks and optimizer, in turn)" in "".join(text for _, text in _time(_fit(row), "block"))


def test_cells_that_were_timed_alone_have_no_such_note() -> None:
    frame = make_frame([make_record("rescapsnet", blocks) for blocks in (1, 2, 3)])
    table = fitted_slopes(frame)
    assert basis_note(table) == ""
    assert "in turn" not in "\n".join(line.plain for line in show_lines(frame, table))
