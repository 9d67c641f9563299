"""`capsbench show`: slopes and small charts on the terminal."""

from pathlib import Path

import click
from rich.text import Text

from capsbench.cli.command import Argument, Command, echo
from capsbench.cli.flags import ALONG_OPTION, BASIS_OPTION
from capsbench.cli.output import console_of, load_reports, no_slopes, print_faults
from capsbench.cli.streams import signs_of
from capsbench.cli.types import FOLDER


@click.command("show", cls=Command)
@click.argument("reports", cls=Argument, type=FOLDER, meaning="a report, or a folder of reports", example="reports/")
@ALONG_OPTION
@BASIS_OPTION
def command(reports: Path, along: str | None, basis: tuple[tuple[str, str], ...]) -> None:
    """Draw the slopes of a report on the terminal.

    Each has a small chart of memory or time over depth, or over what was varied.

    \b
    Examples:
      capsbench show reports/
      capsbench show reports/mine --along batch-size
    """
    from capsbench import frame as frames
    from capsbench.figures.sparks import BLOCKS, PLAIN
    from capsbench.stats.slopes import fitted_slopes
    from capsbench.terminal.show import show_lines

    loaded = load_reports(reports, basis)
    frame = frames.along(frames.frame_of(loaded), along)
    console = console_of()
    signs = BLOCKS
    try:
        BLOCKS.encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        signs = PLAIN
    table = fitted_slopes(frame)
    for line in show_lines(frame, table, signs):
        console.print(Text(signs_of(line.plain, "ascii")) if signs == PLAIN else line, soft_wrap=True)
    if table.empty:
        echo(no_slopes(frame, along))
    print_faults(loaded, console)
