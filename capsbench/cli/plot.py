"""`capsbench plot`: the figures of reports, drawn again."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from capsbench.cli.command import Argument, Command, echo
from capsbench.cli.flags import ALONG_OPTION, BASIS_OPTION, OPEN_OPTION
from capsbench.cli.output import declared, open_in_browser, warn_of_damages
from capsbench.cli.types import FOLDER, NameList, OneOf
from capsbench.errors import StoreError
from capsbench.report import reports_below
from capsbench.stats.metrics import MEMORY_METRICS
from capsbench.store.files import nothing_to_read

if TYPE_CHECKING:
    from capsbench.figures.panels import Per


@click.command("plot", cls=Command)
@click.argument("reports", cls=Argument, type=FOLDER, meaning="a report, or a folder of reports", example="reports/")
@click.option(
    "--metric", type=NameList(tuple(MEMORY_METRICS)), help="Memory to draw; by default retained, and peak as well in figure 4."
)
@click.option("--per", type=OneOf(["step", "epoch"]), default="step", help="Seconds per step or epoch.")
@click.option("--paper", "with_paper", is_flag=True, help="Draw the paper's table 4 where comparable (process, reserved).")
@ALONG_OPTION
@BASIS_OPTION
@OPEN_OPTION
def command(
    reports: Path, metric: tuple[str, ...] | None, per: "Per", with_paper: bool, along: str | None,
    basis: tuple[tuple[str, str], ...], open_page: bool,
) -> None:  # fmt: skip
    """Draw figures 3 and 4 of reports again, and their pages.

    Each report is drawn from its records. A report of 'capsbench reproduce' is drawn as that command draws it, unless an option
    asks for something else.

    \b
    Examples:
      capsbench plot reports/
      capsbench plot reports/mine --metric reserved,process --paper
    """
    from capsbench.paper import COMPARABLE_METRICS
    from capsbench.words.labels import on_gpu

    if with_paper and not set(metric or ()) & set(COMPARABLE_METRICS):
        echo(f"nothing here compares with table 4: add --metric {' or '.join(COMPARABLE_METRICS)}", err=True)
    comparable = False
    empty: list[StoreError] = []
    for one in declared(reports_below(reports), basis):
        warn_of_damages([one])
        if not one.records:
            # The other reports are still drawn.
            empty.append(nothing_to_read(one.folder))
            continue
        paths = one.write(memory=metric, per=per, with_paper=with_paper, along=along)
        for path in paths:
            echo(path)
        if open_page:
            open_in_browser(paths[-1])
        comparable = comparable or bool(on_gpu(one.frame).any())
    for other in empty[1:]:
        echo(f"error: {other.what}", err=True)
    if empty:
        raise empty[0]
    if with_paper and not comparable:
        echo("table 4 is not drawn: it compares with records of a GPU, and there are none", err=True)
