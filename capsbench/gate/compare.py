"""Comparison of two runs, figure by figure: slopes, levels and cells, and whether a difference matters.

Worse means statistically different and beyond a threshold of the quantity. Bytes repeat exactly: any difference is one. Times are
compared by `paces`, in units of a yardstick that was timed with them, so that a slower machine is no regression.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from capsbench.errors import ConfigurationError, unknown_name
from capsbench.gate.comparison import Compared, Comparison, Outcome, Thresholds
from capsbench.gate.paces import adjusted
from capsbench.gate.paired_series import PairedSeries
from capsbench.gate.summary import SeriesSummary, Summary, function_name, network_name, same_network
from capsbench.options import OPTIONS, value_as_typed
from capsbench.records import FAULTS
from capsbench.stats.median import CONFIDENCE

_Pair = tuple[SeriesSummary, SeriesSummary]
"""A series of the first run, and the one of the second that is compared with it."""

_Key = Callable[[SeriesSummary], str]
"""A function that returns a key, which is equal for series that are compared."""

ACROSS = (*OPTIONS, "kind")
"""Names of what two runs may be compared across."""


def compare(before: Summary, after: Summary, thresholds: Thresholds | None = None, *, across: Sequence[str] = ()) -> Compared:
    """Compare every figure that both runs have.

    Args:
        before: the first run, or a baseline.
        after: the second.
        thresholds: differences from which on a change matters.
        across: names of `ACROSS`, options in which the two may differ: `kernel`, or `kind` to compare predicted with measured.

    Raises:
        ConfigurationError: they have no series in common, several series of one run differ in `across` alone, or a name in it is
            not known.
    """
    limits = thresholds or Thresholds()
    if unknown := [name for name in across if name not in ACROSS]:
        raise unknown_name("`across`", unknown[0], ACROSS)
    if across:
        first, second = _by_key_across(before.lines, across, "first"), _by_key_across(after.lines, across, "second")
        keys: tuple[_Key, ...] = (lambda one: one.key_across(across), lambda one: one.portable_key_across(across))
    else:
        first, second = _by_key(before.lines), _by_key(after.lines)
        keys = (SeriesSummary.key, SeriesSummary.portable_key)
    pairs, only_before, only_after = _match(first, second, keys, any_network="model" in across)
    if not pairs:
        raise _nothing_in_common(before.lines, after.lines)
    comparisons: list[Comparison] = []
    outcomes: list[Outcome] = []
    for old, new in pairs:
        pair = PairedSeries(old, new, before, after, limits)
        comparisons += pair.comparisons()
        outcomes += pair.outcomes()
    # A new series can fail as well as a known one.
    outcomes += [
        Outcome(series.options(), cell.position, cell.replicate, None, cell.status, "worse", cell.message or "")
        for series in only_after
        if not series.further
        for cell in series.cells
        if cell.status in FAULTS
    ]
    return Compared(_judged(comparisons), outcomes, only_before, only_after, _differences(pairs, across), tuple(across))


def _by_key_across(all_series: Sequence[SeriesSummary], across: Sequence[str], which: str) -> dict[str, SeriesSummary]:
    """Series of one run by their keys across options.

    Args:
        all_series: series of the run.
        across: names of `ACROSS`.
        which: name of the run for the error, `first` or `second`.

    Raises:
        ConfigurationError: two of them differ in these options alone.
    """
    found: dict[str, SeriesSummary] = {}
    for series in _by_key(all_series).values():
        twin = found.setdefault(series.key_across(across), series)
        if twin is not series:
            names = [name for name, value in twin.options().items() if value != series.options()[name]]
            values = ", ".join(f"{name} {_value(one, name)}" for one in (twin, series) for name in names)
            raise ConfigurationError(
                f"`across` {','.join(across)} leaves several lines of the {which} run alike: {values}",
                "compare reports that have one of these each",
            )
    return found


def _value(series: SeriesSummary, name: str) -> str:
    return value_as_typed(name, series.options()[name])


def _differences(pairs: Sequence[_Pair], across: Sequence[str]) -> tuple[str, ...]:
    """The values of each run in the options that pairs were matched across, where they differ."""
    found = (_difference(one, other, name) for name in across for one, other in pairs if _differ(one, other, name))
    return tuple(dict.fromkeys(found))


def _differ(one: SeriesSummary, other: SeriesSummary, name: str) -> bool:
    """Return whether two series differ in an option; two names of one network are no difference."""
    if name == "model":
        return not same_network(one.configuration.model, other.configuration.model)
    return bool(one.options()[name] != other.options()[name])


def _difference(one: SeriesSummary, other: SeriesSummary, name: str) -> str:
    """The values of two series in an option: `kernel: recompute in the first, published in the second`."""
    return f"{name}: {_value(one, name)} in the first, {_value(other, name)} in the second"


def _match(
    before: Mapping[str, SeriesSummary], after: Mapping[str, SeriesSummary], keys: Sequence[_Key], *, any_network: bool
) -> tuple[list[_Pair], list[SeriesSummary], list[SeriesSummary]]:
    """Pairs of series of both runs, in the order of the first; then the series of each run alone.

    A series is matched on any machine and under any name of its network, unless a run has several series that differ in these
    alone.

    Args:
        before: series of the first run by their keys.
        after: series of the second by theirs.
        keys: functions that return a key in which the machine counts, and one in which it does not.
        any_network: whether the two may be of different networks.
    """
    old, new = dict(before), dict(after)
    found = {key: (old.pop(key), new.pop(key)) for key in old.keys() & new.keys()}
    for name_of in (str, network_name, function_name):
        for key_of in keys:
            named = [
                {place: key_of(series.named(name_of(series.configuration.model))) for place, series in run.items()}
                for run in (old, new)
            ]
            counts = [Counter(names.values()) for names in named]
            others = {name: place for place, name in named[1].items()}
            for place, name in named[0].items():
                if any(count[name] != 1 for count in counts):
                    continue
                one, other = old[place], new[others[name]]
                if any_network or same_network(one.configuration.model, other.configuration.model):
                    found[place] = old.pop(place), new.pop(others[name])
    return [found[key] for key in before if key in found], list(old.values()), list(new.values())


def _by_key(all_series: Sequence[SeriesSummary]) -> dict[str, SeriesSummary]:
    """Series by key; if one lies along the first axis of a report and a further one of another, the former has the cells."""
    found: dict[str, SeriesSummary] = {}
    for series in sorted(all_series, key=lambda one: one.further):
        found.setdefault(series.key(), series)
    return found


def _nearest_pair(before: Sequence[SeriesSummary], after: Sequence[SeriesSummary]) -> tuple[list[str], _Pair] | None:
    """The series of either run that differ in fewest options, with the names of these; None if a run is empty."""
    nearest: tuple[list[str], _Pair] | None = None
    for old in before:
        for new in after:
            there = new.options()
            names = [name for name, value in old.options().items() if value != there[name]]
            if len(names) > 1 and same_network(old.configuration.model, new.configuration.model):
                names = [name for name in names if name != "model"]
            if nearest is None or len(names) < len(nearest[0]):
                nearest = names, (old, new)
    return nearest


def _nothing_in_common(before: Sequence[SeriesSummary], after: Sequence[SeriesSummary]) -> ConfigurationError:
    """The error of two runs without a series in common, with the smallest difference between two of theirs."""
    nearest = _nearest_pair(before, after)
    if nearest is None:
        return ConfigurationError("the two have no line in common: one of them is empty", "measure the same models and options")
    names, (old, new) = nearest
    apart = f", or use 'capsbench compare' with `across` {','.join(names)}" if set(names) <= set(ACROSS) else ""
    differences = "; ".join(_difference(old, new, name) for name in names)
    return ConfigurationError(
        f"the two have no line in common; the nearest differ: {differences}",
        f"measure the same models and options{apart}",
    )


def _judged(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Times with their verdicts: a difference counts where its p-value, adjusted for all times of its scope, is below 5 %.

    Levels, slopes and cells are a family each, so that many slopes within the noise do not hide a level.
    """
    judged = list(comparisons)
    for scope in ("level", "slope", "cell"):
        places = [place for place, it in enumerate(judged) if it.scope == scope and it.p_value is not None]
        for place, p_value in zip(places, adjusted([judged[place].p_value or 0.0 for place in places]), strict=True):
            one = replace(judged[place], p_value=p_value)
            if one.verdict != "same" and p_value >= 1 - CONFIDENCE:
                one = replace(one, verdict="same", why="; ".join(filter(None, ["within the noise", one.why])))
            judged[place] = one
    return judged
