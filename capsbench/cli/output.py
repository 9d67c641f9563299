"""Reading of reports and printing, for all commands."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from capsbench.axes import BASES, axis_title, declared_forms
from capsbench.cli.command import echo, echo_rows, in_words_of_command
from capsbench.cli.streams import signs_of
from capsbench.cli.types import once
from capsbench.errors import StoreError
from capsbench.report import Report, reports_below, summary_in
from capsbench.store.files import damage_in_words, nothing_to_read
from capsbench.words.faults import again_sentence, fault_sentences, faults_head, faults_of
from capsbench.words.printable import printable, printable_lines

if TYPE_CHECKING:
    import pandas as pd

    from capsbench.gate.summary import Summary


class _Readable(Console):
    """A console that lays tables out with the signs of its encoding, since a later replacement would move columns."""

    def render_str(self, text: str, **more: Any) -> Text:
        """A text of a cell or a title."""
        return super().render_str(signs_of(text, self.encoding), **more)


def console_of(*, err: bool = False, width: int | None = None) -> Console:
    """The console of standard output, or of standard error.

    Args:
        err: use standard error.
        width: columns; by default the terminal's, or 80 if there is no terminal.
    """
    # Names of models hold colons, which would be read as emoji.
    return _Readable(stderr=err, width=width, highlight=False, emoji=False)


def say(console: Console, text: str) -> None:
    """Print a line as it is: not wrapped, not coloured, not read as markup, and without commands to the terminal."""
    console.print(printable_lines(in_words_of_command(text)), markup=False, highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning on standard error."""
    echo(f"warning: {printable(text)}", err=True)


def load_reports(folder: Path, bases: Iterable[tuple[str, str]] = ()) -> list[Report]:
    """Return the reports at or below a folder, at least one of which has records; damaged lines are reported on standard error.

    Args:
        folder: folder of reports.
        bases: bases that are declared for axes.

    Raises:
        StoreError: there are no records, or they cannot be read.
        ConfigurationError: a basis is declared for an axis that no report varies.
    """
    reports = reports_below(folder)
    warn_of_damages(reports)
    if not any(report.records for report in reports):
        raise nothing_to_read(folder)
    return declared(reports, bases)


def declared(reports: Sequence[Report], bases: Iterable[tuple[str, str]]) -> list[Report]:
    """Return reports with declared bases, each with those of its own axes.

    Raises:
        ConfigurationError: no report varies an axis.
    """
    forms = declared_forms(
        once(list(bases), "--basis", "1,n,n²"), list(dict.fromkeys(axis for report in reports for axis in report.axes))
    )
    own = [{axis: BASES[form] for axis, form in forms.items() if axis in report.axes} for report in reports]
    return [report.with_basis(**some) if some else report for report, some in zip(reports, own, strict=True)]


def warn_of_damages(reports: Iterable[Report]) -> None:
    """Print on standard error which lines of reports are damaged."""
    for text in damage_in_words(damage for report in reports for damage in report.damages):
        warn(text)


def load_summary(path: Path) -> "Summary":
    """Read a report or a baseline; its oddities are reported on standard error."""
    summary, notes = summary_in(path)
    for note in notes:
        warn(note)
    return summary


def print_slopes(frame: "pd.DataFrame", table: "pd.DataFrame", axis: str | None = None, *, as_json: bool) -> None:
    """Print slopes on standard output, as a table or as JSON.

    Args:
        frame: the records.
        table: their slopes.
        axis: the one axis that was asked for; by default those that the reports vary.
        as_json: whether as JSON.
    """
    from capsbench.frame import AXIS_COLUMN
    from capsbench.stats.grid_costs import cross_terms
    from capsbench.terminal.tables import cross_terms_table, peak_note, slopes_table

    if as_json:
        echo_rows(table)
        return
    console = console_of()
    if table.empty:
        say(console, no_slopes(frame, axis))
        return
    for _, rows in table.groupby(AXIS_COLUMN, sort=False):
        console.print(slopes_table(rows))
    shared = cross_terms(frame)
    if len(shared):
        console.print(cross_terms_table(shared))
    if note := peak_note(table, frame):
        say(console, note)


def print_faults(reports: Sequence[Report], console: Console) -> None:
    """Print which cells of reports failed, each error once, and how they are measured again.

    Args:
        reports: the reports.
        console: console to print on.
    """
    for report in reports:
        faults = faults_of(report)
        if not faults:
            continue
        say(console, f"{f'{report.name}: ' if len(reports) > 1 else ''}{faults_head(report)}:")
        for text in filter(None, [*fault_sentences(faults, report.axes), again_sentence(report, report.folder)]):
            say(console, text)


def print_estimates(table: "pd.DataFrame", at: Mapping[str, float], *, as_json: bool) -> None:
    """Print costs at a point on standard output, as a table or as JSON.

    Args:
        table: result of `capsbench.stats.grid_costs.predicted_at`.
        at: the point.
        as_json: whether as JSON.
    """
    from capsbench.terminal.tables import estimates_table

    if as_json:
        echo_rows(table)
    elif table.empty:
        say(console_of(), f"no estimates: there must be more cells than terms, over {' and '.join(at)}")
    else:
        console_of().print(estimates_table(table, at))


def no_slopes(frame: "pd.DataFrame", axis: str | None = None) -> str:
    """The reason that there is no slope: `no slopes: a line needs two measured depths`, or that no cell has a result.

    Args:
        frame: the records, along any axis.
        axis: the one axis that was asked for; by default those that the reports vary.
    """
    from capsbench.frame import axes_in

    ended = frame["status"][frame["status"] != "ok"]
    statuses = ", ".join(sorted(set(ended)))
    if len(ended) == len(frame):
        cells = "the only cell" if len(frame) == 1 else f"all {len(frame)} cells"
        return f"no slopes: {cells} ended without a result ({statuses})"
    axes = axes_in(frame) if axis is None else [axis]
    needed = "depths" if axes == ["blocks"] else f"positions along {' or '.join(axis_title(axis).lower() for axis in axes)}"
    without = f"; {len(ended)} of {len(frame)} cells ended without a result ({statuses})" if len(ended) else ""
    return f"no slopes: a line needs two measured {needed}{without}"


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


def files_line(page: Path, others: Iterable[Path], *, written: bool = True) -> str:
    """The files that a report was drawn into, on one line: `wrote x/index.html, with figure3, figure4 (pdf, png, svg)…`.

    Args:
        page: path of the page.
        others: paths of the other files, in the same folder.
        written: False if they were up to date, and not drawn again.
    """
    kinds: dict[str, list[str]] = {}
    for path in others:
        kinds.setdefault(path.stem, []).append(path.suffix.removeprefix("."))
    alike: dict[str, list[str]] = {}
    for stem, suffixes in kinds.items():
        alike.setdefault(", ".join(sorted(suffixes)), []).append(stem)
    texts = [f"{', '.join(stems)} ({suffixes})" for suffixes, stems in alike.items()]
    start = f"wrote {page}" if written else f"nothing has changed since {page} was drawn"
    return start + (f", with {' and '.join(texts)} in its folder" if texts else "")


def open_in_browser(page: Path) -> None:
    """Open a page in the user's browser; if there is none, a warning says so."""
    import webbrowser

    if not webbrowser.open(page.resolve().as_uri()):
        warn(f"no browser could be started for {page}")


def write_text(path: Path, text: str, what: str) -> None:
    """Write a text to a file that may be in a new folder.

    Args:
        path: path of the file.
        text: its content.
        what: the file in words, for the error.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{what} {path} cannot be written: {error.strerror}", "choose a file that you may write to") from None
