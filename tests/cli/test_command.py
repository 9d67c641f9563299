"""JSON as commands print it."""

import json

import numpy as np
import pandas as pd
import pytest

from capsbench.cli.command import echo_json, echo_rows


def strictly(text: str) -> object:
    """The data of a text that has nothing but JSON."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_helper_refuses_what_is_not_json():
    with pytest.raises(ValueError, match="NaN is not JSON"):
        strictly("[NaN]")


def test_numbers_that_json_lacks_are_null(capsys):
    echo_json({"high": float("nan"), "ends": (1.5, float("inf")), "within": [{"low": -float("inf")}], "passed": True, "why": ""})
    assert strictly(capsys.readouterr().out) == {
        "high": None, "ends": [1.5, None], "within": [{"low": None}], "passed": True, "why": ""
    }  # fmt: skip


def test_numbers_of_numpy_are_numbers(capsys):
    echo_json([np.int64(3), np.float32(0.5), np.float64("nan"), np.bool_(True)])
    assert strictly(capsys.readouterr().out) == [3, 0.5, None, True]


def test_rows_of_a_table_have_all_digits(capsys):
    """Nanoseconds per pair of tokens, of which ten decimals would leave nothing."""
    table = pd.DataFrame({"slope": [1.23456789e-12, 1 / 3], "high": [float("nan"), 2.0], "points": [3, 4], "noise": ["", None]})
    echo_rows(table)
    assert strictly(capsys.readouterr().out) == [
        {"slope": 1.23456789e-12, "high": None, "points": 3, "noise": ""},
        {"slope": 1 / 3, "high": 2.0, "points": 4, "noise": None},
    ]
    echo_rows(table.iloc[:0])
    assert strictly(capsys.readouterr().out) == []
