"""`capsbench reproduce table1 | table2 | table3 | table5`: the paper's accuracy tables, trained again."""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from capsbench.axes import parse_depths
from capsbench.cli.command import echo_rows, typed_command
from capsbench.cli.output import console_of, say, writing
from capsbench.cli.train import command as train_command
from capsbench.cli.train import training_settings
from capsbench.cli.training import TrainingProgress
from capsbench.data.datasets import load_parts
from capsbench.errors import ConfigurationError, Interrupted, TrainingError
from capsbench.figures.paper_accuracy import write_accuracy
from capsbench.paper.accuracy_tables import EPOCHS, PrintedRow, accuracy_table
from capsbench.stats.seeds import compared_with_paper
from capsbench.system.paths import anchored
from capsbench.terminal.tables import accuracies_table
from capsbench.training import Result, TrainingSettings, train
from capsbench.training.table_runs import Configure, Train, accuracy_of, line_of, networks_of, run_members, trials_of
from capsbench.words.accuracy import NOTE

TABLE_TITLES = {
    "table1": "Table 1: accuracy over blocks, MNIST and SVHN",
    "table2": "Table 2: accuracy over blocks, CIFAR-10 and CIFAR-100",
    "table3": "Table 3: optimizers and routing, CIFAR-10",
    "table5": "Table 5: hyperparameters, CIFAR-10, 2 blocks, Ranger21",
}
RUNS_OF_TABLE = "runs"


def reproduce_table(
    name: str, *, out: Path | None, resume: bool, seeds: int, epochs: int | None, scale: float, dry_run: bool, as_json: bool,
    data_dir: Path | None, download: bool, checkpoint_minutes: float, **given: Any,
) -> int:  # fmt: skip
    """Train the rest of a table, print it with the paper's, and return the exit status.

    Raises:
        ConfigurationError: no row is left by the options, a data set is not there, or there is nothing to resume.
        Interrupted: Ctrl-C; the same command resumes.
    """
    folder = out or anchored(Path("reports")) / name
    if resume and not (folder / RUNS_OF_TABLE).is_dir():
        raise ConfigurationError(f"`resume`: there is nothing to resume in {folder}", "leave `resume` out to begin")
    rows = _chosen(name, given)
    # The scale shortens data and epochs alike.
    long = max(1, round((epochs or EPOCHS[name]) * scale))
    trials = trials_of(rows, seeds, _configure(given, long, scale), folder / RUNS_OF_TABLE)
    console = console_of(err=True)
    members = networks_of(trials)
    left = [member for member in members if member.result() is None]
    done = len(members) - len(left)
    each = f"{long} epoch{'s' if long > 1 else ''} each"
    say(console, f"{len(left)} networks to train, {each}" + (f"; {done} are done" if done else ""))
    if dry_run:
        for member in left:
            say(console, f"  {member.folder}")
        return 0
    # All data sets must be there before anything is trained.
    for dataset in dict.fromkeys(row.dataset for row in rows):
        load_parts(dataset, data_dir, download=download)
    faults = 0
    try:
        for member, found in run_members(members, _trainer(console, data_dir, download, checkpoint_minutes)):
            if isinstance(found, TrainingError):
                faults += 1
                # Its hint names options of `capsbench train`, which a table does not have.
                say(console, f"{member.folder.name}: {found.what}\nit is left out; remove its folder to begin it again")
    except Interrupted as error:
        raise Interrupted(error.what, f"resume with: {typed_command()}") from None
    table = compared_with_paper(pd.DataFrame([line_of(trial, accuracy_of(trial, data_dir), EPOCHS[name]) for trial in trials]))
    if as_json:
        echo_rows(table)
    else:
        wide = console_of(width=None if sys.stdout.isatty() else 200)
        wide.print(accuracies_table(table, TABLE_TITLES[name]))
        say(console, NOTE)
    with writing(folder):
        for path in write_accuracy(table, folder, name, TABLE_TITLES[name]):
            say(console, f"wrote {path}")
    return 1 if faults else 0


def _chosen(name: str, given: dict[str, Any]) -> list[PrintedRow]:
    """The rows that the options select."""
    rows = accuracy_table(name)
    depths = parse_depths(given["depth"]) if given["depth"] else None
    wanted = {"model": given["models"], "blocks": depths} | {name: given[name] for name in ("dataset", "optimizer", "routing")}
    for field, values in wanted.items():
        if values is None:
            continue
        known = sorted({getattr(row, field) for row in rows})
        rows = [row for row in rows if getattr(row, field) in values]
        if not rows:
            asked, there = (", ".join(map(str, one)) for one in (values, known))
            raise ConfigurationError(f"`{field}` {asked} leaves no row of {name}", f"its rows have {there}")
    return rows


def _configure(given: dict[str, Any], epochs: int, scale: float) -> Configure:
    """A function that makes a row's settings, with the defaults of `capsbench train` for anything that the table leaves open."""
    usual = train_command.make_context("train", []).params

    def configure(row: PrintedRow, seed: int) -> TrainingSettings:
        names = ("dataset", "routing", "optimizer", "learning_rate", "capsules", "batch_size")
        own = {name: getattr(row, name) for name in names} | {"models": row.model, "depth": row.blocks}
        more = {name: given[name] for name in ("preprocess", "validation", "precision", "kernel", "device", "threads")}
        return training_settings({**usual, **more, **own, "seed": seed, "epochs": epochs, "scale": scale})

    return configure


def _trainer(console: Console, data_dir: Path | None, download: bool, checkpoint_minutes: float) -> Train:
    def run(settings: TrainingSettings, folder: Path, resume: bool) -> Result:
        say(console, f"{'resuming' if resume else 'training'} {folder.name}")
        with TrainingProgress(console, settings) as progress:
            return train(
                settings, folder, data_directory=data_dir, download=download, resume=resume,
                checkpoint_minutes=checkpoint_minutes, observers=[progress], command=typed_command(),
            )  # fmt: skip

    return run
