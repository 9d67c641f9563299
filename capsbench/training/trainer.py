"""Training of a network to accuracy in a folder: settings that make no run are refused, and an interrupted run is resumed."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import ValidationError

from capsbench.cases.configured import check_batch_size
from capsbench.data.datasets import ImageSet, Parts, load_parts
from capsbench.data.feed import Feed, split
from capsbench.errors import ConfigurationError
from capsbench.parallel import NO_COMMON_SCALE, refuse_with
from capsbench.system.durable import replace_file
from capsbench.system.locks import alone_in
from capsbench.system.paths import absolute
from capsbench.tf32 import without_tf32
from capsbench.training.bundles import checked_network
from capsbench.training.checkpoint import Checkpoint, build_network, check_same, load_checkpoint
from capsbench.training.distributed import Parallel, Processes, process_group
from capsbench.training.log import TrainingObserver
from capsbench.training.loop import CHECKPOINT, RESULT, Feeds, Run, naming_faults
from capsbench.training.optimizers import check_optimizer
from capsbench.training.result import Result
from capsbench.training.settings import TrainingSettings
from capsbench.workload import seed_everything

SETTINGS = "settings.json"
"""File with the settings of a run."""

CHECKPOINT_MINUTES = 10.0

MAY_DIFFER = frozenset({"network.device", "network.threads", "network.kernel", "network.front"})
"""Settings with which a run may resume on another machine; on the same one its loss curve is the same to the last bit."""


def train(
    settings: TrainingSettings,
    folder: str | os.PathLike[str],
    *,
    data_directory: Path | None = None,
    download: bool = False,
    resume: bool = False,
    parallel: Parallel = "ddp",
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    diagnostics: bool = False,
    observers: Sequence[TrainingObserver] = (),
    command: str | None = None,
) -> Result:
    """Train a network, choose its best epoch, and read the test set once.

    Under `torchrun` the processes train together: the loss is that of one process with the same batch. Only SDA's temperature,
    a mean over all samples that are routed together, is that of each part of a batch, here and with `accumulate`. Any number of
    processes can resume what any other number of them, or a single one, has begun.
    Precision fp32 is float32 throughout, as in a measured step: products are never rounded to TF32.

    Args:
        settings: settings that decide the loss curve.
        folder: folder of the run, which gets checkpoints, metrics and the result.
        data_directory: folder of the real data sets; by default `data_directory()`.
        download: fetch a set that is not on disk.
        resume: resume from the folder's last checkpoint.
        parallel: what each of several processes holds: a copy of the network (`ddp`), or a part of its parameters, gradients and
            optimizer state (`fsdp`).
        checkpoint_minutes: minutes between checkpoints within an epoch; there is one after each epoch in any case.
        diagnostics: write diagnostics of each block before training and after each epoch (`training.diagnostics`).
        observers: objects that are informed of steps and epochs.
        command: command that was typed, to be kept with the result.

    Raises:
        ConfigurationError: settings, data or folder make no run; there is nothing to resume.
        TrainingError: loss or gradient are not finite, or memory does not suffice. The last checkpoint is kept.
        StoreError: the folder cannot be read or written. The last checkpoint is kept.
        Interrupted: Ctrl-C, after a checkpoint.
    """
    with _threads(settings.network.threads), without_tf32(), process_group(settings.network.device, parallel) as processes:
        # The path is absolute, because a trained module may change the process's folder.
        folder = Path(processes.gather(os.fspath(absolute(folder)))[0])  # each may have named a folder after its own time
        # Settings that make no run are refused before anything is written.
        check_optimizer(settings)
        if parallel == "fsdp":
            _check_sharded(settings, diagnostics=diagnostics)
        if resume and not folder.is_dir():
            raise _nothing_to_resume(folder)
        parts: Parts = processes.one_after_the_other(
            lambda: load_parts(settings.network.dataset, data_directory, download=download)
        )
        divided = _divided(settings, parts.train)
        seed_everything(settings.seed)
        if processes.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(processes.device)
        with naming_faults(settings, processes):
            network = build_network(settings, str(processes.device))
        if diagnostics:
            checked_network(network)
        with alone_in(folder) if processes.first else contextlib.nullcontext():
            begun = _begun(folder, settings, resume=resume)
            if processes.first and read_settings(folder) != settings:
                replace_file(folder / SETTINGS, settings.model_dump_json(indent=1) + "\n")
            finished = read_result(folder) if begun is not None else None
            if finished is not None and finished.settings == settings:
                return finished
            with naming_faults(settings, processes):
                feeds = _feeds(settings, *divided, parts.test, processes)
            run = Run(settings, folder, processes, network, feeds, begun, checkpoint_minutes)
            try:
                run.start()
                if diagnostics:
                    with naming_faults(settings, processes):
                        run.diagnose()
                return run.to_the_end(observers if processes.first else (), command)
            finally:
                run.close()


def read_result(folder: Path) -> Result | None:
    """The result of a finished run; None if there is none, or it cannot be read."""
    try:
        return Result.model_validate_json((folder / RESULT).read_bytes())
    except (OSError, ValidationError):
        return None


def read_settings(folder: Path) -> TrainingSettings | None:
    """The settings of a run; None if they cannot be read."""
    try:
        return TrainingSettings.model_validate_json((folder / SETTINGS).read_bytes())
    except (OSError, ValidationError):
        return None


def _feeds(
    settings: TrainingSettings, train_set: ImageSet, held_out: ImageSet | None, test: ImageSet, processes: Processes
) -> Feeds:
    def feed(data: ImageSet) -> Feed:
        return Feed(data, processes.device, settings.network.images(), settings.preprocess, processes.share)

    return Feeds(feed(train_set), None if held_out is None else feed(held_out), feed(test))


def _begun(folder: Path, settings: TrainingSettings, *, resume: bool) -> Checkpoint | None:
    """The checkpoint to resume from; None if the run is new."""
    path = folder / CHECKPOINT
    if not resume:
        if path.exists() or (folder / RESULT).exists():
            raise ConfigurationError(f"`out` {folder} already holds a run", "add `resume`, or choose another `out`")
        return None
    # A run may have ended before its first checkpoint, which precedes its first step.
    begun = load_checkpoint(path) if path.exists() else None
    before = begun.settings if begun is not None else read_settings(folder)
    if before is None:
        raise _nothing_to_resume(folder)
    # More epochs do not change the finished ones, unless a schedule spans all of them.
    longer = settings.optimizer == "adam" and settings.epochs >= before.epochs
    check_same(settings, before, f"the run in {folder}", free=MAY_DIFFER | ({"epochs"} if longer else set()))
    return begun


def _check_sharded(settings: TrainingSettings, *, diagnostics: bool) -> None:
    """Refuse what needs a whole network, or whole gradients, in one process."""
    reasons = {
        "`precision` fp16": settings.network.precision == "fp16" and NO_COMMON_SCALE,
        f"`optimizer` {settings.optimizer}": settings.optimizer != "adam" and "it computes with whole gradients",
        "`diagnostics`": diagnostics and "the first process examines the network alone",
    }
    refuse_with("fsdp", reasons, "leave it out, or train with `parallel` ddp")


def _nothing_to_resume(folder: Path) -> ConfigurationError:
    return ConfigurationError(f"`resume`: there is nothing to resume in {folder}", "leave `resume` out to begin")


def _divided(settings: TrainingSettings, data: ImageSet) -> tuple[ImageSet, ImageSet | None]:
    """The images to train on, and those that are held out."""
    train_set, held_out = split(data, settings.validation, settings.scale)
    if held_out is not None and not len(train_set.images):
        raise ConfigurationError(
            f"`validation` {settings.validation:g} holds all {len(held_out.images)} images out",
            "give a fraction below 1, or a number of images that leaves some to train on",
        )
    _check_left(settings, len(data.images), len(train_set.images), 0 if held_out is None else len(held_out.images))
    return train_set, held_out


def _check_left(settings: TrainingSettings, images: int, left: int, held_out: int) -> None:
    """Refuse a batch that is larger than the part of the data that is trained on.

    Args:
        settings: settings of the run.
        images: number of images in the training set.
        left: number of those that are trained on.
        held_out: number of those that are held out.

    Raises:
        ConfigurationError: it is larger.
    """
    batch, dataset = settings.network.images(), settings.network.dataset
    if batch <= left:
        return
    reasons = [f"`scale` {settings.scale:g} takes {left + held_out}"] * (settings.scale < 1)
    reasons += [f"`validation` holds {held_out} out"] * (held_out > 0)
    if not reasons:
        check_batch_size(batch, images, dataset)
    raise ConfigurationError(
        f"`batch_size` {batch} is larger than the data: {left} of the {images:,} images of '{dataset}' are trained on, since "
        + " and ".join(reasons),
        f"choose 1 to {left}, or train on more images: a larger `scale`, or a larger set on disk ('capsbench list' says where)",
    )


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Set the number of threads, on which sums depend."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
