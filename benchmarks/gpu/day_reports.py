"""Cells of reports, measured as `capsbench run` measures them: each in fresh processes, on the disk at once."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu.child import Bench, Items
from benchmarks.gpu.results import Found
from benchmarks.gpu.whole_steps import MEMORY, configuration_of
from capsbench.catalog import STACKED
from capsbench.measure.cell import measure_cell
from capsbench.measure.environment import describe, key_of
from capsbench.records import BOTH, Cell, Pass, Plan, Record
from capsbench.report import Report
from capsbench.sweep.asked import Sweep
from capsbench.sweep.experiments import EXPERIMENTS, cells_of
from capsbench.sweep.machine import machine_options
from capsbench.sweep.measuring import measure
from capsbench.sweep.plan import expand
from capsbench.sweep.session import begin

EXAMPLE, PUBLISHED = "example-gpu", "published-gpu"
"""Names of the reports, as in `reports/`."""

FIGURES = (*MEMORY, "process_bytes", "context_bytes")
"""Figures of a record's memory that an item shows, where they are known."""


def folder_of(bench: Bench, name: str) -> Path:
    """The folder of a report of the day."""
    return bench.folder / "reports" / name


def first(bench: Bench) -> Items:
    """`capsbench run --models all` at a few depths: cells one by one, then their times in turn."""
    cells = expand(
        Sweep(tuple(STACKED), bench.sizes.depths, batch_size=bench.sizes.batch, **machine_options(bench.device, None, None))
    )
    return _items(bench, EXAMPLE, "first", cells, cells)


def table4(bench: Bench) -> Items:
    """The cells of table 4 at its ends with their times, and then the depths between with their memory alone."""
    found: Items = {}
    machine = {"batch_size": bench.sizes.batch, **machine_options(bench.device, None, None)}
    for depths, timed in ((bench.sizes.ends, True), (range(bench.sizes.ends[0] + 1, bench.sizes.ends[1]), False)):
        for dataset in ("mnist", "cifar10"):
            several = cells_of(EXPERIMENTS["table4"], depths=tuple(depths), datasets=(dataset,), **machine) if depths else []
            # The paper's CapsNet retains what its ResCapsNet does.
            cells = [cell for cell in several if cell.configuration.model != "capsnet"]
            found |= _items(bench, PUBLISHED, "table4", cells, cells if timed else [], word=dataset)
    return found


def _items(bench: Bench, name: str, part: str, cells: list[Cell], timed: list[Cell], word: str = "") -> Items:
    """The memory of each cell, and then the times of some of them, in turn."""
    found: Items = {}
    for cell in cells:
        found[label(cell)] = partial(_memory, bench, name, part, cell)
    if timed:
        found[f"times {word}".strip()] = partial(_times, bench, name, part, timed)
    return found


def label(cell: Cell) -> str:
    """Words for a cell: `mocapsnet 4, mnist, published`; for another's network `lstm, fp32`."""
    it = cell.configuration
    if it.kernel is None:
        return f"{it.model.rpartition(':')[2]}, {it.precision}"
    return f"{it.model} {it.blocks}, {it.dataset}, {it.kernel}"


def plan_of(bench: Bench, part: str, cells: list[Cell], passes: list[Pass]) -> Plan:
    """A plan whose command names no path of the machine."""
    return Plan(
        command=f"python -m benchmarks.gpu --only {part}", passes=passes, cells=cells,
        budget_seconds=bench.sizes.sampling_seconds, timeout_seconds=max(bench.left(), 1.0),
    )  # fmt: skip


def _memory(bench: Bench, name: str, part: str, cell: Cell) -> Found:
    """Measure the memory of a cell into a report, unless it is there, and return its figures."""
    report, plan = _report(bench, name), plan_of(bench, part, [cell], ["memory"])
    with report.lock():
        begin(report, plan, resume=True)
        if cell.key() not in report.settled(["memory"]):
            environment = describe()
            report.add_environment(key_of(environment), environment)
            report.append(measure_cell(cell, plan, environment=key_of(environment), data_directory=bench.data))
    return memory_of(_records(report, [cell])[0])


def _times(bench: Bench, name: str, part: str, cells: list[Cell]) -> Found:
    """Time the cells of a report in turn, and return the medians of their training steps."""
    report = _report(bench, name)
    measure(
        plan_of(bench, part, cells, list(BOTH)), report,
        resume=True, only_these=True, data_directory=bench.data, wait=max(bench.left(), 1.0),
    )  # fmt: skip
    return times_of(_records(report, cells))


def _report(bench: Bench, name: str) -> Report:
    report = Report(folder_of(bench, name))
    report.folder.mkdir(parents=True, exist_ok=True)
    return report


def _records(report: Report, cells: list[Cell]) -> list[Record]:
    """The records of these cells, in their order."""
    known = {record.cell.key(): record for record in report.records}
    return [known[cell.key()] for cell in cells]


def memory_of(record: Record) -> Found:
    """The memory of a record, or the outcome that it has instead."""
    if record.status in ("error", "timeout"):
        return {"error": record.message}
    if record.memory is None:
        return {"outcome": record.status, "message": record.message}
    figures = record.memory.model_dump()
    return {name: figures[name] for name in FIGURES if figures.get(name) is not None}


def times_of(records: list[Record]) -> Found:
    """Median milliseconds of a training step by the label of each cell; the cell's outcome where there are none."""
    return {
        label(record.cell): 1e3 * median(record.time.train_step_seconds) if record.time else record.status for record in records
    }


SETTINGS = {
    "default": {},
    "expandable segments": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
    "caching off": {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
}
"""Variables of each setting of the allocator."""


def allocator(bench: Bench) -> Items:
    """One cell under each setting of the allocator; with caching off nothing is counted, which must not read as 0."""
    configuration = configuration_of(bench, "rescapsnet", bench.sizes.ends[1], dataset="mnist")
    return {name: partial(_under, Cell(configuration=configuration), variables) for name, variables in SETTINGS.items()}


def _under(cell: Cell, variables: dict[str, str]) -> Found:
    plan = Plan(command="", passes=["memory"], cells=[cell], timeout_seconds=60)
    with _variables(variables):
        record = measure_cell(cell, plan, environment="")
    found = memory_of(record)
    zeros = [name for name in ("peak_allocated_bytes", "peak_reserved_bytes", "retained_bytes") if found.get(name) == 0]
    found |= {"notes": " ".join(record.notes)} if record.notes else {}
    return found | ({"error": f"0 stands for what was not counted: {', '.join(zeros)}"} if zeros else {})


@contextmanager
def _variables(values: dict[str, str]) -> Iterator[None]:
    """Set variables of the environment, which processes that are started inside inherit."""
    before: dict[str, Any] = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
