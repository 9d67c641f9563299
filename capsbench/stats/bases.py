"""Costs that are no line over their axis: with a square, as attention's over its length, or divided by it, as of shards.

Bytes repeat, so that a basis is chosen by what fits all of them exactly, the fewest terms first: {1, n}, {1, 1/n}, {1, n, n²};
and only if there are more positions than terms, two more where an allocator rounds. The last term must be positive: a few steps
of an allocator lie on a curve by accident, but no cost shrinks with the square of its axis or grows towards a bound.

If no basis fits exactly, {1, 1/n} is judged as a line is: it fits if no residual exceeds 2 % of the range. The bytes of shards
are nearly divided by their number, as a parameter with fewer rows than there are ranks is padded.

Times are noisy, so that n² is added to {1, n} only if an F-test of the two nested models, or the rounds in which cells took
turns, say so (`linearity`, `paired`), if the line is off by more than a share of the range, and if a cubic is not better still.
Nothing that is timed is divided by its axis alone, nor grows with the square of a number of blocks.

A basis that a user declares is not tried but fitted, whatever its factors are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import numpy as np

from capsbench.axes import POWERS, AxisForm
from capsbench.stats.intervals import Floats, Interval, StandardError, half_width, interval
from capsbench.stats.linearity import LARGEST_DEVIATION, cubic_is_better, inverse_is_enough
from capsbench.stats.metrics import Metric
from capsbench.stats.paired import FEWEST_ROUNDS, centre
from capsbench.stats.processes import pooled_centre
from capsbench.stats.scatter import Points, error_of_sum, noise_levels, sample_errors_of

Form = Literal["inverse", "quadratic"]

FEWEST_POSITIONS: dict[Form, int] = {"inverse": 3, "quadratic": 4}
"""Least number of positions: one more than there are terms, or two more if values are rounded to more than a byte."""

_FEWEST_NEAR = 5
"""Least number of positions of a curve that bytes are only close to: three more than it has terms."""

HALF_A_BYTE = 0.5

_CERTAIN = 0.99
"""Level of the interval of a square's coefficient that must not contain 0."""


@dataclass(frozen=True)
class Curve:
    """A cost `intercept + slope · n + term · g(n)` with g(n) = n² or 1/n; in the latter case the slope is 0."""

    form: Form
    intercept: float
    slope: float
    """Change per unit of the axis."""
    term: float
    """Factor of n² or 1/n."""
    slope_interval: Interval | None
    """95 % interval of the slope; the slope alone if all values lie on the curve exactly."""
    term_interval: Interval | None
    """95 % interval of the factor."""
    deviation: float
    """Largest distance of a value from the curve, over the range of the values."""

    def at(self, position: float) -> float:
        """The cost at a position."""
        further = position**2 if self.form == "quadratic" else 1 / position
        return self.intercept + self.slope * position + self.term * further

    def r2(self, positions: Floats, values: Floats) -> float | None:
        """Share of the variance of values that the curve explains; None where they do not vary."""
        squares = float(((values - values.mean()) ** 2).sum())
        residuals = values - np.array([self.at(place) for place in positions.tolist()])
        if not squares:
            return None
        return 1 - float((residuals**2).sum()) / squares if self.deviation else 1.0


def curves_of(metric: Metric, axis: str) -> tuple[Form, ...]:
    """Forms other than a line that a metric may have over an axis: none for segments of 2 MiB, and blocks divide nothing."""
    if metric.name == "reserved":
        return ()
    if axis == "blocks":
        return ("quadratic",) if metric.repeats else ()
    return ("inverse", "quadratic") if metric.repeats else ("quadratic",)


def forms_of(metric: Metric, axis: str, declared: AxisForm | None = None) -> tuple[AxisForm, ...]:
    """Forms that a metric may have over an axis, those with fewest terms first; the declared one alone if there is one."""
    return ("line", *curves_of(metric, axis)) if declared is None else (declared,)


def terms_of(form: Form, positions: Floats) -> Floats:
    """`[n, terms]`, the terms of a form at these positions: 1 and 1/n, or 1, n and n²."""
    return np.column_stack([positions.astype(float) ** power for power in POWERS[form]])


def _contrasts(form: Form, positions: Floats) -> Floats:
    """`[terms, n]`, the factors that give the least-squares coefficients from the values."""
    # Squares of pixels and ones differ by many powers of ten, so positions are shares of the largest.
    size = float(np.abs(positions).max())
    scales = np.array([[size**-power] for power in POWERS[form]])
    return np.asarray(scales * np.linalg.pinv(terms_of(form, positions / size)))


def exact_curve(
    positions: Floats, values: Floats, rounding: float = HALF_A_BYTE, forms: Sequence[Form] = ("inverse", "quadratic")
) -> Curve | None:
    """The curve with the fewest terms that all these bytes lie on; None if there is none.

    Args:
        positions: `[n]`, at least two different ones.
        values: `[n]`, bytes.
        rounding: largest distance from the curve, as that of an allocator that rounds.
        forms: forms that the curve may have (`curves_of`).
    """
    distinct, whole = np.unique(positions), (np.floor(values) == values).all()
    for form, fewest in FEWEST_POSITIONS.items():
        if form not in forms or distinct.size < fewest or not whole or (form == "inverse" and distinct[0] <= 0):
            continue
        curve, off = _rational(form, positions, values)
        # Rounding leaves so much room that one spare position fits by accident.
        if off > rounding or (off > HALF_A_BYTE and distinct.size <= fewest) or not _grows(curve, distinct, off):
            continue
        return curve if off <= HALF_A_BYTE else _with_errors(curve, Points(positions, values), relative=False)
    return None


def near_inverse(points: Points) -> Curve | None:
    """The curve {1, 1/n} that bytes lie close to, as close as a line must lie to be called one; None if they do not.

    Args:
        points: bytes over the axis.
    """
    distinct = np.unique(points.blocks)
    if distinct.size < _FEWEST_NEAR or distinct[0] <= 0:
        return None
    curve, _ = _rational("inverse", points.blocks, points.values)
    if curve.deviation > LARGEST_DEVIATION or curve.term <= 0:
        return None
    return _with_errors(curve, points, relative=False)


def declared_curve(form: Form, points: Points, *, relative: bool) -> Curve | None:
    """The least-squares curve of a form that was declared; None where the positions do not determine it.

    Its intervals are missing if it has as many terms as there are positions.

    Args:
        form: its form.
        points: values over the axis.
        relative: True for times, whose noise is a share of them; False for bytes.
    """
    positions, values = points.blocks, points.values
    if not _is_determined(form, positions):
        return None
    if relative:
        coefficients = (_contrasts(form, positions) @ values).tolist()
        curve, off = _curve(form, coefficients, _deviation(form, positions, values, coefficients)), np.inf
    else:
        curve, off = _rational(form, positions, values)
    if np.unique(positions).size == len(POWERS[form]):
        return replace(curve, slope_interval=None, term_interval=None)
    return curve if off <= HALF_A_BYTE else _with_errors(curve, points, relative=relative)


def _is_determined(form: Form, positions: Floats) -> bool:
    """Return whether there are as many positions as terms, and none at which a term has no value."""
    return np.unique(positions).size >= len(POWERS[form]) and (form == "quadratic" or float(positions.min()) > 0)


def _rational(form: Form, positions: Floats, values: Floats) -> tuple[Curve, float]:
    """The least-squares curve in rational arithmetic, and its largest residual."""
    rows = [[Fraction(place) ** power for power in POWERS[form]] for place in positions.tolist()]
    given = [Fraction(value) for value in values.tolist()]
    found = least_squares(rows, given)
    residuals = [value - sum(a * b for a, b in zip(row, found, strict=True)) for row, value in zip(rows, given, strict=True)]
    off, span = float(max(map(abs, residuals))), float(np.ptp(values))
    return _curve(form, [float(one) for one in found], off / span if span else 0.0), off


def _grows(curve: Curve, distinct: Floats, off: float) -> bool:
    """Return whether a curve of bytes is one that costs can have: shares of something, or a square that never falls here."""
    steps = np.diff([curve.at(place) for place in distinct.tolist()])
    # The square of an image's size less its margin has a negative slope, but falls nowhere.
    return curve.term > 0 and (curve.form == "inverse" or bool((steps >= -2 * max(off, HALF_A_BYTE)).all()))


def least_squares(rows: Sequence[Sequence[Fraction]], values: Sequence[Fraction]) -> list[Fraction]:
    """The least-squares solution in rational arithmetic, which has no rounding errors.

    Args:
        rows: `[n, terms]`, of full rank.
        values: `[n]`.
    """
    count = len(rows[0])
    with_values = [[*row, value] for row, value in zip(rows, values, strict=True)]
    table = [[sum((row[i] * row[j] for row in with_values), Fraction()) for j in range(count + 1)] for i in range(count)]
    for i in range(count):
        pivot = next(k for k in range(i, count) if table[k][i])
        table[i], table[pivot] = table[pivot], table[i]
        table[i] = [one / table[i][i] for one in table[i]]
        for k in range(count):
            if k != i:
                table[k] = [own - table[k][i] * one for own, one in zip(table[k], table[i], strict=True)]
    return [row[-1] for row in table]


def timed_curve(points: Points) -> Curve | None:
    """The square that times call for where a line does not fit them (`linearity`); None if they do not."""
    positions, values = points.blocks, points.values
    if np.unique(positions).size < FEWEST_POSITIONS["quadratic"] + 1:
        return None
    coefficients = (_contrasts("quadratic", positions) @ values).tolist()
    curve = _curve("quadratic", coefficients, _deviation("quadratic", positions, values, coefficients))
    return _accepted(_with_errors(curve, points, relative=True), positions, values)


def turns_curve(positions: Floats, rounds: Floats, at: Sequence[float], processes: Sequence[int]) -> Curve | None:
    """The square in times of cells that took turns, from the parabola of each whole round; None if they do not call for one.

    Args:
        positions: `[n]`, all different.
        rounds: `[rounds, n]`, seconds; NaN where a cell did not take part.
        at: `[n]`, the time at each position, without what drifted between rounds.
        processes: `[rounds]`, the process that took each round.
    """
    whole, of = _whole_rounds(rounds, processes)
    if positions.size < FEWEST_POSITIONS["quadratic"] or len(whole) < FEWEST_ROUNDS:
        return None
    *_, squares = _contrasts("quadratic", positions) @ whole.T
    certain = centre(squares, _CERTAIN).interval
    if certain is None or certain[0] <= 0:
        return None
    values = np.array(at)
    return _accepted(_turned("quadratic", positions, whole, of, values), positions, values)


def declared_turns_curve(
    form: Form, positions: Floats, rounds: Floats, at: Sequence[float], processes: Sequence[int]
) -> Curve | None:
    """The curve of a declared form in times of cells that took turns; None with too few positions or whole rounds.

    The arguments are those of `turns_curve`, and the form.
    """
    whole, of = _whole_rounds(rounds, processes)
    if not _is_determined(form, positions) or len(whole) < FEWEST_ROUNDS:
        return None
    return _turned(form, positions, whole, of, np.array(at))


def _whole_rounds(rounds: Floats, processes: Sequence[int]) -> tuple[Floats, list[int]]:
    """The rounds in which all cells took part, and the process of each."""
    there = ~np.isnan(rounds).any(axis=1)
    return rounds[there], np.asarray(processes)[there].tolist()


def _turned(form: Form, positions: Floats, whole: Floats, of: Sequence[int], values: Floats) -> Curve:
    """The curve with the centres of the factors of whole rounds, at the level of these values."""
    _, *slopes, terms = _contrasts(form, positions) @ whole.T
    term = pooled_centre(terms, of)
    slope, ends = (0.0, (0.0, 0.0)) if form == "inverse" else pooled_centre(slopes[0], of)[:2]
    curve = Curve(form, 0.0, slope, term.value, ends, term.interval, 0.0)
    intercept = float(np.mean(values - np.array([curve.at(place) for place in positions.tolist()])))
    coefficients = [intercept, *([slope] if form == "quadratic" else []), term.value]
    return replace(curve, intercept=intercept, deviation=_deviation(form, positions, values, coefficients))


def times_fit(curve: Curve, positions: Floats, values: Floats) -> bool:
    """Return whether chance explains the distance of times from a curve that was declared, or none is 2 % of the range."""
    if curve.deviation <= LARGEST_DEVIATION:
        return True
    if curve.form == "inverse":
        return inverse_is_enough(positions, values)
    return not cubic_is_better(positions, values)


def _accepted(curve: Curve, positions: Floats, values: Floats) -> Curve | None:
    """The curve, if it is one that costs can have: it grows with n², and does not shrink with n; and a cubic is not better."""
    bounds = curve.term_interval, curve.slope_interval
    if bounds[0] is None or bounds[0][0] <= 0 or bounds[1] is None or bounds[1][1] < 0:
        return None
    bent = curve.deviation > LARGEST_DEVIATION and cubic_is_better(positions, values)
    return None if bent else curve


def _curve(form: Form, coefficients: Sequence[float], deviation: float) -> Curve:
    """A curve that all values lie on."""
    intercept, *slope, term = coefficients
    linear = slope[0] if slope else 0.0
    return Curve(form, intercept, linear, term, (linear, linear), (term, term), deviation)


def _deviation(form: Form, positions: Floats, values: Floats, coefficients: Sequence[float]) -> float:
    residuals = values - terms_of(form, positions) @ np.array(coefficients)
    span = float(np.ptp(values))
    return float(np.abs(residuals).max()) / span if span else 0.0


def _with_errors(curve: Curve, points: Points, *, relative: bool) -> Curve:
    """A curve with the intervals of its coefficients, from the scatter about it and that of samples."""
    contrasts = _contrasts(curve.form, points.blocks)
    fitted = np.array([curve.at(place) for place in points.blocks.tolist()])
    scale = noise_levels(fitted, points.values) if relative else np.ones(fitted.size)
    degrees = float(fitted.size - len(contrasts))
    noise = float(np.linalg.norm((points.values - fitted) / scale)) / degrees**0.5
    found = []
    for contrast in contrasts:
        errors = [StandardError(noise * float(np.linalg.norm(contrast * scale)), degrees)]
        if any(points.samples):
            values, counts = sample_errors_of(points)
            errors.append(error_of_sum((contrast * values) ** 2, counts))
        found.append(half_width(errors))
    slope = interval(curve.slope, found[1]) if curve.form == "quadratic" else (0.0, 0.0)
    return Curve(
        curve.form, curve.intercept, curve.slope, curve.term, slope, interval(curve.term, found[-1]), curve.deviation
    )  # fmt: skip
