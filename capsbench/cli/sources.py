"""Reports as a page takes them: records, machines and timelines at or below folders."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from capsbench.cli.command import echo
from capsbench.page import Inside, Source
from capsbench.paths import as_typed
from capsbench.store import Store, nothing_to_read, read_timelines, report_folders, told_damages
from capsbench.words.printable import printable

PAGE = "index.html"
"""The page of a report, in its folder."""


def read_sources(roots: Sequence[Path], *, quiet: bool = False) -> tuple[list[Source], list[Inside]]:
    """Every report at or below these folders, each once, in their order; damaged files are told on the page and here.

    Args:
        roots: folders.
        quiet: they are told on the page alone.

    Returns:
        The reports, each with the timelines at or below its folder, and the timelines that lie in no report.

    Raises:
        StoreError: there are no records, or they cannot be read.
    """
    folders = {folder.resolve(): folder for root in roots for folder in report_folders(root)}
    timelines, damages = read_timelines(roots)
    inside: dict[Path | None, list[Inside]] = {}
    for path, timeline in timelines:
        # A report may lie in another one's folder: a timeline is of the nearest.
        owner = next((folder for folder in path.resolve().parents if folder in folders), None)
        inside.setdefault(owner, []).append(Inside(timeline, as_typed(str(path))))
    sources = [replace(read_source(folder), timelines=inside.get(place, [])) for place, folder in folders.items()]
    sources[0] = replace(sources[0], notes=[*sources[0].notes, *map(as_typed, damages)])
    for note in () if quiet else (note for source in sources for note in source.notes):
        echo(f"warning: {printable(note)}", err=True)
    if not any(source.records for source in sources):
        raise nothing_to_read(*roots)
    return sources, inside.get(None, [])


def read_source(folder: Path) -> Source:
    """One report, without timelines.

    Raises:
        StoreError: it cannot be read.
    """
    store = Store(folder)
    contents = store.read()
    return Source(
        name=folder.resolve().name or "report",
        records=contents.records,
        environments=store.read_environments(),
        plan=store.read_plan(),
        notes=[*map(as_typed, told_damages(contents.damages))],
    )
