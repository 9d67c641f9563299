"""Axes: what a sweep varies, in words.

An axis is `blocks`, another number that a cell has as an option (`batch_size`, `capsules`, `classes`, `iterations`), `shape`, on
which a cell lies at its number of pixels, or a setting of a case (`length`). Where a cell lies on an axis is said by
`Configuration.position`. Nothing here needs torch.
"""

from capsbench.options import AXES_OF_FIELDS, OPTIONS, SETTINGS_FLAG

_UNITS = {
    "blocks": "block",
    "batch_size": "sample",
    "capsules": "capsule",
    "classes": "class",
    "iterations": "round",
    "shape": "pixel",
    "threads": "thread",
    **dict.fromkeys(("context", "context_length", "length", "seq_len", "seq_length", "sequence_length", "tokens"), "token"),
}
"""Units of axes with a well-known one, in the singular."""

_TITLES = {"classes": "Classes", "shape": "Image size"}
"""Titles that are not those of an option."""


def axis_title(axis: str) -> str:
    """Title of an axis: `Blocks`, `Batch size`, `Image size`, and `Length` for the setting `length`."""
    if axis in _TITLES:
        return _TITLES[axis]
    return OPTIONS[axis].title if axis in AXES_OF_FIELDS else axis.replace("_", " ").capitalize()


def axis_unit(axis: str) -> str:
    """Unit of an axis in the singular: `block`, `sample`, `pixel`, `token`; a setting without a known unit is its own."""
    return _UNITS.get(axis, axis.replace("_", " "))


def axis_flag(axis: str) -> str:
    """Beginning of a typed option that puts a cell on an axis, to which the value is appended: `--depth `, `--set length=`."""
    return f"{OPTIONS[axis].flag} " if axis in AXES_OF_FIELDS and axis in OPTIONS else f"{SETTINGS_FLAG} {axis}="
