"""Names of series: the model, and the options that distinguish it from the other series shown with it."""

from collections.abc import Iterable, Mapping

import pandas as pd

from capsbench.catalog import MODELS, OWN_INPUTS, SPECS
from capsbench.frame import AXIS_COLUMN, plain
from capsbench.options import OPTIONS, PREDICTED, noun_of, value_in_words
from capsbench.typed_values import settings_in
from capsbench.words.along import over_text, places_text
from capsbench.words.printable import printable

_OF_IMAGES = ("image_shape", "classes")
"""Options in whose place a data set's images would be used; with either of them, images are random."""

_NOT_IN_NAMES = {"model", "dataset", "kind", AXIS_COLUMN}
# Each model has its own strategy and inverse, which distinguish series only if one model has several.
_NAMED_WITHIN_A_MODEL = {"source", *(name for name, option in OPTIONS.items() if option.of_model)}

STAND_IN = "the packaged images stand in for a set that was not on disk"
"""Remark on records whose images are those of the sample, in the shape of another set."""

Series = Mapping[str, object]


def model_title(name: str) -> str:
    """Title of a model in figures; any other name is made printable."""
    return MODELS.get(name) or printable(name)


def dataset_title(name: str) -> str:
    """Title of a data set in figures; any other name is made printable."""
    if name == OWN_INPUTS:
        return "own inputs"
    return SPECS[name].title if name in SPECS else printable(name)


def is_of_random_images(series: Series) -> bool:
    """Return whether the images of a series are random ones, of a shape or number of classes in place of its data set's."""
    if series.get("dataset") == OWN_INPUTS:
        return False
    return series.get(AXIS_COLUMN) in _OF_IMAGES or any(plain(series.get(name)) is not None for name in _OF_IMAGES)


def images_title(all_series: Iterable[Series]) -> str:
    """Title of the inputs that series of one data set have: `CIFAR-10`, or `random 3×64×64 images` if they are not the set's.

    Args:
        all_series: at least one series; all are of one data set, and have its images or all have random ones.
    """
    listed = list(all_series)
    dataset = str(listed[0]["dataset"])
    if not is_of_random_images(listed[0]):
        return dataset_title(dataset)
    usual = SPECS[dataset].shape if dataset in SPECS else ()
    shapes = {(plain(one.get("image_shape")), one.get(AXIS_COLUMN) == "image_shape") for one in listed}
    known = {tuple(map(int, str(shape).split("x"))) if shape is not None else usual for shape, _ in shapes}
    (first, *others) = known
    if others or not first or any(is_axis for _, is_axis in shapes) or 0 in first:
        channels = {shape[0] for shape in known if shape}
        count = channels.pop() if len(channels) == 1 else 0
        return f"random images of {count} channel{'' if count == 1 else 's'}" if count else "random images"
    return f"random {'×'.join(map(str, first))} images"


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


def conditions_text(all_series: Iterable[Series]) -> str:
    """The device and batch size that all series share: `predicted for GPU h100, batch 128`, `measured on cpu`; empty if none."""
    listed = list(all_series)
    devices = {(is_predicted(one), str(one["device"]).removesuffix(PREDICTED), plain(one.get("gpu"))) for one in listed}
    batches = {plain(one.get("batch_size")) for one in listed}
    words = []
    if len(devices) == 1:
        ((predicted, device, gpu),) = devices
        where = "a CPU" if device == "cpu" else f"GPU {gpu}" if gpu else device
        words.append(f"predicted for {where}" if predicted else f"measured on {device}")
    if len(batches) == 1 and None not in batches:
        words.append(f"batch {batches.pop()}")
    return ", ".join(words)


class Names:
    """Names of series that are shown together, for many series at once.

    Args:
        all_series: all of them.
    """

    def __init__(self, all_series: Iterable[Series]) -> None:
        everyone = list(all_series)
        # A prediction's device and kernel differ by name alone, so that series are distinguished among those of their
        # kind, except by the batch, which changes every figure. Series along different axes share no chart.
        self._batches: dict[object, set[object]] = {}
        groups: dict[object, list[Series]] = {}
        for series in everyone:
            self._batches.setdefault(series.get(AXIS_COLUMN), set()).add(plain(series.get("batch_size")))
            groups.setdefault((series.get(AXIS_COLUMN), is_predicted(series)), []).append(series)
        self._alike = {key: _Alike(some) for key, some in groups.items()}
        texts = [set(settings_in(str(one["settings"]))) for one in everyone if plain(one.get("settings")) is not None]
        self._shared = set.intersection(*texts) if len(texts) > 1 else set()
        """Settings that all cases share, which distinguish none."""

    def of(self, series: Series) -> str:
        """The name: `MoCapsNet`, or `MoCapsNet (batch 32, published)` if other series differ in that; predictions say so."""
        axis = series.get(AXIS_COLUMN)
        words = [over_text(str(axis))] if len(self._batches) > 1 else []
        words += ["predicted"] if is_predicted(series) else []
        alike = self._alike[axis, is_predicted(series)]
        for column in (name for name in series if name not in _NOT_IN_NAMES):
            if alike.differ(series, column) or (column == "batch_size" and len(self._batches[axis]) > 1):
                word = _word(series, column)
                # The next columns only have to distinguish the series that agree so far.
                alike = alike.with_word(column, word)
                words.append(self._own_settings(word) if column == "settings" else word)
        title = model_title(str(series["model"]))
        return f"{title} ({printable(', '.join(words))})" if words else title

    def _own_settings(self, text: str) -> str:
        """The settings of a case that not all cases share."""
        return ", ".join(one for one in settings_in(text) if one not in self._shared) or text


class _Alike:
    """Lines that agree in all words so far; each such group is examined once, for any number of series."""

    def __init__(self, all_series: list[Series]) -> None:
        self._series = all_series
        self._words: dict[str, set[tuple[object, str, bool]]] = {}
        """Model, word and lack of the option in each series, by option."""
        self._parts: dict[tuple[str, str], _Alike] = {}

    def differ(self, series: Series, column: str) -> bool:
        """Return whether an option distinguishes a series from others of its model, or from all that have the option."""
        if column not in self._words:
            self._words[column] = {(one["model"], _word(one, column), _lacks(one, column)) for one in self._series}
        words = self._words[column]
        if len({word for model, word, _ in words if model == series["model"]}) > 1:
            return True
        if column in _NAMED_WITHIN_A_MODEL or _lacks(series, column):
            return False
        return len({word for _, word, lacks in words if not lacks}) > 1

    def with_word(self, column: str, word: str) -> "_Alike":
        """The series whose option has this word."""
        key = column, word
        if key not in self._parts:
            self._parts[key] = _Alike([series for series in self._series if _word(series, column) == word])
        return self._parts[key]


def _word(series: Series, column: str) -> str:
    known, option = plain(series[column]), OPTIONS.get(column)
    if column == "source":
        return "source unknown" if known is None else f"source {str(known)[:6]}"
    if known is None and option is not None:
        known = option.unwritten if option.before is None else option.before
    if known is None:
        return f"no {noun_of(column)}"
    if column == "blocks":
        return places_text("blocks", [float(str(known))])
    # A column with missing values is of floats: 2.0 threads are 2.
    return value_in_words(column, known)


def _lacks(series: Series, column: str) -> bool:
    """Return whether a series' model lacks this option; an option that cells leave out at its default has a value."""
    option = OPTIONS.get(column)
    left_out = option is not None and option.unwritten is not None and option.networks.have(series["model"])
    return plain(series[column]) is None and not left_out
