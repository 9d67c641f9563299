"""Two runs compared: what modules changed, whether times differ, which lines are one line, and how it is reported."""

import io
import json

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console
from scipy import stats

from capsbench.errors import ConfigurationError
from capsbench.gate.check import Finding, judge
from capsbench.gate.compare import ACROSS, compare
from capsbench.gate.comparison import Thresholds
from capsbench.gate.findings import Labels, finding_text
from capsbench.gate.paces import adjusted, cell_changes, level_change, slope_change
from capsbench.gate.paired_series import CPU_PEAK
from capsbench.gate.summarize import summarize
from capsbench.gate.summary import Summary, machine_parts, same_network
from capsbench.gate.verdicts import comparison_remarks, comparison_rows, comparison_table
from capsbench.report import Report
from capsbench.words.modules import OUTSIDE, ModuleChange, module_changes
from helpers.made import MIB
from helpers.seeded import DEPTHS, ELSEWHERE, MACHINE, in_brief, noisy_run, seeded_record, seeded_run, write_report


def one(compared, quantity, scope="slope", model="rescapsnet", blocks=None):
    found = [
        it
        for it in compared.comparisons
        if (it.quantity, it.scope, it.series["model"]) == (quantity, scope, model) and blocks in (None, it.position)
    ]
    assert len(found) == 1, found
    return found[0]


# Modules.


def blocks_of(*nbytes, name="blocks.{}.0"):
    return {name.format(index): value for index, value in enumerate(nbytes)}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 3, "b": 7}, [("b", 7, 1), ("a", 2, 1)]),
        ({"a": 5}, {}, [("a", -5, 1)]),
        ({}, {"": 4}, [("", 4, 1)]),
        (blocks_of(1, 1, 1), blocks_of(3, 3, 3), [("blocks.*.0", 2, 3)]),
        # The same in some blocks alone, and another change in one of them.
        (blocks_of(1, 1, 1, 1), blocks_of(1, 3, 3, 3), [("blocks.1-3.0", 2, 3)]),
        (blocks_of(1, 1, 1, 1), blocks_of(9, 3, 1, 3), [("blocks.0.0", 8, 1), ("blocks.1,3.0", 2, 2)]),
        # Numbers inside names, and two numbers in one.
        (blocks_of(0, 0, name="block{}.conv"), blocks_of(2, 2, name="block{}.conv"), [("block*.conv", 2, 2)]),
        ({f"b.{i}.{j}": 0 for i in (0, 1) for j in (0, 1)}, {f"b.{i}.{j}": 5 for i in (0, 1) for j in (0, 1)}, [("b.*.*", 5, 4)]),
        ({f"b.{i}.{j}": 0 for i in (0, 1) for j in (0, 1)}, {"b.0.1": 5, "b.1.1": 5}, [("b.*.1", 5, 2)]),
    ],
)
def test_changes_of_modules(before, after, expected):
    assert module_changes(before, after) == [ModuleChange(*it) for it in expected]


def test_modules_that_changed_alike_are_named_with_the_class_that_they_share():
    (change,) = module_changes(blocks_of(1, 1, 1), blocks_of(3, 3, 3))
    names = [f"blocks.{block}.0" for block in range(3)]
    assert change.names == tuple(names)
    assert change.title(dict.fromkeys(names, "Linear")) == "blocks.*.0 (Linear)"
    assert change.title({names[0]: "Linear", names[1]: "ReLU", names[2]: "Linear"}) == "blocks.*.0"
    assert change.title({names[0]: "Linear"}) == change.title({}) == "blocks.*.0", "a class that is not known is not claimed"
    (outside,) = module_changes({}, {"": 4})
    assert outside.title({"": "Net"}) == OUTSIDE


# Times.


def test_the_level_agrees_with_the_textbook():
    before, after = [1.0, 2.0, 4.0, 8.0], [1.2, 2.6, 4.6, 9.9]
    logs = np.log(np.divide(after, before))
    expected = stats.ttest_1samp(logs, 0)
    change = level_change(before, after)
    level = np.exp(np.mean(np.log(before)))
    low, high = expected.confidence_interval()
    assert change.before == pytest.approx(level)
    assert change.after == pytest.approx(level * np.exp(logs.mean()))
    assert (change.low, change.high) == (pytest.approx(level * np.expm1(low)), pytest.approx(level * np.expm1(high)))
    assert change.p_value == pytest.approx(expected.pvalue)


def test_the_trimmed_level_agrees_with_yuen():
    ratios = np.array([1.3, 1.25, 1.31, 1.28, 1.35, 1.27, 1.33, 3.0, 1.29, 1.26])
    change = level_change([1.0] * 10, ratios.tolist())
    low, high = stats.mstats.trimmed_mean_ci(np.log(ratios), limits=(0.2, 0.2), alpha=0.05)
    # That is Tukey and McLaughlin's error; Yuen's is as much wider as the degrees of freedom are fewer.
    middle, reach = (high + low) / 2, (high - low) / 2 * np.sqrt(6 / 5 * 9 / 10)
    assert (change.low, change.high) == (pytest.approx(np.expm1(middle - reach)), pytest.approx(np.expm1(middle + reach)))
    assert change.after == pytest.approx(np.exp(stats.trim_mean(np.log(ratios), 0.2)))


def test_a_slope_s_change_adds_both_errors():
    blocks, random = [1, 2, 3, 4, 5, 6], np.random.default_rng(0)
    # So long that a share of each is the same: noise of a time is a share of it.
    before, after = (1e6 + slope * np.array(blocks) + random.normal(0, 0.1, 6) for slope in (1.0, 1.5))
    old, new = stats.linregress(blocks, before), stats.linregress(blocks, after)
    change = slope_change(blocks, before.tolist(), after.tolist())
    reach = stats.t.ppf(0.975, 4) * np.hypot(old.stderr, new.stderr)
    assert (change.before, change.after) == (pytest.approx(old.slope), pytest.approx(new.slope))
    assert (change.low, change.high) == (
        pytest.approx(new.slope - old.slope - reach),
        pytest.approx(new.slope - old.slope + reach),
    )
    assert change.p_value < 0.05


def test_two_cells_know_nothing_of_noise():
    assert level_change([1, 1], [2, 2]) is None
    assert slope_change([1, 2], [1, 1], [2, 2]) is None
    assert cell_changes([1, 1], [2, 2]) is None
    assert slope_change([2, 2, 2], [1, 1, 1], [2, 2, 2]) is None


def test_one_slow_process_is_not_told_from_noise_but_all_are():
    before = [1.0, 1.1, 0.9, 1.05, 0.95]
    assert all(change.low < 0 < change.high for change in cell_changes(before, [1.0, 1.1, 0.9, 1.05, 0.95 * 1.5]))
    assert all(change.low > 0 for change in cell_changes(before, [1.3, 1.4, 1.2, 1.4, 1.25]))


def test_many_comparisons_are_adjusted_for():
    assert adjusted([]) == []
    assert adjusted([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])


# Lines and verdicts.


def test_a_run_against_itself_is_the_same():
    run = in_brief(seeded_run())
    compared = compare(run, run)
    assert {it.verdict for it in compared.comparisons} == {"same"}
    assert not compared.outcomes
    assert not compared.only_before
    assert {it.quantity for it in compared.comparisons} == {
        "retained",
        "peak",
        "state",
        "gradient",
        "optimizer",
        "train",
        "inference",
    }


@pytest.mark.parametrize(("added", "verdict"), [(0, "same"), (512, "same"), (513, "worse"), (-513, "better")])
def test_512_bytes_per_block_are_the_least_that_matters(added, verdict):
    # MoCapsNet's blocks retain nothing: no share of it is anything.
    before, after = (in_brief(seeded_run(["mocapsnet"], modules={"blocks.{block}.0": n})) for n in (1000, 1000 + added))
    slope = one(compare(before, after), "retained", model="mocapsnet")
    assert (slope.verdict, slope.before, slope.after) == (verdict, 1000, 1000 + added)
    assert (slope.low, slope.why) == (None, "within the threshold" if added == 512 else "")


@pytest.mark.parametrize(("share", "verdict"), [(0.009, "same"), (0.011, "worse")])
def test_one_percent_per_block(share, verdict):
    before = in_brief(seeded_run(["rescapsnet"]))
    after = in_brief(seeded_run(["rescapsnet"], modules={"blocks.{block}.1": int(share * 10 * MIB)}))
    assert one(compare(before, after), "retained").verdict == verdict
    assert one(compare(before, after, Thresholds(bytes_share=0.02)), "retained").verdict == "same"


def test_a_slower_machine_is_no_regression_and_a_slower_step_is_one():
    before = in_brief(seeded_run())
    assert one(compare(before, in_brief(seeded_run(pace=1.5))), "train", "level").verdict == "same"
    slower = one(compare(before, in_brief(seeded_run(pace=0.7, slower=1.3))), "train", "level")
    assert slower.verdict == "worse"
    assert slower.after / slower.before == pytest.approx(0.7 * 1.3), "as the reports have them"
    assert slower.equal_pace[1] / slower.equal_pace[0] == pytest.approx(1.3)
    assert "at equal pace of the machine, measured by the yardstick: " in finding_text(Finding(slower), Labels([slower.series]))
    assert one(compare(before, in_brief(seeded_run(slower=0.8))), "inference", "level").verdict == "better"


def test_times_are_those_of_the_reports_and_differences_at_equal_pace():
    before, after = seeded_run(["rescapsnet"]), seeded_run(["rescapsnet"], pace=0.5)
    compared = compare(in_brief(before), in_brief(after))
    for blocks, old, new in zip(DEPTHS, before, after, strict=True):
        cell = one(compared, "train", "cell", blocks=blocks)
        medians = [float(np.median(it.time.train_step_seconds)) for it in (old, new)]
        assert [cell.before, cell.after] == pytest.approx(medians)
        assert cell.equal_pace[0] == pytest.approx(cell.equal_pace[1])
    slopes = [Report.of(records).slopes.set_index("metric").loc["train", "slope"] for records in (before, after)]
    slope = one(compared, "train")
    assert (slope.before, slope.after) == pytest.approx(tuple(slopes))
    assert slope.difference == pytest.approx(0, abs=1e-9)
    rows = [row for row in comparison_rows(compared, cells=True) if "train step" in row.figure]
    assert all("at equal pace of the machine, measured by the yardstick: " in row.verdict for row in rows)
    assert "times are as measured; their differences are at equal pace of the machine" in (
        comparison_remarks(compared, cells=True)
    )
    # Without a yardstick there is no pace, and no word of it.
    unknown = compare(in_brief(before), in_brief(seeded_run(["rescapsnet"], pace=0.5, yardstick=False)))
    words = [row.verdict for row in comparison_rows(unknown, cells=True)] + comparison_remarks(unknown, cells=True)
    assert not any("equal pace" in text for text in words)


def test_without_a_yardstick_seconds_are_compared_and_it_is_said():
    before, after = in_brief(seeded_run()), in_brief(seeded_run(slower=1.3, yardstick=False))
    level = one(compare(before, after), "train", "level")
    assert (level.verdict, level.why) == ("worse", "no yardstick")


def test_a_slope_of_time_must_move_the_step():
    # Blocks that cost 1 % of the step may double; nobody could distinguish such a slope from noise on a real machine.
    def summary(per_block):
        run = noisy_run(np.random.default_rng(0), 1, between=0, within=0, outliers=0, drift=0)
        for cell in run.lines[0].cells:
            for name, time in cell.times.items():
                cell.times[name] = time.model_copy(update={"relative": 10 * (1 + per_block * cell.position)})
        return run

    for old, new, verdict in ((0.01, 0.02, "same"), (0.3, 0.5, "worse"), (0.3, 0.32, "same")):
        assert one(compare(summary(old), summary(new)), "train").verdict == verdict


def with_noise(records, noise, count):
    """The first so many records, with that noise in their times."""
    return [
        record.model_copy(update={"time": record.time.model_copy(update={"noise": [noise]})}) if place < count else record
        for place, record in enumerate(records)
    ]


def test_noise_is_told_with_the_verdict():
    noisy = with_noise(seeded_run(slower=1.3), "spread", 1)
    level = one(compare(in_brief(seeded_run()), in_brief(noisy)), "train", "level")
    assert (level.verdict, level.why) == ("worse", "disturbed by samples that differ widely")


def test_cells_that_shared_the_cores_say_nothing_of_time():
    run = seeded_run(slower=1.3)
    few = one(compare(in_brief(seeded_run()), in_brief(with_noise(run, "load", 1))), "train", "level")
    assert (few.verdict, few.why) == ("worse", f"1 of {len(DEPTHS)} cells left out: load")
    all_of_them = one(compare(in_brief(seeded_run()), in_brief(with_noise(run, "load", len(run)))), "train", "level")
    assert all_of_them.verdict == "not comparable"
    assert "shared the cores" in all_of_them.why


def test_on_another_machine_only_what_it_does_not_change_is_compared():
    compared = compare(in_brief(seeded_run()), in_brief(seeded_run(slower=2, extra={"peak_allocated_bytes": MIB}), ELSEWHERE))
    verdicts = {it.quantity: it.verdict for it in compared.comparisons}
    assert verdicts == dict.fromkeys(["retained", "state", "gradient", "optimizer"], "same") | dict.fromkeys(
        ["peak", "train", "inference"], "not comparable"
    )
    assert one(compared, "train").why == "CPU Another CPU, Some CPU before"


def test_threads_and_which_gpu_are_of_the_machine():
    compared = compare(in_brief(seeded_run()), in_brief(seeded_run(threads=4)))
    assert one(compared, "retained").verdict == "same"
    assert one(compared, "peak").why == "4 threads, 2 before"
    compared = compare(in_brief(seeded_run(device="cuda:0")), in_brief(seeded_run(device="cuda:1")))
    assert one(compared, "retained").verdict == "same"
    # A run with both compares each with its own.
    both = in_brief([*seeded_run(["rescapsnet"]), *seeded_run(["rescapsnet"], threads=4, modules={"front.conv1": 2 * MIB})])
    assert {it.verdict for it in compare(both, both).comparisons} == {"same"}
    few = compare(in_brief(seeded_run(["rescapsnet"], threads=4, modules={"front.conv1": 2 * MIB})), both)
    assert {it.verdict for it in few.comparisons} == {"same"}
    assert [line.configuration.threads for line in few.only_after] == [2]


def test_another_gpu_matters_to_what_ran_on_it():
    other = {**MACHINE, "cuda": {"devices": [{"name": "H100"}], "driver": "550"}}
    compared = compare(in_brief(seeded_run(device="cuda:0")), in_brief(seeded_run(device="cuda:0"), other))
    assert one(compared, "peak").why == "GPU H100, unknown before"
    assert one(compare(in_brief(seeded_run()), in_brief(seeded_run(), other)), "peak").verdict == "same"


def test_predictions_are_compared_on_any_machine():
    before, after = (
        in_brief(
            [
                it.model_copy(update={"kind": "predicted", "time": None})
                for it in seeded_run(device="cuda:predicted", extra=extra)
            ],
            m,
        )
        for extra, m in (({}, MACHINE), ({"peak_allocated_bytes": 50 * MIB}, ELSEWHERE))
    )
    assert one(compare(before, after), "peak", "cell", blocks=4).verdict == "worse"
    assert one(compare(before, after), "peak").verdict == "same"


def test_parts_of_a_machine():
    gpu = {"devices": [{"name": "H100", "sm_megahertz": 1}], "driver": "550"}
    assert machine_parts({**MACHINE, "cuda": gpu})["GPU"] == "H100"
    assert machine_parts({}) == {}
    assert "driver" not in machine_parts(MACHINE)


def test_records_of_older_versions_have_no_modules_and_no_yardstick():
    old = [it.model_copy(update={"step": None}) for it in seeded_run(yardstick=False)]
    compared = compare(in_brief(old), in_brief(seeded_run(modules={"front.conv1": 9 * MIB})))
    cell = one(compared, "retained", "cell", blocks=4)
    assert (cell.verdict, cell.modules) == ("worse", ())


def test_the_latest_report_of_a_line_counts():
    def at(when, records):
        return [it.model_copy(update={"started_at": when}) for it in records]

    late = Report.of(at("2026-02", seeded_run(["rescapsnet"])), "b", environments={"abcd": MACHINE})
    early = Report.of(at("2026-01", seeded_run(modules={"front.conv1": MIB})), "z", environments={"abcd": MACHINE})
    summary, notes = summarize([late, early])
    assert notes == ["1 line of report z were measured again by a later report, which counts"]
    compared = compare(in_brief(seeded_run()), summary)
    assert one(compared, "retained", "cell", blocks=4).verdict == "same"
    assert one(compared, "retained", "cell", "mocapsnet", blocks=4).verdict == "worse"
    # Depths that were measured apart are one line.
    machines = {"abcd": MACHINE}
    apart = [Report.of([seeded_record("rescapsnet", blocks)], str(blocks), environments=machines) for blocks in DEPTHS]
    summary, notes = summarize(apart)
    assert ([cell.position for cell in summary.lines[0].cells], notes) == (list(DEPTHS), [])


def test_nothing_in_common_says_what_is_nearest():
    with pytest.raises(ConfigurationError, match="differ: kernel: recompute in the first, published in the second"):
        compare(in_brief(seeded_run(["rescapsnet"])), in_brief(seeded_run(["rescapsnet"], kernel="published")))
    with pytest.raises(ConfigurationError, match="one of them is empty"):
        compare(in_brief(seeded_run()), Summary(lines=[]))


def test_runs_are_compared_across_options():
    before = in_brief(seeded_run(["rescapsnet"]))
    after = in_brief(seeded_run(["rescapsnet"], kernel="published", modules={"blocks.{block}.0": MIB}))
    compared = compare(before, after, across=["kernel"])
    slope = one(compared, "retained")
    assert (slope.before, slope.after, slope.verdict) == (10 * MIB, 11 * MIB, "worse")
    assert compared.across == ("kernel: recompute in the first, published in the second",)
    assert not compared.only_before
    assert not compared.only_after
    # Across something else they still have nothing in common.
    with pytest.raises(ConfigurationError, match="no line in common") as refused:
        compare(before, after, across=["memory"])
    assert refused.value.hint == "measure the same models and options, or use 'capsbench compare' with `across` kernel"


def test_an_option_that_a_record_leaves_out_is_named_by_its_value():
    """A record from before there was an option has the value that it was measured with, not Python's None."""
    before = in_brief(seeded_run(["rescapsnet"], front="chunked", kernel="published", optimizer_step="backward"))
    after = in_brief(seeded_run(["rescapsnet"], front=None))
    names = ["kernel", "front", "optimizer_step"]
    with pytest.raises(ConfigurationError) as refused:
        compare(before, after)
    assert refused.value.what.partition("; ")[2] == (
        "the nearest differ: kernel: published in the first, recompute in the second; "
        "front: chunked in the first, plain in the second; optimizer_step: backward in the first, after in the second"
    )
    assert compare(before, after, across=names).across == (
        "kernel: published in the first, recompute in the second",
        "front: chunked in the first, plain in the second",
        "optimizer_step: backward in the first, after in the second",
    )
    limited = in_brief(seeded_run(["rescapsnet"], capacity=2**30))
    assert compare(limited, in_brief(seeded_run(["rescapsnet"])), across=["capacity"]).across == (
        "capacity: 1073741824 in the first, none in the second",
    )
    # A record without the value and one with it are of one line.
    assert compare(after, in_brief(seeded_run(["rescapsnet"], front="plain"))).across == ()


def test_labels_name_no_option_that_runs_were_compared_across():
    before = in_brief(seeded_run(["rescapsnet", "mocapsnet"]))
    after = in_brief(
        [*seeded_run(["rescapsnet"], kernel="published"), *seeded_run(["mocapsnet"], kernel="published", rule="published")]
    )
    compared = compare(before, after, across=["kernel"])
    assert {row.line for row in comparison_rows(compared, cells=True)} == {"ResCapsNet"}
    assert comparison_remarks(compared, cells=True)[-2:] == [
        "only in the first: MoCapsNet (the paper's rule)",
        "only in the second: MoCapsNet (published rule)",
    ]
    predicted = [
        record.model_copy(update={"kind": "predicted", "time": None})
        for record in seeded_run(["rescapsnet"], device="cuda:predicted", gpu="h100", threads=None)
    ]
    compared = compare(in_brief(predicted), in_brief(seeded_run(["rescapsnet"], device="cuda:0")), across=["kind"])
    assert {row.line for row in comparison_rows(compared, cells=True)} == {"ResCapsNet"}


@pytest.mark.parametrize("name", ACROSS)
def test_any_option_can_be_compared_across(name):
    before, after = seeded_run(["rescapsnet"]), seeded_run(["rescapsnet"], dataset="mnist" if name == "dataset" else "sample")
    compared = compare(in_brief(before), in_brief(after), across=[name])
    labels = {row.line for row in comparison_rows(compared, cells=True)}
    assert labels == {"the network" if name == "model" else "ResCapsNet"}


def test_two_networks_are_compared_across_what_their_error_says():
    before, after = in_brief(seeded_run(["rescapsnet"])), in_brief(seeded_run(["mocapsnet"]))
    with pytest.raises(ConfigurationError) as refused:
        compare(before, after)
    names = refused.value.hint.rpartition(" ")[2].split(",")
    compared = compare(before, after, across=names)
    assert {row.line for row in comparison_rows(compared, cells=True)} == {"the network"}
    assert compared.across[0] == "model: rescapsnet in the first, mocapsnet in the second"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("nets:unet", "nets.py:unet", True),
        ("nets:unet", "/home/me/path/to/nets.py:unet", True),
        ("package.nets:unet", "package/nets.py:unet", True),
        ("package.nets:unet", "nets:unet", True),
        ("unet", "nets.py:unet", True),
        ("here/nets.py:unet", "there/nets.py:unet", True),
        ("nets:unet", "nets.py:vnet", False),
        ("nets:unet", "others.py:unet", False),
        ("one.nets:unet", "two.nets:unet", False),
        ("capsnet", "nets.py:capsnet", False),
        ("rescapsnet", "mocapsnet", False),
        ("test_one.py::test_step", "test_two.py::test_step", False),
    ],
)
def test_a_network_is_one_under_its_module_and_its_file(one, other, same):
    assert same_network(one, other) is same_network(other, one) is same


def test_runs_of_one_network_under_two_names_are_compared_and_checked():
    run = in_brief(seeded_run(["nets:unet", "nets:vnet"]))
    named = in_brief(seeded_run(["path/nets.py:unet", "path/nets.py:vnet"], modules={"blocks.{block}.0": MIB}, threads=4))
    for before, after, verdict in ((run, named, "worse"), (named, run, "better")):
        compared = compare(before, after)
        assert (compared.only_before, compared.only_after) == ([], [])
        assert {it.verdict for it in compared.comparisons if (it.quantity, it.scope) == ("retained", "slope")} == {verdict}
    judgement = judge(named, run, in_brief(seeded_run(["nets.py:unet", "nets.py:vnet"])))
    assert {it.comparison.series["model"] for it in judgement.regressions} == {"nets:unet", "nets:vnet"}
    assert judgement.since_last == [], "what grew since the last run is reported once, under any name"
    # Of two files with one name, each is compared with itself; across an option, too.
    two = in_brief(seeded_run(["a/nets.py:unet", "b/nets.py:unet"]))
    assert {it.verdict for it in compare(two, two).comparisons} == {"same"}
    with pytest.raises(ConfigurationError, match="no line in common"):
        compare(two, run)
    other = in_brief(seeded_run(["nets.py:unet", "nets.py:vnet"], kernel="published"))
    assert compare(run, other, across=["kernel"]).only_before == []


def test_cells_of_one_run_alone_are_no_worse():
    whole, part = seeded_run(["rescapsnet"]), seeded_run(["rescapsnet"], depths=DEPTHS[:2])
    remarks = comparison_remarks(compare(in_brief(whole), in_brief(part)), cells=True)
    assert [text for text in remarks if "only in" in text] == ["only in the first: ResCapsNet at 3, 4 blocks"]
    assert not any(text.startswith("worse") for text in remarks)
    # A cell that failed is.
    failed = [*part, *(seeded_record("rescapsnet", blocks, status="error") for blocks in DEPTHS[2:])]
    (text,) = [text for text in comparison_remarks(compare(in_brief(whole), in_brief(failed)), cells=True) if "worse" in text]
    assert text.startswith("worse: ResCapsNet: 3, 4 blocks: error where it was ok")


def test_another_probe_keeps_no_times_from_being_compared():
    def probed(name):
        return in_brief(
            one.model_copy(update={"memory": one.memory.model_copy(update={"probe": name})}) for one in seeded_run(["rescapsnet"])
        )

    compared = compare(probed("allocator"), probed("profiler"))
    assert {it.quantity for it in compared.comparisons if it.verdict == "not comparable"} == {"peak"}


def test_runs_with_several_thread_counts_are_compared_across_options():
    def run(*counts, **fields):
        return in_brief([record for threads in counts for record in seeded_run(["rescapsnet"], threads=threads, **fields)])

    def threads_of(compared):
        return [it.series["threads"] for it in compared.comparisons if (it.quantity, it.scope) == ("retained", "slope")]

    before, after = run(1, 2, kernel="published"), run(1, 2, modules={"blocks.{block}.0": MIB})
    compared = compare(before, after, across=["kernel"])
    assert threads_of(compared) == [1, 2]
    assert {it.verdict for it in compared.comparisons if it.quantity == "retained"} == {"worse"}
    assert compared.across == ("kernel: published in the first, recompute in the second",)
    assert not compared.only_before
    assert not compared.only_after
    # A line without another like it is compared with that of any number of threads; of several, those of the same number are.
    assert len(threads_of(compare(run(1, kernel="published"), run(4), across=["kernel"]))) == 1
    compared = compare(before, run(2, 4, 8), across=["kernel"])
    assert threads_of(compared) == [2]
    assert [[it.configuration.threads for it in lines] for lines in (compared.only_before, compared.only_after)] == [[1], [4, 8]]
    # Across the number of threads itself they are alike, and the error names what differs.
    with pytest.raises(ConfigurationError, match=r"of the first run alike: threads 1, threads 2\n"):
        compare(before, after, across=["kernel", "threads"])
    with pytest.raises(ConfigurationError, match=r"the nearest differ: kernel: .*; threads: 1 in the first, 4 in the second"):
        compare(before, run(4), across=["kernel"])


def test_predictions_for_two_gpus_are_alike_across_the_kind():
    predicted = [
        record
        for gpu in ("h100", "a100")
        for record in seeded_run(["rescapsnet"], device="cuda:predicted", gpu=gpu, threads=None)
    ]
    predicted = in_brief([record.model_copy(update={"kind": "predicted", "time": None}) for record in predicted])
    measured = in_brief(seeded_run(["rescapsnet"], device="cuda:0"))
    with pytest.raises(ConfigurationError, match=r"of the first run alike: gpu a100, gpu h100\n"):
        compare(predicted, measured, across=["kind"])


def test_predictions_are_compared_with_measurements():
    measured = seeded_run(["rescapsnet"], device="cuda:0")
    predicted = [
        one.model_copy(update={"kind": "predicted", "time": None})
        for one in seeded_run(["rescapsnet"], device="cuda:predicted", gpu="h100", threads=None, modules={"front.conv1": MIB})
    ]
    compared = compare(in_brief(predicted), in_brief(measured), across=["kind"])
    assert one(compared, "retained", "cell", blocks=4).verdict == "better"
    assert one(compared, "retained").verdict == "same"
    assert compared.across == ("kind: predicted in the first, measured in the second",)


def test_a_peak_that_is_predicted_for_a_cpu_is_left_out_with_the_reason():
    predicted = [
        one.model_copy(update={"kind": "predicted", "time": None}) for one in seeded_run(["rescapsnet"], device="cpu:predicted")
    ]
    compared = compare(in_brief(seeded_run(["rescapsnet"])), in_brief(predicted), across=["kind"])
    peak = one(compared, "peak")
    assert (peak.verdict, peak.why) == ("not comparable", CPU_PEAK)


def test_lines_that_an_option_alone_distinguishes_are_not_compared_across_it():
    both = in_brief([*seeded_run(["rescapsnet"]), *seeded_run(["rescapsnet"], kernel="published")])
    with pytest.raises(ConfigurationError, match="of the first run alike: kernel published, kernel recompute"):
        compare(both, in_brief(seeded_run(["rescapsnet"])), across=["kernel"])
    with pytest.raises(ConfigurationError, match="'colour' is not known"):
        compare(both, both, across=["colour"])


def test_a_comparison_and_a_check_are_printed_as_their_commands_print_them():
    before, after = (
        Report.of(seeded_run(modules=more), "made", environments={"abcd": MACHINE}) for more in (None, {"front.conv1": MIB})
    )
    compared = before.compare(after)
    text = str(compared)
    assert text == repr(compared) != ""
    assert text.splitlines()[0].split() == ["verdict", "figure", "before", "after", "difference"]
    assert text.splitlines()[-1].startswith("of 56 figures of single cells ")
    assert max(map(len, text.splitlines())) <= 100
    judgement = after.check(before)
    assert str(judgement).splitlines()[-1].startswith("failed: ")
    assert "worse: ResCapsNet: retained at 4 blocks " in str(judgement)
    assert str(before.check(before)).startswith("passed: ")


# The command.


@pytest.fixture
def reports(tmp_path):
    before = write_report(tmp_path / "before", seeded_run())
    after = write_report(tmp_path / "after", seeded_run(modules={"blocks.{block}.0": MIB}))
    return before, after


def test_compare_prints_a_table(command, reports):
    result = command("compare", *reports)
    assert (result.status, result.stderr) == (0, "")
    row = [line for line in result.stdout.splitlines() if "retained per block" in line][-1]
    assert row.split() == ["worse", "retained", "per", "block", "10.00", "MiB", "11.00", "MiB", "+1.00", "MiB", "(+10.0", "%)"]
    assert "--cells shows them" in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines()[:-1])
    with_cells = command("compare", *reports, "--cells").stdout
    assert "at 4 blocks" in with_cells
    assert "--cells" not in with_cells


def test_verdicts_are_whole_at_80_columns_and_reasons_are_given_once(command, tmp_path):
    before = write_report(tmp_path / "before", seeded_run())
    elsewhere = "A processor with a name that is longer than any column of a table, at 2.0 GHz"
    after = write_report(tmp_path / "after", seeded_run(slower=2), {**MACHINE, "cpu": {"model": elsewhere}})
    text = command("compare", before, after).stdout
    assert text.count(elsewhere) == 1
    assert {line.split()[0] for line in text.splitlines() if " per block" in line} == {"same"}
    remark = "not comparable: peak, train step, inference of all lines: CPU"
    assert any(line.startswith(remark) for line in text.splitlines())


@pytest.mark.parametrize("width", [50, 80, 120])
def test_remarks_are_wrapped_and_no_word_is_cut_off(width):
    before = with_noise(seeded_run(["rescapsnet"]), "spread", 4)
    compared = compare(in_brief(before), in_brief(seeded_run(["rescapsnet"], pace=0.5, modules={"blocks.{block}.0": MIB})))
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(comparison_table(compared, cells=True))
    lines = console.file.getvalue().splitlines()
    assert all(cell_len(line) <= width for line in lines)
    words = " ".join(" ".join(lines).split())
    for row in comparison_rows(compared, cells=True):
        remark = row.verdict.partition(": ")[2]
        assert remark in words
        assert all(number in words for number in (row.before, row.after, row.difference))
    assert "disturbed by samples that differ widely" in words
    assert "worse" in words


def test_compare_across_kernels(command, tmp_path):
    write_report(tmp_path / "before", seeded_run(["rescapsnet"]))
    write_report(tmp_path / "after", seeded_run(["rescapsnet"], kernel="published"))
    refused = command("compare", "before", "after")
    assert (refused.status, "--across kernel" in refused.stderr) == (2, True)
    result = command("compare", "before", "after", "--across", "kernel")
    assert result.status == 0
    assert "compared across kernel: recompute in the first, published in the second" in result.stdout


def test_compare_as_json_has_every_digit_and_cell(command, reports):
    found = json.loads(command("compare", *reports, "--json").stdout)
    slope = next(it for it in found["comparisons"] if it["line"]["model"] == "rescapsnet" and it["quantity"] == "retained")
    assert (slope["scope"], slope["before"], slope["after"], slope["unit"]) == ("slope", 10 * MIB, 11 * MIB, "bytes per block")
    assert slope["retained_more_by"] == "blocks.*.0 +1.00 MiB each"
    assert sum(it["scope"] == "cell" for it in found["comparisons"]) == 2 * 4 * 7


def test_compare_as_markdown(command, reports):
    text = command("compare", *reports, "--markdown").stdout
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {7}
    assert any("worse" in line for line in rows)


def test_compare_takes_baselines_and_thresholds(command, reports, tmp_path):
    before, after = reports
    assert command("check", before, "--baseline", "b.json", "--update").status == 0
    assert "worse" in command("compare", "b.json", after).stdout
    loose = command("compare", "b.json", after, "--bytes-threshold", "200%,20000000")
    assert "worse" not in loose.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["before", "nowhere"], ["nowhere", "does not exist"]),
        (["before", "after", "--json", "--markdown"], ["--json", "--markdown"]),
        (["before", "after", "--bytes-threshold", "many"], ["--bytes-threshold 'many'", "1%,512"]),
        (["before", "after", "--bytes-threshold", "1%,few"], ["--bytes-threshold '1%,few'", "1%,512"]),
        (["before", "after", "--time-threshold", "0.1"], ["--time-threshold '0.1'", "10%"]),
        (["before", "other"], ["no line in common", "batch_size"]),
        (["before", "before/plan.json"], ["plan.json is not a baseline"]),
    ],
)
def test_compare_refuses_nonsense_in_two_lines(command, reports, tmp_path, arguments, named):
    write_report(tmp_path / "other", seeded_run(batch_size=99))
    result = command("compare", *arguments)
    assert (result.status, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) <= 2
    for words in named:
        assert words in result.stderr
