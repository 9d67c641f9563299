"""The figures of one trained network: `capsbench figure`."""

from pathlib import Path

import click

from capsbench.cli.options import FOLDER
from capsbench.errors import StoreError


@click.group()
def figure() -> None:
    """Draw what a trained network does.

    \b
    Examples:
      capsbench figure diagnostics runs/mine
      capsbench figure reconstructions runs/mine
    """


@figure.command()
@click.argument("run", type=FOLDER)
@click.option("--out", type=FOLDER, help="Folder to draw into; by default the run's own.")
def diagnostics(run: Path, out: Path | None) -> None:
    """What each block tells apart over depth: bundle entropy, capsule lengths and gradients, of a run with --diagnostics.

    \b
    Examples:
      capsbench train --model capsnet --depth 8 --epochs 3 --diagnostics --out runs/deep
      capsbench figure diagnostics runs/deep
    """
    import pandas as pd

    from capsbench.cli.output import writing
    from capsbench.report.diagnostics import diagnostics_figure
    from capsbench.report.figures import save
    from capsbench.report.labels import dataset_title, model_title
    from capsbench.training.diagnostics import DIAGNOSTICS, read_diagnostics
    from capsbench.training.trainer import read_settings

    lines = read_diagnostics(run)
    if not lines:
        raise StoreError(
            f"{run / DIAGNOSTICS} is not there, or holds nothing", "give the folder of a run that was trained with --diagnostics"
        )
    settings = read_settings(run)
    it = settings.network if settings else None
    title = f"{model_title(it.model)}, {it.blocks} blocks, {it.routing}, {dataset_title(it.dataset)}" if it else run.name
    folder = out or run
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in save(diagnostics_figure(pd.DataFrame(lines), title), folder, "diagnostics"):
            click.echo(path)
