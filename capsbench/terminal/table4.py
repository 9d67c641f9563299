"""Memory and time per block in *Momentum Capsule Networks*, compared with one's own records."""

from math import nan

import pandas as pd
from rich.table import Table

from capsbench import paper
from capsbench.frame import AXIS_COLUMN
from capsbench.sizes import MEBIBYTES
from capsbench.stats.least_squares import fit_slope
from capsbench.stats.metrics import MEMORY_METRICS
from capsbench.words.labels import dataset_title, model_title, on_gpu
from capsbench.words.printable import cell as text_cell
from capsbench.words.slopes_in_words import row_ratio, row_shape, row_slope
from capsbench.words.units import ratio_text

_CELL = ["dataset", "model", "blocks"]


def table4(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per cell of the paper's table that was measured: the paper's bytes, and each memory by kernel.

    Args:
        frame: frame from `capsbench.load`.

    Returns:
        `dataset`, `model`, `blocks`, `paper_bytes`, then `<kernel>_<column>` for every kernel and memory with values;
        means over replicates, in bytes. The paper's is one nvidia-smi reading at batch 128, context and cache included.
    """
    measured = frame[(frame["status"] == "ok") & (frame["kind"] == "measured")]
    # A CPU's resident set cannot be compared with a GPU's memory.
    comparable = [metric for metric in MEMORY_METRICS.values() if metric.name != "process" or on_gpu(measured).any()]
    columns = [metric.column for metric in comparable if measured[metric.column].notna().any()]
    printed = paper.memory().rename(columns={"bytes": "paper_bytes"}).drop(columns="memory_mb")
    if not columns:
        return printed.head(0)
    values = measured.astype(dict.fromkeys(columns, "float64"))
    means = values.pivot_table(index=_CELL, columns="kernel", values=columns, aggfunc="mean")
    means.columns = pd.Index(["_".join(reversed(pair)) for pair in means.columns.to_list()])
    return printed.merge(means, on=_CELL, how="inner")


def table4_slopes(table: pd.DataFrame) -> Table:
    """The slope of each column of `table4`, MiB per block."""
    # The peak lies outside the blocks, so its slope is that of weights, gradients and optimizer state in every column.
    columns = [name for name in table.columns if name not in _CELL and "peak_allocated" not in name]
    out = Table(title=f"memory of table 4, {MEBIBYTES.name} per block", title_justify="left", title_style="bold", box=None)
    out.add_column("model", overflow="fold")
    for name in columns:
        out.add_column(name.removesuffix("_bytes").replace("_", "\n"), justify="right", overflow="fold")
    for (dataset, model), cells in table.groupby(["dataset", "model"], sort=False):
        if cells["blocks"].nunique() > 1:
            slopes = [_slope(cells, name) for name in columns]
            out.add_row(f"{dataset_title(str(dataset))} {model_title(str(model))}", *slopes)
    return out


def time_ratios(slopes: pd.DataFrame) -> Table:
    """The training time of a block of MoCapsNet over that of ResCapsNet: the paper's, and one's own by data set and kernel.

    Args:
        slopes: the table of `capsbench.slopes`.
    """
    out = Table(title="training time per block, MoCapsNet over ResCapsNet", title_justify="left", title_style="bold", box=None)
    out.add_column("of", no_wrap=True)
    out.add_column("ratio", overflow="fold")
    out.add_row("the paper, CIFAR-10 (figure 4)", f"× {ratio_text(paper.slope_ratio('train_time'), nan, nan)}")
    own = slopes[(slopes["model"] == "mocapsnet") & (slopes["metric"] == "train") & (slopes[AXIS_COLUMN] == "blocks")]
    for row in own.to_dict("records"):
        text = str(row_shape(row))
        if row_shape(row) == "line":
            text = f"× {row_ratio(row)}" if row_ratio(row) else "ResCapsNet has no slope here that differs from 0"
        elif row_shape(row) == "no change measurable":
            text = row_slope(row)
        out.add_row(text_cell(f"{dataset_title(str(row['dataset']))}, {row['kernel']}"), text_cell(text))
    return out


def _slope(cells: pd.DataFrame, name: str) -> str:
    known = cells[["blocks", name]].dropna()
    if known["blocks"].nunique() < 2:
        return "-"
    return f"{fit_slope(known['blocks'].tolist(), known[name].tolist()).slope / MEBIBYTES.size:.3f}"
