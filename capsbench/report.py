"""A report: a folder of records, and everything that follows from it.

    report = capsbench.Report("reports/mine")
    report.frame; report.slopes; report.figure4(); report.write(); report.check("baselines/ci.json").passed

`ReportFolder` reads and writes the folder; a `Report` adds what is computed and drawn. Nothing here needs torch. Pandas,
matplotlib and the page are imported on first use.
"""

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from capsbench.errors import StoreError
from capsbench.store import files
from capsbench.store.drawn import note_drawn, source_digest, up_to_date
from capsbench.store.folder import ReportFolder, saved_timelines
from capsbench.system.paths import expanded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from capsbench.figures.depth import AxesGrid
    from capsbench.figures.panels import Per
    from capsbench.gate.check import Judgement
    from capsbench.gate.comparison import Compared, Thresholds
    from capsbench.gate.summary import Summary
    from capsbench.page.notebook import SlopesFrame

PAGE = "index.html"
"""File of the page in a report's folder."""


class Report(ReportFolder):
    """A folder of records, which is read once, on first use, and everything that follows from it.

    Records that another process appends meanwhile are seen after `refresh`.

    Args:
        folder: made when something is written, and an error where it is read before; None for a report in memory alone.
    """

    def _forget_results(self) -> None:
        super()._forget_results()
        self._frame: pd.DataFrame | None = None
        self._slopes: SlopesFrame | None = None
        self._summary: tuple[Summary, list[str]] | None = None

    # Results of the records

    @property
    def frame(self) -> "pd.DataFrame":
        """The records as a data frame, a row per record, as `capsbench.load` gives them.

        Raises:
            StoreError: the folder holds no record that can be read.
        """
        from capsbench.frame import frame_of

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
    def cross_terms(self) -> "pd.DataFrame":
        """The costs that the axes of a grid share, such as bytes per block and sample (`capsbench.stats.grid_costs.cross_terms`).

        Raises:
            StoreError: the folder holds no record that can be read.
        """
        from capsbench.stats.grid_costs import cross_terms

        return cross_terms(self.frame)

    def at(self, **positions: float) -> "pd.DataFrame":
        """Predict every cost at a point that need not have been measured (`capsbench.stats.grid_costs.predicted_at`).

        Args:
            positions: position on each axis, such as `blocks=16, batch_size=256`.

        Raises:
            StoreError: the folder holds no record that can be read.
            ConfigurationError: no record lies on one of these axes, all lie at one position of it, or a position is impossible.
        """
        from capsbench.stats.grid_costs import predicted_at

        return predicted_at(self.frame, positions)

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

    def compare(
        self, other: "str | os.PathLike[str] | Report", *, thresholds: "Thresholds | None" = None, across: Sequence[str] = ()
    ) -> "Compared":
        """Compare this report with a later one, figure by figure, as `capsbench compare` does.

        Args:
            other: the later report, or a baseline file.
            thresholds: differences from which on a change matters.
            across: options in which the two may differ, such as `kernel`; `kind` compares predicted with measured.

        Raises:
            StoreError: one of them cannot be read.
            ConfigurationError: the two have no series in common, or `across` leaves several series of one of them alike.
        """
        from capsbench.gate.compare import compare

        return compare(self.summary, summary_in(other)[0], thresholds, across=across)

    # Drawings

    def figure3(
        self,
        *,
        memory: Sequence[str] | None = None,
        per: "Per" = "step",
        with_paper: bool = False,
        ax: "AxesGrid | None" = None,
        width: float | None = None,
        along: str | None = None,
    ) -> "Figure":
        """Draw memory, training time and inference time over depth, or over another axis.

        Args:
            memory: memory figures, names of `MEMORY_METRICS`; by default `retained`.
            per: seconds per `step` or `epoch`.
            with_paper: draw the paper's table 4 if it is comparable.
            ax: axes to draw on, `[data sets, columns]`; by default those of a new figure.
            width: width of a new figure in inches.
            along: name of the axis; by default the first that the report varies.

        Raises:
            StoreError: the folder holds no record that can be read.
        """
        from capsbench.figures.depth import figure3

        axis, shown = along or self.axes[0], memory or ("retained",)
        axes = figure3(self.frame, memory=shown, per=per, with_paper=with_paper, ax=ax, width=width, axis=axis)
        return axes[0][0].figure

    def figure4(
        self,
        *,
        memory: Sequence[str] | None = None,
        per: "Per" = "step",
        with_paper: bool = False,
        ax: "AxesGrid | None" = None,
        width: float | None = None,
        along: str | None = None,
    ) -> "Figure":
        """Draw memory and training time over depth, or over another axis, with fitted lines and their slopes.

        The arguments are those of `figure3`, but `memory` is `retained` and `peak` by default.
        """
        from capsbench.figures.depth import figure4

        axis, shown = along or self.axes[0], memory or ("retained", "peak")
        axes = figure4(self.frame, memory=shown, per=per, with_paper=with_paper, ax=ax, width=width, axis=axis)
        return axes[0][0].figure

    def write(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        memory: Sequence[str] | None = None,
        per: "Per" = "step",
        with_paper: bool = False,
        along: str | None = None,
    ) -> list[Path]:
        """Write slopes.csv, the figures (svg and png; pdf at a printed page's width) and the page, and return their paths.

        A report of `capsbench reproduce` is drawn as in the paper, unless an argument asks for something else.

        Args:
            folder: folder to write into, by default the report's own.
            memory: memory figures to draw.
            per: seconds per `step` or `epoch`.
            with_paper: draw the paper's table 4 if it is comparable.
            along: axis of the figures; by default one of each is drawn for every axis that the report varies.

        Raises:
            StoreError: the records cannot be read, or a file cannot be written.
        """
        into = self.folder if folder is None else expanded(folder)
        own = self._folder is not None and into == self._folder
        digest = self._drawn_from(memory=memory, per=per, with_paper=with_paper, along=along) if own else ""
        try:
            into.mkdir(parents=True, exist_ok=True)
            paths = [*self.draw(into, memory=memory, per=per, with_paper=with_paper, along=along), self.page(into / PAGE)]
            if own:
                note_drawn(into, digest, paths)
            return paths
        except OSError as error:
            raise StoreError(
                f"{error.filename or into} cannot be written: {error.strerror}",
                "make room or check permissions, then 'capsbench plot' and 'capsbench report'",
            ) from None

    def drawings(self) -> list[Path]:
        """The paths that `write` returned, if all that it wrote is there and would be the same now; else none."""
        return up_to_date(self.folder, self._drawn_from())

    def _drawn_from(
        self,
        *,
        memory: Sequence[str] | None = None,
        per: "Per" = "step",
        with_paper: bool = False,
        along: str | None = None,
    ) -> str:
        """The digest of all that drawings in the report's folder are made from."""
        options = {"memory": list(memory) if memory else None, "per": per, "with_paper": with_paper, "along": along}
        return source_digest(self.folder, self.plan, options | {"name": self.name, "bases": self.bases})

    def draw(
        self,
        folder: Path,
        *,
        memory: Sequence[str] | None = None,
        per: "Per" = "step",
        with_paper: bool = False,
        only: Sequence[str] | None = None,
        along: str | None = None,
    ) -> list[Path]:
        """Write slopes.csv and the figures alone, as `write` does.

        Args:
            folder: folder to write into.
            memory: memory figures to draw.
            per: seconds per `step` or `epoch`.
            with_paper: draw the paper's table 4 if it is comparable.
            only: names of the figures, `figure3` or `figure4`.
            along: axis of the figures, as for `write`.

        Raises:
            OSError: a file cannot be written.
        """
        from capsbench.drawing import draw_report

        return draw_report(self, folder, memory=memory, per=per, with_paper=with_paper, only=only, along=along)

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
        """Return the folder, and the slopes as a short table; records, if they give no slope."""
        from capsbench.terminal.tables import report_text

        try:
            return f"{super().__repr__()}: {report_text(self.frame, self.slopes) if self.records else 'no records'}"
        except StoreError as error:
            return f"{super().__repr__()}: {error}"

    def _repr_html_(self) -> str:
        """Return the slopes as a table, and figure 4."""
        from capsbench.drawing import report_html

        return report_html(self)

    def _nothing(self) -> StoreError:
        """Return the error of a report without a record."""
        if not self.folder.is_dir():
            return files.no_folder(self.folder)
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
    return saved_timelines(path for place, path in paths.items() if folders.isdisjoint(place.parents))


def load(root: str | os.PathLike[str]) -> "pd.DataFrame":
    """Return every record at or below a folder as a data frame, a row per record.

    Times are medians of their samples, in seconds; memory is in bytes. Damaged lines raise a warning, and are left out.

    Args:
        root: a report, or a folder of reports.

    Raises:
        StoreError: there are no records, or one is of a newer schema.
    """
    from capsbench.frame import frame_of

    reports = reports_below(root)
    for text in files.damage_in_words(damage for report in reports for damage in report.damages):
        warnings.warn(text, stacklevel=2)
    return frame_of(reports)


def summary_of(reports: Sequence[Report]) -> "tuple[Summary, list[str]]":
    """Return the figures by which reports are compared, with notes on damaged lines and on series measured twice.

    Raises:
        StoreError: there are no records, or they are of a newer schema.
    """
    from capsbench.gate.summarize import summarize

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
