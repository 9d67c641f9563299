"""The command line along axes of a report: slopes, show, plot, check."""

import json

import pytest

from helpers.made import make_varied, write_report


@pytest.fixture
def grid(tmp_path):
    """A folder with a report over a grid of length and batch size."""
    made = make_varied(lambda at: 512 + 4096 * at["length"] * at["batch_size"], length=(64, 128, 256), batch_size=(1, 2, 4))
    return write_report(made, tmp_path / "grid")


def test_slopes_along_both_axes_and_what_they_share(command, grid):
    result = command("slopes", "grid")
    assert result.status == 0
    text = " ".join(result.stdout.split())
    assert text.index("slope per token") < text.index("slope per sample") < text.index("costs that two axes share")
    assert "token and exact sample" in text


def test_one_axis_is_chosen(command, grid):
    rows = json.loads(command("slopes", "grid", "--along", "batch-size", "--json").stdout)
    assert {row["axis"] for row in rows} == {"batch_size"}
    assert {row["unit"] for row in rows} == {"bytes per sample", "seconds per sample"}
    assert "per sample" in command("show", "grid", "--along", "batch-size").stdout


def test_an_axis_that_is_not_there_names_those_that_are(command, grid):
    result = command("slopes", "grid", "--along", "depht")
    assert result.status == 2
    assert result.stderr.splitlines()[0] == "error: no record here lies on the axis 'depht'"
    assert result.stderr.splitlines()[1].startswith("--along is one of batch_size, length")


def test_any_point_is_predicted(command, grid):
    rows = json.loads(command("slopes", "grid", "--at", "length=512,batch-size=16", "--json").stdout)
    (retained,) = [row for row in rows if row["metric"] == "retained"]
    assert (retained["value"], retained["exact"]) == (512 + 4096 * 512 * 16, True)
    assert "costs at length 512, batch size 16" in command("slopes", "grid", "--at", "length=512,batch-size=16").stdout


@pytest.mark.parametrize("text", ["length", "length=", "length=x", "=3", "length=inf"])
def test_a_position_that_is_none_gets_two_lines(command, grid, text):
    result = command("slopes", "grid", "--at", text)
    assert (result.status, len(result.stderr.splitlines())) == (2, 2)
    assert f"--at '{text}'" in result.stderr


def test_a_grid_is_plotted_over_each_axis(command, grid):
    assert command("plot", "grid").status == 0
    assert {"figure4.svg", "figure4-batch-size.svg", "index.html", "slopes.csv"} <= {path.name for path in grid.iterdir()}


def test_a_grid_is_checked(command, grid):
    assert command("check", "grid", "--baseline", "base.json", "--update").status == 0
    assert command("check", "grid", "--baseline", "base.json").status == 0


@pytest.fixture
def attention(tmp_path):
    """A folder with a report over three lengths, which are too few to find a square."""
    made = make_varied(lambda at: 1000 + 24 * at["length"] + 3 * at["length"] ** 2, length=(64, 128, 256))
    return write_report(made, tmp_path / "attention")


def test_a_basis_is_declared(command, attention):
    rows = json.loads(command("slopes", "attention", "--basis", "length=1,n,n^2", "--json").stdout)
    (retained,) = [row for row in rows if row["metric"] == "retained"]
    assert (retained["shape"], retained["slope"], retained["term"], retained["declared"]) == ("quadratic", 24, 3, "1,n,n²")
    text = " ".join(command("slopes", "attention", "--basis", "length=1,n").stdout.split())
    assert "off {1, n} by" in text
    assert "3 B per pair of tokens" in command("show", "attention", "--basis", "length=1,n,n²").stdout
    assert command("plot", "attention", "--basis", "length=1,n,n²").status == 0
    assert "bytes per pair of tokens" in (attention / "slopes.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("length", "--basis 'length' is not a name with a basis"),
        ("length=n log n", "--basis 'n log n' of the axis 'length' is not one that costs can have"),
        ("width=1,n", "--basis names the axis 'width', which is not varied"),
    ],
)
@pytest.mark.parametrize("verb", ["slopes", "show", "plot"])
def test_a_basis_that_is_none_gets_two_lines(command, attention, verb, typed, said):
    result = command(verb, "attention", "--basis", typed)
    assert (result.status, len(result.stderr.splitlines())) == (2, 2)
    assert said in result.stderr


def test_bases_of_two_reports_are_each_its_own(command, grid, attention):
    rows = json.loads(command("slopes", ".", "--basis", "batch-size=1,n", "--json").stdout)
    assert {row["declared"] for row in rows if row["axis"] == "batch_size"} == {"1,n"}
    assert {row["declared"] for row in rows if row["axis"] == "length"} == {None}
