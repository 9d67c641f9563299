"""`capsbench list`: every name that an option takes on this machine."""

import re
from pathlib import Path

import click

from capsbench.axes import IMAGE_SIZE, axis_title, per_unit
from capsbench.catalog import SPECS
from capsbench.cli.command import Command, echo, echo_json
from capsbench.cli.flags import DATA_DIR_OPTION
from capsbench.devices import GPUS
from capsbench.errors import ConfigurationError
from capsbench.option_type import Option
from capsbench.options import AXES_OF_FIELDS, LISTED, OPTIONS, noun_of
from capsbench.stats.metrics import METRICS
from capsbench.words.units import bytes_text


@click.command("list", cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@DATA_DIR_OPTION
def command(as_json: bool, data_dir: Path | None) -> None:
    """List the models, data sets and names that options take.

    It also says which data sets are on disk.
    """
    offered = offers(data_dir)
    if as_json:
        echo_json(offered)
        return
    for head, entries in offered.items():
        echo(head)
        for name, text in entries.items():
            echo(f"  {name:<16} {text}")


def offers(directory: Path | None = None) -> dict[str, dict[str, str]]:
    """Names and their meanings, by kind; data sets are looked up on disk."""
    from importlib.metadata import entry_points

    from capsbench.cases.factories import BUILT_IN, ENTRY_POINTS
    from capsbench.data.datasets import data_directory, load_images
    from capsbench.measure.facts import asked
    from capsbench.routing import algorithms, kernels

    registered = asked(lambda: {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}) or {}
    sources = {"sample": "ships with capsbench", "real": "on disk", "stand-in": "not on disk: the sample is used in its place"}

    def source(name: str) -> str:
        try:
            return sources[load_images(name, directory).source]
        except ConfigurationError as error:
            return error.what

    return {
        "models": {name: _first_sentence(kind) for name, kind in BUILT_IN.items()} | registered,
        f"datasets (looked for in {directory or data_directory()})": {
            name: f"{'×'.join(map(str, spec.shape))}, {spec.classes} classes; {source(name)}" for name, spec in SPECS.items()
        },
        "options": {one.flag: _help(one) for one in OPTIONS.values()},
        "axes": {
            IMAGE_SIZE if axis == "image_shape" else axis: f"{axis_title(axis)}, for slopes {per_unit(axis)}"
            for axis in AXES_OF_FIELDS
        },
        **{noun_of(name): dict(option.choices) for name, option in OPTIONS.items() if option.choices and name != "dataset"},
        "routing": {name: f"{OPTIONS['routing'].choices[name]}; kernels {', '.join(kernels(name))}" for name in algorithms()},
        "gpus to predict for": {
            name: f"{bytes_text(gpu.memory_bytes)}, compute capability {'.'.join(map(str, gpu.capability))}"
            for name, gpu in GPUS.items()
        },
        "metrics": {name: f"{metric.title} ({metric.column})" for name, metric in METRICS.items()},
    }


def _help(option: Option) -> str:
    """The help of an option in the list itself, with its default."""
    text = option.help.replace(LISTED, "they are listed below")
    return text if option.default is None else f"{text} [{option.default}]"


def _first_sentence(kind: object) -> str:
    """The first sentence of the docstring of a class or function, which ends where another one or the line does."""
    line = (kind.__doc__ or "").strip().partition("\n")[0]
    return re.split(r"(?<=\.) (?=[A-Z`])", line)[0].removesuffix(".") + "."
