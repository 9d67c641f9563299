"""How commands read records and print."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pandas as pd
from rich.console import Console

from capsbench.analysis.slopes import slopes
from capsbench.errors import StoreError
from capsbench.report.tables import peak_note, slopes_table
from capsbench.store import load


def load_records(folder: Path) -> pd.DataFrame:
    """Records of a folder; damaged lines are told on standard error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = load(folder)
    for warning in caught:
        click.echo(f"warning: {warning.message}", err=True)
    return frame


def print_slopes(frame: pd.DataFrame, *, as_json: bool) -> None:
    """The slopes on standard output, as a table or as JSON."""
    table = slopes(frame)
    if as_json:
        click.echo(table.to_json(orient="records", indent=1))
        return
    console = Console(highlight=False)
    if table.empty:
        say(console, "no slopes: a line needs two measured depths")
        return
    console.print(slopes_table(table))
    note = peak_note(table, frame)
    if note:
        say(console, note)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns a failure to write into an error that names the folder."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{error.filename or folder} cannot be written: {error.strerror}",
            "make room or check permissions, then 'capsbench plot'",
        ) from None


def say(console: Console, text: str) -> None:
    """A line as it is: not wrapped, not coloured, not read as markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
