"""The frame of `load`: a row per record, old records among them."""

import json

import pandas as pd
import pytest

from capsbench import load, slopes
from capsbench.records import StepFigures
from helpers import GOLDEN
from helpers.made import MIB, make_frame, make_record

STEP = StepFigures(retained_by_module={"": 1}, flops=6 * 10**9, floor_flops=4 * 10**9, floor_bytes=100 * MIB, notes=["assumed"])


def timed(**fields):
    """A record of a step of 2 s with a yardstick of 0.5 s for 10⁹ operations."""
    record = make_record()
    time = {"train_step_seconds": [2.0, 1.9, 9.0], "yardstick_seconds": [0.5, 0.4, 0.6], "yardstick_flops": 10**9}
    memory = {"peak_allocated_bytes": 250 * MIB}
    update = {
        "time": record.time.model_copy(update=time | {"noise": ["drift", "load"]}),
        "memory": record.memory.model_copy(update=memory),
        "step": STEP,
        "notes": ["others were there"],
    }
    return record.model_copy(update=update | fields)


def test_what_follows_from_several_figures():
    (row,) = make_frame([timed()]).to_dict("records")
    assert row["train_step_relative"] == 4
    assert row["flops_per_second"] == 3e9
    assert row["floor_ratio_bytes"] == 2.5
    # The floor's 4·10⁹ operations take 2 s at the yardstick's speed.
    assert row["floor_ratio_time"] == 1
    assert (row["flops"], row["floor_flops"], row["floor_bytes"]) == (6 * 10**9, 4 * 10**9, 100 * MIB)
    assert row["train_step_samples"] == (2.0, 1.9, 9.0)
    assert len(row["forward_samples"]) == len(row["inference_samples"]) == 9
    assert row["noise"] == "drift,load"
    assert row["notes"] == "others were there; assumed"


QUOTIENTS = {"train_step_relative", "flops_per_second", "floor_ratio_bytes", "floor_ratio_time"}


@pytest.mark.parametrize(
    ("missing", "known"),
    [
        ({"step": None}, {"train_step_relative"}),
        ({"time": None}, {"floor_ratio_bytes"}),
        ({"memory": None}, QUOTIENTS - {"floor_ratio_bytes"}),
        ({"step": STEP.model_copy(update={"flops": None, "floor_bytes": None, "floor_flops": None})}, {"train_step_relative"}),
        ({"time": make_record().time}, {"flops_per_second", "floor_ratio_bytes"}),
    ],
    ids=["no trace", "no time", "no memory", "no operations", "no yardstick"],
)
def test_what_is_not_there_is_missing(missing, known):
    (row,) = make_frame([timed(**missing)]).to_dict("records")
    assert {name for name in QUOTIENTS if not pd.isna(row[name])} == known


def test_columns_have_one_type_whatever_the_records_are():
    empty, failed, full = (make_frame(records) for records in ([], [make_record(status="oom")], [timed()]))
    assert list(empty.columns) == list(failed.columns) == list(full.columns)
    assert len(set(full.columns)) == len(full.columns)
    numbers = [name for name in full.columns if name.endswith(("_bytes", "_seconds", "flops")) or name in QUOTIENTS]
    for frame in (empty, failed):
        assert (frame[numbers].dtypes == full[numbers].dtypes).all()
    assert failed["noise"].tolist() == failed["notes"].tolist() == [""]


@pytest.mark.parametrize(("version", "folder"), [(1, GOLDEN / "records_version_1"), (2, GOLDEN / "records_version_2")])
def test_old_records_are_read(version, folder):
    lines = (folder / "records.jsonl").read_text().splitlines()
    assert {json.loads(line)["schema_version"] for line in lines} == {version}
    frame = load(folder)
    good = frame[frame["status"] == "ok"]
    assert len(good)
    assert (good["noise"] == "").all()
    assert good["train_step_relative"].isna().all()
    assert good["train_step_samples"].map(len).min() >= 5
    table = slopes(frame)
    assert table.loc[table["metric"] == "train", "slope_low"].notna().all()
