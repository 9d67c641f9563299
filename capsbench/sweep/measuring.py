"""The measurement of a plan into a report: on this machine, on the workers of a cluster, or, of predicted cells, by tracing."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from capsbench.measure.environment import describe, key_of
from capsbench.measure.forkserver import Forks
from capsbench.prediction import apart
from capsbench.prediction.predict import predict_cell
from capsbench.records import Plan
from capsbench.report import Report
from capsbench.store.files import damage_in_words
from capsbench.sweep.launchers.belongings import packed
from capsbench.sweep.launchers.driver import Driver
from capsbench.sweep.launchers.options import Launching
from capsbench.sweep.local import Sources, local_launcher
from capsbench.sweep.plan import axis_lacked
from capsbench.sweep.runner import Observer, remaining, run_sweep, uninterrupted
from capsbench.sweep.session import begin, changed_sources
from capsbench.sweep.timekeeper import Timekeeper
from capsbench.sweep.unchanged import unchanged
from capsbench.sweep.watcher import Logged, Watcher


def traced(plan: Plan, watcher: Watcher | None = None) -> Report:
    """Predict every cell of a plan, and return a report that is in memory alone.

    Args:
        plan: plan whose cells are of predicted devices.
        watcher: object that is informed of the progress.
    """
    report, watcher = Report.of([], "predicted", plan=plan), watcher or Logged()
    for text in axis_lacked(plan.cells, plan.axes[0]):
        watcher.notify(f"note: {text}")
    with watcher.measuring(plan, report, plan.cells) as observers:
        for cell in plan.cells:
            for observer in observers:
                observer.started(cell)
            record = predict_cell(cell)
            report.append(record)
            for observer in observers:
                observer.finished(record)
    note_unchanged(plan, report, watcher)
    return report


def measure(
    plan: Plan, report: Report, *, resume: bool = False, only_these: bool = False, data_directory: Path | None = None,
    wait: float | None = None, watcher: Watcher | None = None, launching: Launching | None = None,
) -> None:  # fmt: skip
    """Measure the rest of a plan into a report, to which no other process can write meanwhile.

    Args:
        plan: plan of the sweep.
        report: report from `choose_report`.
        resume: add to a report that is there.
        only_these: do not measure other cells of the report's plan.
        data_directory: folder of the real data sets.
        wait: seconds that a cell waits for other sweeps on its device; None for no limit.
        watcher: object that is informed of the progress; by default the log `capsbench`.
        launching: where cells are measured; by default here, one at a time.

    Raises:
        ConfigurationError: the report holds records, without `resume`, or no machine can measure a cell.
        StoreError: it cannot be read or written, or another process measures into it.
    """
    watcher = watcher or Logged()
    cells = plan.cells
    with report.lock(watcher.notify):
        for text in changed_sources(report, plan) if resume else ():
            watcher.notify(text)
        plan = begin(report, plan, resume=resume)
        if only_these:
            plan = plan.model_copy(update={"cells": cells})
        for text in axis_lacked(plan.cells, plan.axes[0]):
            watcher.notify(f"note: {text}")
        for text in damage_in_words(report.damages):
            watcher.notify(f"warning: {text}; lost cells are measured again")
        with watcher.measuring(plan, report, remaining(plan, report)) as observers:
            if launching is None or launching.is_local():
                _measure_here(plan, report, data_directory, wait, watcher, observers)
            else:
                _measure_elsewhere(plan, report, data_directory, wait, watcher, observers, launching)


def _measure_here(
    plan: Plan, report: Report, data_directory: Path | None, wait: float | None, watcher: Watcher, observers: Sequence[Observer]
) -> None:
    """Measure cells one after the other in processes of this machine."""
    environment = describe()
    key = key_of(environment)
    report.add_environment(key, environment)
    sources = Sources(plan)
    keeper = Timekeeper(plan, report, key, data_directory, watcher.notify, patience=wait, sources=sources, observers=observers)
    with Forks() as forks:  # which end before times are taken, so that nothing idle lies next to these
        launch = local_launcher(
            plan, key, data_directory, watcher.notify,
            folder=report.folder, patience=wait, sources=sources, timed_later=keeper.cells, forks=forks,
        )  # fmt: skip
        run_sweep(plan, report, launch, observers, keeper.cells)
    note_unchanged(plan, report, watcher)
    keeper.run()


def _measure_elsewhere(
    plan: Plan, report: Report, data_directory: Path | None, wait: float | None, watcher: Watcher,
    observers: Sequence[Observer], launching: Launching,
) -> None:  # fmt: skip
    """Measure cells on the workers of a cluster, many at once; predicted cells are traced here."""
    predicted = [cell for cell in plan.cells if cell.configuration.is_predicted()]
    if predicted:
        run_sweep(plan.model_copy(update={"cells": predicted}), report, predict_cell, observers)
    if not any(not cell.configuration.is_predicted() for cell in remaining(plan, report)):
        return
    sources = Sources(plan)
    apart.close()
    with closing(launching.engine(report.folder, packed(sources.files()))) as engine:
        driver = Driver(plan, report, engine, sources, data_directory, watcher.notify, patience=wait, observers=observers)
        if launching.device == "auto":
            driver.note_unused_gpus()
        driver.run(between=lambda: note_unchanged(plan, report, watcher))


def note_unchanged(plan: Plan, report: Report, watcher: Watcher) -> None:
    """Warn of axes that change nothing, and note it in the records of the cells along them."""
    keys = {cell.key() for cell in plan.cells}
    found = unchanged((record for record in report.records if record.cell.key() in keys), plan.axes)
    for note in dict.fromkeys(series.note for series in found):
        watcher.notify(f"warning: {note}")
    for series in found:
        noted = {record.cell.key() for record in series.records if series.note not in record.notes}
        for record in [one for one in report.records if one.cell.key() in noted]:
            with uninterrupted():
                report.append(record.model_copy(update={"notes": [*record.notes, series.note]}))
