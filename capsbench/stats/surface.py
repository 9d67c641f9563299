"""Costs over a grid of axes: the surface through its cells, and what it costs where two axes grow together.

A cost over several axes is a sum of products of their terms: {1, x, y, xy} over two lines, so that the factor of xy is what one
more block costs for one more sample. It carries over to other sizes, which slopes at one batch size do not. Bytes repeat, so that
the terms of each axis are those with which the products fit all cells exactly, the fewest first, and curves must meet the demands
of one axis (`bases`); times are weighted by their size, as noise is a share of them, and an axis other than blocks gets a square
if an F-test of the nested models asks for it. `grid_costs` fits the grids of a report.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from capsbench.axes import POWERS, AxisForm
from capsbench.stats.bases import FEWEST_POSITIONS, HALF_A_BYTE, least_squares
from capsbench.stats.intervals import Floats, Interval, StandardErrors, half_width
from capsbench.stats.linearity import BENT_BY_CHANCE, LARGEST_DEVIATION
from capsbench.stats.median import CONFIDENCE

ROUNDED_AWAY = 1e-12
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
    bent: bool = False
    """True of bytes of which some lie farther from it than 2 % of their range: it does not go on like this outside the cells."""
    possible: tuple["Surface", ...] = ()
    """Surfaces with further terms, which the rounding may hide in these cells, though not far from them."""
    shared: StandardErrors = ()
    """Shares by which all times are off that took turns in the same rounds and processes; none for bytes."""
    single: StandardErrors = ()
    """Shares by which those of one further process are."""

    def at(self, place: Sequence[float]) -> PointEstimate:
        """The cost at a point that need not have been measured, with the interval of one measurement there."""
        row = row_of(place, self.terms)
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
        fitted = _fitted(places, values, _terms(taken), relative=False)
        return fitted if fitted is None or all(declared) else replace(fitted, bent=_is_bent(fitted, places, values))
    best = _fitted(places, values, _terms(taken), relative=True)
    for axis, own in enumerate(forms):
        if best is None or "quadratic" not in own[1:]:
            continue
        bent = [*taken[:axis], "quadratic", *taken[axis + 1 :]]
        better = _fitted(places, values, _terms(bent), relative=True)
        if better is not None and _is_better(best, better):
            best, taken = better, bent
    return best


def _is_bent(surface: Surface, places: Floats, values: Floats) -> bool:
    """Return whether bytes lie farther from a surface than those of a line may."""
    off = np.array([surface.at(place).value for place in places.tolist()]) - values
    return bool(np.abs(off).max() > LARGEST_DEVIATION * np.ptp(values))


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


def row_of(place: Sequence[float], terms: Sequence[Powers]) -> Floats:
    """`[terms]`, the value of each term at a place."""
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
    parts = np.array([row_of(place, surface.terms) for place in places.tolist()]) * curved
    added = parts @ np.array(surface.factors)
    unsure = max(off, HALF_A_BYTE) * np.sqrt(len(places) * ((parts @ surface.covariance) * parts).sum(axis=1))
    return bool((added >= -unsure).all() and added.sum() > 0)


def _scaled(places: Floats, terms: Sequence[Powers]) -> Floats:
    """`[cells, terms]`, the terms of positions that are shares of the largest, so that powers do not differ by many decades."""
    sizes = np.abs(places).max(axis=0)
    return np.array([row_of(place, terms) for place in (places / np.where(sizes > 0, sizes, 1.0)).tolist()])


class FittedTerms(NamedTuple):
    """A least-squares fit of terms."""

    factors: Floats
    """`[terms]`, the factor of each."""
    covariance: Floats
    """`[terms, terms]`, the covariance of the factors for a noise of 1."""
    noise: float
    """Square root of the sum of the squared residuals, which are shares of the values if these are weighted so."""


def fitted_terms(places: Floats, values: Floats, terms: tuple[Powers, ...], *, relative: bool) -> FittedTerms | None:
    """The factors of terms, of times by residuals that are shares of them; None where the cells do not determine them."""
    design = _scaled(places, terms)
    if len(values) < len(terms) or np.linalg.matrix_rank(design) < len(terms):
        return None
    weights = 1 / np.maximum(np.abs(values), 1e-300) if relative else np.ones(len(values))
    inverse = np.linalg.pinv(weights[:, None] * design)
    factors = inverse @ (weights * values)
    # Each is what its term adds at the largest position; what a float's rounding leaves of none is none.
    factors[np.abs(factors) <= ROUNDED_AWAY * np.abs(values).max()] = 0.0
    residuals = values - design @ factors
    residuals[np.abs(residuals) <= ROUNDED_AWAY * np.abs(values).max()] = 0.0
    sizes = np.abs(places).max(axis=0)
    back = 1 / row_of(np.where(sizes > 0, sizes, 1.0).tolist(), terms)
    covariance = (inverse @ inverse.T) * back[:, None] * back
    return FittedTerms(factors * back, covariance, float(np.linalg.norm(weights * residuals)))


def _fitted(places: Floats, values: Floats, terms: tuple[Powers, ...], *, relative: bool) -> Surface | None:
    """The least-squares surface, for which there must be more cells than terms; of times, with noise that is a share of them."""
    degrees = len(values) - len(terms)
    found = fitted_terms(places, values, terms, relative=relative) if degrees > 0 else None
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
