"""The largest value of an axis other than depth and batch that fits."""

from dataclasses import dataclass
from functools import cached_property

from capsbench.axes import IMAGE_SIZE
from capsbench.catalog import OWN_INPUTS
from capsbench.errors import CapsbenchError, ConfigurationError, suggesting
from capsbench.options import AXES_OF_FIELDS, OPTIONS
from capsbench.prediction.predict import Prediction, predict_memory, trace_for
from capsbench.prediction.search import Fit, Looking, neighbours, taken
from capsbench.records import Configuration

MOST_ON_AXIS = 2**20
"""Largest value of an axis that is looked at."""
_STRIDES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Distances of values that are tried: a width may have to be a multiple of the number of heads."""


def largest_on_axis(configuration: Configuration, axis: str, looking: Looking | None = None) -> Fit:
    """The largest value of an axis that fits.

    Args:
        configuration: configuration, whose value of the axis is the one that the search begins with.
        axis: name of the axis.
        looking: called before each value is traced.

    Raises:
        ConfigurationError: the axis changes nothing, or the configuration makes no network, or takes no such axis.
    """
    values = _Values(configuration, axis, looking)
    first, larger = values.at(values.start), values.larger
    if isinstance(first, Prediction) and larger is not None and larger.memory == first.memory:
        raise ConfigurationError(
            f"`fit` {axis}: it changes nothing of the memory of model '{configuration.model}'",
            f"search for one that does: {', '.join(axes_to_fit(configuration))}",
        )
    series = values.series
    number, failing = neighbours(lambda number: values.at(series.value(number)), series.length, first=series.number(values.start))
    fitting = series.value(number) if number else 0
    reason = f"no more than {MOST_ON_AXIS:,} was looked at"
    if failing is not None:
        beyond = values.at(series.value(failing))
        why = f"makes no network: {beyond}" if isinstance(beyond, str) else f"does not: {beyond.reason}"
        reason = f"{series.value(failing):,} {why}"
    found = values.at(fitting) if fitting else ""
    nbytes = None if isinstance(found, str) else taken(found)
    return Fit(
        axis, fitting, nbytes, bounded=failing is not None, traced=True, reason=reason + values.left_out,
        looked_at=max(values.known),
        lower_bound=any(not isinstance(one, str) and one.lower_bound for one in values.known.values()),
    )  # fmt: skip


@dataclass(frozen=True)
class _Series:
    """Values that are numbered from 1: in equal steps, or, without a step, each twice the one before."""

    smallest: int
    step: int | None

    @property
    def length(self) -> int:
        """The number of the values up to the largest that is looked at."""
        return self.number(MOST_ON_AXIS)

    def value(self, number: int) -> int:
        return self.smallest << (number - 1) if self.step is None else self.smallest + (number - 1) * self.step

    def number(self, value: int) -> int:
        """The number of a value; of the next smaller one, if this is none of the series."""
        return (value // self.smallest).bit_length() if self.step is None else (value - self.smallest) // self.step + 1


class _Values:
    """The values of an axis, each traced once, if there is a network of it.

    Args:
        configuration: configuration, whose value of the axis is the one that the search begins with.
        axis: name of the axis.
        looking: called before each value is traced.
    """

    def __init__(self, configuration: Configuration, axis: str, looking: Looking | None = None) -> None:
        self._configuration, self._axis, self._looking = configuration, axis, looking
        self.start = _value_on(configuration, axis)
        self.known: dict[int, Prediction | str] = {}
        """The predictions so far, by value."""

    def at(self, value: int) -> Prediction | str:
        """Return the prediction of a value, or the reason that it makes no network."""
        if value not in self.known:
            if self._looking:
                self._looking(self._axis, value)
            changed = _changed(self._configuration, self._axis, value)
            try:
                self.known[value] = predict_memory(changed, trace_for(changed, by_module=False))
            except CapsbenchError as error:
                if value == self.start:
                    raise
                self.known[value] = error.what
        return self.known[value]

    @cached_property
    def stride(self) -> int:
        """The distance of values that make a network: the first that is tried and makes one, or the first value itself."""
        return next((one for one in _STRIDES if not isinstance(self.at(self.start + one), str)), self.start)

    @cached_property
    def larger(self) -> Prediction | None:
        """The prediction of some larger value; None if none was found."""
        found = (self.at(2 * self.start), self.at(self.start + self.stride))
        return next((one for one in found if not isinstance(one, str)), None)

    @cached_property
    def series(self) -> _Series:
        """The values that are searched."""
        doubles = self.stride == self.start > 1 and isinstance(self.at(3 * self.start), str) and self.larger is not None
        if doubles:
            return _Series(self.start // (self.start & -self.start), None)
        return _Series((self.start - 1) % self.stride + 1, self.stride)

    @property
    def left_out(self) -> str:
        """The values that were not looked at, as the end of a sentence; empty if there are none."""
        if self.series.step is None:
            return f"; of values that double, as {3 * self.start:,} makes no network"
        return f"; in steps of {self.stride:,}, as {self.start + 1:,} makes no network" if self.stride > 1 else ""


def axes_to_fit(configuration: Configuration) -> list[str]:
    """Names of all that can be searched for in a configuration."""
    taken = [name for name, value in configuration.settings or () if type(value) is int]
    if configuration.dataset != OWN_INPUTS:
        fields = [name for name in AXES_OF_FIELDS if name not in ("blocks", "batch_size", "image_shape", "threads")]
        positions = {name: configuration.position(name) for name in fields if OPTIONS[name].networks.have(configuration.model)}
        taken += [name for name, place in positions.items() if place is not None and place.is_integer()] + [IMAGE_SIZE]
    named = {"depth": configuration.blocks, "batch": configuration.batch_size}
    return [*(name for name, value in named.items() if value), *taken]


def check_axis(configuration: Configuration, axis: str) -> None:
    """Refuse an axis other than depth and batch on which a configuration has no whole number.

    Raises:
        ConfigurationError: it has none.
    """
    known = axes_to_fit(configuration)
    if axis not in known:
        raise ConfigurationError(
            f"`fit` {axis}: model '{configuration.model}' takes no whole number of this name",
            suggesting(axis, known, f"search for one of {', '.join(known)}"),
        )


def _value_on(configuration: Configuration, axis: str) -> int:
    """The value of a configuration on an axis."""
    check_axis(configuration, axis)
    if axis == IMAGE_SIZE and axis not in dict(configuration.settings or ()):
        return configuration.spec().shape[1]
    return max(1, int(configuration.position(axis) or 1))


def _changed(configuration: Configuration, axis: str, value: int) -> Configuration:
    """The configuration with another value on an axis."""
    if axis in dict(configuration.settings or ()):
        made = tuple((name, value if name == axis else one) for name, one in configuration.settings or ())
        return configuration.model_copy(update={"settings": made})
    if axis == IMAGE_SIZE:
        return configuration.model_copy(update={"image_shape": f"{configuration.spec().shape[0]}x{value}x{value}"})
    return configuration.model_copy(update={axis: value})
