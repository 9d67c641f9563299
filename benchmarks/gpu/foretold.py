"""Predicted figures and measured ones: the day's cells, and networks that nobody here wrote (`benchmarks/networks.py`)."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

from benchmarks.gpu.child import Bench, Items
from benchmarks.gpu.day_reports import EXAMPLE, PUBLISHED, folder_of, label
from benchmarks.gpu.results import Found, PartResults
from benchmarks.networks import NETWORKS
from capsbench.devices import DEFAULT_GPU, GPUS
from capsbench.measure.cell import run_pass
from capsbench.measure.messages import Request
from capsbench.prediction.predict import predicted_here
from capsbench.records import Cell, Configuration, MemoryFigures, Record
from capsbench.report import Report
from capsbench.sweep.asked import Sweep
from capsbench.sweep.machine import machine_options
from capsbench.sweep.plan import expand

FIGURES = {
    "retained": "retained_bytes",
    "peak allocated": "peak_allocated_bytes",
    "peak reserved": "peak_reserved_bytes",
    "process": "process_bytes",
}
"""Figures that are compared, by their words."""

AS_REQUESTED = {"retained_bytes": "retained_requested_bytes"}
"""Figures that are predicted in requested bytes, by what they are compared with on a device whose allocator reports them."""

BATCH, BLOCKS = 32, 2
"""Sizes of the others' networks on a card."""

PROCESSES = 4
"""Processes that measure memory, or predict it, at once: neither depends on other processes."""


def items(bench: Bench) -> Items:
    """Every cell of the day's reports, and every network of others."""
    known = PartResults(bench.folder, "predicted").items()
    workers = min(PROCESSES, os.cpu_count() or 1)
    predicting = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    measuring = ThreadPoolExecutor(workers)
    found: Items = {}
    for cell, measured in [*_measured_cells(bench), *_others(bench)]:
        name = label(cell)
        if "error" in known.get(name, {"error": ""}):
            prediction = predicting.submit(predicted_here, _predicted_cell(cell))
            memory = measuring.submit(measured)
            found[name] = partial(_compared, prediction, memory)
        else:
            found[name] = partial(known.__getitem__, name)
    return found


def _measured_cells(bench: Bench) -> list[tuple[Cell, Callable[[], MemoryFigures]]]:
    """The cells whose memory is in the reports, the first of equal ones."""
    found: dict[str, tuple[Cell, Callable[[], MemoryFigures]]] = {}
    for name in (EXAMPLE, PUBLISHED):
        report = Report(folder_of(bench, name))
        for record in report.records if report.path.exists() else ():
            if record.memory is not None:
                found.setdefault(label(record.cell), (record.cell, partial(_known, record.memory)))
    return list(found.values())


def _known(memory: MemoryFigures) -> MemoryFigures:
    return memory


def _others(bench: Bench) -> list[tuple[Cell, Callable[[], MemoryFigures]]]:
    size = min(BATCH, bench.sizes.batch)
    machine = machine_options(bench.device, None, None)
    cells = [
        expand(Sweep((f"benchmarks.networks:{name}",), (BLOCKS,), batch_size=size, precision=precision, **machine))[0]
        for name, precision in NETWORKS.items()
    ]
    return [(cell, partial(_memory, cell.configuration, bench)) for cell in cells]


def _memory(configuration: Configuration, bench: Bench) -> MemoryFigures:
    """The memory of a network, measured in a fresh process."""
    reply = run_pass(Request(configuration=configuration, what="memory", samples=5), max(bench.left(), 1.0))
    if reply.memory is None:
        raise RuntimeError(f"{reply.status}: {reply.message}")
    return reply.memory


def _predicted_cell(cell: Cell) -> Cell:
    """The cell of the prediction for the same device."""
    it = cell.configuration
    gpu = card_named(_card_name()) if it.device_kind() == "cuda" else None
    changes = {"device": f"{it.device_kind()}:predicted", "gpu": gpu}
    return cell.model_copy(update={"configuration": it.model_copy(update=changes)})


def _card_name() -> str:
    import torch

    return torch.cuda.get_device_name()


def card_named(name: str) -> str:
    """The known GPU of a card, by the name that the driver gives: the longest that is part of it, else the default."""
    words = name.lower().replace(" ", "").replace("-", "")
    fitting = [gpu for gpu in GPUS if gpu.replace("-", "") in words]
    return max(fitting, key=len, default=DEFAULT_GPU)


def _compared(prediction: "Future[Record]", memory: "Future[MemoryFigures]") -> Found:
    record = prediction.result()
    if record.memory is None:
        return {"error": f"the prediction ended in {record.status}: {record.message}"}
    return compared(record.memory, memory.result())


def compared(predicted: MemoryFigures, measured: MemoryFigures) -> Found:
    """Both values of each figure, with the prediction's certainty; an error where one is marked exact and is not."""
    found: Found = {}
    wrong = []
    for words, name in FIGURES.items():
        foretold, seen = getattr(predicted, name), getattr(measured, AS_REQUESTED.get(name, name), None)
        seen = getattr(measured, name) if seen is None else seen
        if foretold is None or seen is None:
            continue
        certainty = (predicted.certainty or {}).get(name, "")
        found[words] = {"predicted": foretold, "measured": seen, "certainty": certainty}
        if certainty == "exact" and foretold != seen:
            wrong.append(f"{words} {foretold} is not {seen}")
    return found | ({"error": f"marked exact, and is not: {', '.join(wrong)}"} if wrong else {})
