"""The memory inside one training step, allocation by allocation, as timeline.json holds it."""

from typing import Literal

from pydantic import Field, model_validator

from capsbench.options import Configuration
from capsbench.records import SCHEMA_VERSION, Contents, Schema


class StepPhase(Schema):
    """One phase of a timeline. Events are numbered from 0, before the first; bytes are the counters' own."""

    first_event: int
    """Index of its first event in the timeline's lists."""
    last_event: int
    """Index of its last event, at which the next phase begins."""
    start_bytes: int
    """Bytes alive when it began."""
    end_bytes: int
    """Bytes alive when it ended."""
    peak_bytes: int
    """Most bytes alive at one moment."""


class StepPeak(Schema):
    """The highest point of a step."""

    event: int
    """Index of the event in the timeline's lists."""
    allocated_bytes: int
    """Bytes alive there, by the counters."""
    operator: str | None
    """The operator that was running; None if there was none, or it is not known."""
    module: str | None
    """The module that was running, or whose backward was; empty for the network itself, None if it is not known."""
    contents: Contents
    """Memory alive there."""
    left_over_bytes: int
    """Bytes that the counters have beyond the contents; 0 on a CPU."""


STEP_PHASES = ("forward", "backward", "optimizer")
"""Phases of one training step, in their order."""


class Timeline(Schema):
    """Memory inside one training step, allocation by allocation: timeline.json."""

    schema_version: int = SCHEMA_VERSION
    """Version of the schema that the writing capsbench had."""
    kind: Literal["measured", "predicted"]
    """Origin of the figures: a step that was run, or one traced on shapes alone."""
    configuration: Configuration
    """Configuration of the step."""
    probe: str
    """Name of the probe that counted, as in `MemoryFigures`."""
    data_source: str | None = None
    """Source of the images, as in `Record`."""
    phases: dict[str, StepPhase]
    """Phases by name: `forward`, `backward`, `optimizer`."""
    bytes_by_category: dict[str, list[int]]
    """Bytes alive before the first event and after each, by category of `Contents`; they add up to all."""
    peak: StepPeak
    """The highest point of the step."""
    retained_by_module: dict[str, int]
    """Retained bytes by module, as in `StepFigures`."""
    module_classes: dict[str, str] = Field(default_factory=dict)
    """Class of each module that is named here, `Linear`; empty in timelines of earlier versions."""
    notes: list[str] = Field(default_factory=list)
    """Further remarks for the reader."""

    @property
    def retained_bytes(self) -> int:
        """Retained bytes, as in `MemoryFigures`: without the gradients of the step before, which forward may free."""
        return sum(self.retained_by_module.values())

    @model_validator(mode="after")
    def _is_one_step(self) -> "Timeline":
        """Refuse indices of events that do not exist, on which figures rely."""
        count = _events(self.bytes_by_category)
        _check_phases(self.phases, count)
        if not 0 <= self.peak.event < count:
            raise ValueError(f"peak.event is {self.peak.event} of {count} events")
        return self


def _events(bytes_by_category: dict[str, list[int]]) -> int:
    categories = {name.removesuffix("_bytes") for name, field in Contents.model_fields.items() if field.annotation is int}
    if bytes_by_category.keys() - {"communication"} != categories:
        raise ValueError(f"bytes_by_category does not have just {', '.join(sorted(categories))}")
    counts = {len(nbytes) for nbytes in bytes_by_category.values()}
    if len(counts) > 1 or 0 in counts:
        raise ValueError("bytes_by_category has lists of different lengths, or of none")
    # No machine has 2⁶⁰ bytes.
    if not all(0 <= one <= 2**60 for nbytes in bytes_by_category.values() for one in nbytes):
        raise ValueError("bytes_by_category has a negative number of bytes, or an impossibly large one")
    return counts.pop()


def _check_phases(phases: dict[str, StepPhase], count: int) -> None:
    """Refuse phases that do not follow each other to the end of `count` events."""
    if tuple(phases) != STEP_PHASES:
        raise ValueError(f"phases are not {', '.join(STEP_PHASES)}")
    last = 0
    for name, phase in phases.items():
        if not last <= phase.first_event <= phase.last_event < count:
            raise ValueError(f"phases.{name} runs from event {phase.first_event} to {phase.last_event} of {count}")
        last = phase.last_event
    if last != count - 1:
        raise ValueError(f"phases end at event {last} of {count}")
