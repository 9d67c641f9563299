"""A mapping that is no dictionary."""

from collections.abc import Iterator, Mapping
from typing import Any


class Held(Mapping[str, Any]):
    """A dictionary that is none, as those of tokenizers are."""

    def __init__(self, **held: Any) -> None:
        self._held = held

    def __getitem__(self, name: str) -> Any:
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)
