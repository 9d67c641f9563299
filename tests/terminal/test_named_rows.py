"""Rows of several lines beneath their names, at any width."""

import io

import pytest
from rich.console import Console

from capsbench.terminal.named_rows import NamedRows

NAME = "a_package_with_a_long_name.networks.of_other_people:transformer_with_a_long_name (adamw, compiled, length=1024)"


def printed(rows, width):
    out = io.StringIO()
    Console(file=out, width=width, emoji=False, highlight=False).print(rows)
    return out.getvalue()


def rows():
    made = NamedRows(["length", "batch size", "retained", "peak", "reserved", "process", "step, modelled"])
    for length in (128, 65536):
        made.add(NAME, [str(length), "8", "1023.45 MiB", "1023.45 MiB", "1023.45 MiB", "≈ 1023.45 MiB", "≈ 123.4 ms"])
    made.add("other", ["128", "8", "1 B", "-", "-", "-", "-"])
    return made


@pytest.mark.parametrize("width", [120, 80, 60, 40])
def test_nothing_is_cut_at_any_width(width):
    text = printed(rows(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "".join(NAME.split()) in "".join(text.split()), "a name is folded"
    words = [word.strip(",") for word in text.split()]
    assert words.count("1023.45") == 8
    assert {"reserved", "modelled", "65536", "123.4"} <= set(words)


def test_a_name_is_printed_once_above_its_rows():
    lines = printed(rows(), 200).splitlines()
    assert [line.startswith((NAME, "other")) for line in lines] == [False, True, False, False, True, False]
    assert lines[0].split() == ["length", "batch", "size", "retained", "peak", "reserved", "process", "step,", "modelled"]
    assert len({len(line.rstrip()) for line in (lines[0], lines[2], lines[3])}) == 1, "columns are aligned"


def test_rows_are_beneath_the_name_of_their_line_in_whatever_order_they_come():
    made = NamedRows(["blocks"])
    for blocks in "12":
        for name in ("one", "other"):
            made.add(name, [blocks])
    assert printed(made, 40).split() == ["blocks", "one", "1", "2", "other", "1", "2"]


def test_columns_on_the_left_begin_there_and_markup_has_no_width():
    made = NamedRows(["figure", "verdict"], left=("figure",))
    made.add("one", ["retained", "[red]worse[/]"])
    made.add("one", ["peak", "same"])
    assert [line.rstrip() for line in printed(made, 40).splitlines()] == [
        "  figure    verdict",
        "one",
        "  retained    worse",
        "  peak         same",
    ]


def test_no_rows_are_a_header():
    assert printed(NamedRows(["figure"]), 40).split() == ["figure"]
