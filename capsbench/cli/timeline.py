"""`capsbench timeline`: one training step, looked into."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capsbench.catalog import MODELS
from capsbench.cli.command import Command, echo, echo_json
from capsbench.cli.flags import DATA_DIR_OPTION, SETTINGS_OPTION, cell_option, cell_options
from capsbench.cli.types import FOLDER, NameList, positive
from capsbench.errors import ConfigurationError, StoreError
from capsbench.options import SWEPT_OPTIONS
from capsbench.records import Cell, Configuration
from capsbench.store.files import TIMELINE
from capsbench.system.paths import absolute, anchored, new_folder

if TYPE_CHECKING:
    from capsbench.measure.messages import Reply

_HINTS = {
    "oom": "choose a smaller --batch-size or --depth, or trace the step with --device cpu:predicted or cuda:predicted",
    "timeout": "give it more seconds with --timeout, or choose a smaller --batch-size or --depth",
    "error": "the step must run before it can be examined; 'capsbench run' with the same options ends in the same way",
}


@click.command("timeline", cls=Command)
@click.option(
    "--model", "--models", "models", type=NameList(tuple(MODELS), open_ended=True), default="mocapsnet",
    help="The model, or package.module:name of your own.",
)  # fmt: skip
@cell_option("blocks", "depth", type=str, default="1", help="Blocks.")
@cell_options(*SWEPT_OPTIONS)
@SETTINGS_OPTION
@click.option("--timeout", type=positive("seconds"), default=1800, help="Longest time of the process.")
@DATA_DIR_OPTION
@click.option("--out", type=FOLDER, help="Folder to write to; by default a new one in reports/, named after the time.")
@click.option("--json", "as_json", is_flag=True, help="Print the timeline as JSON on standard output.")
def command(out: Path | None, data_dir: Path | None, timeout: float, as_json: bool, **given: Any) -> int:
    """Show the memory inside one training step, and its purpose.

    It prints the operator at the peak, and the modules that retain memory. It writes timeline.json and draws it, and on CUDA
    also writes snapshot.pickle, for pytorch.org/memory_viz.

    \b
    Examples:
      capsbench timeline --model mocapsnet --depth 4
      capsbench timeline --model rescapsnet --depth 8 --kernel published --device cuda:predicted --gpu a100
      capsbench timeline --model my_package.models:make_net --depth 2 --out reports/inside
    """
    from capsbench.cli.sweeps import asked_cells
    from capsbench.figures.depth import save
    from capsbench.figures.one_step import draw_timeline, timeline_text
    from capsbench.sweep.session import REPORTS, check_data

    cell = _only(asked_cells(given | {"repeats": 1}))
    configuration = cell.configuration
    for text in check_data([cell], data_dir):
        echo(f"data {text}", err=True)
    folder = out or new_folder(anchored(REPORTS) / f"timeline-{datetime.now():%Y-%m-%d-%H%M%S}")
    with _scratch_folder(folder, new=out is None or not folder.exists()) as scratch:
        reply = _look(configuration, data_dir, timeout, scratch / "snapshot.pickle", folder)
        timeline = reply.timeline
        if timeline is None:
            what, _, hint = (reply.message or reply.status).partition(" - ")
            depth = f"{configuration.blocks} {'block' if configuration.blocks == 1 else 'blocks'}"
            echo(f"error: {configuration.model} at {depth}: {what}\n{hint or _HINTS[reply.status]}", err=True)
            return 1
        with _writing(folder):
            (scratch / TIMELINE).write_text(timeline.model_dump_json() + "\n", encoding="utf-8")
            save(draw_timeline(timeline), scratch, "timeline")
            # The file that marks the folder as a timeline comes last.
            files = sorted(scratch.iterdir(), key=lambda path: path.name == TIMELINE)
            written = [path.replace(folder / path.name) for path in files]
    if as_json:
        echo_json(json.loads(timeline.model_dump_json()), indent=None)
    else:
        echo(timeline_text(timeline))
    for path in written:
        echo(f"wrote {path}", err=True)
    return 0


def _only(cells: Sequence[Cell]) -> Cell:
    """The one cell that the options ask for."""
    first, *others = (cell.configuration.options() for cell in cells)
    if others:
        # An option that one of them does not have follows from its model.
        values = {name: {value, *(other[name] for other in others)} for name, value in first.items()}
        differing = [name for name, known in values.items() if len(known) > 1 and None not in known]
        named = ", ".join({"blocks": "depth"}.get(name, name.replace("_", " ")) for name in differing or ["optimizer_step"])
        raise ConfigurationError(
            f"a timeline shows one step, but this asks for {len(cells)}, which differ in {named}",
            "give one value of each; 'capsbench run' takes several",
        )
    return cells[0]


def _look(configuration: Configuration, data_dir: Path | None, timeout: float, snapshot: Path, folder: Path) -> "Reply":
    from capsbench.measure.cell import run_pass
    from capsbench.measure.messages import Reply, Request
    from capsbench.prediction import apart
    from capsbench.prediction.timelines import predicted_timeline
    from capsbench.sweep.local import alone_on

    if configuration.is_predicted():
        return Reply(status="ok", timeline=apart.call_for(configuration.model, predicted_timeline, configuration))
    request = Request(
        configuration=configuration, what="memory", samples=5, data_directory=data_dir, timeline=True, snapshot=absolute(snapshot)
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


@contextmanager
def _scratch_folder(folder: Path, *, new: bool) -> Iterator[Path]:
    """Make a folder to write into before the files are moved to their folder, so that nobody sees half of them."""
    if (folder / TIMELINE).exists():
        raise ConfigurationError(f"--out {folder} already holds a timeline", "choose another --out, or remove it first")
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder, prefix=".timeline-"))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if new:
            with contextlib.suppress(OSError):  # it stays if there is something in it
                folder.rmdir()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"--out {folder} cannot be written: {error.strerror}", "choose a folder that you may write to") from None
