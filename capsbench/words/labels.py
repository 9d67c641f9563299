"""Names of series: the model, and the options that distinguish it from the other series beside it."""

from collections.abc import Iterable, Mapping

import pandas as pd

from capsbench.catalog import SPECS
from capsbench.frame import plain
from capsbench.options import MODELS, OPTIONS, noun_of
from capsbench.words.printable import printable

_NEVER_TOLD = {"model", "dataset", "kind"}
# Each model has its own strategy and inverse, which distinguish series only if one model has several.
_TOLD_WITHIN_A_MODEL = {"source", *(name for name, option in OPTIONS.items() if option.of_model)}

Series = Mapping[str, object]


def model_title(name: str) -> str:
    """Title of a model in figures; any other name is made printable."""
    return MODELS.get(name) or printable(name)


def dataset_title(name: str) -> str:
    """Title of a data set in figures; any other name is made printable."""
    return SPECS[name].title if name in SPECS else printable(name)


def cut(text: str, most: int) -> str:
    """A text of at most `most` characters; one that is cut ends in an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def network_title(model: str, blocks: int, dataset: str) -> str:
    """Title of a network in figures: `MoCapsNet, 2 blocks, MNIST`; one without blocks names none."""
    depth = [f"{blocks} block" + ("s" if blocks > 1 else "")] if blocks else []
    return ", ".join([model_title(model), *depth, dataset_title(dataset)])


def on_gpu(frame: pd.DataFrame) -> pd.Series:
    """Mask of the rows that were measured on a CUDA device, whose memory the paper reads."""
    return frame["device"].str.startswith("cuda")


def is_predicted(series: Series) -> bool:
    """Return whether a series' figures come from a trace of the step, not from a run."""
    return series.get("kind") == "predicted"


def series_label(series: Series, others: Iterable[Series]) -> str:
    """Label of a series: `MoCapsNet`, or `MoCapsNet (batch 32, published)` if other series differ in that; predictions say so."""
    return Names(others).of(series)


class Names:
    """Names of series beside each other, for many series at once.

    Args:
        series: all of them.
    """

    def __init__(self, all_series: Iterable[Series]) -> None:
        everyone = list(all_series)
        # A prediction's device and kernel differ by name alone, so that series are distinguished among those of their
        # kind, except by the batch, which changes every figure.
        self._batches = {series.get("batch_size") for series in everyone}
        self._alike = {kind: _Alike([series for series in everyone if is_predicted(series) == kind]) for kind in (False, True)}

    def of(self, series: Series) -> str:
        """The name of one series, as in `series_label`, in printable form."""
        told = ["predicted"] if is_predicted(series) else []
        alike = self._alike[is_predicted(series)]
        for column, value in series.items():
            if column in _NEVER_TOLD:
                continue
            own, everyone = alike.words(column)
            # An option that another model does not have distinguishes nothing.
            elsewhere = len(everyone) > 1 and not _without(series, column) and column not in _TOLD_WITHIN_A_MODEL
            if len(own.get(series["model"], ())) > 1 or elsewhere or (column == "batch_size" and len(self._batches) > 1):
                told.append(_word(column, value))
                # The next columns only have to distinguish the series that agree so far.
                alike = alike.that_agree(column, told[-1])
        title = model_title(str(series["model"]))
        return f"{title} ({printable(', '.join(told))})" if told else title


class _Alike:
    """Series that agree in all words so far; each such group is examined once, for any number of series."""

    def __init__(self, all_series: list[Series]) -> None:
        self._series = all_series
        self._words: dict[str, tuple[dict[object, set[str]], set[str]]] = {}
        self._parts: dict[tuple[str, str], _Alike] = {}

    def words(self, column: str) -> tuple[dict[object, set[str]], set[str]]:
        """Words of an option: by model, and over all models that have it."""
        if column not in self._words:
            own: dict[object, set[str]] = {}
            everyone: set[str] = set()
            for series in self._series:
                word = _word(column, series[column])
                own.setdefault(series["model"], set()).add(word)
                everyone |= set() if _without(series, column) else {word}
            self._words[column] = own, everyone
        return self._words[column]

    def that_agree(self, column: str, word: str) -> "_Alike":
        """The series whose option has this word."""
        key = column, word
        if key not in self._parts:
            self._parts[key] = _Alike([series for series in self._series if _word(column, series[column]) == word])
        return self._parts[key]


def _word(column: str, value: object) -> str:
    known = plain(value)
    if column == "source":
        return "source unknown" if known is None else f"source {str(known)[:6]}"
    option = OPTIONS.get(column)
    if known is None and option is not None:
        known = option.unwritten if option.before is None else option.before
    noun = noun_of(column)
    if known is None:
        return f"no {noun}"
    if isinstance(known, str):
        return option.words.get(known, known) if option is not None else known
    # A column with missing values is of floats: 2.0 threads are 2.
    return f"{noun} {known}"


def _without(series: Series, column: str) -> bool:
    """Return whether a series' model lacks this option; an option that cells leave out at its default has a value."""
    option = OPTIONS.get(column)
    left_out = option is not None and option.unwritten is not None and option.networks.have(series["model"])
    return plain(series[column]) is None and not left_out
