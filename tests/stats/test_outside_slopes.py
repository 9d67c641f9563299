"""Exact bytes have exact slopes and ratios; what cannot be distinguished from 0 has no line, no sign and no ratio: everywhere."""

import io
import json
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import capsbench
from capsbench import fit_slope, slopes
from capsbench.figures.depth import figure4
from capsbench.gate.compare import compare
from capsbench.gate.verdicts import comparison_rows
from capsbench.page import page_html
from capsbench.report import Report
from capsbench.stats.linearity import shape_of
from capsbench.system.durable import write_csv
from capsbench.terminal.show import show_lines
from capsbench.terminal.tables import slopes_table
from helpers.made import make_frame, make_record

DEPTHS = (1, 2, 3, 4, 5, 6, 7, 8)
NOISE = (0.3, -0.9, 0.5, 0.2, -0.4, 0.9, -0.7, -0.1)
"""Times without a slope worth the name."""


def record(model, blocks, *, retained=None, seconds=None, **fields):
    made = make_record(model, blocks, **fields)
    memory, time = made.memory, made.time
    if retained is not None:
        memory = memory.model_copy(update={"retained_bytes": retained, "peak_allocated_bytes": 10**9 + retained})
    if seconds is not None:
        time = time.model_copy(update={"train_step_seconds": [seconds] * 9})
    return made.model_copy(update={"memory": memory, "time": time})


def exact(model, per_block, start=13_557_772):
    return [record(model, blocks, retained=start + per_block * blocks) for blocks in DEPTHS]


def unmeasurable(model="rescapsnet", slope=-0.0144):
    """Steps of a second that scatter by some 0.2 s, whose slope comes out negative."""
    return [record(model, blocks, seconds=1 + slope * blocks + 0.2 * NOISE[blocks - 1]) for blocks in DEPTHS]


def row(table, metric, model):
    (found,) = table[(table["metric"] == metric) & (table["model"] == model)].to_dict("records")
    return found


def source(records):
    return Report.of(records, "mine", environments={"abcd": {"commit": "abc1234", "cpu": {"model": "Some CPU"}}})


def data_of(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def first_screen(html):
    return re.sub(r"<[^>]*>", "", re.search(r'<ul class="answers">(.*?)</ul>', html, re.DOTALL)[1])


def shown(frame, table):
    return [line.plain for line in show_lines(frame, table)]


def printed(table):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(slopes_table(table))
    return console.export_text()


# Exact bytes.


@given(
    st.lists(st.integers(0, 60), min_size=3, max_size=24).filter(lambda depths: len(set(depths)) > 1),
    st.integers(-(2**36), 2**36),
    st.integers(0, 2**40),
)
def test_whole_numbers_on_a_line_have_an_exact_slope(depths, per_block, start):
    fit = fit_slope(depths, [start + per_block * depth for depth in depths])
    assert (fit.slope, fit.intercept) == (per_block, start)
    assert fit.slope_interval == (per_block, per_block)
    assert fit.intercept_interval == (start, start)
    assert (fit.deviation, fit.slope_error) == (0, 0)
    assert str(fit.slope) != "-0.0"


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2**40)), min_size=3, max_size=24))
def test_whole_numbers_have_the_slope_that_rational_arithmetic_gives(points):
    depths, values = zip(*points, strict=True)
    if len(set(depths)) < 2:
        return
    middle, mean = Fraction(sum(depths), len(depths)), Fraction(sum(values), len(values))
    run = sum((depth - middle) ** 2 for depth in depths)
    slope = sum((depth - middle) * (value - mean) for depth, value in points) / run
    assert fit_slope(depths, values).slope == float(slope)


@pytest.mark.parametrize("per_block", [0, 1, 3, 524_288, 786_433, 2_359_296 + 1, -4_097])
@pytest.mark.parametrize("reference", [786_432, 7, 77_237_453, 1_000_003])
def test_exact_bytes_have_exact_ratios_everywhere(per_block, reference, tmp_path):
    records = [*exact("rescapsnet", reference), *exact("mocapsnet", per_block, start=10**8)]
    frame = make_frame(records)
    table = slopes(frame)
    found, own = row(table, "retained", "mocapsnet"), row(table, "retained", "rescapsnet")
    ratio = per_block / reference
    assert (found["slope"], found["slope_low"], found["slope_high"]) == (per_block,) * 3
    assert (found["ratio_to_rescapsnet"], found["ratio_low"], found["ratio_high"]) == (ratio,) * 3
    assert (own["ratio_to_rescapsnet"], own["ratio_low"], own["ratio_high"]) == (1, 1, 1)
    assert found["shape"] == "line"
    assert "-0.0" not in [str(found[name]) for name in ("slope", "slope_low", "ratio_to_rescapsnet", "ratio_low")]
    text = write_csv(table, tmp_path / "slopes.csv").read_text()
    assert per_block or not re.search(r"\de-\d", text)
    html = page_html([source(records)])
    fits = [line["fits"]["retained"] for line in data_of(html)["lines"]]
    names = data_of(html)["fit"]
    for words in [fit[names.index("ratioText")] for fit in fits]:
        assert "(" not in words
    for told in (first_screen(html), "\n".join(shown(frame, table)), printed(table), capsbench.slopes(frame)._repr_html_()):
        assert "–" not in "".join(line for line in told.splitlines() if "retained" in line.lower())
        assert per_block or not re.search(r"\de-\d", told)


def test_a_ratio_that_is_known_to_more_digits_than_are_printed_has_no_interval_of_one_number():
    from capsbench.words.units import ratio_in_words, ratio_text

    assert ratio_text(0.3721, 0.37208, 0.37212) == "0.372"
    assert ratio_in_words(1.0, 0.99999, 1.00001) == "1"
    assert ratio_in_words(-0.0, -0.0, -0.0) == "0"


def test_the_comparison_of_two_runs_has_exact_slopes():
    before, after = ([record("rescapsnet", blocks, retained=7 * blocks + more) for blocks in DEPTHS] for more in (0, 1))
    from helpers.seeded import in_brief

    (found,) = [
        it for it in compare(in_brief(before), in_brief(after)).comparisons if (it.scope, it.quantity) == ("slope", "retained")
    ]
    assert (found.before, found.after) == (7, 7)


# Three shapes.


@pytest.mark.parametrize(
    ("linear", "low", "high", "shape"),
    [
        (True, 1.0, 2.0, "line"),
        (True, -2.0, -1.0, "line"),
        (True, -1.0, 2.0, "no change measurable"),
        (True, 0.0, 2.0, "no change measurable"),
        (True, 0.0, 0.0, "line"),
        (True, None, None, "line"),
        (True, np.nan, np.nan, "line"),
        (False, -1.0, 2.0, "not a line"),
        (False, 1.0, 2.0, "not a line"),
    ],
)
def test_shapes(linear, low, high, shape):
    assert shape_of(linear, low, high) == shape


@pytest.mark.parametrize("model", ["rescapsnet", "mocapsnet", "capsnet"])
@pytest.mark.parametrize("slope", [-0.0144, 0.0, 0.009])
def test_a_slope_that_cannot_be_distinguished_from_0_has_no_sign_no_line_and_no_ratio(model, slope, tmp_path):
    others = [made for other in ("rescapsnet", "mocapsnet", "capsnet") if other != model for made in timed_well(other)]
    records = [*unmeasurable(model, slope), *others]
    frame = make_frame(records)
    table = slopes(frame)
    found = row(table, "train", model)
    reach = max(abs(found["slope_low"]), abs(found["slope_high"]))
    words = f"within ± {1000 * reach:.1f} ms"
    assert found["shape"] == "no change measurable"
    assert found["slope_low"] < 0 < found["slope_high"]
    assert np.isnan(found["ratio_to_rescapsnet"])
    if model == "rescapsnet":
        assert table[table["metric"] == "train"]["ratio_to_rescapsnet"].isna().all()
    assert "no change measurable" in write_csv(table, tmp_path / "slopes.csv").read_text()
    # On the terminal.
    lines = [line for line in shown(frame, table) if words in line]
    assert len(lines) == 1
    assert "no change measurable" in lines[0]
    assert max(map(len, shown(frame, table))) <= 80
    assert words in printed(table)
    # In a notebook: no line, no number of its own.
    html = capsbench.slopes(frame)._repr_html_()
    (cell,) = [one for one in re.findall("<tr>.*?</tr>", html) if words in one]
    assert "<line" not in cell
    assert cell.count("<circle") == len(DEPTHS)
    # On the page: not in bold.
    html = page_html([source(records)])
    (sentence,) = [one for one in re.findall(r'<p class="sentence">(.*?)</p>', html) if words in one]
    assert f"shows no change measurable {words} per block" in sentence
    assert not [bold for bold in re.findall("<strong>(.*?)</strong>", sentence) if "ms" in bold]
    data = data_of(html)
    (fit,) = [dict(zip(data["fit"], line["fits"]["train"], strict=True)) for line in data["lines"] if line["model"] == model]
    assert (fit["shape"], fit["text"]) == ("no change measurable", f"no change measurable {words}")
    assert fit["ratio_to_rescapsnet"] is None
    # In a figure: points alone, of its own colour.
    (ax,) = [panel for panel in figure4(frame)[0] if "training" in panel.get_title(loc="left")]
    texts = [text.get_text().replace("\n", " ") for text in ax.get_legend().get_texts()]
    (told,) = [text for text in texts if "no change" in text]
    assert words in told
    assert len([line for line in ax.lines if len(line.get_xdata()) == 2]) == 2
    # Nowhere with a sign.
    for text in (html, "\n".join(shown(frame, table)), printed(table), *texts):
        assert not re.search(r"-\d[\d.]* ± [\d.]+ ms", text)


def timed_well(model):
    per_block = {"rescapsnet": 0.02, "mocapsnet": 0.03, "capsnet": 0.02}[model]
    return [record(model, blocks, seconds=1 + per_block * blocks + 0.002 * NOISE[-blocks]) for blocks in DEPTHS]


def test_bytes_that_scatter_have_the_three_shapes_too():
    records = [
        made.model_copy(
            update={"memory": made.memory.model_copy(update={"process_bytes": 10**9 + int(10**7 * NOISE[blocks - 1])})}
        )
        for blocks, made in enumerate(exact("rescapsnet", 100), start=1)
    ]
    assert row(slopes(make_frame(records)), "process", "rescapsnet")["shape"] in ("no change measurable", "not a line")


def test_two_values_of_a_time_are_said_to_have_no_interval():
    frame = make_frame(record("rescapsnet", blocks, seconds=1 - 0.0144 * blocks) for blocks in (1, 2))
    table = slopes(frame)
    assert [line for line in shown(frame, table) if "train" in line and "no interval" in line]
    assert "no interval" in printed(table)
    assert "no interval" in capsbench.slopes(frame)._repr_html_()
    (sentence,) = re.findall(
        r'<p class="sentence first">(.*?)</p>',
        page_html([source([record("rescapsnet", 1, seconds=1.0), record("rescapsnet", 2, seconds=0.9856)])]),
    )
    assert "which give no interval" in sentence
    assert not [bold for bold in re.findall("<strong>(.*?)</strong>", sentence) if "ms" in bold]
    (ax,) = [panel for panel in figure4(frame)[0] if "training" in panel.get_title(loc="left")]
    assert "no interval" in ax.get_legend().get_texts()[0].get_text()


def test_a_comparison_prints_no_sign_of_what_cannot_be_distinguished_from_0():
    from helpers.seeded import in_brief

    compared = compare(in_brief(unmeasurable(slope=-0.0144)), in_brief(unmeasurable(slope=-0.0120)))
    rows = {
        figure: (before, after, difference) for _, figure, before, after, difference, _ in comparison_rows(compared, cells=True)
    }
    before, after, difference = rows["train step per block"]
    for text in (before, after, difference):
        assert re.fullmatch(r"within ± [\d.]+ ms", text)
    levels = [texts for figure, texts in rows.items() if figure.startswith("train step") and " per " not in figure]
    assert levels
    for texts in levels:
        assert not texts[2].startswith(("+", "-")) or not texts[2].startswith(("+0.0", "-0.0"))
