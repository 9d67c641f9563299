"""Figures, tables and words of cells that took turns."""

from itertools import pairwise
from typing import Any

import pytest
from matplotlib.axes import Axes

from capsbench.figures.depth import figure3, figure4
from capsbench.page.answers import _cost
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
    assert "the rest of a step is its median over all depths" in caption(panel)
    assert "depths took turns" in caption(panel)


def looks(panel: Axes) -> dict[str, tuple[float, float]]:
    """Width of the line and size of the markers of each series in a panel's legend."""
    found = {}
    for handle in panel.get_legend().legend_handles:
        line: Any = handle
        found[line.get_label().split(":")[0]] = (line.get_linewidth(), line.get_markersize())
    return found


@pytest.mark.parametrize("draw", [figure3, figure4])
@pytest.mark.parametrize("in_turn", [True, False])
def test_lines_that_agree_lie_in_each_other_where_they_were_measured(draw: Any, in_turn: bool) -> None:
    alone = [make_record(model, blocks) for model in MODELS for blocks in (1, 2, 3, 4)]
    panel = draw(make_frame(make_turns(MODELS) if in_turn else alone))[0][0]
    assert {x for points in markers(panel).values() for x, _ in points} == {1, 2, 3, 4}
    found = looks(panel)
    assert found["CapsNet"][0] > found["ResCapsNet"][0] == found["MoCapsNet"][0] == 1
    assert found["CapsNet"][1] > found["ResCapsNet"][1]
    assert "where lines coincide, a wider one with larger markers lies below a narrower one" in caption(panel)
    if draw is figure4:
        widths = sorted(
            line.get_linewidth() for line in panel.get_lines() if line.get_linestyle() == "-" and len(line.get_xdata()) == 2
        )
        assert widths == [1, 1, found["CapsNet"][0]]


def test_series_of_one_look_are_nested_by_their_sizes() -> None:
    records = [make_record("net:a", blocks, precision=one) for one in ("fp32", "bf16", "fp16") for blocks in (1, 2, 3)]
    found = list(looks(figure4(make_frame(records))[0][0]).values())
    assert found == sorted(found, reverse=True)
    assert all(inner[1] < 0.85 * outer[1] for outer, inner in pairwise(found))


def test_lines_apart_have_the_usual_width() -> None:
    panel = figure4(make_frame([make_record(model, blocks) for model in MODELS[1:] for blocks in (1, 2, 3)]))[0][0]
    assert {width for width, _ in looks(panel).values()} == {1}
    assert "coincide" not in caption(panel)
    # Lines without a common position agree nowhere.
    records = [make_record("rescapsnet", blocks) for blocks in (1, 2, 3)] + [make_record("capsnet", blocks) for blocks in (4, 5)]
    assert {width for width, _ in looks(figure4(make_frame(records))[0][0]).values()} == {1}


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
    assert row_basis(row) == "over the whole step"


def test_the_part_of_a_step_is_named_with_its_slope() -> None:
    frame = make_frame(make_turns(MODELS))
    table = fitted_slopes(frame)
    assert basis_note(table).startswith(
        "cells were timed in turn: training time in the blocks and the optimizer, forward time in the blocks"
    )
    shown = "\n".join(line.plain for line in show_lines(frame, table))
    assert "training time in the blocks and the optimizer, inference time in the blocks" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80
    assert "in the blocks and the optimizer" in slopes(frame)._repr_html_()
    row = next(row for row in table.to_dict("records") if row["metric"] == "train")
    sentence = "".join(text for _, text in _cost({"train": _fit(row)}, frame, "per block"))
    assert sentence.endswith(", timed in the blocks and the optimizer.")


def test_cells_that_were_timed_alone_have_no_such_note() -> None:
    frame = make_frame([make_record("rescapsnet", blocks) for blocks in (1, 2, 3)])
    table = fitted_slopes(frame)
    assert basis_note(table) == ""
    assert "took turns" not in "\n".join(line.plain for line in show_lines(frame, table))


def test_figure_3_draws_the_lines_of_figure_4() -> None:
    frame = make_frame(make_turns(MODELS, range(1, 9), noise=0.05))
    panels = [figure3(frame)[0][1], figure4(frame)[0][2]]
    assert panels[0].get_title(loc="left") == panels[1].get_title(loc="left")
    fitted, other = [
        [line.get_ydata().tolist() for line in panel.get_lines() if line.get_linestyle() != "None"]  # type: ignore[union-attr]
        for panel in panels
    ]
    assert len(fitted) == 3
    assert fitted == other
    assert [*markers(panels[0]).values()] == [*markers(panels[1]).values()]
