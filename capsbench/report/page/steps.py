"""Inside one step: what modules retain, and timelines."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from capsbench.analysis.modules import module_changes
from capsbench.records import Contents, Record, Timeline
from capsbench.report.page.cells import Texts
from capsbench.report.page.source import Source
from capsbench.report.timeline import (
    LOOKS,
    NOBODY,
    caption_of,
    contents_at_peak,
    modules_of,
    places_of,
    shown_events,
    title_of,
)

_MOST_MODULES = 20
_MOST_TIMELINES = 24


def modules_data(records: Sequence[Record], texts: Texts) -> dict[str, Any]:
    """What modules retain in each cell; equal lists, as replicates have, are kept once.

    Returns:
        `lists`, each of triples: name (a number of `texts`), bytes of each module, how many; and `of`, by cell the number of its
        list, or -1.
    """
    known: dict[tuple[tuple[str, int], ...], int] = {}
    lists: list[list[list[int]]] = []
    of = []
    for record in records:
        retained = record.step.retained_by_module if record.step else {}
        if not retained:
            of.append(-1)
            continue
        key = tuple(retained.items())
        if key not in known:
            known[key] = len(lists)
            changes = module_changes({}, retained)
            told = [[texts.number(it.name or NOBODY), it.nbytes, it.count] for it in changes[:_MOST_MODULES]]
            rest = changes[_MOST_MODULES:]
            if rest:
                told.append([texts.number(f"{len(rest)} others"), sum(it.nbytes * it.count for it in rest), 1])
            lists.append(told)
        of.append(known[key])
    return {"lists": lists, "of": of}


def contents_data(records: Sequence[Record], texts: Texts) -> dict[str, Any]:
    """What is alive at the peak of each cell, by category; equal ones are kept once.

    Returns:
        `names` of the categories; `lists`: a phase (a number of `texts`), then bytes by category; `of` as in `modules_data`.
    """
    names = [name for name, field in Contents.model_fields.items() if field.annotation is int]
    known: dict[tuple[int, ...], int] = {}
    of = []
    for record in records:
        held = record.memory.at_peak if record.memory else None
        if held is None:
            of.append(-1)
            continue
        key = (texts.number(held.phase), *(getattr(held, name) for name in names))
        of.append(known.setdefault(key, len(known)))
    return {"names": [name.removesuffix("_bytes") for name in names], "lists": list(known), "of": of}


def timelines_data(sources: Sequence[Source], records: Sequence[Record]) -> tuple[list[dict[str, Any]], int]:
    """The first timelines, each with the cells that it is of; and how many there are."""
    by_configuration: dict[str, list[int]] = {}
    for place, record in enumerate(records):
        by_configuration.setdefault(record.cell.configuration.model_dump_json(), []).append(place)
    everyone = [timeline for source in sources for timeline in source.timelines]
    return [
        _timeline(timeline) | {"cells": by_configuration.get(timeline.configuration.model_dump_json(), [])}
        for timeline in everyone[:_MOST_TIMELINES]
    ], len(everyone)


def _timeline(timeline: Timeline) -> dict[str, Any]:
    stacks = {name: np.array(nbytes) for name, nbytes in timeline.bytes_by_category.items() if any(nbytes)}
    total = np.sum([np.array(nbytes) for nbytes in timeline.bytes_by_category.values()], axis=0)
    places, shown = places_of(timeline), shown_events(total)
    shown = np.unique([*shown, timeline.peak.event])
    at_peak = dict(contents_at_peak(timeline))
    peak = timeline.peak
    return {
        "title": title_of(timeline),
        "caption": caption_of(timeline),
        "events": shown.tolist(),
        "places": [round(float(place), 5) for place in places[shown]],
        "categories": [
            {"name": name, "colour": LOOKS[name][0], "bytes": nbytes[shown].tolist(), "atPeak": at_peak[name]}
            for name, nbytes in stacks.items()
        ],
        "phases": [
            {
                "name": name,
                "first": round(float(places[phase.first_event]), 5),
                "last": round(float(places[phase.last_event]), 5),
                "event": phase.last_event,
            }
            for name, phase in timeline.phases.items()
        ],
        "peak": {
            "place": round(float(places[peak.event]), 5),
            "event": peak.event,
            "total": int(total[peak.event]),
            "allocated": peak.allocated_bytes,
            "phase": peak.contents.phase,
            "operator": peak.operator,
            "module": peak.module if peak.module != "" else NOBODY,
            "leftOver": peak.left_over_bytes,
        },
        "modules": [[module.name or NOBODY, module.nbytes, module.count] for module in modules_of(timeline)[:_MOST_MODULES]],
    }
