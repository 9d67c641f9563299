"""Costs over a grid of axes: the term that two axes share, and a prediction of any other point.

A cost over several axes is a sum of products of their terms: {1, x, y, xy} over two lines, so that the factor of xy is what one
more block costs for one more sample. It carries over to other sizes, which slopes at one batch size do not. Bytes repeat, so that
the terms of each axis are those with which the products fit all cells exactly, the fewest first, and curves must meet the demands
of one axis (`bases`); times are weighted by their size, as noise is a share of them, and an axis other than blocks gets a square
if an F-test of the nested models asks for it. Where the cells took turns, their times are compared within one round, so
that the machine's changes from round to round cancel, and intervals contain the scatter of processes, as those of slopes do.

Every prediction comes with a check: the cell farthest out is left out once and predicted from all others. A peak is the highest
of several moments, each with a cost of its own: outside the grid another one may be highest, so that a surface is no more than a
lower bound of it there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import product
from math import isfinite, prod
from typing import NamedTuple, Self

import numpy as np
import pandas as pd
from scipy import special, stats

from capsbench.axes import POWERS, AxisForm, shared_unit
from capsbench.errors import ConfigurationError, suggesting
from capsbench.frame import BASES_COLUMN, axes_in, positions, without_axis
from capsbench.stats.bases import FEWEST_POSITIONS, HALF_A_BYTE, forms_of, least_squares
from capsbench.stats.intervals import Floats, Interval, StandardError, StandardErrors, half_width
from capsbench.stats.line_fit import least_certainty
from capsbench.stats.linearity import BENT_BY_CHANCE, ROUNDING_BYTES
from capsbench.stats.median import CONFIDENCE
from capsbench.stats.metrics import METRICS, Metric
from capsbench.stats.paired import centre
from capsbench.stats.processes import (
    BETWEEN_PROCESSES,
    PRIOR_DEGREES,
    equal_processes,
    moderated,
    process_error,
    rounds_error,
)
from capsbench.stats.slopes import series_columns
from capsbench.stats.turn_times import CommonRounds, common_rounds

_POSSIBLE = ("a position is a finite number above 0", "a number of blocks is finite, and 0 or above")

_ROUNDED_AWAY = 1e-12
"""Largest share of the values that rounding errors of floats leave of a term, or of a distance, of nothing."""

Powers = tuple[int, ...]
"""The power of each axis in one term."""


class PointEstimate(NamedTuple):
    """A value and its 95 % interval, which is the value itself where bytes are exact, and None where none is known."""

    value: float
    interval: Interval | None


@dataclass(frozen=True)
class Surface:
    """A cost over several axes: a sum of products of powers of them."""

    terms: tuple[Powers, ...]
    factors: tuple[float, ...]
    """Factor of each term."""
    exact: bool
    """True if every cell lies on it, within half a byte."""
    covariance: Floats
    """`[terms, terms]`, the covariance of the factors for a noise of 1."""
    noise: float
    """Standard deviation about it: a share of times, or bytes."""
    degrees: int
    """Degrees of freedom of the noise."""
    relative: bool
    """True if noise is a share of the value."""
    rounding: float = 0.0
    """Bytes by which an allocator rounded the cells, which all lie on it but for that."""
    possible: tuple["Surface", ...] = ()
    """Surfaces with further terms, which the rounding may hide in these cells, though not far from them."""
    shared: StandardErrors = ()
    """Shares by which all times are off that took turns in the same rounds and processes; none for bytes."""
    single: StandardErrors = ()
    """Shares by which those of one further process are."""

    def at(self, place: Sequence[float]) -> PointEstimate:
        """The cost at a point that need not have been measured, with the interval of one measurement there."""
        row = _row(place, self.terms)
        value = float(row @ np.array(self.factors))
        if self.exact:
            return PointEstimate(value, (value, value))
        if self.degrees < 1:
            return PointEstimate(value, None)
        own = abs(value) if self.relative else 1.0
        spread = float(row @ self.covariance @ row)
        half = max(self._reach() * self.noise * float(np.sqrt(own**2 + spread)), self.rounding / 2 + self._rounded(spread))
        # A measurement there is of a process of its own.
        half = float(np.hypot(half, abs(value) * half_width([*self.shared, *self.single])))
        return _joined(PointEstimate(value, (value - half, value + half)), [one.at(place) for one in self.possible])

    def factor(self, term: Powers) -> PointEstimate:
        """The factor of a term."""
        number = self.terms.index(term)
        value = self.factors[number]
        if self.exact:
            return PointEstimate(value, (value, value))
        if self.degrees < 1:
            return PointEstimate(value, None)
        spread = float(self.covariance[number, number])
        half = max(self._reach() * self.noise * float(np.sqrt(spread)), self._rounded(spread))
        half = float(np.hypot(half, abs(value) * half_width(self.shared)))
        return _joined(PointEstimate(value, (value - half, value + half)), [one.factor(term) for one in self.possible])

    def _reach(self) -> float:
        return float(special.stdtrit(self.degrees, (1 + CONFIDENCE) / 2))

    def _rounded(self, spread: float) -> float:
        """The largest error that rounding gives an estimate, from its variance for a noise of 1."""
        # Rounding up shifts all cells by half a step, and each by half a step more or less: Cauchy and Schwarz bound the sum.
        return self.rounding / 2 * float(np.sqrt((self.degrees + len(self.terms)) * spread))


def _joined(own: PointEstimate, others: Iterable[PointEstimate]) -> PointEstimate:
    """An estimate whose interval contains those of others."""
    known = [one.interval for one in (own, *others) if one.interval]
    return PointEstimate(own.value, (min(low for low, _ in known), max(high for _, high in known)))


def fit_surface(
    places: Floats, values: Floats, *, repeats: bool, forms: Sequence[Sequence[AxisForm]], rounding: float = HALF_A_BYTE
) -> Surface | None:
    """The surface through the cells of a grid; None if there are not more points than terms.

    Args:
        places: `[cells, axes]`, their positions.
        values: `[cells]`, bytes or seconds.
        repeats: whether a second run gives the same values, as for bytes.
        forms: forms that each axis may have, the first of which is taken where none is exact; a single one was declared.
        rounding: largest distance of bytes from their surface, as that of an allocator that rounds.
    """
    declared = [len(own) == 1 for own in forms]
    taken = [own[0] for own in forms]
    if any(form == "inverse" and column.min() <= 0 for form, column in zip(taken, places.T, strict=True)):
        return None
    if repeats:
        for some in _forms(places, forms):
            found = _exact(places, values, some, rounding, declared)
            if found is not None:
                return found if found.exact else replace(found, possible=_with_more(found, places, values, forms))
        return _fitted(places, values, _terms(taken), relative=False)
    best = _fitted(places, values, _terms(taken), relative=True)
    for axis, own in enumerate(forms):
        if best is None or "quadratic" not in own[1:]:
            continue
        bent = [*taken[:axis], "quadratic", *taken[axis + 1 :]]
        better = _fitted(places, values, _terms(bent), relative=True)
        if better is not None and _is_better(best, better):
            best, taken = better, bent
    return best


def _forms(places: Floats, forms: Sequence[Sequence[AxisForm]]) -> Iterable[tuple[AxisForm, ...]]:
    """Forms of the axes, those with fewest terms first; but for the first of each, only those that the positions allow."""
    possible: list[list[AxisForm]] = []
    for column, (first, *others) in zip(places.T, forms, strict=True):
        distinct = np.unique(column)
        fits = [
            form
            for form in others
            if form != "line" and distinct.size >= FEWEST_POSITIONS[form] and (form == "quadratic" or distinct[0] > 0)
        ]
        possible.append([first, *fits])
    return sorted(product(*possible), key=lambda forms: prod(len(POWERS[form]) for form in forms))


def _terms(forms: Sequence[AxisForm]) -> tuple[Powers, ...]:
    return tuple(product(*(POWERS[form] for form in forms)))


def _row(place: Sequence[float], terms: Sequence[Powers]) -> Floats:
    return np.array([prod(float(at) ** power for at, power in zip(place, term, strict=True)) for term in terms])


def _exact(
    places: Floats, values: Floats, forms: Sequence[AxisForm], rounding: float, declared: Sequence[bool]
) -> Surface | None:
    """The surface that all bytes lie on but for rounding, in rational arithmetic; None if they do not."""
    terms = _terms(forms)
    fitted = _fitted(places, values, terms, relative=False)
    if fitted is None:
        return None
    rows = [
        [Fraction(1) * prod(Fraction(at) ** power for at, power in zip(place, term, strict=True)) for term in terms]
        for place in places.tolist()
    ]
    given = [Fraction(value) for value in values.tolist()]
    factors = least_squares(rows, given)
    off = max(abs(value - sum(a * b for a, b in zip(row, factors, strict=True))) for row, value in zip(rows, given, strict=True))
    found = replace(fitted, factors=tuple(map(float, factors)), exact=off <= HALF_A_BYTE)
    tried = [axis for axis, form in enumerate(forms) if form != "line" and not declared[axis]]
    if off > rounding or not all(_grows(found, places, axis, float(off)) for axis in tried):
        return None
    if found.exact:
        return found
    # Rounding leaves so much room that one spare position fits by accident.
    spare = [np.unique(places[:, axis]).size > FEWEST_POSITIONS[form] for axis in tried if (form := forms[axis]) != "line"]
    return replace(found, rounding=rounding) if all(spare) else None


def _with_more(found: Surface, places: Floats, values: Floats, forms: Sequence[Sequence[AxisForm]]) -> tuple[Surface, ...]:
    """The surfaces through rounded bytes that have all terms of one and further ones."""
    larger = [terms for terms in map(_terms, _forms(places, forms)) if set(terms) > set(found.terms)]
    fitted = [_fitted(places, values, terms, relative=False) for terms in larger]
    return tuple(replace(one, rounding=found.rounding) for one in fitted if one is not None)


def _grows(surface: Surface, places: Floats, axis: int, off: float) -> bool:
    """Return whether the curved terms of an axis add to the bytes of cells and take from none, but for what rounding explains."""
    curved = np.array([term[axis] not in POWERS["line"] for term in surface.terms])
    parts = np.array([_row(place, surface.terms) for place in places.tolist()]) * curved
    added = parts @ np.array(surface.factors)
    unsure = max(off, HALF_A_BYTE) * np.sqrt(len(places) * ((parts @ surface.covariance) * parts).sum(axis=1))
    return bool((added >= -unsure).all() and added.sum() > 0)


def _scaled(places: Floats, terms: Sequence[Powers]) -> Floats:
    """`[cells, terms]`, the terms of positions that are shares of the largest, so that powers do not differ by many decades."""
    sizes = np.abs(places).max(axis=0)
    return np.array([_row(place, terms) for place in (places / np.where(sizes > 0, sizes, 1.0)).tolist()])


class _LeastSquares(NamedTuple):
    """A least-squares fit of terms."""

    factors: Floats
    """`[terms]`, the factor of each."""
    covariance: Floats
    """`[terms, terms]`, the covariance of the factors for a noise of 1."""
    noise: float
    """Square root of the sum of the squared residuals, which are shares of the values if these are weighted so."""


def _least_squares(places: Floats, values: Floats, terms: tuple[Powers, ...], *, relative: bool) -> _LeastSquares | None:
    """The factors of terms, of times by residuals that are shares of them; None where the cells do not determine them."""
    design = _scaled(places, terms)
    if len(values) < len(terms) or np.linalg.matrix_rank(design) < len(terms):
        return None
    weights = 1 / np.maximum(np.abs(values), 1e-300) if relative else np.ones(len(values))
    inverse = np.linalg.pinv(weights[:, None] * design)
    factors = inverse @ (weights * values)
    # Each is what its term adds at the largest position; what a float's rounding leaves of none is none.
    factors[np.abs(factors) <= _ROUNDED_AWAY * np.abs(values).max()] = 0.0
    residuals = values - design @ factors
    residuals[np.abs(residuals) <= _ROUNDED_AWAY * np.abs(values).max()] = 0.0
    sizes = np.abs(places).max(axis=0)
    back = 1 / _row(np.where(sizes > 0, sizes, 1.0).tolist(), terms)
    covariance = (inverse @ inverse.T) * back[:, None] * back
    return _LeastSquares(factors * back, covariance, float(np.linalg.norm(weights * residuals)))


def _fitted(places: Floats, values: Floats, terms: tuple[Powers, ...], *, relative: bool) -> Surface | None:
    """The least-squares surface, for which there must be more cells than terms; of times, with noise that is a share of them."""
    degrees = len(values) - len(terms)
    found = _least_squares(places, values, terms, relative=relative) if degrees > 0 else None
    if found is None:
        return None
    return Surface(terms, tuple(found.factors.tolist()), False, found.covariance, found.noise / degrees**0.5, degrees, relative)


def _is_better(small: Surface, large: Surface) -> bool:
    """Return whether further terms explain more than chance does (F-test of nested models, p < 0.01)."""
    squares = [one.noise**2 * one.degrees for one in (small, large)]
    more = small.degrees - large.degrees
    if not squares[1]:
        return squares[0] > 0
    gained = (squares[0] - squares[1]) / more / (squares[1] / large.degrees)
    return float(stats.f.sf(gained, more, large.degrees)) < BENT_BY_CHANCE


class _Grid(NamedTuple):
    """The cells of one series over several axes."""

    series: dict[str, object]
    places: Floats
    """`[cells, axes]`."""
    cells: pd.DataFrame
    rounding: float
    forms: Mapping[str, AxisForm]
    """Forms that were declared, by the axis's name."""


def _grids(frame: pd.DataFrame, axes: Sequence[str]) -> Iterable[_Grid]:
    """The cells that ended well, series by series, with their positions on all axes."""
    good = frame[frame["status"] == "ok"]
    places = pd.DataFrame({axis: positions(good, axis) for axis in axes})
    for axis in axes:
        good = without_axis(good, axis)
    good = good[places.notna().all(axis=1)]
    keys = series_columns(good)
    for values, rows in good.groupby(keys, dropna=False, sort=False):
        rounding = ROUNDING_BYTES if str(rows["device"].iloc[0]).startswith("cuda") else HALF_A_BYTE
        declared = rows[BASES_COLUMN].iloc[0] if BASES_COLUMN in rows.columns else {}
        yield _Grid(dict(zip(keys, values, strict=True)), places.loc[rows.index].to_numpy(dtype=float), rows, rounding, declared)


def _surface(grid: _Grid, metric: Metric, axes: Sequence[str]) -> tuple[Surface, float | None, Floats] | None:
    """The surface of one metric, the share by which it misses the cell farthest out, and that cell's place."""
    known = grid.cells[metric.column].notna().to_numpy()
    places, values = grid.places[known], grid.cells[metric.column][known].to_numpy(dtype=float)
    forms = [forms_of(metric, axis, grid.forms.get(axis)) for axis in axes]
    fit = partial(fit_surface, repeats=metric.repeats, forms=forms, rounding=grid.rounding)
    turns = [] if metric.is_bytes else common_rounds(grid.cells[known], metric.column)
    for one in turns:
        values = relative_to_each_other(values, one)
    found = fit(places, values) if len(values) else None
    if found is None:
        return None
    if turns:
        shared, single = errors_of_turns(turns)
        found = replace(found, shared=shared, single=single)
    farthest = int(np.argmax((places / np.maximum(places.max(axis=0), 1e-300)).sum(axis=1)))
    others = (places != places[farthest]).any(axis=1)
    without = _least_squares(places[others], values[others], found.terms, relative=not metric.repeats)
    if without is None or not values[farthest]:
        return found, None, places[farthest]
    at_farthest = float(_row(places[farthest].tolist(), found.terms) @ without.factors)
    off = at_farthest / values[farthest] - 1
    return found, off if abs(off) > _ROUNDED_AWAY else 0.0, places[farthest]


def relative_to_each_other(values: Floats, turns: CommonRounds) -> Floats:
    """`[cells]`, times without what drifted between rounds; cells that are not in these keep theirs.

    Args:
        values: `[cells]`, median seconds of each.
        turns: rounds of most cells of a replicate.
    """
    # A slow round multiplies the times of all its cells by one factor, so that logarithms are compared.
    logs = np.log(turns.seconds)
    level = np.median(logs.mean(axis=1))
    found = values.copy()
    found[turns.cells] = np.exp(level + np.median(logs - logs.mean(axis=1, keepdims=True), axis=0))
    return found


def errors_of_turns(turns: Iterable[CommonRounds]) -> tuple[StandardErrors, StandardErrors]:
    """The shares by which all times of common rounds are off, and those of one further process.

    Rounds scatter, and processes by as much as these show and earlier runs did.
    """
    processes = [process for one in turns for process in one.processes]
    levels = np.concatenate([np.exp(np.log(one.seconds).mean(axis=1)) for one in turns])
    shares = levels / np.median(levels)
    ends = centre(shares).interval
    rounds = [] if ends is None else [rounds_error(ends, len(levels))]
    process = moderated([StandardError(BETWEEN_PROCESSES, PRIOR_DEGREES), process_error(shares, processes)])
    mean = process._replace(value=process.value / equal_processes(processes) ** 0.5)
    return (mean, *rounds), (process, *rounds)


def cross_terms(frame: pd.DataFrame) -> pd.DataFrame:
    """The terms that the axes of a grid share: bytes per block *and* sample.

    Args:
        frame: frame from `load`, of reports that vary the same axes.

    Returns:
        A row per series, metric and term: the series' columns, `metric`, `axes`, `unit` (`bytes per block and sample`), `value`,
        `low`, `high` (95 %; equal to the value where every byte lies on the surface), `exact`, `held_out_error`: the share by
        which the cell farthest out is missed if it is predicted from all others, and `certainty`, as in `fitted_slopes`. Empty
        for a sweep over one axis.
    """
    rows = []
    axes = axes_in(frame)
    for grid in _grids(frame, axes) if len(axes) > 1 else ():
        for metric in METRICS.values():
            found = _surface(grid, metric, axes)
            for term in found[0].terms if found else ():
                if found and sum(power != 0 for power in term) > 1:
                    value, ends = found[0].factor(term)
                    low, high = ends or (np.nan, np.nan)
                    unit = f"{'bytes' if metric.is_bytes else 'seconds'} {shared_unit(axes, term)}"
                    row = {
                        "metric": metric.name,
                        "axes": " × ".join(axes),
                        "unit": unit,
                        "value": value,
                        "low": low,
                        "high": high,
                    }
                    checks = {"exact": found[0].exact, "held_out_error": found[1]}
                    rows.append(grid.series | row | checks | {"certainty": least_certainty(grid.cells, metric)})
    return _table(frame, rows, ["metric", "axes"])


def _table(frame: pd.DataFrame, rows: Sequence[Mapping[str, object]], heads: Sequence[str]) -> pd.DataFrame:
    """A table of estimates, which has its columns even if it has no rows."""
    return pd.DataFrame(
        rows, columns=[*series_columns(frame), *heads, "unit", "value", "low", "high", "exact", "held_out_error", "certainty"]
    )


def predicted_at(frame: pd.DataFrame, at: Mapping[str, float]) -> pd.DataFrame:
    """The cost of every series at a point that need not have been measured.

    Args:
        frame: frame from `load`.
        at: position on each axis; axes that the reports vary and that are not named here keep series apart.

    Returns:
        A row per series and metric: the series' columns, `metric`, `unit`, `value`, `low`, `high` (95 % interval of one
        measurement; equal to the value where bytes lie on the surface exactly), `exact`, and `held_out_error` and `certainty`
        as in `cross_terms`. Outside the positions that were measured a peak is known from below alone, since another moment of
        the step may be its highest there: it is not `exact`, and its `high` is NaN. No cost is below 0: intervals end there. A
        `value` that is not known is NaN, and `unknown` says why in words; it is empty for the others.

    Raises:
        ConfigurationError: no axis is named, no record lies on one, all lie at one position of it, or a position is not a number
            above 0 (for blocks, 0 or above).
    """
    axes = list(at)
    if not axes:
        raise ConfigurationError("`at` names no axis", f"give a position on {' and '.join(axes_in(frame))}")
    for axis in axes:
        if positions(frame, axis).isna().all():
            raise ConfigurationError(
                f"no record here lies on the axis '{axis}'",
                suggesting(axis, axes_in(frame), f"the axes here are {', '.join(axes_in(frame))}"),
            )
        if not isfinite(at[axis]) or at[axis] < 0 or (at[axis] == 0 and axis != "blocks"):
            raise ConfigurationError(f"`at` has the position {at[axis]:g} on the axis '{axis}'", _POSSIBLE[axis == "blocks"])
        there = positions(frame[frame["status"] == "ok"], axis).dropna().unique()
        if len(there) == 1:
            raise ConfigurationError(
                f"`at` names the axis '{axis}', which was {there[0]:g} in every cell", "name axes with several measured positions"
            )
    rows = []
    place = [at[axis] for axis in axes]
    for grid in _grids(frame, axes):
        for metric in METRICS.values():
            found = _surface(grid, metric, axes)
            if found is not None:
                estimate = found[0].at(place)
                from_below = metric.is_highest and not _is_among(place, grid, metric)
                known = _Known.of(estimate, _most_below(place, grid, metric) if from_below and not metric.repeats else -np.inf)
                row = {
                    "metric": metric.name,
                    "unit": "bytes" if metric.is_bytes else "seconds",
                    "value": known.value,
                    "low": known.low,
                    "high": np.nan if from_below else known.high,
                    "unknown": known.reason,
                }
                exact = found[0].exact and not from_below and not known.reason
                checks = {"exact": exact, "held_out_error": found[1]}
                rows.append(grid.series | row | checks | {"certainty": least_certainty(grid.cells, metric)})
    return _table(frame, rows, ["metric", "unknown"])


class _Known(NamedTuple):
    """The knowledge of a cost that an estimate gives, without what no cost is: a number below 0."""

    value: float
    """The cost; NaN where it is not known."""
    low: float
    high: float
    reason: str
    """The reason in words that the cost is not known; empty if it is."""

    @classmethod
    def of(cls, estimate: PointEstimate, least: float) -> Self:
        """Return what is known of a cost that smaller cells show not to be below `least`."""
        low, high = estimate.interval or (np.nan, np.nan)
        reason = ""
        if estimate.value < 0:
            reason = "the fit falls below 0 there"
        elif low <= 0 < estimate.value:
            reason = "its interval reaches 0"
        elif low < least:
            reason = "its interval reaches below what smaller cells have"
        least_known = np.nan if np.isnan(low) or low < least else max(low, 0.0)
        return cls(np.nan if reason else estimate.value, least_known, high if high >= 0 else np.nan, reason)


def _most_below(place: Sequence[float], grid: _Grid, metric: Metric) -> float:
    """The largest value of a metric at the cells that no axis places beyond a point; 0 without one."""
    smaller = (grid.places <= place).all(axis=1)
    return float(np.nanmax(grid.cells[metric.column].to_numpy(dtype=float, na_value=np.nan)[smaller], initial=0.0))


def _is_among(place: Sequence[float], grid: _Grid, metric: Metric) -> bool:
    """Return whether a point lies between the positions on every axis at which a metric is known."""
    known = grid.places[grid.cells[metric.column].notna().to_numpy()]
    return bool((known.min(axis=0) <= place).all() and (place <= known.max(axis=0)).all())
