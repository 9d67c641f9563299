"""Reading of reports and printing, for all commands."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from rich.console import Console

from capsbench.cli.command import echo, in_words_of_command
from capsbench.cli.console import console as console_of
from capsbench.errors import StoreError
from capsbench.files import damage_in_words, nothing_to_read
from capsbench.report import Report, frame_of, reports_below
from capsbench.terminal.tables import peak_note, slopes_table
from capsbench.words.printable import printable, printable_lines


def load_records(folder: Path) -> pd.DataFrame:
    """Return the records at or below a folder; damaged lines are reported on standard error.

    Raises:
        StoreError: there are none, or they cannot be read.
    """
    reports = reports_below(folder)
    warn_of_damages(reports)
    if not any(report.records for report in reports):
        raise nothing_to_read(folder)
    return frame_of(reports)


def warn_of_damages(reports: Iterable[Report]) -> None:
    """Print on standard error which lines of reports are damaged."""
    for text in damage_in_words(damage for report in reports for damage in report.damages):
        warn(text)


def warn(text: str) -> None:
    """Print a warning on standard error."""
    echo(f"warning: {printable(text)}", err=True)


def print_slopes(frame: pd.DataFrame, table: pd.DataFrame, *, as_json: bool) -> None:
    """Print slopes on standard output, as a table or as JSON.

    Args:
        frame: the records.
        table: their slopes.
        as_json: whether as JSON.
    """
    if as_json:
        echo(table.to_json(orient="records", indent=1))
        return
    console = console_of()
    if table.empty:
        say(console, "no slopes: a line needs two measured depths")
        return
    console.print(slopes_table(table))
    note = peak_note(table, frame)
    if note:
        say(console, note)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a failure to write into an error that names the folder."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{error.filename or folder} cannot be written: {error.strerror}",
            "make room or check permissions, then 'capsbench plot' and 'capsbench report'",
        ) from None


def say(console: Console, text: str) -> None:
    """Print a line as it is: not wrapped, not coloured, not read as markup, and without commands to the terminal."""
    console.print(printable_lines(in_words_of_command(text)), markup=False, highlight=False, soft_wrap=True)
