"""What a line is called: its model, and whatever tells it from the other lines beside it."""

from collections.abc import Iterable, Mapping

import pandas as pd

from capsbench.data.catalog import SPECS

MODEL_TITLES = {"capsnet": "CapsNet", "rescapsnet": "ResCapsNet", "mocapsnet": "MoCapsNet"}

_NEVER_TOLD = {"model", "dataset", "report"}
# Each model has its own strategy and inverse: they tell lines apart only where one model has several.
_TOLD_WITHIN_A_MODEL = {"memory", "inverse", "rule", "gamma"}

Line = Mapping[str, object]


def model_title(name: str) -> str:
    """A model as figures spell it."""
    return MODEL_TITLES.get(name, name)


def dataset_title(name: str) -> str:
    """A data set as figures spell it."""
    return SPECS[name].title if name in SPECS else name


def line_label(line: Line, others: Iterable[Line]) -> str:
    """`MoCapsNet`, or `MoCapsNet (batch 32, published)` where other lines differ in just that."""
    told = []
    everything = list(others)
    own = [other for other in everything if other["model"] == line["model"]]
    for column, value in line.items():
        if column in _NEVER_TOLD or pd.isna(value):  # type: ignore[call-overload]
            continue
        beside = own if column in _TOLD_WITHIN_A_MODEL else everything
        if len({other[column] for other in beside if not pd.isna(other[column])}) > 1:  # type: ignore[call-overload]
            told.append(str(value) if isinstance(value, str) else f"{column.removesuffix('_size')} {value}")
    title = model_title(str(line["model"]))
    return f"{title} ({', '.join(told)})" if told else title
