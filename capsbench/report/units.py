"""Bytes and seconds for people; the unit is always named."""

import math

MIB = 2**20


def bytes_text(nbytes: float) -> str:
    """`1.25 MiB`, `512 B`, `0 B`."""
    if math.isnan(nbytes):
        return "-"
    for unit, size in (("GiB", 2**30), ("MiB", MIB), ("KiB", 2**10)):
        if abs(nbytes) >= size:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes:.0f} B"


def seconds_text(seconds: float) -> str:
    """`1.25 s`, `8.3 ms`, `12 µs`."""
    if math.isnan(seconds):
        return "-"
    if abs(seconds) >= 1:
        return f"{seconds:.2f} s"
    if abs(seconds) >= 1e-3:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e6:.0f} µs"


def duration_text(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def quantity_text(value: float, *, is_bytes: bool) -> str:
    """A value with its unit."""
    return bytes_text(value) if is_bytes else seconds_text(value)


def slope_text(slope: float, low: float, high: float, *, is_bytes: bool) -> str:
    """A slope per block with half the width of its interval: `8.3 ms ± 0.4 ms`; exact slopes go without."""
    text = quantity_text(slope, is_bytes=is_bytes)
    reach = (high - low) / 2
    # What rounding leaves of an exact line is not uncertainty.
    if math.isnan(reach) or reach <= 1e-9 * abs(slope):
        return text
    return f"{text} ± {quantity_text(reach, is_bytes=is_bytes)}"
