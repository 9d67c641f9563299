"""Units of bytes and seconds, which whatever counts, measures or prints takes from here. Nothing of the package is imported."""

from typing import NamedTuple

KIB, MIB, GIB = 2**10, 2**20, 2**30
"""Bytes of a KiB, a MiB and a GiB."""


class Unit(NamedTuple):
    """A unit of bytes or seconds."""

    size: float
    """Bytes or seconds of one."""
    name: str
    """Name after a number."""
    decimals: int
    """Decimals of its values."""


GIBIBYTES, MEBIBYTES, KIBIBYTES = Unit(GIB, "GiB", 2), Unit(MIB, "MiB", 2), Unit(KIB, "KiB", 2)


def mebibytes_text(nbytes: float) -> str:
    """Bytes in MiB whatever their number, for texts in which several amounts are compared: `81,559.00 MiB`; a few as bytes."""
    if nbytes == 1:
        return "1 byte"
    return f"{nbytes:,.0f} bytes" if nbytes < MIB / 100 else f"{nbytes / MIB:,.2f} MiB"


BYTE_UNITS = (GIBIBYTES, MEBIBYTES, KIBIBYTES, Unit(1, "B", 0))
"""Units of bytes, the largest first."""

SECOND_UNITS = (Unit(1.0, "s", 2), Unit(1e-3, "ms", 1), Unit(1e-6, "µs", 0))
"""Units of seconds, the largest first."""
