"""The commands that compare one run with another: compare, check and init-ci."""

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capsbench.cli.command import STANDARD_OUTPUT, command, echo, echo_json, typed_command
from capsbench.cli.options import FOLDER, NameList, Parsed
from capsbench.errors import ConfigurationError, StoreError
from capsbench.options import MODELS
from capsbench.paths import anchored, as_typed, start

if TYPE_CHECKING:
    from capsbench.gate.summary import Summary


_NUMBER = r"\s*(\d+(?:\.\d+)?)\s*"


def _bytes_threshold(text: str) -> tuple[float, float]:
    """Parse a threshold of bytes: `1%,512` → 0.01, 512."""
    found = re.fullmatch(f"{_NUMBER}%(?:\\s*,{_NUMBER})?", text)
    if not found:
        raise ConfigurationError(
            f"--bytes-threshold '{text}' is not a percentage and a number of bytes", "write 1%,512: the larger of the two counts"
        )
    return float(found[1]) / 100, float(found[2] or 0)


def _time_threshold(text: str) -> float:
    """Parse a threshold of time: `10%` → 0.1."""
    found = re.fullmatch(rf"{_NUMBER}%\s*", text)
    if not found:
        raise ConfigurationError(f"--time-threshold '{text}' is not a percentage", "write 10% for a tenth of the time before")
    return float(found[1]) / 100


_bytes_option = click.option(
    "--bytes-threshold",
    type=Parsed("share,bytes", _bytes_threshold),
    default="1%,512",
    show_default=True,
    help="Threshold of bytes, and of bytes per block: the larger of a percentage and a number of bytes.",
)
_time_option = click.option(
    "--time-threshold", type=Parsed("share", _time_threshold), default="10%", show_default=True, help="Of times."
)


@command()
@click.argument("a", type=FOLDER)
@click.argument("b", type=FOLDER)
@click.option("--cells", is_flag=True, help="Show every cell, beside slopes and levels.")
@_bytes_option
@_time_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON, every cell in it.")
@click.option("--markdown", is_flag=True, help="Print Markdown for a pull request.")
def compare(
    a: Path, b: Path, cells: bool, bytes_threshold: tuple[float, float], time_threshold: float, as_json: bool, markdown: bool
) -> None:
    """Compare two reports (or baselines), slope by slope and cell by cell: difference, interval, verdict.

    Worse means significantly different and beyond a threshold. Times are scaled to the first report's machine: each was
    measured beside a yardstick, which distinguishes a slower machine from slower code.

    \b
    Examples:
      capsbench compare reports/before reports/after
      capsbench compare baselines/cpu.json reports/mine --cells
      capsbench compare reports/before reports/after --time-threshold 5% --markdown
    """
    from capsbench.cli.console import console as console_of
    from capsbench.cli.output import say
    from capsbench.gate.compare import compare as compare_runs
    from capsbench.gate.comparison import Thresholds
    from capsbench.gate.verdicts import comparison_json, comparison_markdown, comparison_remarks, comparison_table

    if as_json and markdown:
        raise ConfigurationError("--json and --markdown both want standard output", "give one of them")
    compared = compare_runs(_read(a), _read(b), Thresholds(*bytes_threshold, time_threshold))
    if as_json:
        echo_json(comparison_json(compared))
    elif markdown:
        echo(comparison_markdown(compared, cells=cells), nl=False)
    else:
        console = console_of()
        console.print(comparison_table(compared, cells=cells))
        for remark in comparison_remarks(compared, cells=cells):
            say(console, remark)


@command()
@click.argument("reports", type=FOLDER)
@click.option("--baseline", type=FOLDER, required=True, help="Baseline that the run may not exceed; --update writes it.")
@click.option("--update", is_flag=True, help="Make the run the new baseline.")
@click.option("--last", type=FOLDER, help="An earlier report or baseline; changes since then are reported.")
@_bytes_option
@_time_option
@click.option("--junit", type=FOLDER, help="Write JUnit XML to this file.")
@click.option("--markdown", type=FOLDER, multiple=True, help="Write Markdown to this file; - prints it instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(
    reports: Path,
    baseline: Path,
    update: bool,
    last: Path | None,
    bytes_threshold: tuple[float, float],
    time_threshold: float,
    junit: Path | None,
    markdown: tuple[Path, ...],
    as_json: bool,
) -> int:
    """Fail, with exit status 1, where memory or time grew against a baseline, or a cell is missing or failed.

    Retained bytes, weights, gradients, optimizer state and everything predicted are compared on any machine; peaks and times
    where the machine is the same. Anything left out is reported.

    \b
    Examples:
      capsbench check reports/ --baseline baselines/cpu.json --update
      capsbench check reports/ --baseline baselines/cpu.json
      capsbench check reports/mine --baseline baselines/cpu.json --last reports/yesterday --junit check.xml --markdown -
    """
    from capsbench.gate.baseline import read_baseline, write_baseline
    from capsbench.gate.check import judge
    from capsbench.gate.comparison import Thresholds
    from capsbench.gate.verdicts import CheckText
    from capsbench.report import reports_below, summary_of
    from capsbench.words.printable import printable

    printed = STANDARD_OUTPUT in markdown
    if as_json and printed:
        raise ConfigurationError("--json and --markdown - both want standard output", "give one of them")
    if update and (last or junit or markdown or as_json):
        raise ConfigurationError(
            "--update writes a baseline and checks nothing: --last, --junit, --markdown and --json have no effect",
            "leave them out, or check first and update then",
        )
    run, notes = summary_of(reports_below(reports))
    if update:
        _refuse_faults(run)
        write_baseline(run.model_copy(update={"command": typed_command()}), baseline)
        for note in notes:
            echo(f"warning: {printable(note)}", err=True)
        echo(f"wrote {baseline}: {len(run.lines)} lines, {sum(len(line.cells) for line in run.lines)} cells")
        return 0
    earlier = _read(last) if last else None
    judgement = judge(run, read_baseline(baseline), earlier, Thresholds(*bytes_threshold, time_threshold))
    name = as_typed(str(baseline))
    again = shlex.join(["capsbench", "check", as_typed(str(reports)), "--baseline", name, "--update"])
    text = CheckText(judgement, name, again, map(as_typed, notes))
    for path in markdown:
        if path != STANDARD_OUTPUT:
            _write(path, text.markdown(), "--markdown")
    if junit:
        _write(junit, text.junit(), "--junit")
    if as_json:
        echo_json(text.as_json())
    else:
        echo(text.markdown() if printed else "\n".join(text.lines()), nl=not printed)
    return 0 if judgement.passed else 1


@command("init-ci")
@click.option("--models", default="all", show_default=True, help="Models to guard, as 'capsbench run' takes them.")
@click.option("--depth", default="1-3", show_default=True, help="Depths to guard, as 'capsbench run' takes them.")
@click.option("--baseline", default="baselines/ci.json", show_default=True, help="Path of the baseline in the repository.")
@click.option(
    "--install",
    help="What pip installs as capsbench there: git+https://HOST/PATH.git@v1, a wheel, or . for the repository itself; "
    "by default the source that this capsbench was installed from.",
)
@click.option("--gitlab", is_flag=True, help="Print a GitLab pipeline on standard output instead.")
@click.option("--force", is_flag=True, help="Overwrite an existing workflow.")
def init_ci(models: str, depth: str, baseline: str, install: str | None, gitlab: bool, force: bool) -> None:
    """Write .github/workflows/capsbench.yml: a check of every pull request, on predicted and CPU-exact memory.

    No public index has capsbench, so --install names the source for a build server.

    \b
    Examples:
      capsbench init-ci
      capsbench init-ci --models rescapsnet,my_package.models:make_net --depth 1,2,4
      capsbench init-ci --install git+https://git.example.org/tools/capsbench.git@v1
      capsbench init-ci --gitlab
    """
    from capsbench.gate.workflows import GITHUB_PATH, github_workflow, gitlab_pipeline, where_from
    from capsbench.sweep.plan import naming
    from capsbench.workload import resolve_model

    install = install or where_from(start())
    text = (gitlab_pipeline if gitlab else github_workflow)(models, depth, baseline, install)
    for model in NameList("--models", tuple(MODELS), open_ended=True).convert(models, None, None):
        # A user's own model need not be installed where the workflow is written.
        if model != "all" and ":" not in model:
            with naming("models"):
                resolve_model(model)
    if gitlab:
        echo(text, nl=False)
        return
    path = anchored(GITHUB_PATH)
    if path.exists() and not force:
        raise ConfigurationError(f"{GITHUB_PATH} is there already", "give --force to overwrite it")
    _write(path, text, "the workflow")
    echo(f"wrote {GITHUB_PATH}; it says at its top how to make {baseline}")
    if install is None:
        echo("it fails until its step 'Install' says where pip gets capsbench: give that with --install (and --force)")
    else:
        echo(f"a build server installs capsbench with: pip install {shlex.quote(install)}")


def _read(path: Path) -> "Summary":
    """Read a report or a baseline; its oddities are reported on standard error."""
    from capsbench.report import summary_in
    from capsbench.words.printable import printable

    summary, notes = summary_in(path)
    for note in notes:
        echo(f"warning: {printable(note)}", err=True)
    return summary


def _refuse_faults(run: "Summary") -> None:
    """Refuse faults, since a baseline holds results alone."""
    faults = [cell for line in run.lines for cell in line.cells if cell.status in ("error", "timeout")]
    if faults:
        raise ConfigurationError(
            f"--update: {len(faults)} cells ended in {' or '.join(sorted({cell.status for cell in faults}))}",
            "a baseline holds results: mend them, and measure again with 'capsbench run --resume'",
        )


def _write(path: Path, text: str, what: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{what} {path} cannot be written: {error.strerror}", "choose a file that you may write to") from None
