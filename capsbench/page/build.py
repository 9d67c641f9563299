"""Assembly of a page: data, scripts and styles in one file."""

import base64
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from capsbench.axes import axis_unit
from capsbench.colours import COLOURS, DARK_COLOURS, PALE
from capsbench.errors import with_flags
from capsbench.frame import SAMPLE_COLUMNS, axes_in, frame_of
from capsbench.options import FLAGS
from capsbench.page import cells
from capsbench.page.answers import answers, latest_of, paper_verdicts
from capsbench.page.gpus import gpus_data
from capsbench.page.room import LONGEST_NAME, LONGEST_TEXT, cut_list, script_json, size_of
from capsbench.page.runs import comparisons_data, environments_data, history_data, reports_data
from capsbench.page.steps import contents_data, modules_data, timelines_data
from capsbench.records import Record
from capsbench.sizes import BYTE_UNITS, SECOND_UNITS
from capsbench.stats.slopes import fitted_slopes
from capsbench.system.durable import replacing
from capsbench.words.along import over_text
from capsbench.words.disturbances import IN_WORDS
from capsbench.words.faults import again_sentence, fault_sentences, faults_head, faults_of
from capsbench.words.labels import cut
from capsbench.words.latex import LATEX_SIGNS
from capsbench.words.slopes_in_words import INEXACT, INEXACT_NOTE

if TYPE_CHECKING:
    from capsbench.report import Report
    from capsbench.store.files import SavedTimeline

_ANSWERS = 24
_VERDICTS = 12
_NOTES = 20
_ROOM = 3_600_000
"""Bytes that records may take, so that the page with its charting library stays below 6 MB."""
_LARGEST = 6_000_000
_SHARES = (
    *((samples, LONGEST_TEXT) for samples in (1000, 100, 30, 10, 5)),
    *((samples, 500) for samples in (5, 1, 0)),
    (0, 120),
)
"""Numbers of raw samples of a time and of characters of a text; the first pair that there is room for is used."""


def write_page(reports: Sequence["Report"], path: Path, loose: Sequence["SavedTimeline"] = (), notes: Sequence[str] = ()) -> Path:
    """Write the page of these reports; a reader of the file sees the old page or the new one, never half of one.

    Args:
        reports: the reports.
        path: the page.
        loose: timelines that lie in no report.
        notes: further notes for the reader.

    Raises:
        OSError: it cannot be written.
    """
    # A name from a folder or file may hold halves of characters, which no encoding has.
    content = page_html(reports, loose, notes).encode("utf-8", "replace")
    with replacing(path) as file:
        file.write(content)
    return path


def page_html(reports: Sequence["Report"], loose: Sequence["SavedTimeline"] = (), notes: Sequence[str] = ()) -> str:
    """The page of these reports; the same records give the same page."""
    apart = with_unique_names(reports)
    records = [record for report in apart for record in report.records]
    alone = apart[0] if len(apart) == 1 else None  # it knows its frame and slopes where they were asked for before
    frame = alone.frame if alone else frame_of(apart)
    table = alone.slopes if alone else fitted_slopes(frame)
    all_series = cells.AllSeries(frame)
    page_series = cells.series_data(all_series, table, apart)
    timelines, all_timelines = timelines_data(apart, loose)
    verdicts = paper_verdicts(table, all_series, page_series, apart)
    texts = cells.Texts()
    fit, packed = cells.packed_fits(page_series)
    data: dict[str, Any] = {
        "units": {"bytes": BYTE_UNITS, "seconds": SECOND_UNITS},
        "latexSigns": LATEX_SIGNS,
        "options": cells.options_data(),
        "columns": cells.columns_data(),
        "samples": cells.time_samples(),
        "metrics": cells.metrics_data(frame),
        "axes": cells.axes_data(frame),
        "disturbances": IN_WORDS,
        "inexact": INEXACT,
        "fit": fit,
        "lines": packed,
        "modules": modules_data(records, texts),
        "contents": contents_data(records, texts),
        "timelines": timelines,
        "paper": cells.paper_data(frame),
        "gpus": gpus_data(),
        "latest": latest_of(apart),
        "reports": reports_data(apart),
        "environments": environments_data(apart),
        "comparisons": comparisons_data(apart),
        "history": history_data(apart, all_series, table),
        "cells": cells.cells_data(all_series, frame, records, texts),
    }
    text, limits = _encoded(data, records, texts)
    if len(timelines) < all_timelines:
        limits.append(f"{len(timelines)} of {all_timelines} timelines are on this page: name fewer reports to see the others.")
    title = " and ".join(cut(report.name, LONGEST_NAME) for report in apart) if len(apart) < 4 else f"{len(apart)} reports"
    faults = cut_list([text for report in apart for text in _fault_notes(report, named=alone is None)], _NOTES)
    notes = [*faults, *cut_list([*(note for report in apart for note in report.notes), *notes], _NOTES, LONGEST_NAME)]
    return _template().render(
        title=title, reports=data["reports"], lines=len(page_series), cells=len(records),
        over=" and ".join(map(over_text, axes_in(frame))), per=" or ".join(map(axis_unit, axes_in(frame))),
        answers=answers(all_series, page_series, apart, _ANSWERS), latest=(data["history"]["points"] or [None])[-1],
        verdicts=verdicts[:_VERDICTS], left_out=max(0, len(verdicts) - _VERDICTS),
        inexact=INEXACT_NOTE if any(data["cells"]["inexact"]) else "",
        light=COLOURS, dark=DARK_COLOURS, pale=PALE, style=_asset("style.css"), script=_asset("page.js"), library=_library(),
        data=text, limits=limits, notes=notes,
    )  # fmt: skip


def with_unique_names(reports: Iterable["Report"]) -> list["Report"]:
    """Return the same reports under names of their own: `mine`, `mine (2)`."""
    found: list[Report] = []
    taken: set[str] = set()
    for report in reports:
        name, count = report.name, 1
        while name in taken:
            count += 1
            name = f"{report.name} ({count})"
        taken.add(name)
        found.append(report if name == report.name else report.named(name))
    return found


def _fault_notes(report: "Report", *, named: bool) -> list[str]:
    """Notes on the cells of a report that failed, each error once; `named` if the page shows other reports as well."""
    faults = faults_of(report)
    if not faults:
        return []
    texts = [*fault_sentences(faults, report.axes), again_sentence(report)]
    if report.plan is not None and report.plan.was_typed():
        texts = [with_flags(text, FLAGS) for text in texts]
    start = f"{report.name}: {faults_head(report)}" if named else faults_head(report).capitalize()
    return [f"{start}: {text}" if number == 0 else text for number, text in enumerate(filter(None, texts))]


def _encoded(data: Mapping[str, Any], records: Sequence[Record], texts: cells.Texts) -> tuple[str, list[str]]:
    """The page's data with as many raw samples and long texts as there is room for, and notes on the rest."""

    def encoded(samples: int, longest: int, **others: Any) -> str:
        own = data["cells"] | {"samples": cells.samples_data(records, samples)}
        return script_json({**data, **others, "cells": own, "texts": texts.all(longest)})

    limits = []
    for samples, longest in _SHARES:
        text = encoded(samples, longest)
        if size_of(text) <= _ROOM:
            break
    else:
        nothing = {"lists": [], "of": [-1] * len(records)}
        text = encoded(samples, longest, **{name: {**data[name], **nothing} for name in ("modules", "contents")})
        limits.append("There is no room for what is inside each step: records.jsonl has it by module and by category.")
    taken = max((len(getattr(one.time, name)) for one in records if one.time for name in SAMPLE_COLUMNS), default=0)
    if taken > samples:
        which = f"at most {samples} raw samples of each time are" if samples else "no raw samples are"
        limits.append(f"There is no room for all: {which} on this page and in its CSV; all are in records.jsonl.")
    if texts.longer(longest):
        limits.append(f"Texts of more than {longest:,} characters are cut; they are whole in records.jsonl.")
    if size_of(text) > _ROOM:
        limits.append(
            f"{len(records):,} records make a page of more than {_LARGEST // 10**6} MB: name fewer reports, or sweep less in one."
        )
    return text, limits


@cache
def _library() -> str:
    """The library plotly.js from its Python package, deflated and in base64; its licence is in its head."""
    code = (resources.files("plotly") / "package_data" / "plotly.min.js").read_bytes()
    return base64.b64encode(zlib.compress(code, 9)).decode()


def _asset(name: str) -> str:
    return (resources.files("capsbench.page") / "assets" / name).read_text(encoding="utf-8")


@cache
def _template() -> Any:
    loader = PackageLoader("capsbench.page", "assets")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html.j2")
