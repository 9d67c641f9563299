"""Drawings that are up to date are not made again."""

import json

import pytest

from capsbench.records import Cell, Plan
from capsbench.report import Report
from capsbench.store.drawn import NOTE
from helpers.made import make_configuration, make_record


def report_in(folder, blocks=(1, 2)):
    folder.mkdir()
    report = Report(folder)
    cells = [Cell(configuration=make_configuration(blocks=count)) for count in blocks]
    report.write_plan(Plan(command="capsbench run", cells=cells))
    for count in blocks:
        report.append(make_record("rescapsnet", count))
    return report


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """A report whose drawings are texts, so that a test takes no time."""

    def draw(report, folder, **_):
        paths = [folder / "slopes.csv", folder / "figure4.svg"]
        for path in paths:
            path.write_text("drawn")
        return paths

    def page(report, path):
        path.write_text("drawn")
        return path

    monkeypatch.setattr(Report, "draw", draw)
    monkeypatch.setattr(Report, "page", page)
    report = report_in(tmp_path / "mine")
    report.write()
    return report


def again(report):
    return Report(report.folder)


def test_what_was_drawn_is_known(drawn):
    assert [path.name for path in again(drawn).drawings()] == ["slopes.csv", "figure4.svg", "index.html"]


def test_a_command_that_resumes_changes_no_drawing(drawn):
    drawn.write_plan(drawn.plan.model_copy(update={"command": "capsbench run --resume"}))
    assert again(drawn).drawings()


def another_record(report):
    report.append(make_record("rescapsnet", 3))


def missing(report):
    (report.folder / "figure4.svg").unlink()


def by_hand(report):
    (report.folder / "figure4.svg").write_text("drawn otherwise")


def with_other_options(report):
    report.write(memory=["peak"])


def another_plan(report):
    report.write_plan(report.plan.model_copy(update={"experiment": "figure4"}))


def a_timeline(report):
    (report.folder / "inside").mkdir()
    (report.folder / "inside" / "timeline.json").write_text("{}")


def another_version(report):
    note = report.folder / NOTE
    note.write_text(json.dumps(json.loads(note.read_text()) | {"made_from": "0"}))


def no_note(report):
    (report.folder / NOTE).unlink()


def a_note_of_nothing(report):
    (report.folder / NOTE).write_text("[]")


@pytest.mark.parametrize(
    "change",
    [another_record, missing, by_hand, with_other_options, another_plan, a_timeline, another_version, no_note, a_note_of_nothing],
)
def test_what_changed_is_drawn_again(drawn, change):
    change(drawn)
    assert again(drawn).drawings() == []
    again(drawn).write()
    assert again(drawn).drawings()


def test_a_declared_basis_is_another_drawing(drawn):
    assert again(drawn).with_basis(blocks="1,n,n²").drawings() == []
