"""Times of cells that took turns as figures draw them, record by record: relative to the other cells of their rounds.

The median of a cell's own samples contains what the machine did meanwhile. A cell that took part in the first rounds alone, as
those between the ends of a series do, has few of them, and may seem faster or slower than cells that it had no such rounds with.
"""

import pandas as pd

from capsbench.frame import AXES_COLUMN, POSITION_COLUMN
from capsbench.stats.metrics import TIME_METRICS
from capsbench.stats.slopes import fit_line, series_of
from capsbench.stats.turn_times import DepthTime


def placed_times(frame: pd.DataFrame) -> dict[str, list[DepthTime | None]]:
    """The time of each record in the rounds of its series, by the names of the times.

    Args:
        frame: frame from `capsbench.load`.

    Returns:
        For each time, `[records]`; None where a cell was timed alone, has replicates, whose scatter is to be seen, or lies in a
        grid, where it has another level along each axis.
    """
    found: dict[str, list[DepthTime | None]] = {metric.name: [None] * len(frame) for metric in TIME_METRICS.values()}
    numbered = frame.assign(_row=range(len(frame)))
    if AXES_COLUMN in numbered.columns:
        numbered = numbered[[len(names) == 1 for names in numbered[AXES_COLUMN]]]
    for _, rows in series_of(numbered):
        if rows[POSITION_COLUMN].duplicated().any():
            continue
        for metric in TIME_METRICS.values():
            known = rows[rows[metric.column].notna()]
            fit = fit_line(known, metric) if len(known) else None
            if fit is not None and fit.turns is not None:
                for row, position in zip(known["_row"], known[POSITION_COLUMN], strict=True):
                    found[metric.name][row] = fit.turns.at.get(float(position))
    return found
