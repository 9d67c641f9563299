"""The work of `capsbench predict` on its cells."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from capsbench.cli.command import echo, echo_json, typed_command
from capsbench.cli.console import console
from capsbench.cli.output import say
from capsbench.cli.sweeps import sweep
from capsbench.devices import DEFAULT_GPU, gpu_of
from capsbench.errors import CapsbenchError, ConfigurationError
from capsbench.prediction.apart import call_for
from capsbench.prediction.fit import What, largest_fit
from capsbench.records import Cell, Configuration, Plan, Record
from capsbench.report import Report
from capsbench.sweep.runner import Observer
from capsbench.sweep.verbs import traced
from capsbench.terminal.prediction import certainty_note, fit_text, predictions_table
from capsbench.terminal.progress import Progress


def check_target(device: str, gpu: str | None, *, fit: str | None, kept: bool, resume: bool, capacity: int | None) -> str | None:
    """The name of the GPU that a prediction is for; None for a CPU.

    Raises:
        ConfigurationError: options that do not go together, or an unknown GPU.
    """
    if resume and not kept:
        raise ConfigurationError("--resume needs a report to add to", "name it with --out")
    if fit is not None and kept:
        raise ConfigurationError(f"--fit {fit} makes no records to keep", "leave --out out")
    if device == "cpu":
        if gpu is not None:
            raise ConfigurationError(f"--gpu {gpu} does not go with --device cpu", "leave one of them out")
        if fit is not None and capacity is None:
            raise ConfigurationError(f"--fit {fit} on a CPU needs to know its memory", "give it with --capacity, such as 24GiB")
        return None
    found = gpu_of(gpu or DEFAULT_GPU)
    if capacity is not None and capacity <= found.context_bytes:
        raise ConfigurationError(
            f"--capacity {capacity} bytes is less than CUDA's own context takes on a {found.name} (about {found.context_bytes})",
            "give the memory of the whole device, such as 24GiB",
        )
    return found.name


def print_predictions(cells: list[Cell], *, as_json: bool) -> int:
    """Trace every cell, print its figures, and return the exit status."""
    records = traced(_plan(cells), _PredictionScreen()).records
    if as_json:
        echo_json([record.model_dump(mode="json", exclude_none=True) for record in records])
    elif any(record.status != "error" for record in records):
        out = console()
        out.print(predictions_table(records))
        say(out, certainty_note(records))
    return _complain(records)


def keep_predictions(cells: list[Cell], out: Path, *, resume: bool, as_json: bool) -> int:
    """Trace every cell into a report, as `run` does with a predicted device."""
    return sweep(_plan(cells), out=out, resume=resume, as_json=as_json, only_these=True)


def print_fits(cells: list[Cell], what: What, *, as_json: bool) -> int:
    """Print the deepest network or the largest batch of each line (a batch for each depth), and return the exit status."""
    found = []
    asked: dict[str, Configuration] = {}
    for cell in cells:
        # If depth is searched for, the depths of a line are one question.
        asked.setdefault(cell.configuration.line() if what == "depth" else cell.key(), cell.configuration)
    failed: dict[str, CapsbenchError] = {}
    for configuration in asked.values():
        try:
            fit = call_for(configuration.model, largest_fit, configuration, what)
        except CapsbenchError as error:  # one model's fault does not affect the others
            failed.setdefault(configuration.model, error)
            continue
        found.append({"model": configuration.model, **configuration.model_dump(exclude_none=True), **dataclasses.asdict(fit)})
        if not as_json:
            say(console(), fit_text(configuration, **dataclasses.asdict(fit)))
    if as_json:
        echo_json(found)
    for fault in failed.values():
        echo(f"error: {fault}", err=True)
    return 1 if failed else 0


def _plan(cells: list[Cell]) -> Plan:
    return Plan(command=typed_command(), cells=cells, passes=["memory"], budget_seconds=0)


class _PredictionScreen:
    """A watcher that shows predictions on the terminal."""

    def told(self, text: str) -> None:
        """Print a text that a person should know."""
        say(console(err=True), text)

    @contextmanager
    def measuring(self, plan: Plan, report: Report, left: Sequence[Cell]) -> Iterator[Sequence[Observer]]:
        """Show the progress."""
        with Progress(console(err=True), len(left), lambda: 1.5 * (len(left) - len(report.records))) as progress:
            yield (progress,)


def _complain(records: Iterable[Record]) -> int:
    """Report once for each model why it could not be traced, and return the exit status."""
    failed = {record.cell.configuration.model: record.message for record in reversed(list(records)) if record.status == "error"}
    for message in failed.values():
        what, _, hint = (message or "").partition(" - ")
        echo(f"error: {what}\n{hint}", err=True)
    return 1 if failed else 0
