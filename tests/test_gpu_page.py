"""The page of a day with a GPU, made from results that nobody measured; and the arithmetic behind them."""

import gzip
import json
import shutil
import subprocess
import time
import zipfile

import pytest

from benchmarks.gpu import suite
from benchmarks.gpu.bounds import least_bytes, least_operations
from benchmarks.gpu.cards import PAGE, RESULTS, page, table, write
from benchmarks.gpu.child import Bench
from benchmarks.gpu.day_reports import plan_of
from benchmarks.gpu.expected import Expectation, all_expectations, launches_expected, per_block, within
from benchmarks.gpu.foretold import card_named, compared
from benchmarks.gpu.packages import missing, unpack
from benchmarks.gpu.parts import SIZES
from benchmarks.gpu.results import PartResults, replace
from benchmarks.gpu.stopwatch import account, timed
from benchmarks.launches import STACKS
from benchmarks.layers import Layer
from capsbench.records import MemoryFigures
from helpers import ROOT
from helpers.commands import wait_for, written
from helpers.made import MIB, make_record

LONG = 1000.0

ENVIRONMENT = {
    "python": "3.12.1",
    "packages": {"torch": "2.11.0", "triton": "3.6.0"},
    "cuda": {"driver": "580.1", "runtime": "13.0", "cudnn": 91000},
}


def day(folder, card="NVIDIA H100 80GB HBM3", device="cuda"):
    """The folder of a day with three parts."""
    replace(folder / "card.json", {"card": card, "date": "2026-11-28", "device": device, "environment": ENVIRONMENT})
    cells = {
        f"rescapsnet {blocks}, mnist, published": {"retained_bytes": round(retained * MIB), "peak_allocated_bytes": peak * MIB}
        for blocks, retained, peak in ((1, 100.0, 2914), (8, 616.6, 3500))
    }
    times = {"rescapsnet 1, mnist, published": 20.5, "rescapsnet 8, mnist, published": 41.25}
    PartResults(folder, "table4").update(status="done", message="", seconds=99.6, items={**cells, "times mnist": times})
    launches = {"forward": 4, "forward, copies": 0, "backward": 8, "backward, copies": 1}
    failed = {"error": "RuntimeError: an | in a text", "call": "abcd"}
    items = {"launches, ResCapsNet, stored": launches, "first, rba": failed}
    PartResults(folder, "kernels").update(status="failed", message="exit status 1", seconds=3.0, items=items)
    peak = {"predicted": 10 * MIB, "measured": 8 * MIB, "certainty": "modelled"}
    PartResults(folder, "predicted").update(
        status="done", message="", seconds=3.0, items={"lstm, fp32": {"peak allocated": peak}}
    )
    return folder


def lines_of(text, word):
    return [line for line in text.splitlines() if word in line]


def test_the_page_has_what_was_found_beside_what_was_expected(tmp_path):
    out, project = tmp_path / "out", tmp_path / "project"
    out.mkdir()
    assert write(day(out), project) == 0
    text = (project / PAGE).read_text()
    assert "## NVIDIA H100 80GB HBM3" in text
    assert "2026-11-28; driver 580.1, CUDA 13.0, cuDNN 91000, torch 2.11.0, Triton 3.6.0, Python 3.12.1." in text
    (true,) = lines_of(text, "| rescapsnet 1, mnist, published: peak allocated ")
    assert true.split(" | ")[1:4] == ["2,768 to 3,060 MiB", "2,914 MiB", "yes"]
    (false,) = lines_of(text, "| rescapsnet 8, mnist, published: peak allocated ")
    assert false.split(" | ")[2:4] == ["3,500 MiB", "**no**"]
    (retained,) = lines_of(text, "| rescapsnet, published: retained per block ")
    assert retained.split(" | ")[2:4] == ["73.8 MiB", "yes"]
    (launched,) = lines_of(text, "| launches of a block backward, ResCapsNet, stored ")
    assert launched.split(" | ")[1:4] == ["6", "9", "**no**"]
    assert "| not measured |  |" in text
    assert "| rescapsnet 8, mnist, published | 616.60 | 3,500.00 | 41.25 |" in text
    assert "*first, rba*" in text
    assert "an \\| in a text" in text
    assert "| lstm, fp32 | 10.00 / 8.00 MiB (+25.00 %), modelled |" in text
    assert "Part `kernels`: failed (exit status 1), 3 s." in text
    assert text.count("Not begun.") == 8


def test_a_later_day_is_put_beside_an_earlier_one(tmp_path):
    out, later, project = (tmp_path / name for name in ("out", "later", "project"))
    for folder in (out, later):
        folder.mkdir()
    write(day(out), project)
    replace(later / "card.json", json.loads((out / "card.json").read_text()))
    PartResults(later, "tests").update(status="done", message="", seconds=1.0, items={"tests": {"passed": 7, "failed": 0}})
    assert write(later, project) == 0
    (file,) = (project / RESULTS).iterdir()
    assert file.name == "nvidia-h100-80gb-hbm3.json"
    assert set(json.loads(file.read_text())["parts"]) == {"tests", "table4", "kernels", "predicted"}
    other = tmp_path / "other"
    other.mkdir()
    write(day(other, card="NVIDIA H200"), project)
    assert (project / PAGE).read_text().count("\n## ") == 2


def test_results_of_a_cpu_stay_where_they_are(tmp_path, capsys):
    assert write(day(tmp_path, "CPU", "cpu"), tmp_path / "project") == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert not (tmp_path / "project").exists()


def test_without_a_card_the_page_says_so(tmp_path):
    assert write(tmp_path, tmp_path / "project") == 0
    text = (tmp_path / "project" / PAGE).read_text()
    assert "No card has been met yet" in text
    assert len(lines_of(text, "not measured")) == len(all_expectations())


def test_the_committed_page_is_made_from_the_committed_results():
    cards = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / RESULTS).glob("*.json"))]
    assert (ROOT / PAGE).read_text(encoding="utf-8") == "\n".join(page(cards))


def test_an_expectation_is_false_outside_its_range():
    one = Expectation("", "", *within(100.0, 0.05), "", lambda parts: None)
    assert [one.came_true(value) for value in (94.9, 95.1, 104.9, 105.1)] == [False, True, True, False]
    exact = Expectation("", "", *within(6, 0), "", lambda parts: None)
    assert [exact.came_true(value) for value in (5, 6, 7)] == [False, True, False]


def test_every_expectation_bears_that_nothing_was_measured():
    for one in all_expectations():
        for parts in ({}, {name: {"item": {"error": "x"}} for name in ("tests", "table4", "graphs", "training", "predicted")}):
            assert one.find(parts) in (None, 0)
        assert one.low <= one.high


def test_a_slope_needs_both_ends():
    parts = {"part": {"net 1": {"figure": 10}, "net 8": {"figure": 24}}}
    assert per_block(parts, "part", "net {}", "figure", 1, 8) == 2
    assert per_block(parts, "part", "net {}", "figure", 1, 4) is None


def test_expected_launches_are_those_of_their_table():
    found = launches_expected()
    assert found.keys() == STACKS.keys()
    assert found["ResCapsNet, stored"] == (4, 6)
    assert found["MoCapsNet, exact, Σv kept"] == (4, 14)


def test_an_item_that_failed_keeps_its_figures():
    text = "\n".join(table({"tests": {"passed": 5, "error": "1 test failed", "call": "abcd"}}))
    assert "| *tests* | 5 | 1 test failed |" in text
    assert "abcd" not in text


def test_figures_that_are_marked_exact_must_be():
    certainty = {"retained_bytes": "exact", "peak_allocated_bytes": "modelled"}
    predicted = MemoryFigures(
        probe="trace", state_bytes=1, gradient_bytes=1, optimizer_bytes=1, retained_bytes=100, peak_forward_bytes=1,
        peak_backward_bytes=1, peak_allocated_bytes=200, certainty=certainty,
    )  # fmt: skip
    same = compared(predicted, predicted)
    assert set(same) == {"retained", "peak allocated"}
    peak = compared(predicted, predicted.model_copy(update={"peak_allocated_bytes": 300}))
    assert "error" not in peak
    assert peak["peak allocated"] == {"predicted": 200, "measured": 300, "certainty": "modelled"}
    retained = compared(predicted, predicted.model_copy(update={"retained_bytes": 101}))
    assert retained["error"] == "marked exact, and is not: retained 100 is not 101"
    guessed = predicted.model_copy(update={"certainty": {"retained_bytes": "guessed"}})
    assert "error" not in compared(guessed, predicted.model_copy(update={"retained_bytes": 101}))


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("Something new", "h100"),
    ],
)
def test_a_card_is_known_by_its_name(name, gpu):
    assert card_named(name) == gpu


def test_kernels_are_counted_apart_from_copies():
    found = account([("gemm", 10.0), ("Memcpy DtoD", 3.0), ("gemm", 20.0), ("softmax", 1.0), ("Memset (Device)", 1.0)])
    assert (found.kernels, found.copies, found.busy_ms) == (3, 2, pytest.approx(0.035))
    assert found.by_kernel == {"gemm": (2, pytest.approx(0.03)), "softmax": (1, pytest.approx(0.001))}
    assert account([("Memcpy DtoD", 3.0)]) is None, "not 0, where nothing was seen"


def test_a_function_is_timed_after_it_has_run():
    calls = []
    found = timed(lambda: calls.append(1), "cpu", rounds=4, warm_seconds=0.0)
    assert found.keys() == {"step_ms"}
    assert len(calls) == 3 + 4


def test_what_a_layer_cannot_do_without():
    layer = Layer(2, 3, 4, 5, 6)
    inputs, weight, outputs, votes = 24, 360, 60, 180
    assert least_bytes(layer) == 4 * (3 * inputs + 3 * weight + 2 * outputs)
    assert least_operations(layer) == 3 * 2 * votes * 4 + 5 * 2 * votes


def test_a_bare_machine_gets_all_but_what_it_has():
    found = missing()
    assert {"pydantic", "pydantic-core", "click", "filelock", "lazy-loader", "pytest-xdist", "hypothesis"} <= found.keys()
    assert not {"torch", "triton", "numpy", "scipy"} & found.keys()
    assert not [name for name in found if name.startswith("nvidia-") and name != "nvidia-ml-py"]


def test_wheels_are_unpacked_with_the_data_beside_them(tmp_path):
    wheels, folder = tmp_path / "wheels", tmp_path / "folder"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "one-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("one/__init__.py", "")
        archive.writestr("one-1.0.data/purelib/two.py", "")
    assert unpack(wheels, folder) is None
    assert (folder / "one" / "__init__.py").exists()
    assert (folder / "two.py").exists()
    (wheels / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"labels"))
    data = unpack(wheels, tmp_path / "again")
    assert (data / "FashionMNIST" / "raw" / "train-labels-idx1-ubyte").read_bytes() == b"labels"


def test_plans_of_reports_name_no_path(tmp_path):
    bench = Bench("cpu", tmp_path, time.monotonic() + 100, None, SIZES["cpu"])
    plan = plan_of(bench, "table4", [make_record().cell], ["memory"])
    assert plan.command == "python -m benchmarks.gpu --only table4"
    assert "/" not in plan.model_dump_json()


@pytest.mark.slow
def test_reports_of_a_day_are_drawn_beside_the_projects(tmp_path):
    out, project = tmp_path / "out", tmp_path / "project"
    out.mkdir()
    shutil.copytree(ROOT / "reports" / "published-cpu", day(out) / "reports" / "published-gpu")
    assert write(out, project) == 0
    folder = project / "reports" / "published-gpu"
    assert {"plan.json", "records.jsonl", "environment.json", "slopes.csv", "figure3.svg", "figure4.svg"} <= {
        path.name for path in folder.iterdir()
    }


@pytest.mark.slow
def test_tests_that_passed_are_not_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "PROCESSES", 1)
    tests, folder = tmp_path / "tests", tmp_path / "folder"
    for one in (tests, folder):
        one.mkdir()
    ran = tmp_path / "ran"
    source = f"""
import pathlib, pytest
pytestmark = pytest.mark.cuda
def test_good(): pathlib.Path({str(ran)!r}).open("a").write("good ")
def test_bad(): assert pathlib.Path({str(tmp_path / "fixed")!r}).exists()
def test_left(): pytest.skip("not here")
"""
    (tests / "test_some.py").write_text(source)
    (tests / "test_others.py").write_text("def test_other(): assert False\n")
    found = suite.run(folder, 100, tests)
    assert found["error"] == "1 tests failed"
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    assert "test_bad" in found["failed tests"]
    (tmp_path / "fixed").touch()
    found = suite.run(folder, 100, tests)
    assert (found["passed"], found["failed"], found["skipped"]) == (2, 0, 1)
    assert "error" not in found
    assert ran.read_text() == "good "


@pytest.mark.slow
def test_tests_that_hang_are_cut_off(tmp_path, monkeypatch):
    class Patient(subprocess.Popen):
        """A process whose time is over as soon as the first test has ended."""

        def wait(self, timeout=None):
            if timeout == LONG:
                wait_for(lambda: "test_good" in written(tmp_path / "tests.outcomes"))
                raise subprocess.TimeoutExpired(self.args, timeout)
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Patient)
    monkeypatch.setattr(suite, "PROCESSES", 1)
    (tmp_path / "test_some.py").write_text(
        "import time, pytest\npytestmark = pytest.mark.cuda\ndef test_good(): pass\ndef test_hangs(): time.sleep(600)\n"
    )
    found = suite.run(tmp_path, LONG + suite.END_SECONDS, tmp_path)
    assert found["error"] == "cut off"
    assert found["passed"] == 1
