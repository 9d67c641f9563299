"""Forecast of a sweep before anything runs: its cells by series, and the predicted peaks at both ends of each series."""

from collections.abc import Sequence
from typing import NamedTuple

from capsbench.devices import DEFAULT_GPU, gpu_of
from capsbench.prediction.predict import predict_cell
from capsbench.records import PREDICTED, Cell, Configuration, Plan

MOST_TRACED = 8
"""Most cells whose peak is predicted, for each takes about a second."""

_DEEPEST = 64
"""Largest number of blocks of a cell whose peak is predicted."""


def cells_by_series(plan: Plan) -> list[list[Cell]]:
    """The cells of a plan that differ along its axes alone, or are replicates, together."""
    found: dict[str, list[Cell]] = {}
    for cell in plan.cells:
        found.setdefault(cell.configuration.without(*plan.axes).model_dump_json(), []).append(cell)
    return list(found.values())


class Forecast(NamedTuple):
    """The predictions for the ends of a series."""

    peaks: Sequence[int] = ()
    """Bytes of the smaller and of the larger peak; none if one of the two is not predicted."""
    failures: Sequence[str] = ()
    """Reason that a prediction did not end, in words."""


def forecast(cells: Sequence[Cell]) -> Forecast:
    """Predict the peaks of the first and the last of some cells."""
    ends = list(dict.fromkeys((cells[0], cells[-1])))
    if max(cell.configuration.blocks for cell in ends) > _DEEPEST:
        return Forecast()
    predictions = [cell.model_copy(update={"configuration": prediction_of(cell.configuration)}) for cell in ends]
    records = [predict_cell(cell) for cell in predictions]
    peaks = [
        record.memory.peak_allocated_bytes
        for record in records
        if record.memory is not None and record.memory.peak_allocated_bytes is not None
    ]
    failures = [record.message for record in records if record.status == "error" and record.message]
    return Forecast(sorted(peaks) if len(peaks) == len(ends) else (), list(dict.fromkeys(failures)))


def prediction_of(it: Configuration) -> Configuration:
    """The configuration that predicts the step of a measured one on its kind of device; a prediction as it is."""
    if it.is_predicted():
        return it
    kind = it.device_kind()
    asked = {"device": kind + PREDICTED, "threads": None, "gpu": gpu_of(DEFAULT_GPU).name if kind == "cuda" else None}
    return it.model_copy(update=asked)
