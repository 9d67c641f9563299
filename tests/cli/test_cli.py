"""The command line as a user meets it: what it prints, how it ends, and what is left on the disk."""

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import click
import psutil
import pytest
import torch
from click.shell_completion import ShellComplete

from capsbench import load
from capsbench.cases.factories import BUILT_IN
from capsbench.cases.step_optimizer import OPTIMIZER_STEPS
from capsbench.catalog import SPECS
from capsbench.cli.group import SUMMARIES, cli
from capsbench.errors import unknown_name
from capsbench.models import FRONTS, RULES
from capsbench.records import SCHEMA_VERSION, Record, Round
from capsbench.report import Report
from capsbench.reversible import INVERSES, STRATEGIES
from capsbench.routing import algorithms, kernels
from capsbench.stats.metrics import MEMORY_METRICS
from capsbench.terminal.progress import _one_line
from capsbench.workload import PRECISIONS
from helpers.commands import assert_refused, briefly, is_gone, process_environment, subcommands, wait_for, written
from helpers.made import RETAINED_PER_BLOCK, make_record, write_report

COMMANDS = sorted(subcommands())


def error_lines(stderr):
    """The error itself: what comes after progress."""
    return [line for line in stderr[stderr.rindex("error: ") :].splitlines() if line.strip()]


# What it says of itself.


def commands(group=cli, path=()):
    """Every command that does something, by what is typed."""
    for name, command in subcommands(group).items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


LEAVES = dict(sorted(commands()))


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_explains_itself(command, path):
    result = command(*path, "--help")
    assert (result.status, result.stderr) == (0, "")
    assert result.stdout.startswith("Usage: ")
    for option in LEAVES[path].params:
        assert not option.opts[0].startswith("--") or option.opts[0] in result.stdout
    if path[0] in {"run", "plot", "slopes", "reproduce", "train", "figure"}:
        assert re.findall(rf"^ +capsbench {' '.join(path)}.*$", result.stdout.partition("Examples:")[2], re.MULTILINE)


def examples():
    groups = [command for command in subcommands().values() if isinstance(command, click.Group)]
    for command in (*LEAVES.values(), *groups):
        for line in re.findall(r"^\s+capsbench (.+)$", command.help or "", re.MULTILINE):
            yield shlex.split(line)


@pytest.mark.parametrize("arguments", list(examples()), ids=" ".join)
def test_examples_parse(arguments):
    # Makes contexts only: nothing is run.
    path = next(path for path in LEAVES if tuple(arguments[: len(path)]) == path)
    context = LEAVES[path].make_context(path[-1], arguments[len(path) :])
    assert context.params


def test_the_whole_explains_itself(capsbench):
    for arguments in (["--help"], ["-h"]):
        result = capsbench(*arguments)
        assert result.status == 0
        for name in COMMANDS:
            assert re.search(rf"^  {name} ", result.stdout, re.MULTILINE)
    assert re.search(r"\d+\.\d+", capsbench("--version").stdout)


HELP = """
import json, sys
from capsbench.cli import main
for path in json.loads(sys.argv[1]):
    sys.argv = ["capsbench", *path, "--help"]
    try:
        main()
    except SystemExit as ended:
        status = ended.code or 0
    heavy = {"torch", "pandas", "matplotlib", "scipy"} | (set() if path else {"pydantic"})
    print(json.dumps([path, status, sorted(heavy & sys.modules.keys())]), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def helped():
    """Status of each command's help and the heavy packages that are there after it, one after the other in one process."""
    paths = [(), *LEAVES]
    done = subprocess.run([sys.executable, "-c", HELP, json.dumps(paths)], check=True, capture_output=True, text=True)
    return {tuple(path): (status, heavy) for path, status, heavy in map(json.loads, done.stderr.splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize("path", [(), *LEAVES], ids=" ".join)
def test_help_needs_no_heavy_package(helped, path):
    assert helped[path] == (0, [])


def test_commands_and_options_of_a_sweep_are_in_sections(command):
    text = command("--help").stdout
    heads = [line.removesuffix(":") for line in text.splitlines() if re.fullmatch(r"[A-Z].*:", line)]
    assert heads == ["Options", "Measure", "Read", "Guard", "Train", "Reproduce the paper", "This machine"]
    # All names are as wide as the widest, so that sentences begin at one column.
    named = [line for line in text.splitlines() if line.startswith("  ") and line.split()[0] in COMMANDS]
    assert len(named) == len(COMMANDS)
    assert len({re.match(r"  [a-z-]+ +", line).end() for line in named}) == 1
    text = command("run", "--help").stdout
    places = [text.index(f"\n{head}:\n") for head in ("What", "How", "Where", "How long", "Result", "Other options")]
    assert places == sorted(places)
    for flag, head in (("--models", 0), ("--kernel", 1), ("--device", 2), ("--quick", 3), ("--open", 4), ("-h", 5)):
        assert places[head] < text.index(f"  {flag}") < [*places[1:], len(text)][head]
    assert "reference, published, recompute," in " ".join(text.split())


@pytest.mark.parametrize(
    ("words", "near"),
    [
        ("run --models mocapsnt", "mocapsnet"),
        ("run --kernel recomputed,auto", "recompute"),
        ("run --routing SDAA", "sda"),
        ("run --dataset minst", "mnist"),
        ("run --memory chekpoint", "checkpoint"),
        ("run --device cude", "cuda"),
        ("run --device gpu", "cuda"),
        ("run --only memroy", "memory"),
        ("predict --gpu h10", "h100"),
        ("train --optimizer adm", "adam"),
        ("train --dataset cifar-10", "cifar10"),
        ("plot . --metric peek", "peak"),
    ],
)
def test_a_misspelt_value_is_answered_with_the_nearest(command, words, near):
    result = command(*words.split())
    assert_refused(result, f"did you mean {near}? If not, choose among ", f"{words.split()[-2]}")


def test_a_file_alone_is_answered_with_a_function_in_it(command):
    result = command("run", "--models", "my_models.py")
    assert_refused(result, "'my_models.py' is a file, and not the function in it", "my_models.py:make_net")


def test_a_capacity_below_cuda_s_context_is_in_units(command):
    result = command("predict", "--models", "mocapsnet", "--capacity", "1MiB", "--fit", "depth")
    assert_refused(result, "--capacity 1.00 MiB is less than CUDA's own context takes on GPU h100 (about 512.00 MiB)", "24GiB")


def test_a_value_like_no_other_is_answered_with_all():
    assert str(unknown_name("`kernel`", "xyz", ["auto", "triton"])) == "`kernel` 'xyz' is not known\nchoose among auto, triton"


def help_of(found, *names):
    """Help of a command at 80 columns; click keeps the first form of a command's -h that it makes."""
    context = click.Context(cli, info_name="capsbench", terminal_width=80, **cli.context_settings)
    for name in names:
        context = click.Context(found, parent=context, info_name=name)
    return found.get_help(context)


def test_the_sentence_of_every_command_fits_80_columns():
    texts = [help_of(cli), *(help_of(found, name) for name, found in subcommands().items() if isinstance(found, click.Group))]
    assert len(texts) == 3  # the group of all, and those of figures
    for text in texts:
        assert "…" not in text
        assert "..." not in text.replace("[ARGS]...", "")
        assert max(map(len, text.splitlines())) <= 80
        # A sentence on one line, with its full stop.
        commands = re.findall(r"^  ([a-z][\w-]+)  +(.*)$", text, re.MULTILINE)
        assert len(commands) >= 2
        assert all(sentence.endswith(".") for name, sentence in commands if not name.startswith("-"))


def test_help_lists_options_and_no_arguments():
    for name, found in subcommands().items():
        options = help_of(found, name).partition("ptions:\n")[2].partition("\nCommands:\n")[0]
        named = [line.split()[0] for line in options.splitlines() if re.match(r"  \S", line)]
        assert all(word.startswith("-") for word in named), (name, named)


def test_summaries_are_the_first_sentences_of_the_commands():
    assert {name: command.get_short_help_str(1000) for name, command in subcommands().items()} == SUMMARIES


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_for(capsbench, shell):
    result = capsbench("completion", shell)
    assert (result.status, result.stderr) == (0, "")
    assert "_CAPSBENCH_COMPLETE" in result.stdout
    assert f"{shell}_complete" in result.stdout


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        (["run", "--kernel"], "re", ["reference", "recompute"]),
        (["run", "--kernel"], "published,rec", ["published,recompute"]),
        (["run", "--models"], "mo", ["mocapsnet"]),
        (["plot", "--metric"], "p", ["peak", "process"]),
        ([], "repr", ["reproduce"]),
    ],
)
def test_completions(words, incomplete, expected):
    found = ShellComplete(cli, {}, "capsbench", "_CAPSBENCH_COMPLETE").get_completions(words, incomplete)
    assert [item.value for item in found] == expected


@pytest.mark.parametrize("name", ["list", "env"])
def test_what_is_here(capsbench, name):
    result = capsbench(name)
    assert (result.status, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) > 5
    result = capsbench(name, "--json")
    assert (result.status, result.stderr) == (0, "")
    assert isinstance(json.loads(result.stdout), dict)


def test_list_names_everything(command):
    text = command("list").stdout
    for name in [*BUILT_IN, *SPECS, *algorithms(), *KERNELS, *FRONTS, *STRATEGIES, *INVERSES, *OPTIMIZER_STEPS, *MEMORY_METRICS]:
        assert re.search(rf"^  {name} ", text, re.MULTILINE), name
    assert "(Xi et al. 2017)." in text, "no description ends within an abbreviation"
    assert "'capsbench list'" not in text
    assert "(h100); they are listed below." in text
    assert "image_shape" not in text


@pytest.mark.slow
def test_output_that_nobody_reads_is_no_error(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-m", "capsbench.cli", "list"],
        cwd=tmp_path,
        env=process_environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        # As `| head` does when it has seen enough.
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 0


KERNELS = {"auto"}.union(*(kernels(name) for name in algorithms()))


@pytest.mark.parametrize(
    ("command_name", "option", "known"),
    [
        ("run", "models", {"all", *BUILT_IN}),
        ("run", "dataset", set(SPECS)),
        ("run", "kernel", KERNELS),
        ("run", "routing", set(algorithms())),
        ("run", "front", set(FRONTS)),
        ("run", "memory", set(STRATEGIES)),
        ("run", "inverse", set(INVERSES)),
        ("run", "rule", set(RULES)),
        ("run", "optimizer_step", set(OPTIMIZER_STEPS)),
        ("run", "precision", set(PRECISIONS)),
        ("reproduce figure3", "dataset", set(SPECS)),
        ("plot", "metric", set(MEMORY_METRICS)),
    ],
)
def test_names_written_out_are_the_package_s_own(command_name, option, known):
    (parameter,) = [it for it in LEAVES[tuple(command_name.split())].params if it.name == option]
    assert set(parameter.type.known) == known


# Bad input.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "value", "also"),
    [
        ("--depth", "0", "1"),
        ("--depth", "8-1", "1-8"),
        ("--depth", "a", "1-8"),
        ("--depth", "", "1-8"),
        ("--models", "nonsense", "mocapsnet"),
        ("--models", "no_such_module:make", "no_such_module"),
        ("--models", ",", "mocapsnet"),
        ("--dataset", "nonsense", "cifar10"),
        ("--dataset", "sample,nonsense", "cifar10"),
        ("--kernel", "nonsense", "recompute"),
        ("--memory", "nonsense", "checkpoint"),
        ("--precision", "fp8", "bf16"),
        ("--routing", "nonsense", "sda-published"),
        ("--front", "nonsense", "chunked"),
        ("--optimizer-step", "nonsense", "backward"),
        ("--kernel", "triton", "of kind cuda"),
        ("--inverse", "nonsense", "float"),
        ("--rule", "nonsense", "published"),
        ("--device", "foo", "cpu"),
        ("--device", "cuda:99", "cpu"),
        ("--batch-size", "0", "1"),
        ("--batch-size", "x", "1"),
        ("--batch-size", "5000", "1024"),
        ("--batch-size", "-3", "1"),
        ("--gamma", "0", "above 0"),
        ("--gamma", "2", "0 to 1"),
        ("--gamma", "x", "0 to 1"),
        ("--gamma", "nan", "is not a finite number"),
        ("--iterations", "0", "1"),
        ("--capsules", "0", "1"),
        ("--capacity", "3", "MiB"),
        ("--capacity", "lots", "24GiB"),
        ("--samples", "1", "3"),
        ("--slope-share", "0%", "20%"),
        ("--slope-share", "0.2", "20%"),
        ("--repeats", "0", "1"),
        ("--threads", "0", "1"),
        ("--timeout", "0", ""),
        ("--timeout", "nan", ""),
        ("--timeout", "inf", ""),
        ("--timeout", "soon", ""),
    ],
    ids=str,
)
def test_bad_options_are_named_with_what_would_be_right(command, tmp_path, option, value, also):
    result = command("run", "--depth", "1", option, value)
    # Python writes numbers in its own way: 0.0 for 0.
    assert_refused(result, option, value.rpartition(",")[2] if value != "," else value, also)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_here(command):
    assert_refused(command("run", "--depth", "1", "--device", "cuda"), "--device", "cuda", "choose cpu")


def test_reversible_alone_leaves_nothing_for_plain_models(command):
    assert_refused(command("run", "--memory", "reversible", "--models", "capsnet"), "--memory", "reversible", "capsnet")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--routing", "em", "--kernel", "published"], ["--kernel published", "em", "recompute"]),
        (["--optimizer-step", "backward", "--precision", "fp16"], ["--optimizer-step", "--precision fp16", "bf16"]),
    ],
    ids=str,
)
def test_options_that_do_not_go_together(command, options, named):
    assert_refused(command("run", "--depth", "1", *options), *named)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nonsense"], "nonsense"),
        (["plot"], "REPORTS"),
        (["slopes"], "REPORTS"),
        (["reproduce", "figure9"], "figure9"),
        (["reproduce"], "figure4"),
        (["figure"], "diagnostics"),
        (["completion", "csh"], "csh"),
        (["plot", "missing"], "missing"),
        (["plot", ".", "--metric", "nonsense"], "retained"),
        (["plot", ".", "--per", "year"], "epoch"),
        (["slopes", "missing"], "missing"),
        (["plot", "."], "no records"),
        (["slopes", "."], "no records"),
        (["run", "--resume"], "--resume"),
        (["run", "--depht", "1"], "--depth"),
    ],
    ids=str,
)
def test_commands_that_make_no_sense(command, arguments, named):
    assert_refused(command(*arguments), named)


def test_errors_of_a_process_are_two_lines_too(capsbench):
    assert_refused(capsbench("run", "--depth", "8-1"), "--depth", "8-1", "1-8")


def test_a_depth_beyond_all_reason_is_refused_before_it_fills_the_memory(capsbench):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_DATA, (3 * 2**30, 3 * 2**30))"
    assert_refused(capsbench("run", "--depth", "1-1000000000", setup=limit), "--depth", "1000000000")


@pytest.fixture
def report(tmp_path):
    """A report that was made without measuring."""
    folder = tmp_path / "report"
    folder.mkdir()
    for blocks in (1, 2, 3):
        for model in RETAINED_PER_BLOCK:
            Report(folder).append(make_record(model, blocks))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plot", "slopes"])
def test_records_cut_in_half_are_read_as_far_as_they_go(command, report, name):
    records = report / "records.jsonl"
    data = records.read_bytes()
    records.write_bytes(data[: len(data) * 11 // 18])
    result = command(name, "report")
    assert result.status == 0
    (warning,) = result.stderr.splitlines()
    assert "line 6" in warning
    assert "records.jsonl" in warning
    assert ("figure4.svg" if name == "plot" else "ResCapsNet") in result.stdout


def test_json_stays_json_beside_a_warning(command, report):
    with (report / "records.jsonl").open("ab") as file:
        file.write(b"garbage")
    result = command("slopes", "report", "--json")
    assert result.status == 0
    assert "line 10" in result.stderr
    assert {row["metric"] for row in json.loads(result.stdout)} >= {"retained", "peak", "train"}


@pytest.mark.parametrize("content", [b"", b"garbage\n"], ids=["empty", "garbage"])
@pytest.mark.parametrize("name", ["plot", "slopes"])
def test_a_records_file_without_a_record_says_so(command, report, name, content):
    # A disk that was full at the first record leaves an empty file.
    (report / "records.jsonl").write_bytes(content)
    result = command(name, "report")
    assert result.status == 2
    assert len(result.stderr.splitlines()) <= 3
    assert "holds no record that can be read" in result.stderr


@pytest.mark.slow
def test_an_empty_report_among_others_keeps_none_from_being_drawn(command, report, tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / "all" / name).mkdir(parents=True)
        (tmp_path / "all" / name / "records.jsonl").write_bytes((report / "records.jsonl").read_bytes() if name != "b" else b"")
    result = command("plot", "all")
    assert result.status == 2
    assert "all/b holds no record that can be read" in result.stderr
    assert {path.parent.name for path in (tmp_path / "all").rglob("index.html")} == {"a", "c"}


def test_a_new_folder_to_resume_is_told(command):
    result = command("run", "--models", "rescapsnet", "--depth", "1", "--out", "nothere", "--resume", "--dry-run")
    assert result.status == 0
    assert "there is nothing to resume in nothere: this sweep begins there" in result.stderr


@pytest.mark.parametrize("arguments", ["plot report", "slopes report", "run --out report --resume"])
def test_records_of_a_newer_version_are_left_alone(command, report, arguments):
    with (report / "records.jsonl").open("a") as file:
        file.write(json.dumps({"schema_version": SCHEMA_VERSION + 1}) + "\n")
    before = (report / "records.jsonl").read_bytes()
    assert_refused(command(*arguments.split()), "records.jsonl", f"version {SCHEMA_VERSION + 1}", "upgrade")
    assert (report / "records.jsonl").read_bytes() == before


@pytest.mark.parametrize("below", ["", "/deeper/still"])
def test_a_report_cannot_be_a_file(command, tmp_path, below):
    (tmp_path / "file").write_text("mine")
    assert_refused(command("run", "--depth", "1", "--out", f"file{below}"), f"file{below}", "cannot be written", "--out")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_misspelt_command_has_a_suggestion(command):
    assert_refused(command("slope", "reports"), "No such command 'slope'", "'slopes'")


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (
            "compare a",
            (
                "Missing argument 'B'",
                "B stands for what A is compared with",
                "for example: capsbench compare reports/before reports/after",
            ),
        ),
        ("check reports", ("Missing option '--baseline'", "for example: capsbench check reports/ --baseline baselines/ci.json")),
        ("plot", ("Missing argument 'REPORTS'", "REPORTS stands for a report, or", "for example: capsbench plot reports/")),
        ("show", ("Missing argument 'REPORTS'", "REPORTS stands for a report, or", "for example: capsbench show reports/")),
        ("report", ("Missing argument 'REPORTS...'", "REPORTS stands for reports, or", "for example: capsbench report reports/")),
        ("figure diagnostics", ("Missing argument 'RUN'", "for example: capsbench figure diagnostics runs/mine")),
        ("classify a.pt", ("Missing argument 'IMAGES...'", "png or jpg", "for example: capsbench classify runs/mine boot.png")),
        ("estimate model.py", ("no command 'estimate'", "capsbench.estimate(model, inputs)", "'capsbench predict'")),
        ("run --vary batch-size=16-64:0", ("--vary batch_size 16-64:0 has a step of 0", "give a step of 1 or more: 16-64:16")),
    ],
)
def test_a_request_that_lacks_something_is_answered_with_what_would_be_right(command, typed, named):
    assert_refused(command(*typed.split()), *named)


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("show mine --basis blocks=1,n --basis blocks=1,1/n", ("--basis blocks is given twice",)),
        ("slopes mine --at blocks=4,blocks=5", ("--at blocks is given twice", "--at blocks=16")),
        ("slopes mine --at batch-size=4,batch-size=5", ("--at batch-size is given twice",)),
        ("slopes mine --at blocks=4 --along blocks", ("--along has no effect with --at", "leave --along out")),
        ("predict --models capsnet --gpu ''", ("--gpu '' is not known", "h100")),
        ("run --models capsnet --device cuda:predicted --gpu ''", ("--gpu '' is not known",)),
        ("train --validation 1.5", ("--validation '1.5' is not a fraction below 1, or a whole number of images",)),
        ("train --validation nan", ("--validation 'nan'",)),
        ("train --out mine", ("--out mine holds a report", "another folder")),
        (
            "init-ci --baseline /x/ci.json",
            ("--baseline '/x/ci.json' is not a path within the repository", "baselines/ci.json"),
        ),
        ("init-ci --baseline ../ci.json --gitlab", ("--baseline '../ci.json'",)),
        ("init-ci --baseline ''", ("--baseline ''",)),
        ("run --models crash.py:net", ("ZeroDivisionError: division by zero (crash.py:2 in <module>)", "fix the file")),
        ("run --models some.py:net", ("has no attribute 'net'", "name one of first, second")),
        ("run --models empty.py:net", ("has no attribute 'net'", "it has no function or class yet")),
    ],
)
def test_requests_that_contradict_themselves_or_name_nothing_are_refused(command, tmp_path, typed, named):
    write_report(Report.of([make_record(blocks=blocks) for blocks in (1, 2)]), tmp_path / "mine")
    (tmp_path / "crash.py").write_text("import math\n1 / 0\n")
    (tmp_path / "some.py").write_text("def first(): pass\ndef second(): pass\n")
    (tmp_path / "empty.py").write_text("")
    assert_refused(command(*shlex.split(typed)), *named)


def test_an_axis_that_was_asked_for_is_named_where_it_gives_no_slope(command, tmp_path):
    write_report(Report.of([make_record(blocks=blocks) for blocks in (1, 2)]), tmp_path / "mine")
    for name in ("show", "slopes"):
        assert command(name, "mine", "--along", "batch-size").stdout == (
            "no slopes: a line needs two measured positions along batch size\n"
        )


def test_an_option_of_another_command_is_answered_with_that_command(command):
    assert_refused(
        command("run", "--fit", "batch"), "--fit", "\n'capsbench predict' has one; '", "run --help' shows what it takes\n"
    )
    result = command("slopes", "--json", "--fot")
    assert_refused(result, "--fot", "slopes --help' shows what it takes\n")
    assert "has one" not in result.stderr


def test_a_report_is_not_overwritten(command, report):
    before = (report / "records.jsonl").read_bytes()
    assert_refused(command("run", "--depth", "1", "--out", "report"), "--out", "report", "--resume")
    assert (report / "records.jsonl").read_bytes() == before


@pytest.mark.slow
def test_figures_that_cannot_be_written(command, report):
    (report / "figure3.svg").mkdir()
    result = command("plot", "report")
    assert result.status == 2
    assert "figure3.svg cannot be written" in result.stderr
    assert len(result.stderr.splitlines()) <= 2


@pytest.mark.slow
def test_plot_draws_every_report_and_what_was_asked(command, report):
    (report.parent / "report" / "inner").mkdir()
    Report(report / "inner").append(make_record(status="oom"))
    result = command("plot", ".", "--metric", "process,peak", "--per", "epoch", "--paper", drawn=True)
    assert result.status == 0
    assert result.stderr == "table 4 is not drawn: it compares with records of a GPU, and there are none\n"
    assert len(result.stdout.splitlines()) == 16
    # The page as well, which `run` has drawn before.
    assert {"report/index.html", "report/inner/index.html"} <= set(result.stdout.splitlines())
    text = (report / "figure3.svg").read_text(encoding="utf-8")
    assert "largest resident set" in text
    assert "seconds per epoch" in text


def test_a_dry_run_says_what_would_be_and_does_nothing(command, tmp_path):
    models = ["--models", "rescapsnet,mocapsnet", "--batch-size", "4"]
    result = command("run", *models, "--depth", "1-2", "--repeats", "2", "--dry-run", "--out", "there")
    assert result.status == 0
    assert "8 cells" in result.stderr
    assert re.search(r"\d+ (s|min \d\d s) to \d|about \d", result.stderr)
    lines = [re.split(r" {2,}", line.strip()) for line in result.stdout.splitlines()]
    assert lines[0] == ["series", "measured at", "cells", "peak, predicted"]
    assert [line[:3] for line in lines[1:]] == [["ResCapsNet", "1, 2 blocks", "4"], ["MoCapsNet", "1, 2 blocks", "4"]]
    peaks = [list(map(float, re.fullmatch(r"([\d.]+) MiB to ([\d.]+) MiB", line[3]).groups())) for line in lines[1:]]
    assert all(0 < small < large for small, large in peaks)
    assert not (tmp_path / "there").exists()
    assert command("run", *models, "--depth", "1", "--dry-run", "--json").stdout == ""


def test_a_quick_run_has_values_of_its_own_where_none_is_typed(command, tmp_path):
    (tmp_path / "cases.py").write_text(
        "import torch\nfrom torch import nn\nfrom capsbench import Case\n\ndef make(blocks=2):\n"
        "    layers = nn.Sequential(*[nn.Linear(4, 4) for _ in range(blocks)])\n"
        "    return Case(layers, torch.rand(3, 4), loss=lambda out: out.sum())\n"
    )

    def planned(*words):
        result = command("run", *words, "--quick", "--device", "cpu:predicted", "--out", "quick")
        assert result.status == 0, result
        asked = [cell.configuration for cell in Report(tmp_path / "quick").plan.cells]
        shutil.rmtree(tmp_path / "quick")
        return [(it.blocks, it.batch_size) for it in asked]

    assert planned("--models", "mocapsnet") == [(1, 16), (2, 16), (3, 16)]
    assert planned("--models", "mocapsnet", "--depth", "1", "--batch-size", "4") == [(1, 4)]
    # A case keeps the batch that it has.
    assert planned("--models", "cases.py:make") == [(1, None), (2, None), (3, None)]


# Real sweeps.


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, server):
    """The smallest sweep that has everything: its folder, and what was printed."""
    home = tmp_path_factory.mktemp("sweep")
    arguments = ["run", "--models", "all", "--depth", "1-2", "--batch-size", "2", "--out", "reports/tiny"]
    done = server(home, *briefly(arguments), drawn=True, **process_environment(home))
    return home, arguments, done


@pytest.mark.slow
def test_a_sweep_ends_well_and_says_what_it_did(sweep):
    home, _, done = sweep
    assert done.status == 0, done.stderr
    assert "6 cells" in done.stderr
    assert "6/6" in done.stderr
    for words in ("CapsNet", "ResCapsNet", "MoCapsNet", "retained", "peak", "train", "×"):
        assert words in done.stdout
    for path in re.findall(r"^wrote ([^,\n]*)", done.stderr, re.MULTILINE):
        assert (home / path).stat().st_size > 0
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if "  " in line)


def test_a_sweep_leaves_a_report(sweep):
    home, _, _ = sweep
    folder = home / "reports" / "tiny"
    names = {path.name for path in folder.iterdir()} - {".lock", ".drawn.json"}
    figures = {f"figure{number}.{kind}" for number in (3, 4) for kind in ("svg", "png", "pdf")}
    assert names == {"plan.json", "environment.json", "records.jsonl", "slopes.csv", "index.html"} | figures
    records = Report(folder).records
    assert [record.cell for record in records] == Report(folder).plan.cells
    assert {record.environment for record in records} == set(Report(folder).environments)
    frame = load(folder)
    assert set(frame["status"]) == {"ok"}
    retained = frame.set_index(["model", "blocks"])["retained_bytes"]
    assert retained["mocapsnet", 1] == retained["mocapsnet", 2]
    assert retained["rescapsnet", 1] < retained["rescapsnet", 2]


def test_a_report_says_nothing_of_where_it_was_made(sweep):
    home, _, _ = sweep
    host = re.compile(rf"\b{re.escape(socket.gethostname())}\b".encode())
    for path in (home / "reports").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            for place in (home, Path.home(), Path(sys.prefix), Path.cwd()):
                assert f"{place}/".encode() not in data, path
            if path.suffix != ".png":
                assert not host.search(data), path


def test_slopes_of_a_sweep_are_json(sweep, capsbench):
    home, _, _ = sweep
    result = capsbench("slopes", "reports", "--json", cwd=home)
    assert (result.status, result.stderr) == (0, "")
    rows = json.loads(result.stdout)
    (row,) = [row for row in rows if row["model"] == "mocapsnet" and row["metric"] == "retained"]
    assert (row["slope"], row["unit"], row["ratio_to_rescapsnet"], row["r2"]) == (0, "bytes per block", 0, None)


def test_a_finished_sweep_is_not_measured_again(sweep, capsbench):
    home, arguments, _ = sweep
    records = home / "reports" / "tiny" / "records.jsonl"
    before = records.read_bytes()
    result = capsbench(*arguments, "--resume", "--json", cwd=home, drawn=True)
    assert result.status == 0
    assert len(json.loads(result.stdout)) > 3
    assert "6 already measured" in result.stderr
    # Looked for by its cells it is not found: nothing of it is left to do, and another one would be taken for it.
    unnamed = capsbench(*arguments[:-2], "--resume", cwd=home)
    assert unnamed.status == 2
    assert "unfinished" in unnamed.stderr
    assert records.read_bytes() == before


def test_plotting_again_changes_nothing(sweep, capsbench):
    home, _, _ = sweep
    folder = home / "reports" / "tiny"
    before = {path.name: path.read_bytes() for path in folder.glob("figure*")}
    result = capsbench("plot", "reports", cwd=home, drawn=True)
    assert (result.status, result.stderr) == (0, "")
    assert {path.name: path.read_bytes() for path in folder.glob("figure*")} == before


def test_an_optimizer_that_steps_inside_backward_is_measured(tmp_path, capsbench):
    arguments = ["run", "--models", "mocapsnet", "--depth", "1", "--batch-size", "2", "--capsules", "4", "--out", "report"]
    arguments += ["--routing", "sda", "--front", "chunked", "--memory", "reversible-kept", "--inverse", "segmented"]
    result = capsbench(*arguments, "--optimizer-step", "after,backward")
    assert result.status == 0, result.stderr
    after, backward = load(tmp_path / "report").to_dict("records")
    for row in (after, backward):
        assert [row[name] for name in ("status", "routing", "front", "memory", "inverse")] == [
            "ok",
            "sda",
            "chunked",
            "reversible-kept",
            "segmented",
        ]
    assert backward["optimizer_step"] == "backward" != after["optimizer_step"]
    assert (after["gradient_bytes"], backward["gradient_bytes"]) == (after["state_bytes"], 0)
    assert backward["peak_allocated_bytes"] < after["peak_allocated_bytes"]


# Two blocks or more wait for a file, so that a sweep can be caught in the middle of a cell.
WAITING = """
import os, pathlib, time
import torch
def make(in_shape, num_classes, blocks):
    pathlib.Path(f"reached-{blocks}").write_text(str(os.getpid()))
    while blocks > 1 and not pathlib.Path("go").exists():
        time.sleep(0.05)
    pixels = in_shape[0] * in_shape[1] * in_shape[2]
    more = [torch.nn.Linear(num_classes, num_classes) for _ in range(blocks)]
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(pixels, num_classes), *more)
"""


@pytest.fixture
def caught(tmp_path, server):
    """A sweep of three depths that has measured the first and is in the middle of the second."""
    (tmp_path / "waiting.py").write_text(WAITING)
    arguments = ["run", "--models", "waiting:make", "--depth", "1-3", "--batch-size", "2", "--out", "report"]
    process = server.start(tmp_path, *arguments, **process_environment(tmp_path))
    try:
        wait_for(lambda: written(tmp_path / "reached-2") or process.poll())
        workers = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        assert int((tmp_path / "reached-2").read_text()) in workers
        yield process, arguments, workers
    finally:
        process.kill()


def measured(folder, *, in_turn=False):
    """Number of records of each depth on the disk, of its memory or of its times in turn, without damaged lines."""
    records = map(Record.model_validate_json, (folder / "records.jsonl").read_text().splitlines())
    return Counter(one.cell.configuration.blocks for one in records if bool(one.time and one.time.rounds) == in_turn)


def test_kill_9_costs_the_cell_in_flight_alone(caught, tmp_path, capsbench):
    process, arguments, workers = caught
    process.kill()
    wait_for(lambda: all(map(is_gone, workers)))
    assert measured(tmp_path / "report") == {1: 1}
    (tmp_path / "go").touch()
    result = capsbench(*arguments, "--resume")
    assert result.status == 0, result.stderr
    assert "memory of 1 already measured" in result.stderr
    assert measured(tmp_path / "report") == {1: 1, 2: 1, 3: 1}
    assert measured(tmp_path / "report", in_turn=True) == {1: 1, 2: 1, 3: 1}


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(caught, tmp_path, capsbench, command):
    process, arguments, workers = caught
    # Meanwhile nobody else gets in.
    for more in ([], ["--resume"]):
        assert_refused(command(*arguments, *more), "report", "in use")
    process.send_signal(signal.SIGINT)
    wait_for(process.poll)
    status, stderr = process.end().status, process.end().stderr
    assert status == 130
    assert "Traceback" not in stderr
    assert len(error_lines(stderr)) <= 2
    assert all(map(is_gone, workers))
    assert measured(tmp_path / "report") == {1: 1}
    (again,) = re.findall(r"resume with: (.*)$", stderr, re.MULTILINE | re.IGNORECASE)
    (tmp_path / "go").touch()
    typed = shlex.split(again)
    assert typed[0] == "capsbench"
    assert capsbench(*typed[1:]).status == 0
    assert measured(tmp_path / "report") == {1: 1, 2: 1, 3: 1}
    assert measured(tmp_path / "report", in_turn=True) == {1: 1, 2: 1, 3: 1}


def test_a_second_ctrl_c_still_says_how_to_go_on(command, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("capsbench.sweep.measuring.run_sweep", stopped)
    monkeypatch.setattr("capsbench.cli.sweeps._conclude", stopped)
    result = command("run", "--models", "rescapsnet", "--depth", "1", "--out", "report")
    assert result.status == 130
    assert "interrupted; what was measured is drawn" in result.stderr
    assert "error: interrupted; all that was measured is kept\nresume with: capsbench run" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--out", ""], ("--out is empty", "name a file or a folder")),
        (["run", "--gpu", "h100"], ("--gpu h100 cannot be combined with --device auto", "add --device cuda:predicted")),
    ],
)
def test_options_that_would_be_passed_over_are_refused(command, tmp_path, arguments, words):
    assert_refused(command(*arguments, "--models", "rescapsnet", "--depth", "1"), *words)
    assert not any(tmp_path.iterdir())


def test_a_figure_per_pair_of_samples_is_their_median(command, report):
    record = json.loads((report / "records.jsonl").read_text().splitlines()[0])
    record["time"]["train_step_seconds"] = [0.1, 0.3]
    assert "step 200.0 ms" in _one_line(Record.model_validate(record), None)


# In the eighth training step of a process the network waits for a file, and so do all cells that take turns with it.
TURNING = """
import pathlib, time
import torch
class Net(torch.nn.Sequential):
    steps = 0
    def forward(self, x):
        self.steps += self.training
        if self.steps > 7 and not pathlib.Path("go").exists():
            pathlib.Path("turning").touch()
            while not pathlib.Path("go").exists():
                time.sleep(0.05)
        return super().forward(x)
def make(in_shape, num_classes, blocks):
    pixels = in_shape[0] * in_shape[1] * in_shape[2]
    blocks = torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(blocks)])
    return Net(torch.nn.Flatten(), torch.nn.Linear(pixels, 8), blocks, torch.nn.Linear(8, num_classes))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_sweep_that_is_cut_off_while_cells_take_turns_keeps_its_rounds(tmp_path, server, capsbench, how):
    (tmp_path / "turning_net.py").write_text(TURNING)
    arguments = [
        "run",
        "--models",
        "turning_net:make",
        "--depth",
        "1,2",
        "--batch-size",
        "2",
        "--out",
        "report",
        "--time-budget",
        "1",
    ]
    process = server.start(tmp_path, *arguments, **process_environment(tmp_path))
    try:
        wait_for(lambda: (tmp_path / "turning").exists() or process.poll())
        workers = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(how)
        wait_for(process.poll)
    finally:
        errors = process.kill().stderr
    assert "Traceback" not in errors
    wait_for(lambda: all(map(is_gone, workers)))
    kept = [Round.model_validate_json(line) for line in (tmp_path / "report" / "rounds.jsonl").read_text().splitlines()]
    assert kept
    assert measured(tmp_path / "report") == {1: 1, 2: 1}
    # What is there can be drawn.
    shown = capsbench("show", "report")
    assert shown.status == 0, shown.stderr
    assert {len(times) for times in load(tmp_path / "report")["train_step_samples"]} == {len(kept)}

    (tmp_path / "go").touch()
    result = capsbench(*arguments, "--resume")
    assert result.status == 0, result.stderr
    assert "memory of 2 already measured" in result.stderr
    for record in Report(tmp_path / "report").records:
        assert record.time.rounds[: len(kept)] == [one.number for one in kept]
        assert set(record.time.processes) == {0, 1}
    assert not (tmp_path / "report" / "rounds.jsonl").exists()


def test_a_full_disk_costs_nothing_that_was_measured(tmp_path, capsbench):
    (tmp_path / "go").touch()
    (tmp_path / "waiting.py").write_text(WAITING)
    # As many samples in each record, so that all are of about the same length.
    arguments = ["run", "--models", "waiting:make", "--batch-size", "2", "--out", "report", "--time-budget", "0.001"]
    assert capsbench(*arguments, "--depth", "1").status == 0
    records = tmp_path / "report" / "records.jsonl"
    before = records.read_bytes()

    # Room for a record elsewhere, but not for a second one here.
    room = len(before) * 3 // 2
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))"
    result = capsbench(*arguments, "--depth", "1-3", "--resume", setup=limit)
    assert result.status == 1, result
    assert "Traceback" not in result.stderr
    assert "records.jsonl cannot be written" in result.stderr
    assert len(error_lines(result.stderr)) == 2
    assert records.read_bytes() == before
    # What was measured last is in the folder that the message names.
    (rescued,) = (tmp_path / "scratch").glob("capsbench-*.jsonl")
    assert str(rescued) in result.stderr
    assert Record.model_validate_json(rescued.read_bytes()).cell.configuration.blocks == 2

    assert capsbench(*arguments, "--depth", "1-3", "--resume").status == 0
    assert measured(tmp_path / "report") == {1: 1, 2: 1, 3: 1}
    # The first depth was timed alone, before there were others, and has taken turns with these since.
    assert measured(tmp_path / "report", in_turn=True) == {1: 1, 2: 1, 3: 1}


def test_faults_are_told_and_make_the_status_1(tmp_path, capsbench):
    (tmp_path / "broken.py").write_text("def make(in_shape, num_classes, blocks):\n    raise ValueError('seven is too many')\n")
    result = capsbench("run", "--models", "broken:make", "--depth", "1", "--batch-size", "2", "--out", "report", "--json")
    assert result.status == 1
    assert json.loads(result.stdout) == []
    assert "seven is too many" in result.stderr
    assert "Traceback" not in result.stderr
