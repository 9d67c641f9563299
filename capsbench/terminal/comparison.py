"""Two runs beside each other on a terminal."""

from capsbench.gate.comparison import Compared
from capsbench.gate.verdicts import ComparisonRow, comparison_rows
from capsbench.terminal.named_rows import NamedRows
from capsbench.words.printable import cell as text_cell

_COLOURS = {"worse": "red", "better": "green", "not comparable": "yellow", "same": "default"}


def comparison_table(compared: Compared, *, cells: bool) -> NamedRows:
    """Two runs for a terminal, a row for each figure.

    Args:
        compared: two runs.
        cells: include each cell, beside slopes and levels.
    """
    out = NamedRows(ComparisonRow._fields[1:], left=("figure", "verdict"))
    for label, figure, *numbers, verdict in comparison_rows(compared, cells=cells):
        colour = _COLOURS[verdict.partition(":")[0]]
        out.add(text_cell(label), [text_cell(figure), *map(text_cell, numbers), f"[{colour}]{text_cell(verdict)}[/]"])
    return out
