"""Comparisons and checks as a table, as Markdown for a pull request, as JUnit XML for a build server, as JSON, and as a badge."""

import io
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, get_args

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table

from capsbench.gate.badge import badge_of
from capsbench.gate.check import Fault, Finding, Judgement, faults, not_comparable
from capsbench.gate.comparison import Compared, Comparison, Outcome, Verdict
from capsbench.gate.findings import (
    EQUAL_PACE,
    Labels,
    change_text,
    fault_text,
    figure_name,
    finding_text,
    left_out_text,
    missing_text,
    modules_text,
    only_in_text,
    pace_text,
    slope_unit,
    value_text,
)
from capsbench.gate.summary import SeriesSummary
from capsbench.stats.metrics import QUANTITIES
from capsbench.words.printable import cell as text_cell
from capsbench.words.printable import printable

_COLOURS = {"worse": "red", "better": "green", "same": "default"}
_NUMBERS = ("before", "after", "difference")
_TEXT_WIDTH = 100
"""Columns of a table in plain text."""
_GAP, _LEAST_FIGURE = 2, 12
"""Columns between two columns of a table, and of the narrowest names of figures."""


def labels_of(compared: Compared) -> Labels:
    """Labels of every series of either run."""
    both = [it.series for it in compared.comparisons] + [it.series for it in compared.outcomes]
    alone = [series.options() for series in (*compared.only_before, *compared.only_after)]
    return Labels([*both, *alone], compared.ignored)


class ComparisonRow(NamedTuple):
    """The texts of one figure in two runs."""

    line: str
    figure: str
    before: str
    after: str
    difference: str
    verdict: str


def comparison_rows(compared: Compared, *, cells: bool) -> list[ComparisonRow]:
    """The texts of every figure that could be compared.

    Args:
        compared: two runs.
        cells: include each cell, in addition to slopes and levels.
    """
    labels = labels_of(compared)
    rows: list[ComparisonRow] = []
    for it in compared.comparisons:
        if it.verdict != "not comparable" and (cells or it.scope != "cell"):
            remark = "; ".join(filter(None, [pace_text(it), it.why]))
            verdict = ": ".join(filter(None, [it.verdict, remark]))
            figures = (value_text(it, "before"), value_text(it, "after"), change_text(it))
            rows.append(ComparisonRow(labels.of(it.series), figure_name(it), *figures, verdict))
    return rows


class ComparisonTable:
    """Two runs for a terminal: the verdict first, which no width cuts off, and each remark beneath its row.

    Args:
        rows: the texts of each figure.
    """

    def __init__(self, rows: Sequence[ComparisonRow]) -> None:
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay the rows out: names of figures are wrapped if need be, and numbers follow them where no columns have room."""
        heads = ("verdict", "figure", *_NUMBERS)
        lines = [(row.verdict.partition(": ")[0], row.figure, row.before, row.after, row.difference) for row in self._rows]
        widths = [max(map(cell_len, column)) for column in zip(heads, *lines, strict=True)]
        room = options.max_width - sum(widths) - _GAP * (len(widths) - 1)
        in_columns = room >= 0 or widths[1] + room >= _LEAST_FIGURE
        widths[1] += min(room, 0)
        indent = widths[0] + _GAP
        if in_columns:
            yield _table_line(widths, heads, "bold")
        last = ""
        for row, line in zip(self._rows, lines, strict=True):
            if row.line != last:
                yield Padding(console.render_str(text_cell(row.line), style="bold"), (0, 0, 0, indent), expand=False)
            verdict, figure, before, after, difference = line
            if in_columns:
                yield _table_line(widths, line)
            else:
                text = f"{verdict:{indent}}{figure} {before} → {after}, {difference}"
                yield console.render_str(text_cell(text), style=_COLOURS[verdict])
            if remark := row.verdict.partition(": ")[2]:
                yield Padding(console.render_str(text_cell(remark)), (0, 0, 0, indent + _GAP), expand=False)
            last = row.line


def _table_line(widths: Sequence[int], texts: Sequence[str], style: str = "") -> Table:
    """One line of a table, a table of its own; columns stand beneath those of others since their widths are given."""
    line = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
    for name, width in zip(("verdict", "figure", *_NUMBERS), widths, strict=True):
        numbers = name in _NUMBERS
        line.add_column(width=width, justify="right" if numbers else "left", no_wrap=name != "figure", overflow="fold")
    verdict, *others = map(text_cell, texts)
    line.add_row(f"[{_COLOURS[verdict]}]{verdict}[/]" if verdict in _COLOURS else verdict, *others, style=style)
    return line


def comparison_table(compared: Compared, *, cells: bool) -> ComparisonTable:
    """Two runs as a table for a terminal; the arguments are those of `comparison_rows`."""
    return ComparisonTable(comparison_rows(compared, cells=cells))


def comparison_text(compared: Compared) -> str:
    """Two runs in plain text, as `capsbench compare` prints them."""
    out = io.StringIO()
    # A name may have colons, which would be read as emoji.
    console = Console(file=out, width=_TEXT_WIDTH, color_system=None, emoji=False, highlight=False)
    console.print(comparison_table(compared, cells=False))
    table = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join([*table, *map(printable, comparison_remarks(compared, cells=False))])


def comparison_remarks(compared: Compared, *, cells: bool, hint: str = "") -> list[str]:
    """Remarks that the rows lack: figures that are not comparable, outcomes of cells, series of one run alone, hidden cells.

    Args:
        compared: two runs.
        cells: whether cells are shown.
        hint: the way to see them, for the remark on cells that are not shown.
    """
    labels = labels_of(compared)
    remarks = [f"compared across {text}" for text in compared.across]
    if any(it.equal_pace and it.verdict != "not comparable" for it in compared.comparisons):
        remarks.append(f"times are as measured; their differences are {EQUAL_PACE}")
    remarks += [printable(f"not comparable: {left_out_text(it, labels)}") for it in not_comparable(compared.comparisons)]
    for fault in (one for verdict in get_args(Verdict) for one in faults(compared.outcomes, verdict)):
        if fault.first.after is None and not fault.first.message:
            remarks.append(printable(f"only in the first: {only_in_text(fault, labels)}"))
        else:
            remarks.append(printable(f"{fault.first.verdict}: {fault_text(fault, labels)}"))
    for lines, where in ((compared.only_before, "first"), (compared.only_after, "second")):
        remarks += [f"only in the {where}: {labels.of(series.options())}" for series in lines]
    judged = [it for it in compared.comparisons if it.scope == "cell"]
    changed = [f"{count} {verdict}" for verdict in ("worse", "better") if (count := sum(it.verdict == verdict for it in judged))]
    if changed and not cells:
        remarks.append(f"of {len(judged)} figures of single cells {' and '.join(changed)}{hint and ': '}{hint}")
    return remarks


def comparison_markdown(compared: Compared, *, cells: bool, hint: str = "") -> str:
    """Two runs for a pull request; the arguments are those of `comparison_remarks`."""
    head = [_markdown_row(ComparisonRow._fields), "|" + " --- |" * len(ComparisonRow._fields)]
    rows = [_markdown_row(row) for row in comparison_rows(compared, cells=cells)]
    return "\n".join([*head, *rows, *_markdown_list("", comparison_remarks(compared, cells=cells, hint=hint))]) + "\n"


def comparison_json(compared: Compared) -> dict[str, Any]:
    """Two runs with all their digits: bytes, seconds, and both per block."""
    labels = labels_of(compared)
    return {
        "comparisons": [_json_of(it, labels) for it in compared.comparisons],
        "outcomes": [_json_of(it, labels) for it in compared.outcomes],
        "only_before": [labels.of(series.options()) for series in compared.only_before],
        "only_after": [labels.of(series.options()) for series in compared.only_after],
    }


class CheckText:
    """A check in words, for every form of output.

    Args:
        judgement: findings of the check.
        name: name of the baseline.
        update: the command that makes the run the new baseline; empty where there is none.
        notes: further remarks for the reader.
    """

    def __init__(self, judgement: Judgement, name: str, update: str, notes: Iterable[str] = ()) -> None:
        self._judgement = judgement
        self._labels = labels_of(judgement.compared)
        self._name = name
        self.regressions = [self._text(it) for it in judgement.regressions] + [
            missing_text(it, self._labels) for it in judgement.missing
        ]
        self.improvements = [self._text(it) for it in judgement.improvements]
        self.left_out = [printable(left_out_text(it, self._labels)) for it in judgement.left_out]
        self.update = f"to keep what is better: {update}" if judgement.improvements and update else ""
        self.notes = [printable(note) for note in (*notes, *self._notes(judgement.compared.only_after, update))]

    def _notes(self, new: Sequence[SeriesSummary], update: str) -> list[str]:
        judgement = self._judgement
        notes = [f"since the last run: {finding_text(it, self._labels)}" for it in judgement.since_last]
        notes += [f"the last run was not compared: {judgement.last_differs}"] if judgement.last_differs else []
        notes += [f"fewer replicates than the baseline: {fault_text(it, self._labels)}" for it in judgement.fewer]
        names = ", ".join(self._labels.of(series.options()) for series in new)
        return notes + ([f"not in the baseline: {names}" + (f"; to add: {update}" if update else "")] if names else [])

    @property
    def headline(self) -> str:
        """Passed or failed, in one line."""
        count = sum(it.verdict != "not comparable" for it in self._judgement.compared.comparisons)
        if self._judgement.passed:
            return f"passed: {count} figures against {self._name}"
        return f"failed: {len(self.regressions)} regression{'s' * (len(self.regressions) != 1)} against {self._name}"

    def lines(self) -> list[str]:
        """Lines of text for a terminal."""
        return [
            *(f"worse: {text}" for text in self.regressions),
            *(f"better: {text}" for text in self.improvements),
            *filter(None, [self.update]),
            *(f"left out: {text}" for text in self.left_out),
            *(f"note: {text}" for text in self.notes),
            self.headline,
        ]

    def markdown(self) -> str:
        """The check as Markdown for a pull request."""
        parts = [f"### capsbench: {_escaped(self.headline)}"]
        parts += _markdown_list("Worse", self.regressions)
        parts += _markdown_list("Better", [*self.improvements, *filter(None, [self.update])])
        parts += _markdown_list("Left out", self.left_out)
        parts += _markdown_list("Notes", self.notes)
        return "\n".join(parts) + "\n"

    def as_json(self) -> dict[str, Any]:
        """The check as JSON data, with all digits."""
        return {
            "passed": self._judgement.passed,
            "baseline": self._name,
            "regressions": self.regressions,
            "improvements": self.improvements,
            "left_out": self.left_out,
            "notes": self.notes,
            **comparison_json(self._judgement.compared),
        }

    def junit(self) -> str:
        """The check as JUnit XML: a test case per series and quantity, and one per series for the outcomes of its cells."""
        judgement = self._judgement
        failures: dict[tuple[str, str], list[str]] = {}
        for it in judgement.regressions:
            series_of, name = (
                (it.first, "cells") if isinstance(it, Fault) else (it.comparison, QUANTITIES[it.comparison.quantity].head)
            )
            failures.setdefault((self._labels.of(series_of.series), name), []).append(self._text(it))
        for series in judgement.missing:
            failures.setdefault((self._labels.of(series.options()), "cells"), []).append(missing_text(series, self._labels))
        cases: dict[tuple[str, str], str] = dict.fromkeys(failures, "")
        for comparison in judgement.compared.comparisons:
            case = (self._labels.of(comparison.series), QUANTITIES[comparison.quantity].head)
            cases.setdefault(case, "")
            if comparison.verdict == "not comparable":
                cases[case] = comparison.why
            cases.setdefault((case[0], "cells"), "")
        return _junit(cases, failures)

    def badge(self) -> str:
        """The check as a badge, in SVG."""
        return badge_of(len(self.regressions))

    def _text(self, it: Finding | Fault) -> str:
        return printable(finding_text(it, self._labels) if isinstance(it, Finding) else fault_text(it, self._labels))


def _junit(cases: dict[tuple[str, str], str], failures: dict[tuple[str, str], list[str]]) -> str:
    skipped = sum(bool(why) and case not in failures for case, why in cases.items())
    counts = {"tests": str(len(cases)), "failures": str(len(failures)), "errors": "0", "skipped": str(skipped)}
    suite = ET.Element("testsuite", {"name": "capsbench check", **counts})
    for (series, name), why in cases.items():
        case = ET.SubElement(suite, "testcase", {"classname": series, "name": name, "time": "0"})
        for text in failures.get((series, name), []):
            ET.SubElement(case, "failure", {"message": text}).text = text
        if why and (series, name) not in failures:
            ET.SubElement(case, "skipped", {"message": why})
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _json_of(it: Comparison | Outcome, labels: Labels) -> dict[str, Any]:
    data = asdict(it)
    del data["series"]
    if isinstance(it, Comparison):
        per = f" {slope_unit(it)}" if it.scope == "slope" else ""
        data["unit"] = ("bytes" if it.is_bytes else "seconds") + per
        data["retained_more_by"] = modules_text(it.modules, grown=True)
    known = {name: value for name, value in it.series.items() if value is not None}
    return {"label": labels.of(it.series), "line": known, **data}


def _markdown_row(texts: Iterable[str]) -> str:
    return f"| {' | '.join(map(_escaped, texts))} |"


def _markdown_list(head: str, texts: Sequence[str]) -> list[str]:
    if not texts:
        return []
    return ["", *([f"**{head}**", ""] if head else []), *(f"- {_escaped(text)}" for text in texts)]


def _escaped(text: str) -> str:
    """Text that Markdown leaves as it is; a message of a cell may hold anything."""
    flat = printable(" ".join(text.split()))
    for sign in "\\`*_[]<>|#":
        flat = flat.replace(sign, f"\\{sign}")
    return flat
