"""What a page is made of: reports as they were read."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from capsbench.frame import to_frame
from capsbench.records import Plan, Record, Timeline


@dataclass(frozen=True)
class Inside:
    """A look inside one step."""

    timeline: Timeline
    path: str = ""
    """Of the file that it was read from."""


@dataclass(frozen=True)
class Source:
    """One report."""

    name: str
    """Of its folder."""
    records: Sequence[Record]
    environments: Mapping[str, Any] = field(default_factory=dict)
    """Entries of environment.json by key."""
    plan: Plan | None = None
    timelines: Sequence[Inside] = ()
    """What lies in its folder of the insides of steps."""
    notes: Sequence[str] = ()
    """What a reader must be told: damaged lines."""

    def started(self) -> str:
        """When its first cell began, ISO 8601; empty where no record says."""
        return min((record.started_at for record in self.records if record.started_at), default="")

    def ended(self) -> str:
        """When its last cell began, which is what tells the later of two reports."""
        return max((record.started_at for record in self.records if record.started_at), default="")


def told_apart(sources: Iterable[Source]) -> list[Source]:
    """The same reports under names of their own: `mine`, `mine (2)`."""
    found: list[Source] = []
    taken: set[str] = set()
    for source in sources:
        name, count = source.name, 1
        while name in taken:
            count += 1
            name = f"{source.name} ({count})"
        taken.add(name)
        found.append(replace(source, name=name))
    return found


def frame_of(sources: Sequence[Source]) -> pd.DataFrame:
    """All records as `capsbench.load` gives them, in the order of the sources."""
    frame = to_frame((Path(), record) for source in sources for record in source.records)
    # A name is a name, whatever is in it: no path is made of it.
    return frame.assign(report=[source.name for source in sources for _ in source.records])
