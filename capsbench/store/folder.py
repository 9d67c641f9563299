"""The folder of a report: its records, rounds, plan, machines and timelines, read once and written durably.

report = Report("reports/mine")
report.records; report.plan; report.environments; report.timelines; report.damages
with report.lock(): report.append(record)
"""

import copy
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from capsbench.axes import AxisForm, declared_forms
from capsbench.errors import StoreError
from capsbench.records import BOTH, Pass, Plan, Record, Round, axes_of
from capsbench.store import files
from capsbench.system.durable import replace_file
from capsbench.system.locks import alone_in
from capsbench.system.paths import absolute, expanded, with_typed_paths
from capsbench.timed_rounds import with_rounds, without_record


class ReportFolder:
    """A folder of records, which is read once, on first use.

    Records that another process appends meanwhile are seen after `refresh`.

    Args:
        folder: made when something is written; None for a report that is in memory alone.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self._folder = None if folder is None else expanded(folder)
        self._name: str | None = None
        self._bases: dict[str, AxisForm] = {}
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
        self._forget_results()

    def _forget_results(self) -> None:
        """Forget everything that was computed from the records."""
        self._axes: tuple[str, ...] | None = None

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
        renamed = copy.copy(self)
        renamed._name = name
        renamed._forget_results()
        return renamed

    def with_basis(self, **bases: str | Iterable[str]) -> Self:
        """Return the report with declared bases, which its slopes, figures, page and predictions then have.

        A cost over an axis is a sum of the terms of its basis: {1, n}, {1, n, n²} or {1, 1/n}. By default the report finds it.
        A declared basis that does not fit is reported with its largest residual.

        Args:
            bases: basis of each axis by its name, such as `length="1,n,n²"`.

        Raises:
            ConfigurationError: a basis is none that a cost has, or the report does not vary an axis.
        """
        declared = copy.copy(self)
        declared._bases = self._bases | declared_forms(bases, self.axes)
        declared._forget_results()
        return declared

    @property
    def records(self) -> list[Record]:
        """The last record of each cell, in the order of first mention.

        Raises:
            StoreError: the folder does not exist, the file cannot be opened, or holds a record of a newer schema.
        """
        self._read()
        if not self._records and self._folder is not None and not self._folder.is_dir():
            raise files.no_folder(self._folder)
        if not self._rounds:
            return list(self._records or ())
        return with_rounds(self._records or (), self._rounds)

    @property
    def written(self) -> list[Record]:
        """The last record of each cell as it was written, without turns that are in rounds alone."""
        self._read()
        return list(self._records or ())

    @property
    def rounds(self) -> list[Round]:
        """The rounds of cells that took turns in a sweep that has not ended, with those of their turns that are in no record."""
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
    def axes(self) -> tuple[str, ...]:
        """Names of what the report varies: the axes of its plan along which its cells differ.

        Where they differ along none of these, as in plans of earlier versions over batch sizes at one depth, they may differ in
        other numbers (`axes_of`). A report without a plan that can be read has the axes of its records.

        Raises:
            StoreError: the file of the records cannot be opened, or holds a record of a newer schema.
        """
        if self._axes is None:
            try:
                plan = self.plan
            except StoreError:
                plan = None
            cells = [record.cell for record in self.written] if plan is None else plan.cells
            self._axes = axes_of(cells, ("blocks",) if plan is None else plan.axes)
        return self._axes

    @property
    def bases(self) -> dict[str, AxisForm]:
        """The declared forms of costs over axes: those of `with_basis`, and then those of the plan."""
        try:
            planned = {} if self.plan is None else self.plan.bases
        except StoreError:
            planned = {}
        return planned | self._bases

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
            self._timelines, self._notes = saved_timelines(paths)
        return self._timelines

    @property
    def notes(self) -> list[str]:
        """Notes for the reader, on damaged lines and timelines."""
        if self._folder is not None:
            _ = self.timelines
        return [*map(with_typed_paths, files.damage_in_words(self.damages)), *self._notes]

    @property
    def started(self) -> str:
        """Start of the first cell, ISO 8601; empty if no record has it."""
        return min((record.started_at for record in self.records if record.started_at), default="")

    @property
    def ended(self) -> str:
        """Start of the last cell, by which the later of two reports is known."""
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
            rounds, damages = files.read_rounds(self._rounds_path)
            self._rounds = without_record(rounds, records)
            self._damages += damages

    def _keep(self, records: Iterable[Record]) -> None:
        self._records = list(records)
        self._places = {record.cell.key(): place for place, record in enumerate(self._records)}

    # Writing

    @contextmanager
    def lock(self, notify: Callable[[str], None] = lambda _: None) -> Iterator[None]:
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
            self._rounds = without_record(self._rounds, [record])
        self._forget_results()

    def append_round(self, timed: Round) -> None:
        """Add a round of cells that take turns, which is on the disk when this returns.

        Raises:
            LostWorkError: it could not be written; it is kept in the file that the message names.
        """
        self._read()
        if self._folder is not None:
            files.append(self._rounds_path, timed)
        self._rounds.append(timed)
        self._forget_results()

    def forget_rounds(self) -> None:
        """Remove the file of rounds if every turn in it is in its cell's record; otherwise it stays.

        Raises:
            StoreError: the file cannot be removed.
        """
        self._read()
        if self._rounds or self._folder is None:
            return
        try:
            self._rounds_path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{self._rounds_path} cannot be removed: {error.strerror}", "remove it by hand") from None

    @property
    def _rounds_path(self) -> Path:
        return self.folder / files.ROUNDS

    def write_plan(self, plan: Plan) -> None:
        """Write the plan.

        Raises:
            StoreError: it cannot be written.
        """
        replace_file(self.folder / files.PLAN, plan.model_dump_json(indent=1, exclude_none=True))
        self._plan, self._has_plan, self._axes = plan, True, None

    def add_environment(self, key: str, environment: dict[str, Any]) -> None:
        """Write the description of a machine; a report that was resumed elsewhere has several.

        Raises:
            StoreError: it cannot be written.
        """
        if key not in self.environments:
            known = {**self.environments, key: environment}
            replace_file(self.folder / files.ENVIRONMENT, json.dumps(known, indent=1) + "\n")
            self._environments = known

    def __repr__(self) -> str:
        return f"<Report {self.name!r} in memory>" if self._folder is None else f"Report({str(self.folder)!r})"


def saved_timelines(paths: Iterable[Path]) -> tuple[list[files.SavedTimeline], list[str]]:
    """Return the timelines in these files, and notes on damaged ones.

    Raises:
        StoreError: one is of a newer schema.
    """
    timelines, damages = files.read_timelines(paths)
    saved = [files.SavedTimeline(timeline, with_typed_paths(str(path))) for path, timeline in timelines]
    return saved, list(map(with_typed_paths, damages))


def _report_of(path: Path) -> Path | None:
    """The nearest folder above a file that holds records."""
    return next((folder for folder in path.resolve().parents if (folder / files.RECORDS).exists()), None)
