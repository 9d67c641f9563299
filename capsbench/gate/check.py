"""Whether a run may pass: what grew against a pinned baseline, what shrank, what was left out, what moved since the last run."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from capsbench.errors import ConfigurationError
from capsbench.gate.compare import compare
from capsbench.gate.comparison import Compared, Comparison, Outcome, Thresholds, Verdict
from capsbench.gate.summary import LineSummary, Summary

Line = Mapping[str, object]


@dataclass(frozen=True)
class Finding:
    """One figure that changed beyond its threshold: a slope or level, or the cells of a line where its slope has not changed."""

    comparison: Comparison
    """Of cells the deepest that changed."""
    cells: int = 0
    """How many cells changed; 0 for a slope or level."""
    of: int = 0
    """How many cells there are."""


@dataclass(frozen=True)
class Fault:
    """Depths of one line that ended alike, and otherwise than they should."""

    outcomes: tuple[Outcome, ...]

    @property
    def first(self) -> Outcome:
        """One of them."""
        return self.outcomes[0]


@dataclass(frozen=True)
class LeftOut:
    """What could not be compared."""

    why: str
    quantities: tuple[str, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Judgement:
    """What a check found."""

    compared: Compared
    regressions: list[Finding | Fault]
    improvements: list[Finding | Fault]
    left_out: list[LeftOut]
    fewer: list[Fault]
    """Replicates that the baseline has and the run has not."""
    missing: list[LineSummary]
    """Lines that the baseline has and the run has not: regressions too."""
    since_last: list[Finding]
    """What grew since the last run, but not beyond the threshold from the baseline."""
    last_differs: str = ""
    """Why the last run could not be compared, if so."""

    @property
    def passed(self) -> bool:
        """Whether nothing is worse."""
        return not self.regressions and not self.missing


def judge(run: Summary, baseline: Summary, last: Summary | None = None, thresholds: Thresholds | None = None) -> Judgement:
    """Hold a run against a baseline.

    A change of less than the threshold from run to run never adds up unseen: the baseline stays where it was pinned. The last
    run only tells what moved lately; it makes nothing a regression.

    Args:
        run: what is checked.
        baseline: what it may not exceed.
        last: an earlier run.
        thresholds: from where on a difference matters.

    Raises:
        ConfigurationError: the run and the baseline have no line in common.
    """
    compared = compare(baseline, run, thresholds)
    worse = list(findings(compared, "worse"))
    since_last, last_differs = _since(run, last, thresholds, worse) if last is not None else ([], "")
    return Judgement(
        compared=compared,
        regressions=[*_faults(compared.outcomes, "worse"), *worse],
        improvements=[*_faults(compared.outcomes, "better"), *findings(compared, "better")],
        left_out=_left_out(compared.comparisons),
        fewer=_faults(compared.outcomes, "not comparable"),
        missing=compared.only_before,
        since_last=since_last,
        last_differs=last_differs,
    )


def findings(compared: Compared, verdict: Verdict) -> Iterator[Finding]:
    """Figures with this verdict, each once: cells are told of where neither slope nor level of the same quantity has it."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for it in compared.comparisons:
        groups.setdefault((repr(it.line), it.quantity), []).append(it)
    for group in groups.values():
        wide = [it for it in group if it.scope != "cell" and it.verdict == verdict]
        yield from (Finding(it) for it in wide)
        cells = [it for it in group if it.scope == "cell"]
        # One process's time says too little by itself.
        changed = [it for it in cells if it.verdict == verdict and it.is_bytes]
        if changed and not wide:
            yield Finding(max(changed, key=lambda it: it.blocks or 0), len(changed), len(cells))


def _faults(outcomes: Iterable[Outcome], verdict: Verdict) -> list[Fault]:
    alike: dict[tuple[object, ...], list[Outcome]] = {}
    for it in outcomes:
        if it.verdict == verdict:
            alike.setdefault((repr(it.line), it.before, it.after, it.message), []).append(it)
    return [Fault(tuple(group)) for group in alike.values()]


def _left_out(comparisons: Sequence[Comparison]) -> list[LeftOut]:
    reasons: dict[str, list[Comparison]] = {}
    for it in comparisons:
        if it.verdict == "not comparable":
            reasons.setdefault(it.why, []).append(it)
    return [
        LeftOut(
            why,
            tuple(dict.fromkeys(it.quantity for it in group)),
            tuple({repr(it.line): it.line for it in group}.values()),
        )
        for why, group in reasons.items()
    ]


def _since(run: Summary, last: Summary, thresholds: Thresholds | None, known: Sequence[Finding]) -> tuple[list[Finding], str]:
    """What is worse than in the last run and is not already told of."""
    try:
        compared = compare(last, run, thresholds)
    except ConfigurationError as error:
        return [], error.what
    told = {_name(it) for it in known}
    return [it for it in findings(compared, "worse") if _name(it) not in told], ""


def _name(finding: Finding) -> tuple[str, str]:
    """The quantity of a line, on any machine."""
    line = {name: value for name, value in finding.comparison.line.items() if name not in ("threads", "device")}
    return repr(line), finding.comparison.quantity
