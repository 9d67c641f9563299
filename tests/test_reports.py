"""A report as an object: what it reads and computes, once; what it writes, draws and judges; how a notebook shows it."""

import json
import os

import pandas as pd
import pytest

import capsbench
from capsbench.errors import ConfigurationError, StoreError
from capsbench.gate.baseline import write_baseline
from capsbench.page import write_page
from capsbench.records import Plan
from capsbench.report import Report, reports_below
from capsbench.store.files import SavedTimeline
from helpers.made import RETAINED_PER_BLOCK, make_record, make_timeline
from helpers.seeded import MACHINE, seeded_run, write_report

DRAWN = {f"figure{number}.{kind}" for number in (3, 4) for kind in ("svg", "png", "pdf")}


@pytest.fixture
def report(tmp_path):
    return Report(write_report(tmp_path / "mine", seeded_run()))


def full(*_):
    raise OSError(28, os.strerror(28))


def test_what_lies_in_the_folder(report):
    assert report.name == "mine"
    assert report.records == seeded_run()
    assert report.damages == report.notes == report.timelines == []
    assert report.plan.command == "capsbench run --made-up"
    assert report.environments == {"abcd": MACHINE}
    pd.testing.assert_frame_equal(report.frame, capsbench.load(report.folder))
    pd.testing.assert_frame_equal(pd.DataFrame(report.slopes), pd.DataFrame(capsbench.slopes(capsbench.load(report.folder))))


def test_it_prints_as_a_short_table(report, tmp_path):
    name = f"Report({str(report.folder)!r})"
    head, title, conditions, *rows = str(report).splitlines()
    assert head == f"{name}: {len(report.records)} records"
    assert title == "slope per block, and its ratio to ResCapsNet"
    assert conditions == "measured on cpu, batch 4"
    assert [row.split()[0] for row in rows[1:3]] == ["ResCapsNet", "MoCapsNet"]
    assert "10.00 MiB" in rows[1]
    assert "\x1b" not in str(report)
    assert repr(report) == str(report)
    # Without a slope it shows its records, without any of these it says so, and it fails on nothing.
    alone = Report(write_report(tmp_path / "alone", [make_record("mocapsnet", 2)]))
    assert str(alone).splitlines()[0].endswith(": 1 record")
    assert str(alone).splitlines()[-1].split()[:2] == ["MoCapsNet", "2"]
    (tmp_path / "empty").mkdir()
    assert str(Report(tmp_path / "empty")) == f"Report({str(tmp_path / 'empty')!r}): no records"


def test_a_report_of_many_lines_prints_the_first_of_them(tmp_path):
    records = [make_record("mocapsnet", blocks, batch_size=size) for size in range(1, 16) for blocks in (1, 2)]
    text = str(Report(write_report(tmp_path / "mine", records)))
    assert text.count("MoCapsNet (batch") == 12
    assert "and 3 more lines" in text


def test_the_constructor_touches_nothing(tmp_path):
    report = Report(tmp_path / "nowhere")
    assert report.plan is None
    assert report.settled() == set()
    assert not any(tmp_path.iterdir())


def test_a_folder_that_does_not_exist_is_an_error_that_names_the_nearest_one(tmp_path):
    (tmp_path / "reports" / "mine").mkdir(parents=True)
    near, far = Report(tmp_path / "reprots" / "mine"), Report(tmp_path / "nowhere" / "at" / "all")
    for name in ("records", "frame", "slopes", "summary"):
        with pytest.raises(StoreError, match=rf"reprots/mine does not exist\ndid you mean {tmp_path}/reports/mine\? If not, "):
            getattr(near, name)
        with pytest.raises(StoreError, match=rf"nowhere/at/all does not exist\nthe nearest folder that exists is {tmp_path}; "):
            getattr(far, name)
    assert str(near).splitlines()[1].startswith(f"did you mean {tmp_path}/reports/mine?")
    assert Report(tmp_path / "reports" / "mine").records == [], "a folder without records is empty"
    with far.lock():
        far.append(make_record())
    assert len(far.records) == len(Report(far.folder).records) == 1, "a report that is to be written needs no folder"


def test_figures_are_computed_once_and_again_after_a_record(report):
    frame, slopes = report.frame, report.slopes
    assert report.frame is frame
    assert report.slopes is slopes
    summary = report.summary
    report.append(make_record("capsnet", 1))
    assert len(report.records) == len(frame) + 1
    assert len(report.frame) == len(frame) + 1
    assert report.slopes is not slopes
    assert len(report.summary.lines) == len(summary.lines) + 1
    assert Report(report.folder).records == report.records


def test_a_record_of_a_cell_that_is_known_takes_its_place(report):
    again = make_record("rescapsnet", 2, status="oom")
    before = len(report.records)
    report.append(again)
    assert len(report.records) == before
    assert again in report.records
    assert Report(report.folder).records == report.records


def test_what_others_append_is_seen_after_a_refresh(report):
    before = report.records
    Report(report.folder).append(make_record("capsnet", 1))
    assert report.records == before
    report.refresh()
    assert len(report.records) == len(before) + 1


def test_damaged_lines_and_timelines_are_noted(report):
    report.path.write_bytes(b"garbage\n" + report.path.read_bytes())
    for name, text in (("good", make_timeline(report.records[0].cell.configuration).model_dump_json()), ("bad", "[]")):
        (report.folder / name).mkdir()
        (report.folder / name / "timeline.json").write_text(text)
    report.refresh()
    assert [damage.line for damage in report.damages] == [1]
    assert [type(one) for one in report.timelines] == [SavedTimeline]
    assert len(report.notes) == 2
    assert "line 1 is damaged" in report.notes[0]
    assert "bad/timeline.json is damaged" in report.notes[1]


def test_a_report_keeps_others_out_and_not_itself(report):
    with report.lock(), report.lock():
        with pytest.raises(StoreError, match="is in use"), Report(report.folder).lock():
            pytest.fail("two reports hold one folder")
        report.append(make_record("capsnet", 1))
    with Report(report.folder).lock():
        pass


@pytest.mark.slow
def test_a_report_writes_its_slopes_figures_and_page(report, tmp_path):
    paths = report.write()
    assert {path.name for path in paths} == {"slopes.csv", "index.html"} | DRAWN
    assert {path.parent for path in paths} == {report.folder}
    assert {path.name for path in report.write(tmp_path / "other", memory=["peak"])} == {path.name for path in paths}
    assert report.page(tmp_path / "page.html").stat().st_size == (report.folder / "index.html").stat().st_size
    (report.folder / "figure3.svg").unlink()
    (report.folder / "figure3.svg").mkdir()
    with pytest.raises(StoreError, match=r"figure3.svg cannot be written"):
        report.write()


@pytest.mark.slow
def test_what_reproduce_measured_is_drawn_as_the_paper_shows_it(report):
    report.write_plan(report.plan.model_copy(update={"experiment": "table4"}))
    names = {path.name for path in report.write()}
    assert names == {"slopes.csv", "index.html", "table4.csv"} | {name for name in DRAWN if "figure3" in name}
    # What is asked for comes first.
    assert {path.name for path in report.write(memory=["peak"])} == {"slopes.csv", "index.html"} | DRAWN


def test_figures_are_of_the_report(report):
    titles = [[ax.get_title(loc="left") for ax in figure.axes] for figure in (report.figure3(), report.figure4())]
    assert [len(one) for one in titles] == [3, 3]
    assert all("retained" in one[0] for one in titles)
    assert "peak" in titles[1][1]


def test_a_notebook_shows_a_table_and_a_figure(report):
    html = report._repr_html_()
    assert html.startswith("<p>mine: 8 records</p><table>")
    assert "ResCapsNet" in html
    assert "data:image/svg+xml;base64," in html


def test_a_check_passes_and_fails(report, tmp_path):
    baseline = tmp_path / "baseline.json"
    write_baseline(report.summary, baseline)
    assert report.check(baseline).passed
    assert report.check(report).passed
    grown = Report(write_report(tmp_path / "grown", seeded_run(modules={"blocks.{block}.0": 2**20})))
    assert not grown.check(str(baseline)).passed
    assert not grown.check(report.folder, last=report).passed
    with pytest.raises(StoreError, match="does not exist"):
        report.check(tmp_path / "none.json")
    other = Report.of([make_record("capsnet", blocks, batch_size=9) for blocks in (1, 2)])
    with pytest.raises(ConfigurationError, match="no line in common"):
        other.check(baseline)


def test_two_reports_are_compared(report, tmp_path):
    grown = Report(write_report(tmp_path / "grown", seeded_run(modules={"blocks.{block}.0": 2**20})))
    for later in (grown, grown.folder):
        verdicts = {it.verdict for it in report.compare(later).comparisons if (it.scope, it.quantity) == ("slope", "retained")}
        assert verdicts == {"worse"}
    assert {it.verdict for it in report.compare(report).comparisons} <= {"same", "not comparable"}


def test_a_folder_of_reports_says_which_there_are(report):
    above = Report(report.folder.parent)
    with pytest.raises(StoreError, match=r"holds no records of its own\nname a report below it: mine"):
        _ = above.frame
    assert [one.name for one in reports_below(report.folder.parent)] == ["mine"]


@pytest.mark.slow
def test_a_report_in_memory(tmp_path):
    records = [make_record(model, blocks) for blocks in (1, 2, 3) for model in RETAINED_PER_BLOCK]
    report = Report.of(records, "made", plan=Plan(command="", cells=[]))
    assert set(report.frame["report"]) == {"made"}
    assert "in memory" in repr(report)
    assert len(report.write(tmp_path / "kept")) == 8
    report.append(make_record("capsnet", 9))
    assert len(report.records) == len(records) + 1
    report.refresh()
    assert len(report.records) == len(records) + 1
    with pytest.raises(StoreError, match="is in memory alone"):
        report.write()


@pytest.mark.parametrize("what", ["baseline", "page"])
def test_a_file_takes_its_place_once_all_of_it_is_on_the_disk(report, tmp_path, monkeypatch, what):
    path = tmp_path / "file"

    def write():
        if what == "page":
            write_page([report], path)
        else:
            write_baseline(report.summary, path)

    write()
    before = path.read_bytes()
    assert before
    report.append(make_record("capsnet", 1))
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), real(descriptor))[1])
    write()
    # The file, and the folder that has its name.
    assert len(synced) == 2
    after = path.read_bytes()
    assert after != before
    report.append(make_record("capsnet", 2))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises((OSError, StoreError), match="No space left"):
        write()
    assert path.read_bytes() == after
    assert {one.name for one in tmp_path.iterdir()} == {"mine", "file"}


def test_records_of_a_report_are_json_lines(report):
    assert [json.loads(line)["status"] for line in report.path.read_text().splitlines()] == ["ok"] * 8
