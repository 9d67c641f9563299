"""The results of one part: a JSON file that is whole at any moment. Needs no package."""

import json
import os
from pathlib import Path
from typing import Any, Literal, TypeAlias

Found: TypeAlias = dict[str, Any]
"""The figures of one item, by name; a name ends in its unit. An item that failed has `error`."""

Status: TypeAlias = Literal["done", "failed", "cut off"]
"""The end of a part; a part that was never begun has no file."""


class PartResults:
    """The file of one part.

    Args:
        folder: folder of the day's results.
        name: name of the part.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.json"
        self.name = name

    def read(self) -> dict[str, Any] | None:
        """The contents: `status`, `message`, `seconds`, `trying`, `items`; None if the part was never begun."""
        try:
            return json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def items(self) -> dict[str, Found]:
        """The figures so far, item by item."""
        return (self.read() or {}).get("items", {})

    def update(self, **fields: Any) -> None:
        """Change fields of the file, which a reader sees whole, before or after."""
        # A part that ends without another word was cut off.
        found = self.read() or {"part": self.name, "status": "cut off", "message": "", "seconds": 0.0, "items": {}}
        replace(self.path, found | fields)

    def trying(self, item: str, call: str) -> None:
        """Note an item that is about to be tried, since the process may not live to see its end."""
        self.keep(item, {"error": "cut off, or its process ended", "call": call})

    def keep(self, item: str, found: Found) -> None:
        """Keep the figures of an item."""
        self.update(items=self.items() | {item: found})


def replace(path: Path, content: object) -> None:
    """Write JSON to a file so that a reader sees the old contents or the new ones."""
    new = path.with_name(f"{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
