"""The reports themselves: their machines, their differences, and the change of each figure from one to the next."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from capsbench.errors import ConfigurationError
from capsbench.frame import plain
from capsbench.gate.check import judge
from capsbench.gate.compare import compare
from capsbench.gate.summarize import summarize
from capsbench.gate.summary import Summary, machine_parts, mapping, network_name, same_network
from capsbench.gate.verdicts import CheckText, ComparisonRow, comparison_remarks, comparison_rows
from capsbench.page.cells import AllSeries
from capsbench.page.room import LONGEST_COMMAND, LONGEST_TEXT, cut_list
from capsbench.words.labels import Series, cut

if TYPE_CHECKING:
    from capsbench.report import Report

_MOST_REPORTS = 40
_MOST_ROWS = 3000
"""Largest number of rows of all comparisons together."""
_MOST_REMARKS = 60
_LONGEST_FINDING = 500
_MOST_PARTS = 300
_LONGEST_PART = 400
_CHANGES_ALWAYS = {"load_1_min", "megahertz", "notes", "sm_megahertz"}
_COMPARED_NUMBERS = ("unit", "before_value", "after_value", "difference_value", "difference_low", "difference_high")


def reports_data(reports: Sequence["Report"]) -> list[dict[str, Any]]:
    """Data of each report: command, time and machines."""
    return [
        {
            "name": report.name,
            "command": cut(report.plan.command, LONGEST_COMMAND) if report.plan else None,
            "started": report.started,
            "commits": commits_of(report),
            "cells": len(report.records),
            "environments": sorted({record.environment for record in report.records if record.environment}),
        }
        for report in reports
    ]


def environments_data(reports: Sequence["Report"]) -> dict[str, Any]:
    """Parts of every machine, and which of them differ.

    Returns:
        `keys` of the environments; `titles`: GPU or processor by key; `rows`: name of the part, its value in each environment,
        whether they differ; `more`: number of further rows.
    """
    known: dict[str, Mapping[str, Any]] = {}
    for report in reports:
        for key, entry in report.environments.items():
            if isinstance(entry, Mapping):
                known.setdefault(key, entry)
    parts = {key: _flat(entry) for key, entry in known.items()}
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(name for flat in parts.values() for name in flat):
        values = [flat.get(name, "") for flat in parts.values()]
        differs = name.rpartition(" ")[2] not in _CHANGES_ALWAYS and len(set(values)) > 1
        shown, texts = cut(name.replace("_", " "), _LONGEST_PART), [cut(value, _LONGEST_PART) for value in values]
        rows.append({"name": shown, "values": texts, "differs": differs})
    # Rows that differ come first, as there may not be room for all.
    first = rows if len(rows) <= _MOST_PARTS else sorted(rows, key=lambda row: not row["differs"])[:_MOST_PARTS]
    titles = {key: flat.get("cuda devices 0 name") or flat.get("cpu model") for key, flat in parts.items()}
    return {"keys": list(parts), "titles": titles, "rows": first, "more": len(rows) - len(first)}


def commits_of(report: "Report") -> list[str]:
    """Commits at which its records were measured, or versions if these are of a release."""
    used = {record.environment for record in report.records}
    entries = [entry for key, entry in report.environments.items() if key in used and isinstance(entry, Mapping)]
    found = (entry.get("commit") or entry.get("capsbench") for entry in entries)
    return list(dict.fromkeys(str(name) for name in found if name))


def comparisons_data(reports: Sequence["Report"]) -> list[dict[str, Any]]:
    """Comparisons of every later report with the first, figure by figure, as in `capsbench compare`."""
    if len(reports) < 2:
        return []
    first, *others = reports[:_MOST_REPORTS]
    before, notes = summarize([first])
    most = _MOST_ROWS // len(others)
    return [{"before": first.name, "after": other.name} | _comparison(before, notes, other, most) for other in others]


def _comparison(before: Summary, notes: Sequence[str], other: "Report", most: int) -> dict[str, Any]:
    """The comparison of one report with the first: its `rows`, at most `most`, and `remarks` with facts that these lack."""
    after, others = summarize([other])
    remarks = [*notes, *others]
    try:
        compared = compare(before, after)
    except ConfigurationError as error:
        nothing: dict[str, Any] = {"columns": [], "rows": [], "more": 0}
        return nothing | {"remarks": cut_list(remarks, _MOST_REMARKS), "why": cut(error.what, LONGEST_TEXT)}
    remarks += comparison_remarks(compared, cells=False)
    wide = [it for it in compared.comparisons if it.scope != "cell" and it.verdict != "not comparable"]
    rows: list[list[object]] = []
    for it, texts in zip(wide[:most], comparison_rows(compared, cells=False)[:most], strict=True):
        numbers = ["bytes" if it.is_bytes else "seconds", it.before, it.after, it.difference, it.low, it.high]
        rows.append([*(cut(text, LONGEST_TEXT) for text in texts), *numbers])
    columns = [*ComparisonRow._fields, *_COMPARED_NUMBERS]
    return {"columns": columns, "rows": rows, "more": len(wide) - len(rows), "remarks": cut_list(remarks, _MOST_REMARKS)}


def history_data(reports: Sequence["Report"], all_series: AllSeries, table: pd.DataFrame) -> dict[str, Any]:
    """Slopes from report to report in the order of time, with the gate's verdict on each against the oldest.

    Returns:
        `points`: name, commits and time of each report, with its verdict; `series`: for every series that two reports have, the
        indices in the page's list of series, by report.
    """
    ordered = sorted(reports, key=lambda report: report.ended)[-_MOST_REPORTS:]
    if len(ordered) < 2:
        return {"points": [], "series": []}
    summaries = [summarize([report])[0] for report in ordered]
    points: list[dict[str, Any]] = [
        {"name": report.name, "commits": commits_of(report), "started": report.started}
        | (_verdict(summaries, index, ordered[0].name) if index else {"verdict": "", "findings": [], "remarks": []})
        for index, report in enumerate(ordered)
    ]
    indices = {report.name: index for index, report in enumerate(ordered)}
    fitted = sorted({all_series.index_of(dict(row)) for _, row in table[all_series.names].drop_duplicates().iterrows()})
    shown = [(indices[name], index) for index in fitted if (name := str(all_series.listed[index]["report"])) in indices]
    known = {key: mapping(entry) for report in ordered for key, entry in report.environments.items()}
    return {"points": points, "series": [one for one in _series(shown, all_series.listed, known) if len(one) > 1]}


_SPLIT_BY = ((), ("device", "threads"), ("device", "threads", "machine"))
"""Options that can distinguish series of one report that otherwise differ in the machine alone, the fewest first."""


def _series(
    shown: Sequence[tuple[int, int]], all_series: Sequence[Series], environments: Mapping[str, Any]
) -> list[list[tuple[int, int]]]:
    """Pairs of a report and a series of it, by index, joined if the series differ in the machine alone; each report once.

    If a report has several series that differ in the machine alone, the fewest parts of the machine that distinguish
    them become part of their key. If none does, as after a commit amid a report, the first series stands for all.
    """
    found: dict[str, list[tuple[int, int]]] = {}
    networks = _matched_names([(report, str(all_series[index]["model"])) for report, index in shown])
    for pair in shown:
        series = all_series[pair[1]]
        found.setdefault(_portable({**series, "model": networks[str(series["model"])]}), []).append(pair)
    joined = []
    for pairs in found.values():
        ways = [_split(pairs, all_series, environments, by) for by in _SPLIT_BY]
        # The first of the splits that keep most series.
        joined += max(ways, key=lambda way: sum(map(len, way)))
    return [sorted(one.items()) for one in joined]


def _matched_names(models: Sequence[tuple[int, str]]) -> dict[str, str]:
    """Names by which networks of several reports are matched; their own, if a name would stand for two networks.

    Args:
        models: pairs of a report's index and the name of a network in it.
    """
    of: dict[str, set[tuple[int, str]]] = {}
    for report, model in models:
        of.setdefault(network_name(model), set()).add((report, model))
    found: dict[str, str] = {}
    for name, pairs in of.items():
        own = {model for _, model in pairs}
        alike = all(same_network(one, other) for one in own for other in own)
        is_one = alike and len({report for report, _ in pairs}) == len(pairs)
        found |= {model: name if is_one else model for model in own}
    return found


def _split(
    pairs: Sequence[tuple[int, int]], all_series: Sequence[Series], environments: Mapping[str, Any], by: Sequence[str]
) -> list[dict[int, int]]:
    """Series by report, distinguished by parts of the machine; of series that these leave alike, the first."""
    found: dict[str, dict[int, int]] = {}
    for report, index in pairs:
        series = all_series[index]
        parts = machine_parts(environments.get(str(series.get("environment")), {}))
        known = {**series, "machine": (parts.get("CPU"), parts.get("GPU"))}
        indices = found.setdefault(repr([known[name] for name in by]), {})
        if report not in indices or series.get("source") != all_series[indices[report]].get("source"):
            indices[report] = index  # if a network's source was changed amid a report, the later series
    return list(found.values())


def _verdict(summaries: Sequence[Summary], index: int, baseline: str) -> dict[str, Any]:
    """The verdict of `capsbench check` on a report against the oldest, with the changes since the one before."""
    try:
        judgement = judge(summaries[index], summaries[0], summaries[index - 1] if index > 1 else None)
    except ConfigurationError as error:
        return {"verdict": "not comparable", "findings": [cut(error.what, LONGEST_TEXT)], "remarks": []}
    text = CheckText(judgement, baseline, "")
    findings = [f"worse: {it}" for it in text.regressions] + [f"better: {it}" for it in text.improvements]
    remarks = [f"left out: {it}" for it in text.left_out] + [f"note: {it}" for it in text.notes]
    return {
        "verdict": text.headline,
        "passed": judgement.passed,
        "findings": cut_list(findings, _MOST_REMARKS, _LONGEST_FINDING),
        "remarks": cut_list(remarks, _MOST_REMARKS, _LONGEST_FINDING),
    }


def _portable(series: Series) -> str:
    """A key that is equal for series that differ in report and machine alone; `cuda:1` is of the same kind as `cuda:0`."""
    device = str(series["device"])
    general = "cuda" if device.removeprefix("cuda:").isdecimal() else device
    own = {"report", "environment", "source", "threads", "device"}
    return repr([(name, plain(value)) for name, value in series.items() if name not in own] + [general])


def _flat(entry: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Nested parts under the names that lead to them."""
    found: dict[str, str] = {}
    for name, value in entry.items():
        path = f"{before} {name}".strip()
        if isinstance(value, Mapping):
            found |= _flat(value, path)
        elif isinstance(value, list):
            for number, one in enumerate(value):
                found |= _flat(one, f"{path} {number}") if isinstance(one, Mapping) else {f"{path} {number}": str(one)}
        elif value is not None:
            found[path] = str(value)
    return found
