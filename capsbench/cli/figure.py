"""`capsbench figure`: figures of one trained network."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from capsbench.cli.command import Argument, Group, echo
from capsbench.cli.flags import DATA_DIR_OPTION, DEVICE_OPTION, DOWNLOAD_OPTION
from capsbench.cli.output import writing
from capsbench.cli.typed import require_command
from capsbench.cli.types import FOLDER
from capsbench.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from torch import Tensor

    from capsbench.figures.pictures import Pictures
    from capsbench.inference import Classifier

MOST_IMAGES = 10
"""Largest number of images in one figure."""


@click.group("figure", cls=Group, invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Draw figures of a trained network.

    \b
    Examples:
      capsbench figure diagnostics runs/mine
      capsbench figure reconstructions runs/mine
    """
    require_command(context)


@command.command()
@click.argument(
    "run", cls=Argument, type=FOLDER, meaning="the folder of a run that was trained with --diagnostics", example="runs/mine"
)
@click.option("--out", type=FOLDER, help="Folder to draw into; by default the run's own.")
def diagnostics(run: Path, out: Path | None) -> None:
    """Draw the diagnostics of each block over depth.

    They are the entropy of bundles (groups of samples that a block no longer distinguishes), the lengths of capsules, and
    gradients.

    \b
    Examples:
      capsbench train --model capsnet --depth 8 --epochs 3 --diagnostics --out runs/deep
      capsbench figure diagnostics runs/deep
    """
    import pandas as pd

    from capsbench.figures.by_block import diagnostics_figure
    from capsbench.figures.depth import save
    from capsbench.training.diagnostics import DIAGNOSTICS, read_diagnostics
    from capsbench.training.trainer import read_settings
    from capsbench.words.labels import network_title

    lines = read_diagnostics(run)
    if not lines:
        hint = "give the folder of a run that was trained with --diagnostics"
        raise StoreError(f"{run / DIAGNOSTICS} is missing or empty", hint)
    settings = read_settings(run)
    it = settings.network if settings else None
    title = network_title(it.model, it.blocks, it.dataset) if it else run.name
    folder = out or run
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in save(diagnostics_figure(pd.DataFrame(lines), title), folder, "diagnostics"):
            echo(path)


@command.command()
@click.argument(
    "checkpoint", cls=Argument, type=FOLDER, example="runs/mine",
    meaning="a file that 'capsbench train' has written, or the folder of a run, whose best epoch is used",
)  # fmt: skip
@click.argument(
    "images", cls=Argument, type=FOLDER, nargs=-1, example="boot.png",
    meaning=f"files of images, png or jpg; by default the first test image of each class, up to {MOST_IMAGES}",
)  # fmt: skip
@click.option("--out", type=FOLDER, help="Folder to draw into; by default the checkpoint's own.")
@DEVICE_OPTION
@DATA_DIR_OPTION
@DOWNLOAD_OPTION
def reconstructions(
    checkpoint: Path, images: tuple[Path, ...], out: Path | None, device: str, data_dir: Path | None, download: bool
) -> None:
    """Draw inputs with their reconstructions.

    It also draws the reconstructions of the first input with each dimension of its class capsule moved from -0.25 to 0.25.

    \b
    Examples:
      capsbench figure reconstructions runs/mine
      capsbench figure reconstructions runs/mine/best.pt boot.png --out figures/
    """
    import torch

    from capsbench.figures.depth import save
    from capsbench.figures.pictures import perturbations_figure, reconstructions_figure
    from capsbench.inference import STEPS, Classifier, perturb
    from capsbench.words.labels import network_title

    classifier = Classifier(checkpoint, device=device)
    if len(images) > MOST_IMAGES:
        raise ConfigurationError(f"{len(images)} images are too many for one figure", f"give up to {MOST_IMAGES}")
    chosen = classifier.read(images) if images else _one_of_each(classifier, data_dir, download=download)
    moved = perturb(classifier, chosen[0])
    found = classifier(chosen)
    it = classifier.settings.network
    network = network_title(it.model, it.blocks, it.dataset)
    captions = [f"{one.name}, {one.length:.2f}" for one in found]
    seen = torch.stack([one.reconstruction for one in found if one.reconstruction is not None])
    pairs = reconstructions_figure(_pictures(chosen / 255), _pictures(seen), captions, network)
    steps = _pictures(moved.flatten(0, 1)).reshape(*moved.shape[:2], *moved.shape[3:], -1)
    folder = out or classifier.paths[0].parent
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        grid = perturbations_figure(steps, STEPS, f"{network}; {captions[0]}")
        for path in [*save(pairs, folder, "reconstructions"), *save(grid, folder, "perturbations")]:
            echo(path)


def _one_of_each(classifier: "Classifier", directory: Path | None, *, download: bool) -> "Tensor":
    """The first test image of each class, as many as there is room for."""
    from capsbench.data.datasets import load_parts

    try:
        test = load_parts(classifier.spec.name, directory, download=download).test
    except ConfigurationError as error:
        raise ConfigurationError(error.what, f"{error.hint}; or give images of your own") from None
    labels = test.labels.tolist()
    return test.images[[labels.index(label) for label in sorted(set(labels))[:MOST_IMAGES]]]


def _pictures(images: "Tensor") -> "Pictures":
    """Convert `[N, C, H, W]` to `[N, H, W, C]`, 0 to 1."""
    found: Pictures = images.float().clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return found
