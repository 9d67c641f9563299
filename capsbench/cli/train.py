"""`capsbench train`: a network, trained to accuracy."""

from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from capsbench.catalog import MODELS, WITHOUT_BLOCKS
from capsbench.cli.command import Command, command_to_resume, typed_command
from capsbench.cli.flags import (
    CHECKPOINT_OPTION,
    DATA_DIR_OPTION,
    DEVICE_OPTION,
    DOWNLOAD_OPTION,
    cell_option,
    cell_options,
    scale_option,
    together,
    validation_option,
)
from capsbench.cli.output import console_of
from capsbench.cli.streams import printing_aside
from capsbench.cli.typed import refuse_for_own, refuse_given
from capsbench.cli.types import FOLDER, OneOf, Parsed, number, whole_number
from capsbench.errors import ConfigurationError, Interrupted
from capsbench.options import NETWORK_OPTIONS, OPTIONS
from capsbench.store.files import RECORDS
from capsbench.system.paths import anchored, new_folder, unless_empty
from capsbench.training.settings import Preprocessing, TrainingOptimizer, TrainingSettings, differences

if TYPE_CHECKING:
    from capsbench.training.distributed import Parallel

RUNS = Path("runs")


def _gammas(flag: str, text: str) -> tuple[float, ...]:
    """Parse momentum terms: `0.9` or `0.9,0.8`."""
    try:
        gammas = tuple(float(part) for part in text.split(","))
    except ValueError:
        hint = "give one for all blocks (0.9), or one for each (0.9,0.8)"
        raise ConfigurationError(f"{flag} '{text}' is neither a number nor a comma list of numbers", hint) from None
    for gamma in gammas:
        OPTIONS["gamma"].refuse_outside(flag, gamma)
    return gammas


_ABOVE_0 = number("a number above 0", lambda value: value > 0)
_SHARE = number("a number above 0 and up to 1", lambda value: 0 < value <= 1)
_NOT_NEGATIVE = number("a number of 0 or more", lambda value: value >= 0)

_network_options = together(
    click.option("--model", "models", default="mocapsnet", help=f"{', '.join(MODELS)}, or package.module:name of your own."),
    cell_option("blocks", "depth", type=whole_number(1), default=1, help="Blocks."),
    cell_options(*(name for name in NETWORK_OPTIONS if name != "gamma"), single=True),
    cell_option(
        "gamma",
        type=Parsed("numbers", _gammas),
        default="0.9",
        help="MoCapsNet's momentum term, or a comma list with one for each block.",
    ),
    click.option("--learn-gamma", is_flag=True, help="Train the momentum terms too."),
)

_data_options = together(
    cell_option("dataset", single=True, help="Data set; sample is the part of Fashion-MNIST that ships with capsbench."),
    click.option(
        "--preprocess",
        type=OneOf(get_args(Preprocessing)),
        default="paper",
        help="Preparation of images: as in the paper, or in its code.",
    ),
    validation_option("Images held out to choose the best epoch: a fraction, or a number; 0 trains on everything."),
    scale_option("The fraction of the training set that is used."),
    DATA_DIR_OPTION,
    DOWNLOAD_OPTION,
)

_training_options = together(
    click.option("--epochs", type=whole_number(1), default=30, help="Passes over the training set."),
    cell_option("batch_size"),
    click.option(
        "--accumulate", type=whole_number(1), default=1, help="Parts that a batch is divided into; their gradients add up."
    ),
    click.option(
        "--optimizer",
        type=OneOf(get_args(TrainingOptimizer)),
        default="adam",
        help="Ranger21 has a schedule of its own (pip install pytorch-optimizer).",
    ),
    click.option("--learning-rate", type=_ABOVE_0, default=1e-3, help="Learning rate of the first epoch."),
    click.option("--decay", type=_SHARE, default=0.96, help="Factor on Adam's learning rate after each epoch."),
    click.option(
        "--reconstruction-weight", type=_NOT_NEGATIVE, default=5e-4, help="Factor of the reconstruction's squared error."
    ),
    cell_option("precision", single=True),
    click.option("--seed", type=whole_number(0, 2**31 - 1), default=0, help="Seed of weights, data order and crops."),
)

_run_options = together(
    DEVICE_OPTION,
    cell_option("threads"),
    click.option(
        "--out", type=FOLDER, help="Folder of the run; by default a new one in runs/, named after the network and the time."
    ),
    click.option("--resume", is_flag=True, help="Resume a run that was cut off: the loss curve is as if it had not been."),
    CHECKPOINT_OPTION,
    click.option(
        "--parallel",
        type=OneOf(("ddp", "fsdp")),
        default="ddp",
        help="Contents of each process under torchrun: a copy of the network, or a part of its parameters, gradients and "
        "optimizer state.",
    ),
    click.option(
        "--diagnostics", is_flag=True, help="Keep diagnostics of each block after each epoch ('capsbench figure diagnostics')."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output."),
)


@click.command("train", cls=Command)
@_network_options
@_data_options
@_training_options
@_run_options
def command(
    out: Path | None, resume: bool, checkpoint_minutes: float, parallel: "Parallel", diagnostics: bool, as_json: bool,
    data_dir: Path | None, download: bool, **given: Any,
) -> int:  # fmt: skip
    """Train a network to accuracy.

    A run that was cut off resumes from its last checkpoint, with --resume. The best epoch is chosen on images that are held out
    of the training set, and the test set is read once, at the end. Under torchrun, several processes train one network and
    divide each batch.

    \b
    Examples:
      capsbench train --model mocapsnet --epochs 1
      capsbench train --model mocapsnet --depth 2 --dataset fashion-mnist --download --out runs/fashion
      capsbench train --model mocapsnet --depth 2 --dataset fashion-mnist --out runs/fashion --resume
      capsbench train --model rescapsnet --dataset cifar10 --optimizer ranger21 --learning-rate 0.01 --epochs 100 --validation 0
    """
    from capsbench.cli.training import TrainingProgress, print_result
    from capsbench.training import train
    from capsbench.training.distributed import is_first

    _refuse_without_effect(given)
    settings = training_settings(given)
    folder = _choose_folder(settings, out, resume=resume, now=datetime.now())
    if (folder / RECORDS).exists():
        raise ConfigurationError(f"--out {folder} holds a report of 'capsbench run'", "name another folder for the run")
    try:
        with (
            printing_aside() if as_json else nullcontext(),
            nullcontext() if out else unless_empty(folder),
            TrainingProgress(console_of(err=True), settings) as progress,
        ):
            result = train(
                settings, folder, data_directory=data_dir, download=download, resume=resume, parallel=parallel,
                checkpoint_minutes=checkpoint_minutes, diagnostics=diagnostics, observers=[progress], command=typed_command(),
            )  # fmt: skip
    except Interrupted as error:
        raise Interrupted(error.what, command_to_resume(folder, named=out is not None, resumed=resume)) from None
    if is_first():
        print_result(result, folder, as_json=as_json)
    return 0


def _refuse_without_effect(given: dict[str, Any]) -> None:
    """Refuse options that this model or optimizer does not have, and parts that have no image."""
    model = given["models"]
    refuse_for_own((model,))
    if model in WITHOUT_BLOCKS:
        refuse_given("depth", f"--model {model}", "it has no blocks")
    if model in MODELS and model != "mocapsnet":
        for name in ("gamma", "learn_gamma"):
            refuse_given(name, f"--model {model}", "momentum is MoCapsNet's alone")
    if given["optimizer"] == "ranger21":
        refuse_given("decay", "--optimizer ranger21", "it has a schedule of its own")
    if given["accumulate"] > given["batch_size"]:
        raise ConfigurationError(
            f"--accumulate {given['accumulate']} makes more parts than --batch-size {given['batch_size']} has images",
            f"give at most {given['batch_size']}",
        )


def training_settings(given: dict[str, Any]) -> TrainingSettings:
    """The settings that the command's options ask for.

    Raises:
        ConfigurationError: they make no network.
    """
    from capsbench.records import PREDICTED
    from capsbench.sweep.asked import Sweep
    from capsbench.sweep.machine import machine_options
    from capsbench.sweep.plan import expand

    gammas: tuple[float, ...] = given["gamma"]
    if len(gammas) not in (1, given["depth"]):
        raise ConfigurationError(
            f"--gamma {','.join(f'{one:g}' for one in gammas)} names {len(gammas)} values for {given['depth']} blocks",
            "give one for all blocks, or one for each",
        )
    machine = machine_options(given["device"], None, given["threads"])
    if machine["device"].endswith(PREDICTED):
        raise ConfigurationError(f"--device {machine['device']} cannot train: nothing runs on it", "choose auto, cpu or cuda")
    options = {name: given[name] for name in (*NETWORK_OPTIONS, "dataset", "batch_size", "precision")}
    # The smallest momentum term decides the inverse of a stack.
    (cell,) = expand(Sweep((given["models"],), (given["depth"],), **options | machine | {"gamma": min(gammas)}))
    names = ("epochs", "optimizer", "learning_rate", "decay", "reconstruction_weight", "seed", "preprocess", "validation")
    return TrainingSettings(
        network=cell.configuration,
        gammas=gammas if len(gammas) > 1 else None,
        **{name: given[name] for name in (*names, "accumulate", "scale", "learn_gamma")},
    )


def _choose_folder(settings: TrainingSettings, out: Path | None, *, resume: bool, now: datetime) -> Path:
    """The folder of a run: `out`; or the newest unfinished run of these settings, to resume; or a new folder."""
    from capsbench.training.distributed import is_first
    from capsbench.training.loop import RESULT
    from capsbench.training.trainer import MAY_DIFFER, SETTINGS, read_settings

    if out is not None:
        return out
    network = settings.network
    if not resume:
        model = network.model.replace(":", ".").rpartition(".")[2]
        folder = anchored(RUNS) / f"{model}-{network.blocks}-{network.dataset}-{now.strftime('%Y-%m-%d-%H%M%S')}"
        # If there are several processes, the first one's name counts.
        return new_folder(folder) if is_first() else folder
    for path in sorted(anchored(RUNS).glob(f"*/{SETTINGS}"), key=lambda path: path.stat().st_mtime, reverse=True):
        known = read_settings(path.parent)
        if known is not None and differences(settings, known).keys() <= MAY_DIFFER and not (path.parent / RESULT).exists():
            return path.parent
    raise ConfigurationError(
        f"--resume: no run below {RUNS}/ with these options is unfinished", "name it with --out, or begin one"
    )
