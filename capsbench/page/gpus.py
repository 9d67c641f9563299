"""The sizes of common GPUs, and the memory of networks beyond the measured positions, which the page holds against them."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from capsbench.devices import GPUS
from capsbench.sizes import GIBIBYTES
from capsbench.stats.line_fit import fit_line
from capsbench.stats.linearity import CURVES
from capsbench.stats.metrics import METRICS, Metric

_SHOWN = ("rtx2080ti", "rtx4090", "a100", "h100", "h200")
"""GPUs of different sizes, the smallest first."""

_CONTINUED = ("reserved", "peak")
"""Quantities that can be continued, the preferred one first."""
_STANDING = {
    "end of forward": ("state_bytes", "optimizer_bytes", "retained_bytes"),
    "end of backward": ("state_bytes", "optimizer_bytes", "gradient_bytes"),
}
"""Columns whose sum is alive at a moment of the step, by the moment."""


def gpus_data() -> list[dict[str, Any]]:
    """Title and bytes of each GPU: its memory without CUDA's context."""
    return [
        {
            "title": f"{gpu.name.upper()}, {round(gpu.memory_bytes / GIBIBYTES.size)} {GIBIBYTES.name}",
            "bytes": gpu.memory_bytes - gpu.context_bytes,
        }
        for gpu in (GPUS[name] for name in _SHOWN)
    ]


def continued_memory(fits: Mapping[str, Mapping[str, Any]], cells: pd.DataFrame) -> dict[str, Any] | None:
    """Least memory of a series at positions beyond the measured ones; None where it is not known.

    The highest point of a small network may lie in its first layers, whose bytes do not grow with depth. In a larger network it
    moves to the end of forward or of backward, and grows with what is alive there. So the memory is the largest of several lines.

    Args:
        fits: the fits of the series by metric, as the page has them.
        cells: its rows that ended well, from `capsbench.frame.along`.

    Returns:
        `metric`, the quantity that is continued, and `terms`, the lines or curves whose maximum is its least memory.
    """
    name = next((one for one in _CONTINUED if one in fits and fits[one]["shape"] == "line" and fits[one]["slope"] > 0), None)
    if name is None:
        return None
    terms = [{key: fits[name][key] for key in ("shape", "intercept", "slope", "term")}]
    for moment, columns in _STANDING.items():
        # Bytes that are alive at a moment repeat, as a peak does.
        metric = Metric(moment, moment, moment, moment, METRICS["peak"].is_bytes)
        line = fit_line(cells.assign(**{moment: cells[list(columns)].astype(float).sum(axis=1, skipna=False)}), metric)
        if line is None or line.shape not in ("line", *CURVES):
            return None
        term = line.curve.term if line.curve else None
        terms.append({"shape": line.shape, "intercept": line.fit.intercept, "slope": line.fit.slope, "term": term})
    return {"metric": name, "terms": terms}
