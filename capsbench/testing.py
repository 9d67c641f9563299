"""Guards for the memory of a network in its own tests, without a GPU: nothing is computed, only traced.

    from capsbench.testing import grown_memory, memory_slope

    def test_depth_costs_nothing():
        assert memory_slope(make_net, depths=(1, 2, 4)).retained_per_block == 0

    def test_a_step_takes_no_more_than_before():
        assert not grown_memory(capsbench.estimate(model, inputs), "baselines/memory.json", name="my step")

or with the pytest plugin that ships with the package (`capsbench.pytest_plugin`).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from capsbench.catalog import spec_of
from capsbench.errors import ConfigurationError
from capsbench.estimation import MemoryEstimate
from capsbench.gate.baseline import read_baseline, write_baseline
from capsbench.gate.check import Finding, judge
from capsbench.gate.comparison import Thresholds
from capsbench.gate.findings import Labels, finding_text
from capsbench.gate.summary import Summary
from capsbench.paths import absolute
from capsbench.records import Cell, Configuration, Record, StepFigures
from capsbench.report import Report
from capsbench.stats.least_squares import SlopeFit, fit_slope
from capsbench.tracing.step_trace import TracedStep, trace_step
from capsbench.workload import ModelFactory, as_module


@dataclass(frozen=True)
class MemorySlope:
    """The memory that a block of a network costs."""

    depths: tuple[int, ...]
    retained_bytes: tuple[int, ...]
    """Bytes alive after forward minus those before, at each depth."""
    retained: SlopeFit
    """The line through these bytes."""
    per_module: dict[str, int]
    """Bytes that the deepest network retains and the shallowest does not, by module; largest first."""
    notes: tuple[str, ...] = ()
    """Assumptions of the traces, each once. Without any the bytes are exact."""

    @property
    def retained_per_block(self) -> float:
        """Bytes that a block adds to what backward will need."""
        return self.retained.slope

    def worst_step(self) -> float:
        """Most bytes that a block added between two neighbouring depths, since a line may hide a step."""
        pairs = zip(self.depths, self.depths[1:], self.retained_bytes, self.retained_bytes[1:], strict=False)
        return max((after - before) / (deep - shallow) for shallow, deep, before, after in pairs)

    def explain(self) -> str:
        """The modules that retain more in the deeper network, on a line."""
        shown = [f"{name or 'the network itself'} +{nbytes} B" for name, nbytes in list(self.per_module.items())[:8]]
        return ", ".join(shown) or "no module retains more"


def memory_slope(
    model_factory: ModelFactory, depths: Sequence[int] = (1, 2, 4), *, dataset: str = "sample", batch_size: int = 8
) -> MemorySlope:
    """Measure the retained bytes of a training step over depth, without running it: to the byte, unless `notes` list assumptions.

    Args:
        model_factory: function that takes `(in_shape, num_classes, blocks)` and returns a module with outputs `[B, classes]` or a
            `CapsuleOutput`.
        depths: blocks; at least two different ones.
        dataset: data set that sets shape and classes.
        batch_size: images of the step.

    Raises:
        ConfigurationError: fewer than two depths, a network that cannot be made or traced, or one that differs each time.
    """
    asked = tuple(sorted(set(depths)))
    if len(asked) < 2 or asked[0] < 0:
        raise ConfigurationError(f"depths {tuple(depths)} make no slope", "give at least two different depths, 0 or more")
    steps = [_traced(model_factory, blocks, dataset, batch_size) for blocks in asked]
    for blocks, step in zip(asked, steps, strict=True):
        again = _traced(model_factory, blocks, dataset, batch_size)
        if again.retained_bytes != step.retained_bytes:
            raise ConfigurationError(
                f"{blocks} blocks retained {step.retained_bytes} bytes, and {again.retained_bytes} when they were made again",
                "a slope needs a network that is the same each time: fix what it draws at random",
            )
    retained = tuple(step.retained_bytes for step in steps)
    first, last = steps[0].retained_by_module, steps[-1].retained_by_module
    more = {name: nbytes - first.get(name, 0) for name, nbytes in last.items() if nbytes > first.get(name, 0)}
    most_first = dict(sorted(more.items(), key=lambda item: -item[1]))
    notes = tuple(dict.fromkeys(note for step in steps for note in (*step.notes, *step.unsure)))
    return MemorySlope(asked, retained, fit_slope(asked, retained), most_first, notes)


def _traced(factory: ModelFactory, blocks: int, dataset: str, batch_size: int) -> TracedStep:
    spec = spec_of(dataset)
    name = getattr(factory, "__name__", type(factory).__name__)
    configuration = Configuration(model=name, blocks=blocks, dataset=dataset, batch_size=batch_size, device="cpu")

    def build() -> nn.Module:
        return as_module(name, factory(spec.shape, spec.classes, blocks), spec)

    return trace_step(configuration, build=build, inside=False)


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
        others = [line for line in read_baseline(path).lines if line.key() != key] if path.exists() else []
        write_baseline(Summary(lines=sorted([*others, *run.lines], key=lambda line: line.key())), path)
        return []
    known = read_baseline(path)
    before = [line for line in known.lines if line.key() == key]
    if not before:
        raise ConfigurationError(
            f"baseline {path} has no line '{name}' for this device", "write it with `update`, or pytest --update-memory-baselines"
        )
    judgement = judge(run, known.model_copy(update={"lines": before}), None, thresholds)
    labels = Labels([run.lines[0].options()])
    return [finding_text(one, labels) for one in judgement.regressions if isinstance(one, Finding)]


def _summary_of(found: MemoryEstimate, name: str) -> Summary:
    configuration = found.configuration.model_copy(update={"model": name, "capacity": None})
    step = StepFigures(retained_by_module=dict(found.by_module), retained_bytes=found.memory.retained_bytes)
    return Report.of(
        [Record(kind="predicted", cell=Cell(configuration=configuration), status="ok", memory=found.memory, step=step)]
    ).summary
