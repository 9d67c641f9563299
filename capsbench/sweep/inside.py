"""Predicted timelines for the page of a report that has none: the step of each network at its last position."""

from pathlib import Path

from capsbench.errors import CapsbenchError
from capsbench.prediction import apart
from capsbench.prediction.timelines import predicted_timeline
from capsbench.records import Record
from capsbench.report import Report
from capsbench.store.files import TIMELINE
from capsbench.sweep.forecast import prediction_of
from capsbench.timeline import Timeline

MOST_TIMELINES = 3
"""Largest number of networks whose step is predicted."""

_FOLDER = "inside-"


def add_timelines(report: Report) -> list[Path]:
    """Predict the timeline of a step of each of the first networks, those that retain least first, and return their files.

    Nothing is done for a report that has a timeline from elsewhere; those of an earlier call are made again. A network that
    cannot be followed without values is left out.

    Args:
        report: report in a folder.

    Raises:
        OSError: a file cannot be written.
    """
    there = list(report.folder.rglob(TIMELINE))
    earlier = [path for path in there if path.parent.parent == report.folder and path.parent.name.startswith(_FOLDER)]
    if len(earlier) < len(there):
        return []
    for path in earlier:
        path.unlink()
    axis = report.axes[0]
    good = [record for record in report.records if record.status == "ok" and record.memory is not None]
    good.sort(key=lambda record: record.cell.configuration.position(axis) or 0.0)
    last = {record.cell.configuration.model: record for record in good}
    paths: list[Path] = []
    for record in sorted(last.values(), key=_retained)[:MOST_TIMELINES]:
        try:
            timeline = _predicted(record)
        except CapsbenchError:
            continue
        path = report.folder / f"{_FOLDER}{len(paths) + 1}" / TIMELINE
        path.parent.mkdir(exist_ok=True)
        path.write_text(timeline.model_dump_json() + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def _retained(record: Record) -> int:
    return (record.memory.retained_bytes or 0) if record.memory else 0


def _predicted(record: Record) -> Timeline:
    """The timeline of a record's step on its kind of device, of the record's own configuration."""
    own = record.cell.configuration
    traced = prediction_of(own) if own.device_kind() == "cuda" else own
    found: Timeline = apart.call_for(own.model, predicted_timeline, traced)
    return found.model_copy(update={"configuration": own})
