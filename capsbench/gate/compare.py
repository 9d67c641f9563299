"""Comparison of two runs, figure by figure: slopes, levels and cells, and whether a difference matters.

Worse means statistically different and beyond a threshold of the quantity. Bytes repeat exactly: any difference is one. Times are
compared by `paces`, in units of a yardstick that was timed beside them, so that a slower machine is no regression.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from capsbench.errors import ConfigurationError
from capsbench.gate.comparison import Compared, Comparison, Outcome, Thresholds
from capsbench.gate.paces import adjusted
from capsbench.gate.paired_series import FAULTS, PairedSeries
from capsbench.gate.summary import SeriesSummary, Summary
from capsbench.stats.median import CONFIDENCE


def compare(before: Summary, after: Summary, thresholds: Thresholds | None = None) -> Compared:
    """Compare every figure that both runs have.

    Args:
        before: the first run, or a baseline.
        after: the second.
        thresholds: differences from which on a change matters.

    Raises:
        ConfigurationError: they have no series in common.
    """
    limits = thresholds or Thresholds()
    pairs, only_before, only_after = _match(before.lines, after.lines)
    if not pairs:
        raise ConfigurationError(
            "the two have no line in common" + _nearest(before.lines, after.lines), "measure the same models and options"
        )
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
    return Compared(_judged(comparisons), outcomes, only_before, only_after)


def _match(
    before: Sequence[SeriesSummary], after: Sequence[SeriesSummary]
) -> tuple[list[tuple[SeriesSummary, SeriesSummary]], list[SeriesSummary], list[SeriesSummary]]:
    """Pairs of series of both runs, in the order of the first; then the series of each run alone.

    A series is matched on any machine, unless a run has several series that differ in the machine alone.
    """
    old, new = _by_key(before), _by_key(after)
    found = {key: (old.pop(key), new.pop(key)) for key in old.keys() & new.keys()}
    by_name = [Counter(series.portable_key() for series in all_series.values()) for all_series in (old, new)]
    others = {series.portable_key(): key for key, series in new.items()}
    for key, series in list(old.items()):
        name = series.portable_key()
        if all(count[name] == 1 for count in by_name):
            found[key] = old.pop(key), new.pop(others[name])
    order = dict.fromkeys(series.key() for series in before)
    return [found[key] for key in order if key in found], list(old.values()), list(new.values())


def _by_key(all_series: Sequence[SeriesSummary]) -> dict[str, SeriesSummary]:
    """Series by key; if one lies along the first axis of a report and a further one of another, the former has the cells."""
    found: dict[str, SeriesSummary] = {}
    for series in sorted(all_series, key=lambda one: one.further):
        found.setdefault(series.key(), series)
    return found


def _nearest(before: Sequence[SeriesSummary], after: Sequence[SeriesSummary]) -> str:
    """The smallest difference between a series of one run and a series of the other."""
    nearest: tuple[list[str], SeriesSummary, SeriesSummary] | None = None
    for old in before:
        for new in after:
            there = new.options()
            names = [name for name, value in old.options().items() if value != there[name]]
            if nearest is None or len(names) < len(nearest[0]):
                nearest = names, old, new
    if nearest is None:
        return ": one of them is empty"
    names, old, new = nearest
    return f"; the nearest differ in {', '.join(f'{name} ({old.options()[name]}, {new.options()[name]})' for name in names)}"


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
