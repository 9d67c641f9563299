"""Global variables of a module, which a network of another module changes."""

from typing import Any

SEEN: list[Any] = []
LATEST: Any = None


def note(value: Any) -> None:
    """Count the calls."""
    note.calls += 1


note.calls = 0
