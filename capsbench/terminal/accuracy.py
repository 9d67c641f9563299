"""Accuracy tables beside the paper's, for a terminal."""

import pandas as pd
from rich.table import Table

from capsbench.words.accuracy import accuracy_cells


def accuracy_rich(rows: pd.DataFrame, title: str) -> Table:
    """The rows of `stats.seeds.beside_paper` for a terminal."""
    out = Table(title=title, title_justify="left", title_style="bold", box=None)
    heads, lines = accuracy_cells(rows)
    for head in heads:
        out.add_column(head, justify="left" if head in ("data set", "model", "optimizer", "routing") else "right", no_wrap=True)
    for line in lines:
        out.add_row(*line)
    return out
