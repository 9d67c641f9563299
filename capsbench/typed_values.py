"""Values of settings and axes, as they are typed and as Python gives them.

Typed are `128`, `0.5`, `true`, `128-1024:128`, `adam`, `"a, b"`, and lists of these.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import count, takewhile
from typing import Any, TypeGuard

Setting = bool | int | float | str
"""A value that a case's function takes."""

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_PART = re.compile(rf"\s*({_QUOTED}|[^,]*?)\s*,")
_SETTING = re.compile(rf"[^=,\s]+=(?:{_QUOTED}|[^,]*)")
_RANGE = re.compile(r"(\d+)\s*-\s*(\d+)(?:\s*:\s*(\d+))?")
_LONGEST_RANGE = 100_000
_LARGEST = 2**63
_LONGEST_REPR = 60


def parsed_values(text: str, *, doubling_beyond: int | None = None) -> tuple[Setting, ...]:
    """The values in a comma list, each once. A part in quotation marks, written as in JSON, is a text whatever it holds.

    Args:
        text: the list: `128,256`, `1-8`, `128-1024:128`.
        doubling_beyond: most values of a range without a step; a longer one is its first value, the doubles, and the last value.

    Raises:
        ValueError: a part is empty, or what it holds between quotation marks is no text.
    """
    found: list[Setting] = []
    for part in _PART.finditer(f"{text},"):
        if not part[1]:
            raise ValueError("a part is empty")
        found += [json.loads(part[1])] if part[1].startswith('"') else _values_of(part[1], doubling_beyond)
    # 1 and true are equal, and so are 1 and 1.0.
    return tuple({(type(value), value): value for value in found}.values())


def _values_of(part: str, doubling_beyond: int | None) -> Sequence[Setting]:
    """The values of one part of a list: a range, a number, true or false, or else the text."""
    found = _RANGE.fullmatch(part)
    if found:
        first, last, step = int(found[1]), int(found[2]), int(found[3] or 1)
        steps = range(first, last + 1, step) if step and last <= _LARGEST else range(0)
        if doubling_beyond is not None and found[3] is None and first > 0 and len(steps) > doubling_beyond:
            return (*takewhile(lambda value: value < last, (first << power for power in count())), last)
        return steps if 0 < len(steps) <= _LONGEST_RANGE else (part,)
    if part in ("true", "false"):
        return (part == "true",)
    for kind in (int, float):
        try:
            value = kind(part)
        except (ValueError, OverflowError):
            continue
        if math.isfinite(value):
            return (value,)
    return (part,)


def several(given: object) -> tuple[Any, ...]:
    """The values of what may be one or several, none for None; numbers of NumPy and torch are Python's own.

    A text is one value, and so is an object that no list of values is, such as a dictionary or a class.
    """
    if given is None:
        return ()
    values: tuple[Any, ...] = (given,)
    if isinstance(given, Iterable) and not isinstance(given, str | bytes | bytearray | Mapping | type):
        try:
            values = tuple(given)
        except TypeError:  # a tensor without dimensions
            values = (given,)
    return tuple(map(_own, values))


def _own(value: Any) -> Any:
    """A number of NumPy or torch as Python's own; anything else as it is."""
    if isinstance(value, type) or not callable(getattr(value, "item", None)):
        return value
    try:
        return value.item()
    except Exception:  # it has several elements, or is something else
        return value


def fault_of(value: object) -> str:
    """The reason that a value is no setting, in words: `None is no number, text or flag`; empty if it is one."""
    if type(value) not in (bool, int, float, str):
        text = repr(value)
        text = text if len(text) <= _LONGEST_REPR else f"{text[: _LONGEST_REPR - 1]}…"
        return f"{' '.join(text.split())} is no number, text or flag"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not finite"
    if isinstance(value, int) and abs(value) >= _LARGEST:
        return f"a number of {len(str(abs(value)))} digits is too large"
    return ""


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_typed(value: Setting) -> str:
    """A value as `parsed_values` reads it: a text that would be read as something else stands in quotation marks."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return str(value)
    try:
        bare = not value.startswith('"') and parsed_values(value) == (value,)
    except ValueError:
        bare = False
    return value if bare else json.dumps(value, ensure_ascii=False)


def settings_in(text: str) -> list[str]:
    """The settings `name=value` of a list of them, joined by commas; commas of a quoted text part none."""
    return [found.rstrip() for found in _SETTING.findall(text)]
