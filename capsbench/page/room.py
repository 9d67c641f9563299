"""Limits on the size of a page: people open it, and no record may make it too large for that."""

import json
from collections.abc import Iterable
from typing import Any

from capsbench.words.labels import cut

LONGEST_NAME = 300
LONGEST_TEXT = 2000
LONGEST_COMMAND = 4000


def script_json(data: Any) -> str:
    """JSON in which no text can end a script element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def size_of(text: str) -> int:
    """Bytes of a text in the page's file."""
    return len(text.encode("utf-8", "replace"))


def cut_list(texts: Iterable[str], most: int, longest: int = LONGEST_TEXT) -> list[str]:
    """The first texts, no more than `most`, and the number of further ones."""
    every = list(texts)
    more = [f"and {len(every) - most:,} more"] if len(every) > most else []
    return [*(cut(text, longest) for text in every[:most]), *more]
