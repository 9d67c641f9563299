"""Bases that a user declares, in place of those that are found."""

import numpy as np
import pytest

import capsbench
from capsbench.errors import ConfigurationError
from capsbench.frame import frame_of
from capsbench.stats.bases import declared_curve, declared_turns_curve
from capsbench.stats.line_fit import fit_bytes
from capsbench.stats.metrics import METRICS
from capsbench.stats.scatter import Points
from capsbench.words.slopes_in_words import row_remarks, row_slope
from helpers.made import make_varied

LENGTHS = (64, 128, 256, 512)


def attention(at):
    return 1000 + 24 * at["length"] + 3 * at["length"] ** 2


def retained(report):
    table = report.slopes
    return table[table["metric"] == "retained"].iloc[0]


def test_a_square_that_three_positions_would_not_show():
    """A square is found in four positions or more."""
    report = make_varied(attention, length=(64, 128, 256))
    assert retained(report)["shape"] == "not a line"
    row = retained(report.with_basis(length="1,n,n²"))
    assert (row["shape"], row["slope"], row["term"], row["term_unit"]) == ("quadratic", 24, 3, "bytes per pair of tokens")
    assert np.isnan(row["term_low"])
    assert (row["declared"], np.isnan(row["misfit"])) == ("1,n,n²", True)
    assert row_slope(row) == "24 B per token and 3 B per pair of tokens"
    assert row_remarks(row) == ["no position left to check {1, n, n²}"]


def test_a_basis_that_fits_is_exact_and_has_no_remark():
    row = retained(make_varied(attention, length=LENGTHS).with_basis(length="1,n,n^2"))
    assert (row["slope"], row["slope_low"], row["term"], row["term_high"], row_remarks(row)) == (24, 24, 3, 3, [])
    straight = retained(make_varied(lambda at: 7 + 5 * at["length"], length=LENGTHS).with_basis(length="1,n,n²"))
    assert (straight["shape"], straight["slope"], straight["term"], row_remarks(straight)) == ("quadratic", 5, 0, [])


def test_a_line_through_a_curve_has_its_residual():
    report = make_varied(attention, length=LENGTHS)
    row = retained(report.with_basis(length="1,n"))
    line = capsbench.fit_slope(LENGTHS, [attention({"length": length}) for length in LENGTHS])
    off = max(abs(attention({"length": length}) - line.intercept - line.slope * length) for length in LENGTHS)
    assert (row["shape"], row["slope"], row["declared"]) == ("not a line", line.slope, "1,n")
    assert row["misfit"] == pytest.approx(off)
    assert row_remarks(row)[0] == "not a line"
    assert row_remarks(row)[1].startswith("off {1, n} by up to ")


def test_a_small_square_beside_a_declared_line_is_reported():
    """Two percent of the range would be called a line; bytes repeat, so that any residual means something."""
    report = make_varied(lambda at: 10**6 * at["length"] + at["length"] ** 2, length=LENGTHS)
    row = retained(report.with_basis(length="1,n"))
    assert row["shape"] == "line"
    assert row["misfit"] > 1000
    assert len(row_remarks(row)) == 1


def test_a_curve_that_bytes_do_not_lie_on_has_its_residual():
    report = make_varied(lambda at: at["length"] ** 3, length=LENGTHS)
    row = retained(report.with_basis(length="1,n,n²"))
    assert row["shape"] == "quadratic"
    assert row["misfit"] > 1e5
    assert row["term_low"] < row["term"] < row["term_high"]
    inverse = retained(report.with_basis(length="1,1/n"))
    assert (inverse["shape"], inverse["term_unit"]) == ("inverse", "bytes divided by length")
    assert inverse["misfit"] > row["misfit"]


def test_too_few_positions_for_a_basis_are_reported():
    row = retained(make_varied(attention, length=(64, 128)).with_basis(length="1,n,n²"))
    assert (row["shape"], row_remarks(row)) == ("line", ["too few positions for {1, n, n²}"])


@pytest.mark.parametrize(("basis", "said"), [("1,n,n²", False), ("1,n", True), ("1,1/n", True)])
def test_times_that_chance_does_not_explain_are_reported(basis, said):
    random = np.random.default_rng(0)
    places = (64, 128, 192, 256, 320, 384, 448, 512)
    noise = dict(zip(places, np.exp(0.002 * random.standard_normal(len(places))), strict=True))
    report = make_varied(
        attention, lambda at: (0.01 + 1e-4 * at["length"] + 1e-6 * at["length"] ** 2) * noise[at["length"]], length=places
    )
    row = report.with_basis(length=basis).slopes.set_index("metric").loc["train"]
    assert np.isfinite(row["misfit"]) == said
    assert row["declared"] == basis


def test_shares_of_a_time_are_found_if_they_are_declared():
    report = make_varied(attention, lambda at: 0.2 + 8 / at["length"], length=LENGTHS).with_basis(length="1,1/n")
    row = report.slopes.set_index("metric").loc["train"]
    assert (row["shape"], row["term_unit"]) == ("inverse", "seconds divided by length")
    assert row["term"] == pytest.approx(8)
    assert np.isnan(row["misfit"])


@pytest.mark.parametrize("form", ["quadratic", "inverse"])
def test_rounds_of_cells_in_turn_have_the_factors_that_were_declared(form):
    random, places = np.random.default_rng(1), np.array([1.0, 2, 4])
    truth = 5 + 2 * places + 0.2 * places**2 if form == "quadratic" else 5 + 3 / places
    drift = 1 + 0.1 * random.random((30, 1))
    rounds = truth * drift * np.exp(0.002 * random.standard_normal((30, 3)))
    curve = declared_turns_curve(form, places, rounds, np.median(rounds, axis=0).tolist(), [0] * 30)
    assert curve is not None
    assert curve.term_interval is not None
    expected = np.median(drift) * (0.2 if form == "quadratic" else 3)
    assert curve.term == pytest.approx(expected, rel=0.1)
    assert curve.term_interval[0] < expected < curve.term_interval[1]
    assert curve.at(2.0) == pytest.approx(float(np.median(rounds[:, 1])), rel=0.01)
    assert declared_turns_curve(form, places, rounds[:5], truth.tolist(), [0] * 5) is None


def test_a_form_needs_as_many_positions_as_terms_and_a_share_needs_something_to_divide_by():
    assert declared_curve("quadratic", Points(np.array([1.0, 2]), np.array([1.0, 2])), relative=False) is None
    assert declared_curve("inverse", Points(np.array([0.0, 2]), np.array([1.0, 2])), relative=False) is None


def test_figures_predictions_and_later_reads_have_the_basis(tmp_path):
    report = make_varied(attention, length=(64, 128, 256)).with_basis(length="1,n,n²")
    assert "24 B per token, 3 B per pair of tokens" in " ".join(
        text.get_text() for text in report.figure4().axes[0].get_legend().get_texts()
    )
    four = make_varied(attention, length=LENGTHS).with_basis(length="1,n,n²")
    there = four.at(length=1000).set_index("metric").loc["retained"]
    assert (there["value"], there["exact"]) == (attention({"length": 1000}), True)
    lines = four.with_basis(length="1,n").at(length=1000).set_index("metric").loc["retained"]
    assert not lines["exact"]
    assert capsbench.slopes(frame_of([report])).set_index("metric").loc["retained", "term"] == 3
    assert report.named("other").slopes.set_index("metric").loc["retained", "term"] == 3
    assert make_varied(attention, length=(64, 128, 256)).bases == {}


def test_a_basis_of_the_plan_is_that_of_the_report():
    plain = make_varied(attention, length=(64, 128, 256))
    plan = plain.plan.model_copy(update={"bases": {"length": "quadratic"}})
    report = capsbench.Report.of(plain.records, "planned", plan=plan)
    assert retained(report)["term"] == 3
    assert retained(report.with_basis(length="1,n"))["declared"] == "1,n"


def test_a_declared_term_over_a_grid_is_exact_without_a_square_in_the_cells():
    """Declared forms are not looked for: their factors may be 0."""
    report = make_varied(lambda at: 7 * at["length"] * at["batch_size"], length=LENGTHS, batch_size=(1, 2, 4))
    table = report.with_basis(length="1,n,n²").cross_terms
    values = table[table["metric"] == "retained"].set_index("unit")["value"].to_dict()
    assert values == {"bytes per token and sample": 7, "bytes per pair of tokens and sample": 0}


def test_an_axis_that_the_report_does_not_vary_is_refused():
    with pytest.raises(ConfigurationError, match="the axis 'width', which is not varied"):
        make_varied(attention, length=LENGTHS).with_basis(width="1,n")


def test_bytes_of_a_gate_and_of_a_test_are_fitted_as_a_report_fits_them():
    values = [attention({"length": length}) for length in LENGTHS]
    found = fit_bytes(LENGTHS, values, METRICS["retained"], "length")
    assert found.curve is not None
    assert (found.shape, found.curve.term, found.declared) == ("quadratic", 3, None)
    values[2] += 4
    assert fit_bytes(LENGTHS, values, METRICS["retained"], "length").curve is None
    with pytest.raises(ConfigurationError, match="1 positions"):
        fit_bytes([3, 3], [1, 1], METRICS["retained"], "length")
