"""Rows of several lines on a terminal, each line beneath its name: a long name takes no room from the figures."""

from collections.abc import Sequence
from typing import Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_GAP = 2
"""Columns between two figures, and before the first."""


class NamedRows:
    """A table in which a row of its own names the line whose rows are beneath it. Cells wrap where the terminal is narrow.

    Args:
        heads: heads of the columns.
        left: heads of the columns whose texts begin at the left; all others end at the right.
        title: what all rows share, above the heads, as markup; empty for none.
    """

    def __init__(self, heads: Sequence[str], left: Sequence[str] = (), *, title: str = "") -> None:
        self._heads, self._left, self._title = list(heads), set(left), title
        self._rows: dict[str, list[Sequence[str]]] = {}

    def add(self, name: str, cells: Sequence[str]) -> None:
        """Add a row to its line, whose rows may come in any order with those of others.

        Args:
            name: name of its line, as markup.
            cells: a text for each column, as markup.
        """
        self._rows.setdefault(name, []).append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render title, heads, names and rows; where even single words have no room next to each other, a text for each row."""
        rendered = {name: [[console.render_str(cell) for cell in cells] for cells in rows] for name, rows in self._rows.items()}
        heads = [console.render_str(head) for head in self._heads]
        columns = zip(heads, *(cells for rows in rendered.values() for cells in rows), strict=True)
        gap, widths = _widths([[cell.plain for cell in column] for column in columns], options.max_width)
        if self._title:
            yield console.render_str(self._title, style="bold")
        if widths:
            yield self._part(heads, widths, gap, style="bold")
        for name, rows in rendered.items():
            named = console.render_str(name, overflow="fold")
            named.stylize("bold")
            yield named
            for cells in rows:
                if widths:
                    yield self._part(cells, widths, gap)
                else:
                    known = [Text.assemble(f"{head} ", cell) for head, cell in zip(self._heads, cells, strict=True) if cell.plain]
                    yield Padding(Text(", ").join(known), (0, 0, 0, _GAP))

    def _part(self, cells: Sequence[Text], widths: Sequence[int], gap: int, style: str = "") -> Table:
        part = Table(box=None, show_header=False, padding=(0, 0, 0, gap), style=style)
        for head, width in zip(self._heads, widths, strict=True):
            justify: Literal["left", "right"] = "left" if head in self._left else "right"
            part.add_column(justify=justify, overflow="fold", width=width, style=style)
        part.add_row(*cells)
        return part


def _widths(columns: Sequence[Sequence[str]], most: int) -> tuple[int, list[int]]:
    """The gap before each column, and its width: that of its longest cell, or of its longest word where there is no room.

    There are no widths where even the words have no room.
    """
    widths = [max(map(cell_len, column)) for column in columns]
    least = [max((cell_len(word) for text in column for word in text.split()), default=1) for column in columns]
    gap = _GAP if sum(least) + _GAP * len(least) <= most else 1
    if sum(least) + gap * len(least) > most:
        return gap, []
    while sum(widths) + gap * len(widths) > most:
        # The column with most room above its longest word.
        _, number = max((width - fewest, number) for number, (width, fewest) in enumerate(zip(widths, least, strict=True)))
        widths[number] -= 1
    return gap, widths
