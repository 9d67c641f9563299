"""What a line is called: its model, and whatever tells it from the other lines beside it."""

from collections.abc import Iterable, Mapping

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
    alike = list(others)
    for column, value in line.items():
        if column in _NEVER_TOLD or _missing(value):
            continue
        own = [other for other in alike if other["model"] == line["model"]]
        beside = own if column in _TOLD_WITHIN_A_MODEL else alike
        if len({other[column] for other in beside if not _missing(other[column])}) > 1:
            told.append(str(value) if isinstance(value, str) else f"{column.removesuffix('_size')} {value}")
            # What is told already needs no second word: the next columns speak of the lines that agree so far.
            alike = [other for other in alike if other[column] == value]
    title = model_title(str(line["model"]))
    return f"{title} ({', '.join(told)})" if told else title


def _missing(value: object) -> bool:
    return value is None or value != value
