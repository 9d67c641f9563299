"""Puts a page together: data, scripts and styles in one file."""

import base64
import json
import zlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from capsbench.analysis.slopes import slopes
from capsbench.records import Record
from capsbench.report.page.answers import answers, latest_of, paper_verdicts
from capsbench.report.page.cells import Lines, Texts, cells_data, lines_data, metrics_data, paper_data
from capsbench.report.page.runs import comparisons_data, environments_data, history_data, reports_data
from capsbench.report.page.source import Source, frame_of, told_apart
from capsbench.report.page.steps import contents_data, modules_data, timelines_data
from capsbench.report.styles import COLOURS

SCRIPTS = (
    "data.js",
    "theme.js",
    "controls.js",
    "charts.js",
    "depth.js",
    "tradeoff.js",
    "step.js",
    "tables.js",
    "runs.js",
    "main.js",
)
"""In the order in which they are read."""

DARK_COLOURS = ("#56A8E8", "#F08A4B", "#2EC4A0", "#E3A3C6", "#F0B840", "#8CCBF5", "#D8DCE2")
"""`COLOURS` for a dark page: the same hues, lighter."""

_ANSWERS = 12
_ROOM = 3_600_000
"""Characters for records, so that the page with its charting library stays below 6 MB."""
_SAMPLES = (1000, 100, 30, 10, 5, 1, 0)


def write_page(sources: Sequence[Source], path: Path) -> Path:
    """Writes the page of these reports beside its place and renames it, so that nobody sees half of one.

    Raises:
        OSError: it cannot be written.
    """
    beside = path.with_name(f".{path.name}.new")
    try:
        # A name may hold what no encoding has: halves of characters, from a folder or a file of somebody else.
        beside.write_bytes(page_html(sources).encode("utf-8", "replace"))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def page_html(sources: Sequence[Source]) -> str:
    """The page of these reports; the same records give the same page."""
    apart = told_apart(sources)
    records = [record for source in apart for record in source.records]
    frame = frame_of(apart)
    table, lines = slopes(frame), Lines(frame)
    told = lines_data(lines, frame, table, apart)
    sentences, count = answers(lines, told, frame, apart, _ANSWERS)
    timelines, all_timelines = timelines_data(apart, records)
    verdicts = paper_verdicts(table, lines, told, apart)
    texts = Texts()
    data: dict[str, Any] = {
        "palettes": {"light": COLOURS, "dark": DARK_COLOURS},
        "metrics": metrics_data(frame),
        "lines": told,
        "modules": modules_data(records, texts),
        "contents": contents_data(records, texts),
        "timelines": timelines,
        "allTimelines": all_timelines,
        "paper": paper_data(frame),
        "latest": latest_of(apart),
        "reports": reports_data(apart),
        "environments": environments_data(apart),
        "comparisons": comparisons_data(apart),
        "history": history_data(apart, lines, table),
    }
    return _template().render(
        title=" and ".join(source.name for source in apart) if len(apart) < 4 else f"{len(apart)} reports",
        reports=data["reports"],
        answers=sentences,
        lines=count,
        verdicts=verdicts[:_ANSWERS],
        left_out=max(0, len(verdicts) - _ANSWERS),
        cells=len(records),
        colours=COLOURS,
        dark_colours=DARK_COLOURS,
        style=_asset("style.css"),
        scripts="\n".join(_asset(name) for name in SCRIPTS),
        library=_library(),
        data=_encoded(data, lines, frame, records, texts),
        notes=[note for source in apart for note in source.notes],
    )


def script_json(data: Any) -> str:
    """JSON that no text in it can lead out of a script element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _encoded(data: dict[str, Any], lines: Lines, frame: Any, records: Sequence[Record], texts: Texts) -> str:
    """The page's data, with as many raw samples of each time as there is room for."""
    text = ""
    for samples in _SAMPLES:
        cells = cells_data(lines, frame, records, texts, samples)
        text = script_json(data | {"cells": cells, "texts": texts.all()})
        if len(text) <= _ROOM:
            break
    return text


@cache
def _library() -> str:
    """plotly.js as its Python package brings it, deflated and in base64: its licence is in its head."""
    code = (resources.files("plotly") / "package_data" / "plotly.min.js").read_bytes()
    return base64.b64encode(zlib.compress(code, 9)).decode()


def _asset(name: str) -> str:
    return (resources.files("capsbench.report.page") / "assets" / name).read_text(encoding="utf-8")


@cache
def _template() -> Any:
    loader = PackageLoader("capsbench.report.page", "assets")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html.j2")
