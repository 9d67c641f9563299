"""Figures, tables and pages over axes other than depth."""

import json
import re
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from capsbench.axes import in_doubles, position_in_words
from capsbench.errors import ConfigurationError
from capsbench.figures.depth import figure4 as axes_of_figure4
from capsbench.figures.sparks import fitted_points, svg
from capsbench.frame import to_frame
from capsbench.options import OPTIONS
from capsbench.page import page_html
from capsbench.page.notebook import slopes
from capsbench.records import Plan
from capsbench.report import Report
from capsbench.terminal.grid import grid_table
from capsbench.terminal.show import show_lines
from capsbench.terminal.tables import cells_table, cross_terms_table, estimates_table, slopes_table
from capsbench.words.along import axis_label, over_text, places_text
from capsbench.words.labels import images_title
from helpers.drawn import figure3, figure4
from helpers.forked import save_a_word
from helpers.made import MIB, make_record, make_varied


@pytest.fixture
def tokens():
    return make_varied(lambda at: MIB + 2048 * at["length"], length=(64, 128, 256))


@pytest.fixture
def attention():
    return make_varied(lambda at: MIB + 12 * 1024 * at["length"] + 48 * at["length"] ** 2, length=(64, 128, 256, 512))


@pytest.fixture
def grid():
    return make_varied(lambda at: MIB + 4096 * at["length"] * at["batch_size"], length=(64, 128, 256), batch_size=(1, 2, 4))


def printed(table):
    console = Console(width=110, record=True, file=StringIO())
    console.print(table)
    return console.export_text()


def legend_of(ax):
    return " ".join(" ".join(text.get_text() for text in ax.get_legend().get_texts()).split())


def data_of(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


@pytest.mark.parametrize(
    ("axis", "label", "over", "places"),
    [
        ("blocks", "blocks", "over depth", "8 blocks"),
        ("batch_size", "batch size (samples)", "over batch size", "batch size 8"),
        ("length", "length (tokens)", "over length", "length 8"),
        ("image_shape", "image size (pixels)", "over image size", "image size 8 pixels"),
        ("classes", "classes", "over classes", "classes 8"),
        ("width", "width", "over width", "width 8"),
    ],
)
def test_axes_in_words(axis, label, over, places):
    assert (axis_label(axis), over_text(axis), places_text(axis, [8.0])) == (label, over, places)


@pytest.mark.parametrize("draw", [figure3, figure4])
def test_a_figure_over_length_names_its_axis_and_unit(draw, tokens):
    figure = draw(tokens.frame)
    assert {ax.get_xlabel() for ax in figure.axes} == {"length (tokens)"}
    line = figure.axes[0].containers[0].lines[0]
    assert line.get_xdata().tolist() == [64, 128, 256]


def test_figure_4_has_slopes_per_token(tokens, attention):
    assert "2.00 KiB per token" in legend_of(figure4(tokens.frame).axes[0])
    assert "12.00 KiB per token, 48 B per pair of tokens" in legend_of(figure4(attention.frame).axes[0])


def test_a_curve_is_drawn_through_its_points(attention):
    ax = figure4(attention.frame).axes[0]
    curve = next(line for line in ax.lines if len(line.get_xdata()) == 60)
    at = dict(zip(curve.get_xdata(), curve.get_ydata(), strict=True))
    assert at[512] == pytest.approx((MIB + 12 * 1024 * 512 + 48 * 512**2) / MIB)


@pytest.fixture
def ranks():
    return make_varied(lambda at: MIB + 64 * MIB // at["world_size"], world_size=(1, 2, 4, 8, 16))


def test_doubles_of_ranks_lie_at_equal_distances(ranks, tokens):
    ax = figure4(ranks.frame).axes[0]
    assert ax.get_xscale() == "log"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "4", "8", "16"]
    (curve,) = (line for line in ax.lines if len(line.get_xdata()) > 20)
    x, y = (np.asarray(values) for values in curve.get_data())
    assert np.diff(np.log2(x)) == pytest.approx(4 / 59)
    assert y == pytest.approx(1 + 64 / x)
    assert figure4(tokens.frame).axes[0].get_xscale() == "linear"


@pytest.mark.parametrize(
    ("axis", "positions", "expected"),
    [
        ("world_size", [1, 2, 4, 8], True),
        ("world_size", [8, 1, 3], True),
        ("world_size", [2, 3, 4], False),
        ("world_size", [1, 1024], False),
        ("world_size", [], False),
        ("batch_size", [1, 2, 4, 8], False),
        ("length", [1, 2, 4, 8], False),
    ],
)
def test_axes_in_doubles(axis, positions, expected):
    assert in_doubles(axis, positions) is expected


def test_small_charts_and_the_page_place_doubles_at_equal_distances(ranks):
    points = [(float(rank), 1 + 64 / rank) for rank in (1, 2, 4, 8)]
    fit = {"shape": "inverse", "intercept": 1.0, "slope": 0.0, "term": 64.0}
    fitted = fitted_points(fit, points, "world_size")
    assert [y for _, y in fitted] == pytest.approx([1 + 64 / x for x, _ in fitted])
    assert fitted_points({"shape": "line", "intercept": 1.0, "slope": 2.0, "term": None}, points, "world_size")[6] == (
        pytest.approx(8**0.5),
        pytest.approx(1 + 2 * 8**0.5),
    )
    centres = [float(x) for x in re.findall(r'cx="([\d.]+)"', svg(points, fitted, "red", 0, 65, "world_size"))]
    assert np.diff(centres) == pytest.approx([centres[1] - centres[0]] * 3, abs=0.2)
    centres = [float(x) for x in re.findall(r'cx="([\d.]+)"', svg(points, fitted, "red", 0, 65, "length"))]
    assert np.diff(centres)[2] == pytest.approx(4 * np.diff(centres)[0], abs=0.5)
    assert data_of(page_html([ranks]))["axes"]["world_size"]["doubles"] is True


def test_a_grid_is_drawn_over_each_of_its_axes(grid, tmp_path, monkeypatch):
    names = {path.name for path in grid.draw(tmp_path)}
    assert {"slopes.csv", "figure4.svg", "figure3.png", "figure4-batch-size.svg", "figure3-batch-size.pdf"} <= names
    assert "batch size (samples)" in (tmp_path / "figure4-batch-size.svg").read_text()
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", save_a_word)  # these figures were drawn just now
    assert {path.name for path in grid.draw(tmp_path / ".", along="batch_size")} == {
        "slopes.csv", *(f"figure{number}.{kind}" for number in (3, 4) for kind in ("svg", "png", "pdf"))
    }  # fmt: skip


def test_series_of_a_grid_are_named_by_the_other_axis(grid):
    labels = legend_of(grid.figure4().axes[0])
    assert "batch 1" in labels
    assert "batch 4" in labels
    assert "length=64" in legend_of(grid.figure4(along="batch_size").axes[0])


def test_a_network_without_the_axis_is_a_level(tokens):
    other = make_record("cases:plain", 0, dataset="own", batch_size=4, settings={"width": 8})
    report = Report.of([*tokens.records, other], "mine", plan=tokens.plan)
    for figure in (report.figure3(), report.figure4()):
        ax = figure.axes[0]
        (level,) = [line for line in ax.lines if list(line.get_xdata()) == [0, 1]]
        assert list(level.get_ydata()) == [other.memory.retained_bytes / MIB] * 2
        assert "no length" in legend_of(ax)
        assert ax.get_xlim()[0] > 32, "it has no place on the axis"
    lines = data_of(page_html([report]))["lines"]
    assert [line["lacks"] for line in lines] == [False, True]
    alone = Report.of([other], "mine", plan=tokens.plan)
    assert len(alone.figure4().axes) > 0


def test_a_network_without_blocks_is_a_level():
    deep = make_varied(lambda at: MIB * at["blocks"], blocks=(1, 2, 4))
    other = make_record("cases:plain", 0, dataset="own", batch_size=4, settings={"width": 8})
    report = Report.of([*deep.records, other], "mine", plan=deep.plan)
    for figure in (report.figure3(), report.figure4()):
        ax = figure.axes[0]
        (level,) = [line for line in ax.lines if list(line.get_xdata()) == [0, 1]]
        assert list(level.get_ydata()) == [other.memory.retained_bytes / MIB] * 2
        assert "no blocks" in legend_of(ax)
        assert ax.get_xlim()[0] > 0, "it has no place on the axis"
    assert [line["lacks"] for line in data_of(page_html([report]))["lines"]] == [False, True]
    assert position_in_words(other.cell.configuration, "blocks") == "no blocks"
    assert len(Report.of([other], "mine", plan=deep.plan).figure4().axes) > 0


def test_seconds_per_epoch_are_refused_over_the_batch_size(grid):
    with pytest.raises(ConfigurationError, match="epoch is not drawn over the batch size"):
        grid.figure4(along="batch_size", per="epoch")


def test_tables_on_a_terminal_name_the_unit(tokens, attention, grid):
    assert "slope per token" in printed(slopes_table(tokens.slopes))
    assert "ResCapsNet" not in printed(slopes_table(tokens.slopes)), "nothing is compared to it here"
    text = " ".join(printed(slopes_table(attention.slopes)).split())
    assert "12.00 KiB per token and 48 B per" in text
    assert "not a line" in text, "attention's time over four lengths"
    cells = printed(cells_table(grid.frame))
    assert re.search(r"length +batch size", cells)
    assert re.search(r"256 +4 ", cells)
    assert "4.00 KiB per token and sample" in " ".join(printed(cross_terms_table(grid.cross_terms)).split())
    point = {"length": 512.0, "batch_size": 8.0}
    text = printed(estimates_table(grid.at(**point), point))
    assert "costs at length 512, batch size 8" in text
    assert "17.00 MiB" in text
    assert re.search(r"peak allocated +at least", text)
    assert "exact" in text


def test_show_draws_each_axis_under_its_own_head(grid, attention):
    lines = [line.plain for line in show_lines(grid.frame, grid.slopes)]
    assert [line.split()[1] for line in lines if line.startswith("  per ")] == ["token", "sample"]
    assert all(len(line) <= 80 for line in lines)
    text = " ".join(" ".join(line.plain for line in show_lines(attention.frame, attention.slopes)).split())
    assert "12.00 KiB per token and 48 B per pair of tokens" in text


def test_out_of_memory_is_told_at_its_position():
    report = make_varied(lambda at: at["length"], status=lambda at: "oom" if at["length"] > 99 else "ok", length=(32, 64, 128))
    assert any("out of memory at length 128" in line.plain for line in show_lines(report.frame, report.slopes))
    html = page_html([report])
    assert "Out of memory from length 128 on." in html


def test_a_notebook_names_the_unit_and_draws_the_curve(tokens, attention, grid):
    assert "slope per token" in slopes(tokens.frame)._repr_html_()
    assert slopes(attention.frame)._repr_html_().count("<line") > 20
    text = slopes(grid.frame)._repr_html_()
    assert "per sample" in text
    assert "per token" in text
    assert set(slopes(grid.frame, along="length")["axis"]) == {"length"}


def test_the_page_over_length(tokens):
    html = page_html([tokens])
    assert "What a token costs" in html
    assert '<h2 id="depth-head">Over length</h2>' in html
    assert "<strong>2.00 KiB</strong> more per token" in html
    data = data_of(html)
    assert data["axes"]["length"] == {
        "label": "length (tokens)", "title": "Length", "noun": "length", "unit": "token", "over": "over length", "option": False,
        "square": False, "doubles": False,
    }  # fmt: skip
    assert data["cells"]["places"] == {"length": [64, 128, 256]}
    assert [data["texts"][one] for one in data["cells"]["place"]] == [f" --depth 2 --set length={at}" for at in (64, 128, 256)]
    assert data["lines"][0]["command"].endswith("--samples 5 --time-budget 10")
    assert "--set width=8" in data["lines"][0]["command"]


def test_the_page_of_a_grid_has_each_record_on_a_line_along_each_axis(grid):
    data = data_of(page_html([grid]))
    along = data["cells"]["along"]
    assert data["cells"]["line"] == along["length"]
    axes = [line["axis"] for line in data["lines"]]
    assert axes == ["length"] * 3 + ["batch_size"] * 3
    assert {axes[line] for line in along["batch_size"]} == {"batch_size"}
    assert data["texts"][data["cells"]["place"][0]] == " --depth 2 --set length=64"


def test_the_answer_names_the_terms_of_a_curve(attention):
    assert "retains <strong>12.00 KiB per token and 48 B per pair of tokens</strong>" in page_html([attention])


def test_reports_along_different_axes_share_a_page(tokens):
    depth = Report.of([make_record(blocks=blocks) for blocks in (1, 2, 3)], "depth")
    data = data_of(page_html([depth, tokens]))
    assert list(data["axes"]) == ["blocks", "length"]
    assert data["cells"]["line"] == [0, 0, 0, 1, 1, 1]
    assert data["cells"]["places"]["blocks"] == [1, 2, 3, None, None, None]


def test_old_figures_are_the_same_without_axes():
    frame = Report.of([make_record(blocks=blocks) for blocks in (1, 2, 3)], "old").frame
    bare = frame.drop(columns=["axes", "positions", "settings_by_name"])
    for draw in (figure3, figure4):
        one, other = draw(frame), draw(bare)
        for ax, twin in zip(one.axes, other.axes, strict=True):
            assert ax.get_xlabel() == twin.get_xlabel() == "blocks"
            for line, its in zip(ax.lines, twin.lines, strict=True):
                np.testing.assert_array_equal(line.get_xydata(), its.get_xydata())


def test_titles_name_a_data_set_only_where_its_images_are_used():
    made = {
        "CIFAR-10": {},
        "random 3×64×64 images": {"image_shape": "3x64x64"},
        "random 3×32×32 images": {"classes": 7},
        "random images of 3 channels": {"axis": "image_shape", "image_shape": None},
        "random images of 1 channel": {"axis": "image_shape", "image_shape": "1x0x0"},
    }
    assert [images_title([{"dataset": "cifar10"} | options]) for options in made.values()] == list(made)
    assert images_title([{"dataset": "own", "axis": "classes"}]) == "own inputs"
    records = [
        make_record("rescapsnet", blocks, dataset="cifar10", image_shape=shape)
        for blocks in (1, 2)
        for shape in (None, "3x64x64")
    ]
    axes = axes_of_figure4(to_frame(("mine", record) for record in records))
    assert [row[0].get_title(loc="left").partition(":")[0] for row in axes] == ["CIFAR-10", "random 3×64×64 images"]
    assert [record.cell.label().split(", ")[1] for record in records[:2]] == ["cifar10", "random 3x64x64"]


def test_positions_of_square_images_are_their_sides_and_a_slope_is_per_pixel(tmp_path):
    records = [
        make_record("rescapsnet", 1, image_shape=f"3x{side}x{side}", status=status)
        for side, status in ((32, "ok"), (64, "ok"), (128, "oom"))
    ]
    (tmp_path / "mine").mkdir()
    report = Report(tmp_path / "mine")
    report.write_plan(Plan(command="capsbench run", cells=[record.cell for record in records], axes=["image_shape"]))
    for record in records:
        report.append(record)
    assert "image size 32 × 32, 64 × 64, 128 × 128" in printed(grid_table([report.plan.cells], ["image_shape"], [[]]))
    assert re.search(r"ResCapsNet +64 × 64 ", printed(cells_table(report.frame)))
    assert "out of memory at image size 128 × 128" in "".join(map(str, show_lines(report.frame, report.slopes)))
    shown = page_html([report])
    assert "at image size 32 × 32, 64 × 64: random images of 3 channels" in shown
    assert "Out of memory from image size 128 × 128 on" in shown
    assert "<h1>What a pixel costs</h1>" in shown
    assert places_text("image_shape", [4096]) == "image size 4096 pixels", "32 × 128 images have as many"
    assert over_text("image_shape") == "over image size"
    assert OPTIONS["image_shape"].title == "Image size"
