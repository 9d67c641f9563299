"""The inside of one step: bytes that modules retain, and timelines."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from capsbench.colours import COLOURS, PURPOSES
from capsbench.figures.one_step import caption_of, contents_at_peak, modules_of, peak_module, places_of, shown_events, title_of
from capsbench.page.cells import Texts
from capsbench.page.room import LONGEST_NAME, LONGEST_TEXT, cut_list, script_json, size_of
from capsbench.records import Contents, Record
from capsbench.timeline import Timeline
from capsbench.words.labels import cut
from capsbench.words.modules import OUTSIDE, STARS, ModuleChange, module_changes

if TYPE_CHECKING:
    from capsbench.report import Report
    from capsbench.store.files import SavedTimeline

_MOST_MODULES = 20
_MOST_TIMELINES = 24
_ROOM = 800_000
"""Bytes of the page that timelines may take."""

ModuleRows = list[list[Any]]
"""Rows of name, bytes of each module, and their number; last, without a name, the sums over all others."""


def modules_data(records: Sequence[Record], texts: Texts) -> dict[str, Any]:
    """Bytes that modules retain in each cell; equal lists, as of replicates, are kept once.

    Returns:
        `lists`, each of `ModuleRows` with numbers of `texts` for names; `of`, the number of each cell's list, or -1; and `stars`,
        the note on names with a star.
    """
    known: dict[tuple[tuple[str, int], ...], int] = {}
    lists: list[ModuleRows] = []
    of = []
    for record in records:
        step = record.believed_step()
        key = tuple(step.retained_by_module.items()) if step else ()
        if key and key not in known:
            known[key] = len(lists)
            lists.append(_modules(module_changes({}, dict(key)), texts.number, {}))
        of.append(known.get(key, -1))
    return {"lists": lists, "of": of, "stars": STARS}


def contents_data(records: Sequence[Record], texts: Texts) -> dict[str, Any]:
    """Memory alive at the peak of each cell, by category; equal lists are kept once.

    Returns:
        `names` of the categories, and their `colours`; `lists`: a phase (a number of `texts`), then bytes by category; `of` as in
        `modules_data`.
    """
    fields = [name for name in Contents.model_fields if name.endswith("_bytes")]
    names = [name.removesuffix("_bytes") for name in fields]
    known: dict[tuple[int, ...], int] = {}
    of = []
    for record in records:
        held = record.memory.at_peak if record.memory else None
        key = (texts.number(held.phase), *(getattr(held, name) or 0 for name in fields)) if held else None
        of.append(known.setdefault(key, len(known)) if key else -1)
    return {"names": names, "colours": list(map(_colour, names)), "lists": list(known), "of": of}


def timelines_data(reports: Sequence["Report"], loose: Sequence["SavedTimeline"]) -> tuple[list[dict[str, Any]], int]:
    """The first timelines, as many as there is room for, and the number of all.

    Each belongs to the cells of the report in whose folder it lies. One that lies in no report belongs to the only
    report, and to none if there are several, since a configuration may stand for other code in each.

    Args:
        reports: the reports.
        loose: timelines that lie in no report.
    """
    cells: dict[tuple[str, str], list[int]] = {}
    everyone = [(report.name, record) for report in reports for record in report.records]
    for index, (name, record) in enumerate(everyone):
        cells.setdefault((name, record.cell.configuration.model_dump_json()), []).append(index)
    of_no_other = reports[0].name if len(reports) == 1 else None
    looks: list[tuple[str | None, SavedTimeline]]
    looks = [(report.name, one) for report in reports for one in report.timelines] + [(of_no_other, one) for one in loose]
    found: list[dict[str, Any]] = []
    room = _ROOM
    for owner, one in looks[:_MOST_TIMELINES]:
        of = [] if owner is None else cells.get((owner, one.timeline.configuration.model_dump_json()), [])
        entry = _timeline(one.timeline) | {"report": owner, "path": cut(one.path, LONGEST_TEXT), "cells": of}
        room -= size_of(script_json(entry))
        if room < 0:
            break
        found.append(entry)
    return found, len(looks)


def _modules(changes: Sequence[ModuleChange], name: Callable[[str], Any], classes: Mapping[str, str]) -> ModuleRows:
    """The modules that retain most, with their classes as far as they are known, and all others as one."""
    rows: ModuleRows = [[name(it.title(classes)), it.nbytes, it.count] for it in changes[:_MOST_MODULES]]
    rest = changes[_MOST_MODULES:]
    return [*rows, [None, sum(it.nbytes * it.count for it in rest), sum(it.count for it in rest)]] if rest else rows


def _colour(category: str) -> int | str:
    """The colour of a category: its index in the page's palettes, or itself if it suits both."""
    colour = PURPOSES[category]
    return COLOURS.index(colour) if colour in COLOURS else colour


def _timeline(timeline: Timeline) -> dict[str, Any]:
    stacks = {name: np.array(nbytes) for name, nbytes in timeline.bytes_by_category.items() if any(nbytes)}
    total = np.sum([np.array(nbytes) for nbytes in timeline.bytes_by_category.values()], axis=0)
    at = [round(place, 5) for place in places_of(timeline).tolist()]
    shown = np.unique([*shown_events(total), timeline.peak.event])
    at_peak = contents_at_peak(timeline)
    peak, notes = timeline.peak, cut_list(timeline.notes, 8, LONGEST_NAME)
    return {
        "title": cut(title_of(timeline), LONGEST_NAME),
        "caption": [cut(text, LONGEST_TEXT) for text in caption_of(timeline.model_copy(update={"notes": notes}))],
        "events": shown.tolist(),
        "places": [at[event] for event in shown.tolist()],
        "categories": [
            {"name": name, "colour": _colour(name), "bytes": nbytes[shown].tolist(), "atPeak": at_peak[name]}
            for name, nbytes in stacks.items()
        ],
        "phases": [
            {"name": name, "first": at[phase.first_event], "last": at[phase.last_event], "event": phase.last_event}
            for name, phase in timeline.phases.items()
        ],
        "peak": {
            "place": at[peak.event],
            "event": peak.event,
            "total": int(total[peak.event]),
            "allocated": peak.allocated_bytes,
            "phase": cut(peak.contents.phase, LONGEST_NAME),
            "operator": None if peak.operator is None else cut(peak.operator, LONGEST_NAME),
            "module": None if peak.module is None else cut(peak_module(timeline) or OUTSIDE, LONGEST_NAME),
            "leftOver": peak.left_over_bytes,
        },
        "modules": _modules(modules_of(timeline), lambda name: cut(name, LONGEST_NAME), timeline.module_classes),
    }
