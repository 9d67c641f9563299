"""`capsbench check`: a report against a baseline."""

import shlex
from pathlib import Path

import click

from capsbench.cli.command import STANDARD_OUTPUT, Argument, Command, RequiredOption, echo, echo_json, typed_command
from capsbench.cli.flags import THRESHOLD_OPTIONS
from capsbench.cli.output import load_summary, warn, write_text
from capsbench.cli.types import FOLDER
from capsbench.errors import ConfigurationError
from capsbench.records import FAULTS
from capsbench.report import reports_below, summary_of
from capsbench.system.paths import with_typed_paths


@click.command("check", cls=Command)
@click.argument("reports", cls=Argument, type=FOLDER, meaning="a report, or a folder of reports", example="reports/")
@click.option(
    "--baseline", cls=RequiredOption, type=FOLDER, example="baselines/ci.json",
    help="File of the values that a run may not exceed; --update writes it.",
)  # fmt: skip
@click.option("--update", is_flag=True, help="Make the run the new baseline.")
@click.option("--last", type=FOLDER, help="An earlier report or baseline; changes since then are reported.")
@THRESHOLD_OPTIONS
@click.option("--junit", type=FOLDER, help="Write JUnit XML to this file.")
@click.option("--markdown", type=FOLDER, multiple=True, help="Write Markdown to this file; - prints it instead.")
@click.option("--badge", type=FOLDER, help="Write a badge for a README to this file, as SVG.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    reports: Path, baseline: Path, update: bool, last: Path | None, bytes_threshold: tuple[float, float],
    time_threshold: float, junit: Path | None, markdown: tuple[Path, ...], badge: Path | None, as_json: bool,
) -> int:  # fmt: skip
    """Fail if memory or time grew since a baseline.

    The exit status is then 1, as it is if a cell failed or is missing. Retained bytes, weights, gradients, optimizer state
    and everything predicted are compared on any machine; peaks and times where the machine is the same. Anything left out is
    reported.

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

    printed = STANDARD_OUTPUT in markdown
    if as_json and printed:
        raise ConfigurationError("--json and --markdown - both print on standard output", "give one of them")
    if update and (last or junit or markdown or badge or as_json):
        raise ConfigurationError(
            "--update writes a baseline and checks nothing: --last, --junit, --markdown, --badge and --json have no effect",
            "leave them out, or check first and update then",
        )
    run, notes = summary_of(reports_below(reports))
    if update:
        faults = [cell.status for line in run.lines for cell in line.cells if cell.status in FAULTS]
        if faults:
            raise ConfigurationError(
                f"--update: {len(faults)} cells ended in {' or '.join(sorted(set(faults)))}",
                "a baseline holds results: fix them, and measure again with 'capsbench run --resume'",
            )
        write_baseline(run.model_copy(update={"command": typed_command()}), baseline)
        for note in notes:
            warn(note)
        lines, cells = len(run.lines), sum(len(line.cells) for line in run.lines)
        echo(f"wrote {baseline}: {lines} line{'s' * (lines != 1)}, {cells} cell{'s' * (cells != 1)}")
        return 0
    earlier = load_summary(last) if last else None
    judgement = judge(run, read_baseline(baseline), earlier, Thresholds(*bytes_threshold, time_threshold))
    name = with_typed_paths(str(baseline))
    again = shlex.join(["capsbench", "check", with_typed_paths(str(reports)), "--baseline", name, "--update"])
    text = CheckText(judgement, name, again, map(with_typed_paths, notes))
    summaries = [("--markdown", path, text.markdown) for path in markdown if path != STANDARD_OUTPUT]
    for flag, path, written in (*summaries, ("--junit", junit, text.junit), ("--badge", badge, text.badge)):
        if path:
            write_text(path, written(), flag)
    if as_json:
        echo_json(text.as_json())
    else:
        echo(text.markdown() if printed else "\n".join(text.lines()), nl=not printed)
    return 0 if judgement.passed else 1
