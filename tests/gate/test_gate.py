"""The gate: each seeded regression turns it red and names what grew; runs that only differ by noise leave it green."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from capsbench.gate.badge import badge_of
from capsbench.gate.check import judge
from helpers.made import MIB, make_record
from helpers.seeded import DEPTHS, ELSEWHERE, in_brief, noisy_run, seeded_record, seeded_run, write_report


@pytest.fixture
def gate(command, tmp_path):
    """Checks records, as a report, against a baseline of `seeded_run()`, or another."""
    write_report(tmp_path / "good", seeded_run())
    assert command("check", "good", "--baseline", "base.json", "--update").status == 0
    count = iter(range(100))

    def check(records, *arguments, baseline="base.json", machine=None):
        folder = write_report(tmp_path / f"run{next(count)}", records, **({"machine": machine} if machine else {}))
        return command("check", folder, "--baseline", baseline, *arguments)

    return check


def told(result, kind="worse"):
    return [line for line in result.stdout.splitlines() if line.startswith(f"{kind}: ")]


# Figures that grow.


def test_a_run_like_its_baseline_passes(gate):
    result = gate(seeded_run())
    assert (result.status, result.stderr) == (0, "")
    assert result.stdout.startswith("passed: ")
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("modules", "line"),
    [
        (
            {"blocks.{block}.0": MIB},
            "ResCapsNet: retained per block 10.00 MiB → 11.00 MiB, +1.00 MiB (+10.0 %); blocks.*.0 +1.00 MiB each",
        ),
        (
            {"blocks.{block}.0.routing.votes": 32 * MIB},
            "ResCapsNet: retained per block 10.00 MiB → 42.00 MiB, +32.00 MiB (+320.0 %); "
            "blocks.*.0.routing.votes +32.00 MiB each",
        ),
        (
            {"front.conv1": 4 * MIB},
            "ResCapsNet: retained at 4 blocks 41.00 MiB → 45.00 MiB, +4.00 MiB (+9.8 %), in 4 of 4 cells; ",
        ),
        ({"class_capsules": MIB}, "class_capsules +1.00 MiB"),
        ({"decoder.2": 2 * MIB, "decoder.4": MIB}, "decoder.2 +2.00 MiB, decoder.4 +1.00 MiB"),
        ({"": 3 * MIB}, "(the network's own code, the loss) +3.00 MiB"),
        ({"blocks.2.1": 7 * MIB}, "blocks.2.1 +7.00 MiB"),
    ],
)
def test_what_a_module_keeps_more_turns_it_red_and_names_it(gate, modules, line):
    result = gate(seeded_run(["rescapsnet"], modules=modules) + seeded_run(["mocapsnet"]))
    assert result.status == 1
    assert (
        result.stdout.splitlines()[-1]
        == f"failed: {len(told(result))} regression{'s' * (len(told(result)) > 1)} against base.json"
    )
    assert line in told(result)[0]
    assert "MoCapsNet" not in "".join(told(result))


def test_a_module_that_keeps_less_is_not_blamed(gate):
    result = gate(seeded_run(modules={"blocks.{block}.0": 3 * MIB, "blocks.{block}.1": -MIB}))
    assert any(line.endswith("+2.00 MiB (+20.0 %); blocks.*.0 +3.00 MiB each") for line in told(result))
    assert "blocks.*.1" not in result.stdout


def test_a_reversible_path_that_is_lost_turns_it_red(gate):
    result = gate(
        seeded_run(["rescapsnet"]) + seeded_run(["mocapsnet"], modules={"blocks.{block}.0": MIB, "blocks.{block}.1": MIB})
    )
    assert result.status == 1
    assert told(result)[0].startswith("worse: MoCapsNet: retained per block 0 B → 2.00 MiB, +2.00 MiB; blocks.*.* +1.00 MiB each")


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("state_bytes", "weights"),
        ("gradient_bytes", "gradients"),
        ("optimizer_bytes", "optimizer state"),
        ("peak_allocated_bytes", "peak"),
    ],
)
def test_other_bytes_turn_it_red_too(gate, name, title):
    result = gate(seeded_run(["rescapsnet"], extra={name: 40 * MIB}) + seeded_run(["mocapsnet"]))
    assert result.status == 1
    assert [line.startswith(f"worse: ResCapsNet: {title}") for line in told(result)] == [True]


def with_inference(records, peak, kept):
    """Add figures of an inference step to records."""
    figures = {"inference_peak_bytes": peak, "inference_kept_bytes": kept}
    return [record.model_copy(update={"memory": record.memory.model_copy(update=figures)}) for record in records]


def test_inference_is_held_to_a_baseline_that_has_it(gate, command, tmp_path):
    known = write_report(tmp_path / "with", with_inference(seeded_run(), 40 * MIB, 7 * MIB))
    # A baseline from before inference was counted has no figures of it.
    assert command("check", known, "--baseline", "base.json").status == 0
    assert command("check", known, "--baseline", "base.json", "--update").status == 0
    result = gate(with_inference(seeded_run(), 40 * MIB, 8 * MIB))
    assert result.status == 1
    assert {line.partition(": ")[2].partition(" at ")[0] for line in told(result)} == {
        "ResCapsNet: kept by inference", "MoCapsNet: kept by inference"
    }  # fmt: skip


def test_a_slower_step_turns_it_red(gate):
    result = gate(seeded_run(["mocapsnet"], slower=1.3) + seeded_run(["rescapsnet"]))
    assert result.status == 1
    assert any("MoCapsNet: train step " in line and "+30.0" in line for line in told(result))
    assert "ResCapsNet" not in "".join(told(result))
    assert gate(seeded_run(slower=1.3), "--time-threshold", "40%").status == 0


# Noise.


@pytest.mark.slow
def test_twenty_unchanged_runs_raise_at_most_one_alarm():
    random = np.random.default_rng(1)
    for _ in range(5):
        baseline = noisy_run(random)
        assert sum(not judge(noisy_run(random), baseline).passed for _ in range(20)) <= 1


@pytest.mark.slow
def test_a_step_30_percent_slower_is_found():
    random = np.random.default_rng(2)
    pairs = [(noisy_run(random, 3), noisy_run(random, 3, slower=(1.3, 1.3, 1.3))) for _ in range(60)]
    found = [judge(after, before) for before, after in pairs]
    assert sum(not it.passed for it in found) >= 0.95 * len(found)
    alone = [judge(noisy_run(random, 1, slower=(1.3,)), noisy_run(random, 1)) for _ in range(100)]
    assert sum(not it.passed for it in alone) >= 0.95 * len(alone)


def test_in_noise_the_slow_line_is_the_one_that_is_named():
    random = np.random.default_rng(3)
    found = [judge(noisy_run(random, slower=(1.0, 1.3)), noisy_run(random)) for _ in range(40)]
    named = [it.comparison.series["batch_size"] for one in found for it in one.regressions]
    assert named.count(2) >= 0.9 * len(named)


# Cells.


def test_a_cell_that_is_missing_or_failed_turns_it_red(gate):
    def changed(status):
        kept = [it for it in seeded_run() if (it.cell.configuration.model, it.cell.configuration.blocks) != ("rescapsnet", 3)]
        return kept + ([] if status is None else [seeded_record("rescapsnet", 3, status=status)])

    for status, text in (
        (None, "not measured"),
        ("error", "error where it was ok: it was error"),
        ("timeout", "timeout where it was ok: it was timeout"),
        ("oom", "oom where it was ok: it was oom"),
        ("skipped", "skipped where it was ok: it was skipped"),
    ):
        result = gate(changed(status))
        assert (result.status, told(result)) == (1, [f"worse: ResCapsNet: 3 blocks: {text}"])


def test_depths_that_ended_alike_are_one_line_and_so_is_a_whole_line(gate):
    result = gate(seeded_run(["rescapsnet"]) + seeded_run(["mocapsnet"], depths=[1, 2]))
    assert told(result) == ["worse: MoCapsNet: 3, 4 blocks: not measured"]
    result = gate(seeded_run(["rescapsnet"]))
    assert (result.status, told(result)) == (1, ["worse: MoCapsNet: 1, 2, 3, 4 blocks: not measured"])


def test_a_line_that_is_new_and_failed_turns_it_red(gate):
    result = gate([*seeded_run(), *(make_record("capsnet", blocks, status="error") for blocks in (1, 2))])
    assert result.status == 1
    assert any("it was error" in line for line in told(result))


def test_a_pass_that_is_missing_is_told(gate):
    result = gate([record.model_copy(update={"time": None}) for record in seeded_run()])
    assert "not measured this time" in result.stdout + result.stderr


def test_update_checks_nothing_and_says_so(command, tmp_path):
    write_report(tmp_path / "report", seeded_run())
    result = command("check", tmp_path / "report", "--baseline", tmp_path / "b.json", "--update", "--junit", tmp_path / "j.xml")
    assert result.status == 2
    assert len(result.stderr.strip().splitlines()) == 2
    assert not (tmp_path / "b.json").exists()


def test_memory_that_was_not_measured_turns_it_red(gate):
    records = seeded_run()
    result = gate([records[0].model_copy(update={"memory": None}), *records[1:]])
    assert told(result) == ["worse: ResCapsNet: 1 block: its memory was not measured"]


def test_what_ran_out_of_memory_before_may_do_so_again(gate, command, tmp_path):
    records = [*seeded_run(["rescapsnet"]), seeded_record("rescapsnet", 5, status="oom")]
    command("check", write_report(tmp_path / "tight", records), "--baseline", "tight.json", "--update")
    assert gate(records, baseline="tight.json").stdout.startswith("passed")
    assert gate([*records[:-1], seeded_record("rescapsnet", 5, status="skipped")], baseline="tight.json").status == 0
    better = gate([*records[:-1], seeded_record("rescapsnet", 5)], baseline="tight.json")
    assert (better.status, told(better, "better")) == (0, ["better: ResCapsNet: 5 blocks: ok where it was oom"])


def test_a_failed_cell_that_the_baseline_has_not_is_told_too(gate):
    result = gate([*seeded_run(), seeded_record("rescapsnet", 9, status="error")])
    assert told(result) == ["worse: ResCapsNet: 9 blocks: error: it was error"]


def test_fewer_replicates_are_no_regression_but_said(gate, command, tmp_path):
    records = [record for replicate in (0, 1) for record in seeded_run(["rescapsnet"], replicate=replicate)]
    command("check", write_report(tmp_path / "twice", records), "--baseline", "twice.json", "--update")
    result = gate(seeded_run(["rescapsnet"]), baseline="twice.json")
    assert result.status == 0
    assert told(result, "note") == [
        "note: fewer replicates than the baseline: ResCapsNet: 1, 2, 3, 4 blocks (replicate 2): not measured"
    ]


# What else is told.


def test_an_improvement_is_told_with_the_command_that_keeps_it(gate, command):
    result = gate(seeded_run(["rescapsnet"], modules={"blocks.{block}.1": -2 * MIB}) + seeded_run(["mocapsnet"]))
    assert result.status == 0
    line = "better: ResCapsNet: retained per block 10.00 MiB → 8.00 MiB, -2.00 MiB (-20.0 %); blocks.*.1 -2.00 MiB each"
    assert told(result, "better")[0] == line
    again = next(line for line in result.stdout.splitlines() if line.startswith("to keep what is better: capsbench "))
    arguments = again.partition("capsbench ")[2].split()
    assert command(*arguments).status == 0
    assert gate(seeded_run()).status == 1


def test_creep_is_seen_against_the_pinned_baseline(gate, command, tmp_path):
    # Each run keeps 0.6 % more than the last one: never beyond 1 % from run to run.
    step, last, statuses = int(0.006 * 10 * MIB), "good", []
    for run in range(1, 4):
        result = gate(
            seeded_run(["rescapsnet"], modules={"blocks.{block}.0": run * step}) + seeded_run(["mocapsnet"]), "--last", last
        )
        last, statuses = f"run{run - 1}", [*statuses, result.status]
        assert not told(result, "note")
    assert statuses == [0, 1, 1]


def test_a_jump_since_the_last_run_within_the_threshold_is_a_note(gate, command, tmp_path):
    write_report(tmp_path / "lean", seeded_run(modules={"blocks.{block}.0": -MIB}))
    command("check", "lean", "--baseline", "lean.json", "--update")
    for last in ("lean", "lean.json"):
        result = gate(seeded_run(["rescapsnet"]) + seeded_run(["mocapsnet"]), "--last", last)
        assert result.status == 0
        note = "note: since the last run: ResCapsNet: retained per block 9.00 MiB → 10.00 MiB, +1.00 MiB (+11.1 %); blocks.*.0 "
        assert any(line.startswith(note) for line in told(result, "note"))
    other = write_report(tmp_path / "other", seeded_run(batch_size=99))
    assert "note: the last run was not compared: the two have no line in common" in gate(seeded_run(), "--last", other).stdout


def test_another_machine_is_held_to_what_does_not_depend_on_it(gate):
    slow = seeded_run(slower=3, extra={"peak_allocated_bytes": 99 * MIB})
    result = gate(slow, machine=ELSEWHERE)
    assert result.status == 0
    left = "left out: peak, train step, inference of all lines: CPU Another CPU, Some CPU before"
    assert told(result, "left out") == [left]
    assert gate(seeded_run(modules={"blocks.{block}.0": MIB}), machine=ELSEWHERE).status == 1


def test_a_line_that_is_new_is_told(gate):
    result = gate(seeded_run(["capsnet", "rescapsnet", "mocapsnet"]))
    assert result.status == 0
    assert told(result, "note")[0].startswith("note: not in the baseline: CapsNet; to add: capsbench check ")


def test_reports_of_one_line_are_joined_and_the_latest_counts(command, tmp_path, gate):
    def at(when, records):
        return [it.model_copy(update={"started_at": when}) for it in records]

    write_report(tmp_path / "all/new", at("2026-02-01", seeded_run()))
    write_report(tmp_path / "all/old", at("2026-01-01", seeded_run(modules={"front.conv1": 9 * MIB})), ELSEWHERE, "efgh")
    result = command("check", "all", "--baseline", "base.json")
    assert (result.status, told(result, "note")) == (
        0,
        ["note: 2 lines of report old were measured again by a later report, which counts"],
    )


# Forms.


def test_junit_has_a_case_for_each_quantity(gate, tmp_path):
    result = gate(seeded_run(modules={"blocks.{block}.0": MIB}), "--junit", "out/check.xml", machine=ELSEWHERE)
    suite = ET.parse(tmp_path / "out/check.xml").getroot().find("testsuite")
    cases = suite.findall("testcase")
    assert len({(it.get("classname"), it.get("name")) for it in cases}) == len(cases) == int(suite.get("tests")) == 16
    failures = {
        (it.get("classname"), it.get("name")): it.find("failure").get("message") for it in cases if it.find("failure") is not None
    }
    assert set(failures) == {("MoCapsNet", "retained"), ("ResCapsNet", "retained")}
    assert f"worse: {failures['ResCapsNet', 'retained']}" in told(result)
    assert int(suite.get("failures")) == 2
    assert sum(it.find("skipped") is not None for it in cases) == int(suite.get("skipped")) == 6


def test_junit_tells_of_cells(gate, tmp_path):
    gate(seeded_run(depths=[1, 2, 3]), "--junit", "check.xml")
    failures = ET.parse(tmp_path / "check.xml").getroot().findall(".//testcase[failure]")
    assert [(it.get("classname"), it.get("name")) for it in failures] == [("MoCapsNet", "cells"), ("ResCapsNet", "cells")]


def test_markdown_goes_to_files_and_to_standard_output(gate, tmp_path):
    result = gate(seeded_run(modules={"blocks.{block}.0": MIB}), "--markdown", "a.md", "--markdown", "-")
    assert (result.status, result.stdout) == (1, (tmp_path / "a.md").read_text())
    assert result.stdout.startswith("### capsbench: failed: ")
    # Stars of module names are no emphasis.
    assert (
        "- ResCapsNet: retained per block 10.00 MiB → 11.00 MiB, +1.00 MiB (+10.0 %); blocks.\\*.0 +1.00 MiB each"
        in result.stdout
    )


@pytest.mark.parametrize(("modules", "message"), [({}, "no growth"), ({"blocks.{block}.0": MIB}, "4 regressions")])
def test_a_badge_has_the_verdict(gate, tmp_path, modules, message):
    result = gate(seeded_run(modules=modules), "--badge", "out/badge.svg")
    assert result.status == bool(modules)
    root = ET.parse(tmp_path / "out/badge.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title").text == f"capsbench: {message}"
    assert [it.text for it in root.findall(f"{space}text")] == ["capsbench", message]
    # Both parts lie next to each other, and each is wide enough for its text.
    parts = [(int(it.get("x")), int(it.get("width"))) for it in root.findall(f"{space}rect")]
    assert parts[1][0] == parts[0][1]
    assert sum(width for _, width in parts) == int(root.get("width"))
    assert all(int(it.get("textLength")) < width for it, (_, width) in zip(root.findall(f"{space}text"), parts, strict=True))


def test_a_badge_of_one_regression_and_of_none_differ():
    green, red = badge_of(0), badge_of(1)
    assert "1 regression<" in red
    assert {it.get("fill") for it in ET.fromstring(green).iter()} != {it.get("fill") for it in ET.fromstring(red).iter()}


def test_json_has_verdict_and_digits(gate):
    result = gate(seeded_run(modules={"blocks.{block}.0": MIB}), "--json")
    found = json.loads(result.stdout)
    assert (result.status, found["passed"]) == (1, False)
    assert any("blocks.*.0" in line for line in found["regressions"])
    assert len(found["comparisons"]) == 2 * (5 + 4 + 4 * 7)


def test_a_baseline_is_small_and_the_same_again(gate, tmp_path, command):
    first = (tmp_path / "base.json").read_text()
    data = json.loads(first)
    assert data["measured_by"] == ["capsbench run --made-up"]
    assert data["command"] == "capsbench check good --baseline base.json --update"
    assert "message" not in first
    assert str(tmp_path) not in first
    command("check", "good", "--baseline", "base.json", "--update")
    assert (tmp_path / "base.json").read_text() == first


# Bad input.


def edited(path, **changes):
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | changes))


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda path: path.unlink(), ["baseline base.json does not exist", "--update"]),
        (lambda path: path.write_text("{"), ["is not JSON", "--update"]),
        (lambda path: path.write_bytes(b"\xff\xfe"), ["is not JSON", "--update"]),
        (lambda path: path.write_text("[1]"), ["is not a baseline of capsbench", "--update"]),
        (lambda path: path.write_text('{"version": 3}'), ["is not a baseline of capsbench", "--update"]),
        (lambda path: edited(path, schema_version=99), ["schema version 99", "versions up to 5", "upgrade capsbench"]),
        (lambda path: edited(path, schema_version=0), ["schema version 0", "write a new one with --update"]),
        (lambda path: edited(path, lines=[{"kind": "measured"}]), ["is damaged: lines.0.", "write a new one with --update"]),
        (lambda path: edited(path, lines=[]), ["no line in common", "one of them is empty"]),
    ],
)
def test_bad_baselines_get_two_lines(gate, tmp_path, spoil, named):
    spoil(tmp_path / "base.json")
    result = gate(seeded_run())
    assert (result.status, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 2
    for words in named:
        assert words in result.stderr


def test_bad_reports_get_two_lines(gate, command, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow").mkdir()
    (tmp_path / "hollow/records.jsonl").write_text("")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/records.jsonl").write_text('{"half a rec\n')
    write_report(tmp_path / "other", seeded_run(kernel="published"))
    for folder, words in (
        ("nowhere", "nowhere does not exist"),
        ("empty", "empty holds no records"),
        ("hollow", "hollow holds an empty report"),
        ("broken", "line 1 is damaged"),
        ("other", "the nearest differ: kernel: recompute in the first, published in the second"),
    ):
        result = command("check", folder, "--baseline", "base.json")
        assert (result.status, result.stdout, len(result.stderr.splitlines())) == (2, "", 2)
        assert words in result.stderr


def test_a_baseline_of_failures_is_refused(gate, command, tmp_path):
    write_report(tmp_path / "failed", [*seeded_run(), seeded_record("rescapsnet", 5, status="error")])
    before = (tmp_path / "base.json").read_text()
    result = command("check", "failed", "--baseline", "base.json", "--update")
    assert (result.status, len(result.stderr.splitlines())) == (2, 2)
    assert "1 cells ended in error" in result.stderr
    assert (tmp_path / "base.json").read_text() == before


def test_what_cannot_be_written_is_said(gate, command):
    for arguments in (["--junit", "base.json/x"], ["--markdown", "base.json/x"], ["--badge", "base.json/x"]):
        result = gate(seeded_run(), *arguments)
        assert (result.status, len(result.stderr.splitlines())) == (2, 2)
    assert command("check", "good", "--baseline", "base.json/x", "--update").status == 2


def test_depths_of_the_seeds_are_enough_for_times():
    # Fewer than three cells would leave every test of times above without a subject.
    assert len(DEPTHS) >= 3
    assert {it.scope for it in judge(in_brief(seeded_run()), in_brief(seeded_run())).compared.comparisons} == {
        "slope",
        "level",
        "cell",
    }
