"""The page of reports as a file: what is in it, where it is written, and what it is written from."""

import json
import os
import re

import click
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from capsbench import paper
from capsbench.cli.group import cli
from capsbench.cli.sweeps import asked_cells
from capsbench.frame import frame_of
from capsbench.page import build, page_html, write_page
from capsbench.page.build import script_json, with_unique_names
from capsbench.page.commands import cell_arguments, series_command, timeline_command
from capsbench.prediction.predict import predict_memory, trace_for
from capsbench.records import Cell, MemoryFigures, Plan, Record, StepFigures
from capsbench.report import Report, loose_timelines, reports_below
from capsbench.stats.line_fit import fit_line
from capsbench.stats.median import median_interval
from capsbench.stats.metrics import METRICS
from capsbench.stats.placed_times import placed_times
from capsbench.stats.slopes import series_of
from capsbench.store.files import ENVIRONMENT, SavedTimeline
from capsbench.timeline import STEP_PHASES, StepPhase, Timeline
from helpers.commands import subcommands
from helpers.made import (
    MIB,
    RETAINED_PER_BLOCK,
    make_configuration,
    make_frame,
    make_record,
    make_timeline,
    make_turns,
    make_varied,
)

SMALL = ("run", "--models", "rescapsnet", "--depth", "1,2", "--batch-size", "1", "--capsules", "2", "--kernel", "reference")


def source(records, name="mine", **more):
    return Report.of(records, name, environments={"abcd": {"commit": "abc1234", "cpu": {"model": "Some CPU"}}}, **more)


def data_of(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def kept(folder, records, name="mine"):
    """A report on the disk."""
    store = Report(folder / name)
    store.folder.mkdir(parents=True)
    for record in records:
        store.append(record)
    store.add_environment("abcd", {"commit": "abc1234"})
    store.write_plan(Plan(command=f"capsbench run --out {name}", cells=[record.cell for record in records]))
    return store.folder


@given(st.text() | st.dictionaries(st.text(), st.text()))
def test_no_text_leads_out_of_its_script(value):
    text = script_json(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value


def test_the_page_is_one_file_that_loads_nothing():
    html = page_html([source(make_record(blocks=blocks) for blocks in (1, 2, 3))])
    assert len(html.encode()) < 6_000_000
    outside = html.replace(re.search(r'id="library">(.*?)</script>', html, re.DOTALL)[1], "")
    assert not re.search(r'(?:src|href)="(?!#|https://plotly\.com)', outside)
    assert "default-src 'none'" in html
    assert html == page_html([source(make_record(blocks=blocks) for blocks in (1, 2, 3))])


def test_every_figure_of_the_page_is_that_of_its_record():
    records = [
        make_record(model, blocks, replicate=two) for two in (0, 1) for model in ("rescapsnet", "mocapsnet") for blocks in (1, 2)
    ]
    cells = data_of(page_html([source(records)]))["cells"]
    for place, record in enumerate(records):
        assert cells["key"][place] == record.cell.key()
        for name in ("retained_bytes", "peak_allocated_bytes", "process_bytes", "state_bytes"):
            assert cells[name][place] == getattr(record.memory, name)
        assert cells["train_step_seconds"][place] == pytest.approx(sorted(record.time.train_step_seconds)[4])
        assert cells["samples"][place][0] == pytest.approx(record.time.train_step_seconds)


def test_times_of_cells_in_turn_are_those_of_the_figures_and_keep_their_medians():
    records = make_turns(["rescapsnet"], depths=(1, 2, 4), full=3, ends=20)
    report = source(records)
    cells = data_of(page_html([report]))["cells"]
    ((_, rows),) = series_of(report.frame)
    fit = fit_line(rows, METRICS["train"])
    assert fit.turns is not None
    for place, record in enumerate(records):
        drawn = fit.turns.at[record.cell.configuration.blocks]
        assert cells["train_placed"][place] == pytest.approx(drawn.seconds)
        assert [cells[f"train_{end}"][place] for end in ("low", "high")] == pytest.approx([drawn.low, drawn.high])
        assert cells["train_step_seconds"][place] == pytest.approx(np.median(record.time.train_step_seconds))
    # The machine drifts by 10 %: the median of three samples lies elsewhere.
    assert cells["train_placed"][1] != pytest.approx(cells["train_step_seconds"][1], rel=0.01)


def test_cells_apart_replicates_and_grids_have_the_medians_of_their_samples():
    turned = make_turns(["rescapsnet"])
    again = [one.model_copy(update={"cell": one.cell.model_copy(update={"replicate": 1})}) for one in turned]
    alone = [make_record(blocks=blocks) for blocks in (1, 2, 3)]
    for records in ([*turned, *again], alone):
        assert set(data_of(page_html([source(records)]))["cells"]["train_placed"]) == {None}
    grid = make_varied(lambda at: MIB * at["length"], length=(1, 2), batch_size=(1, 2))
    assert set(placed_times(grid.frame)["train"]) == {None}


def test_figures_of_a_machine_that_nobody_knows_are_a_line_of_their_own():
    known = [make_record(blocks=blocks) for blocks in (1, 2)]
    strange = [make_record(blocks=blocks).model_copy(update={"environment": None}) for blocks in (3, 4)]
    data = data_of(page_html([source([*known, *strange])]))
    assert len(data["lines"]) == 2
    assert data["cells"]["line"] == [0, 0, 1, 1]
    skipped = make_record(blocks=5, status="skipped")
    assert data_of(page_html([source([*known, skipped])]))["cells"]["line"] == [0, 0, 0]


@pytest.mark.parametrize("entry", ["a text", {"cpu": "Xeon", "cuda": [1], "packages": 3}, {"cuda": {"devices": "none"}}, None])
@pytest.mark.parametrize("device", ["cpu", "cuda:x", "cuda:7"])
def test_an_environment_that_somebody_wrote_by_hand(entry, device):
    records = [make_record(blocks=blocks, device=device) for blocks in (1, 2)]
    odd = [Report.of(records, name, environments={"abcd": entry}) for name in ("one", "two")]
    assert "What depth costs" in page_html(odd)


def test_cells_that_failed_are_on_the_page_with_their_error_once():
    records = [make_record("mocapsnet", blocks, status="error") for blocks in (1, 2, 4)]
    html = page_html([source(records, plan=Plan(command="capsbench run --out mine", cells=[]))])
    first, again = re.findall(r'<p class="warning">([^<]*)</p>', html)[-2:]
    assert first == "All 3 cells failed: error: mocapsnet at 1, 2, 4 blocks: it was error"
    assert again == "once this is fixed, this command measures these cells again: capsbench run --out mine --resume"
    plan = Plan(command="capsbench run", cells=[])
    late = [source([make_record(), make_record(blocks=2, status="timeout")], name, plan=plan) for name in "ab"]
    html = page_html(late)
    assert "a: 1 of 2 cells failed: timeout: rescapsnet at 2 blocks: it was timeout" in html
    assert "with a larger --timeout, this command measures these cells again: capsbench run --resume" in html
    assert "cells failed" not in page_html([source([make_record()])])


def test_a_name_that_no_encoding_has(tmp_path):
    path = write_page([source([make_record()], name="caf\udce9")], tmp_path / "page.html")
    assert "caf?" in path.read_text(encoding="utf-8")


def test_where_there_is_no_room_for_all_samples_the_first_are_kept(monkeypatch):
    records = [make_record(blocks=blocks) for blocks in range(1, 30)]
    whole = page_html([source(records)])
    monkeypatch.setattr(build, "_ROOM", len(script_json(data_of(whole))) - 2000)
    cells = data_of(page_html([source(records)]))["cells"]
    assert [len(samples[0]) for samples in cells["samples"]] == [5] * len(records)
    assert cells["train_taken"] == cells["inference_taken"] == [9] * len(records)
    assert "at most 5 raw samples of each time are on this page" in page_html([source(records)])


def test_where_there_is_no_room_at_all_steps_are_not_looked_into(monkeypatch):
    step = StepFigures(retained_by_module={f"module{place}": MIB for place in range(9)})
    records = [make_record(blocks=blocks).model_copy(update={"step": step}) for blocks in (1, 2)]
    assert data_of(page_html([source(records)]))["modules"]["of"] == [0, 0]
    monkeypatch.setattr(build, "_ROOM", 10)
    html = page_html([source(records)])
    assert {name: data_of(html)["modules"][name] for name in ("lists", "of")} == {"lists": [], "of": [-1, -1]}
    assert "no room for what is inside each step" in html
    assert "name fewer reports, or sweep less in one" in html


def test_a_depth_beyond_all_reason_costs_no_time():
    # A list of that many numbers would fill any memory.
    deep = 10**11
    html = page_html([source(make_record(blocks=blocks) for blocks in (1, 2, deep))])
    assert f"Measured at 1, 2, {deep} blocks" in html


def history(*reports, model=lambda _report, _line: "capsnet"):
    """Series of one line of reports: each report names threads, environment and that one's processor of each of its lines."""
    sources = [
        Report.of(
            [
                make_record(model(place, line), blocks, threads=threads).model_copy(
                    update={"environment": key, "started_at": f"2026-01-0{place + 1}T00:00:00+00:00"}
                )
                for line, (threads, key, _) in enumerate(told) for blocks in (1, 2, 3)
            ],
            f"report{place}",
            environments={key: {"cpu": {"model": cpu}} for _, key, cpu in told},
        )
        for place, told in enumerate(reports)
    ]  # fmt: skip
    data = data_of(page_html(sources))
    names = {place: (line["report"], line["threads"], line["environment"]) for place, line in enumerate(data["lines"])}
    return [[names[place] for _, place in pairs] for pairs in data["history"]["series"]]


def test_history_joins_what_is_one_line_but_for_the_machine():
    joined = [("report0", 4, "a"), ("report1", 8, "b")]
    assert history([(4, "a", "one")], [(8, "b", "another")]) == [joined]
    # A commit amid a report: nothing tells its two lines apart, and the first stands for both.
    joined = [("report0", 4, "a1"), ("report1", 4, "b"), ("report2", 4, "c")]
    assert history([(4, "a1", "one"), (4, "a2", "one")], [(4, "b", "one")], [(4, "c", "another")]) == [joined]


def test_history_joins_a_network_under_two_names():
    one, two = (4, "a", "one"), (4, "b", "one")
    names = ["nets:unet", "path/nets.py:unet"]
    assert history([one], [two], model=lambda report, _: names[report]) == [[("report0", 4, "a"), ("report1", 4, "b")]]
    # Of two files with one name in one report, each is joined with itself alone.
    files = ["here/nets.py:unet", "there/nets.py:unet"]
    joined = history([one, one], [two, two], model=lambda _, line: files[line])
    assert joined == [[("report0", 4, "a"), ("report1", 4, "b")]] * 2


def test_history_tells_lines_of_one_report_apart():
    by_threads = [[("report0", 1, "a"), ("report1", 1, "b")], [("report0", 2, "a"), ("report1", 2, "b")]]
    assert history([(1, "a", "one"), (2, "a", "one")], [(2, "b", "one"), (1, "b", "one")]) == by_threads
    by_machine = [[("report0", 4, "a"), ("report1", 4, "c")], [("report0", 4, "b"), ("report1", 4, "d")]]
    assert history([(4, "a", "one"), (4, "b", "two")], [(4, "d", "two"), (4, "c", "one")]) == by_machine


def test_memory_that_falls_is_said_to_change():
    memory = make_record().memory.model_dump()
    records = [
        make_record(blocks=blocks).model_copy(
            update={"memory": MemoryFigures.model_validate(memory | {"retained_bytes": (9 - blocks) * MIB})}
        )
        for blocks in (1, 2, 3)
    ]
    assert "changes its retained memory by <strong>-1.00 MiB</strong> per block" in page_html([source(records)])


def test_a_name_is_written_out_everywhere():
    names = ("mnist", "\u202eset")
    html = page_html([source(make_record("\u202enet", blocks, dataset=name) for blocks in (1, 2) for name in names)])
    for line in data_of(html)["lines"]:
        # Commands are to be copied as they are.
        assert not any("\u202e" in value for name, value in line.items() if isinstance(value, str) and "ommand" not in name)
    answer, _, _ = html.partition('id="filters"')
    assert "\u202e" not in answer
    assert "\\u202enet" in answer


def test_reports_of_one_name_are_with_unique_names():
    assert [one.name for one in with_unique_names([source([]), source([]), source([], "mine (2)")])] == [
        "mine",
        "mine (2)",
        "mine (2) (2)",
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "rescapsnet", "kernel": "reference", "front": "plain"},
        {"model": "mocapsnet", "kernel": "reference", "front": "chunked", "inverse": "exact", "capacity": 2**30},
        {"model": "mocapsnet", "kernel": "published", "memory": "stored", "rule": "published", "inverse": None},
        {"model": "capsnet", "precision": "bf16", "optimizer_step": "backward", "routing": "em", "kernel": "reference"},
        {"model": "rescapsnet", "device": "cuda:predicted", "gpu": "a100", "threads": None},
    ],
)
def test_the_command_of_a_cell_asks_for_that_very_cell(fields):
    configuration = make_configuration(blocks=3, **fields)
    words = cell_words(configuration, plan=Plan(command="", cells=[], samples=7, budget_seconds=2.5))
    assert words[:2] == ["capsbench", "run"]
    given, cells = expanded(words)
    assert cells == [Cell(configuration=configuration)]
    if not configuration.is_predicted():
        assert (given["samples"], given["time_budget"]) == (7, 2.5)


def test_the_papers_ratio_is_held_against_ones_own():
    html = page_html([source(make_record(model, blocks) for model in ("rescapsnet", "mocapsnet") for blocks in (1, 2, 3))])
    rows = re.findall(
        r"<tr><td>([^<]*)</td><td><span class=\"verdict (\w+)\".*?<td class=\"number\">(.*?)</td><td class=\"number\">(.*?)</td>",
        html,
    )
    printed = paper.table("figure4_slopes").set_index(["quantity", "model"])["slope_per_block"]
    assert rows == [
        ("A block costs MoCapsNet less memory than ResCapsNet", "agrees", f"× {3.643 / 174.2:.3g}", "× 0"),
        (
            "and more training time",
            "agrees",
            f"× {printed['train_time', 'mocapsnet'] / printed['train_time', 'capsnet']:.3g}",
            "× 1.5",
        ),
    ]


def test_a_contradiction_is_called_one():
    records = [make_record("rescapsnet", blocks) for blocks in (1, 2, 3)]
    for blocks in (1, 2, 3):
        record = make_record("mocapsnet", blocks)
        memory = record.memory.model_copy(update={"retained_bytes": 50 * MIB * blocks})
        records.append(record.model_copy(update={"memory": memory}))
    assert '<span class="verdict contradicts">contradicts</span>' in page_html([source(records)])


@pytest.mark.parametrize("count", [3, 5, 6, 9, 40])
def test_the_interval_of_a_median_is_that_of_the_sign_test(count):
    samples = np.random.default_rng(count).normal(1, 0.1, count).tolist()
    record = make_record()
    timed = record.model_copy(update={"time": record.time.model_copy(update={"train_step_seconds": samples})})
    cells = data_of(page_html([source([timed])]))["cells"]
    expected = stats.quantile_test(samples, p=0.5).confidence_interval(0.95)
    if count < 6:
        # No interval, rather than one that covers less.
        assert np.isnan(expected.low)
        assert cells["train_low"] == cells["train_high"] == [None]
        assert median_interval(samples) is None
    else:
        assert (cells["train_low"], cells["train_high"]) == ([pytest.approx(expected.low)], [pytest.approx(expected.high)])
        assert median_interval(samples) == tuple(expected)


def test_a_failed_write_leaves_the_earlier_page(tmp_path, monkeypatch):
    path = write_page([source([make_record()])], tmp_path / "index.html")
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_page([source([make_record(blocks=2)])], path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["index.html"]


def test_report_writes_into_the_folder_that_is_given(command, tmp_path):
    kept(tmp_path / "reports", [make_record(blocks=blocks) for blocks in (1, 2)])
    kept(tmp_path / "reports", [make_record("mocapsnet", blocks) for blocks in (1, 2)], "yours")
    result = command("report", "reports")
    assert (result.status, result.stdout.strip(), result.stderr) == (0, "reports/index.html", "")
    data = data_of((tmp_path / "reports" / "index.html").read_text(encoding="utf-8"))
    assert [report["name"] for report in data["reports"]] == ["mine", "yours"]
    # One folder twice is one report; two stand side by side in the folder they share.
    result = command("report", "reports/mine", "reports/mine", "reports/yours")
    assert (result.status, result.stdout.strip()) == (0, str(tmp_path / "reports" / "index.html"))
    assert len(data_of((tmp_path / "reports" / "index.html").read_text(encoding="utf-8"))["reports"]) == 2
    result = command("report", "reports/mine", "--out", "new/page.html")
    assert (result.status, result.stdout.strip()) == (0, "new/page.html")


def test_damaged_files_cost_themselves_alone(command, tmp_path):
    folder = kept(tmp_path, [make_record(blocks=blocks) for blocks in (1, 2)])
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"cell": <b>')
    (folder / "inside").mkdir()
    (folder / "inside" / "timeline.json").write_text("{}")
    (folder / "other").mkdir()
    (folder / "other" / "timeline.json").write_bytes(b"\xff\xfe")
    result = command("report", "mine")
    assert result.status == 0
    assert [line.partition(" is damaged")[0] for line in result.stderr.splitlines()] == [
        "warning: mine/records.jsonl line 3",
        "warning: mine/inside/timeline.json",
        "warning: mine/other/timeline.json",
    ]
    html = (folder / "index.html").read_text(encoding="utf-8")
    assert len(data_of(html)["cells"]["line"]) == 2
    assert "mine/records.jsonl line 3 is damaged" in html


@pytest.mark.parametrize(
    ("arguments", "what", "hint"),
    [
        (
            ("report", "nowhere"),
            "nowhere does not exist",
            "did you mean newer? If not, give a folder that 'capsbench run' has written",
        ),
        (("report", "empty"), "empty holds no records", "give a folder"),
        (("report", "mine", "--out", "empty"), "--out empty is a folder", "name a file, such as empty/index.html"),
        (("report", "mine", "--out", "file/page.html"), "--out file/page.html cannot be written", "choose a file"),
        (("report", "nothing"), "nothing holds no record that can be read", "measure first"),
        (("report", "newer"), "newer/inside/timeline.json has schema version 999", "upgrade capsbench"),
        (("show", "nowhere"), "nowhere does not exist", "did you mean newer? If not, give a folder"),
    ],
)
def test_what_makes_no_sense_is_told_in_two_lines(command, tmp_path, arguments, what, hint):
    kept(tmp_path, [make_record()])
    newer = kept(tmp_path, [make_record()], "newer")
    (newer / "inside").mkdir()
    (newer / "inside" / "timeline.json").write_text('{"schema_version": 999}')
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "records.jsonl").touch()
    result = command(*arguments)
    last = result.stderr.splitlines()[-2:]
    assert result.status == 2
    assert last[0].startswith(f"error: {what}")
    assert last[1].startswith(hint)
    assert "Traceback" not in result.stderr


def test_folders_that_share_only_the_disk_ask_for_a_name(command, tmp_path, monkeypatch):
    kept(tmp_path, [make_record()])
    monkeypatch.setattr(os.path, "commonpath", lambda paths: "/")
    result = command("report", "mine", "mine/../mine")
    assert result.status == 2
    assert result.stderr.splitlines()[0].startswith("error: the folders share no parent but the root")


@pytest.mark.slow
def test_a_run_ends_with_its_page(capsbench, tmp_path):
    result = capsbench(*SMALL, "--device", "cpu:predicted", "--out", "mine")
    assert result.status == 0, result.stderr
    assert "wrote mine/index.html" in result.stderr
    html = (tmp_path / "mine" / "index.html").read_text(encoding="utf-8")
    assert "ResCapsNet (predicted)</b> retains" in html
    assert json.loads((tmp_path / "mine" / ENVIRONMENT).read_text()).keys() == set(data_of(html)["environments"]["keys"])


def test_frames_of_reports_keep_their_names():
    sources = with_unique_names([source([make_record()], "a/b"), source([make_record()], "b")])
    assert frame_of(sources)["report"].tolist() == ["a/b", "b"]
    assert make_frame([make_record()], "a/b")["report"].tolist() == ["b"]


# Timelines.


def test_a_timeline_is_of_the_report_in_whose_folder_it_lies():
    records = [make_record(blocks=blocks) for blocks in (1, 2)]
    look = SavedTimeline(make_timeline(records[1].cell.configuration), "mine/inside/timeline.json")
    data = data_of(page_html([source(records, "yours"), source(records, timelines=[look])]))
    assert [(one["report"], one["path"], one["cells"]) for one in data["timelines"]] == [("mine", look.path, [3])]
    # One that lies in no report is of the only one, and of nobody where there are two.
    assert data_of(page_html([source(records)], [look]))["timelines"][0]["cells"] == [1]
    assert data_of(page_html([source(records), source(records, "yours")], [look]))["timelines"][0]["cells"] == []


def test_timelines_are_looked_for_in_each_report(tmp_path):
    configuration = make_record().cell.configuration
    outer = kept(tmp_path, [make_record()], "outer")
    places = [outer / "a", kept(tmp_path / "outer", [make_record()], "inner") / "b", tmp_path / "beside"]
    for place in places:
        place.mkdir()
        (place / "timeline.json").write_text(make_timeline(configuration).model_dump_json())
    sources = reports_below(tmp_path)
    loose, damaged = loose_timelines([tmp_path], sources)
    assert damaged == []
    found = {one.name: [look.path for look in one.timelines] for one in sources}
    assert found == {"outer": [str(places[0] / "timeline.json")], "inner": [str(places[1] / "timeline.json")]}
    assert [look.path for look in loose] == [str(places[2] / "timeline.json")]


def spoiled(**changes):
    data = json.loads(make_timeline(make_configuration()).model_dump_json())
    return json.dumps(data | changes)


PHASE = {"first_event": 0, "last_event": 6, "start_bytes": 0, "end_bytes": 0, "peak_bytes": 0}
LATE = PHASE | {"first_event": 6}
PEAK = json.loads(spoiled())["peak"]
LISTS = json.loads(spoiled())["bytes_by_category"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "why"),
    [
        (spoiled(peak=PEAK | {"event": 7}), "peak.event is 7 of 7 events"),
        (spoiled(peak=PEAK | {"event": -1}), "peak.event is -1"),
        (spoiled(bytes_by_category=LISTS | {"\x1b[31mplastic": [0] * 7}), "bytes_by_category does not have just"),
        (spoiled(bytes_by_category={}), "bytes_by_category does not have just"),
        (spoiled(bytes_by_category=LISTS | {"state": [0]}), "lists of different lengths"),
        (spoiled(bytes_by_category={name: [] for name in LISTS}), "or of none"),
        (spoiled(bytes_by_category=LISTS | {"state": [2**62] * 7}), "an impossibly large one"),
        (spoiled(bytes_by_category=LISTS | {"state": [10**30] * 7}), "31 digits is too large"),
        (spoiled(bytes_by_category=LISTS | {"state": [-1] * 7}), "negative number of bytes"),
        (spoiled(phases={}), "phases are not forward, backward, optimizer"),
        (spoiled(phases=dict.fromkeys(STEP_PHASES, PHASE)), "phases.backward runs from event 0 to 6"),
        (spoiled(phases={"forward": PHASE, "backward": LATE, "optimizer": LATE | {"last_event": 9}}), "runs"),
        (spoiled(phases={name: PHASE | {"last_event": 0} for name in STEP_PHASES}), "end at event 0 of 7"),
        ("[" * 100_000, "nested too deeply"),
        ('{"kind": "measured"', "is damaged"),
        ("[]", "is damaged"),
        ("1" * 5000, "is damaged"),
    ],
)  # fmt: skip
def test_a_timeline_that_cannot_be_costs_itself_alone(command, tmp_path, text, why):
    folder = kept(tmp_path, [make_record(blocks=blocks) for blocks in (1, 2)])
    (folder / "inside").mkdir()
    (folder / "inside" / "timeline.json").write_text(text)
    result = command("report", "mine")
    (warning,) = result.stderr.splitlines()
    assert (result.status, result.stdout) == (0, "mine/index.html\n")
    assert warning.startswith("warning: mine/inside/timeline.json is damaged (")
    assert why in warning
    assert "\x1b" not in warning
    html = (folder / "index.html").read_text(encoding="utf-8")
    assert "mine/inside/timeline.json is damaged" in html
    assert data_of(html)["timelines"] == []


# Commands.


def cell_words(configuration, replicate=0, plan=None):
    return (series_command(configuration.model_dump(), plan) + cell_arguments(("blocks",), configuration, replicate)).split()


def expanded(words):
    """The parser's result for a command line, and the cells that it asks for."""
    with click.Context(cli) as context:
        given = subcommands()[words[1]].make_context(words[1], words[2:], parent=context).params
    return given, asked_cells({"repeats": 1} | given)


COMMANDED = [
    {"model": "capsnet-1conv", "blocks": 0, "capsules": None, "memory": None, "kernel": "reference"},
    {"model": "capsnet-2conv", "blocks": 0, "capsules": None, "memory": None, "kernel": "published", "capacity": 2**33},
    {"model": "mocapsnet", "blocks": 5, "gamma": 0.95, "memory": "reversible-kept", "inverse": "segmented"},
    {"model": "mocapsnet", "blocks": 3, "device": "cpu:predicted", "capacity": 2**30 + 1},
    {"model": "rescapsnet", "blocks": 2, "device": "cuda:predicted", "gpu": "a100", "threads": None, "capacity": 24 * 2**30},
]


def test_the_command_of_a_cell_measures_what_its_plan_did():
    configuration = made({"model": "mocapsnet", "blocks": 3})
    given, _ = expanded(cell_words(configuration, plan=Plan(command="", cells=[], passes=["memory"])))
    assert given["only"] == "memory"
    assert expanded(cell_words(configuration, plan=Plan(command="", cells=[])))[0]["only"] is None


@pytest.mark.parametrize("fields", COMMANDED)
@pytest.mark.parametrize("replicate", [0, 2])
def test_the_command_of_a_cell_expands_into_it_and_the_replicates_before(fields, replicate):
    configuration = made(fields)
    # What `capsbench predict --out` plans samples nothing.
    plan = Plan(command="", cells=[], budget_seconds=0)
    _, cells = expanded(cell_words(configuration, replicate, plan))
    assert cells == [Cell(configuration=configuration, replicate=one) for one in range(replicate + 1)]


@pytest.mark.parametrize("fields", COMMANDED)
def test_the_command_of_a_timeline_asks_for_that_very_step(fields):
    configuration = made(fields)
    words = timeline_command(configuration.model_dump()).split()
    _, cells = expanded([*words, *cell_arguments(("blocks",), configuration).split()])
    assert cells == [Cell(configuration=configuration)]


def made(fields):
    name = fields["model"]
    extra = {} if name in RETAINED_PER_BLOCK else {"routing": "rba", "iterations": 3, "front": "plain"}
    return make_configuration(**extra | fields)


def test_records_that_do_not_say_how_their_convolutions_ran_ran_them_plainly():
    configuration = make_configuration(kernel="reference", front=None)
    _, (cell,) = expanded(cell_words(configuration))
    assert cell.configuration == configuration.model_copy(update={"front": "plain"})


# What is shown with a comparison.


def test_what_compare_and_check_remark_is_on_the_page():
    def report(name, day, records, machine="Some CPU"):
        records = [one.model_copy(update={"started_at": f"2026-01-0{day}T00:00:00+00:00"}) for one in records]
        return Report.of(records, name, environments={"abcd": {"commit": name, "cpu": {"model": machine}}})

    first = [make_record(model, blocks) for model in ("rescapsnet", "capsnet") for blocks in (1, 2, 3, 4)]
    second = [make_record("rescapsnet", blocks) for blocks in (1, 2, 3)] + [make_record("rescapsnet", 4, status="error")]
    second += [make_record("mocapsnet", blocks) for blocks in (1, 2, 3)]
    data = data_of(page_html([report("first", 1, first), report("second", 2, second, "Other CPU")]))
    (told,) = data["comparisons"]
    assert any(text.startswith("worse: ResCapsNet: 4 blocks: error where it was ok") for text in told["remarks"])
    assert "only in the first: CapsNet" in told["remarks"]
    assert "only in the second: MoCapsNet" in told["remarks"]
    before, after = data["history"]["points"]
    assert before["remarks"] == []
    assert any(text.startswith("left out: peak") and "Other CPU, Some CPU before" in text for text in after["remarks"])
    assert "note: not in the baseline: MoCapsNet" in after["remarks"]
    # Numbers as well as texts: what is downloaded needs no parsing.
    rows = [dict(zip(told["columns"], row, strict=True)) for row in told["rows"]]
    slope = next(row for row in rows if row["figure"] == "retained per block")
    assert (slope["unit"], slope["before_value"], slope["after_value"]) == ("bytes", 10 * MIB, 10 * MIB)
    assert slope["difference_value"] == 0


# How large it may be.


def test_a_timeline_of_the_page_names_the_classes_of_modules():
    record = make_record()
    timeline = make_timeline(record.cell.configuration)
    named = timeline.model_copy(update={"module_classes": {"first": "Linear", "primary": "Conv2d"}})
    for one, expected in ((named, ("first (Linear)", "primary (Conv2d)")), (timeline, ("first", "primary"))):
        (shown,) = data_of(page_html([source([record], timelines=[SavedTimeline(one, "timeline.json")])]))["timelines"]
        assert (shown["modules"][0][0], shown["peak"]["module"]) == expected


def test_modules_that_are_not_named_are_in_the_sum():
    retained = {f"name{chr(97 + place)}": place + 1 for place in range(25)}
    record = make_record().model_copy(update={"step": StepFigures(retained_by_module=retained)})
    timeline = make_timeline(record.cell.configuration).model_copy(update={"retained_by_module": retained})
    data = data_of(page_html([source([record], timelines=[SavedTimeline(timeline)])]))
    for told in (data["modules"]["lists"][0], data["timelines"][0]["modules"]):
        assert len(told) == 21
        assert told[-1] == [None, 1 + 2 + 3 + 4 + 5, 5]
        assert sum(nbytes * count for _, nbytes, count in told[:-1]) + told[-1][1] == sum(retained.values())


def test_long_messages_in_any_script_leave_the_page_small():
    records = [
        make_record(blocks=blocks, status="error").model_copy(
            update={"message": f"{blocks} " + "€" * 30_000, "notes": ["漢" * 5000]}
        )
        for blocks in range(1, 1500)
    ]
    html = page_html([source(records, notes=["ü" * 100_000] * 500)])
    assert len(html.encode()) < 6_000_000
    assert "characters are cut" in html
    message = data_of(html)["texts"][data_of(html)["cells"]["message"][7]]
    assert message.startswith("8 €€€")
    assert message.endswith("…")
    assert "and 480 more" in html


def test_many_large_timelines_are_shown_as_far_as_there_is_room():
    records = [make_record(blocks=blocks) for blocks in range(1, 200)]
    names = list(LISTS)

    def long(record):
        lists = {name: [10**12 + place for place in range(3000)] for name in names}
        phases = {
            name: StepPhase(
                first_event=1000 * row, last_event=1000 * (row + 1) - (row == 2), start_bytes=0, end_bytes=0, peak_bytes=0
            )
            for row, name in enumerate(STEP_PHASES)
        }
        whole = make_timeline(record.cell.configuration).model_dump()
        notes = ["€" * 10_000] * 100
        return SavedTimeline(Timeline.model_validate(whole | {"bytes_by_category": lists, "phases": phases, "notes": notes}))

    html = page_html([source(records, timelines=[long(record) for record in records[:60]])])
    shown = len(data_of(html)["timelines"])
    assert 1 < shown < 24
    assert f"{shown} of 60 timelines are on this page" in html
    assert len(html.encode()) < 6_000_000


def test_a_prediction_was_not_measured():
    record = make_record("mocapsnet", 2, device="cpu:predicted").model_copy(update={"kind": "predicted", "time": None})
    html = page_html([source([record])])
    assert "was predicted at 2 blocks only, which gives no slope" in html
    assert "measured at" not in html


def test_what_has_no_blocks_has_no_slope():
    html = page_html([source([make_record("capsnet-1conv", 0), make_record("capsnet-2conv", 0, status="oom")])])
    assert "has no blocks, and so no slope: retained for backward" in html
    assert "has no figures. Out of memory." in html


def costs_of(records, plan=None):
    """The heads of the page's first table, and the words of its cells by row."""
    html = page_html([source(records, plan=plan)])
    (table,) = re.findall(r'<table class="plain costs">.*?</table>', html, re.DOTALL)
    heads, body = table.split("</thead>")
    rows = [re.findall(r"<t[hd][ >].*?</t[hd]>", row, re.DOTALL) for row in body.split("<tr ")[1:]]

    def words(text):
        return " ".join(re.sub(r"<[^>]+>", " ", text).split())

    return re.findall(r'scope="col">([^<]+)<', heads), {words(row[0]): [words(cell) for cell in row[1:]] for row in rows}


def disturbed(record, *names):
    return record.model_copy(update={"time": record.time.model_copy(update={"noise": list(names)})})


def test_signs_in_the_first_table_are_explained_below_it():
    quiet = [make_record("rescapsnet", blocks) for blocks in (1, 2, 4)]
    noisy = [disturbed(make_record("mocapsnet", blocks), "load", "spread") for blocks in (1, 2, 4)]
    _, rows = costs_of([*quiet, *noisy])
    assert [cells[2] for name, cells in rows.items() if name.startswith("MoCapsNet")] == ["30.0 ms~ × 1.5"]
    assert (
        "× is the ratio to ResCapsNet’s slope. ~ disturbed by other work on the machine and samples that differ widely."
        in page_html([source([*quiet, *noisy])])
    )
    alone = page_html([source(quiet)])
    assert "× is the ratio" not in alone
    assert "~ noisy" not in alone


def test_a_change_that_cannot_be_measured_has_its_bound_on_a_line_of_its_own():
    noise = (0.3, -0.9, 0.5, 0.2)
    steps = [disturbed(make_record(blocks=blocks), "load") for blocks in range(1, 5)]
    records = [
        one.model_copy(update={"time": one.time.model_copy(update={"train_step_seconds": [1 + 0.2 * off] * 9})})
        for one, off in zip(steps, noise, strict=True)
    ]
    _, rows = costs_of(records)
    (cells,) = rows.values()
    assert re.fullmatch(r"no change measurable within ± [\d.]+ (ms|s)~", cells[2])
    assert re.search(r"no change measurable<br>within ± ", page_html([source(records)]))


def test_the_axes_of_a_grid_are_named_below_the_costs():
    report = make_varied(lambda at: 1000 * at["length"] * at["blocks"], length=(16, 32, 64), blocks=(1, 2, 4))
    heads, rows = costs_of(report.records, report.plan)
    assert heads[1] == "retained for backward"
    assert {cells[0].split(" ", 2)[2] for cells in rows.values()} == {"per token", "per block"}


def test_predictions_next_to_measurements_say_so_once():
    measured = [make_record(blocks=blocks) for blocks in (1, 2)]
    predicted = [
        make_record(blocks=blocks, device="cpu:predicted").model_copy(update={"kind": "predicted", "time": None})
        for blocks in (1, 2)
    ]
    html = page_html([source([*measured, *predicted])])
    assert "All lines at 1, 2 blocks: Fashion-MNIST sample, batch 4, " in html
    _, rows = costs_of([*measured, *predicted])
    assert sorted(rows) == ["ResCapsNet (predicted) cpu", "ResCapsNet Measured, Some CPU, 2 threads"]


def test_of_reports_of_unknown_time_the_first_that_was_named_is_the_older():
    before, after = (
        source([make_record(blocks=blocks, batch_size=batch) for blocks in (1, 2)], name=name)
        for name, batch in (("z", 4), ("a", 4))
    )
    data = data_of(page_html([before, after]))
    assert data["latest"] == "a"
    assert [point["name"] for point in data["history"]["points"]] == ["z", "a"]


def test_a_value_without_a_slope_is_not_under_the_unit_of_one():
    heads, rows = costs_of([make_record(blocks=1), make_record(blocks=2), make_record("capsnet-1conv", 0)])
    assert heads[1] == "retained for backward per block"
    (level,) = [cells for name, cells in rows.items() if not name.startswith("ResCapsNet")]
    assert level[0] == "- 1.00 MiB in all, no blocks"
    # A series of one depth, together with one that has a slope.
    heads, rows = costs_of([make_record(blocks=1), make_record(blocks=2), make_record("mocapsnet", 3)])
    (one,) = [cells for name, cells in rows.items() if name.startswith("MoCapsNet")]
    assert one[0] == "- 1.00 MiB in all, at 3 blocks"
    # Where no series has a slope, the heads have no unit of one.
    heads, rows = costs_of([make_record("mocapsnet", 3)])
    assert heads[1] == "retained for backward"
    assert next(iter(rows.values()))[0] == "1.00 MiB at 3 blocks"


def test_a_depth_that_ran_out_of_memory_between_others_is_named():
    records = [make_record(blocks=1), make_record(blocks=2, status="oom"), make_record(blocks=3)]
    assert "Out of memory at 2 blocks." in page_html([source(records)])
    assert "Out of memory from 2 blocks on." in page_html([source(records[:2])])


def continued(html):
    """The lines of the first series' memory beyond what was measured, as intercept and slope."""
    return [(term["intercept"], term["slope"]) for term in data_of(html)["lines"][0]["continued"]["terms"]]


def test_memory_is_continued_along_what_is_alive_at_the_end_of_each_phase():
    # The state is 40 MiB and half a MiB a block, the optimizer's twice that, and the gradients as large as the state.
    html = page_html([source([make_record("rescapsnet", blocks) for blocks in (1, 2, 4)])])
    assert continued(html) == [(162 * MIB, 22 * MIB), (121 * MIB, 11.5 * MIB), (160 * MIB, 2 * MIB)]
    # What is retained jumps, so that nobody knows what more blocks retain.
    records = [make_record("rescapsnet", blocks) for blocks in (1, 2, 3, 4)]
    memory = records[-1].memory.model_copy(update={"retained_bytes": 900 * MIB})
    jumped = records[-1].model_copy(update={"memory": memory})
    assert data_of(page_html([source([*records[:-1], jumped])]))["lines"][0]["continued"] is None


@pytest.mark.slow
def test_memory_is_continued_to_what_is_traced():
    configurations = {blocks: make_configuration("rescapsnet", blocks, kernel="published") for blocks in (1, 2, 3, 36)}
    traced = {blocks: predict_memory(one, trace_for(one)).memory for blocks, one in configurations.items()}
    small = [
        Record(cell=Cell(configuration=configurations[blocks]), status="ok", kind="predicted", memory=traced[blocks])
        for blocks in (1, 2, 3)
    ]
    terms = continued(page_html([source(small)]))
    least = max(intercept + slope * 36 for intercept, slope in terms)
    assert 0.95 * traced[36].peak_allocated_bytes < least <= traced[36].peak_allocated_bytes
    # The line of the peak alone is not enough.
    intercept, slope = terms[0]
    assert intercept + slope * 36 < least
