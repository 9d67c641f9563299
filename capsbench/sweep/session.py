"""The beginning of a sweep, or of resuming one: which report, which plan, which data."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

from capsbench.cases.configured import check_batch_size
from capsbench.catalog import OWN_INPUTS
from capsbench.data.datasets import data_directory, load_images
from capsbench.errors import ConfigurationError, StoreError
from capsbench.records import BOTH, Cell, Plan, axes_of
from capsbench.report import Report
from capsbench.store.files import PLAN
from capsbench.system.paths import anchored, new_folder

REPORTS = Path("reports")
"""Folder of the reports that nobody named."""


def choose_report(
    plan: Plan, out: Path | None, *, resume: bool, now: datetime, make: bool = False,
    notify: Callable[[str], None] = lambda _: None,
) -> Report:  # fmt: skip
    """Return the report that a sweep writes: `out`; or the newest unfinished one with these cells, to resume; or a new one.

    Args:
        plan: plan of the sweep.
        out: the folder that was named, if any.
        resume: whether a report is resumed.
        now: time for the name of a new folder.
        make: make a new folder at once, so that two sweeps of one second do not choose the same one.
        notify: receives a text if the report that is to be resumed is not there.

    Raises:
        ConfigurationError: there is nothing to resume.
    """
    if out is not None:
        if resume and not out.exists():
            notify(f"there is nothing to resume in {out}: this sweep begins there")
        return Report(out)
    if not resume:
        folder = anchored(REPORTS) / now.strftime("%Y-%m-%d-%H%M%S")
        return Report(new_folder(folder) if make else folder)
    plans = sorted(anchored(REPORTS).glob(f"*/{PLAN}"), key=lambda path: path.stat().st_mtime, reverse=True)
    wanted = set(plan.cells)
    for path in plans:
        report = Report(path.parent)
        with contextlib.suppress(StoreError):  # a damaged or newer report is not the one
            known = report.plan
            if known is None or not set(plan.passes) <= set(known.passes):
                continue
            cells = _renewed(known.cells, plan)
            if wanted <= set(cells) and not {cell.key() for cell in cells} <= report.settled(known.passes):
                return report
    raise ConfigurationError("`resume`: no unfinished report below reports/ was planned with these options", "name it with `out`")


def _renewed(cells: Iterable[Cell], plan: Plan) -> list[Cell]:
    """Cells of an earlier plan, with the present source for networks that this plan has too."""
    now = {cell.configuration.model: cell.source for cell in plan.cells}
    return [cell.model_copy(update={"source": now.get(cell.configuration.model, cell.source)}) for cell in cells]


def changed_sources(report: Report, plan: Plan) -> list[str]:
    """Return notes on records of a resumed report that are not used, because the source of their network has changed.

    Raises:
        StoreError: its records cannot be read.
    """
    now = {cell.configuration.model: cell.source for cell in plan.cells}
    before = Counter(
        record.cell.configuration.model
        for record in report.records
        if record.cell.source != now.get(record.cell.configuration.model, record.cell.source)
    )
    return [
        f"the source of {model} is not that of {count} earlier record{'' if count == 1 else 's'}: measured again, and kept apart "
        "from them"
        for model, count in before.items()
    ]


def begin(report: Report, plan: Plan, *, resume: bool) -> Plan:
    """Write the plan and return it; if a report is resumed, the cells of its plan come first and new ones are added.

    The source of a network is part of its cells: if it has changed, they are measured again. Their earlier records stay in
    the folder, as a series of their own.

    Raises:
        ConfigurationError: the folder holds a report and `resume` is not given.
    """
    earlier = report.plan
    if not resume and (earlier is not None or report.path.exists()):
        raise ConfigurationError(f"`out` {report.folder} already holds a report", "add `resume`, or choose another `out`")
    if earlier is not None:
        cells = list(dict.fromkeys([*_renewed(earlier.cells, plan), *plan.cells]))
        plan = plan.model_copy(
            update={
                "cells": cells,
                "axes": axes_of(cells, dict.fromkeys([*earlier.axes, *plan.axes])),
                "bases": earlier.bases | plan.bases,
                "passes": [what for what in BOTH if what in earlier.passes or what in plan.passes],
                "samples": max(earlier.samples, plan.samples),
                "budget_seconds": max(earlier.budget_seconds, plan.budget_seconds),
                "processes": max(earlier.processes, plan.processes),
                "slope_share": min(earlier.slope_share, plan.slope_share),
                "timeout_seconds": max(earlier.timeout_seconds, plan.timeout_seconds),
                "strict": earlier.strict or plan.strict,
                "experiment": plan.experiment or earlier.experiment,
            }
        )
    report.write_plan(plan)
    return plan


def check_data(cells: Iterable[Cell], directory: Path | None) -> list[str]:
    """The source of each data set, in words.

    Raises:
        ConfigurationError: a batch is larger than the data.
    """
    words = []
    measured = [cell.configuration for cell in cells if not cell.configuration.is_predicted()]
    with_images = [one for one in measured if one.dataset != OWN_INPUTS]
    made = [one.spec() for one in with_images if one.images_are_random()]
    if made:
        shapes = dict.fromkeys(f"{'×'.join(map(str, spec.shape))} of {spec.classes} classes" for spec in made)
        words.append(f"{', '.join(shapes)}: random images (memory and time do not depend on pixels)")
    of_sets = [one for one in with_images if not one.images_are_random()]
    for dataset, batch_size in dict.fromkeys((one.dataset, one.images()) for one in of_sets):
        data = load_images(dataset, directory)
        check_batch_size(batch_size, len(data.images), dataset)
        text = {
            "sample": f"{dataset}: {len(data.images):,} Fashion-MNIST images that ship with capsbench",
            "real": f"{dataset}: {len(data.images):,} images on disk",
            "stand-in": f"{dataset}: not found in {directory or data_directory()}; the packaged sample is used with "
            "its shape and classes (memory and time do not depend on pixels)",
        }
        words.append(text[data.source])
    return words
