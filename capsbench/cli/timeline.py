"""What `capsbench timeline` does once it knows its cells."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from capsbench.cli.command import echo, echo_json
from capsbench.errors import ConfigurationError, StoreError
from capsbench.figures.depth import save
from capsbench.figures.timeline import draw_timeline, timeline_text
from capsbench.measure.cell import run_pass
from capsbench.measure.timeline import predicted_timeline
from capsbench.measure.worker import Reply, Request
from capsbench.paths import absolute, anchored, new_folder
from capsbench.prediction import apart
from capsbench.records import Cell, Configuration
from capsbench.sweep.local import alone_on
from capsbench.sweep.plan import Sweep, expand
from capsbench.sweep.session import REPORTS, check_data

FILE, SNAPSHOT = "timeline.json", "snapshot.pickle"

_HINTS = {
    "oom": "choose a smaller --batch-size or --depth, or trace the step with --device cpu:predicted or cuda:predicted",
    "timeout": "give it more seconds with --timeout, or choose a smaller --batch-size or --depth",
    "error": "the step must run before it can be looked into; 'capsbench run' with the same options ends in the same way",
}


def the_cell(sweep: Sweep) -> Cell:
    """The one cell that was asked for.

    Raises:
        ConfigurationError: as `expand`, or there are several.
    """
    cells = expand(sweep)
    first, *others = (cell.configuration.model_dump() for cell in cells)
    if others:
        # What one of them does not have at all follows from its model.
        differing = [
            name
            for name, value in first.items()
            if any(other[name] != value for other in others) and None not in {value, *(other[name] for other in others)}
        ]
        told = ", ".join({"blocks": "depth"}.get(name, name.replace("_", " ")) for name in differing or ["optimizer_step"])
        raise ConfigurationError(
            f"a timeline is of one step, and this asks for {len(cells)}, which differ in {told}",
            "give one value of each; 'capsbench run' takes several",
        )
    return cells[0]


def write_timeline(cell: Cell, *, out: Path | None, data_dir: Path | None, timeout: float, as_json: bool, **_: Any) -> int:
    """Looks into a step, writes and draws what was seen, prints it, and returns the exit status.

    Args:
        cell: whose step.
        out: folder to write to, or None for one named after the time.
        data_dir: where real data sets lie.
        timeout: seconds for the process that measures.
        as_json: print the timeline as JSON, not in words.

    Raises:
        ConfigurationError: the batch is larger than the data, the step cannot be traced, or the folder holds a timeline.
        StoreError: the folder cannot be written to.
    """
    for text in check_data([cell], data_dir):
        echo(f"data {text}", err=True)
    folder = out or new_folder(anchored(REPORTS) / f"timeline-{datetime.now():%Y-%m-%d-%H%M%S}")
    with _beside(folder, new=out is None or not folder.exists()) as beside:
        reply = _look(cell.configuration, data_dir, timeout, beside / SNAPSHOT, folder)
        timeline = reply.timeline
        if timeline is None:
            return _complain(cell.configuration, reply)
        with _writing(folder):
            (beside / FILE).write_text(timeline.model_dump_json() + "\n", encoding="utf-8")
            save(draw_timeline(timeline), beside, "timeline")
            # The one that says that there is a timeline comes last.
            files = sorted(beside.iterdir(), key=lambda path: path.name == FILE)
            written = [path.replace(folder / path.name) for path in files]
    if as_json:
        echo_json(json.loads(timeline.model_dump_json()), indent=None)
    else:
        echo(timeline_text(timeline))
    for path in written:
        echo(f"wrote {path}", err=True)
    return 0


def _look(configuration: Configuration, data_dir: Path | None, timeout: float, snapshot: Path, folder: Path) -> Reply:
    if configuration.is_predicted():
        return Reply(status="ok", timeline=apart.call_for(configuration.model, predicted_timeline, configuration))
    request = Request(
        configuration=configuration,
        what="memory",
        samples=5,
        data_directory=data_dir,
        timeline=True,
        snapshot=absolute(snapshot),
    )
    apart.close()
    try:
        turn = partial(alone_on, configuration.device, lambda text: echo(text, err=True), folder=folder)
        reply = run_pass(request, timeout, turn)
    except OSError as error:
        return Reply(status="error", message=f"the process could not start: {error}")
    if reply.timeline is None:
        return reply
    notes = [*reply.timeline.notes, *reply.notes]
    return reply.model_copy(update={"timeline": reply.timeline.model_copy(update={"notes": notes})})


def _complain(configuration: Configuration, reply: Reply) -> int:
    """Says why there is no timeline; the exit status."""
    what, _, hint = (reply.message or reply.status).partition(" - ")
    depth = f"{configuration.blocks} {'block' if configuration.blocks == 1 else 'blocks'}"
    echo(f"error: {configuration.model} at {depth}: {what}\n{hint or _HINTS[reply.status]}", err=True)
    return 1


@contextmanager
def _beside(folder: Path, *, new: bool) -> Iterator[Path]:
    """A folder to write into before the files are moved to where they belong, so that nobody sees half of them.

    Args:
        folder: where they belong.
        new: whether it is removed again where nothing comes of it.

    Raises:
        ConfigurationError: the folder holds a timeline.
        StoreError: it cannot be written to.
    """
    if (folder / FILE).exists():
        raise ConfigurationError(f"--out {folder} already holds a timeline", "choose another --out, or remove it first")
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=folder, prefix=".timeline-"))
    try:
        yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if new:
            with contextlib.suppress(OSError):  # it stays where something is in it
                folder.rmdir()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"--out {folder} cannot be written: {error.strerror}", "choose a folder that you may write to") from None
