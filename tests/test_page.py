"""The page of reports as a file: what is in it, where it is written, and what it is written from."""

import json
import os
import re

import click
import pytest
from conftest import MIB, make_configuration, make_frame, make_record
from hypothesis import given
from hypothesis import strategies as st

from capsbench import paper
from capsbench.analysis.intervals import median_interval, resampled_medians
from capsbench.cli.commands import cli, sweep_of
from capsbench.records import Plan
from capsbench.report.page import Source, build, page_html, write_page
from capsbench.report.page.build import script_json
from capsbench.report.page.commands import line_command
from capsbench.report.page.source import told_apart
from capsbench.store import ENVIRONMENT, Store

SMALL = ("run", "--models", "rescapsnet", "--depth", "1,2", "--batch-size", "1", "--capsules", "2", "--kernel", "reference")


def source(records, name="mine", **more):
    return Source(name, list(records), {"abcd": {"commit": "abc1234", "cpu": {"model": "Some CPU"}}}, None, **more)


def data_of(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def kept(folder, records, name="mine"):
    """A report on the disk."""
    store = Store(folder / name)
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
    odd = [Source(name, records, {"abcd": entry}) for name in ("one", "two")]
    assert "What depth costs" in page_html(odd)


def test_a_name_that_no_encoding_has(tmp_path):
    path = write_page([source([make_record()], name="caf\udce9")], tmp_path / "page.html")
    assert "caf?" in path.read_text(encoding="utf-8")


def test_where_there_is_no_room_for_all_samples_the_first_are_kept(monkeypatch):
    records = [make_record(blocks=blocks) for blocks in range(1, 30)]
    whole = page_html([source(records)])
    monkeypatch.setattr(build, "_ROOM", len(script_json(data_of(whole))) - 2000)
    cells = data_of(page_html([source(records)]))["cells"]
    assert [len(samples[0]) for samples in cells["samples"]] == [5] * len(records)
    assert cells["taken"] == [9] * len(records)


def test_reports_of_one_name_are_told_apart():
    assert [one.name for one in told_apart([source([]), source([]), source([], "mine (2)")])] == [
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
    from capsbench.sweep.plan import expand

    configuration = make_configuration(blocks=3, **fields)
    words = line_command(configuration.model_dump(), Plan(command="", cells=[], samples=7, budget_seconds=2.5)).split()
    assert words[:2] == ["capsbench", "run"]
    with click.Context(cli) as context:
        given = cli.commands["run"].make_context("run", [*words[2:], "--depth", "3"], parent=context).params
    assert [cell.configuration for cell in expand(sweep_of(given))] == [configuration]
    assert given["samples"] == 7
    assert given["time_budget"] == 2.5


def test_the_papers_ratio_is_held_against_ones_own():
    html = page_html([source(make_record(model, blocks) for model in ("rescapsnet", "mocapsnet") for blocks in (1, 2, 3))])
    rows = re.findall(
        r"<tr><td>(.*?)</td><td class=\"number\">(.*?)</td><td class=\"number\">(.*?)</td>.*?verdict (\w+)", html, re.DOTALL
    )
    printed = paper.table("figure4_slopes").set_index(["quantity", "model"])["slope_per_block"]
    assert rows == [
        ("A block costs MoCapsNet less memory than ResCapsNet", f"× {3.643 / 174.2:.3g}", "× 0", "agrees"),
        (
            "and more training time",
            f"× {printed['train_time', 'mocapsnet'] / printed['train_time', 'capsnet']:.3g}",
            "× 1.5",
            "agrees",
        ),
    ]


def test_a_contradiction_is_called_one():
    records = [make_record("rescapsnet", blocks) for blocks in (1, 2, 3)]
    for blocks in (1, 2, 3):
        record = make_record("mocapsnet", blocks)
        memory = record.memory.model_copy(update={"retained_bytes": 50 * MIB * blocks})
        records.append(record.model_copy(update={"memory": memory}))
    assert '<span class="verdict contradicts">contradicts</span>' in page_html([source(records)])


@pytest.mark.parametrize("count", [5, 6, 9, 40])
def test_the_interval_of_a_median_is_that_of_its_resamples(count):
    import numpy as np

    random = np.random.default_rng(count)
    samples = random.normal(1, 0.1, count).tolist()
    low, high = median_interval(samples)
    drawn = resampled_medians(samples, random)
    assert low <= np.percentile(drawn, 2.5) + 1e-12
    assert high >= np.percentile(drawn, 97.5) - 1e-12
    ordered = sorted(samples)
    # And no wider than one sample to each side.
    assert ordered.index(low) >= np.searchsorted(ordered, np.percentile(drawn, 2.5)) - 1
    assert ordered.index(high) <= np.searchsorted(ordered, np.percentile(drawn, 97.5)) + 1
    assert median_interval(samples[:2]) is None


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
        (("report", "nowhere"), "nowhere does not exist", "give a folder that 'capsbench run' has written"),
        (("report", "empty"), "empty holds no records", "give a folder"),
        (("report", "mine", "--out", "empty"), "--out empty is a folder", "name a file, such as empty/index.html"),
        (("report", "mine", "--out", "file/page.html"), "--out file/page.html cannot be written", "choose a file"),
        (("report", "nothing"), "nothing holds no record that can be read", "measure first"),
        (("report", "newer"), "newer/inside/timeline.json has schema version 999", "upgrade capsbench"),
        (("show", "nowhere"), "nowhere does not exist", "give a folder"),
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
    assert result.stderr.splitlines()[0].startswith("error: the folders share no other than the root")


@pytest.mark.slow
def test_a_run_ends_with_its_page(capsbench, tmp_path):
    result = capsbench(*SMALL, "--device", "cpu:predicted", "--out", "mine")
    assert result.status == 0, result.stderr
    assert "wrote mine/index.html" in result.stderr
    html = (tmp_path / "mine" / "index.html").read_text(encoding="utf-8")
    assert "ResCapsNet (predicted)</b> retains" in html
    assert json.loads((tmp_path / "mine" / ENVIRONMENT).read_text()).keys() == set(data_of(html)["environments"]["keys"])


def test_frames_of_reports_keep_their_names():
    from capsbench.report.page.source import frame_of

    sources = told_apart([source([make_record()], "a/b"), source([make_record()], "b")])
    assert frame_of(sources)["report"].tolist() == ["a/b", "b"]
    assert make_frame([make_record()], "a/b")["report"].tolist() == ["b"]
