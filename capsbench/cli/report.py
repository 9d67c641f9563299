"""The commands for reading: report and show."""

import os
from collections.abc import Sequence
from pathlib import Path

import click

from capsbench.cli.command import command, echo
from capsbench.cli.options import FOLDER
from capsbench.errors import ConfigurationError, StoreError
from capsbench.paths import typed


@command()
@click.argument("reports", type=FOLDER, nargs=-1, required=True)
@click.option("--out", type=FOLDER, help="The file to write; by default index.html in the folder, or in the one that all share.")
def report(reports: tuple[Path, ...], out: Path | None) -> None:
    """Write one page of every report at or below the folders: no network, no server, opens from disk.

    Several reports are shown side by side, with their history and the gate's verdicts.

    \b
    Examples:
      capsbench report reports/
      capsbench report reports/before reports/after --out comparison.html
    """
    from capsbench.cli.output import warn
    from capsbench.files import nothing_to_read
    from capsbench.page import write_page
    from capsbench.report import PAGE, loose_timelines, reports_below

    path = out or _common(reports) / PAGE
    if path.is_dir():
        raise ConfigurationError(f"--out {path} is a folder", f"name a file, such as {path / PAGE}")
    found = reports_below(*reports)
    loose, damaged = loose_timelines(reports, found)
    for note in [*(note for one in found for note in one.notes), *damaged]:
        warn(note)
    if not any(one.records for one in found):
        raise nothing_to_read(*reports)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_page(found, path, loose, damaged)
    except OSError as error:
        raise StoreError(f"--out {path} cannot be written: {error.strerror}", "choose a file that you may write to") from None
    echo(path)


@command()
@click.argument("reports", type=FOLDER)
def show(reports: Path) -> None:
    """Draw the slopes of a report on the terminal, each with a small chart of memory or time over depth.

    \b
    Examples:
      capsbench show reports/
      capsbench show reports/mine
    """
    from rich.text import Text

    from capsbench.cli.console import console as console_of
    from capsbench.cli.output import load_records
    from capsbench.cli.streams import signs_of
    from capsbench.figures.sparks import BLOCKS, PLAIN
    from capsbench.stats.slopes import slopes
    from capsbench.terminal.show import show_lines

    frame = load_records(reports)
    console = console_of()
    plain = not _can_say(BLOCKS, console.encoding)
    table = slopes(frame)
    lines = show_lines(frame, table, PLAIN if plain else BLOCKS)
    for line in lines:
        text = Text(signs_of(line.plain, "ascii")) if plain else line
        console.print(text, soft_wrap=True)
    if table.empty:
        echo("no slopes: a line needs two measured depths")


def _can_say(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _common(roots: Sequence[Path]) -> Path:
    """The folder that is given, or the nearest common parent of several.

    Raises:
        ConfigurationError: only the root of the disk has.
    """
    if len(roots) == 1:
        return roots[0]
    common = Path(os.path.commonpath([root.resolve() for root in roots]))
    if common == Path(common.anchor):
        raise ConfigurationError("the folders share no parent but the root of the disk", "name the file to write with --out")
    return typed(common)
