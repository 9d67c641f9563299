"""A report: a folder of records, and everything that follows from it.

    report = capsbench.Report("reports/mine")
    report.frame; report.slopes; report.figure4(); report.write(); report.check("baselines/ci.json").passed

Nothing here needs torch. Pandas, matplotlib and the page are imported on first use.
"""

import base64
import copy
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from capsbench import files
from capsbench.durable import replace_file
from capsbench.errors import StoreError
from capsbench.locks import alone_in
from capsbench.paths import absolute, as_typed, expanded
from capsbench.records import BOTH, Pass, Plan, Record, Round
from capsbench.timed_rounds import with_rounds

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from matplotlib.figure import Figure

    from capsbench.figures.depth import AxesGrid
    from capsbench.figures.panels import Per
    from capsbench.gate.check import Judgement
    from capsbench.gate.comparison import Compared, Thresholds
    from capsbench.gate.summary import Summary
    from capsbench.page.notebook import SlopesFrame

PAGE, SLOPES = "index.html", "slopes.csv"
"""Files in a report's folder that can be drawn again at any time."""


@dataclass(frozen=True)
class Drawing:
    """The form in which the figures of a report are drawn."""

    figures: tuple[str, ...] = ("figure3", "figure4")
    memory: tuple[str, ...] | None = None
    """Memory drawn on a GPU; None: `retained` in figure 3, `retained` and `peak` in figure 4."""
    memory_on_cpu: tuple[str, ...] | None = None
    """Memory drawn on a CPU, whose resident set cannot be compared with the paper's values."""
    with_paper: bool = False
    """True to draw the paper's table 4 if it is comparable."""


USUAL = Drawing()

AS_IN_PAPER = {
    "figure3": Drawing(("figure3",), ("process",), ("retained",), with_paper=True),
    "figure4": Drawing(("figure4",), ("retained", "reserved", "process"), ("retained", "peak"), with_paper=True),
    "table4": Drawing(("figure3",), ("retained", "peak", "reserved", "process"), ("retained", "peak"), with_paper=True),
}
"""Drawings by the names that `capsbench reproduce` takes."""


class Report:
    """A folder of records, which is read once, on first use.

    Records that another process appends meanwhile are seen after `refresh`.

    Args:
        folder: made when something is written; None for a report that is in memory alone.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self._folder = None if folder is None else expanded(folder)
        self._name: str | None = None
        self._held = 0
        self._forget()

    @classmethod
    def of(
        cls,
        records: Iterable[Record],
        name: str = "report",
        *,
        environments: Mapping[str, Any] | None = None,
        plan: Plan | None = None,
        timelines: Sequence[files.SavedTimeline] = (),
        notes: Sequence[str] = (),
    ) -> Self:
        """Return a report that is in memory alone.

        Args:
            records: records of the report.
            name: name of the report.
            environments: the machines, by the key that records carry.
            plan: plan of the sweep.
            timelines: timelines of steps.
            notes: notes for the reader.
        """
        report = cls(None)
        report._name = name
        report._keep(records)
        report._plan, report._has_plan, report._environments = plan, True, dict(environments or {})
        report._timelines, report._notes = list(timelines), list(notes)
        return report

    def refresh(self) -> None:
        """Forget the contents, so that the folder is read again."""
        if self._folder is not None:
            self._forget()

    def _forget(self) -> None:
        self._records: list[Record] | None = None
        self._rounds: list[Round] = []
        self._places: dict[str, int] = {}
        self._damages: list[files.Damage] = []
        self._plan: Plan | None = None
        self._has_plan = False
        self._environments: dict[str, Any] | None = None
        self._timelines: list[files.SavedTimeline] | None = None
        self._notes: list[str] = []
        self._forget_figures()

    def _forget_figures(self) -> None:
        self._frame: pd.DataFrame | None = None
        self._slopes: SlopesFrame | None = None
        self._summary: tuple[Summary, list[str]] | None = None

    # The folder and its contents

    @property
    def folder(self) -> Path:
        """The folder of the report.

        Raises:
            StoreError: the report is in memory alone.
        """
        if self._folder is None:
            raise StoreError(f"report '{self.name}' is in memory alone", "name a folder to write to")
        return self._folder

    @property
    def path(self) -> Path:
        """The file of the records."""
        return self.folder / files.RECORDS

    @property
    def name(self) -> str:
        """The name of the folder."""
        if self._name is None:
            self._name = Path(os.path.normpath(absolute(self.folder))).name or "report"
        return self._name

    def place(self) -> Path:
        """Return the key that orders two reports of one name: the folder, or the name of a report in memory."""
        return self._folder or Path(self.name)

    def named(self, name: str) -> Self:
        """Return the report under another name."""
        found = copy.copy(self)
        found._name = name
        found._forget_figures()
        return found

    @property
    def records(self) -> list[Record]:
        """The last record of each cell, in the order of first mention.

        Raises:
            StoreError: the file cannot be opened, or holds a record of a newer schema.
        """
        self._read()
        if not self._rounds:
            return list(self._records or ())
        return with_rounds(self._records or (), self._rounds)

    @property
    def rounds(self) -> list[Round]:
        """The rounds of cells that took turns in a sweep that has not ended, as far as these have no records with times."""
        self._read()
        return list(self._rounds)

    @property
    def damages(self) -> list[files.Damage]:
        """The lines of records.jsonl that are not records."""
        self._read()
        return self._damages

    @property
    def plan(self) -> Plan | None:
        """The plan of the report; None if plan.json is missing.

        Raises:
            StoreError: it is damaged or of a newer schema.
        """
        if not self._has_plan:
            self._plan, self._has_plan = files.read_plan(self.folder / files.PLAN), True
        return self._plan

    @property
    def environments(self) -> dict[str, Any]:
        """Every machine of the report, by the key that records carry.

        Raises:
            StoreError: environment.json is damaged.
        """
        if self._environments is None:
            self._environments = files.read_environments(self.folder / files.ENVIRONMENT)
        return self._environments

    @property
    def timelines(self) -> list[files.SavedTimeline]:
        """The timelines at or below the folder, except those in the folder of a report below it.

        Raises:
            StoreError: one is of a newer schema.
        """
        if self._timelines is None:
            own = self.folder.resolve()
            paths = (path for path in sorted(self.folder.rglob(files.TIMELINE)) if _report_of(path) in (own, None))
            self._timelines, self._notes = _saved(paths)
        return self._timelines

    @property
    def notes(self) -> list[str]:
        """Notes for the reader, on damaged lines and timelines."""
        if self._folder is not None:
            _ = self.timelines
        return [*map(as_typed, files.damage_in_words(self.damages)), *self._notes]

    @property
    def started(self) -> str:
        """Start of the first cell, ISO 8601; empty if no record has it."""
        return min((record.started_at for record in self.records if record.started_at), default="")

    @property
    def ended(self) -> str:
        """Start of the last cell, which tells the later of two reports."""
        return max((record.started_at for record in self.records if record.started_at), default="")

    def settled(self, passes: Sequence[Pass] = BOTH) -> set[str]:
        """Return the keys of the cells that need not be measured again for these passes."""
        self._read()
        return {record.cell.key() for record in self._records or () if record.settles(passes)}

    def _read(self) -> None:
        """Read records and rounds, unless that has been done."""
        if self._records is None:
            records, self._damages = files.read_records(self.path)
            self._keep(records)
            self._rounds, damages = files.read_rounds(self._rounds_path)
            self._damages += damages

    def _keep(self, records: Iterable[Record]) -> None:
        self._records = list(records)
        self._places = {record.cell.key(): place for place, record in enumerate(self._records)}

    # Writing

    @contextmanager
    def lock(self, notify: "Callable[[str], None]" = lambda _: None) -> Iterator[None]:
        """Keep every other process from measuring into the folder; within the body, lock it again at no cost.

        Args:
            notify: receives a text if it takes a while to see whether another holder of the folder still lives.

        Raises:
            StoreError: another process holds it, or the folder cannot be written.
        """
        if self._held:
            yield
            return
        with alone_in(self.folder, notify):
            self._held += 1
            try:
                yield
            finally:
                self._held -= 1

    def append(self, record: Record) -> None:
        """Add a record, which is on the disk when this returns.

        Raises:
            LostWorkError: it could not be written; the record is kept in the file that the message names.
        """
        if self._folder is not None:
            files.append(self.path, record)
        if self._records is not None:
            place = self._places.setdefault(record.cell.key(), len(self._records))
            self._records[place : place + 1] = [record]
        self._forget_figures()

    def append_round(self, taken: Round) -> None:
        """Add a round of cells that take turns, which is on the disk when this returns.

        Raises:
            LostWorkError: it could not be written; it is kept in the file that the message names.
        """
        self._read()
        if self._folder is not None:
            files.append(self._rounds_path, taken)
        self._rounds.append(taken)
        self._forget_figures()

    def forget_rounds(self) -> None:
        """Remove the rounds if every cell in them has a record with its times; otherwise they stay.

        Raises:
            StoreError: their file cannot be removed.
        """
        self._read()
        timed = {record.cell.key() for record in self._records or () if record.time is not None}
        if not {turn.cell for one in self._rounds for turn in one.turns} <= timed:
            return
        if self._folder is not None:
            try:
                self._rounds_path.unlink(missing_ok=True)
            except OSError as error:
                raise StoreError(f"{self._rounds_path} cannot be removed: {error.strerror}", "remove it by hand") from None
        self._rounds = []

    @property
    def _rounds_path(self) -> Path:
        return self.folder / files.ROUNDS

    def write_plan(self, plan: Plan) -> None:
        """Write the plan.

        Raises:
            StoreError: it cannot be written.
        """
        replace_file(self.folder / files.PLAN, plan.model_dump_json(indent=1, exclude_none=True))
        self._plan, self._has_plan = plan, True

    def add_environment(self, key: str, environment: dict[str, Any]) -> None:
        """Write the description of a machine; a report that was resumed elsewhere has several.

        Raises:
            StoreError: it cannot be written.
        """
        if key not in self.environments:
            known = {**self.environments, key: environment}
            replace_file(self.folder / files.ENVIRONMENT, json.dumps(known, indent=1) + "\n")
            self._environments = known

    # Results of the records

    @property
    def frame(self) -> "pd.DataFrame":
        """The records as a data frame, a row per record, as `capsbench.load` gives them.

        Raises:
            StoreError: the folder holds no record that can be read.
        """
        if self._frame is None:
            if self._folder is not None and not self.records:
                raise self._nothing()
            self._frame = frame_of([self])
        return self._frame

    @property
    def slopes(self) -> "SlopesFrame":
        """The slope of every series, which a notebook shows with a small chart in each row.

        Raises:
            StoreError: the folder holds no record that can be read.
        """
        from capsbench.page.notebook import slopes

        if self._slopes is None:
            self._slopes = slopes(self.frame)
        return self._slopes

    @property
    def summary(self) -> "Summary":
        """The figures by which this report is compared.

        Raises:
            StoreError: the folder holds no record that can be read.
        """
        if self._summary is None:
            self._summary = summary_of([self])
        return self._summary[0]

    def check(
        self,
        baseline: "str | os.PathLike[str] | Report",
        *,
        last: "str | os.PathLike[str] | Report | None" = None,
        thresholds: "Thresholds | None" = None,
    ) -> "Judgement":
        """Judge this report against a baseline, as `capsbench check` does.

        Args:
            baseline: a baseline file, as 'capsbench check' writes it, or a report.
            last: an earlier report or baseline; changes since then are reported, and are no regressions.
            thresholds: differences from which on a change matters.

        Raises:
            StoreError: one of them cannot be read.
            ConfigurationError: this report and the baseline have no series in common.
        """
        from capsbench.gate.check import judge

        earlier = None if last is None else summary_in(last)[0]
        return judge(self.summary, summary_in(baseline)[0], earlier, thresholds)

    def compare(self, other: "str | os.PathLike[str] | Report", *, thresholds: "Thresholds | None" = None) -> "Compared":
        """Compare this report with a later one, figure by figure, as `capsbench compare` does.

        Args:
            other: the later report, or a baseline file.
            thresholds: differences from which on a change matters.

        Raises:
            StoreError: one of them cannot be read.
            ConfigurationError: the two have no series in common.
        """
        from capsbench.gate.compare import compare

        return compare(self.summary, summary_in(other)[0], thresholds)

    # Drawings

    def figure3(
        self,
        *,
        memory: Sequence[str] | None = None,
        per: "Per" = "step",
        with_paper: bool = False,
        ax: "AxesGrid | None" = None,
        width: float | None = None,
    ) -> "Figure":
        """Draw memory, training time and inference time over depth.

        Args:
            memory: memory figures, names of `MEMORY_METRICS`; by default `retained`.
            per: seconds per `step` or `epoch`.
            with_paper: draw the paper's table 4 if it is comparable.
            ax: axes to draw on, `[data sets, columns]`; by default those of a new figure.
            width: width of a new figure in inches.

        Raises:
            StoreError: the folder holds no record that can be read.
        """
        from capsbench.figures.depth import figure3

        axes = figure3(self.frame, memory=memory or ("retained",), per=per, with_paper=with_paper, ax=ax, width=width)
        return axes[0][0].figure

    def figure4(
        self,
        *,
        memory: Sequence[str] | None = None,
        per: "Per" = "step",
        with_paper: bool = False,
        ax: "AxesGrid | None" = None,
        width: float | None = None,
    ) -> "Figure":
        """Draw memory and training time over depth, with fitted lines and their slopes.

        The arguments are those of `figure3`, but `memory` is `retained` and `peak` by default.
        """
        from capsbench.figures.depth import figure4

        axes = figure4(self.frame, memory=memory or ("retained", "peak"), per=per, with_paper=with_paper, ax=ax, width=width)
        return axes[0][0].figure

    def write(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        memory: Sequence[str] | None = None,
        per: "Per" = "step",
        with_paper: bool = False,
    ) -> list[Path]:
        """Write slopes.csv, the figures (svg and png; pdf at a printed page's width) and the page, and return their paths.

        A report of `capsbench reproduce` is drawn as in the paper, unless an argument asks for something else.

        Args:
            folder: folder to write into, by default the report's own.
            memory: memory figures to draw.
            per: seconds per `step` or `epoch`.
            with_paper: draw the paper's table 4 if it is comparable.

        Raises:
            StoreError: the records cannot be read, or a file cannot be written.
        """
        into = self.folder if folder is None else expanded(folder)
        try:
            into.mkdir(parents=True, exist_ok=True)
            return [*self.draw(into, memory=memory, per=per, with_paper=with_paper), self.page(into / PAGE)]
        except OSError as error:
            raise StoreError(
                f"{error.filename or into} cannot be written: {error.strerror}",
                "make room or check permissions, then 'capsbench plot' and 'capsbench report'",
            ) from None

    def draw(
        self,
        folder: Path,
        *,
        memory: Sequence[str] | None = None,
        per: "Per" = "step",
        with_paper: bool = False,
        only: Sequence[str] | None = None,
    ) -> list[Path]:
        """Write slopes.csv and the figures alone, as `write` does.

        Args:
            folder: folder to write into.
            memory: memory figures to draw.
            per: seconds per `step` or `epoch`.
            with_paper: draw the paper's table 4 if it is comparable.
            only: names of the figures, `figure3` or `figure4`.

        Raises:
            OSError: a file cannot be written.
        """
        from capsbench.durable import write_csv
        from capsbench.figures.depth import PAGE_WIDTH, save
        from capsbench.terminal.table4 import table4
        from capsbench.words.labels import on_gpu

        asked = bool(memory or with_paper or per != "step" or only)
        experiment = None if asked or self.plan is None else self.plan.experiment
        how = USUAL if experiment is None else AS_IN_PAPER[experiment]
        shown = memory or (how.memory if on_gpu(self.frame).any() else how.memory_on_cpu)
        paths = [write_csv(self.slopes, folder / SLOPES)]
        for name, draw in (("figure3", self.figure3), ("figure4", self.figure4)):
            if name in (only or how.figures):
                for kinds, width in ((("svg", "png"), None), (("pdf",), PAGE_WIDTH)):
                    figure = draw(memory=shown, per=per, with_paper=with_paper or how.with_paper, width=width)
                    paths += save(figure, folder, name, kinds)
        return [*paths, write_csv(table4(self.frame), folder / "table4.csv")] if experiment == "table4" else paths

    def page(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write the page of this report, which needs no network and no server, and return its path.

        Args:
            path: the file, by default index.html in the report's folder.

        Raises:
            StoreError: the report cannot be read.
            OSError: the file cannot be written.
        """
        from capsbench.page import write_page

        if self._folder is not None and not self.records:
            raise self._nothing()
        return write_page([self], self.folder / PAGE if path is None else expanded(path))

    def __repr__(self) -> str:
        return f"<Report {self.name!r} in memory>" if self._folder is None else f"Report({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        """Return the slopes as a table, and figure 4."""
        from capsbench.figures.depth import as_svg

        picture = base64.b64encode(as_svg(self.figure4())).decode()
        title = f"<p>{escape(self.name)}: {len(self.records)} records</p>"
        return (
            f"{title}{self.slopes._repr_html_()}<img src='data:image/svg+xml;base64,{picture}' alt='memory and time over depth'>"
        )

    def _nothing(self) -> StoreError:
        """Return the error of a report without a record."""
        if not self.path.exists():
            below = files.report_folders(self.folder)
            names = ", ".join(str(one.relative_to(self.folder)) for one in below[:8])
            return StoreError(f"{self.folder} holds no records of its own", f"name a report below it: {names}")
        return files.nothing_to_read(self.folder)


def reports_below(*roots: str | os.PathLike[str]) -> list[Report]:
    """Return every report at or below these folders, each once, in their order and sorted by path.

    Raises:
        StoreError: there is none below one of them.
    """
    folders = {folder.resolve(): folder for root in roots for folder in files.report_folders(Path(root))}
    return [Report(folder) for folder in folders.values()]


def loose_timelines(roots: Iterable[Path], reports: Iterable[Report]) -> tuple[list[files.SavedTimeline], list[str]]:
    """Return the timelines below these folders that lie in none of the reports, and notes on damaged ones.

    Raises:
        StoreError: one is of a newer schema.
    """
    folders = {report.folder.resolve() for report in reports}
    paths = {path.resolve(): path for root in roots for path in sorted(expanded(root).rglob(files.TIMELINE))}
    return _saved(path for place, path in paths.items() if folders.isdisjoint(place.parents))


def frame_of(reports: Iterable[Report]) -> "pd.DataFrame":
    """Return the records of several reports as one data frame."""
    from capsbench.frame import to_frame

    return to_frame((report.name, record) for report in reports for record in report.records)


def load(root: str | os.PathLike[str]) -> "pd.DataFrame":
    """Return every record at or below a folder as a data frame, a row per record.

    Times are medians of their samples, in seconds; memory is in bytes. Damaged lines raise a warning, and are left out.

    Args:
        root: a report, or a folder of reports.

    Raises:
        StoreError: there are no records, or one is of a newer schema.
    """
    reports = reports_below(root)
    for text in files.damage_in_words(damage for report in reports for damage in report.damages):
        warnings.warn(text, stacklevel=2)
    return frame_of(reports)


def summary_of(reports: Sequence[Report]) -> "tuple[Summary, list[str]]":
    """Return the figures by which reports are compared, with notes on damaged lines and on series measured twice.

    Raises:
        StoreError: there are no records, or they are of a newer schema.
    """
    from capsbench.gate.summary import summarize

    damages = [damage for report in reports for damage in report.damages]
    if not any(report.records for report in reports):
        reason = f"; {damages[0]}" if damages else ""
        where = os.path.commonpath([report.folder for report in reports]) if reports else "it"
        raise StoreError(f"{where} holds an empty report{reason}", "measure it first, with 'capsbench run'")
    summary, notes = summarize([report for report in reports if report.records])
    return summary, [*map(str, damages), *notes]


def summary_in(place: str | os.PathLike[str] | Report) -> "tuple[Summary, list[str]]":
    """Return the figures of a report, of a folder of reports or of a baseline file, with notes for the reader.

    Raises:
        StoreError: there are none, or they cannot be read.
    """
    from capsbench.gate.baseline import read_baseline

    if isinstance(place, Report):
        return summary_of([place])
    path = expanded(place)
    return (read_baseline(path), []) if path.is_file() else summary_of(reports_below(path))


def _report_of(path: Path) -> Path | None:
    """The nearest folder above a file that holds records."""
    return next((folder for folder in path.resolve().parents if (folder / files.RECORDS).exists()), None)


def _saved(paths: Iterable[Path]) -> tuple[list[files.SavedTimeline], list[str]]:
    timelines, damages = files.read_timelines(paths)
    return [files.SavedTimeline(timeline, as_typed(str(path))) for path, timeline in timelines], list(map(as_typed, damages))
