"""Findings of a comparison or a check in words: one line each, for a terminal, a pull request and a build server alike."""

from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from capsbench.axes import per_unit
from capsbench.frame import AXIS_COLUMN
from capsbench.gate.check import Fault, Finding, LeftOut
from capsbench.gate.comparison import Comparison, Outcome
from capsbench.gate.summary import SeriesSummary
from capsbench.stats.metrics import QUANTITIES
from capsbench.words.along import places_text
from capsbench.words.labels import Names, Series, images_title
from capsbench.words.modules import OUTSIDE, ModuleChange
from capsbench.words.slopes_in_words import within_text
from capsbench.words.units import bytes_text, number_with, quantity_text, slope_text, with_interval

_MODULES_NAMED = 4

ANY_NETWORK = "the network"
"""Title of a network in the labels of runs that are compared across networks."""


class Labels:
    """Labels of several series, as short as distinguishes them: `MoCapsNet (cpu), CIFAR-10`.

    Args:
        all_series: the series.
        ignored: names of options that labels do not mention.
    """

    def __init__(self, all_series: Iterable[Series], ignored: Collection[str] = ()) -> None:
        # A prediction names its GPU, and a measurement does not, so that across the kind a GPU distinguishes nothing.
        self._ignored = {*ignored} | ({"gpu"} if "kind" in ignored else set())
        self._series = list({repr(series): series for series in map(self._reduced, all_series)}.values())
        self._names = Names(self._series)
        self._datasets = len({series.get("dataset") for series in self._series}) > 1

    def of(self, series: Series) -> str:
        """The label of one series, in printable form."""
        return self._names.of(self._reduced(series)) + (f", {images_title([series])}" if self._datasets else "")

    def of_all(self, all_series: Iterable[Series]) -> str:
        """The labels of several series; `all lines` if they are all."""
        named = [self.of(series) for series in all_series]
        return "all lines" if 1 < len(named) == len(self._series) else ", ".join(named)

    def _reduced(self, series: Series) -> Series:
        if not self._ignored:
            return series
        kept = {name: value for name, value in series.items() if name not in self._ignored}
        return {"model": ANY_NETWORK} | kept


def figure_name(it: Comparison) -> str:
    """Name of a figure: `retained per block`, `train step`, `retained at 8 blocks`."""
    title = QUANTITIES[it.quantity].head
    if it.scope == "slope":
        return f"{title} {slope_unit(it)}"
    replicate = f" #{it.replicate + 1}" if it.replicate else ""
    place = _places(it.series, [it.position or 0])
    return title if it.scope == "level" else f"{title}{' at ' * bool(place)}{place}{replicate}"


def slope_unit(it: Comparison) -> str:
    """Unit of a slope, or of a term of a curve: `per block`, `per pair of tokens`."""
    return it.unit or per_unit(_axis(it.series))


def value_text(it: Comparison, run: Literal["before", "after"]) -> str:
    """The figure of a run: `8.3 ms`, `within ± 76.6 ms` for a slope that cannot be distinguished from 0."""
    value, side = (it.before, 0) if run == "before" else (it.after, 1)
    if value is None:
        return "-"
    shape = it.shapes[side] if it.shapes else "line"
    if shape == "no change measurable" and it.within:
        return within_text(it.within[side], is_bytes=it.is_bytes)
    text = quantity_text(value, is_bytes=it.is_bytes)
    return text if shape == "line" else f"{text} (not a line)"


def change_text(it: Comparison) -> str:
    """The change in text: `+1.00 MiB (+10.0 %)`, `+30.2 ± 5.1 %`, `within ± 5.1 %` if the interval contains 0, else `-`.

    Of a time it is at equal pace of the machine, if that is known.
    """
    if it.compared_values is None:
        return "-"
    before, after = it.compared_values
    change = after - before
    if it.low is None or it.high is None:
        if not change:
            return "none"
        share = f" ({100 * change / abs(before):+.1f} %)" if before else ""
        return f"{_sign(change)}{quantity_text(change, is_bytes=it.is_bytes)}{share}"
    if it.low <= 0 <= it.high:
        reach = max(-it.low, it.high)
        if it.scope == "slope":
            return within_text(reach, is_bytes=it.is_bytes)
        return f"within ± {number_with(100 * reach / before, 1)} %"
    if it.scope == "slope":
        return _sign(change) + slope_text(change, it.low, it.high, is_bytes=it.is_bytes)
    percent, low, high = (100 * one / before for one in (change, it.low, it.high))
    return f"{_sign(change)}{with_interval(percent, low, high, decimals=1)} %"


EQUAL_PACE = "at equal pace of the machine"
"""The condition under which differences of times are compared, if the pace is known."""


def pace_text(it: Comparison) -> str:
    """A remark with the values that verdict and difference are of, if those of the reports differ by more; else empty."""
    if it.equal_pace is None or not it.differs_by_pace:
        return ""
    before, after = (quantity_text(value, is_bytes=it.is_bytes) for value in it.equal_pace)
    return f"{EQUAL_PACE}, measured by {it.pace}: {before} → {after}"


def _sign(change: float) -> str:
    return "+" if change > 0 else ""


def finding_text(finding: Finding, labels: Labels) -> str:
    """A finding in text: `ResCapsNet: retained per block 1.00 MiB → 2.00 MiB, +1.00 MiB (+100.0 %); blocks.* +1.00 MiB each`."""
    it = finding.comparison
    text = f"{labels.of(it.series)}: {figure_name(it)} {value_text(it, 'before')} → {value_text(it, 'after')}"
    at_pace = pace_text(it)
    text += f"; {at_pace}, {change_text(it)}" if at_pace else f", {change_text(it)}{f' {EQUAL_PACE}' if it.equal_pace else ''}"
    if finding.cells and finding.of > 1:
        text += f", in {finding.cells} of {finding.of} cells"
    modules = modules_text(it.modules, grown=it.verdict == "worse")
    return "; ".join(filter(None, [text, modules, it.why]))


def modules_text(modules: Iterable[ModuleChange], *, grown: bool) -> str:
    """The largest changes of modules that retain more, or less: `blocks.*.0 +1.00 MiB each, decoder +512 B`."""
    changed = [it for it in modules if (it.nbytes > 0) == grown]
    parts = [
        f"{it.name or OUTSIDE} {'+' if grown else ''}{bytes_text(it.nbytes)}{' each' if it.count > 1 else ''}"
        for it in changed[:_MODULES_NAMED]
    ]
    return ", ".join([*parts, f"{len(changed) - _MODULES_NAMED} more"] if len(changed) > _MODULES_NAMED else parts)


def fault_text(fault: Fault, labels: Labels) -> str:
    """A fault in text: `MoCapsNet: 5, 6 blocks: oom where it was ok: out of memory`."""
    first = fault.first
    if first.after is None:
        how = "not measured" if not first.message else first.message
    else:
        how = first.after if first.before is None else f"{first.after} where it was {first.before}"
        how += f": {first.message}" if first.message and first.after != "ok" else ""
    return ": ".join(filter(None, [labels.of(first.series), _cells(fault.outcomes), how]))


def only_in_text(fault: Fault, labels: Labels) -> str:
    """Cells of a series that one run alone has, in text: `MoCapsNet at 5, 6 blocks`."""
    return " at ".join(filter(None, [labels.of(fault.first.series), _cells(fault.outcomes)]))


def missing_text(series: SeriesSummary, labels: Labels) -> str:
    """A note on a series of the baseline that was not measured at all."""
    places = _places(series.options(), sorted({cell.position for cell in series.cells}))
    return ": ".join(filter(None, [labels.of(series.options()), places, "not measured"]))


def left_out_text(left: LeftOut, labels: Labels) -> str:
    """An omission in text: `peak, train step of all lines: CPU A, B before`."""
    return f"{', '.join(QUANTITIES[name].head for name in left.quantities)} of {labels.of_all(left.series)}: {left.why}"


def _cells(outcomes: Iterable[Outcome]) -> str:
    alike = list(outcomes)
    replicates = sorted({it.replicate for it in alike} - {0})
    text = _places(alike[0].series, sorted({it.position for it in alike}))
    named = f"(replicate {', '.join(str(it + 1) for it in replicates)})" if replicates else ""
    return " ".join(filter(None, [text, named]))


def _places(series: Series, positions: Sequence[float]) -> str:
    """Positions of a series in words; empty if it has no blocks, and so none."""
    axis = _axis(series)
    return "" if axis == "blocks" and not any(positions) else places_text(axis, positions)


def _axis(series: Series) -> str:
    return str(series.get(AXIS_COLUMN, "blocks"))
