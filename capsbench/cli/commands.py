"""The commands, each of which parses, calls and prints; the package's modules are imported when they are called."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capsbench.cli.classify import classify
from capsbench.cli.command import Group, echo, echo_json
from capsbench.cli.figure import figure
from capsbench.cli.gate import check, compare, init_ci
from capsbench.cli.options import (
    DATA_DIR_OPTION,
    FOLDER,
    SWEEP_OPTIONS,
    NameList,
    cell_option,
    cell_options,
    choice,
    machine_of,
    refuse_for_own,
    refuse_given,
    seconds,
    together,
)
from capsbench.cli.report import report, show
from capsbench.cli.reproduce import reproduce
from capsbench.cli.train import train
from capsbench.errors import ConfigurationError, StoreError
from capsbench.options import MODELS, STACKED, SWEPT_OPTIONS

if TYPE_CHECKING:
    from capsbench.figures.panels import Per
    from capsbench.sweep.plan import Sweep

METRICS = ("retained", "peak", "reserved", "process")


def _version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if not asked or context.resilient_parsing:
        return
    from importlib import metadata

    try:
        version = metadata.version("capsbench")
    except Exception:  # a copy without an installation, or with half of one
        version = "unknown"
    echo(f"capsbench, version {version}")
    context.exit()


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version and exit.")
def cli() -> None:
    """Measure what depth costs: memory and time per block of capsule networks.

    \b
    Examples:
      capsbench run --models all --depth 1-8
      capsbench plot reports/
      capsbench slopes reports/ --json
      capsbench reproduce figure4 --batch-size 16
    """


for _command in (compare, check, init_ci, report, show, train, classify, figure, reproduce):
    cli.add_command(_command)


_model_options = together(
    cell_option("model", "models", type=NameList("--models", ("all", *MODELS), open_ended=True), default="all"),
    cell_option("blocks", "depth", type=str, default="1-8"),
)


@cli.command()
@_model_options
@cell_options(*SWEPT_OPTIONS)
@SWEEP_OPTIONS
def run(**given: Any) -> int:
    """Measure memory and time over depth, fit the slopes, draw figures 3 and 4.

    Options that name a choice take a comma list, which multiplies the sweep.

    \b
    Examples:
      capsbench run --models all --depth 1-8
      capsbench run --models rescapsnet,mocapsnet --kernel published,auto --batch-size 16
      capsbench run --models mocapsnet --front plain,chunked --optimizer-step after,backward
      capsbench run --models my_package.models:make_net --depth 1,2,4
      capsbench run --models all --device cuda:predicted --gpu a100
      capsbench run --models all --out reports/mine --resume
    """
    from capsbench.cli.sweeps import plan_of, sweep
    from capsbench.sweep.plan import expand

    return sweep(plan_of(expand(sweep_of(given)), given), **given)


@cli.command()
@_model_options
@cell_options(*(name for name in SWEPT_OPTIONS if name not in ("device", "gpu", "threads", "capacity")))
@cell_option("gpu", help="GPU to predict for (h100); 'capsbench list' has them.")
@cell_option("device", type=click.Choice(["cuda", "cpu"]), default="cuda", help="Kind of device to predict for.")
@cell_option("capacity", help="Memory of the device, such as 24GiB; by default the GPU's.")
@click.option(
    "--fit",
    type=click.Choice(["depth", "batch"]),
    is_flag=False,
    flag_value="depth",
    help="The deepest network, or the largest batch, that fits.",
)
@click.option("--out", type=FOLDER, help="Keep the records in this report folder, and draw them.")
@click.option("--resume", is_flag=True, help="Add to an existing report: predicted lines are drawn dashed beside measured ones.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the records, or what fits.")
def predict(gpu: str | None, device: str, fit: str | None, out: Path | None, resume: bool, as_json: bool, **given: Any) -> int:
    """Predict the memory of a step without its device, traced on shapes and replayed through a model of CUDA's allocator.

    Bytes of tensors are exact, peaks and reserved memory are modelled, and the memory of CUDA's context is a guess.

    \b
    Examples:
      capsbench predict --models all --depth 1-8 --gpu h100
      capsbench predict --models mocapsnet --depth 8 --gpu rtx3090 --fit batch
      capsbench predict --models rescapsnet,mocapsnet --capacity 24GiB --fit depth
      capsbench predict --models my_package.models:make_net --depth 1,2,4 --device cpu
    """
    from capsbench.cli.predict import check_target, keep_predictions, print_fits, print_predictions
    from capsbench.sweep.plan import expand

    target = check_target(device, gpu, fit=fit, kept=out is not None, resume=resume, capacity=given["capacity"])
    if fit is not None:
        refuse_given("depth" if fit == "depth" else "batch_size", f"--fit {fit}", "it is what is searched for")
    cells = expand(sweep_of(given | {"device": f"{device}:predicted", "gpu": target, "threads": None, "repeats": 1}))
    if fit is not None:
        return print_fits(cells, fit, as_json=as_json)  # type: ignore[arg-type]
    if out is not None:
        return keep_predictions(cells, out, resume=resume, as_json=as_json)
    return print_predictions(cells, as_json=as_json)


@cli.command()
@click.option(
    "--model",
    "--models",
    "models",
    type=NameList("--model", tuple(MODELS), open_ended=True),
    default="mocapsnet",
    show_default=True,
    help="The model, or package.module:name of your own.",
)
@cell_option("blocks", "depth", type=str, default="1", help="Blocks.")
@cell_options(*SWEPT_OPTIONS)
@click.option("--timeout", type=seconds("--timeout"), default=1800, show_default=True, help="Seconds for the process.")
@DATA_DIR_OPTION
@click.option("--out", type=FOLDER, help="Folder to write to; by default reports/timeline- and the time.")
@click.option("--json", "as_json", is_flag=True, help="Print the timeline as JSON on standard output.")
def timeline(**given: Any) -> int:
    """Look inside one training step of one network: memory alive and its purpose, the peak's operator, modules that retain.

    It writes timeline.json and draws it, and on CUDA also writes snapshot.pickle, for pytorch.org/memory_viz.

    \b
    Examples:
      capsbench timeline --model mocapsnet --depth 4
      capsbench timeline --model rescapsnet --depth 8 --kernel published --device cuda:predicted --gpu a100
      capsbench timeline --model my_package.models:make_net --depth 2 --out reports/inside
    """
    from capsbench.cli.timeline import the_cell, write_timeline

    return write_timeline(the_cell(sweep_of(given | {"repeats": 1})), **given)


@cli.command()
@click.argument("reports", type=FOLDER)
@choice("--metric", METRICS, None, "Memory to draw; by default retained, and peak beside it in figure 4.")
@click.option("--per", type=click.Choice(["step", "epoch"]), default="step", show_default=True, help="Seconds per step or epoch.")
@click.option("--paper", "with_paper", is_flag=True, help="Draw the paper's table 4 where comparable (process, reserved).")
def plot(reports: Path, metric: tuple[str, ...] | None, per: "Per", with_paper: bool) -> None:
    """Draw figures 3 and 4 of every report at or below a folder again from its records, and the report's page.

    A report of `reproduce` is drawn as `reproduce` draws it, unless an option asks for something else.

    \b
    Examples:
      capsbench plot reports/
      capsbench plot reports/mine --metric reserved,process --paper
    """
    from capsbench.cli.output import warn_of_damages
    from capsbench.files import nothing_to_read
    from capsbench.paper import COMPARABLE_METRICS
    from capsbench.report import reports_below
    from capsbench.words.labels import on_gpu

    if with_paper and not set(metric or ()) & set(COMPARABLE_METRICS):
        echo(f"nothing here compares with table 4: add --metric {' or '.join(COMPARABLE_METRICS)}", err=True)
    comparable = False
    empty: list[StoreError] = []
    for one in reports_below(reports):
        warn_of_damages([one])
        if not one.records:
            # The other reports are still drawn.
            empty.append(nothing_to_read(one.folder))
            continue
        for path in one.write(memory=metric, per=per, with_paper=with_paper):
            echo(path)
        comparable = comparable or bool(on_gpu(one.frame).any())
    for other in empty[1:]:
        echo(f"error: {other.what}", err=True)
    if empty:
        raise empty[0]
    if with_paper and not comparable:
        echo("table 4 is not drawn: it stands beside records of a GPU, and there are none", err=True)


@cli.command()
@click.argument("reports", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: bytes and seconds per block.")
def slopes(reports: Path, as_json: bool) -> None:
    """Print the slope of every line: the cost of a block, with its 95 % interval and the ratio to ResCapsNet.

    \b
    Examples:
      capsbench slopes reports/
      capsbench slopes reports/mine --json
    """
    from capsbench.cli.output import load_records, print_slopes
    from capsbench.stats.slopes import slopes as slopes_of

    frame = load_records(reports)
    print_slopes(frame, slopes_of(frame), as_json=as_json)


@cli.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@DATA_DIR_OPTION
def list_(as_json: bool, data_dir: Path | None) -> None:
    """List models, data sets (and whether they are on disk), and every name that an option takes."""
    from capsbench.cli.offers import offers

    found = offers(data_dir)
    if as_json:
        echo_json(found)
        return
    for head, entries in found.items():
        echo(head)
        for name, text in entries.items():
            echo(f"  {name:<16} {text}")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as in environment.json.")
def env(as_json: bool) -> None:
    """Describe this machine as reports do."""
    from capsbench.measure.environment import describe

    found = describe()
    if as_json:
        echo_json(found)
        return
    for name, value in found.items():
        parts = [f"{key} {item}" for key, item in value.items()] if isinstance(value, dict) else value
        text = ", ".join(parts) if isinstance(parts, list) else parts
        echo(f"{name:<10} {text}")


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print shell completion; for bash: eval "$(capsbench completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise ConfigurationError(f"shell '{shell}' is not known", "choose bash, zsh or fish")
    echo(kind(cli, {}, "capsbench", "_CAPSBENCH_COMPLETE").source())


def sweep_of(given: dict[str, Any]) -> "Sweep":
    """The sweep that a command's options ask for."""
    from capsbench.sweep.plan import Sweep, parse_depths

    refuse_for_own(given["models"])
    models = dict.fromkeys(name for asked in given["models"] for name in (STACKED if asked == "all" else (asked,)))
    options = {name: given[name] for name in SWEPT_OPTIONS}
    return Sweep(tuple(models), parse_depths(given["depth"]), **(options | machine_of(given)))
