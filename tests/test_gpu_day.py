"""The command of a day with a GPU: what it does when parts fail, hang or are killed, and how it resumes, without a GPU."""

import json
import os
import re
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.gpu.day import Day
from benchmarks.gpu.parts import PARTS, SIZES, Part
from benchmarks.gpu.results import PartResults
from helpers import ROOT, TESTS
from helpers.commands import Result, assert_refused, is_gone, wait_for
from helpers.fake_parts import part


@pytest.fixture(autouse=True)
def _children_find_the_parts(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


def run(folder, *parts, budget=200.0, **options):
    """The lines of a call, and whether it found all parts done."""
    lines = []
    done = Day(folder, "cpu", budget, least=0.1, say=lines.append).run(parts, **options)
    return lines, done


def status(folder, name):
    found = PartResults(folder, name).read()
    return found and found["status"]


def times_tried(folder, name):
    path = folder / f"{name}.tried"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_whatever_fails_the_next_part_begins(tmp_path):
    parts = [part("fails"), part("killed"), Part("absent", "", 60, "no.such:module"), part("says_error"), part("works")]
    lines, done = run(tmp_path, *parts)
    assert not done
    assert [status(tmp_path, one.name) for one in parts] == ["failed"] * 4 + ["done"]
    found = PartResults(tmp_path, "fails").items()
    assert found["first"]["error"] == "ValueError: not yet - fixed"
    assert found["second"] == {"step_ms": 1.5, "peak_bytes": 3 * 2**20}
    assert PartResults(tmp_path, "says_error").items()["item"]["passed"] == 5
    assert "No module named 'no'" in PartResults(tmp_path, "absent").read()["message"]
    assert any("works: done, 2 of 2 items" in line for line in lines)


def test_a_process_that_is_gone_leaves_its_other_items_to_another(tmp_path):
    run(tmp_path, part("killed"), part("lost"))
    killed, lost = (PartResults(tmp_path, name).items() for name in ("killed", "lost"))
    assert "error" in killed["first"]
    assert killed["second"]["step_ms"] == 1.5
    assert "illegal memory access" in lost["first"]["error"]
    assert lost["second"] == {"figure": 3}, "not tried in the process that lost its device"


def test_a_part_that_hangs_is_cut_off_with_all_that_it_started(tmp_path):
    lines, done = run(tmp_path, part("hangs", seconds=3), part("stubborn", seconds=1), part("works"))
    assert not done
    assert [status(tmp_path, name) for name in ("hangs", "stubborn", "works")] == ["cut off", "cut off", "done"]
    assert is_gone(int((tmp_path / "child.pid").read_text()))
    assert "step_ms" in PartResults(tmp_path, "hangs").items()["first"]
    assert any("hangs: cut off, 1 of 2 items that were begun; after 3 s" in line for line in lines)


def test_a_budget_is_kept(tmp_path, monkeypatch):
    """Parts that would take ten minutes each; the second one has no time left."""
    monkeypatch.setattr("benchmarks.gpu.day.GRACE_SECONDS", 1.0)
    lines, done = run(tmp_path, part("stubborn", seconds=500), part("works", seconds=500), budget=4.0)
    # A second is kept for the end of a part, and one for the end of the command.
    (given,) = re.findall(r"stubborn: begins, at most (\d+) s", "\n".join(lines))
    assert int(given) <= 2
    assert not done
    assert (status(tmp_path, "stubborn"), status(tmp_path, "works")) == ("cut off", None)
    assert any("works: no time left" in line for line in lines)


def test_a_second_call_takes_what_is_missing(tmp_path):
    parts = [part("hangs", seconds=3), part("fails"), part("works")]
    run(tmp_path, *parts[:2])
    (tmp_path / "fixed").touch()
    lines, done = run(tmp_path, *parts)
    assert done
    assert [status(tmp_path, one.name) for one in parts] == ["done"] * 3
    assert times_tried(tmp_path, "fails-first") == 2
    assert [times_tried(tmp_path, name) for name in ("fails-second", "hangs-first", "hangs-third", "works-one")] == [1] * 4
    begun = [line.split("] ")[1].split(":")[0] for line in lines if "begins" in line]
    assert begun == ["fails", "works", "hangs"], "what was cut off has had its time"
    lines, done = run(tmp_path, *parts)
    assert done
    assert all("done before" in line for line in lines)


def test_an_item_that_hung_does_not_keep_others_from_their_turn(tmp_path):
    for _ in range(2):
        run(tmp_path, part("hangs", seconds=3))
    found = PartResults(tmp_path, "hangs").items()
    assert "step_ms" in found["third"]
    assert "error" in found["second"]
    assert times_tried(tmp_path, "hangs-first") == 1


def test_a_part_that_is_named_is_looked_at_again(tmp_path):
    for again in (False, True):
        lines, done = run(tmp_path, part("works"), again=again)
        assert done
        assert any("begins" in line for line in lines)
    assert times_tried(tmp_path, "works-one") == 1


def test_results_are_whole_at_any_moment(tmp_path):
    results = PartResults(tmp_path, "part")
    assert results.read() is None
    results.trying("item", "call")
    assert results.read()["status"] == "cut off"
    assert "error" in results.items()["item"]
    results.keep("item", {"figure": 1})
    assert json.loads(results.path.read_text())["items"] == {"item": {"figure": 1}}
    assert [path.name for path in tmp_path.iterdir()] == ["part.json"]


# The command as a process


def command(*words: object, module: str = "benchmarks.gpu") -> Result:
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)]), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--only", "smoke,tset"), ("--only 'tset'", "smoke, tests, first")),
        (("--only", ""), ("--only ''", "choose among")),
        (("--budget", "0"), ("--budget 0", "520")),
        (("--budget", "nan"), ("--budget nan", "520")),
        (("--wheels", "/no/such/folder"), ("--wheels /no/such/folder", "benchmarks.gpu.packages")),
    ],
)
def test_what_makes_no_sense_is_refused(words, named, tmp_path):
    assert_refused(command(*words, "--out", tmp_path / "out"), *named)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_machine_without_a_gpu_is_refused(tmp_path):
    assert_refused(command("--out", tmp_path / "out"), "--device cuda: no CUDA device is available", "--device cpu")


@pytest.mark.slow
def test_results_of_two_cards_do_not_meet(tmp_path):
    (tmp_path / "card.json").write_text(json.dumps({"card": "NVIDIA H100"}))
    assert_refused(command("--device", "cpu", "--out", tmp_path), "holds results of NVIDIA H100", "choose another folder")


@pytest.mark.slow
def test_ctrl_c_ends_the_command_and_all_that_it_started(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "helpers.fake_parts", "--device", "cpu", "--out", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: (tmp_path / "child.pid").exists() and (tmp_path / "child.pid").read_text())
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors == "interrupted: what was measured is kept, and the same command resumes\n"
    assert is_gone(int((tmp_path / "child.pid").read_text()))
    assert status(tmp_path, "works") == "done"
    assert PartResults(tmp_path, "hangs").read()["message"] == "interrupted"


def test_a_part_ends_when_its_command_is_killed(tmp_path):
    words = "import sys; from pathlib import Path; from benchmarks.gpu.day import Day; from helpers.fake_parts import part; "
    words += f"Day(Path({str(tmp_path)!r}), 'cpu', 200.0, least=0.1).run([part('hangs')])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)])}
    process = subprocess.Popen([sys.executable, "-c", words], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    wait_for(lambda: (tmp_path / "child.pid").exists() and (tmp_path / "child.pid").read_text())
    process.kill()
    process.wait()
    child = int((tmp_path / "child.pid").read_text())
    wait_for(lambda: is_gone(child), 60)
    assert status(tmp_path, "hangs") == "cut off"


# The parts themselves


def test_parts_are_ten_and_the_peers():
    names = [one.name for one in PARTS]
    assert len(set(names)) == len(names) == 11
    assert all(one.title and one.seconds > 0 for one in PARTS)
    for one in PARTS:
        module, _, function = one.items.partition(":")
        assert callable(getattr(import_module(module), function))


def test_sizes_of_a_card_are_the_papers():
    sizes = SIZES["cuda"]
    assert (sizes.batch, sizes.depths, sizes.ends, sizes.deep) == (128, (1, 4, 8), (1, 8), (8, 64))
    assert sizes.warm_seconds >= 0.5
    assert Path(ROOT / "benchmarks" / "gpu.md").exists()
