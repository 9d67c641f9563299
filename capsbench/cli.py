"""The command line: parses, calls, prints. Everything else is in the package."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capsbench.data.catalog import SPECS
from capsbench.errors import CapsbenchError, ConfigurationError, StoreError
from capsbench.options import FOLDER, Names, Parsed, parse_bytes, whole

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from capsbench.records import Cell, Plan
    from capsbench.report.figures import Per
    from capsbench.store import Store
    from capsbench.sweep.estimate import Estimate

INTERRUPTED = 130
MODELS = ("capsnet", "rescapsnet", "mocapsnet")
METRICS = ("retained", "peak", "reserved", "process")
"""Written out, so that --help and completion need not import torch; a test holds them to the package's own."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="capsbench")
def cli() -> None:
    """Measure what depth costs: memory and time per block of capsule networks.

    \b
    Examples:
      capsbench run --models all --depth 1-8
      capsbench plot reports/
      capsbench slopes reports/ --json
      capsbench reproduce figure4 --batch-size 16
    """


def _options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def apply(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


_sweep_options = _options(
    click.option("--batch-size", type=whole("--batch-size", 1), default=128, show_default=True, help="Images per step."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option("--threads", type=whole("--threads", 1), help="Threads of a CPU run; by default torch's own number."),
    click.option("--repeats", type=whole("--repeats", 1), default=1, show_default=True, help="Replicates of every cell."),
    click.option("--samples", type=whole("--samples", 5), default=5, show_default=True, help="Fewest samples of each time."),
    click.option(
        "--timeout", type=click.FloatRange(min=0, min_open=True), default=1800, show_default=True, help="Seconds per process."
    ),
    click.option("--capacity", type=Parsed("size", parse_bytes), help="Limit on the device's memory, such as 24GiB."),
    click.option("--data-dir", type=FOLDER, help="Where real data sets lie; by default $CAPSBENCH_DATA."),
    click.option("--out", type=FOLDER, help="Report folder; by default reports/ and the time."),
    click.option("--resume", is_flag=True, help="Go on with a report that was cut off."),
    click.option("--dry-run", is_flag=True, help="Show what would be done, and stop."),
    click.option("--json", "as_json", is_flag=True, help="Print the slopes as JSON on standard output."),
)


def _choice(option: str, known: tuple[str, ...], default: str | None, text: str, **more: Any) -> Callable[[Any], Any]:
    names = Names(option, known, **more)
    return click.option(option, type=names, default=default, show_default=bool(default), help=text)


@cli.command()
@_choice("--models", ("all", *MODELS), "all", "Models, or package.module:name of your own.", open_ended=True)
@click.option("--depth", default="1-8", show_default=True, help="Blocks: 3, 1-8, 1,2,4 or 1-4,8.")
@_choice("--dataset", tuple(SPECS), "sample", "Data sets; the packaged sample stands in for one that is not on disk.")
@_choice("--kernel", ("auto", "reference", "published", "recompute"), "auto", "How routing is computed.")
@_choice("--routing", ("rba",), "rba", "Routing algorithms.")
@click.option("--iterations", type=whole("--iterations", 1), default=3, show_default=True, help="Rounds of routing.")
@click.option("--capsules", type=whole("--capsules", 1), default=32, show_default=True, help="Capsules per hidden layer.")
@_choice("--memory", ("stored", "checkpoint", "offload", "reversible"), None, "Memory strategies; by default each model's own.")
@_choice("--inverse", ("auto", "float"), "auto", "How a reversible stack inverts.")
@_choice("--rule", ("paper", "published"), "paper", "MoCapsNet's rule.")
@click.option("--gamma", type=float, default=0.9, show_default=True, help="MoCapsNet's momentum term.")
@_choice("--precision", ("fp32", "bf16", "fp16"), "fp32", "Autocast to.")
@_sweep_options
def run(
    models: tuple[str, ...],
    depth: str,
    dataset: tuple[str, ...],
    kernel: tuple[str, ...],
    routing: tuple[str, ...],
    iterations: int,
    capsules: int,
    memory: tuple[str, ...] | None,
    inverse: tuple[str, ...],
    rule: tuple[str, ...],
    gamma: float,
    precision: tuple[str, ...],
    **common: Any,
) -> None:
    """Measure memory and time over depth, fit the slopes, draw figures 3 and 4.

    Options that name a choice take a comma list, which multiplies the sweep.

    \b
    Examples:
      capsbench run --models all --depth 1-8
      capsbench run --models rescapsnet,mocapsnet --kernel published,auto --batch-size 16
      capsbench run --models my_package.models:make_net --depth 1,2,4
      capsbench run --models all --out reports/mine --resume
    """
    from capsbench.sweep.plan import Sweep, expand, parse_depths

    names = tuple(dict.fromkeys(name for given in models for name in (MODELS if given == "all" else (given,))))
    sweep = Sweep(
        models=names,
        depths=parse_depths(depth),
        datasets=dataset,
        kernels=kernel,
        routings=routing,
        iterations=iterations,
        capsules=capsules,
        memories=memory or (),
        inverses=inverse,
        rules=rule,
        gamma=gamma,
        precisions=precision,
        **_machine(common),
    )
    _run_cells(expand(sweep), **common)


@cli.command()
@click.argument("what", type=click.Choice(["figure3", "figure4", "table4"]))
@click.option("--depth", default="1-8", show_default=True, help="Blocks.")
@_choice("--dataset", tuple(SPECS), None, "Data sets; by default those of the figure.")
@_sweep_options
def reproduce(what: str, depth: str, dataset: tuple[str, ...] | None, **common: Any) -> None:
    """The paper's runs by name: kernel and rule `published` at the paper's sizes, and `auto` beside them.

    On a CPU at full size this takes hours; the estimate says how many, and --batch-size, --depth and --dataset shorten it.

    \b
    Examples:
      capsbench reproduce figure4
      capsbench reproduce table4 --dataset mnist --depth 1,8 --batch-size 16
    """
    from capsbench.sweep.plan import parse_depths
    from capsbench.sweep.reproduce import EXPERIMENTS, cells_of

    experiment = EXPERIMENTS[what]
    cells = cells_of(experiment, depths=parse_depths(depth), datasets=dataset, **_machine(common))
    _run_cells(cells, passes=experiment.passes, only=experiment.figures, with_paper=True, **common)


@cli.command()
@click.argument("reports", type=FOLDER)
@_choice("--metric", METRICS, None, "Memory to draw; by default retained, and peak beside it in figure 4.")
@click.option("--per", type=click.Choice(["step", "epoch"]), default="step", show_default=True, help="Seconds per step or epoch.")
@click.option("--paper", "with_paper", is_flag=True, help="Draw the paper's table 4 where comparable (process, reserved).")
def plot(reports: Path, metric: tuple[str, ...] | None, per: "Per", with_paper: bool) -> None:
    """Draw figures 3 and 4 of every report at or below a folder again from its records.

    \b
    Examples:
      capsbench plot reports/
      capsbench plot reports/mine --metric reserved,process --paper
    """
    from capsbench.report.write import write_report
    from capsbench.store import report_folders

    for folder in report_folders(reports):
        with _writing(folder):
            for path in write_report(_load(folder), folder, memory=metric, per=per, with_paper=with_paper):
                click.echo(path)


@cli.command()
@click.argument("reports", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: bytes and seconds per block.")
def slopes(reports: Path, as_json: bool) -> None:
    """The slope of every line: what a block costs, with 95 % intervals and the ratio to ResCapsNet.

    \b
    Examples:
      capsbench slopes reports/
      capsbench slopes reports/mine --json
    """
    _print_slopes(_load(reports), as_json=as_json)


@cli.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--data-dir", type=FOLDER, help="Where real data sets lie; by default $CAPSBENCH_DATA.")
def list_(as_json: bool, data_dir: Path | None) -> None:
    """Models, data sets and whether they are on disk, kernels, strategies, metrics."""
    from capsbench.sweep.offers import offers

    found = offers(data_dir)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for head, entries in found.items():
        click.echo(head)
        for name, text in entries.items():
            click.echo(f"  {name:<16} {text}")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as in environment.json.")
def env(as_json: bool) -> None:
    """This machine as reports will describe it."""
    from capsbench.measure.environment import describe

    found = describe()
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        text = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else value
        click.echo(f"{name:<10} {text}")


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print shell completion; for bash: eval "$(capsbench completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise ConfigurationError(f"shell '{shell}' is not known", "choose bash, zsh or fish")
    click.echo(kind(cli, {}, "capsbench", "_CAPSBENCH_COMPLETE").source())


def main() -> None:
    """Entry point: errors become two lines on standard error and an exit status."""
    try:
        status = cli.main(standalone_mode=False)
    except CapsbenchError as error:
        status = _complain(error.what, error.hint, error.exit_status)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "capsbench"
        status = _complain(error.format_message(), f"'{where} --help' shows what it takes", 2)
    except click.ClickException as error:
        status = _complain(error.format_message(), "", error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        status = _complain("interrupted", "", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has seen enough; keep the interpreter from complaining at its own flush.
        sys.stderr.close()
        status = 0
    sys.exit(status if isinstance(status, int) else 0)


def _complain(what: str, hint: str, status: int) -> int:
    click.echo(f"error: {what}" + (f"\n{hint}" if hint else ""), err=True)
    return status


def _run_cells(
    cells: "list[Cell]",
    *,
    out: Path | None,
    resume: bool,
    dry_run: bool,
    as_json: bool,
    data_dir: Path | None,
    samples: int,
    timeout: float,
    passes: tuple[str, ...] = ("time", "memory"),
    only: tuple[str, ...] = ("figure3", "figure4"),
    with_paper: bool = False,
    **_: Any,
) -> None:
    """Measures cells into a report and draws it; ends the program with the exit status of the sweep."""
    from rich.console import Console

    from capsbench.records import Plan
    from capsbench.store import Store
    from capsbench.sweep.session import begin, check_data, choose_folder

    console = Console(stderr=True, highlight=False)
    command = shlex.join(["capsbench", *sys.argv[1:]])
    plan = Plan(command=command, cells=cells, samples=samples, timeout_seconds=timeout, passes=passes)  # type: ignore[arg-type]
    words = check_data(cells, data_dir)
    folder = choose_folder(plan, out, resume=resume, now=datetime.now())
    store = Store(folder)
    if dry_run:
        _announce(console, plan, store, words)
        return
    with store.locked():
        plan = begin(store, plan, resume=resume)
        interrupted = _measure(console, plan, store, words, data_dir)
        status = _conclude(console, store, as_json=as_json, only=only, with_paper=with_paper)
    if interrupted:
        # The command that was typed, with what it needs to find this report again.
        again = [*sys.argv[1:], *([] if out else ["--out", str(folder)]), *([] if resume else ["--resume"])]
        _say(console, f"interrupted; all that was measured is kept. Go on with: {shlex.join(['capsbench', *again])}")
        status = INTERRUPTED
    sys.exit(status)


def _announce(console: "Console", plan: "Plan", store: "Store", words: list[str]) -> "Estimate":
    """Says what is about to be done, and returns the estimate that it gave."""
    from capsbench.report.units import duration_text
    from capsbench.sweep.estimate import Estimate
    from capsbench.sweep.runner import remaining

    left = remaining(plan, store)
    estimate = Estimate(plan, left)
    devices = ", ".join(dict.fromkeys(cell.configuration.device for cell in plan.cells))
    done = len(plan.cells) - len(left)
    _say(console, f"{len(left)} cells to measure" + (f", {done} already measured" if done else "") + f" on {devices}")
    for text in words:
        _say(console, f"data {text}")
    _say(console, f"about {duration_text(estimate.seconds_left())}; records go to {store.path}")
    return estimate


def _measure(console: "Console", plan: "Plan", store: "Store", words: list[str], data_dir: Path | None) -> bool:
    """Runs what is left of a plan under a progress display; whether it was interrupted."""
    from capsbench.measure.environment import describe, key_of
    from capsbench.report.progress import Progress
    from capsbench.sweep.local import local_launcher
    from capsbench.sweep.runner import remaining, run_sweep

    for damage in store.read().damages:
        _say(console, f"warning: {damage}; its cell is measured again")
    environment = describe()
    store.add_environment(key_of(environment), environment)
    estimate = _announce(console, plan, store, words)
    try:
        with Progress(console, len(remaining(plan, store)), estimate.seconds_left) as progress:
            run_sweep(plan, store, local_launcher(plan, key_of(environment), data_dir), (estimate, progress))
    except KeyboardInterrupt:
        return True
    return False


def _conclude(console: "Console", store: "Store", *, as_json: bool, only: tuple[str, ...], with_paper: bool) -> int:
    """Prints slopes, draws figures, tells of faults; returns the exit status."""
    from capsbench.report.write import write_report

    if not store.read().records:
        return 0
    frame = _load(store.folder)
    _print_slopes(frame, as_json=as_json)
    with _writing(store.folder):
        for path in write_report(frame, store.folder, only=only, with_paper=with_paper):
            _say(console, f"wrote {path}")
    faults = frame[frame["status"].isin(["error", "timeout"])]
    for _, row in faults.iterrows():
        _say(console, f"{row['status']}: {row['model']} at {row['blocks']} blocks: {row['message']}")
    return 1 if len(faults) else 0


def _machine(common: dict[str, Any]) -> dict[str, Any]:
    """The fields of a sweep that say where and how often."""
    from capsbench.measure.environment import default_threads
    from capsbench.sweep.session import resolve_device

    return {
        "device": resolve_device(common["device"]),
        "threads": common["threads"] or default_threads(),
        "batch_size": common["batch_size"],
        "capacity": common["capacity"],
        "repeats": common["repeats"],
    }


def _load(folder: Path) -> "pd.DataFrame":
    """Records of a folder; damaged lines are told on standard error."""
    import warnings

    from capsbench.store import load

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = load(folder)
    for warning in caught:
        click.echo(f"warning: {warning.message}", err=True)
    return frame


def _print_slopes(frame: "pd.DataFrame", *, as_json: bool) -> None:
    """The slopes on standard output, as a table or as JSON."""
    from rich.console import Console

    from capsbench.analysis.slopes import slopes as slopes_of
    from capsbench.report.tables import peak_note, slopes_table

    table = slopes_of(frame)
    if as_json:
        click.echo(table.to_json(orient="records", indent=1))
        return
    console = Console(highlight=False)
    if table.empty:
        _say(console, "no slopes: a line needs two measured depths")
        return
    console.print(slopes_table(table))
    note = peak_note(table, frame)
    if note:
        _say(console, note)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns a failure to write into an error that names the folder."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{error.filename or folder} cannot be written: {error.strerror}",
            "make room or check permissions, then 'capsbench plot'",
        ) from None


def _say(console: "Console", text: str) -> None:
    """A line as it is: not wrapped, not coloured, not read as markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
