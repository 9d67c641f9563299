"""The figures of one trained network: `capsbench figure`."""

from pathlib import Path

import click

from capsbench.cli.command import Group, echo
from capsbench.cli.options import DATA_DIR_OPTION, DEVICE_OPTION, DOWNLOAD_OPTION, FOLDER, require_command
from capsbench.errors import StoreError


@click.group(cls=Group, invoke_without_command=True)
@click.pass_context
def figure(context: click.Context) -> None:
    """Draw figures of a trained network.

    \b
    Examples:
      capsbench figure diagnostics runs/mine
      capsbench figure reconstructions runs/mine
    """
    require_command(context)


@figure.command()
@click.argument("run", type=FOLDER)
@click.option("--out", type=FOLDER, help="Folder to draw into; by default the run's own.")
def diagnostics(run: Path, out: Path | None) -> None:
    """Draw the diagnostics of each block over depth: bundle entropy, capsule lengths and gradients, of a run with --diagnostics.

    \b
    Examples:
      capsbench train --model capsnet --depth 8 --epochs 3 --diagnostics --out runs/deep
      capsbench figure diagnostics runs/deep
    """
    import pandas as pd

    from capsbench.cli.output import writing
    from capsbench.figures.depth import save
    from capsbench.figures.diagnostics import diagnostics_figure
    from capsbench.training.diagnostics import DIAGNOSTICS, read_diagnostics
    from capsbench.training.trainer import read_settings
    from capsbench.words.labels import network_title

    lines = read_diagnostics(run)
    if not lines:
        raise StoreError(
            f"{run / DIAGNOSTICS} is not there, or holds nothing", "give the folder of a run that was trained with --diagnostics"
        )
    settings = read_settings(run)
    it = settings.network if settings else None
    title = network_title(it.model, it.blocks, it.dataset) if it else run.name
    folder = out or run
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in save(diagnostics_figure(pd.DataFrame(lines), title), folder, "diagnostics"):
            echo(path)


@figure.command()
@click.argument("checkpoint", type=FOLDER)
@click.argument("images", type=FOLDER, nargs=-1)
@click.option("--out", type=FOLDER, help="Folder to draw into; by default the checkpoint's own.")
@DEVICE_OPTION
@DATA_DIR_OPTION
@DOWNLOAD_OPTION
def reconstructions(
    checkpoint: Path, images: tuple[Path, ...], out: Path | None, device: str, data_dir: Path | None, download: bool
) -> None:
    """Draw inputs beside reconstructions, and the first input's class capsule with each dimension moved from -0.25 to 0.25.

    CHECKPOINT is a file that 'capsbench train' has written, or the folder of a run, whose best epoch is used. Without IMAGES
    (png or jpg) it draws the first test image of each class, up to 10.

    \b
    Examples:
      capsbench figure reconstructions runs/mine
      capsbench figure reconstructions runs/mine/best.pt boot.png --out figures/
    """
    from capsbench.cli.output import writing
    from capsbench.cli.pictures import draw_pictures
    from capsbench.inference import Classifier

    classifier = Classifier(checkpoint, device=device)
    folder = out or classifier.paths[0].parent
    with writing(folder):
        for path in draw_pictures(classifier, images, folder, data_dir, download=download):
            echo(path)
