"""The answers that a page begins with: the costs of each series in a row and in a sentence, and whether the paper agrees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

import pandas as pd

from capsbench import paper
from capsbench.axes import axis_title, per_unit
from capsbench.frame import AXIS_COLUMN, POSITION_COLUMN, POSITIONS_COLUMN, all_square, plain
from capsbench.gate.summary import mapping
from capsbench.page.cells import AllSeries
from capsbench.page.costs import Cost, cost_table, notes_on
from capsbench.page.room import LONGEST_NAME
from capsbench.records import FAULTS
from capsbench.stats.least_squares import fit_slope
from capsbench.stats.metrics import METRICS
from capsbench.words.along import number_text, places_text
from capsbench.words.cost_sentence import CostWords, Piece, cost_pieces, named_memory
from capsbench.words.labels import (
    STAND_IN,
    Series,
    cut,
    dataset_title,
    images_title,
    is_of_random_images,
    is_predicted,
    model_title,
)
from capsbench.words.slopes_in_words import row_ratio, row_shape, row_slope
from capsbench.words.units import bytes_text, quantity_text

if TYPE_CHECKING:
    from capsbench.report import Report


_VERBS = ("Measured", "Predicted", "Tried")
"""First condition of every series."""


@dataclass(frozen=True)
class Answer:
    """One series of the records: its costs as a row, and in a sentence."""

    label: str
    colour: int
    """Index in the page's palettes."""
    costs: list[Cost | None]
    """Costs in the quantities of the table."""
    sentence: list[Piece]
    ending: str
    """End of a series that does not end well."""
    where: str
    """Conditions of the measurement and its machine that not all series share."""


@dataclass(frozen=True)
class Answers:
    """The first statements of a page."""

    heads: list[str]
    """Heads of the table's columns of costs."""
    where: str
    """Conditions that all series share."""
    each: list[Answer]
    notes: str
    """The meaning of the signs in the table."""


@dataclass(frozen=True)
class PaperVerdict:
    """One of the paper's claims compared with one's own figure."""

    claim: str
    paper: str
    here: str
    of: str
    """The series that has the figure."""
    verdict: str
    """Verdict: `agrees`, `contradicts` or `open`; for an amount that does not agree, `less` or `more`."""
    why: str


def answers(all_series: AllSeries, page_series: Sequence[Mapping[str, Any]], reports: Sequence["Report"], most: int) -> Answers:
    """The first series, those of the latest report first, and of these the one whose memory grows least.

    Args:
        all_series: series of the records.
        page_series: result of `series_data`.
        reports: the reports.
        most: largest number of series.
    """
    latest = latest_of(reports)

    def rank(index: int) -> tuple[bool, float]:
        fits = page_series[index]["fits"]
        memory = named_memory({name: fit["shape"] for name, fit in fits.items()})
        grows = inf if memory is None else fits[memory]["slope"]
        return page_series[index]["report"] != latest, grows

    first = sorted(range(len(page_series)), key=rank)[:most]
    rows = all_series.placed
    cells = {index: rows[rows["line"] == index] for index in first}
    conditions = {index: _conditions(all_series.listed[index], cells[index], reports) for index in first}
    shared = [one for one in conditions[first[0]] if all(one in others for others in conditions.values())] if first else []
    heads, costs = cost_table({index: page_series[index] for index in first}, cells)
    found = []
    for index in first:
        series, ending = page_series[index], _ending(cells[index])
        sentence = [*_cost(series["fits"], cells[index], per_unit(str(series["axis"]))), *ending]
        label = str(series["label"])
        where = _own_text([one for one in conditions[index] if one not in shared], label)
        words = "".join(text for _, text in ending).strip()
        found.append(Answer(label, int(series["look"]["colour"]), costs[index], sentence, words, where))
    return Answers(heads, _joined(shared), found, notes_on(page_series[index] for index in first))


def paper_verdicts(
    table: pd.DataFrame, all_series: AllSeries, page_series: Sequence[Mapping[str, Any]], reports: Sequence["Report"]
) -> list[PaperVerdict]:
    """The paper's claims on memory and time per block, compared with one's own figures; the latest report's first.

    Args:
        table: slopes of all lines.
        all_series: series of the records.
        page_series: result of `series_data`.
        reports: the reports.
    """
    ratios: list[PaperVerdict] = []
    amounts: list[PaperVerdict] = []
    table = table[table[AXIS_COLUMN] == "blocks"]
    rows = table.iloc[(table["report"] != latest_of(reports)).argsort(kind="stable")]
    for row in rows.to_dict("records"):
        series = {str(name): plain(row[name]) for name in all_series.names}
        own = page_series[all_series.index_of(series)]
        label = str(own["label"])
        is_momentum = series["model"] == "mocapsnet" and str(series["memory"]).startswith("reversible")
        alone = is_predicted(series) and pd.isna(row["ratio_to_rescapsnet"])
        if is_momentum and not alone and row["metric"] in ("retained", "train"):
            ratios.append(_ratio_verdict(row, label))
        # The driver's figure for the process is the one that nvidia-smi reads.
        if row["metric"] == "process" and own["paper"] and not is_predicted(series):
            amounts += _slope_verdict(row, series, label)
    return [*ratios, *amounts]


def latest_of(reports: Sequence["Report"]) -> str:
    """The name of the report that was measured last, or of those that were named last if it is not known."""
    return max(reversed(reports), key=lambda report: report.ended).name


def _cost(fits: Mapping[str, Mapping[str, Any]], cells: pd.DataFrame, unit: str) -> list[Piece]:
    """The cost of a block, or of another unit of the axis, in memory and in time."""
    if not fits:
        return _without_slope(cells)
    return [*cost_pieces({name: _words(fit, unit) for name, fit in fits.items()}), (False, ".")]


def _words(fit: Mapping[str, Any], unit: str) -> CostWords:
    """A fit of the page's in words."""
    return CostWords(
        unit=unit,
        shape=fit["shape"],
        slope=fit["slope"],
        text=str(fit["text"]),
        has_interval=fit["slope_low"] is not None,
        ratio=fit["ratioText"],
        declared=fit["declared"],
        basis=fit["basis"],
        noise=fit["noise"],
    )


def _without_slope(cells: pd.DataFrame) -> list[Piece]:
    """The findings that need no slope; of several replicates, those of the first."""
    good = cells[cells["status"] == "ok"]
    if good.empty:
        return [(False, "has no figures.")]
    row = good.iloc[0]
    known = [METRICS[name] for name in ("retained", "peak", "train") if not pd.isna(row[METRICS[name].column])]
    parts = [f"{it.title} {quantity_text(float(row[it.column]), is_bytes=it.is_bytes)}" for it in known]
    verb = "was predicted" if row["kind"] == "predicted" else "was measured"
    figures = f": {', '.join(parts)}" if parts else ""
    axis, places = str(row[AXIS_COLUMN]), sorted(set(good[POSITION_COLUMN]))
    if axis not in row.get(POSITIONS_COLUMN, {axis}):
        return [(False, f"has no {axis_title(axis).lower()}, and so no slope{figures}.")]
    if len(places) > 1:
        return [
            (False, f"{verb} at {_places(axis, places, good)}, no two of which have a figure in common: that gives no slope.")
        ]
    return [(False, f"{verb} at {_places(axis, places, good)} only, which gives no slope{figures}.")]


def _ending(cells: pd.DataFrame) -> list[Piece]:
    """The end of a series that does not end well."""
    pieces: list[Piece] = []
    full = sorted(set(cells[cells["status"] == "oom"][POSITION_COLUMN]))
    if full:
        axis = str(cells[AXIS_COLUMN].iloc[0])
        beyond = cells[(cells["status"] == "ok") & (cells[POSITION_COLUMN] >= full[0])]
        from_there = f" from {_places(axis, full[:1], cells)} on" if beyond.empty else f" at {_places(axis, full, cells)}"
        where = "" if full == [0] else from_there
        how = " Would run out of memory" if (cells["kind"] == "predicted").all() else " Out of memory"
        pieces.append((False, f"{how}{where}."))
    faults = cells[cells["status"].isin(FAULTS)]
    if len(faults):
        pieces.append((False, f" {len(faults)} of its cells ended in {' or '.join(sorted(set(faults['status'])))}."))
    return pieces


def _conditions(series: Series, cells: pd.DataFrame, reports: Sequence["Report"]) -> list[str]:
    """Conditions and machine: `Measured`, `at 1 to 8 blocks`, `MNIST`, `batch 128`, `kernel compiled`, `Xeon, 2 threads`."""
    good = cells[cells["status"] == "ok"]
    axis, places = str(series[AXIS_COLUMN]), sorted(set((good if len(good) else cells)[POSITION_COLUMN]))
    how = "Predicted" if is_predicted(series) else "Measured" if len(good) else "Tried"
    parts = [how, *([f"at {_places(axis, places, cells)}"] if places != [0] else []), images_title([series])]
    parts += [places_text("blocks", [float(str(series["blocks"]))])] if plain(series.get("blocks")) else []
    parts += [] if plain(series.get("batch_size")) is None else [f"batch {plain(series['batch_size'])}"]
    parts += [] if plain(series.get("settings")) is None else [str(series["settings"])]
    parts += [f"{name} {series[name]}" for name in ("kernel", "memory") if series.get(name) is not None]
    parts += [str(series["precision"]), _machine(series, reports)]
    parts = [cut(part, LONGEST_NAME) for part in parts]
    if (cells["data_source"] == "stand-in").any():
        parts.append(STAND_IN)
    return list(dict.fromkeys(part for part in parts if part))


def _joined(conditions: Sequence[str]) -> str:
    """Conditions as a sentence: `Measured at 1 to 8 blocks: MNIST, batch 128.`; empty without any."""
    if not conditions:
        return ""
    start = [one for one in conditions if one in _VERBS or one.startswith("at ")]
    rest = [one for one in conditions if one not in start]
    head = " ".join(start if start and start[0] in _VERBS else ["All lines", *start])
    return f"{head}{': ' if rest else ''}{', '.join(rest)}."


def _own_text(conditions: Sequence[str], label: str) -> str:
    """The conditions of one series that its label does not have: `Measured at 1 to 8 blocks, kernel compiled`."""
    is_named = not any(one.startswith("at ") for one in conditions)
    own = [one for one in conditions if one.rpartition(" ")[2] not in label]
    own = [one for one in own if not (is_named and one in _VERBS and one.lower() in label)]
    text = ", ".join(own)
    return text.replace(", at ", " at ", 1) if own and own[0] in _VERBS else text


def _machine(series: Series, reports: Sequence["Report"]) -> str:
    """Name of the device in its report's environment."""
    if is_predicted(series):
        return str(series.get("gpu") or str(series["device"]).partition(":")[0])
    environments = next((report.environments for report in reports if report.name == series["report"]), {})
    entry, device = mapping(environments.get(str(series.get("environment")))), str(series["device"])
    if device.startswith("cuda"):
        devices, number = mapping(entry.get("cuda")).get("devices") or [], device.partition(":")[2] or "0"
        known = isinstance(devices, list) and number.isdecimal() and int(number) < len(devices)
        return str(mapping(devices[int(number)]).get("name", device)) if known else device
    cpu = mapping(entry.get("cpu")).get("model") or device
    threads = series.get("threads")
    return str(cpu) if threads is None else f"{cpu}, {threads} thread{'' if threads == 1 else 's'}"


def _places(axis: str, places: Sequence[float], cells: pd.DataFrame) -> str:
    """Positions of cells in words."""
    # Positions are sorted and differ.
    if axis == "blocks" and len(places) > 2 and places[-1] - places[0] + 1 == len(places):
        return f"{number_text(places[0])} to {number_text(places[-1])} blocks"
    return places_text(axis, places, square=all_square(cells))


def _ratio_verdict(row: Mapping[Any, Any], label: str) -> PaperVerdict:
    """The ratio of MoCapsNet's slope to ResCapsNet's: in the paper memory falls and time rises."""
    memory = row["metric"] == "retained"
    theirs = paper.slope_ratio("memory" if memory else "train_time")
    claim = "A block costs MoCapsNet less memory than ResCapsNet" if memory else "and more training time"
    if pd.isna(row["ratio_to_rescapsnet"]):
        # The reason lies in this slope or in ResCapsNet's.
        why = row_slope(row) if row_shape(row) == "no change measurable" else "it is not a line"
        if row_shape(row) == "line":
            why = "no ResCapsNet line with the same options has a slope that can be distinguished from 0"
        here, verdict = "-", "open"
    else:
        ratio = float(row["ratio_to_rescapsnet"])
        low, high = (ratio if pd.isna(row[name]) else float(row[name]) for name in ("ratio_low", "ratio_high"))
        here = f"× {row_ratio(row)}"
        verdict = "open" if low <= 1 <= high else "agrees" if (high < 1) == memory else "contradicts"
        why = "the interval contains 1" if verdict == "open" else ""
    return PaperVerdict(claim, f"× {theirs:.3g}", here, f"{label}, {METRICS[row['metric']].title}", verdict, why)


def _slope_verdict(row: Mapping[Any, Any], series: Series, label: str) -> list[PaperVerdict]:
    """Table 4's slope compared with one of the same kind of memory, at the same batch, on a GPU."""
    table = paper.memory()
    theirs = table[(table["dataset"] == series["dataset"]) & (table["model"] == series["model"])]
    if theirs.empty or is_of_random_images(series) or pd.isna(row["slope_low"]):
        return []
    fit = fit_slope(theirs["blocks"].tolist(), theirs["bytes"].tolist())
    low, high = fit.slope_interval or (fit.slope, fit.slope)
    overlap = row["slope_low"] <= high and low <= row["slope_high"]
    of = f"{model_title(str(series['model']))} on {dataset_title(str(series['dataset']))}"
    name = f"{of}: memory per block (table 4, nvidia-smi)"
    if row_shape(row) != "line":
        # An interval that contains 0 agrees with almost anything.
        verdict, why = "open", str(row_shape(row))
    else:
        verdict = "agrees" if overlap else "less" if row["slope"] < fit.slope else "more"
        why = "" if overlap else "than the paper’s implementation"
    return [PaperVerdict(name, bytes_text(fit.slope), row_slope(row), f"{label}, {METRICS[row['metric']].title}", verdict, why)]
