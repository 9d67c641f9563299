"""Timelines that are predicted for a report without any."""

from capsbench.page.steps import timelines_data
from capsbench.report import Report
from capsbench.sweep.inside import add_timelines
from helpers.made import make_record

SMALL = {"batch_size": 1, "capsules": 2, "kernel": "reference"}


def test_the_last_step_of_each_network_is_predicted_for_its_record(tmp_path):
    report = Report(tmp_path / "mine")
    report.folder.mkdir()
    records = [make_record(model, blocks, **SMALL) for model in ("rescapsnet", "mocapsnet") for blocks in (2, 1)]
    for record in [*records, make_record("rescapsnet", 3, status="oom", **SMALL), make_record("nobody:knows", 1, **SMALL)]:
        report.append(record)
    paths = add_timelines(report)
    found = Report(report.folder)
    assert [one.timeline.configuration.model for one in found.timelines] == ["mocapsnet", "rescapsnet"]
    assert {(one.timeline.kind, one.timeline.configuration.blocks) for one in found.timelines} == {("predicted", 2)}
    # Each belongs to its record on the page.
    shown, _ = timelines_data([found], [])
    assert [one["cells"] for one in shown] == [[2], [0]]
    assert len(paths) == 2


def test_timelines_of_an_earlier_call_are_made_again_and_others_are_left_alone(tmp_path):
    report = Report(tmp_path / "mine")
    report.folder.mkdir()
    report.append(make_record("rescapsnet", 1, **SMALL))
    add_timelines(report)
    report.append(make_record("rescapsnet", 2, **SMALL))
    assert len(add_timelines(report)) == 1
    assert [one.timeline.configuration.blocks for one in Report(report.folder).timelines] == [2]
    (path,) = report.folder.rglob("timeline.json")
    path.parent.rename(report.folder / "own")
    assert add_timelines(report) == []
