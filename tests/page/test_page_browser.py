"""The page of reports in a real browser: it draws what the records say, whatever they say."""

import contextlib
import csv
import io
import re
import zlib

import pytest

from capsbench.colours import COLOURS, PURPOSES
from capsbench.page import write_page
from capsbench.page.commands import cell_arguments, series_command, timeline_command
from capsbench.records import Contents, MemoryFigures, Plan, StepFigures
from capsbench.report import Report
from capsbench.stats.placed_times import placed_times
from capsbench.stats.slopes import fitted_slopes
from capsbench.store.files import SavedTimeline
from helpers.browsing import Window, opened, started_browser
from helpers.made import (
    MIB,
    RETAINED_PER_BLOCK,
    make_configuration,
    make_frame,
    make_record,
    make_timeline,
    make_turns,
    make_varied,
)

HOSTILE = '<script>window.pwned = 1</script><img src=x onerror="window.pwned=2"><b>&lt;{{7*7}}%{x}'


@pytest.fixture(scope="module")
def browser():
    with started_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def window(browser, tmp_path_factory):
    return Window(browser, tmp_path_factory.mktemp("page") / "index.html")


@pytest.fixture
def show(window):
    """`with show(source, …) as page:`."""
    return lambda *sources, **options: opened(window, sources, **options)


def source(records, name="mine", commit="abc1234", **more):
    environment = {"commit": commit, "cpu": {"model": "Some CPU", "load_1_min": 0.5}, "cuda": {"available": False}}
    plan = Plan(command="capsbench run --out mine", cells=[])
    return Report.of(records, name, environments={"abcd": environment}, plan=plan, **more)


def models(depths=range(1, 5), **fields):
    return [make_record(model, blocks, **fields) for blocks in depths for model in RETAINED_PER_BLOCK]


def changed(record, *, retained=None, peak=None, factor=1.0):
    """A record with other figures."""
    memory, time = record.memory, record.time
    if retained is not None:
        memory = memory.model_copy(update={"retained_bytes": retained})
    if peak is not None:
        memory = memory.model_copy(update={"peak_allocated_bytes": peak})
    steps = [factor * value for value in time.train_step_seconds]
    return record.model_copy(update={"memory": memory, "time": time.model_copy(update={"train_step_seconds": steps})})


def rows_of(page, table):
    return page.page.locator(f"#{table} tbody tr").all_inner_texts()


def test_the_answer_is_there_without_any_script(browser, window, show):
    with show(source(models())):
        pass
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(window.path.as_uri())
    text = page.locator("#answer").inner_text()
    sentences = page.locator("#answer .answers").text_content()
    verdicts = page.locator("#paper").inner_text()
    context.close()
    # The line whose memory grows least comes first, and has its sentence above the table.
    assert text.index("MoCapsNet retains") < text.index("10.00 MiB")
    assert "CapsNet retains 10.00 MiB more per block" in sentences
    assert "MoCapsNet retains 0 B more per block; its training step takes 30.0 ms longer per block" in text
    assert "1.5 times as much as ResCapsNet" in text
    # What all lines share is printed once, and the rest next to each.
    shared = "Measured at 1 to 4 blocks: Fashion-MNIST sample, batch 4, kernel recompute, fp32, Some CPU, 2 threads."
    assert text.count(shared) == 1
    assert text.count("memory stored") == 2
    assert "agrees" in verdicts


def test_every_record_is_a_point_and_fits_are_the_slopes(show):
    records = models()
    with show(source(records)) as page:
        assert page.points("figure4") == pytest.approx(
            {place: record.memory.retained_bytes / MIB for place, record in enumerate(records)}
        )
        fitted = {trace["line"]["color"]: trace["y"] for trace in page.drawn("figure4") if trace["mode"] == "lines"}
        assert sorted(fitted.values()) == [[1, 1, 1, 1], [11, 21, 31, 41], [11, 21, 31, 41]]
        assert page.page.locator("#figure4 .scatterlayer .points path.point").count() == len(records)
        key = page.text("#figure4-caption")
        assert "MoCapsNet: 0 B per block" in key
        assert "ResCapsNet: 10.00 MiB per block" in key


def test_the_quantity_is_chosen(show):
    records = models()
    with show(source(records)) as page:
        page.drawn("figure4")
        page.choose("metric", "train")
        medians = {place: 1000 * sorted(record.time.train_step_seconds)[4] for place, record in enumerate(records)}
        assert page.points("figure4") == pytest.approx(medians)
        assert "30.0 ms per block" in page.text("#figure4-caption")
        page.choose("axis", "zero")
        assert page.evaluate("() => document.getElementById('figure4').layout.yaxis.rangemode") == "tozero"


def test_filters_change_every_figure_and_table(show):
    records = [*models(kernel="recompute"), *models(kernel="published", precision="bf16")]
    with show(source(records)) as page:
        assert len(page.points("figure4")) == 24
        for name, value in (("filter-kernel", "published"), ("filter-precision", "bf16")):
            page.choose(name, value)
            assert set(page.points("figure4")) == set(range(12, 24))
            assert set(page.points("tradeoff-chart")) == {21, 22, 23}
            assert page.evaluate("() => [...document.querySelectorAll('#figure3 .chart')].length") == 3
            assert len(rows_of(page, "cells-table")) == 12
            page.choose(name, "*")
        assert len(rows_of(page, "cells-table")) == 24


def test_data_sets_are_not_mixed_unless_asked(show):
    with show(source([*models(dataset="mnist"), *models(dataset="svhn")])) as page:
        assert set(page.points("figure4")) == set(range(12))
        page.choose("filter-dataset", "svhn")
        assert set(page.points("figure4")) == set(range(12, 24))
        page.choose("filter-dataset", "*")
        assert len(page.points("figure4")) == 24
        assert page.page.locator("#figure3 h4").all_inner_texts()[0] == "MNIST: retained for backward"


def test_what_is_chosen_at_first_is_there(show):
    def lines(dataset):
        return [
            make_record(model, blocks, dataset=dataset, batch_size=batch)
            for model in ("rescapsnet", "mocapsnet") for batch in (2, 4, 8, 16) for blocks in (1, 2)
        ]  # fmt: skip

    later = [record.model_copy(update={"started_at": "2030-01-01T00:00:00+00:00"}) for record in lines("svhn")]
    with show(source(lines("mnist"), "first"), source(later, "second")) as page:
        assert set(page.points("figure4")) == set(range(16, 32))
        assert len(rows_of(page, "cells-table")) == 16


def test_hovering_shows_the_value_in_the_record_its_interval_and_its_cell(show):
    records = models()
    with show(source(records)) as page:
        shown = page.hover("figure4", 11)
        assert f"{records[11].memory.retained_bytes:,} bytes" in shown
        assert records[11].cell.key() in shown
        assert "4 blocks" in shown
        page.choose("metric", "train")
        shown = page.hover("figure4", 11)
        step = records[11].time.train_step_seconds[0]
        assert f"{step:.6g} s" in shown
        assert "median of 9 samples; 95 % interval" in shown
        assert "slope 30.0 ms per block" in shown


def test_times_of_cells_in_turn_are_drawn_as_in_the_figures(show):
    report = source(make_turns(["rescapsnet"], depths=(1, 2, 4), full=3, ends=20))
    placed = placed_times(report.frame)["train"]
    with show(report) as page:
        page.choose("metric", "train")
        assert page.points("figure4") == pytest.approx({place: 1000 * one.seconds for place, one in enumerate(placed)}, rel=1e-6)
        shown = page.hover("figure4", 1)
        assert f"{placed[1].seconds:.6g} s" in shown
        assert "from 3 rounds in turn; 95 % interval" in shown
        assert "Bars: 95 % intervals of differences from the first and last position" in page.text("#figure4-caption")


def test_what_is_no_line_has_no_slope_beside_its_points(show):
    records = [changed(make_record(blocks=blocks), retained=int(2.0**blocks * MIB)) for blocks in range(1, 9)]
    with show(source(records)) as page:
        shown = page.hover("figure4", 4)
        assert "not a line" in shown
        assert "slope" not in shown


def test_a_point_that_is_clicked_is_looked_into(show):
    records = models()
    records[4] = records[4].model_copy(
        update={
            "step": StepFigures(retained_by_module={"blocks.0.0": 3 * MIB, "blocks.1.0": 3 * MIB, "first": MIB}),
            "memory": MemoryFigures.model_validate(
                records[4].memory.model_dump()
                | {
                    "at_peak": Contents(
                        phase="backward", state_bytes=5, gradient_bytes=6, optimizer_bytes=7, batch_bytes=8, retained_bytes=9,
                        temporary_bytes=10 * MIB, other_bytes=0,
                    )
                }
            ),
        }
    )  # fmt: skip
    with show(source(records)) as page:
        page.hover("figure4", 4)
        page.page.mouse.down()
        page.page.mouse.up()
        page.page.wait_for_function("() => document.getElementById('step-name').textContent.includes('2 blocks')")
        text = page.text("#step-body")
        colours = page.evaluate("() => [...document.querySelectorAll('#step-body .amount')].map(one => one.style.background)")
    assert f"{records[4].cell.key()} in mine" in text
    assert re.search(r"blocks\.\*\.0\s+6\.00 MiB\s+2 × 3\.00 MiB", text)
    assert "Alive at the peak, in backward" in text
    assert re.search(r"temporary\s+10\.00 MiB", text)
    # Categories have the colours that they have in a timeline.
    purposes = ("state", "gradient", "optimizer", "batch", "retained", "temporary")
    palette = [COLOURS.index(PURPOSES[name]) if PURPOSES[name] in COLOURS else None for name in purposes]
    assert [f"var(--c{index})" if index is not None else "rgb(240, 228, 66)" for index in palette] == colours[:6]
    assert "* stands for every number." in text
    assert "0.14, 0.14" in text  # raw samples
    assert "capsbench run --models rescapsnet" in text


def test_a_timeline_of_a_report_is_shown_with_its_peak_and_the_record_s_own_modules(show):
    records = models()
    own = {f"own{chr(97 + place)}": MIB for place in range(24)}
    records[3] = records[3].model_copy(update={"step": StepFigures(retained_by_module=own)})
    with show(
        source(
            records,
            timelines=[
                SavedTimeline(make_timeline(records[3].cell.configuration, "aten::<i>mm</i>"), "mine/inside/timeline.json")
            ],
        )
    ) as page:
        page.page.locator("#step").scroll_into_view_if_needed()
        page.page.wait_for_selector("#step-body .chart[data-drawn=yes]")
        text = page.text("#step-body")
        svg = page.text("#step-body .chart")
    assert "7.00 MiB (7,340,032 bytes) in backward" in text
    assert "aten::<i>mm</i>" in text
    assert "aten::<i>mm</i>" in svg
    assert f"{records[3].cell.key()} in mine" in text
    assert "mine/inside/timeline.json" in text
    assert f"the record’s own peak is {records[3].memory.peak_allocated_bytes / MIB:.2f} MiB" in text
    assert "Retained by module: 24.00 MiB" in text
    assert re.search(r"and 4 more\s+4.00 MiB", text)
    assert "5.00 MiB" not in text  # what the timeline says of its modules
    assert "every number" not in text  # no name has a star


def test_a_timeline_of_nobody_is_shown_without_a_record(show):
    first, second = source(models(), "first"), source(models(), "second")
    loose = [SavedTimeline(make_timeline(models()[3].cell.configuration), "beside/timeline.json")]
    with show(first, second, loose=loose) as page:
        text = page.text("#step-body")
        assert "no record of these reports" in text
        assert "Retained by module: 5.00 MiB" in text
        assert "The record" not in text
        page.evaluate("() => capsbench.selectCell(3)")
        assert page.evaluate("() => capsbench.state.step.timeline") is None


def test_names_and_messages_stay_text(show):
    records = [make_record(HOSTILE, blocks) for blocks in (1, 2, 3)]
    records += [
        make_record(HOSTILE, 4, status="error").model_copy(update={"message": HOSTILE, "notes": [HOSTILE]}),
        make_record(HOSTILE, 5, status="oom"),
    ]
    hostile = Report.of(
        records,
        HOSTILE,
        environments={"abcd": {"commit": HOSTILE, "cpu": {"model": HOSTILE}, HOSTILE: HOSTILE}},
        plan=Plan(command=HOSTILE, cells=[]),
        timelines=[SavedTimeline(make_timeline(records[0].cell.configuration, HOSTILE), HOSTILE)],
        notes=[HOSTILE],
    )
    other = Report.of(models(), "other", environments={"abcd": {"commit": HOSTILE}})
    with show(hostile, other) as page:
        page.evaluate("() => capsbench.drawAll()")
        assert HOSTILE in page.text("#answer")
        assert HOSTILE[:30] in page.hover("figure4", 0)
        for button in page.page.locator("#cells-table .toggle").all()[:5]:
            button.click()
        assert page.text("#cells-table").count(HOSTILE) >= 5
        assert page.evaluate("() => window.pwned") is None
        assert page.page.locator("img").count() == 0
        assert page.page.locator("script").count() == 3  # data, library, the page's own
        assert page.page.locator("main b:not(.name)").count() == 0


def test_only_cells_out_of_memory(show):
    with show(source(make_record(model, blocks, status="oom") for model in RETAINED_PER_BLOCK for blocks in (1, 2))) as page:
        assert page.drawn("figure4") == []
        assert "No cell has a figure" in page.text("#figure4")
        assert "ResCapsNet has no figures. Out of memory from 1 block on." in page.text("#answer")
        assert len(rows_of(page, "cells-table")) == 6


def test_out_of_memory_is_where_the_line_ends(show):
    records = [*models(range(1, 4)), make_record("rescapsnet", 4, status="oom"), make_record("rescapsnet", 5, status="skipped")]
    with show(source(records)) as page:
        assert page.points("figure4")[9] == pytest.approx(31)  # at the height of the last one measured
        assert "out of memory" in page.text("#figure4")
        assert "Out of memory from 4 blocks on" in page.text("#answer")
        # The one that was never started has no machine, and is of the same line all the same.
        assert page.evaluate("() => capsbench.LINES.length") == 3


def test_lines_that_only_ran_out_of_memory_and_cells_that_failed_have_marks_of_their_own(show):
    full = [make_record("capsnet", blocks, memory="checkpoint", status="oom") for blocks in (2, 3)]
    half = make_record("rescapsnet", 5).model_copy(update={"status": "error", "message": "it fell", "memory": None})
    records = [*models(), *full, half]
    with show(source(records)) as page:
        (mark,) = [trace for trace in page.drawn("figure4") if trace.get("yaxis") == "y2"]
        assert (mark["x"], mark["customdata"], mark["text"]) == ([2], [12], ["CapsNet (checkpoint): out of memory"])
        assert "CapsNet (checkpoint): out of memory at 2 blocks" in page.text("#figure4-caption")
        page.choose("metric", "train")
        (failed,) = [trace for trace in page.drawn("figure4") if trace.get("marker", {}).get("symbol") == "circle-x-open"]
        assert failed["customdata"] == [14]
        assert "<b>error</b>, and in no slope: it fell" in failed["hovertext"][0]
        lines = [trace for trace in page.drawn("figure4") if trace["mode"] == "lines"]
        assert max(x for trace in lines for x in trace["x"]) == 4
        assert "which are in no slope" in page.text("#figure4-caption")
        page.choose("trade-place", "4")
        assert 14 not in page.points("tradeoff-chart")


def test_one_cell(show):
    with show(source([make_record("mocapsnet", 2)])) as page:
        assert page.points("figure4") == {0: pytest.approx(1)}
        assert "was measured at 2 blocks only, which gives no slope" in page.text("#answer")


def test_two_machines_are_told_apart(show):
    records = models()
    there = [record.model_copy(update={"environment": "ef01"}) for record in models()]
    machines = {"abcd": {"cpu": {"model": "Some CPU", "cores": 2}}, "ef01": {"cpu": {"model": "Another CPU", "cores": 2}}}
    with show(Report.of([*records, *there], "both", environments=machines)) as page:
        text = page.text("#machines")
        assert "2 machines, which differ in cpu model" in text
        assert page.evaluate("() => capsbench.LINES.length") == 6
        assert "ResCapsNet (ef01)" in page.text("#answer")
        assert "Another CPU (ef01)" in page.text("#filter-environment")
        page.choose("filter-environment", "ef01")
        assert set(page.points("figure4")) == set(range(12, 24))
        differing = page.page.locator("#environments > .scroll tbody tr").all_inner_texts()
        assert [re.sub(r"\s+", " ", row) for row in differing] == ["cpu model Some CPU Another CPU"]


def test_reports_beside_each_other_with_history_and_verdicts(show):
    def day(number, more):
        records = [changed(one, retained=one.memory.retained_bytes + more * one.cell.configuration.blocks) for one in models()]
        records = [one.model_copy(update={"started_at": f"2026-01-0{number}T00:00:00+00:00"}) for one in records]
        return source(records, f"day {number}", f"commit{number}")

    # Given out of order: history is in the order of time.
    latest = day(3, 5 * MIB)
    extra = [make_record("mocapsnet", 1, kernel="published").model_copy(update={"started_at": "2026-01-03T00:00:00+00:00"})]
    machine = {"commit": "commit3", "cpu": {"model": "New"}}
    latest = Report.of([*latest.records, *extra], "day 3", environments={"abcd": machine})
    # The first that is given is what others are compared with.
    with show(day(1, 0), latest, day(2, 0)) as page:
        traces = page.drawn("history-chart")
        assert [trace["x"] for trace in traces] == [[0, 1, 2]] * 3
        assert sorted(trace["y"] for trace in traces) == [[0, 0, 5], [10, 10, 15], [10, 10, 15]]
        verdicts = page.text("#history-table")
        assert verdicts.index("day 1") < verdicts.index("day 2") < verdicts.index("day 3")
        assert re.search(r"commit2.*passed", verdicts)
        assert re.search(r"commit3.*failed: 3 regressions against day 1", verdicts)
        assert "retained per block 10.00 MiB → 15.00 MiB" in verdicts
        assert "2 remarks" in verdicts
        assert "left out: peak" in page.page.locator("#history-table").inner_html()
        page.choose("compare-with", "1")
        assert "retained per block" in page.text("#compare-table")
        assert page.text("#compare-remarks") == ""
        page.choose("compare-with", "0")
        assert "only in the second: " in page.text("#compare-remarks")
        with page.page.expect_download() as waiting:
            page.page.locator("#compare-table").get_by_role("button", name="Download CSV").click()
        rows = [*csv.DictReader(io.StringIO(waiting.value.path().read_text(encoding="utf-8")))]
    slope = next(row for row in rows if row["line"] == "CapsNet (recompute)" and row["figure"] == "retained per block")
    assert [float(slope[name]) for name in ("before", "after", "difference")] == [10 * MIB, 15 * MIB, 5 * MIB]
    assert slope["unit"] == "bytes"


def test_the_front_is_what_nothing_beats_in_both(show):
    values = [(5, 1.0), (3, 2.0), (3, 2.0), (4, 3.0), (1, 4.0), (1, 5.0), (6, 1.0)]
    records = [
        changed(make_record("rescapsnet", 2, iterations=1 + place), peak=memory * MIB, factor=time)
        for place, (memory, time) in enumerate(values)
    ]
    # Less memory and less time for a smaller batch: that beats nothing.
    records += [changed(make_record("rescapsnet", 2, batch_size=1), peak=MIB // 2, factor=0.1)]
    # The same holds for smaller images, and for fewer classes.
    smaller = ({"image_shape": "1x20x20"}, {"classes": 4}, {"classes": 7})
    records += [
        changed(make_record("rescapsnet", 2, **one), peak=MIB // 2, factor=0.1 + 0.1 * k) for k, one in enumerate(smaller)
    ]
    with show(source(records)) as page:
        page.drawn("tradeoff-chart")
        found = page.evaluate("() => capsbench.tradePoints().filter(point => point.front).map(point => point.cell)")
        assert "a front of its own" in page.text("#tradeoff-caption")
    assert set(found) == unbeaten([(memory, time, time) for memory, time in values]) | set(range(len(values), len(records)))


def unbeaten(values):
    """Places of memory and interval of time that no other beats: with as little memory, and a shorter time beyond both."""
    return {
        place
        for place, (memory, low, _) in enumerate(values)
        if not any(other <= memory and high < low for other, _, high in values)
    }


def test_unbeaten_tells_what_is_beaten():
    assert unbeaten([(1, 2, 2), (2, 1, 1), (2, 2, 2)]) == {0, 1}
    assert unbeaten([(1, 1, 1), (1, 1, 1)]) == {0, 1}
    assert unbeaten([(1, 1, 3), (2, 2, 4), (3, 4, 5)]) == {0, 1}


def test_a_point_whose_interval_overlaps_another_s_is_on_the_front(show):
    times = [[1.0 + 0.1 * place for place in range(9)], [1.3 + 0.1 * place for place in range(9)], [3.0] * 9]
    records = []
    for place, samples in enumerate(times):
        one = changed(make_record("rescapsnet", 2, iterations=1 + place), retained=(1 + place) * MIB)
        records.append(one.model_copy(update={"time": one.time.model_copy(update={"train_step_seconds": samples})}))
    with show(source(records)) as page:
        traces = page.drawn("tradeoff-chart")
        assert page.evaluate("() => capsbench.tradePoints().map(point => point.front)") == [True, True, False]
        bars = [trace["error_x"]["array"][0] for trace in traces]
        assert [bool(bar) for bar in bars] == [True, True, False]


def timed(record, samples, noise=()):
    """A record with other samples of its training time."""
    time = record.time.model_copy(update={"train_step_seconds": list(samples), "noise": list(noise)})
    return record.model_copy(update={"time": time})


def test_a_time_without_an_interval_beats_none_and_is_beaten_by_none(show):
    """Three samples say nothing at 95 %, even where all of one lie below all of the other; six do."""
    disturbed = ["spread", "load"]
    records = [
        timed(changed(make_record("capsnet", 3), retained=8 * MIB), [0.731, 0.782, 0.867], disturbed),
        timed(changed(make_record("rescapsnet", 3), retained=8 * MIB), [0.640, 0.616, 0.656], disturbed),
        timed(changed(make_record("mocapsnet", 3), retained=7 * MIB), [0.5 + 0.01 * place for place in range(6)]),
        timed(changed(make_record("rescapsnet", 3, memory="checkpoint"), retained=9 * MIB), [0.9] * 6, disturbed),
    ]
    with show(source(records)) as page:
        traces = page.drawn("tradeoff-chart")
        assert page.evaluate("() => capsbench.tradePoints().map(point => point.front)") == [True, True, True, False]
        fills = page.evaluate("() => [...document.querySelectorAll('#tradeoff-caption .keys path')].map(one => one.style.fill)")
        caption = page.text("#tradeoff-caption")
    points = [trace for trace in traces if "customdata" in trace]
    bars = {trace["customdata"][0]: trace["error_x"]["array"][0] > 0 for trace in points}
    assert bars == {0: False, 1: False, 2: True, 3: False}
    crosses = [trace for trace in traces if "customdata" not in trace]
    assert sorted(trace["x"][0] for trace in crosses) == pytest.approx([640, 782, 900])
    # Those on the front come first, filled as in the chart.
    assert [fill == "var(--paper)" for fill in fills] == [False, False, False, True]
    assert "A time from fewer than six samples has no interval." in caption
    assert "Points that are crossed out" in caption


def test_the_trade_off_begins_with_the_memory_that_differs_most_and_names_its_points(show):
    strategies = [
        changed(make_record("rescapsnet", 2, memory=name), retained=nbytes * MIB, peak=(100 + nbytes) * MIB, factor=factor)
        for name, nbytes, factor in (("stored", 20, 1), ("checkpoint", 5, 1.4), ("offload", 1, 2))
    ]
    with show(source(strategies)) as page:
        traces = page.drawn("tradeoff-chart")
        assert page.page.locator("#trade-memory").input_value() == "retained"
        assert len({(trace["marker"]["line"]["color"], trace["marker"]["symbol"]) for trace in traces}) == 3
        names = {note["text"] for note in page.evaluate("() => document.getElementById('tradeoff-chart').layout.annotations")}
        assert names == {"ResCapsNet (stored)", "ResCapsNet (checkpoint)", "ResCapsNet (offload)"}
    # Where no memory differs there is no choice.
    alike = [one.model_copy(update={"memory": strategies[0].memory}) for one in strategies]
    with show(source(alike)) as page:
        assert page.page.locator("#tradeoff").is_hidden()
        assert page.page.get_by_role("link", name="Trade-off").count() == 0


def test_the_table_sorts_searches_and_is_downloaded(show):
    records = [*models(), make_record("=cmd|calc", 1), make_record("capsnet", 9, status="error")]
    records[13] = records[13].model_copy(update={"message": "first\n=second, third"})
    with show(source(records)) as page:
        head = page.page.locator("#cells-table th").get_by_role("button", name="retained")
        head.click()
        assert head.locator("..").get_attribute("aria-sort") == "ascending"
        head.click()
        assert "41.00 MiB" in rows_of(page, "cells-table")[0]
        page.page.locator("#cells-table input[type=search]").fill("mocapsnet")
        assert len(rows_of(page, "cells-table")) == 4
        page.page.locator("#cells-table input[type=search]").fill("second, third")
        assert len(rows_of(page, "cells-table")) == 1
        page.choose("filter-status", "error")
        page.page.locator("#cells-table input[type=search]").fill("")
        assert len(rows_of(page, "cells-table")) == 1
        page.choose("filter-status", "*")
        with page.page.expect_download() as waiting:
            page.page.locator("#cells-table").get_by_role("button", name="Download CSV").click()
        text = waiting.value.path().read_text(encoding="utf-8")
        fields = page.evaluate(
            "fields => fields.map(capsbench.csvField)",
            ["+1.5", "-3e-7", "-", "+1 MiB", " =x", "@y", "\t=z", "\n-q", 'a"b', -2, None],
        )
    assert fields == ["+1.5", "-3e-7", "'-", "'+1 MiB", "' =x", "'@y", '"\'\t=z"', "' -q", '"a""b"', "-2", ""]
    # One record a line, whatever its message says.
    assert len(text.splitlines()) == 1 + len(records)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["key"] for row in rows] == [record.cell.key() for record in records]
    assert [int(row["retained_bytes"]) for row in rows[:12]] == [record.memory.retained_bytes for record in records[:12]]
    assert [float(one) for one in rows[0]["train_step_samples"].split()] == pytest.approx(records[0].time.train_step_seconds)
    assert rows[12]["model"] == "'=cmd|calc"
    assert rows[13]["message"] == "first =second, third"
    assert {row["inference_samples_taken"] for row in rows[:12]} == {"9"}


def test_slopes_are_downloaded_with_their_units_and_intervals(show):
    records = [changed(record, factor=1.01 if record.cell.configuration.blocks == 2 else 1) for record in models(range(1, 4))]
    with show(source(records)) as page:
        page.page.locator("#slopes summary").click()
        with page.page.expect_download() as waiting:
            page.page.locator("#slopes-table").get_by_role("button", name="Download CSV").click()
        rows = [*csv.DictReader(io.StringIO(waiting.value.path().read_text(encoding="utf-8")))]
    table = fitted_slopes(make_frame(records))
    assert len(rows) == len(table)
    for row, (_, fit) in zip(rows, table.iterrows(), strict=True):
        assert row["unit"] == fit["unit"]
        for name, column in (("slope_per_block", "slope"), ("slope_low", "slope_low"), ("slope_high", "slope_high")):
            assert (float(row[name]) if row[name] else None) == pytest.approx(fit[column] if fit[column] == fit[column] else None)
        assert float(row["ratio_to_rescapsnet"]) == pytest.approx(fit["ratio_to_rescapsnet"])


def test_history_follows_each_line_of_a_report(show):
    def lines(retained):
        return [
            changed(make_record("capsnet", blocks, threads=threads), retained=blocks * (retained if threads == 1 else MIB))
            for threads in (2, 1) for blocks in (1, 2, 3)
        ]  # fmt: skip

    later = [record.model_copy(update={"started_at": "2030-01-01T00:00:00+00:00"}) for record in lines(3 * MIB)]
    with show(source(lines(MIB), "before"), source(later, "after")) as page:
        drawn = page.drawn("history-chart")
        assert sorted(trace["y"] for trace in drawn) == [[1, 1], [1, 3]]
        page.choose("filter-threads", "1")
        assert [trace["y"] for trace in page.drawn("history-chart")] == [[1, 3]]
        assert "against before" in page.text("#history-table")


def test_history_names_the_unit_of_its_axis(show):
    def report(name, day, per_token):
        made = make_varied(lambda at: MIB + per_token * at["length"], length=(64, 128, 256))
        records = [one.model_copy(update={"started_at": f"2030-01-0{day}T00:00:00+00:00"}) for one in made.records]
        return Report.of(records, name, plan=made.plan)

    with show(report("before", 1, 2048), report("after", 2, 4096)) as page:
        (trace,) = page.drawn("history-chart")
        assert trace["y"] == [2, 4]
        title = page.evaluate("() => document.getElementById('history-chart').layout.yaxis.title.text")
        assert title == "retained for backward, KiB per token"
        assert "per token" in trace["hovertext"][0]


def test_a_depth_beyond_one_that_was_out_of_memory(show):
    records = [make_record("mocapsnet", blocks) for blocks in (1, 4, 40)] + [make_record("mocapsnet", 10, status="oom")]
    with show(source(records)) as page:
        crosses = [trace for trace in page.drawn("figure4") if trace.get("marker", {}).get("symbol") == "x-thin"]
        dotted = [trace for trace in page.drawn("figure4") if trace.get("line", {}).get("dash") == "dot"]
    assert [trace["x"] for trace in crosses] == [[10]]
    assert [trace["x"] for trace in dotted] == [[4, 10]]


def test_a_link_shows_the_same_selection_and_a_jump_has_a_way_back(show, browser):
    with show(source([*models(), *models(kernel="published")])) as page:
        page.drawn("figure4")
        page.choose("filter-kernel", "published")
        page.choose("metric", "train")
        page.choose("axis", "log")
        link = page.evaluate("() => location.href")
        context = browser.new_context()
        other = context.new_page()
        other.goto(link)
        other.wait_for_selector("html[data-ready]", state="attached")
        shown = [other.locator(f"#{name}").input_value() for name in ("filter-kernel", "metric", "axis")]
        assert shown == ["published", "train", "log"]
        assert other.evaluate("() => [capsbench.state.depth.metric, capsbench.state.filters.kernel]") == ["train", "published"]
        # Nonsense in a link leaves what the page begins with.
        other.goto("about:blank")  # on an open page it would leave what is selected
        other.goto(link.partition("#")[0] + "#depth?metric=gold&filter-kernel=none&record=999&report=mine")
        other.wait_for_selector("html[data-ready]", state="attached")
        assert other.evaluate("() => [capsbench.state.depth.metric, capsbench.state.filters.kernel]") == ["retained", "*"]
        # Neither a name that every object has, nor a time as a memory or a memory as a time, is one of the quantities.
        for memory, time in (("toString", "constructor"), ("train", "retained")):
            other.goto(link.partition("#")[0] + f"#tradeoff?tradeoff-memory={memory}&tradeoff-time={time}")
            other.reload()
            other.wait_for_selector("html[data-ready]", state="attached")
            assert other.evaluate("() => [capsbench.state.tradeoff.memory, capsbench.state.tradeoff.time]") == [None, "train"]
        context.close()
        before = page.evaluate("() => scrollY")
        page.evaluate("() => capsbench.selectCell(15)")
        key = page.evaluate("() => capsbench.CELLS.key[15]")
        page.page.wait_for_function("key => location.hash.includes(`record=${key}&report=mine`)", arg=key)
        jumped_to = page.evaluate("() => location.href")
        # A filter that is chosen there leaves the way back as it is, and so does a reload.
        page.choose("filter-kernel", "published")
        page.page.reload()
        page.page.wait_for_selector("html[data-ready]", state="attached")
        assert page.evaluate("() => capsbench.state.step.cell") == 15
        page.page.get_by_role("button", name="Back to where you were").click()
        page.page.wait_for_function("before => Math.abs(scrollY - before) < 200", arg=before)
        assert page.page.get_by_role("button", name="Back to where you were").count() == 0
        assert page.evaluate("() => capsbench.state.step.cell") != 15
        # Whoever opens the link of the step was nowhere on this page before.
        opened_link = page.page.context.new_page()
        opened_link.goto(jumped_to)
        opened_link.wait_for_selector("html[data-ready]", state="attached")
        assert opened_link.evaluate("() => capsbench.state.step.cell") == 15
        assert opened_link.get_by_role("button", name="Back to where you were").count() == 0
        # The link names the record, wherever it lies in the page.
        opened_link.close()
    noted = """window.written = [];
        const replace = history.replaceState.bind(history);
        history.replaceState = (mark, title, address) => { written.push(address); replace(mark, title, address); };"""
    with show(source(models(), "another"), source([*models(), *models(kernel="published")]), script=noted) as page:
        # The address never lacks a part of what is restored: whoever reloads meanwhile gets the same page.
        page.evaluate("hash => { written.length = 0; location.hash = hash; }", jumped_to.partition("#")[2])
        page.page.wait_for_function("key => capsbench.CELLS.key[capsbench.state.step.cell] === key", arg=key)
        page.page.wait_for_function("() => written.length")
        assert page.evaluate("() => written") == ["#" + jumped_to.partition("#")[2]]
        page.page.reload()
        page.page.wait_for_selector("html[data-ready]", state="attached")
        cell = page.evaluate("() => capsbench.state.step.cell")
        assert cell != 15
        assert page.evaluate(f"() => capsbench.CELLS.key[{cell}]") == key


def test_slopes_are_copied_as_markdown_and_latex(show):
    with show(source(models())) as page:
        page.page.locator("#slopes summary").click()
        page.evaluate("() => { navigator.clipboard.writeText = text => { window.copied = text; return Promise.resolve(); }; }")
        page.page.get_by_role("button", name="Copy as Markdown").click()
        lines = page.evaluate("() => window.copied").splitlines()
        assert lines[0].startswith("| line | data set | quantity |")
        assert "| ResCapsNet | Fashion-MNIST sample | retained for backward | 10.00 MiB per block | - |" in lines
        assert len(lines) == 2 + len(fitted_slopes(make_frame(models())))
        page.page.get_by_role("button", name="Copy as LaTeX").click()
        text = page.evaluate("() => window.copied")
        assert r"MoCapsNet & Fashion-MNIST sample & retained for backward & 0 B per block & 0 \\" in text
        # A browser that does not allow it shows the text.
        page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('not allowed')); }")
        page.page.locator("#slopes-table .controls button").nth(1).click()
        assert page.page.locator("#slopes textarea").input_value() == text


def about(number):
    """A number beyond the measured ones, as far as it is known."""
    step = 10 ** max(0, len(str(int(number))) - 2)
    return f"about {int(number // step * step):,}"


def test_one_answer_to_what_fits_is_given_once(show):
    records = [changed(one, retained=MIB, peak=(500 + 2 * one.cell.configuration.blocks) * MIB) for one in models()]
    with show(source(records)) as page:
        (row,) = rows_of(page, "fits-table")
        gpus = page.evaluate("() => capsbench.DATA.gpus")
        assert row.split("\t") == [
            "all 3 lines", "peak allocated", "1, 2, 3, 4 blocks", *(about((one["bytes"] / MIB - 500) // 2) for one in gpus)
        ]  # fmt: skip
        reason = "All lines have one answer, since each further block adds about 2.00 MiB to the least memory of every one."
        assert reason in page.text("#fits-caption")


def test_what_fits_follows_the_line_of_the_peak(show):
    with show(source(models())) as page:
        head = page.page.locator("#fits-table thead").inner_text()
        (row,) = [row for row in rows_of(page, "fits-table") if row.startswith("ResCapsNet")]
        table = fitted_slopes(make_frame(models()))
        fit = table[(table["model"] == "rescapsnet") & (table["metric"] == "peak")].iloc[0]
        gpus = page.evaluate("() => capsbench.DATA.gpus")
        expected = [about((one["bytes"] - fit["intercept"]) // fit["slope"]) for one in gpus]
        assert row.split("\t")[1:] == ["peak allocated", "1, 2, 3, 4 blocks", *expected]
        assert "All lines have one answer" not in page.text("#fits-caption")
        assert all(one["title"] in head for one in gpus)
        page.drawn("fits-chart")
        page.choose("filter-model", "mocapsnet")
        assert len(rows_of(page, "fits-table")) == 1


def test_what_fits_follows_what_is_alive_where_it_grows_faster_than_the_peak(show):
    # The peak of small networks lies in their first layers, and grows by 2 MiB a block. Their weights and the optimizer's state
    # grow by 1.5 MiB, from 120 MiB, and what is retained by 10 MiB, from 1 MiB.
    records = [changed(one, peak=(3000 + 2 * one.cell.configuration.blocks) * MIB) for one in models()]
    with show(source(records)) as page:
        rows = {row.split("\t")[0]: row.split("\t")[3:] for row in rows_of(page, "fits-table")}
        gpus = page.evaluate("() => capsbench.DATA.gpus")
        assert rows["ResCapsNet"] == [about((one["bytes"] / MIB - 121) // 11.5) for one in gpus]
        assert rows["MoCapsNet"] == [about((one["bytes"] / MIB - 3000) // 2) for one in gpus]
        x, y = next((one["x"], one["y"]) for one in page.drawn("fits-chart") if one.get("line", {}).get("dash") == "dot")
        assert y[-1] == pytest.approx((121 + 11.5 * x[-1]) / 1024)
        caption = page.text("#fits-caption")
        assert "alive at the end of forward" in caption
        assert "The inverse float drifts in deep stacks" in caption


@pytest.mark.parametrize("width", [1400, 400])
def test_a_table_that_is_wider_than_its_place_says_so(show, width):
    with show(source(models()), width=width) as page:
        page.page.wait_for_selector("html[data-drawn]", state="attached")
        wide = "one => one.scrollWidth > one.clientWidth + 1 || one.scrollHeight > one.clientHeight + 1"
        told = "one => one.previousElementSibling?.matches('.cue:not([hidden])') ?? false"
        shown = "[...document.querySelectorAll('.scroll')].filter(one => one.checkVisibility())"
        found = page.evaluate(f"() => {shown}.map(one => [({wide})(one), ({told})(one)])")
        assert [cue for _, cue in found] == [is_wide for is_wide, _ in found]
        assert any(cue for _, cue in found) or width == 1400


def test_two_reports_of_one_network_differ_in_colour_and_begin_with_the_verdict(show):
    before = [make_record("rescapsnet", blocks) for blocks in (1, 2, 3)]
    after = [changed(one, retained=2 * one.memory.retained_bytes) for one in before]
    after = [one.model_copy(update={"started_at": "2030-01-01T00:00:00+00:00"}) for one in after]
    with show(source(before, "before"), source(after, "after")) as page:
        assert len({trace["line"]["color"] for trace in page.drawn("figure4") if trace["mode"] == "lines"}) == 2
        assert page.page.locator("#answer p").first.inner_text().startswith("after failed: ")
        assert "retained per block 10.00 MiB → 20.00 MiB" in page.text("#answer .findings")


def test_keys_lead_into_the_step_that_is_looked_at(show):
    with show(source(models())) as page:
        page.page.locator("#cells-table .toggle").first.click()
        page.page.get_by_role("button", name="Look inside its step").first.press("Enter")
        assert page.evaluate("() => document.activeElement.id") == "step-name"


@pytest.mark.slow
def test_five_thousand_records_are_there_at_once(show, window):
    def cells(count):
        for batch in range(1, count + 1):
            for model in ("rescapsnet", "mocapsnet"):
                for blocks in range(1, 9):
                    record = make_record(model, blocks, batch_size=batch)
                    yield record if batch < 5 else record.model_copy(update={"time": None})

    def milliseconds(page):
        return page.evaluate("() => capsbench.readyAfter")

    with show(source(cells(1))) as page:
        small = milliseconds(page)
    with show(source(cells(313))) as page:
        assert page.evaluate("() => capsbench.COUNT") == 5008
        large = milliseconds(page)
        page.drawn("figure4")
        assert "of 626 lines are drawn" in page.text("#figure4-caption")
        page.page.locator("#cells-table").get_by_role("button", name="Next").click()
        assert "26 to 50 of 5,008" in page.text("#cells-table")
    # Two seconds, and more where even a page of 16 records takes long.
    assert large < max(2000, 6 * small)
    assert window.path.stat().st_size < 6_000_000


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_nothing_serious_for_whoever_cannot_see_or_point(show, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed")
    records = models()
    second = source(records, "second", timelines=[SavedTimeline(make_timeline(records[0].cell.configuration))])
    with show(source([*records, make_record(blocks=5, status="oom")]), second, width=width, scheme=scheme) as page:
        page.evaluate("() => document.querySelectorAll('details').forEach(one => one.open = true)")
        page.page.locator("#cells-table .toggle").first.click()
        page.evaluate("() => capsbench.drawAll()")
        found = axe.Axe().run(page.page).response["violations"]
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    serious = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
    assert serious == []


def test_keys_alone_change_a_figure(show):
    with show(source(models())) as page:
        page.drawn("figure4")
        page.page.locator("#metric").focus()
        page.page.keyboard.press("ArrowDown")
        page.page.wait_for_timeout(200)
        assert "peak allocated" in page.evaluate("() => document.getElementById('figure4').getAttribute('aria-label')")
        page.evaluate("() => capsbench.change(capsbench.state.depth, {metric: 'none'})")
        assert page.evaluate(
            "() => ['role', 'aria-label'].map(name => document.getElementById('figure4').getAttribute(name))"
        ) == [None, None]
        page.page.locator("#theme").focus()
        page.page.keyboard.press("Enter")
        assert page.evaluate("() => document.documentElement.dataset.theme") == "dark"


def strokes(pdf):
    """Number of lines and curves in a PDF."""
    found = 0
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL):
        with contextlib.suppress(zlib.error):
            found += len(re.findall(rb" [lc]\n", zlib.decompress(stream)))
    return found


NEVER_IDLE = "window.requestIdleCallback = () => 0;"
NEVER_LOADED = "addEventListener('load', event => event.stopImmediatePropagation());"
NO_IDLE_CALLBACKS = "delete window.requestIdleCallback;"  # as in Safari


@pytest.mark.parametrize("script", [NEVER_LOADED, NEVER_LOADED + NO_IDLE_CALLBACKS], ids=["idle", "timer"])
def test_charts_out_of_sight_are_drawn_in_idle_time_and_follow_the_filters(show, script):
    with show(source(models()), width=400, script=script) as page:
        page.page.wait_for_selector("html[data-drawn]", state="attached")
        assert page.page.locator(".chart:not([data-drawn=yes])").count() == 0
        assert page.page.locator(".chart").count() > 4
        last = "[...document.querySelectorAll('#figure3 .chart')].at(-1)"
        assert page.evaluate(f"() => {last}.getBoundingClientRect().top > innerHeight + 400")
        assert len(page.evaluate("() => document.getElementById('tradeoff-chart').data")) >= 3
        page.page.select_option("#filter-model", "mocapsnet")
        page.page.wait_for_function("() => [...capsbench.CHARTS].every(([node, chart]) => !chart.stale || !node.clientWidth)")
        cells = page.evaluate(f"() => {last}.data.flatMap(trace => trace.customdata || [])")
        assert cells
        assert {page.evaluate("cell => capsbench.lineOf(cell).model", cell) for cell in cells} == {"mocapsnet"}
        assert page.evaluate("() => scrollY") == 0


def test_a_picture_of_the_whole_page_has_every_chart(show):
    with show(source(models()), script=NEVER_IDLE) as page:
        assert page.page.screenshot(full_page=True)
        assert page.page.locator(".chart").count() > 4
        assert page.page.locator(".chart:not([data-drawn=yes])").count() == 0


def test_small_figures_draw_lines_that_have_what_they_show_and_name_them(show):
    """Twelve lines have bytes alone, and two others times: all of them are drawn, and those not in the key above have one."""
    records = [
        one.model_copy(update={"time": None}) for batch in range(1, 13) for one in models(range(1, 3), batch_size=batch)[1::3]
    ]
    records += [one.model_copy(update={"memory": None}) for one in models(range(1, 3), batch_size=64)[:2]]
    with show(source(records)) as page:
        page.page.wait_for_selector("html[data-drawn]", state="attached")
        count = "node => (node.data || []).filter(one => one.customdata).length"
        drawn = page.evaluate(f"() => [...document.querySelectorAll('#figure3 .chart')].map({count})")
        assert drawn == [12, 2, 2]
        assert page.page.locator("#figure4-caption .keys li").count() == 12
        named = page.page.locator("#figure3-caption .keys li").all_inner_texts()
        assert named == ["CapsNet (batch 64)", "ResCapsNet (batch 64)"]


def test_what_differs_by_little_does_not_look_far_apart(show):
    """Peaks that agree within a percent, and times within two."""
    records = [changed(one, peak=10**9 + 10**6 * place, factor=1 + 0.01 * place) for place, one in enumerate(models([4]))]
    records = [
        changed(one, factor=0.22 / one.time.train_step_seconds[0] * (1 + 0.01 * place)) for place, one in enumerate(records)
    ]
    with show(source(records)) as page:
        page.drawn("tradeoff-chart")
        page.choose("trade-memory", "peak")
        for axis in ("xaxis", "yaxis"):
            low, high = page.evaluate("axis => document.getElementById('tradeoff-chart')._fullLayout[axis].range", axis)
            assert high - low > 0.09 * high


def test_a_line_that_is_out_of_memory_is_drawn_among_many(show):
    full = [make_record("rescapsnet", blocks, batch_size=1, status="oom") for blocks in (1, 2)]
    with show(source([*full, *(one for batch in range(2, 16) for one in models(range(1, 3), batch_size=batch)[1::3])])) as page:
        page.drawn("figure4")
        assert "out of memory at 1 block" in page.text("#figure4-caption")
        assert "12 of 15 lines are drawn" in page.text("#figure4-caption")


def test_ticks_follow_the_width_of_the_window(show):
    with show(source(models(range(1, 17)))) as page:
        page.drawn("figure4")
        step = "() => document.getElementById('figure4')._fullLayout.xaxis.dtick"
        assert page.evaluate(step) == 1
        page.page.set_viewport_size({"width": 360, "height": 800})
        page.page.wait_for_function(f"() => ({step})() > 1")


def test_few_positions_have_a_tick_each(show):
    with show(make_varied(lambda at: 1000 * at["length"], length=(32, 64, 96, 128))) as page:
        page.drawn("figure4")
        layout = page.evaluate("() => document.getElementById('figure4').layout.xaxis")
    assert layout["tickvals"] == [32, 64, 96, 128]


def test_pages_of_a_table_are_turned_by_keyboard(show):
    with show(source(models(range(1, 20)))) as page:
        pages = page.page.locator("#cells-table .pages")
        pages.get_by_role("button", name="Next").focus()
        for told in ("26 to 50 of 57", "51 to 57 of 57"):
            page.page.keyboard.press("Enter")
            assert pages.locator("span").inner_text() == told
        # There is no next one; the way back has the focus.
        page.page.keyboard.press("Enter")
        assert pages.locator("span").inner_text() == "26 to 50 of 57"


def test_another_theme_leaves_what_the_reader_has_set(show):
    with show(source(models(range(1, 9)))) as page:
        page.page.locator("#figure4-numbers summary").click()
        numbers = page.page.locator("#figure4-numbers")
        for _ in range(2):
            numbers.get_by_role("button", name="blocks").click()
        numbers.get_by_role("button", name="Next").click()
        before = rows_of(page, "figure4-numbers"), numbers.locator(".pages span").inner_text()
        stroke = "() => getComputedStyle(document.querySelector('#figure4-caption .keys path')).stroke"
        light = page.evaluate(stroke)
        page.page.locator("#theme").click()
        assert (rows_of(page, "figure4-numbers"), numbers.locator(".pages span").inner_text()) == before
        assert page.evaluate(stroke) != light


def test_without_scripts_there_are_sentences_and_no_empty_places(browser, tmp_path):
    write_page([source(models())], tmp_path / "index.html", [])
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1400, "height": 900})
    page = context.new_page()
    page.goto((tmp_path / "index.html").as_uri())
    assert page.locator("noscript p").bounding_box()["y"] < 400
    assert page.locator(".costs tbody tr:visible").count() == 3
    assert page.locator("section:visible").count() == 3
    context.close()


def test_colours_that_say_something_are_on_paper_and_under_colours_of_the_system(show):
    with show(source(models(), timelines=[SavedTimeline(make_timeline(make_configuration("capsnet", 9)))])) as page:
        page.page.emulate_media(forced_colors="active", color_scheme="dark")
        for kind in (".block", ".amount"):
            found = "getComputedStyle(document.querySelector(kind))"
            style = page.evaluate(f"kind => [{found}.backgroundColor, {found}.printColorAdjust]", kind)
            assert style[0] not in ("rgba(0, 0, 0, 0)", "rgb(0, 0, 0)", "rgb(255, 255, 255)")
            assert style[1] == "exact"


def test_it_prints_in_black_on_white_with_every_chart(show):
    with show(source(models()), scheme="dark", script=NEVER_LOADED + NEVER_IDLE) as page:
        page.evaluate("() => addEventListener('beforeprint', () => { window.printed = document.documentElement.dataset.theme; })")
        # Nothing has been scrolled to, and the first time no chart is known that could be drawn.
        page.evaluate("() => { window.kept = [...capsbench.CHARTS]; capsbench.CHARTS.clear(); }")
        bare = strokes(page.page.pdf())
        assert page.page.locator(".chart:not([data-drawn])").count() > 0
        page.evaluate("() => { for (const [node, known] of window.kept) capsbench.CHARTS.set(node, known); }")
        printed = strokes(page.page.pdf())
        assert page.evaluate("() => window.printed") == "light"
        assert page.page.locator(".chart:not([data-drawn=yes])").count() == 0
        page.evaluate("() => capsbench.drawAll()")
        again = strokes(page.page.pdf())
        assert page.evaluate("() => document.documentElement.dataset.theme") == "dark"
        # On the screen they are as wide as before.
        page.page.wait_for_timeout(300)
        page.drawn("figure4")
        assert page.evaluate("() => document.getElementById('figure4')._fullLayout.width") > 700
    assert printed == pytest.approx(again, rel=0.02)
    assert bare < 0.8 * printed


def test_predictions_are_dashed_and_the_papers_values_pale(show):
    fields = {"dataset": "mnist", "batch_size": 128, "threads": None}
    records = models(device="cuda:0", **fields)
    predicted = [make_record("mocapsnet", blocks, device="cuda:predicted", gpu="h100", **fields) for blocks in (1, 2, 3)]
    records += [one.model_copy(update={"kind": "predicted", "time": None}) for one in predicted]
    with show(source(records)) as page:
        page.choose("metric", "process")
        traces = page.drawn("figure4")
        assert sum(trace.get("opacity") == 0.4 and "the paper’s" in str(trace.get("hovertext")) for trace in traces) == 3
        assert [trace["line"]["dash"] for trace in traces if trace["mode"] == "lines"].count("dash") == 1
        assert "the paper’s MoCapsNet, mnist (nvidia-smi)" in page.text("#figure4-caption")
        page.page.locator("#with-paper").uncheck()
        page.page.wait_for_timeout(150)
        assert not any("the paper’s" in str(trace.get("hovertext")) for trace in page.drawn("figure4"))
        assert "Predicted at 1 to 3 blocks" in page.text("#answer")


def test_what_a_cell_is_measured_with_is_in_its_command(show):
    plain = {"routing": "rba", "iterations": 3, "kernel": "reference", "front": "plain"}
    records = [make_record("mocapsnet", 3), make_record("mocapsnet", 3, replicate=1), make_record("capsnet-1conv", 0, **plain)]
    with show(source(records)) as page:
        for place, record in enumerate(records):
            told = page.evaluate("cell => [capsbench.commandOf(cell), capsbench.timelineCommandOf(cell)]", place)
            it = record.cell.configuration
            options = cell_arguments(("blocks",), it, record.cell.replicate)
            assert told[0] == series_command(it.model_dump(), Plan(command="", cells=[])) + options
            assert told[1] == timeline_command(it.model_dump()) + cell_arguments(("blocks",), it)
        assert page.evaluate("() => capsbench.againText(1)") == "To measure it again, after the replicate before it:"


def test_whatever_tells_lines_apart_is_a_filter(show):
    records = models()
    records += [make_record("mocapsnet", blocks, inverse="exact", gamma=gamma) for blocks in (1, 2) for gamma in (0.9, 0.95)]
    records += [make_record("rescapsnet", blocks, iterations=5, capacity=2**30) for blocks in (1, 2)]
    with show(source(records)) as page:
        shown = page.evaluate("() => [...document.querySelectorAll('#filters select')].map(one => one.id.slice(7))")
        assert shown == ["model", "memory", "iterations", "inverse", "gamma", "capacity"]
        page.choose("filter-inverse", "exact")
        assert set(page.points("figure4")) == {12, 13, 14, 15}
        page.choose("filter-gamma", "0.95")
        assert set(page.points("figure4")) == {13, 15}
        assert "1.00 GiB" in page.text("#filter-capacity")


def test_every_line_of_the_trade_off_is_in_its_key(show):
    records = [changed(make_record("rescapsnet", 2, iterations=1 + place), retained=place * MIB) for place in range(15)]
    with show(source(records)) as page:
        page.page.locator("#tradeoff-caption summary").click()
        page.page.wait_for_timeout(100)
        assert page.page.locator("#tradeoff-caption .keys li").count() == 15


def test_a_slope_that_cannot_be_distinguished_from_0_is_drawn_as_points_alone(show):
    noise = (0.3, -0.9, 0.5, 0.2, -0.4, 0.9, -0.7, -0.1)
    scattered = [
        changed(make_record("rescapsnet", blocks), factor=(1 + 0.2 * one) / (0.1 + 0.02 * blocks))
        for blocks, one in enumerate(noise, start=1)
    ]
    with show(source([*scattered, *(make_record("mocapsnet", blocks) for blocks in range(1, 9))])) as page:
        page.choose("metric", "train")
        modes = [trace["mode"] for trace in page.drawn("figure4")]
        assert (modes.count("markers"), modes.count("lines")) == (2, 1)
        (key,) = [text for text in page.page.locator("#figure4-caption li").all_inner_texts() if "ResCapsNet" in text]
        assert re.search(r"no change measurable within ± [\d.]+ ms per block", key)
        (row,) = [
            row
            for row in page.page.locator("#slopes-table tbody tr").all_text_contents()
            if "ResCapsNet" in row and "training" in row
        ]
        assert "no change measurable" in row


def test_the_first_chart_of_two_networks_by_two_kernels_is_above_the_fold(show):
    def disturbed(record, off):
        time = {"train_step_seconds": [1 + off] * 9, "noise": ["spread", "load", "unsettled"]}
        return record.model_copy(update={"time": record.time.model_copy(update=time)})

    records = [
        disturbed(make_record(model, blocks, kernel=kernel, batch_size=128), off)
        for model in ("rescapsnet", "mocapsnet")
        for kernel in ("published", "compiled")
        for blocks, off in ((1, 0.3), (2, -0.9), (3, 0.5))
    ]
    with show(source(records)) as page:
        top = "() => document.getElementById('figure4').getBoundingClientRect().top"
        assert page.text(".costs").count("no change measurable") == 4
        assert page.evaluate(top) < 850
        assert page.evaluate(
            "() => document.querySelector('.costs').offsetWidth <= document.querySelector('.scroll').clientWidth"
        )


def test_the_first_chart_of_ten_strategies_is_above_the_fold(show):
    strategies = ("stored", "checkpoint", "checkpoint-sqrt", "offload", "reversible", "reversible-kept")
    of_model = {"rescapsnet": strategies[:4], "mocapsnet": strategies}
    records = [
        make_record(model, blocks, memory=memory)
        for model, several in of_model.items()
        for memory in several
        for blocks in (1, 2, 4)
    ]
    with show(source(records)) as page:
        rows = page.page.locator(".costs tbody tr")
        assert rows.count() == 10
        assert page.text("#answer > .cue") == "more lines: scroll down ↓"
        for width in (1400, 838):
            page.page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("() => document.getElementById('figure4').getBoundingClientRect().top + scrollY") < 890
        rows.last.scroll_into_view_if_needed()
        assert rows.last.is_visible()
        page.page.emulate_media(media="print")
        assert page.evaluate(
            "() => { const it = document.querySelector('.many'); return it.scrollHeight <= it.clientHeight + 1; }"
        )


OVERLAPS = """() => {
  const inked = (node) => {
    if (node.tagName === "svg") return [node.getBoundingClientRect()];
    const range = document.createRange();
    range.selectNodeContents(node);
    return [...range.getClientRects()];
  };
  const nodes = [...document.querySelectorAll(".costs td :is(strong, span, small, svg)")];
  const boxes = nodes.flatMap((node) => inked(node).map((box) => [node, box])).filter(([, box]) => box.width);
  const crosses = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  return boxes.flatMap(([one, a], at) =>
    boxes.slice(at + 1).filter(([other, b]) => other !== one && crosses(a, b)).map(() => one.textContent));
}"""
"""Texts of the table of costs that lie over another text or over a chart."""


def test_nothing_in_the_table_of_costs_lies_over_anything_else(show):
    with show(source(models())) as page:
        write = "text => { for (const one of document.querySelectorAll('.costs strong')) one.textContent = text; }"
        for width in (1400, 1040, 838, 400):
            page.page.set_viewport_size({"width": width, "height": 900})
            for text in ("894.1 ± 517.8 ms~", "1,023.44 ± 517.82 MiB", "894.1 (312.3–1,417.8) ms", "894.1 (312.3–1,417.8) s~"):
                page.evaluate(write, text)
                assert page.evaluate(OVERLAPS) == [], (width, text)
        # The check sees an overlap where there is one.
        page.page.add_style_tag(content=".costs strong { position: absolute; }")
        assert page.evaluate(OVERLAPS)


def test_the_trade_off_begins_where_most_lines_are(show):
    records = [make_record(model, blocks) for model in ("rescapsnet", "mocapsnet") for blocks in (1, 2, 4)]
    with show(source([*records, make_record("rescapsnet", 8, status="oom"), make_record("mocapsnet", 8)])) as page:
        assert page.evaluate("() => document.getElementById('trade-place').value") == "4"
        assert len(page.points("tradeoff-chart")) == 2


@pytest.mark.parametrize("width", [400, 838])
def test_a_long_name_does_not_widen_the_page(show, width):
    name = "a_group.experiments.of_2026:a_very_long_name_of_a_network_with_many_words_that_has_no_place_to_break"
    with show(source([make_record(name, blocks) for blocks in (1, 2)], name=name), width=width) as page:
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


def test_a_grid_is_drawn_along_each_of_its_axes(show):
    report = make_varied(
        lambda at: MIB * at["length"] * at["batch_size"] + 1024 * at["length"] ** 2, length=(16, 32, 64, 128), batch_size=(1, 2)
    )
    with show(report) as page:
        layout = "() => document.getElementById('figure4').layout.xaxis.title.text"
        assert page.evaluate(layout) == "length (tokens)"
        assert len(page.points("figure4")) == 8
        assert "MiB per token and 1.00 KiB per pair of tokens" in page.text("#figure4-caption")
        curves = [trace for trace in page.drawn("figure4") if trace["mode"] == "lines"]
        assert [len(trace["x"]) for trace in curves] == [61, 61]
        page.choose("filter-axis", "batch_size")
        assert page.evaluate(layout) == "batch size (samples)"
        assert "16.00 MiB per sample" in page.text("#figure4-caption")
        assert {x for trace in page.drawn("figure4") if trace["mode"] == "lines" for x in trace["x"]} == {1, 2}
        assert len(rows_of(page, "cells-table")) == 8
        assert page.page.locator("#cells-table thead").inner_text().split("\t")[2:4] == [
            "length (tokens)",
            "batch size (samples)",
        ]
        # Steps of other lengths do not compete.
        assert not page.page.locator("#tradeoff").is_visible()


def test_a_network_without_the_axis_is_a_level_across_it(show):
    varied = make_varied(lambda at: MIB * at["length"], length=(16, 32, 64))
    other = make_record("cases:plain", 0, dataset="own", batch_size=4, settings={"width": 8})
    with show(Report.of([*varied.records, other], "mine", plan=varied.plan)) as page:
        levels = [trace for trace in page.drawn("figure4") if trace["mode"] == "lines" and len(set(trace["y"])) == 1]
        assert [trace["x"] for trace in levels] == [[16, 64]]
        assert levels[0]["y"][0] == pytest.approx(other.memory.retained_bytes / MIB)
        assert len(page.points("figure4")) == 4, "three points, and the ends of the level, which show its record"
        assert "none" in (page.page.locator("#figure4-numbers").text_content() or "")
        assert "length 0" not in page.text("body")


def test_positions_on_another_axis_do_not_beat_each_other(show):
    report = make_varied(lambda at: at["length"] * MIB, lambda at: 0.01 * at["length"], length=(8, 16), blocks=(1, 2))
    with show(report) as page:
        page.choose("filter-axis", "blocks")
        assert page.evaluate("() => capsbench.tradePoints().map(point => point.front)") == [True, True]
        assert not page.page.locator("#tradeoff").is_visible()
