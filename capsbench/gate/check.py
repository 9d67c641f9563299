"""The decision whether a run may pass: growth against a pinned baseline, improvements, omissions, changes since the last run."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from capsbench.errors import ConfigurationError
from capsbench.gate.compare import compare
from capsbench.gate.comparison import Compared, Comparison, Outcome, Thresholds, Verdict
from capsbench.gate.summary import SeriesSummary, Summary, network_name
from capsbench.words.labels import Series


@dataclass(frozen=True)
class Finding:
    """A figure that changed beyond its threshold: a slope or level, or the cells of a series whose slope has not changed."""

    comparison: Comparison
    """The comparison; of several cells, that of the last on the axis."""
    cells: int = 0
    """Number of cells that changed; 0 for a slope or level."""
    of: int = 0
    """Number of cells in all."""


@dataclass(frozen=True)
class Fault:
    """Cells of one series that ended alike, and not as they should."""

    outcomes: tuple[Outcome, ...]

    @property
    def first(self) -> Outcome:
        """The first of its outcomes."""
        return self.outcomes[0]


@dataclass(frozen=True)
class LeftOut:
    """A figure that could not be compared."""

    why: str
    quantities: tuple[str, ...]
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Judgement:
    """The findings of a check."""

    compared: Compared
    regressions: list[Finding | Fault]
    improvements: list[Finding | Fault]
    left_out: list[LeftOut]
    fewer: list[Fault]
    """Replicates of the baseline that the run lacks."""
    missing: list[SeriesSummary]
    """Series of the baseline that the run lacks, which are regressions too."""
    since_last: list[Finding]
    """Growth since the last run that is not beyond the threshold from the baseline."""
    last_differs: str = ""
    """The reason that the last run could not be compared; empty if it could."""

    @property
    def passed(self) -> bool:
        """Return whether nothing is worse."""
        return not self.regressions and not self.missing

    def __repr__(self) -> str:
        """Return the lines of `capsbench check`."""
        from capsbench.gate.verdicts import CheckText

        return "\n".join(CheckText(self, "the baseline", "").lines())


def judge(run: Summary, baseline: Summary, last: Summary | None = None, thresholds: Thresholds | None = None) -> Judgement:
    """Compare a run with a baseline.

    Changes below the threshold from run to run cannot add up unseen, because the baseline stays where it was pinned. The last
    run only shows recent changes; it makes nothing a regression.

    Args:
        run: summary of the run that is checked.
        baseline: summary that it may not exceed.
        last: an earlier run.
        thresholds: differences from which on a change matters.

    Raises:
        ConfigurationError: the run and the baseline have no series in common.
    """
    compared = compare(baseline, run, thresholds)
    worse = list(findings(compared, "worse"))
    since_last, last_differs = _since(run, last, thresholds, worse) if last is not None else ([], "")
    regressions: list[Finding | Fault] = [*faults(compared.outcomes, "worse"), *worse]
    improvements: list[Finding | Fault] = [*faults(compared.outcomes, "better"), *findings(compared, "better")]
    left_out, fewer = not_comparable(compared.comparisons), faults(compared.outcomes, "not comparable")
    return Judgement(compared, regressions, improvements, left_out, fewer, compared.only_before, since_last, last_differs)


def findings(compared: Compared, verdict: Verdict) -> Iterator[Finding]:
    """Figures with this verdict, each once: cells are reported if neither slope nor level of their quantity has it."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for it in compared.comparisons:
        groups.setdefault((repr(it.series), it.quantity), []).append(it)
    for group in groups.values():
        wide = [it for it in group if it.scope != "cell" and it.verdict == verdict]
        yield from (Finding(it) for it in wide)
        cells = [it for it in group if it.scope == "cell"]
        # The time of one process is too uncertain by itself.
        changed = [it for it in cells if it.verdict == verdict and it.is_bytes]
        if changed and not wide:
            yield Finding(max(changed, key=lambda it: it.position or 0), len(changed), len(cells))


def faults(outcomes: Iterable[Outcome], verdict: Verdict) -> list[Fault]:
    """The outcomes with this verdict, those of one series that are alike together."""
    alike: dict[tuple[object, ...], list[Outcome]] = {}
    for it in outcomes:
        if it.verdict == verdict:
            alike.setdefault((repr(it.series), it.before, it.after, it.message), []).append(it)
    return [Fault(tuple(group)) for group in alike.values()]


def not_comparable(comparisons: Iterable[Comparison]) -> list[LeftOut]:
    """Figures that could not be compared, together for each reason."""
    reasons: dict[str, list[Comparison]] = {}
    for it in comparisons:
        if it.verdict == "not comparable":
            reasons.setdefault(it.why, []).append(it)
    found = []
    for why, group in reasons.items():
        all_series = {repr(it.series): it.series for it in group}
        found.append(LeftOut(why, tuple(dict.fromkeys(it.quantity for it in group)), tuple(all_series.values())))
    return found


def _since(run: Summary, last: Summary, thresholds: Thresholds | None, known: Sequence[Finding]) -> tuple[list[Finding], str]:
    """Figures that are worse than in the last run and not yet reported."""
    try:
        compared = compare(last, run, thresholds)
    except ConfigurationError as error:
        return [], error.what
    reported = {_name(it) for it in known}
    return [it for it in findings(compared, "worse") if _name(it) not in reported], ""


def _name(finding: Finding) -> tuple[str, str]:
    """The series and quantity of a finding, on any machine and under any name of its network."""
    series = {name: value for name, value in finding.comparison.series.items() if name not in ("threads", "device")}
    return repr(series | {"model": network_name(str(series["model"]))}), finding.comparison.quantity
