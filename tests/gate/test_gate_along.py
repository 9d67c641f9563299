"""The gate along axes other than depth, and over grids."""

import json

import pytest

from capsbench.gate.baseline import read_baseline, write_baseline
from capsbench.gate.check import judge
from capsbench.gate.findings import figure_name
from capsbench.gate.summarize import summarize
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
    assert "cases:gpt2: retained per token 2.00 KiB → 4.00 KiB, +2.00 KiB (+100.0 %)" in lines
    assert judge(per_token(2048), per_token(2048)).passed


def test_bytes_at_one_position_name_it():
    worse = make_varied(lambda at: MIB + 2048 * at["length"] + MIB, length=LENGTHS)
    lines = CheckText(judge(summary_of(worse), per_token(2048)), "base.json", "").regressions
    assert any("retained at length 256 1.50 MiB → 2.50 MiB" in line and "in 3 of 3 cells" in line for line in lines)


CURVE_LENGTHS = (64, 128, 192, 256)


def curved(slope, term, lengths=CURVE_LENGTHS):
    return summary_of(make_varied(lambda at: MIB + slope * at["length"] + term * at["length"] ** 2, length=lengths))


def retained_slopes(judged):
    """Slope and terms of retained bytes in both runs, with the verdict, by name."""
    known = [it for it in judged.compared.comparisons if it.scope == "slope" and it.quantity == "retained"]
    return {figure_name(it): (it.before, it.after, it.verdict) for it in known}


def test_the_terms_of_a_curve_are_compared():
    assert retained_slopes(judge(curved(1024, 8), curved(1024, 8))) == {
        "retained per token": (1024, 1024, "same"),
        "retained per pair of tokens": (8, 8, "same"),
    }
    assert judge(curved(1024, 8), curved(1024, 8)).passed


def test_bytes_per_pair_of_tokens_that_grew_turn_it_red():
    judged = judge(curved(1024, 16), curved(1024, 8))
    assert not judged.passed
    lines = CheckText(judged, "base.json", "").regressions
    assert "cases:gpt2: retained per pair of tokens 8 B → 16 B, +8 B (+100.0 %)" in lines
    units = {it["unit"] for it in comparison_json(judged.compared)["comparisons"] if it["scope"] == "slope"}
    assert {"bytes per token", "bytes per pair of tokens"} <= units


def test_a_line_that_bends_now_turns_it_red_and_the_other_way_round_is_better():
    before, after = per_token(4096, length=CURVE_LENGTHS), curved(4096, 8)
    judged = judge(after, before)
    assert retained_slopes(judged)["retained per pair of tokens"] == (0, 8, "worse")
    assert not judged.passed
    assert judge(before, after).passed
    assert retained_slopes(judge(before, after))["retained per pair of tokens"] == (8, 0, "better")


def test_more_per_token_is_outweighed_by_less_per_pair_only_where_cells_gain():
    judged = judge(curved(1536, 0), curved(1024, 8))
    assert retained_slopes(judged)["retained per token"] == (1024, 1536, "same")
    assert judged.passed
    judged = judge(curved(16 * 1024, 0), curved(1024, 8))
    assert retained_slopes(judged)["retained per token"] == (1024, 16 * 1024, "worse")
    assert not judged.passed


def test_a_small_change_of_a_term_is_within_the_threshold():
    assert retained_slopes(judge(curved(1024, 9), curved(1024, 8)))["retained per pair of tokens"][2] == "same"


def test_three_positions_are_enough_for_a_run_whose_baseline_has_a_curve():
    judged = judge(curved(1024, 16, (64, 128, 256)), curved(1024, 8))
    assert retained_slopes(judged)["retained per pair of tokens"] == (8, 16, "worse")


def test_shares_of_bytes_are_compared():
    def shared(term):
        return summary_of(make_varied(lambda at: MIB + term // at["batch_size"], batch_size=(1, 2, 4, 8)))

    assert not judge(shared(2**24), shared(2**23)).passed
    assert retained_slopes(judge(shared(2**24), shared(2**23))) == {"retained divided by batch size": (2**23, 2**24, "worse")}
    assert judge(shared(2**23), shared(2**23)).passed


def test_bytes_that_leave_their_curve_are_compared_cell_by_cell_and_reported():
    odd = summary_of(make_varied(lambda at: MIB + 8 * at["length"] ** 3, length=CURVE_LENGTHS))
    judged = judge(odd, curved(1024, 8))
    assert not judged.passed
    (left,) = [it for it in judged.left_out if "retained" in it.quantities]
    assert "not a sum of {1, n, n²} in both runs" in left.why


def test_a_baseline_has_the_terms_and_one_without_them_is_read_as_before(tmp_path):
    write_baseline(curved(1024, 8), tmp_path / "base.json")
    assert read_baseline(tmp_path / "base.json") == curved(1024, 8)
    data = json.loads((tmp_path / "base.json").read_text())
    (line,) = data["lines"]
    assert line["curves"]["retained"] == {"form": "quadratic", "slope": 1024, "term": 8}
    assert "curves" not in per_token(2048).as_json()["lines"][0]
    del line["curves"]
    data["schema_version"] = 4
    (tmp_path / "old.json").write_text(json.dumps(data))
    old = read_baseline(tmp_path / "old.json")
    assert judge(curved(1024, 8), old).passed
    assert retained_slopes(judge(curved(1024, 16), old))["retained per pair of tokens"] == (8, 16, "worse")


def test_a_declared_basis_is_that_of_the_gate():
    def declared(term):
        made = make_varied(lambda at: MIB + term * at["length"] ** 2, length=(64, 128, 256))
        return summary_of(made.with_basis(length="1,n,n²"))

    assert declared(8).lines[0].curves["retained"].term == 8
    assert retained_slopes(judge(declared(16), declared(8)))["retained per pair of tokens"] == (8, 16, "worse")


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
