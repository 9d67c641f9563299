"""Slopes along axes other than depth, and frames that lie along them."""

import pandas as pd
import pytest

from capsbench.errors import ConfigurationError
from capsbench.frame import along, axes_in
from capsbench.stats.slopes import fitted_slopes, series_of
from helpers.made import MIB, make_frame, make_record, make_varied


def test_a_frame_without_axes_lies_along_blocks():
    frame = make_frame([make_record(blocks=blocks) for blocks in (1, 2, 4)])
    placed = along(frame)
    assert (axes_in(frame), set(placed["axis"]), placed["position"].tolist()) == (["blocks"], {"blocks"}, [1.0, 2.0, 4.0])
    assert placed["blocks"].isna().all()
    assert along(placed) is placed


def test_a_slope_over_length_is_per_token():
    report = make_varied(lambda at: 100 + 12 * at["length"], length=(16, 32, 64))
    row = report.slopes.set_index("metric").loc["retained"]
    assert (row["axis"], row["unit"], row["slope"], row["intercept"], row["shape"]) == (
        "length",
        "bytes per token",
        12,
        100,
        "line",
    )
    assert (row["blocks"], row["settings"], row["slope_low"], row["points"]) == (2, "width=8", 12, 3)


def test_a_slope_over_batch_size_is_per_sample():
    table = make_varied(lambda at: MIB * at["batch_size"], batch_size=(1, 2, 8)).slopes.set_index("metric")
    assert table.loc["retained", ["unit", "slope"]].tolist() == ["bytes per sample", MIB]
    assert table.loc["train", "unit"] == "seconds per sample"
    assert table["batch_size"].isna().all()


def test_a_grid_has_slopes_along_both_axes_and_a_series_for_each_value_of_the_other():
    report = make_varied(lambda at: at["blocks"] * at["length"], length=(16, 32, 64), blocks=(1, 2, 4))
    table = report.slopes[report.slopes["metric"] == "retained"]
    over_length, over_blocks = (table[table["axis"] == axis] for axis in ("length", "blocks"))
    assert dict(zip(over_length["blocks"], over_length["slope"], strict=True)) == {1: 1, 2: 2, 4: 4}
    assert dict(zip(over_blocks["settings"], over_blocks["slope"], strict=True)) == {
        f"length={length}, width=8": length for length in (16, 32, 64)
    }
    assert over_blocks["unit"].unique().tolist() == ["bytes per block"]


def test_one_axis_of_a_grid_can_be_chosen():
    report = make_varied(lambda at: at["blocks"] * at["length"], length=(16, 32), blocks=(1, 2))
    assert set(fitted_slopes(report.frame, "blocks")["axis"]) == {"blocks"}
    assert set(fitted_slopes(report.frame, "length")["axis"]) == {"length"}


def test_an_axis_that_nothing_lies_on_is_refused_with_those_that_there_are():
    frame = make_varied(lambda at: at["length"], length=(16, 32)).frame
    with pytest.raises(ConfigurationError, match="axis 'lenght'") as error:
        along(frame, "lenght")
    assert error.value.hint.endswith("`along` is one of length"), "the batch size was the same in every cell"
    alone = make_varied(lambda at: at["length"], length=(16,)).frame
    with pytest.raises(ConfigurationError) as error:
        along(alone, "lenght")
    assert {"length", "batch_size"} <= set(error.value.hint.split(" is one of ")[1].split(", "))


def test_reports_along_different_axes_share_a_frame():
    one, other = make_varied(lambda at: 7 * at["length"], length=(16, 32)), make_varied(lambda at: at["blocks"], blocks=(1, 2))
    frame = pd.concat([one.frame, other.frame], ignore_index=True)
    table = fitted_slopes(frame)
    assert table[table["metric"] == "retained"].set_index("axis")["slope"].to_dict() == {"length": 7, "blocks": 1}


def test_a_network_without_the_first_axis_lies_at_its_zero():
    frame = make_frame([make_record("capsnet-1conv", 0, capsules=None)])
    frame["axes"] = [("capsules",)]
    assert along(frame)["position"].tolist() == [0.0]
    frame["axes"] = [("blocks", "capsules")]
    assert along(frame)["axis"].tolist() == ["blocks"]


def test_rows_of_a_series_are_in_the_order_of_the_axis():
    report = make_varied(lambda at: at["length"], length=(64, 16, 32))
    ((series, cells),) = series_of(report.frame)
    assert cells["position"].tolist() == [16, 32, 64]
    assert (series["axis"], series["blocks"]) == ("length", 2)
