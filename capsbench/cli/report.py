"""`capsbench report`: the page of reports."""

import os
from collections.abc import Sequence
from pathlib import Path

import click

from capsbench.cli.command import Argument, Command, echo
from capsbench.cli.flags import OPEN_OPTION
from capsbench.cli.output import open_in_browser, warn
from capsbench.cli.types import FOLDER
from capsbench.errors import ConfigurationError, StoreError
from capsbench.report import PAGE, loose_timelines, reports_below
from capsbench.store.files import nothing_to_read
from capsbench.system.paths import typed


@click.command("report", cls=Command)
@click.argument(
    "reports", cls=Argument, type=FOLDER, nargs=-1, required=True, meaning="reports, or folders of reports", example="reports/"
)
@click.option("--out", type=FOLDER, help="The file to write; by default index.html in the folder, or in the one that all share.")
@OPEN_OPTION
def command(reports: tuple[Path, ...], out: Path | None, open_page: bool) -> None:
    """Write reports as one self-contained HTML page.

    The page needs neither a network nor a server. It shows several reports side by side, with their history and the verdicts of
    the check.

    \b
    Examples:
      capsbench report reports/
      capsbench report reports/before reports/after --out comparison.html
    """
    from capsbench.page import write_page

    path = out or _common(reports) / PAGE
    if path.is_dir():
        raise ConfigurationError(f"--out {path} is a folder", f"name a file, such as {path / PAGE}")
    listed = reports_below(*reports)
    loose, damaged = loose_timelines(reports, listed)
    for note in [*(note for one in listed for note in one.notes), *damaged]:
        warn(note)
    if not any(one.records for one in listed):
        raise nothing_to_read(*reports)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_page(listed, path, loose, damaged)
    except OSError as error:
        raise StoreError(f"--out {path} cannot be written: {error.strerror}", "choose a file that you may write to") from None
    echo(path)
    if open_page:
        open_in_browser(path)


def _common(roots: Sequence[Path]) -> Path:
    """The folder that is given, or the nearest common parent of several."""
    if len(roots) == 1:
        return roots[0]
    common = Path(os.path.commonpath([root.resolve() for root in roots]))
    if common == Path(common.anchor):
        raise ConfigurationError("the folders share no parent but the root of the disk", "name the file to write with --out")
    return typed(common)
