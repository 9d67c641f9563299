"""`capsbench compare`: two reports, figure by figure."""

from pathlib import Path

import click

from capsbench.cli.command import Argument, Command, echo, echo_json
from capsbench.cli.flags import THRESHOLD_OPTIONS
from capsbench.cli.output import console_of, load_summary, say
from capsbench.cli.types import FOLDER, NameList
from capsbench.errors import ConfigurationError
from capsbench.options import OPTIONS


@click.command("compare", cls=Command)
@click.argument("a", cls=Argument, type=FOLDER, meaning="a report, a folder of reports, or a baseline", example="reports/before")
@click.argument("b", cls=Argument, type=FOLDER, meaning="what A is compared with, also one of these", example="reports/after")
@click.option("--cells", is_flag=True, help="Show every cell, in addition to slopes and levels.")
@click.option(
    "--across",
    type=NameList((*OPTIONS, "kind")),
    default=(),
    help="Options in which the two may differ, such as kernel; kind compares predicted with measured.",
)
@THRESHOLD_OPTIONS
@click.option("--json", "as_json", is_flag=True, help="Print JSON, every cell in it.")
@click.option("--markdown", is_flag=True, help="Print Markdown for a pull request.")
def command(
    a: Path, b: Path, cells: bool, across: tuple[str, ...], bytes_threshold: tuple[float, float], time_threshold: float,
    as_json: bool, markdown: bool,
) -> None:  # fmt: skip
    """Compare two reports: difference, interval and verdict.

    They are compared slope by slope and cell by cell. A value is worse if it differs significantly and by more than a threshold.
    Times are printed as each report has them. Their differences are at equal pace of the machine, which a yardstick measures, a
    computation that was timed with both: it distinguishes a slower machine from slower code.

    \b
    Examples:
      capsbench compare reports/before reports/after
      capsbench compare baselines/cpu.json reports/mine --cells
      capsbench compare reports/published reports/compiled --across kernel
      capsbench compare reports/before reports/after --time-threshold 5% --markdown
    """
    from capsbench.gate.compare import compare
    from capsbench.gate.comparison import Thresholds
    from capsbench.gate.verdicts import comparison_json, comparison_markdown, comparison_remarks, comparison_table

    if as_json and markdown:
        raise ConfigurationError("--json and --markdown both print on standard output", "give one of them")
    compared = compare(load_summary(a), load_summary(b), Thresholds(*bytes_threshold, time_threshold), across=across)
    hint = "--cells shows them"
    if as_json:
        echo_json(comparison_json(compared))
    elif markdown:
        echo(comparison_markdown(compared, cells=cells, hint=hint), nl=False)
    else:
        console = console_of()
        console.print(comparison_table(compared, cells=cells))
        for remark in comparison_remarks(compared, cells=cells, hint=hint):
            say(console, remark)
