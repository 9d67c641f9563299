"""Axes: what a sweep varies, in words.

An axis is `blocks`, another number that a cell has as an option (`batch_size`, `capsules`, `classes`, `iterations`), the shape of
images (`image_shape`: a cell lies at its number of pixels), or a setting of a case (`length`). `Configuration.position` gives the
place of a cell on an axis. The units of costs are made here, and the bases that a cost may have over an axis. Nothing here
needs torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from capsbench.errors import ConfigurationError, suggesting
from capsbench.options import AXES_OF_FIELDS, DEEPEST, OPTIONS, SETTINGS_FLAG, Configuration, value_in_words

IMAGE_SIZE = "image_size"
"""Name under which an axis of square images is asked for by their side; cells lie along `image_shape`."""

AxisForm = Literal["line", "inverse", "quadratic"]
"""Form of a cost over an axis: {1, n}, {1, 1/n} or {1, n, n²}."""

BASES: dict[AxisForm, str] = {"line": "1,n", "inverse": "1,1/n", "quadratic": "1,n,n²"}
"""The basis of each form, as it is typed: `--basis length=1,n,n²`."""

POWERS: dict[AxisForm, tuple[int, ...]] = {"line": (0, 1), "inverse": (0, -1), "quadratic": (0, 1, 2)}
"""Powers of an axis in each form."""

_LEAST_SPAN_IN_DOUBLES = 8
"""Least ratio of the last position to the first on an axis that is drawn in doubles."""

_DEPTH_FORMS = "give a depth (3), a range (1-8), or a list of both (1-4,8)"

_UNITS_OF_SETTINGS = {
    **dict.fromkeys(("context", "context_length", "length", "seq_len", "seq_length", "sequence_length"), "token"),
    **{
        f"{before}{noun}s": noun
        for before in ("", "n_", "num_")
        for noun in (
            "channel", "chunk", "edge", "expert", "feature", "frame", "group", "head", "image", "layer", "level", "node", "point",
            "rank", "stage", "step", "token", "window",
        )
    },
}  # fmt: skip
"""Units of settings of cases whose names say what they count, in the singular; those of options are in their rows."""


def axis_title(axis: str) -> str:
    """Title of an axis: `Blocks`, `Batch size`, `Image size`, and `Length` for the setting `length`."""
    return OPTIONS[axis].title if axis in AXES_OF_FIELDS else axis.replace("_", " ").capitalize()


def axis_unit(axis: str) -> str:
    """Unit of an axis in the singular: `block`, `sample`, `pixel`, `token`; `unit of width` for a setting without a known one."""
    of_option = OPTIONS[axis].unit if axis in OPTIONS else ""
    return of_option or _UNITS_OF_SETTINGS.get(axis, f"unit of {axis.replace('_', ' ')}")


def plural_unit(axis: str) -> str:
    """The unit of an axis in the plural: `blocks`, `tokens`, `classes`, `units of width`."""
    noun, of, rest = axis_unit(axis).partition(" of ")
    return f"{noun}{'es' if noun.endswith('s') else 's'}{of}{rest}"


def per_unit(axis: str) -> str:
    """Unit of a slope: `per block`, `per token`."""
    return f"per {axis_unit(axis)}"


def per_pair(axis: str) -> str:
    """Unit of a square: `per pair of tokens`."""
    return f"per pair of {plural_unit(axis)}"


def over_the(axis: str) -> str:
    """Unit of a cost that is shared: `divided by world size`."""
    return f"divided by {axis_title(axis).lower()}"


def term_unit(axis: str, form: AxisForm) -> str:
    """Unit of the term that gives a form its name."""
    return {"line": per_unit, "inverse": over_the, "quadratic": per_pair}[form](axis)


def shared_unit(axes: Sequence[str], powers: Sequence[int]) -> str:
    """Unit of a product of powers of several axes: `per block and pair of tokens`, `per block, divided by world size`."""
    known = list(zip(axes, powers, strict=True))
    multiplied = [(per_unit if power == 1 else per_pair)(axis).removeprefix("per ") for axis, power in known if power > 0]
    divided = [over_the(axis) for axis, power in known if power < 0]
    return ", ".join([f"per {' and '.join(multiplied)}"] * bool(multiplied) + divided)


def basis_form(axis: str, basis: str | Iterable[str]) -> AxisForm:
    """The form of a basis that was declared: `1,n,n²`, `1,n,n^2`, or the terms one by one.

    Args:
        axis: name of its axis, for errors.
        basis: the terms.

    Raises:
        ConfigurationError: no cost has this basis.
    """
    given = basis if isinstance(basis, str) else ",".join(map(str, basis))
    plain = given.lower().replace(" ", "").replace("**", "^").replace("n^2", "n²").replace("n2", "n²").strip("{}")
    terms = set(plain.split(","))
    found = next((form for form, text in BASES.items() if terms == set(text.split(","))), None)
    if found is None:
        raise ConfigurationError(
            f"`basis` '{given}' of the axis '{axis}' is not one that costs can have", f"give one of {'; '.join(BASES.values())}"
        )
    return found


def basis_text(form: AxisForm) -> str:
    """The basis of a form in words: `{1, n, n²}`."""
    return f"{{{BASES[form].replace(',', ', ')}}}"


def declared_forms(bases: Mapping[str, str | Iterable[str]] | None, axes: Sequence[str]) -> dict[str, AxisForm]:
    """The forms that are declared for axes, by name of the axis.

    Args:
        bases: basis of each axis by its name; `image_size` stands for the number of pixels of the images.
        axes: names of the axes that there are.

    Raises:
        ConfigurationError: a basis is none, or an axis is not there.
    """
    found: dict[str, AxisForm] = {}
    for name, basis in (bases or {}).items():
        axis = "image_shape" if name == IMAGE_SIZE and name not in axes else name
        if axis not in axes:
            raise ConfigurationError(
                f"`basis` names the axis '{name}', which is not varied",
                suggesting(name, axes, f"the axes here are {', '.join(axes)}"),
            )
        found[axis] = basis_form(name, basis)
    return found


def in_doubles(axis: str, positions: Iterable[float]) -> bool:
    """Return whether a chart over an axis is to place doubles at equal distances: numbers of processes are doubled.

    Args:
        axis: name of the axis.
        positions: positions that it shows; in any order.
    """
    shown = sorted(set(positions))
    doubled = axis in OPTIONS and OPTIONS[axis].doubling_beyond is not None
    return doubled and len(shown) > 2 and 0 < _LEAST_SPAN_IN_DOUBLES * shown[0] <= shown[-1]


def axis_flag(axis: str) -> str:
    """Beginning of a typed option that puts a cell on an axis, to which the value is appended: `--depth `, `--set length=`."""
    return f"{OPTIONS[axis].flag} " if axis in AXES_OF_FIELDS else f"{SETTINGS_FLAG} {axis}="


def position_in_words(configuration: Configuration, axis: str) -> str:
    """The place of a cell on an axis, in words: `4 blocks`, `batch 32`, `3x64x64`, `length 256`."""
    if axis == "blocks" and configuration.blocks:
        return f"{configuration.blocks} block{'' if configuration.blocks == 1 else 's'}"
    position = configuration.position(axis)
    if position is None:
        return f"no {axis_title(axis).lower()}"
    if axis == "image_shape":
        return "x".join(map(str, configuration.spec().shape))
    return value_in_words(axis, int(position) if position.is_integer() else position)


def parse_depths(text: str) -> tuple[int, ...]:
    """Parse depths: `3`, `1-8`, `1,2,4`, `1-4,8` → ascending depths, each once.

    Raises:
        ConfigurationError: it is none of these, or names a depth below 1.
    """
    depths: set[int] = set()
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not (first.isascii() and first.isdigit() and (not dash or (last.isascii() and last.isdigit()))):
            raise ConfigurationError(f"`depth` '{text}' is not a depth", _DEPTH_FORMS)
        if len(max(first, last, key=len)) > len(str(DEEPEST)):
            raise ConfigurationError(f"`depth` '{text[:40]}' goes beyond {DEEPEST} blocks", "choose depths that can be measured")
        low, high = int(first), int(last) if dash else int(first)
        if low < 1:
            raise ConfigurationError(f"`depth` '{text}' begins below 1", "the smallest network has 1 block")
        if high < low:
            raise ConfigurationError(f"`depth` '{text}' runs backwards", f"write {high}-{low}")
        if high > DEEPEST:
            raise ConfigurationError(f"`depth` '{text}' goes beyond {DEEPEST} blocks", "choose depths that can be measured")
        depths.update(range(low, high + 1))
    return tuple(sorted(depths))
