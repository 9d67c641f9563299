"""`capsbench slopes`: the slopes of reports, as a table."""

from pathlib import Path

import click

from capsbench.cli.command import Command
from capsbench.cli.flags import FOLDER
from capsbench.cli.output import load_records, print_slopes


@click.command("slopes", cls=Command)
@click.argument("reports", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: bytes and seconds per block.")
def command(reports: Path, as_json: bool) -> None:
    """Print the slope of every line: the cost of a block, with its 95 % interval and the ratio to ResCapsNet.

    \b
    Examples:
      capsbench slopes reports/
      capsbench slopes reports/mine --json
    """
    from capsbench.stats.slopes import fitted_slopes

    frame = load_records(reports)
    print_slopes(frame, fitted_slopes(frame), as_json=as_json)
