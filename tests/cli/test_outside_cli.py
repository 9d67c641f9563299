"""Output and exit status of commands, for any reader, encoding and width."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from capsbench.cli.streams import signs_of, steady_streams
from capsbench.report import Report
from helpers import TESTS
from helpers.commands import process_environment
from helpers.made import make_record
from helpers.seeded import seeded_record, seeded_run, write_report


def shell(folder, script, **environment):
    """Result of a shell script in which `capsbench` is the command."""
    paths = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {**process_environment(folder), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment
    script = re.sub(r"\bcapsbench ", lambda _: f"{shlex.quote(sys.executable)} -m capsbench.cli ", script)
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", script], cwd=folder, env=variables, capture_output=True, text=True, errors="replace",
        timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory, forked):
    """A report, one that grew, and a baseline of the first."""
    folder = tmp_path_factory.mktemp("home")
    write_report(folder / "good", seeded_run())
    write_report(folder / "grown", seeded_run(modules={"blocks.{block}.0": 2**20}))
    assert forked(folder, "check good --baseline base.json --update").status == 0
    return folder


# A shell itself: once for each command whose status matters.


@pytest.mark.parametrize("reader", [":", "head -c 1 > /dev/null"])
def test_a_failed_gate_is_red_in_a_shell_though_nobody_reads_it(home, reader):
    done = shell(home, f"capsbench check grown --baseline base.json | {reader}")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


@pytest.mark.slow
def test_a_measured_sweep_goes_on_to_its_end_without_a_reader(tmp_path):
    run = "capsbench run --models helpers.tiny:make_plain --depth 1 --batch-size 2 --device cpu --time-budget 0.01 --out here"
    done = shell(tmp_path, f"{run} <&- 2>&1 | head -1")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)
    contents = Report(tmp_path / "here")
    assert [record.status for record in contents.records] == ["ok"]
    assert contents.damages == []
    assert (tmp_path / "here" / "index.html").exists()


# Readers that go away, full disks, closed streams.

NOBODY = [{"out": "gone", "err": "gone"}, {"out": "full", "err": "full"}, {"out": "closed", "err": "closed", "stdin": "closed"}]
IDS = ["gone", "full", "closed"]


@pytest.mark.parametrize("more", ["", "--json", "--markdown -", "--junit {}/junit.xml"])
@pytest.mark.parametrize("nobody", NOBODY, ids=IDS)
def test_a_verdict_does_not_depend_on_where_it_is_written(forked, home, tmp_path, nobody, more):
    for folder, status in (("grown", 1), ("good", 0)):
        done = forked(home, f"check {folder} --baseline base.json {more.format(tmp_path)}", **nobody)
        assert done.status == status, done


READERS = {
    "slopes": "slopes good",
    "slopes --json": "slopes good --json",
    "show": "show good",
    "compare": "compare good grown",
    "compare --markdown": "compare good grown --markdown",
    "list": "list",
    "env": "env --json",
    "predict": "predict --models helpers.tiny:make --depth 1,2 --batch-size 2 --device cpu",
    "report": "report good --out page.html",
    "plot": "plot good",
    "init-ci": "init-ci --gitlab",
    "completion": "completion bash",
    "help": "run --help",
    "version": "--version",
}


@pytest.mark.parametrize("command", READERS.values(), ids=READERS)
def test_every_command_ends_well_whatever_becomes_of_its_words(forked, home, command):
    # A reader that has seen enough is no error.
    for nobody in ("gone", "closed"):
        done = forked(home, command, out=nobody)
        assert done.status == 0
        assert done.stderr == "" or command.startswith("predict")  # which shows its progress
    # What has no other product than its output has failed where that found no room.
    done = forked(home, command, out="full")
    first, second = done.stderr.splitlines()[-2:]
    assert first == "error: standard output could not be written: No space left on device"
    assert second == "make room, or write it elsewhere"
    assert done.status == (0 if command.split()[0] in ("report", "plot") else 1)


@pytest.mark.parametrize("command", ["slopes good", "no-such-command", "slopes nowhere", "--version", "run --gpu x"])
def test_closed_streams_change_nothing(forked, home, command):
    usual = forked(home, command)
    assert forked(home, command, stdin="closed") == usual
    done = forked(home, command, err="closed")
    assert (done.status, done.stdout, done.stderr) == (usual.status, usual.stdout, "")
    done = forked(home, command, out="closed")
    assert (done.status, done.stdout, done.stderr) == (usual.status, "", usual.stderr)


RUN = "run --models helpers.tiny:make_plain --depth 1,2,3 --batch-size 2 --device {} --time-budget 0.01 --out {}"


@pytest.mark.parametrize("nobody", [*NOBODY, {"err": "gone"}], ids=[*IDS, "half"])
def test_a_sweep_goes_on_to_its_end(forked, tmp_path, nobody):
    done = forked(tmp_path, RUN.format("cpu:predicted", "here"), **nobody)
    assert done.status == 0, done
    contents = Report(tmp_path / "here")
    assert (len(contents.records), contents.damages) == (3, [])
    assert (tmp_path / "here" / "figure4.svg").exists()
    assert (tmp_path / "here" / "index.html").exists()


@pytest.mark.parametrize("nobody", NOBODY, ids=IDS)
def test_training_goes_on_to_its_end(forked, tmp_path, nobody):
    done = forked(tmp_path, "train --model helpers.tiny:make --batch-size 64 --epochs 2 --device cpu --out run", **nobody)
    assert done.status == 0, done
    assert len(json.loads((tmp_path / "run" / "result.json").read_text())["epochs"]) == 2


@pytest.mark.parametrize("nobody", NOBODY, ids=IDS)
def test_a_timeline_is_written(forked, tmp_path, nobody):
    done = forked(tmp_path, "timeline --model helpers.tiny:make --batch-size 4 --device cpu:predicted --out here", **nobody)
    assert done.status == 0, done
    assert json.loads((tmp_path / "here" / "timeline.json").read_text())["kind"] == "predicted"


@pytest.mark.parametrize("nobody", NOBODY, ids=IDS)
def test_what_failed_has_failed_though_nobody_reads_it(forked, tmp_path, nobody):
    for command, status in (
        (RUN.format("cpu:predicted", "here").replace("make_plain", "make_none"), 2),
        ("slopes nowhere", 2),
        ("train --model helpers.tiny:make_explosive --batch-size 64 --epochs 2 --learning-rate 10 --device cpu --out boom", 1),
        ("predict --models helpers.tiny:make_none --depth 1", 2),
    ):
        assert forked(tmp_path, command, **nobody).status == status, command


def test_json_that_found_no_room_is_no_success(forked, tmp_path):
    done = forked(tmp_path, f"{RUN.format('cpu:predicted', 'lost')} --json", out="full")
    assert done.status == 1
    assert len(Report(tmp_path / "lost").records) == 3
    assert done.stderr.splitlines()[-2] == "error: standard output could not be written: No space left on device"


def test_a_module_that_ends_the_program_is_no_success(forked, tmp_path):
    (tmp_path / "quitter.py").write_text("import sys\ndef make(in_shape, num_classes, blocks):\n    sys.exit(0)\n")
    for command in ("predict --models quitter:make --depth 1 --device cpu", "train --model quitter:make --device cpu --out r"):
        done = forked(tmp_path, command, setup="import sys; sys.path.append('.')")
        assert done.status in (1, 2)
        assert done.stderr.splitlines()[-2].startswith("error: ")


def test_shell_completion_still_works(forked, home):
    done = forked(home, "", _CAPSBENCH_COMPLETE="bash_complete", COMP_WORDS="capsbench sl", COMP_CWORD="1")
    assert (done.status, done.stdout) == (0, "plain,slopes\n")


def test_a_reader_that_shares_a_stream_that_does_not_wait():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    script = "from capsbench.cli.streams import steady_streams\nwith steady_streams(): print('x' * 300000)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        with open(reading, "rb") as file:  # noqa: PTH123
            found = file.read()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert (process.returncode, len(found)) == (0, 300001)


def test_streams_of_a_notebook_are_left_alone(monkeypatch):
    mine = io.StringIO()
    monkeypatch.setattr(sys, "stdout", mine)
    with steady_streams() as streams:
        assert sys.stdout is mine
        sys.stdout.write("seen\n")
        assert streams.lost() is None
    assert mine.getvalue() == "seen\n"


# Encodings.

TOLD = {
    "list": "list",
    "slopes": "slopes good",
    "show": "show good",
    "compare": "compare good grown --cells",
    "compare --markdown": "compare good grown --markdown",
    "check": "check grown --baseline base.json",
    "predict": "predict --models mocapsnet,rescapsnet --depth 1 --batch-size 2 --gpu h100",
    "predict --fit": "predict --models helpers.tiny:make --fit batch --depth 1 --device cpu --capacity 4MiB",
    "help": "predict --help",
    "plot": "plot good",
    "refused": "run --gamma 0.5 --models rescapsnet",
}


@pytest.mark.parametrize("command", TOLD.values(), ids=TOLD)
def test_what_ascii_does_not_have_is_said_in_other_signs(forked, home, command):
    usual = forked(home, command)
    done = forked(home, command, PYTHONIOENCODING="ascii")
    assert done.status == usual.status, done
    said = done.stdout + done.stderr
    assert said.isascii()
    assert "\\u" not in said
    assert said.count("?") == (usual.stdout + usual.stderr).count("?")
    assert len(done.stdout.splitlines()) == len(usual.stdout.splitlines())


def test_a_timeline_in_ascii(forked, tmp_path):
    done = forked(tmp_path, "timeline --model mocapsnet --batch-size 2 --device cpu:predicted --out t", PYTHONIOENCODING="ascii")
    assert done.status == 0, done
    assert done.raw.isascii()


def test_the_locale_of_a_machine_without_one(home):
    # tox sets an encoding of its own, which goes before the locale's.
    script = "unset PYTHONIOENCODING; capsbench slopes good"
    done = shell(home, script, LC_ALL="C", LANG="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert "x 1" in done.stdout


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "cp437", "iso8859-5", "utf-16"])
def test_other_encodings(forked, home, encoding):
    for command in ("list", "slopes good", "compare good grown", "show good"):
        done = forked(home, command, PYTHONIOENCODING=encoding)
        assert (done.status, done.stderr) == (0, ""), done


def test_signs_are_readable(forked, home):
    for encoding, times in (("ascii", "x 1"), ("iso8859-5", "x 1"), ("latin-1", "× 1"), ("utf-8", "× 1")):
        assert times in forked(home, "slopes good", PYTHONIOENCODING=encoding).stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_figures_come_before_tables_and_both_come(forked, tmp_path, encoding):
    done = forked(tmp_path, RUN.format("cpu:predicted", "here"), PYTHONIOENCODING=encoding)
    assert done.status == 0, done.stderr
    assert (tmp_path / "here" / "figure3.svg").exists()
    assert "slope per block" in done.stdout
    assert "wrote here/index.html" in done.stderr


def test_tables_come_though_figures_cannot_be_drawn(forked, tmp_path):
    (tmp_path / "here" / "figure3.svg").mkdir(parents=True)
    done = forked(tmp_path, RUN.format("cpu:predicted", "here"))
    assert done.status == 2
    assert "slope per block" in done.stdout
    assert done.stderr.splitlines()[-2] == "error: here/figure3.svg cannot be written: Is a directory"


def test_columns_stay_in_line_where_signs_are_replaced(forked, tmp_path):
    records = [
        seeded_record(model, blocks, slower=1 + 0.1 * (blocks % 2))
        for blocks in range(1, 6)
        for model in ("rescapsnet", "capsnet")
    ]
    write_report(tmp_path / "noisy", records)
    plain = forked(tmp_path, "slopes noisy", PYTHONIOENCODING="ascii").stdout.splitlines()
    (head,) = [line for line in plain if line.lstrip().startswith("model")]
    times = [line for line in plain if line.rstrip().endswith(("ms", "ms~"))]
    assert len({len(line.rstrip("~ ")) for line in times}) == 1, times
    assert all(len(line) <= 80 for line in [head, *times])
    assert any("+-" in line for line in times)


@pytest.mark.parametrize(
    ("text", "encoding", "said"),
    [
        ("8.3 ± 0.4 ms", "ascii", "8.3 +- 0.4 ms"),
        ("1.3–1.8", "latin-1", "1.3-1.8"),
        ("× 2", "latin-1", "× 2"),
        ("γ → x²", "ascii", "gamma -> x^2"),
        ("naïve", "ascii", "naive"),
        ("Größe", "ascii", "Gro\\xdfe"),
        ("日本", "ascii", "\\u65e5\\u672c"),
        ("plain", "ascii", "plain"),
        ("±", "utf-8", "±"),
        ("≈ 8 ms~", "ascii", "~= 8 ms~"),  # `~` alone is the sign of a disturbed time
    ],
)
def test_signs_and_what_stands_for_them(text, encoding, said):
    assert signs_of(text, encoding) == said


def test_json_is_whole_in_every_encoding(forked, tmp_path):
    write_report(tmp_path / "mine", [make_record("größe", 1), make_record("größe", 2)])
    assert forked(tmp_path, "check mine --baseline b.json --update").status == 0
    for command in ("slopes mine --json", "compare mine mine --json", "check mine --baseline b.json --json", "list --json"):
        found = [json.loads(forked(tmp_path, command, PYTHONIOENCODING=it).stdout) for it in ("utf-8", "ascii", "latin-1")]
        assert found[0] == found[1] == found[2], command


def test_a_folder_whose_name_is_no_text(forked, tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/f\xfcr")
    write_report(Path(folder), seeded_run())
    for encoding in ("utf-8", "ascii"):
        done = forked(tmp_path, f"plot {shlex.quote(folder)}", PYTHONIOENCODING=encoding)
        assert done.status == 0, done
        assert os.fsencode(folder) + b"/slopes.csv\n" in done.raw


# Widths.


@pytest.mark.parametrize("columns", ["0", "1", "abc", "-3", "", "²", "99999999999999999999", "5"])
def test_a_width_that_makes_no_sense(forked, home, columns):
    for command in ("slopes good", "show good", "compare good grown", "slopes --help"):
        usual = forked(home, command).stdout
        done = forked(home, command, COLUMNS=columns, LINES=columns)
        assert (done.status, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert len(lines) >= len(usual.splitlines()) // 2 > 1
        # No more than what 40 columns ask for: no letter stands alone on its line.
        assert len(lines) < 4 * len(usual.splitlines())
        assert set(re.findall(r"[A-Za-z]{6,}", usual)) <= set(re.findall(r"[A-Za-z]{6,}", done.stdout)) or columns in ("1", "5")
