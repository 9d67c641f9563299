"""The benchmarks can be imported, and print and write their pages as they say."""

import importlib
from pathlib import Path

import pytest

from benchmarks.command_line import parser_of, print_page

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
    assert print_page(iter(["# Title", "row"]), target, write=write) == ["# Title", "row"]
    assert capsys.readouterr().out == "# Title\nrow\n"
    assert target.exists() == write
    if write:
        assert target.read_text() == "# Title\nrow\n"


def test_only_a_benchmark_with_a_page_takes_write(tmp_path):
    assert parser_of("text", tmp_path / "page.md").parse_args(["--write"]).write
    with pytest.raises(SystemExit):
        parser_of("text").parse_args(["--write"])
