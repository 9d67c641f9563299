"""`capsbench reproduce`: the figures and tables of the paper by their names."""

from functools import partial
from typing import Any, get_args

import click

from capsbench.catalog import MODELS
from capsbench.cli.command import Group
from capsbench.cli.flags import (
    CHECKPOINT_OPTION,
    DATA_DIR_OPTION,
    DEVICE_OPTION,
    DOWNLOAD_OPTION,
    MACHINE_OPTIONS,
    SECTIONS,
    SWEEP_OPTIONS,
    cell_option,
    cell_options,
    machine_of,
    scale_option,
    together,
    validation_option,
)
from capsbench.cli.typed import require_command
from capsbench.cli.types import FOLDER, NameList, OneOf, whole_number
from capsbench.training.settings import Preprocessing, TrainingOptimizer

SWEPT = {
    "figure3": "Measure memory and time over depth, on three data sets.",
    "figure4": "Measure the slopes of memory and time, on CIFAR-10.",
    "table4": "Measure memory at every depth, and its slopes.",
}
TRAINED = {
    "table1": ("Train over blocks on MNIST and SVHN.", "Each network trains for 30 epochs."),
    "table2": ("Train over blocks on CIFAR-10 and CIFAR-100.", "Each network trains for 60 epochs."),
    "table3": (
        "Train with other optimizers and routing on CIFAR-10.",
        "Each network trains for 60 epochs. CapsNet with two convolutions is among them, alone and as an ensemble of four.",
    ),
    "table5": (
        "Train with other rates, capsules and batches on CIFAR-10.",
        "Each network has 2 blocks, and trains for 100 epochs with Ranger21.",
    ),
}


@click.group("reproduce", cls=Group, invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Reproduce the paper's figures and tables.

    The paper's values are printed and drawn next to yours.

    \b
    Examples:
      capsbench reproduce figure4
      capsbench reproduce table4 --dataset mnist --depth 1,8 --batch-size 16
      capsbench reproduce table1 --dataset mnist --download
    """
    require_command(context)


_swept_options = together(
    cell_option("blocks", "depth", type=str, default="1-8"),
    cell_option("dataset", default=None, help="Data sets; by default those of the figure or table."),
    cell_options(*MACHINE_OPTIONS),
    SWEEP_OPTIONS,
)

_trained_options = together(
    cell_option("dataset", default=None, help="Data sets of the table; by default all."),
    click.option("--models", type=NameList(tuple(MODELS)), help="Models of the table; by default all."),
    cell_option("blocks", "depth", type=str, help="Depths of the table, in blocks; by default all."),
    click.option("--optimizer", type=NameList(get_args(TrainingOptimizer)), help="Optimizers of the table; by default all."),
    cell_option("routing", default=None, help="Routing algorithms of the table; by default all."),
    click.option("--seeds", type=whole_number(1), default=3, help="Runs of each row."),
    click.option("--epochs", type=whole_number(1), help="Passes over the training set; by default the paper's."),
    scale_option("The fraction of epochs and training images that is used; every row says so."),
    validation_option("Images held out to choose the best epoch; 0 trains on everything, as the paper did."),
    click.option(
        "--preprocess",
        type=OneOf(get_args(Preprocessing)),
        default="paper",
        help="Preparation of images: as in the paper, or in its code.",
    ),
    cell_option("precision", single=True),
    cell_option("kernel", single=True),
    DEVICE_OPTION,
    cell_option("threads"),
    DATA_DIR_OPTION,
    DOWNLOAD_OPTION,
    click.option(
        "--out", type=FOLDER, help="Folder of the table and its runs; by default one in reports/ with the table's name."
    ),
    CHECKPOINT_OPTION,
    click.option("--resume", is_flag=True, help="Continue a table that was begun; an error if none was."),
    click.option("--dry-run", is_flag=True, help="Show the networks left to train, and stop."),
    click.option("--json", "as_json", is_flag=True, help="Print the table as JSON on standard output."),
)


def _sweep(what: str, depth: str, dataset: tuple[str, ...] | None, **given: Any) -> int:
    from capsbench.axes import parse_depths
    from capsbench.cli.sweeps import sweep_as_typed
    from capsbench.sweep.experiments import EXPERIMENTS, cells_of

    experiment = EXPERIMENTS[what]
    cells = cells_of(experiment, depths=parse_depths(depth), datasets=dataset, **machine_of(given))
    return sweep_as_typed(cells, given, passes=experiment.passes, experiment=what)


def _table(what: str, **given: Any) -> int:
    from capsbench.cli.reproduce_table import reproduce_table

    return reproduce_table(what, **given)


for _what, _says in SWEPT.items():
    _more = f"""{_says}

    It measures the published kernel and rule at the paper's sizes, and capsbench's own for comparison. On a CPU this takes
    hours, which it estimates first; --batch-size, --depth and --dataset shorten it.

    \b
    Examples:
      capsbench reproduce {_what}
      capsbench reproduce {_what} --dataset cifar10 --depth 1,8 --batch-size 16
    """
    command.command(_what, help=_more, sections=SECTIONS)(_swept_options(partial(_sweep, _what)))

for _what, (_says, _each) in TRAINED.items():
    _more = f"""{_says}

    {_each} The command trains or resumes the networks that are not done, and prints mean and standard deviation over seeds
    next to the paper's. At full length this needs a GPU; --scale shortens epochs and data alike.

    \b
    Examples:
      capsbench reproduce {_what} --download
      capsbench reproduce {_what} --scale 0.05 --seeds 2 --dry-run
    """
    command.command(_what, help=_more)(_trained_options(partial(_table, _what)))
