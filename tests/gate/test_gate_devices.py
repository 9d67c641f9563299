"""Comparisons of runs on a GPU: TF32, and times that are the host's."""

import pytest

from capsbench.gate.baseline import read_baseline, write_baseline
from capsbench.gate.check import judge
from helpers.made import make_turns
from helpers.seeded import DEPTHS, MACHINE, in_brief, seeded_record

ON_GPU = {**MACHINE, "cuda": {"available": True, "driver": "580", "devices": [{"name": "some GPU"}]}}


def run_on_gpu(*, host=1.0, device=1.0, of_host=True, tf32=False, slower=1.0):
    """Records of a GPU, whose host and device have a speed each; steps are the host's, or the device's.

    Args:
        host: factor on the host's seconds.
        device: factor on the device's.
        of_host: whether the device waits for the host.
        tf32: whether TF32 was allowed.
        slower: factor on the step alone.
    """
    found = []
    for blocks in DEPTHS:
        record = seeded_record(blocks=blocks, slower=slower, pace=host if of_host else device, device="cuda:0", threads=None)
        time = record.time
        alone = 0.5 if of_host else 0.99
        more = {
            "yardstick_seconds": [0.01 * device] * 5,
            "launch_yardstick_seconds": [4e-4 * host] * 5,
            "device_train_step_seconds": [alone * time.train_step_seconds[0]] * 3,
            "device_inference_seconds": [alone * time.inference_seconds[0]] * 3,
        }
        found.append(record.model_copy(update={"time": time.model_copy(update=more), "tf32": tf32}))
    return found


def brief(**options):
    return in_brief(run_on_gpu(**options), ON_GPU)


def worse(judgement):
    return [it for it in judgement.compared.comparisons if it.quantity in ("train", "inference") and it.verdict == "worse"]


@pytest.mark.parametrize("of_host", [True, False])
def test_a_slower_host_or_device_makes_no_step_worse(of_host):
    """Each is seen by its own yardstick, which the other does not disturb."""
    before = brief(of_host=of_host)
    slow = {"host": 1.4} if of_host else {"device": 1.4}
    other = {"device": 1.4} if of_host else {"host": 1.4}
    for change in (slow, other):
        assert worse(judge(brief(of_host=of_host, **change), before)) == []
    assert worse(judge(brief(of_host=of_host, slower=1.4), before))


def test_without_the_second_yardstick_a_slower_host_would_be_taken_for_a_slower_step():
    before, after = (
        [one.model_copy(update={"time": one.time.model_copy(update={"launch_yardstick_seconds": []})}) for one in records]
        for records in (run_on_gpu(), run_on_gpu(host=1.4))
    )
    assert worse(judge(in_brief(after, ON_GPU), in_brief(before, ON_GPU)))


def test_a_step_that_became_the_host_s_is_compared_by_the_product_of_matrices():
    assert worse(judge(brief(of_host=True), brief(of_host=False))) == []
    assert worse(judge(brief(of_host=True, slower=1.4), brief(of_host=False)))


def in_turn(seed, **options):
    """A run whose cells took turns on a GPU that waits for its host."""
    found = []
    for record in make_turns(seed=seed, noise=0.01, device="cuda:0", threads=None, **options):
        time = record.time
        more = {
            # The device is as fast in both runs.
            "yardstick_seconds": [0.01] * 5,
            "launch_yardstick_seconds": [4e-4 * options.get("pace", 1.0)] * 5,
            "device_train_step_seconds": [0.5 * min(time.train_step_seconds)] * 3,
            "device_inference_seconds": [0.5 * min(time.inference_seconds)] * 3,
        }
        found.append(record.model_copy(update={"time": time.model_copy(update=more)}))
    return in_brief(found, ON_GPU)


def test_slopes_of_a_slower_host_are_compared_by_launches():
    before, after = in_turn(0), in_turn(1, pace=1.4)
    slopes = before.lines[0].slopes["train"]
    assert slopes.launches == pytest.approx(4e-4)
    changed = [it for it in judge(after, before).compared.comparisons if it.scope == "slope" and it.quantity == "train"]
    assert [it.verdict for it in changed] == ["same", "same"]
    assert not any("the rest of the step has changed too" in it.why for it in changed)
    slower = judge(in_turn(1, pace=1.4, slower=1.3), before).compared.comparisons
    assert {it.verdict for it in slower if it.scope == "slope" and it.quantity == "train"} == {"worse"}


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False)])
def test_a_run_with_tf32_is_not_compared_to_one_without(before, after):
    judgement = judge(brief(tf32=after), brief(tf32=before))
    reasons = {it.why for it in judgement.compared.comparisons if it.quantity in ("peak", "train")}
    words = {True: "TF32 allowed", False: "TF32 not allowed"}
    assert reasons == {f"{words[after]}, {words[before]} before"}
    # Weights and retained bytes are as on any machine.
    assert any(it.quantity == "retained" and it.verdict == "same" for it in judgement.compared.comparisons)
    same = judge(brief(tf32=after), brief(tf32=after))
    assert not any("TF32" in it.why for it in same.compared.comparisons)


def test_records_that_do_not_say_had_no_tf32():
    """The steps of earlier versions never had it for convolutions."""
    unsaid = in_brief([one.model_copy(update={"tf32": None}) for one in run_on_gpu()], ON_GPU)
    assert not any("TF32" in it.why for it in judge(brief(), unsaid).compared.comparisons)


def test_a_baseline_keeps_both(tmp_path):
    summary = brief(tf32=True)
    write_baseline(summary, tmp_path / "base.json")
    again = read_baseline(tmp_path / "base.json")
    assert again == summary
    (cell, *_) = again.lines[0].cells
    assert cell.tf32 is True
    assert cell.times["train"].of_launches == pytest.approx(cell.times["train"].seconds / 4e-4, rel=1e-5)
    assert brief(of_host=False).lines[0].cells[0].times["train"].of_launches is None
