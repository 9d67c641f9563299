"""What `run` and `reproduce` do once they know their cells: announce, measure, conclude."""

import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from capsbench.cli.console import console as console_of
from capsbench.cli.output import draw, load_records, print_slopes, say, write_index, writing
from capsbench.errors import Interrupted, StoreError
from capsbench.measure.environment import describe, key_of
from capsbench.records import BOTH, Cell, Pass, Plan
from capsbench.store import Store, told_damages
from capsbench.sweep.estimate import Estimate
from capsbench.sweep.local import local_launcher
from capsbench.sweep.runner import remaining, run_sweep
from capsbench.sweep.session import begin, changed_sources, check_data, choose_folder
from capsbench.terminal.progress import Progress
from capsbench.terminal.table4 import table4, table4_slopes
from capsbench.words.units import duration_text
from capsbench.workload import without_effect


def run_cells(
    cells: list[Cell],
    *,
    out: Path | None,
    resume: bool,
    dry_run: bool,
    as_json: bool,
    data_dir: Path | None,
    samples: int,
    timeout: float,
    time_budget: float,
    strict: bool,
    wait: float | None = None,
    only_these: bool = False,
    experiment: str | None = None,
    passes: Sequence[Pass] = BOTH,
    **_: Any,
) -> int:
    """Measures cells into a report, draws it, and returns the exit status of the sweep.

    Args:
        cells: what to measure.
        out: report folder, or None for one named after the time.
        resume: go on with a report that was cut off.
        dry_run: announce and stop.
        as_json: slopes as JSON.
        data_dir: where real data sets lie.
        samples: fewest samples of each time.
        timeout: seconds per process.
        time_budget: seconds of sampling, beyond the fewest samples.
        strict: measure nothing beside other processes on a CUDA device.
        wait: seconds that a cell waits for other sweeps on its device; None: as long as it takes.
        only_these: leave alone what else the report's plan has, and is not yet measured.
        experiment: the paper's name of what is reproduced, if any.
        passes: what to measure.

    Raises:
        Interrupted: Ctrl-C, after what was measured has been drawn.
    """
    console = console_of(err=True)
    command = shlex.join(["capsbench", *sys.argv[1:]])
    plan = Plan(
        command=command, cells=cells, samples=samples, timeout_seconds=timeout, passes=list(passes), experiment=experiment,
        budget_seconds=time_budget, strict=strict,
    )  # fmt: skip
    words = check_data(cells, data_dir)
    folder = choose_folder(plan, out, resume=resume, now=datetime.now(), make=not dry_run)
    store = Store(folder)
    if resume and not folder.exists():
        say(console, f"there is nothing to go on with in {folder}: this sweep begins there")
    if dry_run:
        _announce(console, plan, store, words)
        return 0
    with store.locked(lambda text: say(console, text)):
        for text in changed_sources(store, plan) if resume else ():
            say(console, text)
        plan = begin(store, plan, resume=resume)
        interrupted = _measure(console, _only(plan, cells) if only_these else plan, store, words, data_dir, wait)
        # The command that was typed, with what it needs to find this report again.
        again = [*sys.argv[1:], *([] if out else ["--out", str(folder)]), *([] if resume else ["--resume"])]
        go_on = Interrupted("interrupted; all that was measured is kept", f"go on with: {shlex.join(['capsbench', *again])}")
        try:
            status = _conclude(console, store, plan, as_json=as_json)
        except KeyboardInterrupt:
            if interrupted:
                raise go_on from None
            raise Interrupted("interrupted while drawing; all cells are kept", f"draw with: capsbench plot {folder}") from None
    if interrupted:
        raise go_on
    return status


def _only(plan: Plan, cells: list[Cell]) -> Plan:
    return plan.model_copy(update={"cells": cells})


def _announce(console: Console, plan: Plan, store: Store, words: list[str]) -> Estimate:
    """Says what is about to be done, and returns the estimate that it gave."""
    left = remaining(plan, store)
    estimate = Estimate(plan, left)
    asked = [cell.configuration for cell in plan.cells]
    devices = ", ".join(dict.fromkeys(one.device + (f" ({one.gpu})" if one.gpu else "") for one in asked))
    done = len(plan.cells) - len(left)
    cells = f"{len(left)} cell{'' if len(left) == 1 else 's'} to measure"
    say(console, cells + (f", {done} already measured" if done else "") + f" on {devices}")
    for text in words:
        say(console, f"data {text}")
    for text in dict.fromkeys(text for one in asked for text in without_effect(one)):
        say(console, f"note: {text}")
    say(console, f"about {duration_text(estimate.seconds_left())}; records go to {store.path}")
    return estimate


def _measure(console: Console, plan: Plan, store: Store, words: list[str], data_dir: Path | None, wait: float | None) -> bool:
    """Runs what is left of a plan under a progress display; whether it was interrupted."""
    for text in told_damages(store.read().damages):
        say(console, f"warning: {text}; what is lost is measured again")
    environment = describe()
    store.add_environment(key_of(environment), environment)
    estimate = _announce(console, plan, store, words)
    launch = local_launcher(
        plan, key_of(environment), data_dir, lambda text: say(console, text), folder=store.folder, patience=wait
    )
    try:
        with Progress(console, estimate.cells_left(), estimate.seconds_left) as progress:
            run_sweep(plan, store, launch, (estimate, progress))
    except KeyboardInterrupt:
        say(console, "interrupted; what was measured is drawn, which a second Ctrl-C leaves out")
        return True
    return False


def _conclude(console: Console, store: Store, plan: Plan, *, as_json: bool) -> int:
    """Draws figures, prints slopes, tells of faults; returns the exit status."""
    if not store.read().records:
        return 0
    frame = load_records(store.folder)
    try:
        # First: they are kept, whatever becomes of what is printed.
        with writing(store.folder):
            paths = [*draw(frame, store.folder, plan), write_index(store.folder)]
    except StoreError:
        print_slopes(frame, as_json=as_json)
        raise
    print_slopes(frame, as_json=as_json)
    if plan.experiment == "table4" and not as_json:
        console.print(table4_slopes(table4(frame)))
        say(console, "the paper's values are nvidia-smi readings at batch 128: context, cache and fragmentation included")
    for path in paths:
        say(console, f"wrote {path}")
    faults = frame[frame["status"].isin(["error", "timeout"])]
    for _, row in faults.iterrows():
        say(console, f"{row['status']}: {row['model']} at {row['blocks']} blocks: {row['message']}")
    return 1 if len(faults) else 0
