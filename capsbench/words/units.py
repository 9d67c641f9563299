"""Bytes and seconds for people; the unit is always named."""

import math
import re
from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Context, Decimal

from capsbench.errors import ConfigurationError
from capsbench.sizes import BYTE_UNITS, GIB, KIB, MIB, SECOND_UNITS, Unit

_MOST_DECIMALS = 9
_PICOSECOND = 1e-12
"""Width of half an interval below which a time is exact: no clock is as fine."""
_LOPSIDED = 0.2
"""Distance of a value from the middle of its interval, over half the interval's width, beyond which the ends are printed."""
_ALL_DIGITS = Context(prec=400)
"""Digits enough for every float, which has up to 309 before the point."""

_SIZES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": KIB, "mib": MIB, "gib": GIB}


def parse_bytes(name: str, text: str) -> int:
    """Parse an amount of memory: `24GiB`, `8 GB`, `500MiB`, `1048576` → bytes.

    Args:
        name: name of the flag or parameter, for errors.
        text: the amount.

    Raises:
        ConfigurationError: it is none of these.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if not found or found[2].lower() not in _SIZES:
        raise ConfigurationError(f"{name} '{text}' is not an amount of memory", "write 24GiB, 8GB or a number of bytes")
    nbytes = int(float(found[1]) * _SIZES[found[2].lower()])
    if nbytes < MIB:
        raise ConfigurationError(f"{name} '{text}' is {nbytes} bytes", "give at least 1MiB; did you mean GiB?")
    return nbytes


def bytes_text(nbytes: float) -> str:
    """Bytes as text: `1.25 MiB`, `512 B`, `0 B`."""
    return quantity_text(nbytes, is_bytes=True)


def seconds_text(seconds: float) -> str:
    """Seconds as text: `1.25 s`, `8.3 ms`, `12 µs`."""
    return quantity_text(seconds, is_bytes=False)


def duration_text(seconds: float) -> str:
    """A duration as text: `45 s`, `3 min 20 s`, `2 h 05 min`, `3 days 4 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400:,} days {whole % 86400 // 3600} h"


def common_unit(values: Iterable[float], *, is_bytes: bool) -> Unit:
    """The unit that suits the largest of some values, in which all values of a column are printed."""
    units = BYTE_UNITS if is_bytes else SECOND_UNITS
    largest = max((abs(value) for value in values if not math.isnan(value)), default=0.0)
    return next((unit for unit in units if largest >= unit[0]), units[-1])


def quantity_text(value: float, *, is_bytes: bool, unit: Unit | None = None) -> str:
    """A value with its unit; `-` where there is none.

    Args:
        value: bytes or seconds.
        is_bytes: whether they are bytes.
        unit: unit to print it in; by default the one that suits it.
    """
    if math.isnan(value):
        return "-"
    # An exact 0 has the smallest unit, without decimals, whatever stands in its column.
    size, name, decimals = (unit if value else None) or common_unit([value], is_bytes=is_bytes)
    return f"{number_with(value / size, decimals if value else 0)} {name}"


def slope_text(slope: float, low: float, high: float, *, is_bytes: bool, unit: Unit | None = None) -> str:
    """A slope with its interval and its unit: `8.3 ± 0.4 ms`, `2.9 (1.4–7.7) ms`; exact slopes have no interval.

    Args:
        slope: bytes or seconds per unit of an axis.
        low: one end of its interval; NaN where there is none.
        high: the other end.
        is_bytes: whether its unit is bytes.
        unit: unit to print it in; by default, and for an exact 0, the one that suits it.
    """
    if math.isnan(slope):
        return "-"
    values = slope_values(slope, low, high, is_bytes=is_bytes)
    found = (unit if any(values) else None) or common_unit(values, is_bytes=is_bytes)
    return f"{slope_number(slope, low, high, is_bytes=is_bytes, unit=found)} {found[1]}"


def slope_number(slope: float, low: float, high: float, *, is_bytes: bool, unit: Unit) -> str:
    """A slope with its interval in a unit that is named elsewhere, such as in the head of its column."""
    size, _, decimals = unit
    if len(slope_values(slope, low, high, is_bytes=is_bytes)) == 1:
        return number_with(slope / size, decimals if slope else 0)
    return with_interval(slope / size, low / size, high / size, decimals=decimals)


def slope_values(slope: float, low: float, high: float, *, is_bytes: bool) -> tuple[float, ...]:
    """The values that decide a slope's unit: it and half the width of its interval, or it alone if it is exact."""
    reach = (high - low) / 2
    # Rounding errors of an exact line are not uncertainty.
    exact = math.isnan(reach) or reach <= 1e-6 * abs(slope) or reach < (0.5 if is_bytes else _PICOSECOND)
    return (slope,) if exact else (slope, reach)


def duration_range(least: float, most: float) -> str:
    """A duration that is known roughly, as text: `45 s to 2 min 10 s`, `at most 40 s`, `about 5 min 20 s`, `less than 1 s`."""
    if most < 1:
        return "less than 1 s"
    if most < 1.2 * least:
        return f"about {duration_text((least + most) / 2)}"
    return f"{duration_text(least)} to {duration_text(most)}" if least >= 1 else f"at most {duration_text(most)}"


def ratio_parts(ratio: float, low: float, high: float) -> tuple[str, ...]:
    """A ratio and the ends of its interval as texts, or the ratio alone if the interval is unknown or too narrow to be seen.

    The three have equal decimals: three significant digits of the largest, and more where the width of the interval would
    otherwise have fewer than two, so that an end near 1 does not read as 1.
    """
    rounded = tuple(f"{one + 0.0:.3g}" for one in (ratio, low, high))
    if math.isnan(low) or low == high or len(set(rounded)) == 1:
        return rounded[:1]
    largest = max(map(abs, (ratio, low, high)))
    if not 0 < largest < 1000:
        return rounded
    decimals = max(2 - math.floor(math.log10(largest)), 1 - math.floor(math.log10(abs(high - low))))
    decimals = min(decimals, _MOST_DECIMALS)
    # Adding 0 makes -0 a 0.
    return tuple(f"{round(one, decimals) + 0.0:.{decimals}f}" for one in (ratio, low, high))


def ratio_text(ratio: float, low: float, high: float) -> str:
    """A ratio with its interval on a second line: `1.50`, `1.30–1.80`; without one where `ratio_parts` has none."""
    value, *ends = ratio_parts(ratio, low, high)
    return f"{value}\n{range_text(*ends)}" if ends else value


def ratio_in_words(ratio: float, low: float, high: float) -> str:
    """A ratio and its interval on one line: `1.50 (1.30–1.80)`."""
    value, *interval = ratio_text(ratio, low, high).split("\n")
    return value + "".join(f" ({text})" for text in interval)


def range_text(low: str, high: str) -> str:
    """A range from one number to another: `1.4–7.7`, and `-1.4 to 7.7` where a dash could be read as a minus sign."""
    return f"{low} to {high}" if "-" in low + high else f"{low}–{high}"


def with_interval(value: float, low: float, high: float, *, decimals: int) -> str:
    """A number with its interval: `2.9 ± 0.2`, or with the ends, `2.9 (1.4–7.7)`, where one half is noticeably wider.

    It is where one half is at least one and a half times the other, and the ends that ± would give differ from the true ones in
    a printed digit.

    Args:
        value: the number.
        low: lower end of its interval.
        high: upper end.
        decimals: decimals of the numbers; there are more where the width of the interval would otherwise read as 0.
    """
    reach = (high - low) / 2
    decimals = _enough(reach, decimals)
    off = abs((low + high) / 2 - value)
    if off > _LOPSIDED * reach and round(off, decimals):
        return f"{_fixed(value, decimals)} ({range_text(_fixed(low, decimals), _fixed(high, decimals))})"
    return f"{_fixed(value, decimals)} ± {_fixed(reach, decimals)}"


def number_with(value: float, decimals: int) -> str:
    """A number with so many decimals, or more where it would otherwise read as 0."""
    return _fixed(value, _enough(value, decimals))


def _enough(value: float, decimals: int) -> int:
    """Decimals with which a value that is not 0 does not read as 0."""
    size = abs(value)
    return min(max(decimals, -math.floor(math.log10(size))), _MOST_DECIMALS) if 0 < size < math.inf else decimals


def _fixed(value: float, decimals: int) -> str:
    if not math.isfinite(value):
        return f"{value}"
    # A value halfway between two is rounded away from 0, as in the page's scripts. Adding 0 makes -0 a 0.
    rounded = Decimal(value).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP, _ALL_DIGITS)
    return f"{_ALL_DIGITS.add(rounded, Decimal(0)):.{decimals}f}"
