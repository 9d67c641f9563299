"""`capsbench slopes`: the slopes of reports, as a table."""

from pathlib import Path

import click

from capsbench.cli.command import Argument, Command, echo
from capsbench.cli.flags import ALONG_OPTION, BASIS_OPTION
from capsbench.cli.output import console_of, load_reports, print_estimates, print_faults, print_slopes
from capsbench.cli.typed import refuse_given
from capsbench.cli.types import FOLDER, Parsed, parse_place
from capsbench.errors import ConfigurationError


@click.command("slopes", cls=Command)
@click.argument("reports", cls=Argument, type=FOLDER, meaning="a report, or a folder of reports", example="reports/")
@ALONG_OPTION
@BASIS_OPTION
@click.option(
    "--at",
    type=Parsed("position", parse_place),
    help="Predict every cost at a point that need not have been measured: blocks=16,batch-size=256.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: bytes and seconds per block, or per unit of another axis.")
@click.option("--latex", is_flag=True, help="Print a table for LaTeX (booktabs), with the units in its head.")
def command(
    reports: Path,
    along: str | None,
    basis: tuple[tuple[str, str], ...],
    at: dict[str, float] | None,
    as_json: bool,
    latex: bool,
) -> None:
    """Print what one more block costs, or one more sample.

    The slope of each line is printed with its 95 % interval, and with its ratio to that of ResCapsNet if there is one.

    \b
    Examples:
      capsbench slopes reports/
      capsbench slopes reports/mine --along batch-size --json
      capsbench slopes reports/mine --latex
      capsbench slopes reports/grid --at blocks=16,batch-size=256
      capsbench slopes reports/length --basis length=1,n,n²
    """
    from capsbench.frame import frame_of
    from capsbench.stats.grid_costs import predicted_at
    from capsbench.stats.slopes import fitted_slopes
    from capsbench.terminal.latex import slopes_latex

    if latex and (as_json or at is not None):
        raise ConfigurationError(f"--latex cannot be combined with {'--json' if as_json else '--at'}", "leave one of the two out")
    if at is not None:
        refuse_given("along", "--at", "a point has a position on every axis")
    loaded = load_reports(reports, basis)
    frame = frame_of(loaded)
    if at is not None:
        print_estimates(predicted_at(frame, at), at, as_json=as_json)
        return
    table = fitted_slopes(frame, along)
    if latex and len(table):
        echo(slopes_latex(table))
        return
    print_slopes(frame, table, along, as_json=as_json)
    print_faults(loaded, console_of(err=True))
