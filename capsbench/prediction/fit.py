"""The deepest network, or the largest batch or value of any other axis, that fits a device: by search over traced steps."""

from dataclasses import replace

from capsbench.catalog import OWN_INPUTS, spec_of
from capsbench.prediction.axis_fit import largest_on_axis
from capsbench.prediction.depth_fit import CHECKED, deeper
from capsbench.prediction.predict import Prediction, predict_memory, trace_for
from capsbench.prediction.search import Fit, Looking, neighbours, taken
from capsbench.records import Configuration

_MOST_SAMPLES = 100_000
"""Largest batch of a case that is looked at; that of images is an epoch."""


def largest_fit(configuration: Configuration, what: str, looking: Looking | None = None) -> Fit:
    """The largest depth, batch or value of another axis of a configuration that fits the device it names.

    Args:
        configuration: configuration, whose value of another axis is the one that the search begins with.
        what: `depth`, `batch`, or the name of an axis: a whole number that a case takes, an option, or `image_size`.
        looking: called before each size is traced.

    Raises:
        ConfigurationError: the network cannot be made, or followed without values, or does not take the axis.
    """
    if what not in ("depth", "batch"):
        return largest_on_axis(configuration, what, looking)
    name = "blocks" if what == "depth" else "batch_size"
    known: dict[int, Prediction] = {}

    def at(value: int) -> Prediction:
        if value not in known:
            if looking:
                looking(name, value)
            changed = configuration.model_copy(update={name: value})
            known[value] = predict_memory(changed, trace_for(changed, by_module=False))
        return known[value]

    if what == "depth" and at(CHECKED[-1]).fits:
        found = deeper(at, known, of_several=configuration.parallel is not None)
        return replace(found, lower_bound=any(one.lower_bound for one in known.values()))
    # A batch of images ends with the epoch, and that of a case nowhere.
    if what == "depth":
        most, bound = CHECKED[-1], ""
    elif configuration.dataset == OWN_INPUTS:
        most, bound = _MOST_SAMPLES, f"no more than {_MOST_SAMPLES:,} were looked at"
    else:
        most = spec_of(configuration.dataset).train_size
        whole = "the sample is of a set of" if configuration.dataset == "sample" else f"dataset '{configuration.dataset}' has"
        bound = f"{whole} {most:,} images, and a batch has no more"
    fitting, failing = neighbours(at, most)
    nbytes = taken(at(fitting)) if fitting else None
    reason = bound if failing is None else f"{failing:,} do not: {at(failing).reason}"
    lower_bound = any(one.lower_bound for one in known.values())
    return Fit(what, fitting, nbytes, failing is not None, True, reason, max(known), lower_bound)
