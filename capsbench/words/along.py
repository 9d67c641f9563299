"""Axes and positions on them in words, alike wherever they are printed."""

from collections.abc import Iterable
from math import isqrt

from capsbench.axes import axis_title, plural_unit


def number_text(value: float) -> str:
    """A position without decimals that it does not need: `8`, `0.5`."""
    return str(int(value)) if float(value).is_integer() else f"{value:g}"


def place_text(axis: str, place: float, *, square: bool = False) -> str:
    """A position on an axis without its noun: `8`, `0.5`, and `64 × 64` for square images, which lie at their number of pixels.

    Args:
        axis: name of the axis.
        place: position on it.
        square: all images here are square.
    """
    side = isqrt(int(place)) if square and axis == "image_shape" and place > 0 else 0
    return f"{side} × {side}" if side and side * side == place else number_text(place)


def axis_label(axis: str) -> str:
    """Label of an axis of a chart, with its unit: `blocks`, `batch size (samples)`, `width`."""
    title, unit = axis_title(axis).lower(), plural_unit(axis)
    return title if unit in (title, f"units of {title}") else f"{title} ({unit})"


def over_text(axis: str) -> str:
    """Text `over depth`, `over batch size`."""
    return f"over {'depth' if axis == 'blocks' else axis_title(axis).lower()}"


def places_text(axis: str, positions: Iterable[float], *, square: bool = False) -> str:
    """Positions in words: `8 blocks`, `1, 2 blocks`, `length 128, 256`, `image size 64 × 64`, `image size 784 pixels`.

    Args:
        axis: name of the axis.
        positions: positions on it.
        square: all images here are square.
    """
    places = list(positions)
    numbers = ", ".join(place_text(axis, place, square=square) for place in places)
    if axis == "blocks":
        return f"{numbers} block{'' if places == [1] else 's'}"
    unit = f" {plural_unit(axis)}" if axis == "image_shape" and not square else ""
    return f"{axis_title(axis).lower()} {numbers}{unit}"
