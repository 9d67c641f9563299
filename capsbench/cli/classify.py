"""`capsbench classify`: classes of images."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capsbench.cli.command import Argument, Command, echo, echo_json
from capsbench.cli.flags import DEVICE_OPTION
from capsbench.cli.output import writing
from capsbench.cli.streams import printing_aside
from capsbench.cli.types import FOLDER
from capsbench.errors import ConfigurationError
from capsbench.system.paths import with_typed_paths

if TYPE_CHECKING:
    from capsbench.inference import Classified


@click.command("classify", cls=Command)
@click.argument(
    "checkpoint", cls=Argument, type=FOLDER, example="runs/mine",
    meaning="a file that 'capsbench train' has written, or the folder of a run, whose best epoch is used",
)  # fmt: skip
@click.argument(
    "images", cls=Argument, type=FOLDER, nargs=-1, required=True, meaning="files of images, png or jpg", example="boot.png"
)
@click.option(
    "--with", "others", type=FOLDER, multiple=True, help="One more checkpoint of an ensemble, whose mean lengths decide."
)
@click.option("--reconstructions", type=FOLDER, help="Folder for the decoder's reconstruction of each image, as png.")
@DEVICE_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the lengths of all classes.")
def command(
    checkpoint: Path, images: tuple[Path, ...], others: tuple[Path, ...], reconstructions: Path | None, device: str, as_json: bool
) -> None:
    """Classify images with a trained network.

    It prints the class of each image, and the length of that class's capsule, from 0 to 1.

    \b
    Examples:
      capsbench classify runs/mine boot.png bag.png
      capsbench classify runs/mine/best.pt images/*.png --reconstructions seen/ --json
      capsbench classify runs/a boot.png --with runs/b --with runs/c --with runs/d
    """
    from capsbench.inference import Classifier

    with printing_aside() if as_json else nullcontext():
        classifier = Classifier([checkpoint, *others], device=device)
        predictions = classifier(classifier.read(images))
    written = [None] * len(predictions) if reconstructions is None else _write(reconstructions, images, predictions)
    if as_json:
        data = []
        for image, one, path in zip(images, predictions, written, strict=True):
            classes = {"class": one.label, "name": one.name, "length": one.length, "lengths": list(one.lengths)}
            picture = None if path is None else with_typed_paths(str(path))
            data.append({"image": with_typed_paths(str(image)), **classes, "reconstruction": picture})
        echo_json(data)
        return
    for image, one in zip(images, predictions, strict=True):
        # A class that is called by its number is named once.
        name = "" if one.name == str(one.label) else f" ({one.name})"
        echo(f"{image}: {one.label}{name}, length {one.length:.3f}")
    if reconstructions is not None:
        echo(f"wrote {len(predictions)} reconstructions to {reconstructions}", err=True)


def _write(folder: Path, images: tuple[Path, ...], found: "list[Classified]") -> list[Path]:
    """Write each reconstruction under its image's name; images of one name are numbered."""
    from capsbench.data.images import to_picture
    from capsbench.system.durable import replacing

    paths: list[Path] = []
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for image, one in zip(images, found, strict=True):
            if one.reconstruction is None:
                raise ConfigurationError(
                    f"--reconstructions {folder} is not possible: this network has no decoder", "leave the option out"
                )
            path, number = folder / f"{image.stem}-reconstruction.png", 1
            while path in paths:
                number += 1
                path = folder / f"{image.stem}-reconstruction-{number}.png"
            paths.append(path)
            with replacing(path) as file:
                to_picture(one.reconstruction).save(file, "PNG")
    return paths
