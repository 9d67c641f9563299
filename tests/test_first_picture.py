"""The first picture of the README: each line at its height, zero below the break, and a slope of time with its interval."""

import pytest

from benchmarks.first_picture import DARK, LIGHT, lines_of, picture
from capsbench.report import Report
from helpers.made import MIB, RETAINED_PER_BLOCK, make_record


@pytest.fixture(scope="module")
def lines():
    published = Report.of([make_record("rescapsnet", blocks, kernel="published") for blocks in (1, 2, 3)], "published")
    here = Report.of([make_record(model, blocks) for model in RETAINED_PER_BLOCK for blocks in range(1, 9)], "here")
    return [*lines_of(published, published=True), *lines_of(here, published=False)]


def test_each_line_is_named_with_its_cost(lines):
    memory, zero, times = picture(lines, LIGHT).axes
    named = {text.get_text() for ax in (memory, zero) for text in ax.texts}
    assert named == {
        "ResCapsNet, published\n10.00 MiB per block", "CapsNet and ResCapsNet\n10.00 MiB per block", "MoCapsNet\n0 B per block",
    }  # fmt: skip
    assert {"20.0 ms", "30.0 ms"} <= {text.get_text() for text in times.texts}


def test_points_are_the_records_and_zero_has_a_level_of_its_own(lines):
    memory, zero, _ = picture(lines, LIGHT).axes
    marked = [line for ax in (memory, zero) for line in ax.lines if line.get_marker() in ("s", "^", "o")]
    heights = {line.get_marker(): line.get_ydata().tolist() for line in marked if len(line.get_xdata()) == 8}
    assert heights["s"] == heights["^"] == [10 * MIB * blocks for blocks in range(1, 9)]
    assert heights["o"] == [0] * 8
    assert "o" in [line.get_marker() for line in zero.lines]
    assert "o" not in [line.get_marker() for line in memory.lines]


def test_a_dark_page_has_colours_of_its_own(lines):
    light, dark = ({line.get_color() for line in picture(lines, theme).axes[0].lines} for theme in (LIGHT, DARK))
    assert not light & dark
