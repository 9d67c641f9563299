"""`capsbench run`: a sweep, measured."""

from typing import Any

import click

from capsbench.cli.command import Command
from capsbench.cli.flags import BASIS_OPTION, MODEL_OPTIONS, OPEN_OPTION, SECTIONS, SWEEP_OPTIONS, cell_options
from capsbench.cli.types import OneOf
from capsbench.options import SWEPT_OPTIONS
from capsbench.records import BOTH, Pass


@click.command("run", cls=Command, sections=SECTIONS)
@MODEL_OPTIONS
@BASIS_OPTION
@cell_options(*SWEPT_OPTIONS)
@SWEEP_OPTIONS
@click.option("--only", type=OneOf(BOTH), help="Measure memory or time alone; by default both.")
@click.option("--quick", is_flag=True, help="Take about a minute: depths 1-3, batch 16 and less sampling, unless given.")
@OPEN_OPTION
def command(only: Pass | None, quick: bool, **given: Any) -> int:
    """Measure memory and time over depth or another axis.

    A cell is one network with one depth and one value of every other option; all cells of a command are a sweep. The command fits
    a line through cells that differ in depth alone, whose slope is the cost of one more block, draws figures 3 and 4, and writes
    a page. Options that name a choice take a comma list, which multiplies the cells. --depth 1-8 is --vary blocks=1-8.

    \b
    Examples:
      capsbench run --models all --quick --open
      capsbench run --models all --depth 1-8
      capsbench run --models rescapsnet,mocapsnet --kernel published,auto --batch-size 16
      capsbench run --models mocapsnet --front plain,chunked --optimizer-step after,backward
      capsbench run --models my_package.models:make_net --depth 1,2,4
      capsbench run --models my_cases.py:gpt2 --vary length=128-512:128 --only memory
      capsbench run --models mocapsnet --depth 1-4 --vary batch-size=32,64,128
      capsbench run --models mocapsnet --shape 3x64x64 --classes 196 --batch-size 16
      capsbench run --models all --device cuda:predicted --gpu a100
      capsbench run --models mocapsnet --parallel fsdp --world-size 2 --device cpu --only memory
      capsbench run --models all --out reports/mine --resume
    """
    from capsbench.cli.sweeps import asked_cells, quick_values, sweep_as_typed

    usual = quick_values() if quick else {}
    cells = asked_cells(given | usual, usual)
    return sweep_as_typed(cells, given | usual, passes=BOTH if only is None else [only])
