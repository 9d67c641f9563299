"""The table of slopes: what a block, a sample or a token costs each series of a frame, and the ratios to a reference.

`line_fit` fits each series.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from capsbench.axes import BASES, per_unit, term_unit
from capsbench.frame import AXIS_COLUMN, BASES_COLUMN, CERTAINTY_COLUMN, POSITION_COLUMN, ROUNDS_COLUMN, SERIES_COLUMNS, along
from capsbench.options import NETWORK_OPTIONS, OPTIONS
from capsbench.stats.bases import Curve
from capsbench.stats.intervals import ratio_interval
from capsbench.stats.line_fit import LineFit, SeriesKind, fit_in_turn, fit_points, least_certainty, points_at, points_of
from capsbench.stats.metrics import METRICS, Metric
from capsbench.stats.turn_times import TurnFit, turns_ratio_interval

REFERENCE_MODEL = "rescapsnet"

_OF_A_MODEL = {"model", "source", *(name for name, option in OPTIONS.items() if option.of_model)}
_OF_CAPSULES = set(NETWORK_OPTIONS) - _OF_A_MODEL


def series_columns(frame: pd.DataFrame) -> list[str]:
    """The columns of a frame along an axis whose values all positions of one series share."""
    known = ("report", AXIS_COLUMN, *SERIES_COLUMNS, "kind", "source", "environment")
    return [name for name in known if name in frame.columns]


def series_of(frame: pd.DataFrame) -> Iterable[tuple[dict[str, object], pd.DataFrame]]:
    """Each series' common values, and its rows that ended well, by position.

    Args:
        frame: frame from `along`, or from `load`, whose reports then lie along their own axes.
    """
    placed = along(frame)
    for series, rows in by_series(placed[placed["status"] == "ok"]):
        yield series, rows.sort_values(POSITION_COLUMN, kind="stable")


def by_series(table: pd.DataFrame) -> Iterable[tuple[dict[str, object], pd.DataFrame]]:
    """The rows of records, or of slopes, series by series with their common values."""
    keys = series_columns(table)
    for values, rows in table.groupby(keys, dropna=False, sort=False):
        yield dict(zip(keys, values, strict=True)), rows


def fitted_slopes(frame: pd.DataFrame, axis: str | None = None) -> pd.DataFrame:
    """The slope of every series and metric in a frame from `load`, along every axis that a report varies.

    Args:
        frame: frame with a row per record.
        axis: name of the one axis; by default each report's own.

    Returns:
        A row per axis, series and metric: the series' columns, of which `axis` names the axis and its own one is empty, then

        - `metric`, `unit` (`bytes per block`, `seconds per token`), `slope`, `slope_low`, `slope_high`, `intercept`,
          `intercept_low`, `intercept_high`, `r2`, `points`. The interval of a time's slope contains the scatter of samples, of
          replicates and of medians around the line. Bytes repeat: if all lie on the line, its slope is exact, and its interval
          is that number. Intervals are missing with fewer than three points, unless cells took turns, whose intercepts have none.
        - `basis`: `edges` if the slope is that of the parts that grow along the axis, `turns` if it is that of whole steps (both
          of cells that took turns), `cells` if each cell was measured alone; `rest_low`, `rest_high`: 99 % interval of the slope
          of the rest of the step, which contains 0 where the basis is `edges`; missing where the parts that grow are not known.
        - `term`, `term_low`, `term_high`, `term_unit`: the factor of n² (`bytes per pair of tokens`) where the shape is
          `quadratic`, or of 1/n (`bytes divided by world size`) where it is `inverse`, and its interval
          (`capsbench.stats.bases`); missing for lines.
        - `declared`, `misfit`: the basis that was declared for the axis (`1,n,n²`), and the largest residual from it in bytes or
          seconds where it does not fit; missing where the basis was found, or fits. The shape is another one where the positions
          are too few for it.
        - `certainty`: the least certainty of the values, `exact`, `modelled` or `guessed`, if they were predicted; missing where
          they were measured.
        - `linear`: False where a line does not fit; `shape`: one of `capsbench.stats.linearity.Shape`, which distinguishes lines
          whose slope cannot be distinguished from 0; `deviation`: the largest residual over the range of the values.
        - `noise`: disturbances of the times of this series, joined by commas; empty for bytes.
        - `ratio_to_rescapsnet`, `ratio_low`, `ratio_high`: the slope over that of the ResCapsNet with stored activations and
          otherwise the same options in the same report; missing where there is none, or where one of the two is not a line or
          cannot be distinguished from 0.

        A series with fewer than two positions has no row.
    """
    frame = along(frame, axis)
    keys = series_columns(frame)
    rows = []
    # Columns are read once, because there may be thousands of series and metrics.
    good = frame[frame["status"] == "ok"]
    places_on_axis = good[POSITION_COLUMN].to_numpy(dtype=float)
    columns = {metric.name: points_of(good, metric) for metric in METRICS.values()}
    disturbed = good[["noise"]] if "noise" in good.columns else None
    in_turn = good[ROUNDS_COLUMN].map(bool).to_numpy() if ROUNDS_COLUMN in good.columns else np.zeros(len(good), dtype=bool)
    predicted = (
        good[CERTAINTY_COLUMN].map(bool).to_numpy() if CERTAINTY_COLUMN in good.columns else np.zeros(len(good), dtype=bool)
    )
    turned: list[TurnFit | None] = []
    numbered = good[keys].assign(_place=np.arange(len(good)))
    for values, numbers in numbered.groupby(keys, dropna=False, sort=False)["_place"]:
        series, places = dict(zip(keys, values, strict=True)), numbers.to_numpy()
        order = places[np.argsort(places_on_axis[places], kind="stable")]
        bases = good[BASES_COLUMN].iloc[order[0]] if BASES_COLUMN in good.columns else {}
        kind = SeriesKind.of(str(series[AXIS_COLUMN]), str(series.get("device", "")), bases)
        noise = "" if disturbed is None else ",".join(noises(disturbed.iloc[order]))
        for metric in METRICS.values():
            found = fit_in_turn(good.iloc[order], metric) if in_turn[places].any() else None
            found = found or fit_points(points_at(columns[metric.name], order), metric, kind)
            if found is not None:
                turned.append(found.turns)
                more = _numbers(found, metric, str(series[AXIS_COLUMN])) | {"noise": "" if metric.is_bytes else noise}
                more["certainty"] = least_certainty(good.iloc[order], metric) if predicted[places].any() else None
                rows.append(series | {"metric": metric.name} | more)
    heads = [*keys, "metric", "unit", "slope", "slope_low", "slope_high", "intercept", "intercept_low", "intercept_high"]
    table = pd.DataFrame(
        rows,
        columns=[
            *heads, "r2", "points", "linear", "shape", "deviation", "noise", "basis", "rest_low", "rest_high", *_TERM, "declared",
            "misfit", "certainty",
        ],
    )  # fmt: skip
    references = _references(table, keys)
    ratios = [_ratio(rows, turned, place, references[place]) for place in range(len(rows))]
    return table.join(pd.DataFrame(ratios, columns=["ratio_to_rescapsnet", "ratio_low", "ratio_high"], dtype="float64"))


_TERM = ("term", "term_low", "term_high", "term_unit")


def _numbers(found: LineFit, metric: Metric, axis: str) -> dict[str, object]:
    fit = found.fit
    low, high = fit.slope_interval or (np.nan, np.nan)
    intercept_low, intercept_high = fit.intercept_interval or (np.nan, np.nan)
    rest_low, rest_high = (found.turns and found.turns.rest) or (np.nan, np.nan)
    return {
        "unit": f"{'bytes' if metric.is_bytes else 'seconds'} {per_unit(axis)}",
        "slope": fit.slope,
        "slope_low": low,
        "slope_high": high,
        "intercept": fit.intercept,
        "intercept_low": intercept_low,
        "intercept_high": intercept_high,
        "r2": np.nan if fit.r2 is None else fit.r2,
        "points": fit.points,
        "linear": found.linear,
        "shape": found.shape,
        "deviation": fit.deviation,
        "basis": found.basis,
        "rest_low": rest_low,
        "rest_high": rest_high,
        "declared": found.declared and BASES[found.declared],
        "misfit": np.nan if found.misfit is None else found.misfit,
    } | _further(found.curve, metric, axis)


def _further(curve: Curve | None, metric: Metric, axis: str) -> dict[str, object]:
    """The term of a curve, with its interval and unit; missing for a line."""
    if curve is None:
        return dict.fromkeys(_TERM[:3], np.nan) | {_TERM[3]: None}
    ends, unit = curve.term_interval or (np.nan, np.nan), "bytes" if metric.is_bytes else "seconds"
    return dict(zip(_TERM, (curve.term, *ends, f"{unit} {term_unit(axis, curve.form)}"), strict=True))


def noises(cells: pd.DataFrame) -> list[str]:
    """Names of the disturbances of any of these rows, in the order of first mention."""
    return list(dict.fromkeys(name for names in cells["noise"] for name in names.split(",") if name))


def _ratio(
    rows: Sequence[Mapping[str, Any]], turned: Sequence[TurnFit | None], place: int, reference: int | None
) -> tuple[float, float, float]:
    """Slope of a row over that of its reference, with its interval; NaN where there is none."""
    unknown = float("nan")
    if reference is None:
        return unknown, unknown, unknown
    row, base = rows[place], rows[reference]
    # Noise makes no ratio: both must be lines whose slopes can be distinguished from 0.
    no_interval = not METRICS[row["metric"]].repeats and (pd.isna(row["slope_low"]) or pd.isna(base["slope_low"]))
    if no_interval or not row["shape"] == base["shape"] == "line" or base["slope"] == 0:
        return unknown, unknown, unknown
    own, theirs = ((one["slope"], (one["slope_high"] - one["slope_low"]) / 2) for one in (row, base))
    if place == reference:
        own, theirs = (1.0, 0 * own[1]), (1.0, 0 * own[1])
    # Adding 0 makes -0 a 0.
    ratio = own[0] / theirs[0] + 0.0
    if np.isnan(own[1]) or np.isnan(theirs[1]):
        return ratio, unknown, unknown
    turns, base_turns = turned[place], turned[reference]
    if place != reference and turns is not None and base_turns is not None:
        return ratio, *(turns_ratio_interval(turns, base_turns) or (unknown, unknown))
    return ratio, *(ratio_interval(*own, *theirs) or (unknown, unknown))


def _references(table: pd.DataFrame, keys: list[str]) -> list[int | None]:
    """Index of the one reference series that differs from each row in the model alone; None where there is none."""
    names = ["metric", *keys]
    rows = table[names].astype(object).where(table[names].notna(), None).to_dict("records")
    shared = [name for name in names if name not in _OF_A_MODEL]
    compared = {False: shared, True: [name for name in shared if name not in _OF_CAPSULES]}
    known: dict[tuple[object, ...], list[int]] = {}
    for place, row in enumerate(rows):
        if row["model"] == REFERENCE_MODEL and row["memory"] == "stored":
            for without, columns in compared.items():
                known.setdefault((without, *(row[name] for name in columns)), []).append(place)
    found: list[int | None] = []
    for row in rows:
        without = row["kernel"] is None
        alike = known.get((without, *(row[name] for name in compared[without])), [])
        found.append(alike[0] if len(alike) == 1 else None)
    return found
