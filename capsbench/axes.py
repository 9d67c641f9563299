"""Axes: what a sweep varies, in words.

An axis is `blocks`, another number that a cell has as an option (`batch_size`, `capsules`, `classes`, `iterations`), the shape of
images (`image_shape`: a cell lies at its number of pixels), or a setting of a case (`length`). `Configuration.position` gives the
place of a cell on an axis. Nothing here needs torch.
"""

from capsbench.options import AXES_OF_FIELDS, OPTIONS, SETTINGS_FLAG, Configuration, value_in_words

_UNITS = {
    "accumulate": "pass",
    "blocks": "block",
    "batch_size": "sample",
    "capsules": "capsule",
    "classes": "class",
    "iterations": "round",
    "image_shape": "pixel",
    "threads": "thread",
    **dict.fromkeys(("context", "context_length", "length", "seq_len", "seq_length", "sequence_length", "tokens"), "token"),
}
"""Units of axes with a well-known one, in the singular."""


def axis_title(axis: str) -> str:
    """Title of an axis: `Blocks`, `Batch size`, `Image size`, and `Length` for the setting `length`."""
    if axis == "image_shape":
        return "Image size"
    return OPTIONS[axis].title if axis in AXES_OF_FIELDS else axis.replace("_", " ").capitalize()


def axis_unit(axis: str) -> str:
    """Unit of an axis in the singular: `block`, `sample`, `pixel`, `token`; a setting without a known unit is its own."""
    return _UNITS.get(axis, axis.replace("_", " "))


def plural_unit(axis: str) -> str:
    """The unit of an axis in the plural: `blocks`, `tokens`, `classes`; a setting that is its own unit stays as it is."""
    unit = axis_unit(axis)
    if unit == axis.replace("_", " "):
        return unit
    return f"{unit}es" if unit.endswith("s") else f"{unit}s"


def per_pair(axis: str) -> str:
    """Unit of a square: `per pair of tokens`."""
    return f"per pair of {plural_unit(axis)}"


def over_the(axis: str) -> str:
    """Unit of a cost that is shared: `divided by world size`."""
    return f"divided by {axis_title(axis).lower()}"


def axis_flag(axis: str) -> str:
    """Beginning of a typed option that puts a cell on an axis, to which the value is appended: `--depth `, `--set length=`."""
    return f"{OPTIONS[axis].flag} " if axis in AXES_OF_FIELDS else f"{SETTINGS_FLAG} {axis}="


def position_in_words(configuration: Configuration, axis: str) -> str:
    """The place of a cell on an axis, in words: `4 blocks`, `batch 32`, `3x64x64`, `length 256`."""
    if axis == "blocks":
        return f"{configuration.blocks} block{'' if configuration.blocks == 1 else 's'}"
    position = configuration.position(axis)
    if position is None:
        return f"no {axis.replace('_', ' ')}"
    if axis == "image_shape":
        return "x".join(map(str, configuration.spec().shape))
    return value_in_words(axis, int(position) if position.is_integer() else position)
