"""The gate along axes other than depth, and over grids."""

import json

import pytest

from capsbench.gate.baseline import read_baseline, write_baseline
from capsbench.gate.check import judge
from capsbench.gate.summary import summarize
from capsbench.gate.verdicts import CheckText, comparison_json
from helpers.made import MIB, make_record, make_varied
from helpers.seeded import write_report

LENGTHS = (64, 128, 256)


def summary_of(report):
    return summarize([report])[0]


def per_token(nbytes, **values):
    return summary_of(make_varied(lambda at: MIB + nbytes * at["length"], **({"length": LENGTHS} | values)))


def test_memory_per_token_that_grew_turns_it_red():
    judged = judge(per_token(4096), per_token(2048))
    assert not judged.passed
    lines = CheckText(judged, "base.json", "").regressions
    assert "cases:gpt2: retained / token 2.00 KiB → 4.00 KiB, +2.00 KiB (+100.0 %)" in lines
    assert judge(per_token(2048), per_token(2048)).passed


def test_bytes_at_one_position_name_it():
    worse = make_varied(lambda at: MIB + 2048 * at["length"] + MIB, length=LENGTHS)
    lines = CheckText(judge(summary_of(worse), per_token(2048)), "base.json", "").regressions
    assert any("retained at length 256 1.50 MiB → 2.50 MiB" in line and "in 3 of 3 cells" in line for line in lines)


def test_a_curve_is_compared_cell_by_cell():
    def squared(factor):
        return summary_of(make_varied(lambda at: MIB + factor * at["length"] ** 2, length=(64, 128, 192, 256)))

    found = judge(squared(8), squared(8)).compared.comparisons
    assert {it.scope for it in found if it.quantity == "retained"} == {"cell"}, "a line through it has no slope of its own"
    assert judge(squared(8), squared(8)).passed
    assert not judge(squared(16), squared(8)).passed


def test_a_failed_cell_is_seen_although_another_report_has_the_series_along_a_further_axis():
    def reports(status):
        grid = make_varied(lambda at: MIB * at["batch_size"], blocks=(2, 4), batch_size=(8, 16))
        return summarize(
            [grid, make_varied(lambda at: MIB * at["batch_size"], batch_size=(8, 16, 32), blocks=(4,), status=status)]
        )[0]

    def fails(at):
        return "error" if at["batch_size"] == 32 else "ok"

    judged = judge(reports(fails), reports(lambda at: "ok"))
    assert not judged.passed
    assert [one.position for one in judged.compared.outcomes] == [32]


def test_a_baseline_along_an_axis_comes_back_as_it_was(tmp_path):
    summary = per_token(2048)
    write_baseline(summary, tmp_path / "base.json")
    assert read_baseline(tmp_path / "base.json") == summary
    (line,) = json.loads((tmp_path / "base.json").read_text())["lines"]
    assert (line["axis"], [cell["position"] for cell in line["cells"]]) == ("length", [64, 128, 256])
    assert "further" not in line


def test_a_baseline_of_version_3_lies_along_blocks(tmp_path):
    folder = write_report(tmp_path / "run", [make_record(blocks=blocks) for blocks in (1, 2, 4)])
    from capsbench.report import Report

    summary = Report(folder).summary
    write_baseline(summary, tmp_path / "base.json")
    data = json.loads((tmp_path / "base.json").read_text())
    data["schema_version"] = 3
    for line in data["lines"]:
        for cell in line["cells"]:
            cell["blocks"] = cell.pop("position")
    (tmp_path / "old.json").write_text(json.dumps(data))
    old = read_baseline(tmp_path / "old.json")
    assert old.lines == summary.lines
    assert judge(summary, old).passed


def test_a_cell_of_a_grid_is_judged_once_and_both_slopes_are():
    before = per_token(2048, batch_size=(1, 2))
    worse = make_varied(lambda at: MIB + 2048 * at["length"] * at["batch_size"], length=LENGTHS, batch_size=(1, 2))
    judged = judge(summary_of(worse), before)
    cells = [it for it in judged.compared.comparisons if it.scope == "cell" and it.quantity == "retained"]
    assert len(cells) == 6
    slopes = [it for it in judged.compared.comparisons if it.scope == "slope" and it.quantity == "retained"]
    assert sorted(it.series["axis"] for it in slopes) == ["batch_size"] * 3 + ["length"] * 2


def test_a_cell_that_fails_is_one_fault_of_a_grid():
    before = per_token(2048, batch_size=(1, 2))
    failed = make_varied(
        lambda at: MIB + 2048 * at["length"],
        status=lambda at: "error" if at == {"length": 128, "batch_size": 2} else "ok", length=LENGTHS, batch_size=(1, 2),
    )  # fmt: skip
    judged = judge(summary_of(failed), before)
    assert len(judged.compared.outcomes) == 1
    assert any("length 128: error where it was ok" in text for text in CheckText(judged, "base", "").regressions)


def test_units_are_those_of_the_axis_in_json():
    judged = judge(per_token(4096), per_token(2048))
    units = {it["unit"] for it in comparison_json(judged.compared)["comparisons"] if it["scope"] == "slope"}
    assert units == {"bytes per token", "seconds per token"}


def test_series_along_different_axes_are_not_compared():
    blocks = summary_of(make_varied(lambda at: MIB, blocks=(1, 2, 4)))
    with pytest.raises(Exception, match="no line in common"):
        judge(blocks, per_token(2048))
