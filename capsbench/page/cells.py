"""Series and cells in the form that the page's scripts read: columns, each text once."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import pandas as pd

from capsbench import paper
from capsbench.axes import axis_title, axis_unit, in_doubles
from capsbench.colours import COLOURS
from capsbench.figures.styles import MODEL_STYLES, SeriesStyle, style_key, styles_of
from capsbench.frame import (
    AXES_COLUMN,
    AXIS_COLUMN,
    CERTAINTY_COLUMN,
    POSITION_COLUMN,
    ROUNDS_COLUMN,
    SAMPLE_COLUMNS,
    SERIES_COLUMNS,
    all_square,
    along,
    axes_in,
    lacking,
    plain,
    positions,
)
from capsbench.gate.findings import Labels
from capsbench.options import OPTIONS, noun_of, value_in_words
from capsbench.page.commands import cell_arguments, series_command, timeline_command
from capsbench.page.gpus import continued_memory
from capsbench.page.room import LONGEST_COMMAND, LONGEST_NAME
from capsbench.records import Record
from capsbench.stats.line_fit import values_by_position
from capsbench.stats.median import median_interval
from capsbench.stats.metrics import METRICS, TIME_METRICS
from capsbench.stats.placed_times import placed_times
from capsbench.stats.slopes import series_columns
from capsbench.words.along import axis_label, over_text
from capsbench.words.labels import Names, Series, cut, images_title, is_of_random_images, model_title
from capsbench.words.printable import printable
from capsbench.words.slopes_in_words import (
    declared_remarks,
    inexact_mark,
    row_basis,
    row_ratio,
    row_remarks,
    row_shape,
    row_slope,
)

if TYPE_CHECKING:
    from capsbench.report import Report

VALUES = (
    "state_bytes", "gradient_bytes", "optimizer_bytes", "retained_bytes", "peak_forward_bytes", "peak_backward_bytes",
    "peak_allocated_bytes", "peak_reserved_bytes", "process_bytes", "inference_peak_bytes", "inference_kept_bytes",
    "train_step_seconds", "forward_seconds", "inference_seconds",
)  # fmt: skip
"""The figures of a cell that the page shows, as columns of `load`."""

_TEXTS = ("status", "message", "noise", "notes", "probe", "data_source")
_FIT_NUMBERS = (
    "slope",
    "slope_low",
    "slope_high",
    "intercept",
    "term",
    "term_low",
    "term_high",
    "misfit",
    "ratio_to_rescapsnet",
    "ratio_low",
    "ratio_high",
)

_FILTERS_FIRST = (
    AXIS_COLUMN, "report", "model", "dataset", "kernel", "memory", "precision", "batch_size", "environment", "device", "gpu",
    "kind",
)  # fmt: skip
"""The filters that come first, in this order."""

_COLUMN_TITLES = {
    AXIS_COLUMN: "Along",
    "report": "Report",
    "environment": "Machine",
    "kind": "Measured or predicted",
    "settings": "Settings of a case",
}
"""Titles of columns other than options that distinguish series."""

_LABELLED = {"model", "dataset", "batch_size", "kernel", "memory", "precision", "device"}
"""Options that the head of a cell's details need not repeat."""

_SYMBOLS = {
    "^": "triangle-up", "s": "square", "o": "circle", "D": "diamond", "v": "triangle-down", "P": "cross", "X": "x", "*": "star",
}  # fmt: skip
_NAMED_DASHES = {"-": "solid", "-.": "dashdot", ":": "dot", "--": "dash"}
_DIGITS = 9

_Key = tuple[object, ...]
_RECORD = "_record"
"""Column of the number of a record."""


class AllSeries:
    """All series of the records along the axes of their reports, and the series of each record along each axis.

    A record without figures that was never started has no environment: it belongs to the series of its report where it would have
    been. A record with figures but without environment is of an unknown machine, and so of a series of its own, as for `slopes`.

    Args:
        frame: all records, as `load` gives them.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        numbered = along(frame.assign(**{_RECORD: range(len(frame))}))
        self._index(numbered)
        self.placed = numbered.assign(line=self._of_row)
        """The frame along its axes, with the index of each row's series as `line`."""
        self.along: dict[str, list[int | None]] = {
            str(axis): self._spread(rows["line"], rows[_RECORD], len(frame))
            for axis, rows in self.placed.groupby(AXIS_COLUMN, sort=False)
        }
        """The series of each record along each axis; None where its report does not vary this axis."""
        self.places: dict[str, list[float | None]] = {
            str(axis): self._spread(rows[POSITION_COLUMN].mask(lacking(rows)), rows[_RECORD], len(frame))
            for axis, rows in self.placed.groupby(AXIS_COLUMN, sort=False)
        }
        """The position of each record on each axis; None if its network does not have the axis."""
        self.lacking = {int(line) for line in self.placed.loc[lacking(self.placed), "line"]}
        """The series of networks that do not have their axis."""
        first = [names[0] for names in frame[AXES_COLUMN]] if AXES_COLUMN in frame.columns else ["blocks"] * len(frame)
        self.of_record = [self.along[axis][record] or 0 for record, axis in enumerate(first)]
        """The series of each record along the first axis of its report."""

    @staticmethod
    def _spread(values: "pd.Series", records: "pd.Series", count: int) -> list[Any]:
        """The values by number of the record, None for those that have none."""
        found: list[Any] = [None] * count
        for record, value in zip(records, values, strict=True):
            found[record] = plain(value)
        return found

    def _index(self, frame: pd.DataFrame) -> None:
        """Find the series, and the index of that of each row."""
        self.names = series_columns(frame)
        columns = [[plain(value) for value in frame[name].tolist()] for name in self.names]
        keys: list[_Key] = list(zip(*columns, strict=True))
        known: dict[_Key, _Key] = {}
        for key in keys:
            if key[-1] is not None:
                known.setdefault(key[:-1], key)
        never_started = [key[-1] is None and status != "ok" for key, status in zip(keys, frame["status"], strict=True)]
        whole = [known.get(key[:-1], key) if never else key for key, never in zip(keys, never_started, strict=True)]
        self._indices = {key: index for index, key in enumerate(dict.fromkeys(whole))}
        self._of_row = [self._indices[key] for key in whole]
        self.listed: list[Series] = [dict(zip(self.names, key, strict=True)) for key in self._indices]

    def index_of(self, series: Series) -> int:
        """Index of a series of `slopes` or `series_of` in the list."""
        return self._indices[tuple(plain(series[name]) for name in self.names)]


def series_data(all_series: AllSeries, table: pd.DataFrame, reports: Sequence["Report"]) -> list[dict[str, Any]]:
    """The page's data of each series: name, options, look, slopes, means over replicates, further memory, and command.

    Args:
        all_series: series of the records.
        table: their slopes.
        reports: the reports.
    """
    labels, looks = Labels(all_series.listed), styles_of(all_series.listed)
    groups: dict[tuple[object, ...], list[Series]] = {}
    for series in all_series.listed:
        groups.setdefault(_group_of(series), []).append(series)
    names = {key: Names(some) for key, some in groups.items()} if len(groups) > 1 else {}
    plans = {report.name: report.plan for report in reports}
    fits: list[dict[str, Any]] = [{} for _ in all_series.listed]
    for row in table.to_dict("records"):
        fits[all_series.index_of({str(name): value for name, value in row.items()})][row["metric"]] = _fit(row)
    means = _means(all_series.placed)
    good = all_series.placed[all_series.placed["status"] == "ok"]
    continued = {int(str(index)): continued_memory(fits[int(str(index))], rows) for index, rows in good.groupby("line")}
    found = []
    for index, series in enumerate(all_series.listed):
        label = labels.of(series)
        known = {name: _short(_shown(name, series[name])) for name in SERIES_COLUMNS if series.get(name) is not None}
        found.append(
            known
            | {
                "label": _short(label),
                "short": _short(names[_group_of(series)].of(series) if names else label),
                "datasetTitle": _short(images_title([series])),
                "report": series["report"],
                "axis": series[AXIS_COLUMN],
                "kind": series["kind"],
                "environment": _short(series.get("environment")),
                "look": _look(looks[style_key(series)]),
                "lacks": index in all_series.lacking,
                "command": _whole(series_command(series, plans.get(str(series["report"])))),
                "timelineCommand": _whole(timeline_command(series)),
                # The paper's readings can be compared with it.
                "paper": str(series["device"]).startswith("cuda")
                and not is_of_random_images(series)
                and series["batch_size"] == paper.BATCH_SIZE
                and series[AXIS_COLUMN] == "blocks",
                "fits": fits[index],
                "continued": continued.get(index),
                "means": means.get(index, {}),
            }
        )
    return found


def _shown(name: str, value: object) -> object:
    """The value of an option as the page shows it: the channels of images whose size is an axis in words."""
    return value_in_words(name, value) if name == "image_shape" else value


def _group_of(series: Series) -> tuple[object, ...]:
    """The report, data set and axis of a series, within which its short name is unique."""
    return series["report"], series["dataset"], series[AXIS_COLUMN]


def packed_fits(page_series: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[Mapping[str, Any]]]:
    """Names of the fields of a fit, and series whose fits are bare values in that order, since names would take most room."""
    names = next((list(fit) for series in page_series for fit in series["fits"].values()), [])
    bare = [{metric: [fit[name] for name in names] for metric, fit in series["fits"].items()} for series in page_series]
    return names, [{**series, "fits": fits} for series, fits in zip(page_series, bare, strict=True)]


def cells_data(all_series: AllSeries, frame: pd.DataFrame, records: Sequence[Record], texts: "Texts") -> dict[str, Any]:
    """All records, column by column, without their raw samples.

    Args:
        all_series: series of the frame.
        frame: all records.
        records: the same records.
        texts: store of the texts, each once.
    """
    axes, configurations = frame[AXES_COLUMN].tolist(), [record.cell.configuration for record in records]
    data: dict[str, Any] = {
        "line": all_series.of_record,
        "places": all_series.places,
        "blocks": frame["blocks"].tolist(),
        "replicate": frame["replicate"].tolist(),
        "place": texts.numbers(map(cell_arguments, axes, configurations)),
        "ending": texts.numbers(map(cell_arguments, axes, configurations, frame["replicate"].tolist())),
        "key": [record.cell.key() for record in records],
        "started": texts.numbers(record.started_at for record in records),
    }
    if len(all_series.along) > 1:
        data["along"] = all_series.along
    data |= {name: texts.numbers(frame[name]) for name in _TEXTS}
    data["inexact"] = texts.numbers(map(_inexact, frame.get(CERTAINTY_COLUMN, [None] * len(frame))))
    data |= {name: [_short(value) for value in frame[name].tolist()] for name in VALUES}
    placed = placed_times(frame)
    for metric in TIME_METRICS.values():
        data[f"{metric.name}_taken"] = [len(getattr(record.time, metric.column)) if record.time else 0 for record in records]
        intervals = [
            (one.low, one.high) if one else record.time and median_interval(getattr(record.time, metric.column))
            for one, record in zip(placed[metric.name], records, strict=True)
        ]
        for end, name in enumerate(("low", "high")):
            data[f"{metric.name}_{name}"] = [interval and _short(interval[end]) for interval in intervals]
        data[f"{metric.name}_placed"] = [one and _short(one.seconds) for one in placed[metric.name]]
    return data


def _inexact(certainty: object) -> str:
    """Columns of the predicted figures of a record that are not exact, joined by commas."""
    known = certainty if isinstance(certainty, Mapping) else {}
    return ",".join(name for name in VALUES if inexact_mark(known.get(name)))


def axes_data(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Words and form of every axis, by its name.

    Label of a chart's axis, noun before a position and unit; whether options have it, whether its positions are
    squares of sides of images, and whether charts place its doubles at equal distances.
    """
    return {
        axis: {
            "label": axis_label(axis),
            "title": axis_title(axis),
            "noun": axis_title(axis).lower(),
            "unit": axis_unit(axis),
            "over": over_text(axis),
            "option": axis in OPTIONS,
            "square": axis == "image_shape" and all_square(frame),
            "doubles": in_doubles(axis, positions(frame, axis).dropna()),
        }
        for axis in axes_in(frame)
    }


def samples_data(records: Sequence[Record], most: int) -> list[list[list[float]]]:
    """Raw samples of each record in the order of `SAMPLE_COLUMNS`, at most `most`, in seconds; clocks know no more digits."""
    return [
        [[float(f"{value:.6g}") for value in getattr(time, name)[:most]] for name in SAMPLE_COLUMNS] if time and most else []
        for time in (record.time for record in records)
    ]


class Texts:
    """Texts of records, each kept once under a number; number 0 is the empty text."""

    def __init__(self) -> None:
        self._numbers = {"": 0}

    def number(self, text: object) -> int:
        """Number of one text; 0 if it is missing."""
        return self._numbers.setdefault("" if plain(text) is None else str(text), len(self._numbers))

    def numbers(self, texts: Iterable[object]) -> list[int]:
        """Numbers of several texts."""
        return [self.number(text) for text in texts]

    def all(self, longest: int) -> list[str]:
        """The texts by number, each cut to at most `longest` characters."""
        return [cut(text, longest) for text in self._numbers]

    def longer(self, longest: int) -> int:
        """Number of texts with more characters."""
        return sum(len(text) > longest for text in self._numbers)


def options_data() -> dict[str, Any]:
    """Options in the page: its filters, the options among a cell's details, and columns of its CSV of cells."""
    return {
        "filters": [_filter(name) for name in dict.fromkeys((*_FILTERS_FIRST, *SERIES_COLUMNS))],
        "details": [{"name": name, "noun": noun_of(name)} for name in SERIES_COLUMNS if name not in _LABELLED],
        "columns": ["report", *(name for name in SERIES_COLUMNS if name != "blocks"), "kind", "environment"],
    }


def columns_data() -> dict[str, Sequence[str]]:
    """Columns of the page's CSV files in addition to options: texts and figures of cells, and numbers of slopes."""
    return {"texts": [*_TEXTS, "started"], "numbers": VALUES, "slopes": _FIT_NUMBERS}


def time_samples() -> list[dict[str, str]]:
    """Name of each time and column of its samples, in the order of `samples_data`."""
    return [{"name": metric.name, "column": SAMPLE_COLUMNS[metric.column]} for metric in TIME_METRICS.values()]


def _filter(name: str) -> dict[str, Any]:
    option = OPTIONS.get(name)
    if option is None:
        return {"name": name, "title": _COLUMN_TITLES[name], "none": "not known", "bytes": False}
    none = option.none or ("none" if option.unwritten is None else str(option.unwritten))
    return {"name": name, "title": option.title, "none": none, "bytes": option.is_bytes}


def metrics_data(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The quantities that any record has."""
    return [
        {
            "name": metric.name,
            "column": metric.column,
            "title": metric.title,
            "head": metric.head,
            "bytes": metric.is_bytes,
        }
        for metric in METRICS.values()
        if frame[metric.column].notna().any()
    ]


def paper_data(frame: pd.DataFrame) -> dict[str, Any]:
    """Table 4 of the data sets that were measured: a series for each model, by data set."""
    table = paper.memory()
    memory: dict[str, list[dict[str, Any]]] = {}
    for (dataset, name), rows in table[table["dataset"].isin(set(frame["dataset"]))].groupby(["dataset", "model"]):
        model = str(name)
        values = {"title": model_title(model), "blocks": rows["blocks"].tolist(), "bytes": rows["bytes"].tolist()}
        memory.setdefault(str(dataset), []).append(values | {"look": {"colour": COLOURS.index(MODEL_STYLES[model][0])}})
    return {"metrics": list(paper.COMPARABLE_METRICS), "memory": memory}


def _fit(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {name: _short(row[name]) for name in _FIT_NUMBERS} | {
        "points": row["points"],
        "shape": row_shape(row),
        "noise": row["noise"],
        "certainty": plain(row.get("certainty")) or "",
        "text": row_slope(row),
        "remarks": ", ".join(filter(None, [*row_remarks(row), row_basis(row)])),
        "basis": row_basis(row),
        "declared": ", ".join(declared_remarks(row)),
        "ratioText": row_ratio(row),
    }


def _means(placed: pd.DataFrame) -> dict[int, dict[str, list[list[float]]]]:
    """Values at each position by series and metric, of series that have replicates or took turns: pairs of position and value.

    Args:
        placed: frame along its axes, with the column `line`.
    """
    good = placed[placed["status"] == "ok"]
    several = good.groupby(["line", POSITION_COLUMN]).size().groupby("line").max()
    in_turn = set(good.loc[good[ROUNDS_COLUMN].map(bool), "line"])
    found: dict[int, dict[str, list[list[float]]]] = {}
    for index, cells in good[good["line"].isin({*several[several > 1].index, *in_turn})].groupby("line"):
        own = found[int(str(index))] = {}
        for metric in METRICS.values():
            values = values_by_position(cells[cells[metric.column].notna()], metric)
            own[metric.name] = [[plain(place), value] for place, value in values.items()]
    return found


def _short(value: Any) -> Any:
    known = plain(value)
    if isinstance(known, str):
        return cut(printable(known), LONGEST_NAME)
    return float(f"{known:.{_DIGITS}g}") if isinstance(known, float) else known


def _whole(text: str) -> str:
    """A command, which is left out rather than cut."""
    return text if len(text) <= LONGEST_COMMAND else ""


def _look(style: SeriesStyle) -> dict[str, Any]:
    """A series' look in the charting library's words, with its colour by index, as a page has two palettes."""
    dash = style.dash
    name = _NAMED_DASHES[dash] if isinstance(dash, str) else ",".join(f"{length:g}px" for length in chain(dash[1]))
    return {"colour": COLOURS.index(style.colour), "symbol": _SYMBOLS[style.marker], "dash": name, "size": 3 + style.size}
