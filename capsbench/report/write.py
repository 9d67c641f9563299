"""Everything that is drawn from a report's records, written into its folder."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from capsbench.analysis.slopes import slopes
from capsbench.report.figures import Per, figure3, figure4, save
from capsbench.report.tables import write_slopes_csv


def write_report(
    frame: pd.DataFrame,
    folder: Path,
    *,
    memory: Sequence[str] | None = None,
    per: Per = "step",
    with_paper: bool = False,
    only: Sequence[str] = ("figure3", "figure4"),
) -> list[Path]:
    """Writes slopes.csv and the figures of one report, and returns their paths.

    Args:
        frame: the report's records, as `capsbench.load` gives them.
        folder: where to write.
        memory: which memory the figures draw; by default `retained` in figure 3, `retained` and `peak` in figure 4.
        per: seconds per `step` or `epoch`.
        with_paper: draw the paper's table 4 where comparable.
        only: which figures.

    Raises:
        OSError: a file cannot be written.
    """
    paths = [write_slopes_csv(slopes(frame), folder / "slopes.csv")]
    for name, draw, usual in (("figure3", figure3, ("retained",)), ("figure4", figure4, ("retained", "peak"))):
        if name in only:
            figure = draw(frame, memory=memory or usual, per=per, with_paper=with_paper)
            paths += save(figure, folder, name)
    return paths
