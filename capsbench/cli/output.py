"""How commands read records and print."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from rich.console import Console

from capsbench.cli.command import echo, in_words_of_command
from capsbench.cli.console import console as console_of
from capsbench.errors import StoreError
from capsbench.records import Plan
from capsbench.stats.slopes import slopes
from capsbench.store import load, nothing_to_read
from capsbench.terminal.tables import peak_note, slopes_table
from capsbench.words.printable import printable, printable_lines
from capsbench.writing import write_paper_report, write_report


def load_records(folder: Path) -> pd.DataFrame:
    """Records of a folder; damaged lines are told on standard error.

    Raises:
        StoreError: there are none, or they cannot be read.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = load(folder)
    for warning in caught:
        warn(str(warning.message))
    if frame.empty:
        raise nothing_to_read(folder)
    return frame


def warn(text: str) -> None:
    """A line on standard error of what a reader must know."""
    echo(f"warning: {printable(text)}", err=True)


def print_slopes(frame: pd.DataFrame, *, as_json: bool) -> None:
    """The slopes on standard output, as a table or as JSON."""
    table = slopes(frame)
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


def write_index(folder: Path) -> Path:
    """The page of one report, in its folder."""
    from capsbench.cli.sources import PAGE, read_sources
    from capsbench.page import write_page

    return write_page(read_sources([folder], quiet=True)[0], folder / PAGE)


def draw(frame: pd.DataFrame, folder: Path, plan: Plan | None) -> list[Path]:
    """Slopes and figures of a report, as its plan says: figures 3 and 4, or what the paper shows under the plan's name."""
    if plan is not None and plan.experiment is not None:
        return write_paper_report(plan.experiment, frame, folder)
    return write_report(frame, folder)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns a failure to write into an error that names the folder."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{error.filename or folder} cannot be written: {error.strerror}",
            "make room or check permissions, then 'capsbench plot' and 'capsbench report'",
        ) from None


def say(console: Console, text: str) -> None:
    """A line as it is: not wrapped, not coloured, not read as markup, and no sign in it a command to the terminal."""
    console.print(printable_lines(in_words_of_command(text)), markup=False, highlight=False, soft_wrap=True)
