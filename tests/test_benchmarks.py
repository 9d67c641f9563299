"""The benchmarks can be imported, and print and write their pages as they say."""

import importlib
from pathlib import Path

import pytest

from benchmarks.command_line import parser_of, print_page
from benchmarks.predictions import Row, _summary, error, error_text

FOLDER = Path(__file__).parent.parent / "benchmarks"
OF_TRITON = {"compile_kernels", "launches"}


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("test_")))
def test_a_benchmark_can_be_imported(name):
    if name in OF_TRITON:
        pytest.importorskip("triton")
    assert importlib.import_module(f"benchmarks.{name}").__doc__


@pytest.mark.parametrize("write", [False, True])
def test_a_page_is_printed_and_written_if_asked_for(write, tmp_path, capsys):
    target = tmp_path / "page.md"
    print_page(iter(["# Title", "row"]), target, write=write)
    assert capsys.readouterr().out == "# Title\nrow\n"
    assert target.exists() == write
    if write:
        assert target.read_text() == "# Title\nrow\n"


def test_only_a_benchmark_with_a_page_takes_write(tmp_path):
    assert parser_of("text", tmp_path / "page.md").parse_args(["--write"]).write
    with pytest.raises(SystemExit):
        parser_of("text").parse_args(["--write"])


def test_errors_of_predictions():
    assert (error(110, 100), error(50, 100), error(0, 0), error(3, 0)) == (10, -50, 0, float("inf"))
    assert error_text([0, -40, 10]) == "median 10 %, largest 40 %, no error in 1 of 3"


def test_the_summary_of_predictions_names_the_worst():
    def row(predicted: int, tracked: int | None, seconds: float) -> Row:
        return Row(
            "one", {"retained": predicted, "peak": 100}, {"retained": 100, "peak": 100},
            {} if tracked is None else {"retained": tracked, "peak": 100}, 0, "exact", {}, modelled=1.0, seconds=seconds,
        )  # fmt: skip

    text = "\n".join(_summary([row(100, 90, 2.0), row(107, None, 0.25)]))
    assert "- retained: median 3.5 %, largest 7 %, no error in 1 of 2" in text
    assert "- retained, MemTracker, which follows 1 of 2: median 10 %, largest 10 %" in text
    assert "within a factor of 3.00 for half of the networks, and of 4.00 for all" in text
