"""`capsbench.run` and `capsbench.predict` from Python; and how often one run reads its records and fits its slopes."""

import json
import logging
import subprocess
import sys

import pytest

import capsbench
from capsbench.cases.factories import BUILT_IN
from capsbench.errors import ConfigurationError
from capsbench.records import Cell
from capsbench.report import Report
from capsbench.sweep import verbs
from helpers.made import make_record

SMALL = {"batch_size": 1, "capsules": 2, "kernel": "reference"}
TYPED = ["--batch-size", "1", "--capsules", "2", "--kernel", "reference", "--device", "cpu:predicted"]

_READ: list[str] = []
_LISTENS = []


def _hear(event, arguments):
    if event == "open" and isinstance(arguments[1], str) and "r" in arguments[1] and str(arguments[0]).endswith("records.jsonl"):
        _READ.append(str(arguments[0]))


@pytest.fixture
def counted(monkeypatch):
    """Numbers of reads of records.jsonl, and tables of slopes."""
    from capsbench.stats import slopes

    if not _LISTENS:
        sys.addaudithook(_hear)
        _LISTENS.append(True)
    _READ.clear()
    tables = []
    real = slopes._references
    monkeypatch.setattr(slopes, "_references", lambda *arguments: (tables.append(1), real(*arguments))[1])
    return _READ, tables


def test_a_run_reads_its_records_once_at_most_and_fits_its_slopes_once(command, counted, monkeypatch):
    def predicted(cell):
        made = make_record(cell.configuration.model, cell.configuration.blocks)
        return made.model_copy(update={"cell": cell, "kind": "predicted"})

    monkeypatch.setattr("capsbench.sweep.local.predict_cell", predicted)
    read, tables = counted
    asked = ["run", "--models", "rescapsnet,mocapsnet", "--out", "mine", *TYPED]
    assert command(*asked, "--depth", "1,2").status == 0
    assert (len(read), len(tables)) == (0, 1)
    assert command(*asked, "--depth", "1-3", "--resume").status == 0
    assert (len(read), len(tables)) == (1, 2)
    assert len(Report("mine").records) == 6
    assert len(read) == 2, "reads are counted"


@pytest.mark.slow
def test_a_run_from_python(tmp_path, monkeypatch, counted):
    read, tables = counted
    monkeypatch.chdir(tmp_path)
    report = capsbench.run(["rescapsnet", "mocapsnet"], depths=range(1, 3), out="mine", device="cpu:predicted", **SMALL)
    assert report.folder == tmp_path / "mine"
    assert sorted(set(report.frame["model"])) == ["mocapsnet", "rescapsnet"]
    assert set(report.frame["blocks"]) == {1, 2}
    assert set(report.slopes["metric"]) >= {"retained", "peak"}
    assert report.write()
    assert (len(read), len(tables)) == (0, 1)
    assert Report("mine").records == report.records
    assert Report("mine").plan == report.plan
    call = "capsbench.run(['rescapsnet', 'mocapsnet'], depths=[1, 2], out='mine', device='cpu:predicted', "
    assert report.plan.command == call + "batch_size=1, capsules=2, kernel='reference')"
    # What the plan says can be run again, and finds nothing left to do.
    with pytest.raises(ConfigurationError, match=r"`out` .*mine already holds a report\nadd `resume`"):
        eval(report.plan.command, {"capsbench": capsbench})
    again = capsbench.run("all", depths="1-2", out="mine", resume=True, device="cpu:predicted", **SMALL)
    assert len(again.records) == 6
    assert again.records[:4] == report.records


def test_a_run_tells_its_watcher_and_the_log(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("capsbench.sweep.local.predict_cell", lambda cell: make_record(cell.configuration.model, 1))
    with caplog.at_level(logging.INFO, logger="capsbench"):
        capsbench.run("rescapsnet", depths=1, out=tmp_path / "mine", device="cpu:predicted")
    assert "1 of 1 cells to measure" in caplog.text
    assert "rescapsnet 1, sample, batch 4, recompute, threads 2: ok" in caplog.text


@pytest.mark.slow
def test_a_run_measures(tmp_path):
    report = capsbench.run("rescapsnet", depths=1, out=tmp_path / "mine", device="cpu", only="memory", **SMALL)
    (record,) = report.records
    assert (record.status, record.kind, record.time) == ("ok", "measured", None)
    assert record.memory.retained_bytes > 0
    assert set(report.environments) == {record.environment}


@pytest.mark.slow
def test_a_prediction_from_python(tmp_path):
    report = capsbench.predict("mocapsnet", depths=[2, 1], gpu="a100", **SMALL)
    assert "in memory" in repr(report)
    assert report.frame["blocks"].tolist() == [1, 2]
    assert set(report.frame["kind"]) == {"predicted"}
    assert len(set(report.frame["gpu"])) == 1
    assert report.plan.command.startswith("capsbench.predict('mocapsnet', depths=[1, 2], gpu='a100'")
    kept = capsbench.predict("mocapsnet", depths=2, gpu="a100", out=tmp_path / "kept", **SMALL)
    assert [one.memory for one in Report(tmp_path / "kept").records] == [one.memory for one in report.records[1:]]
    assert kept.figure4().axes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"models": []}, "`models` names no network"),
        ({"models": "nothing"}, "models"),
        ({"models": lambda: None}, "has no name"),
        ({"depths": 0}, "`depth` '0' begins below 1"),
        ({"depths": "8-1"}, "runs backwards"),
        ({"kernel": "fast"}, "`kernel` 'fast' is not known"),
        ({"kernels": "auto"}, "takes no argument `kernels`"),
        ({"kernels": "auto"}, "did you mean kernel? If not, it takes models, depths, vary, basis, settings, out, resume, only, "),
        ({"shape": "3x16x16", "image_shape": "3x8x8"}, "`shape` and `image_shape` are two names of one option"),
        ({"samples": 2}, r"`samples` 2 cannot be used"),
        ({"time_budget": -1}, r"`time_budget` -1 cannot be used"),
        ({"slope_share": 0}, r"`slope_share` 0 cannot be used"),
        ({"only": "space"}, "`only` 'space' cannot be used"),
        ({"device": "tpu"}, "`device` 'tpu' is not known"),
        ({"gpu": "h100"}, "`gpu` h100 cannot be combined with `device` auto"),
        ({"batch_size": 5000}, "`batch_size` 5000"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError) as raised:
        capsbench.run(**{"models": "rescapsnet", "depths": 1} | arguments)
    assert words in str(raised.value)
    assert not any(tmp_path.iterdir())


def test_a_quick_prediction_of_another_shape_has_the_options_of_the_command_line(command):
    report = capsbench.predict("rescapsnet", quick=True, shape=(3, 16, 16), gpu="a100", capsules=4)
    typed = command(
        "predict", "--models", "rescapsnet", "--quick", "--shape", "3x16x16", "--gpu", "a100", "--capsules", 4, "--json"
    )
    cells = [Cell.model_validate(one["cell"]) for one in json.loads(typed.stdout)]
    assert [record.cell for record in report.records] == cells
    assert [(cell.configuration.blocks, cell.configuration.batch_size) for cell in cells] == [(1, 16), (2, 16), (3, 16)]


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_device_to_predict_for_is_named_as_for_run_too(kind, command):
    plain, ending = (capsbench.predict("rescapsnet", depths=1, device=device, **SMALL) for device in (kind, f"{kind}:predicted"))
    assert plain.records[0].cell == ending.records[0].cell
    options = ("--batch-size", 1, "--capsules", 2, "--kernel", "reference", "--depth", 1, "--device", f"{kind}:predicted")
    typed = command("predict", "--models", "rescapsnet", *options, "--json")
    assert [Cell.model_validate(one["cell"]) for one in json.loads(typed.stdout)] == [plain.records[0].cell]


def test_an_argument_of_run_is_explained_where_a_prediction_has_none():
    with pytest.raises(ConfigurationError, match="takes no argument `samples`: it measures nothing\nleave it out"):
        capsbench.predict("rescapsnet", depths=1, samples=-1)


def test_a_function_of_a_module_is_its_name():
    assert verbs._names([make_record, "all", "mocapsnet"]) == ["helpers.made:make_record", "capsnet", "rescapsnet", "mocapsnet"]
    assert all(name in BUILT_IN for name in verbs._names("all"))


def test_the_package_is_a_command():
    done = subprocess.run([sys.executable, "-m", "capsbench", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("capsbench, version ")


def test_a_report_needs_no_torch_to_be_imported():
    code = "import sys, capsbench; capsbench.Report('x'); print(sorted({'torch', 'matplotlib', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_resume_of_a_table_needs_one_that_was_begun(command, tmp_path):
    result = command("reproduce", "table1", "--resume", "--dry-run", "--dataset", "mnist", "--out", "table")
    assert result.status == 2
    assert "--resume: there is nothing to resume in table\nleave --resume out to begin" in result.stderr
    (tmp_path / "table" / "runs").mkdir(parents=True)
    assert command("reproduce", "table1", "--resume", "--dry-run", "--dataset", "mnist", "--out", "table").status == 0
