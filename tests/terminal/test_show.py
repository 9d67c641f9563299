"""Slopes on a terminal and in a notebook, and figures on axes of one's own."""

import io
import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from rich.console import Console

import capsbench
from capsbench.errors import ConfigurationError
from capsbench.figures.depth import COLUMN_WIDTH, figure3, figure4, save
from capsbench.figures.sparks import BLOCKS, PLAIN, spark, svg
from capsbench.report import Report
from capsbench.stats.slopes import fitted_slopes
from capsbench.terminal.show import show_lines
from capsbench.words.printable import printable
from helpers.made import make_frame, make_record


def printed(frame, **options):
    out = io.StringIO()
    console = Console(width=80, file=out, **options)
    for line in show_lines(frame, fitted_slopes(frame)):
        console.print(line, soft_wrap=True)
    return out.getvalue()


def test_slopes_with_charts_fit_eighty_columns(sweep_frame):
    text = printed(sweep_frame)
    assert max(map(len, text.splitlines())) <= 80
    lines = {re.sub(r"\s+", " ", line).strip() for line in text.splitlines()}
    assert {"ResCapsNet", "retained ▃▅▆█ 10.00 MiB 1", "retained ▁▁▁▁ 0 B 0", "train step ▁▂▄▅ 20.0 ms 1"} <= lines
    assert "\x1b" not in text
    assert "\x1b" in printed(sweep_frame, force_terminal=True)


def test_the_widest_figures_fit_too():
    random = np.random.default_rng(0)

    def noisy(model, blocks):
        record = make_record(model, blocks)
        samples = (record.time.train_step_seconds[0] * random.uniform(0.1, 1.9, 9)).tolist()
        return record.model_copy(
            update={"time": record.time.model_copy(update={"train_step_seconds": samples, "noise": ["busy"]})}
        )

    text = printed(make_frame(noisy(model, blocks) for model in ("rescapsnet", "mocapsnet") for blocks in range(1, 30)))
    assert "±" in text
    assert "disturbed" in text
    assert max(map(len, text.splitlines())) <= 80


def test_where_a_line_ends_is_told():
    frame = make_frame([*(make_record(blocks=blocks) for blocks in (1, 2)), make_record(blocks=3, status="oom")])
    assert "ResCapsNet  out of memory at 3 blocks" in printed(frame)


def test_names_are_names():
    assert "[red]<b>x[/red]" in printed(make_frame(make_record("[red]<b>x[/red]", blocks) for blocks in (1, 2)))


@pytest.mark.parametrize(("encoding", "chart"), [("utf-8", "▁▃▆█"), ("ascii", "_-+#"), ("latin-1", "_")])
def test_show_by_command(capsbench, tmp_path, encoding, chart, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    store = Report(tmp_path / "mine")
    store.folder.mkdir()
    for blocks in range(1, 5):
        store.append(make_record(blocks=blocks))
    result = capsbench("show", "mine")
    assert result.status == 0, result.stderr
    assert "ResCapsNet" in result.stdout
    assert "10.00 MiB" in result.stdout
    assert chart in result.stdout


def test_lines_that_only_ran_out_of_memory_are_told(sweep_frame):
    full = make_frame(make_record("capsnet", blocks, memory="checkpoint", status="oom") for blocks in (2, 1))
    text = printed(pd.concat([sweep_frame, full], ignore_index=True))
    assert "CapsNet (checkpoint)  out of memory at 1 block" in text
    assert "CapsNet (stored)\n" in text
    assert printed(full) == "CapsNet  out of memory at 1 block\n"


def test_a_whole_number_in_a_column_of_floats_is_whole():
    rows = [make_record("rescapsnet", blocks, threads=threads) for blocks in (1, 2) for threads in (2, 4)]
    rows += [make_record("mocapsnet", blocks, threads=None) for blocks in (1, 2)]
    assert "ResCapsNet (threads 2)\n" in printed(make_frame(rows))


def test_show_without_a_slope(command, tmp_path):
    store = Report(tmp_path / "mine")
    store.folder.mkdir()
    store.append(make_record())
    result = command("show", "mine")
    assert (result.status, result.stdout) == (0, "no slopes: a line needs two measured depths\n")


@given(st.lists(st.floats(-1e12, 1e12, allow_subnormal=False), min_size=1, max_size=40))
def test_a_spark_rises_with_its_values(values):
    text = spark(values, min(values), max(values))
    assert len(text) == min(len(values), 12)
    assert set(text) <= set(BLOCKS)
    if len(values) <= 12:
        heights = [BLOCKS.index(sign) for sign in text]
        for (a, x), (b, y) in zip(zip(values, heights, strict=True), zip(values[1:], heights[1:], strict=True), strict=False):
            assert (a <= b) <= (x <= y)
    assert spark(values, min(values), max(values), PLAIN).translate(str.maketrans(PLAIN, BLOCKS)) == text


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(-1e12, 1e12, allow_subnormal=False)), min_size=1, max_size=12))
def test_a_small_picture_is_one_with_everything_inside(points):
    values = [value for _, value in points]
    level = [(place, values[0]) for place, _ in (points[0], points[-1])]
    picture = ET.fromstring(svg(points, level, "#0072B2", min(values), max(values), "blocks"))
    line, *dots = picture
    assert all(0 <= float(line.get(end)) <= 28 for end in ("y1", "y2"))
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in dots]
    assert len(dots) == len(points)
    assert all(0 <= x <= 120 and 0 <= y <= 28 for x, y in dots)


def test_slopes_in_a_notebook_are_a_data_frame_that_shows_charts(sweep_frame):
    table = capsbench.slopes(sweep_frame)
    assert isinstance(table, pd.DataFrame)
    pd.testing.assert_frame_equal(pd.DataFrame(table), fitted_slopes(sweep_frame))
    html = table._repr_html_()
    assert html.count("<svg") == len(table)
    assert html.count("<line") == table["linear"].sum()
    assert "10.00 MiB" in html
    # A part of it shows its own charts, whatever became of the numbers of its rows.
    part = table[(table["model"] == "mocapsnet") & (table["metric"] == "train")].reset_index(drop=True)
    assert part._repr_html_().count("<svg") == 1
    assert part._repr_html_().count("<circle") == 4
    assert "<svg" not in table[["model", "slope"]]._repr_html_()
    assert "<svg" not in table.describe()._repr_html_()
    assert float(table["slope"].max()) == fitted_slopes(sweep_frame)["slope"].max()


def test_charts_of_one_quantity_have_one_scale():
    """Lines of one data set and batch share a scale: a block of 10 KiB does not look like one of 10 MiB."""

    def grown(model, per_block, **fields):
        for blocks in (1, 2, 3):
            record = make_record(model, blocks, **fields)
            yield record.model_copy(
                update={"memory": record.memory.model_copy(update={"retained_bytes": 2**20 + blocks * per_block})}
            )

    few = [*grown("rescapsnet", 10 * 2**20), *grown("mocapsnet", 10 * 2**10)]
    frame = make_frame([*few, *grown("rescapsnet", 10 * 2**30, batch_size=512)])
    table = capsbench.slopes(frame)
    pictures = re.findall(r"<td[^>]*>(<svg.*?</svg>)", table[table["metric"] == "retained"]._repr_html_())
    spans = []
    for picture in map(ET.fromstring, pictures):
        heights = [float(dot.get("cy")) for dot in picture.iter("circle")]
        spans.append(max(heights) - min(heights))
    assert sorted(spans) == pytest.approx([0, 20 * 20 / 30, 20], abs=0.2)
    charts = re.findall(r"^  retained +(\S+)", "\n".join(line.plain for line in show_lines(frame, table)), re.MULTILINE)
    assert sorted(charts) == ["▁▁▁", "▁▅█", "▃▆█"]


def test_each_kind_of_device_has_a_scale_and_fitted_lines_lie_on_it():
    records = [make_record("mocapsnet", blocks, device=device) for device in ("cpu", "cuda:0") for blocks in (1, 2, 3)]
    for place, seconds in enumerate((3.0, 4.0, 20.0)):
        slow = records[place].time.model_copy(update={"train_step_seconds": [seconds] * 5})
        records[place] = records[place].model_copy(update={"time": slow})
    table = capsbench.slopes(make_frame(records))
    table.loc[table["metric"] == "train", "shape"] = "line"
    table.loc[table["metric"] == "train", "slope_low"] = table["slope"] / 2
    pictures = re.findall(r"<td[^>]*>(<svg.*?</svg>)", table[table["metric"] == "train"]._repr_html_())
    assert len(pictures) == 2
    for picture in map(ET.fromstring, pictures):
        heights = [float(dot.get("cy")) for dot in picture.iter("circle")]
        (line,) = picture.iter("line")
        ends = [float(line.get(end)) for end in ("y1", "y2")]
        assert max(*heights, *ends) - min(*heights, *ends) == pytest.approx(20, abs=0.2)
        # The line is where its slope puts it, not bent at an edge: through the mean of the points.
        assert sum(ends) / 2 == pytest.approx(sum(heights) / 3, abs=0.2)


def test_names_in_a_notebook_are_text():
    frame = make_frame(make_record("<script>x</script>", blocks) for blocks in (1, 2))
    html = capsbench.slopes(frame)._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_an_empty_table_is_shown():
    assert capsbench.slopes(make_frame([make_record()]))._repr_html_() is not None


def test_long_tables_are_cut_as_pandas_cuts_them(sweep_frame):
    with pd.option_context("display.max_rows", 3):
        assert "15 more rows" in capsbench.slopes(sweep_frame)._repr_html_()


def test_a_legend_on_axes_of_ones_own_leaves_room_for_the_lines():
    frame = make_frame(make_record("rescapsnet", blocks, batch_size=batch) for batch in range(1, 10) for blocks in (1, 2, 3))
    given = Figure().subplots(1, 3)
    for panel in figure4(frame, ax=given)[0]:
        texts = [text.get_text() for text in panel.get_legend().get_texts()]
        assert sum(1 + text.count("\n") for text in texts) <= 7
        assert texts[-1] == f"and {9 - (len(texts) - 1)} more"
        assert len(panel.containers) == 9


def test_a_short_legend_still_says_what_is_not_drawn():
    frame = make_frame(make_record("rescapsnet", blocks, batch_size=batch) for batch in range(1, 16) for blocks in (1, 2, 3))
    for draw in (figure3, figure4):
        texts = [text.get_text() for text in draw(frame, ax=Figure().subplots(1, 3))[0][0].get_legend().get_texts()]
        assert sum(1 + text.count("\n") for text in texts) <= 7
        named = len(texts) - 2
        assert texts[named:] == [f"and {12 - named} more", "3 more lines are not drawn"]


@pytest.mark.parametrize("draw", [figure3, figure4])
def test_figures_are_drawn_on_axes_of_ones_own(sweep_frame, draw):
    axes = Figure().subplots(1, 3)
    found = draw(sweep_frame, ax=axes)
    assert found.shape == (1, 3)
    assert [one is other for one, other in zip(found[0], axes, strict=True)] == [True] * 3
    assert all(ax.containers for ax in axes)
    with pytest.raises(ConfigurationError) as told:
        draw(sweep_frame, ax=axes[0])
    assert str(told.value) == "ax has 1 axes for 1 data sets × 3 columns\ngive plt.subplots(1, 3)[1], or no ax"


def test_one_panel_takes_one_axes(sweep_frame):
    ax = Figure().subplots()
    only = sweep_frame.assign(train_step_seconds=np.nan, inference_seconds=np.nan)
    assert figure3(only, ax=ax)[0, 0] is ax


def test_the_styles_of_a_program_are_left_alone(sweep_frame):
    before = dict(mpl.rcParams)
    figure4(sweep_frame, width=COLUMN_WIDTH)
    assert dict(mpl.rcParams) == before


def test_a_pdf_has_its_fonts_in_it_and_fits_a_column(sweep_frame, tmp_path):
    only = sweep_frame.assign(peak_allocated_bytes=pd.NA, train_step_seconds=np.nan)
    figure = figure4(only, width=COLUMN_WIDTH)[0, 0].figure
    assert figure.get_figwidth() == COLUMN_WIDTH
    (path,) = save(figure, tmp_path, "figure", ["pdf"])
    content = path.read_bytes()
    assert b"/FontFile2" in content
    assert b"/Type3" not in content
    assert b"CreationDate" not in content


# Whatever a name or a figure is.


@pytest.mark.parametrize("label", ["x" * 200, "a name of many words " * 9, "MoCapsNet"])
def test_no_row_is_wider_than_80_columns(label):
    frame = make_frame(
        [
            *(make_record(label, blocks) for blocks in (1, 2, 3)),
            *(make_record(label, blocks, status="oom") for blocks in (4, 5)),
            *(make_record("rescapsnet", blocks, batch_size=8) for blocks in (1, 2)),
        ]
    )
    table = fitted_slopes(frame).assign(
        linear=False, shape="not a line", noise="busy,drift", slope=-1023.99 * 2**30, slope_low=-(2.0**41), slope_high=2.0**41
    )
    table = table.assign(ratio_to_rescapsnet=-1234567.0, ratio_low=-2345678.0, ratio_high=3456789.0)
    lines = [line.plain for line in show_lines(frame, table)]
    assert all(len(line) <= 80 for line in lines if "x" * 100 not in line)
    text = " ".join(" ".join(lines).split())
    assert "out of memory at 4 blocks" in text
    for words in ("not a line, disturbed", "-1.23e+06 (-2.35e+06 to 3.46e+06)", "-1023.99 (-2048.00 to 2048.00) GiB"):
        assert words in text


def test_nothing_is_wrapped_that_fits(sweep_frame):
    lines = [line.plain for line in show_lines(sweep_frame, fitted_slopes(sweep_frame))]
    assert len(lines) == 1 + 3 * (1 + 4)
    # ResCapsNet has no ratio to itself.
    assert {len(line) for line in lines if "MiB" in line} == {46, 66}


EVIL = "evil\x1b[31m\x9b2J\r\n\u202ename\udce9"


@given(st.text(st.characters()))
def test_a_printable_text_commands_no_terminal(text):
    found = printable(text)
    assert found.isprintable()
    found.encode("utf-8")
    assert printable(found) == found
    assert found == text or not text.isprintable()


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "mine"),
        ("slopes", "mine"),
        ("compare", "mine", "yours"),
        ("compare", "mine", "yours", "--markdown"),
        ("check", "yours", "--baseline", "base.json"),
        ("check", "yours", "--baseline", "base.json", "--markdown", "-"),
        ("compare", "mine", "other"),
    ],
)
def test_names_and_messages_of_records_command_no_terminal(command, tmp_path, arguments):
    def keep(name, records):
        store = Report(tmp_path / name)
        store.folder.mkdir()
        for record in records:
            # JSON has no halves of characters.
            store.append(record)

    name = EVIL[:-1]
    cells = [make_record(name, blocks) for blocks in (1, 2, 3)]
    keep("mine", [*cells, make_record(name, 4)])
    failed = make_record(name, 4, status="error").model_copy(update={"message": name, "environment": "abcd"})
    keep("yours", [*cells, failed])
    keep("other", [make_record("capsnet", blocks) for blocks in (1, 2)])
    (tmp_path / "other" / "records.jsonl").open("a").write("[]\x1b[31m")
    assert command("check", "mine", "--baseline", "base.json", "--update").status == 0
    result = command(*arguments)
    assert result.status == {"check": 1}.get(arguments[0], 2 if "other" in arguments else 0)
    printed = result.stdout + result.stderr
    assert all(sign.isprintable() or sign == "\n" for sign in printed)
    # A table folds names, and Markdown escapes them.
    if arguments[0] != "slopes" and "--markdown" not in arguments:
        assert r"evil\x1b[31m" in "".join(printed.split())
