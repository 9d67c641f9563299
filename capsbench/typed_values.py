"""Values of settings and axes as they are typed: `128`, `0.5`, `true`, `128-1024:128`, `adam`, `"a, b"`, and lists of these."""

import json
import math
import re
from collections.abc import Sequence

Setting = bool | int | float | str
"""A value that a case's function takes."""

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_PART = re.compile(rf"\s*({_QUOTED}|[^,]*?)\s*,")
_SETTING = re.compile(rf"[^=,\s]+=(?:{_QUOTED}|[^,]*)")
_RANGE = re.compile(r"(\d+)\s*-\s*(\d+)(?:\s*:\s*(\d+))?")
_LONGEST_RANGE = 100_000


def parsed_values(text: str) -> tuple[Setting, ...]:
    """The values in a comma list, each once. A part in quotation marks, written as in JSON, is a text whatever it holds.

    Raises:
        ValueError: a part is empty, or what it holds between quotation marks is no text.
    """
    found: list[Setting] = []
    for part in _PART.finditer(f"{text},"):
        if not part[1]:
            raise ValueError("a part is empty")
        found += [json.loads(part[1])] if part[1].startswith('"') else _values_of(part[1])
    # 1 and true are equal, and so are 1 and 1.0.
    return tuple({(type(value), value): value for value in found}.values())


def _values_of(part: str) -> Sequence[Setting]:
    """The values of one part of a list: a range, a number, true or false, or else the text."""
    found = _RANGE.fullmatch(part)
    if found:
        first, last, step = int(found[1]), int(found[2]), int(found[3] or 1)
        steps = range(first, last + 1, step) if step else range(0)
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
