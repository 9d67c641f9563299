"""Slopes of cells that took turns in two runs: a slower block is found, another machine or too few rounds are no alarm."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capsbench.gate.baseline import read_baseline, write_baseline
from capsbench.gate.check import Judgement, judge
from capsbench.gate.compare import compare
from capsbench.gate.comparison import Comparison
from capsbench.gate.paces import PairedPace, paired_slope_change
from capsbench.gate.summary import BASELINE_VERSION, Summary
from capsbench.stats.intervals import StandardError
from capsbench.stats.lasting import LASTING
from helpers.made import make_turns
from helpers.seeded import in_brief, seeded_run

MODELS = ("capsnet", "rescapsnet", "mocapsnet")


def run(seed: int, **kinds: Any) -> Summary:
    """A run of three series on a machine whose processes differ by 1 %, at a speed of its own."""
    random = np.random.default_rng(1000 + seed)
    kinds = {"pace": float(np.exp(random.normal(0, 0.1))), "noise": 0.06, "full": 40, "ends": 0, "depths": (1, 2, 8)} | kinds
    kinds["slower"] = kinds.get("slower", 1.0) * float(np.exp(random.normal(0, 0.01)))
    return in_brief(make_turns(MODELS, seed=seed, **kinds))


def slope(judgement: Judgement, model: str = "rescapsnet", quantity: str = "train") -> Comparison:
    """The comparison of one slope."""
    (found,) = [
        it for it in judgement.compared.comparisons if (it.series["model"], it.quantity, it.scope) == (model, quantity, "slope")
    ]
    return found


@pytest.mark.slow
def test_unchanged_pairs_pass_and_slower_blocks_do_not() -> None:
    assert sum(not judge(run(2 * pair), run(2 * pair + 1)).passed for pair in range(20)) == 0
    assert sum(not judge(run(2 * pair, slower=1.1), run(2 * pair + 1)).passed for pair in range(20)) >= 18


def test_processes_that_scatter_more_than_earlier_ones_make_a_change_less_certain() -> None:
    def width(*shares: float) -> float:
        paces = [PairedPace(1.0, 0.999, 1.001, 40, StandardError(share, 3.0 if share else 0.0)) for share in shares]
        change = paired_slope_change(*paces)
        return change.high - change.low

    assert width(0.05, 0.05) > width(0.0, 0.05) > width(0.0, 0.0) > width(0.01, 0.01)


def test_the_scatter_of_processes_is_in_a_baseline(tmp_path: Path) -> None:
    records = make_turns(("rescapsnet",), full=24, ends=0, noise=0.01)
    of = [number // 6 for number in range(24)]
    slow = []
    for record in records:
        time = record.time
        assert time is not None
        assert time.growing is not None
        factors = [1 + 0.1 * process for process in of]
        parts = [factor * one for factor, one in zip(factors, time.growing.train_step_seconds, strict=True)]
        whole = [
            one + more - less
            for one, more, less in zip(time.train_step_seconds, parts, time.growing.train_step_seconds, strict=True)
        ]
        growing = time.growing.model_copy(update={"train_step_seconds": parts})
        more = {"train_step_seconds": whole, "growing": growing, "processes": of}
        slow.append(record.model_copy(update={"time": time.model_copy(update=more)}))
    summary = in_brief(slow)
    write_baseline(summary, tmp_path / "base.json")
    (series,) = read_baseline(tmp_path / "base.json").lines
    found = series.slopes["train"]
    assert found.scatter is not None
    assert found.of_rest is not None
    assert found.of_rest_scatter is not None
    assert found.of_rest_scatter.deviation / found.of_rest == pytest.approx(0.13 / 1.15, rel=0.2)
    assert 2 < found.of_rest_scatter.degrees <= 3


def test_a_baseline_without_scatter_is_compared_by_the_prior(tmp_path: Path) -> None:
    summary = run(0)
    write_baseline(summary, tmp_path / "base.json")
    data = json.loads((tmp_path / "base.json").read_text())
    for line in data["lines"]:
        for known in line["slopes"].values():
            known["processes"] = 1
            known.pop("scatter", None)
            known.pop("of_rest_scatter", None)
    (tmp_path / "base.json").write_text(json.dumps(data | {"schema_version": 3}))
    assert judge(summary, read_baseline(tmp_path / "base.json")).passed


def test_processes_of_few_rounds_count_for_less() -> None:
    records = make_turns(("rescapsnet",), full=20, ends=0)
    of = [0] * 8 + [1] * 9 + [2] * 3
    divided = [
        record.model_copy(update={"time": record.time and record.time.model_copy(update={"processes": of})}) for record in records
    ]
    (series,) = in_brief(divided).lines
    assert [slope.processes for slope in series.slopes.values()] == pytest.approx([400 / 154] * 2, rel=1e-4)


def test_the_change_is_that_of_the_block() -> None:
    found = slope(judge(run(0, slower=1.2, noise=0.01, pace=1.0), run(1, noise=0.01, pace=2.0)))
    assert found.before is not None
    assert found.after is not None
    assert found.low is not None
    assert found.high is not None
    assert found.after / found.before == pytest.approx(1.2 / 2, rel=0.06), "as the reports have them"
    assert found.equal_pace is not None
    assert found.difference is not None
    assert found.equal_pace[1] / found.equal_pace[0] == pytest.approx(1.2, rel=0.06)
    assert found.low < found.difference < found.high
    assert found.pace == "the rest of the step"
    assert found.verdict == "worse"
    assert found.shapes == ("line", "line")


def test_what_is_not_known_well_enough_is_no_alarm_and_says_so() -> None:
    kinds: dict[str, Any] = {"noise": 0.5, "full": 6, "ends": 0}
    judgement = judge(run(0, slower=1.1, **kinds), run(1, **kinds))
    assert judgement.passed
    assert any("known within" in it.why for it in judgement.compared.comparisons if it.scope == "slope")


def test_a_rest_that_is_faster_makes_no_block_slower() -> None:
    judgement = judge(run(0, pace=1.0, noise=0.01, rest=0.5), run(1, pace=1.0, noise=0.01))
    found = slope(judgement)
    assert found.verdict == "same"
    assert "the rest of the step has changed too" in found.why


def test_a_machine_that_is_slower_than_its_yardstick_shows_makes_no_block_slower() -> None:
    slow = run(1, pace=1.0, noise=0.01, slower=1.25, rest=1.0)
    found = slope(judge(slow, run(0, pace=1.0, noise=0.01)))
    assert found.verdict == "same"
    assert "the rest of the step has changed too" in found.why


def test_a_block_that_is_slower_by_both_measures_is_found() -> None:
    for rest in (0.65, 1.0):
        found = slope(judge(run(1, pace=1.0, noise=0.01, slower=1.6, rest=rest), run(0, pace=1.0, noise=0.01)))
        assert found.verdict == "worse"
        assert "the rest of the step has changed too" in found.why


def test_the_rest_of_a_step_with_another_kernel_is_no_measure_of_the_pace() -> None:
    """A kernel that makes the rest of a step slower, too, does not make the machine slower."""
    other = run(1, pace=1.0, noise=0.01, slower=3.0, rest=4.0)
    lines = [
        it.model_copy(update={"configuration": it.configuration.model_copy(update={"kernel": "published"})}) for it in other.lines
    ]
    compared = compare(run(0, pace=1.0, noise=0.01), other.model_copy(update={"lines": lines}), across=["kernel"])
    (found,) = [
        it for it in compared.comparisons if (it.series["model"], it.quantity, it.scope) == ("rescapsnet", "train", "slope")
    ]
    assert (found.pace, found.verdict) == ("the yardstick", "worse")
    assert found.equal_pace is not None
    assert found.equal_pace[1] / found.equal_pace[0] == pytest.approx(3.0, rel=0.06)


def test_the_rest_of_a_step_on_another_gpu_of_the_machine_is_the_same_work() -> None:
    runs = []
    for index in (0, 1):
        own = run(index, pace=1.0, noise=0.01)
        lines = [
            it.model_copy(update={"configuration": it.configuration.model_copy(update={"device": f"cuda:{index}"})})
            for it in own.lines
        ]
        runs.append(own.model_copy(update={"lines": lines}))
    assert slope(judge(*runs)).pace == "the rest of the step"


def test_there_is_no_verdict_if_the_yardstick_contradicts_the_rest() -> None:
    for slower, verdict in ((0.85, "not comparable"), (0.96, "same")):
        judgement = judge(run(2, pace=1.0, noise=0.01, rest=0.6, slower=slower), run(3, pace=1.0, noise=0.01))
        found = slope(judgement)
        assert found.verdict == verdict
        assert ("contradict each other" in found.why) is (verdict == "not comparable")
        assert any(left.why == found.why for left in judgement.left_out) is (verdict == "not comparable")


def test_a_baseline_keeps_the_slopes(tmp_path: Path) -> None:
    summary = run(0)
    write_baseline(summary, tmp_path / "base.json")
    again = read_baseline(tmp_path / "base.json")
    assert again == summary
    assert again.schema_version == BASELINE_VERSION == 5
    first = next(line for line in again.lines if line.configuration.model == "rescapsnet").slopes["train"]
    assert (first.basis, first.rounds) == ("edges", 40)
    assert first.low < first.seconds < first.high
    assert first.of_rest is not None
    assert first.rest is not None
    assert first.of_rest * first.rest == pytest.approx(first.seconds, rel=0.05)


def test_a_baseline_without_slopes_is_compared_by_its_cells(tmp_path: Path) -> None:
    old = in_brief(seeded_run())
    write_baseline(old, tmp_path / "base.json")
    data = json.loads((tmp_path / "base.json").read_text())
    (tmp_path / "base.json").write_text(json.dumps(data | {"schema_version": 1}))
    known = read_baseline(tmp_path / "base.json")
    assert known.schema_version == 1
    assert all(not line.slopes for line in known.lines)
    judgement = judge(in_brief(make_turns(depths=range(1, 5), threads=2)), known)
    assert slope(judgement).why.startswith(("", "within"))
    assert slope(judgement).p_value is not None


def test_series_of_whole_steps_are_compared_by_the_yardstick() -> None:
    kinds: dict[str, Any] = {"growing": False, "noise": 0.002}
    worse = judge(run(0, slower=1.5, **kinds), run(1, **kinds))
    assert slope(worse).verdict == "worse"
    assert slope(judge(run(0, **kinds), run(1, **kinds))).verdict == "same"


def test_lasting_effects_of_cells_are_no_change_of_whole_steps() -> None:
    def effects(seed: int) -> Summary:
        random, slowed = np.random.default_rng(seed), []
        for record in make_turns(MODELS, seed=seed, growing=False, noise=0.002, depths=(1, 2, 8), full=40, ends=0):
            assert record.time is not None
            steps = [float(1 + LASTING * random.standard_normal()) * one for one in record.time.train_step_seconds]
            slowed.append(record.model_copy(update={"time": record.time.model_copy(update={"train_step_seconds": steps})}))
        return in_brief(slowed)

    runs = [effects(seed) for seed in range(12)]
    found = [it for old, new in pairwise(runs) for it in judge(new, old).compared.comparisons if it.scope == "slope"]
    slopes = [it for it in found if it.quantity == "train"]
    assert len(slopes) == 33
    assert sum(it.verdict != "same" for it in slopes) <= 1


@pytest.mark.parametrize("cells", [(1,), (1, 8)])
def test_whole_steps_of_a_run_that_lost_depths_are_compared(cells: tuple[int, ...]) -> None:
    kinds: dict[str, Any] = {"growing": False, "noise": 0.002, "depths": (1, 2, 8)}
    kept = [record for record in make_turns(MODELS, **kinds) if record.cell.configuration.blocks in cells]
    found = judge(in_brief(kept), run(1, **kinds)).compared.comparisons
    assert {it.verdict for it in found if it.scope == "slope" and it.quantity == "train"} <= {"same"}
