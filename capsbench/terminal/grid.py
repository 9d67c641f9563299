"""The cells of a plan as a table for a terminal."""

from collections.abc import Sequence

from rich.table import Table

from capsbench.gate.findings import Labels
from capsbench.records import Cell
from capsbench.words.along import places_text
from capsbench.words.printable import cell as text_cell
from capsbench.words.units import common_unit, quantity_text


def grid_table(groups: Sequence[Sequence[Cell]], axes: Sequence[str], peaks: Sequence[Sequence[int]]) -> Table:
    """A row for each series: its positions on the axes, the number of its cells, and the predicted peaks at its ends.

    Args:
        groups: cells of each series.
        axes: axes of the plan.
        peaks: bytes of the smallest and of the largest peak of each series; none where they are not predicted.
    """
    series = [group[0].configuration.options() for group in groups]
    for one in series:
        for axis in axes:
            one.pop(axis, None)
    names = Labels(series)
    unit = common_unit([nbytes for pair in peaks for nbytes in pair], is_bytes=True)
    out = Table(box=None, pad_edge=False)
    out.add_column("series", overflow="fold")
    out.add_column("measured at", overflow="fold")
    out.add_column("cells", justify="right", no_wrap=True)
    out.add_column("peak, predicted", justify="right", no_wrap=True)
    for one, group, pair in zip(series, groups, peaks, strict=True):
        texts = dict.fromkeys(quantity_text(nbytes, is_bytes=True, unit=unit) for nbytes in pair)
        out.add_row(text_cell(names.of(one)), _positions(group, axes), str(len(group)), " to ".join(texts) or "-")
    return out


def _positions(cells: Sequence[Cell], axes: Sequence[str]) -> str:
    """The positions of cells on all axes: `1, 2, 4 blocks × batch size 32, 64`."""
    texts = []
    for axis in axes:
        places = sorted({place for cell in cells if (place := cell.configuration.position(axis)) is not None})
        square = all(cell.configuration.images_are_square() for cell in cells)
        texts += [places_text(axis, places, square=square)] if places and places != [0] else []
    return " × ".join(texts)
