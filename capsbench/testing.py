"""Guards for the memory of a network in its own tests, without a GPU: nothing is computed, only traced.

    from capsbench.testing import grown_memory, memory_slope

    def test_depth_costs_nothing():
        assert memory_slope(make_net, depths=(1, 2, 4)).retained_per_block == 0

    def test_memory_per_token():
        found = memory_slope(gpt2, vary={"length": (64, 128, 192, 256)})
        assert found.terms["per token"] <= 40_000
        assert found.terms["per pair of tokens"] <= 96

    def test_a_step_takes_no_more_than_before():
        assert not grown_memory(capsbench.estimate(model, inputs), "baselines/memory.json", name="my step")

or with the pytest plugin that ships with the package (`capsbench.pytest_plugin`).
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any

from torch import nn

from capsbench.axes import basis_form, basis_text, per_unit, term_unit
from capsbench.cases.factories import ModelFactory, as_module
from capsbench.cases.foreign import FACTORY_CALL, noting_call, settings_of
from capsbench.catalog import OWN_INPUTS, spec_of
from capsbench.errors import ConfigurationError
from capsbench.estimation import MemoryEstimate
from capsbench.gate.baseline import read_baseline, write_baseline
from capsbench.gate.check import Finding, judge
from capsbench.gate.comparison import Thresholds
from capsbench.gate.findings import Labels, finding_text
from capsbench.gate.summary import Summary
from capsbench.records import Cell, Configuration, Record, StepFigures
from capsbench.report import Report
from capsbench.stats.bases import FEWEST_POSITIONS, Curve
from capsbench.stats.least_squares import SlopeFit
from capsbench.stats.line_fit import fit_bytes
from capsbench.stats.linearity import Shape
from capsbench.stats.metrics import METRICS
from capsbench.system.paths import absolute
from capsbench.tracing.step_trace import TracedStep, trace_step
from capsbench.typed_values import Setting
from capsbench.words.along import number_text, places_text
from capsbench.words.modules import OUTSIDE
from capsbench.words.slopes_in_words import INEXACT
from capsbench.words.units import bytes_text


@dataclass(frozen=True)
class MemorySlope:
    """The memory that a block of a network costs, or a unit of another axis."""

    positions: tuple[float, ...]
    """Depths, or positions on the axis, in ascending order."""
    retained_bytes: tuple[int, ...]
    """Bytes alive after forward minus those before, at each position."""
    retained: SlopeFit
    """The line through these bytes, or the part of their curve that is one."""
    per_module: dict[str, int]
    """Bytes that the network retains at the last position and not at the first, by module; largest first."""
    notes: tuple[str, ...] = ()
    """Assumptions of the traces, each once. Without any the bytes are exact."""
    axis: str = "blocks"
    """Name of the axis."""
    curve: Curve | None = None
    """The curve that the bytes lie on, if they lie on no line: with a square, or divided by the axis."""
    linear: bool = True
    """False if the bytes lie on no line."""

    @property
    def shape(self) -> Shape:
        """The shape of the bytes, as a report has it: `line`, `quadratic`, `inverse` or `not a line`."""
        return self.curve.form if self.curve else "line" if self.linear else "not a line"

    @property
    def terms(self) -> dict[str, float]:
        """Bytes by unit: `per token`, and `per pair of tokens` of a square, or alone `divided by world size`.

        Raises:
            ConfigurationError: the bytes lie on no line, and on no curve that costs have.
        """
        if self.shape == "not a line":
            places = ", ".join(
                f"{number_text(at)}: {nbytes}" for at, nbytes in zip(self.positions, self.retained_bytes, strict=True)
            )
            raise ConfigurationError(
                f"retained bytes do not lie on a line over {self.axis.replace('_', ' ')} ({places} bytes)",
                "read `worst_step()`, or vary what the bytes grow with, such as tokens in place of the side of an image"
                if len(self.positions) >= FEWEST_POSITIONS["quadratic"]
                else "read `worst_step()`, or give four positions or more: a square does not show in fewer",
            )
        slope = {} if self.shape == "inverse" else {per_unit(self.axis): self.retained.slope}
        return slope if self.curve is None else slope | {term_unit(self.axis, self.curve.form): self.curve.term}

    @property
    def in_words(self) -> str:
        """The terms in words: `16 B per token and 96 B per pair of tokens`; a ≈ marks terms that `notes` make inexact."""
        return INEXACT * bool(self.notes) + " and ".join(f"{bytes_text(nbytes)} {unit}" for unit, nbytes in self.terms.items())

    @property
    def depths(self) -> tuple[float, ...]:
        """The positions, of a network whose blocks were varied."""
        return self.positions

    @property
    def retained_per_unit(self) -> float:
        """Bytes that a unit of the axis adds to what backward will need: a block, a sample, a token.

        Raises:
            ConfigurationError: the bytes lie on no line, so that this depends on the position.
        """
        if self.curve is not None:
            raise ConfigurationError(
                f"bytes {per_unit(self.axis)} are not constant: {self.in_words} are retained",
                "read `terms`, or `worst_step()` for these positions",
            )
        return self.terms[per_unit(self.axis)]

    @property
    def retained_per_block(self) -> float:
        """Bytes that a block adds to what backward will need.

        Raises:
            ConfigurationError: blocks are not what was varied, or the bytes lie on no line.
        """
        if self.axis != "blocks":
            raise ConfigurationError(f"there are no bytes per block: {self.axis} was varied", "read `retained_per_unit`")
        return self.retained_per_unit

    def worst_step(self) -> float:
        """Most bytes that a unit of the axis added between two neighbouring positions, since a line may hide a step."""
        pairs = zip(pairwise(self.positions), pairwise(self.retained_bytes), strict=True)
        return max((after - before) / (last - first) for (first, last), (before, after) in pairs)

    def explain(self) -> str:
        """The modules that retain more at the last position, on a line."""
        shown = [f"{name or OUTSIDE} +{nbytes} B" for name, nbytes in list(self.per_module.items())[:8]]
        return ", ".join(shown) or "no module retains more"

    def __repr__(self) -> str:
        """Return the terms in words, the positions and the modules that retain more at the last one."""
        at = places_text(self.axis, self.positions)
        if self.shape == "not a line":
            found = ", ".join(map(bytes_text, self.retained_bytes))
            first = f"a training step retains {INEXACT * bool(self.notes)}{found} at {at}, which lie on no line"
        else:
            first = f"a training step retains {self.in_words}, by a fit over {at}"
        return "\n".join([first, f"more at the last: {self.explain()}", *(f"note: {note}" for note in self.notes)])


def memory_slope(
    model_factory: ModelFactory,
    depths: Sequence[int] | None = None,
    *,
    vary: Mapping[str, Sequence[float]] | None = None,
    basis: str | None = None,
    dataset: str = "sample",
    batch_size: int | None = None,
    **settings: Setting,
) -> MemorySlope:
    """Measure the retained bytes of a training step over an axis, without running it: to the byte unless `notes` say otherwise.

    The bytes of what attends to all pairs of tokens, or is divided among ranks, lie on no line: `terms` has their bytes per token
    and per pair of tokens.

    Args:
        model_factory: function that takes `(in_shape, num_classes, blocks)` and returns a module with outputs `[B, classes]` or
            a `CapsuleOutput`, or one that takes numbers by keyword and returns a `Case`.
        depths: blocks, by default 1, 2 and 4; at least two different ones.
        vary: the one axis in place of depth, and its values: `{"batch_size": (2, 4, 8)}`, or any number that a case takes.
        basis: terms of the bytes over the axis, such as `1,n,n²`; by default the report's way finds them.
        dataset: data set that sets shape and classes of a classifier.
        batch_size: images of the step, by default 8; a case has its own default.
        settings: further settings of a case.

    Raises:
        ConfigurationError: fewer than two positions, an axis that the network does not have, a network that cannot be made or
            traced, or one that differs each time; or `basis` does not fit, or has more terms than there are positions.
    """
    axis, asked = _axis(model_factory, depths, vary)
    is_case = settings_of(model_factory) is not None
    if not is_case and (settings or axis not in ("blocks", "batch_size")):
        odd = next(iter(settings), axis)
        raise ConfigurationError(
            f"a function that makes classifiers takes no {odd}", "vary blocks or batch_size, or return a Case"
        )

    def traced(position: float) -> TracedStep:
        own = settings | {"batch_size": batch_size} | {axis: position}
        return _traced_case(model_factory, own) if is_case else _traced(model_factory, own, dataset)

    steps = [traced(position) for position in asked]
    for position, step in zip(asked, steps, strict=True):
        again = traced(position)
        if again.retained_bytes != step.retained_bytes:
            raise ConfigurationError(
                f"{places_text(axis, [position])} retained {step.retained_bytes} bytes, and {again.retained_bytes} when they "
                "were made again",
                "a slope needs a network that is the same each time: fix what it draws at random",
            )
    retained = tuple(step.retained_bytes for step in steps)
    first, last = steps[0].retained_by_module, steps[-1].retained_by_module
    more = {name: nbytes - first.get(name, 0) for name, nbytes in last.items() if nbytes > first.get(name, 0)}
    most_first = dict(sorted(more.items(), key=lambda item: -item[1]))
    notes = tuple(dict.fromkeys(note for step in steps for note in (*step.notes, *step.unsure)))
    declared = None if basis is None else basis_form(axis, basis)
    fit = fit_bytes(asked, retained, METRICS["retained"], axis, declared=declared)
    if declared is not None and (fit.misfit is not None or (fit.curve.form if fit.curve else "line") != declared):
        off = f"is off by up to {bytes_text(fit.misfit)}" if fit.misfit is not None else f"needs more than {len(asked)} positions"
        raise ConfigurationError(f"`basis` {basis_text(declared)} {off}", "leave it out, and read `shape` and `terms`")
    return MemorySlope(asked, retained, fit.fit, most_first, notes, axis, fit.curve, fit.linear)


def _axis(factory: object, depths: object, vary: object) -> tuple[str, tuple[float, ...]]:
    """The axis of a slope and its positions, which a test may have given in any form."""
    if not callable(factory) or isinstance(factory, nn.Module):
        raise ConfigurationError(
            f"`model_factory` is {type(factory).__name__}, not a function that makes a network",
            "give the function; a network that is in memory already has `memory_baseline`",
        )
    if vary is not None and not isinstance(vary, Mapping):
        raise ConfigurationError(f"`vary` is {vary!r}", "give the axis and its values, such as vary={'length': (64, 128, 256)}")
    if vary is not None and len(vary) != 1:
        raise ConfigurationError(f"`vary` names {len(vary)} axes", "give the one over which the slope is fitted")
    if vary is not None and depths is not None:
        raise ConfigurationError("`depths` and `vary` are both given", "give depths, or one axis and its values in `vary`")
    ((axis, values),) = (vary or {"blocks": depths or (1, 2, 4)}).items()
    positions = () if isinstance(values, str) or not isinstance(values, Iterable) else tuple(values)
    if not positions or not all(isinstance(one, Real) for one in positions):
        raise ConfigurationError(f"{axis} {values!r} are no positions on an axis", "give numbers, such as (1, 2, 4)")
    asked = tuple(sorted(set(positions)))
    if len(asked) < 2 or asked[0] < 0:
        given = f"{'depths' if axis == 'blocks' else axis} {positions}"
        raise ConfigurationError(f"{given} make no slope", "give at least two different ones, 0 or more")
    return axis, asked


def _traced(factory: ModelFactory, own: Mapping[str, Any], dataset: str) -> TracedStep:
    """The step of a classifier of so many blocks and images."""
    spec, name = spec_of(dataset), getattr(factory, "__name__", type(factory).__name__)
    blocks, batch_size = own.get("blocks", 1), 8 if own["batch_size"] is None else own["batch_size"]
    configuration = Configuration(model=name, blocks=blocks, dataset=dataset, batch_size=batch_size, device="cpu")

    def build() -> nn.Module:
        with noting_call(FACTORY_CALL):
            made = factory(spec.shape, spec.classes, blocks)
        return as_module(name, made, spec)

    return trace_step(configuration, build=build, inside=False)


def _traced_case(factory: ModelFactory, own: Mapping[str, Any]) -> TracedStep:
    """The step of a case with these settings; those that are None keep its defaults."""
    name = getattr(factory, "__name__", type(factory).__name__)
    settings = tuple(sorted((key, value) for key, value in own.items() if key not in ("blocks", "batch_size")))
    configuration = Configuration(
        model=name, blocks=own.get("blocks", 0), batch_size=own["batch_size"], dataset=OWN_INPUTS, device="cpu", settings=settings
    )
    return trace_step(configuration, factory=factory, inside=False)


_WRITER = "pytest --update-memory-baselines, or `grown_memory` with `update`"
"""The ways to write a baseline of live networks, for errors."""


def grown_memory(
    found: MemoryEstimate,
    baseline: str | os.PathLike[str],
    *,
    name: str,
    update: bool = False,
    thresholds: Thresholds | None = None,
) -> list[str]:
    """Compare the memory of a training step with a baseline, in which it has a line of its own.

    Args:
        found: the memory, from `capsbench.estimate`.
        baseline: file of the baseline, as 'capsbench check' writes it.
        name: name of the line.
        update: write the line instead, and leave all others as they are.
        thresholds: differences from which on a change matters.

    Returns:
        A line for each figure that has grown, with the modules that retain more; none if nothing has.

    Raises:
        ConfigurationError: the baseline has no line of this name for this device.
        StoreError: the baseline cannot be read, or written.
    """
    path, run = absolute(baseline), _summary_of(found, name)
    (key,) = (line.key() for line in run.lines)
    if update:
        others = [line for line in read_baseline(path, written_by=_WRITER).lines if line.key() != key] if path.exists() else []
        write_baseline(Summary(lines=sorted([*others, *run.lines], key=lambda line: line.key())), path)
        return []
    known = read_baseline(path, written_by=_WRITER)
    before = [line for line in known.lines if line.key() == key]
    if not before:
        raise ConfigurationError(f"baseline {path} has no line '{name}' for this device", f"write it with {_WRITER}")
    judgement = judge(run, known.model_copy(update={"lines": before}), None, thresholds)
    labels = Labels([run.lines[0].options()])
    return [finding_text(one, labels) for one in judgement.regressions if isinstance(one, Finding)]


def _summary_of(found: MemoryEstimate, name: str) -> Summary:
    configuration = found.configuration.model_copy(update={"model": name, "capacity": None})
    step = StepFigures(retained_by_module=dict(found.by_module), retained_bytes=found.memory.retained_bytes)
    return Report.of(
        [Record(kind="predicted", cell=Cell(configuration=configuration), status="ok", memory=found.memory, step=step)]
    ).summary
