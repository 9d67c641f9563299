"""Bytes and seconds for people; the unit is always named."""

import math
import re

from capsbench.devices import GIB, KIB, MIB
from capsbench.errors import ConfigurationError

BYTES = ((GIB, "GiB", 2), (MIB, "MiB", 2), (KIB, "KiB", 2), (1, "B", 0))
SECONDS = ((1.0, "s", 2), (1e-3, "ms", 1), (1e-6, "µs", 0))
"""Size, name and decimals of each unit, the largest first."""

_MOST_DECIMALS = 9
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


def quantity_text(*values: float, is_bytes: bool) -> str:
    """A value with its unit, or several joined by ±, in the unit that suits the largest; `-` where there is none."""
    if any(math.isnan(value) for value in values):
        return "-"
    units = BYTES if is_bytes else SECONDS
    largest = max(map(abs, values))
    size, name, decimals = next((unit for unit in units if largest >= unit[0]), units[-1])
    return f"{joined_text(*(value / size for value in values), decimals=decimals)} {name}"


def slope_text(slope: float, low: float, high: float, *, is_bytes: bool) -> str:
    """A slope with half the width of its interval: `8.3 ± 0.4 ms`; exact slopes have none."""
    reach = (high - low) / 2
    # Rounding errors of an exact line are not uncertainty.
    if math.isnan(reach) or reach <= 1e-6 * abs(slope) or (is_bytes and reach < 0.5):
        return quantity_text(slope, is_bytes=is_bytes)
    return quantity_text(slope, reach, is_bytes=is_bytes)


def ratio_text(ratio: float, low: float, high: float) -> str:
    """A ratio with its interval on a second line: `1.5`, `1.3–1.8`; without one if both ends print as the ratio does."""
    value, *ends = (f"{one + 0.0:.3g}" for one in (ratio, low, high))
    return value if math.isnan(low) or low == high or ends == [value, value] else f"{value}\n{'–'.join(ends)}"


def ratio_in_words(ratio: float, low: float, high: float) -> str:
    """A ratio and its interval on one line: `1.5 (1.3–1.8)`."""
    value, *interval = ratio_text(ratio, low, high).split("\n")
    return value + "".join(f" ({text})" for text in interval)


def joined_text(*values: float, decimals: int) -> str:
    """Values joined by ±, with `decimals` decimals, or more where the last one would otherwise read as 0."""
    last = abs(values[-1])
    if 0 < last < math.inf:
        decimals = min(max(decimals, -math.floor(math.log10(last))), _MOST_DECIMALS)
    # Adding 0 makes -0 a 0.
    return " ± ".join(f"{round(value, decimals) + 0.0:.{decimals}f}" for value in values)
