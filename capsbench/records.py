"""What one measurement says: the only schema of the project, versioned.

A `Cell` is what is measured (a configuration and a replicate), a `Record` what came of it. Bytes are bytes, seconds are
seconds. Nothing here measures, stores or draws.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, model_validator

from capsbench.options import PREDICTED as PREDICTED
from capsbench.options import WRITTEN
from capsbench.options import Configuration as Configuration

SCHEMA_VERSION = 4
"""Raised whenever an older capsbench could not understand a new record."""

Status = Literal["ok", "oom", "timeout", "error", "skipped"]
"""How a cell ended; `oom` and `skipped` are results, `timeout` and `error` are faults."""

Pass = Literal["time", "memory"]
"""One process's part of a measurement."""

BOTH: tuple[Pass, ...] = ("time", "memory")

FINAL: frozenset[Status] = frozenset({"ok", "oom", "skipped"})
"""The outcomes that a resumed sweep does not try again."""


class Schema(BaseModel):
    """What is written to disk."""

    model_config = WRITTEN


class Cell(Schema):
    """One configuration, once."""

    configuration: Configuration
    """What is measured."""
    replicate: int = Field(default=0, ge=0)
    """Which of its repetitions."""
    source: str | None = None
    """Digest of the source of a user's own network; None for those of the package, and in records of version 3 and before."""

    def key(self) -> str:
        """A short name of this cell that is the same in every process and version."""
        known = self.model_dump(mode="json", exclude_none=True)
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]

    def label(self) -> str:
        """For people: `mocapsnet 4, sample, recompute`."""
        it = self.configuration
        parts = [f"{it.model} {it.blocks}", it.dataset, it.kernel, it.memory if it.memory != "stored" else None]
        replicate = f" #{self.replicate + 1}" if self.replicate else ""
        return ", ".join(part for part in parts if part) + replicate


class Contents(Schema):
    """What is alive at the highest point of the step; the bytes add up to all that was counted there."""

    phase: str
    """`forward`, `backward` or `optimizer`."""
    state_bytes: int
    """Parameters and buffers."""
    gradient_bytes: int
    """What is or becomes the gradient of a parameter."""
    optimizer_bytes: int
    """The optimizer's state."""
    batch_bytes: int
    """Images and labels."""
    retained_bytes: int
    """Made in forward, alive at its end."""
    temporary_bytes: int
    """Made in this step, and none of the others."""
    other_bytes: int
    """Made before this step, and none of the others: what is left over."""

    def total(self) -> int:
        """All of them."""
        return sum(value for value in self.model_dump().values() if isinstance(value, int))


class StepPhase(Schema):
    """One phase of a timeline. Events are numbered from 0, before the first; bytes are the counters' own."""

    first_event: int
    """Where it begins in the timeline's lists."""
    last_event: int
    """Where it ends; the next phase begins there."""
    start_bytes: int
    """Alive when it began."""
    end_bytes: int
    """Alive when it ended."""
    peak_bytes: int
    """Alive at most."""


class StepPeak(Schema):
    """The highest point of a step."""

    event: int
    """Where it lies in the timeline's lists."""
    allocated_bytes: int
    """Alive there, by the counters."""
    operator: str | None
    """The operator that was running; None if none was, or it is not known."""
    module: str | None
    """The module that was running, or whose backward was; empty for the network itself, None if it is not known."""
    contents: Contents
    """What is alive there."""
    left_over_bytes: int
    """What the counters say beyond the contents: 0 on a CPU."""


STEP_PHASES = ("forward", "backward", "optimizer")
"""Of one training step, in their order."""

_MOST = 2**60
"""Bytes: no machine has more."""


class Timeline(Schema):
    """Memory inside one training step, allocation by allocation: timeline.json."""

    schema_version: int = SCHEMA_VERSION
    """Of the capsbench that wrote it."""
    kind: Literal["measured", "predicted"]
    """Whether the step was run, or traced on shapes alone."""
    configuration: Configuration
    """Of the step."""
    probe: str
    """Who counted, as in `MemoryFigures`."""
    data_source: str | None = None
    """As in `Record`."""
    phases: dict[str, StepPhase]
    """`forward`, `backward`, `optimizer`."""
    bytes_by_category: dict[str, list[int]]
    """Bytes alive before the first event of the step and after each, for each category of `Contents`; they add up to all."""
    peak: StepPeak
    """Its highest point."""
    retained_by_module: dict[str, int]
    """As in `StepFigures`."""
    notes: list[str] = []
    """What else a reader must know."""

    @model_validator(mode="after")
    def _is_one_step(self) -> "Timeline":
        """Refuses events that are not there: whoever draws it counts on them."""
        count = _events(self.bytes_by_category)
        _check_phases(self.phases, count)
        if not 0 <= self.peak.event < count:
            raise ValueError(f"peak.event is {self.peak.event} of {count} events")
        return self


def _events(bytes_by_category: dict[str, list[int]]) -> int:
    """How many events a timeline has."""
    categories = {name.removesuffix("_bytes") for name, field in Contents.model_fields.items() if field.annotation is int}
    if bytes_by_category.keys() != categories:
        raise ValueError(f"bytes_by_category does not have just {', '.join(sorted(categories))}")
    counts = {len(nbytes) for nbytes in bytes_by_category.values()}
    if len(counts) > 1 or 0 in counts:
        raise ValueError("bytes_by_category has lists of different lengths, or of none")
    if not all(0 <= one <= _MOST for nbytes in bytes_by_category.values() for one in nbytes):
        raise ValueError("bytes_by_category has less than no bytes, or more than there can be")
    return counts.pop()


def _check_phases(phases: dict[str, StepPhase], count: int) -> None:
    """Whether they follow each other to the end of so many events."""
    if tuple(phases) != STEP_PHASES:
        raise ValueError(f"phases are not {', '.join(STEP_PHASES)}")
    last = 0
    for name, phase in phases.items():
        if not last <= phase.first_event <= phase.last_event < count:
            raise ValueError(f"phases.{name} runs from event {phase.first_event} to {phase.last_event} of {count}")
        last = phase.last_event
    if last != count - 1:
        raise ValueError(f"phases end at event {last} of {count}")


Certainty = Literal["exact", "modelled", "guessed"]
"""Of a predicted figure: counted from the step's own tensors; by rules that PyTorch's allocator follows; or an estimate."""


class MemoryFigures(Schema):
    """Bytes of one training step, once weights, gradients and optimizer state have been made."""

    probe: str
    """Who counted: `allocator` (our own round a CPU's), `profiler` (its events), `cuda`, or `trace` (predicted)."""
    state_bytes: NonNegativeInt
    """Parameters and buffers."""
    gradient_bytes: NonNegativeInt
    """Gradients of the parameters that are alive after backward; 0 where the optimizer steps inside backward."""
    optimizer_bytes: NonNegativeInt
    """The optimizer's state."""
    retained_bytes: int
    """Alive after forward, minus before: what backward will need."""
    peak_forward_bytes: NonNegativeInt
    """Highest during forward and loss; like the next two, with weights, optimizer state and the batch in it."""
    peak_backward_bytes: NonNegativeInt
    """Highest during backward, and the optimizer's steps that are part of it."""
    peak_allocated_bytes: NonNegativeInt
    """Highest over the whole step, the optimizer's part included."""
    peak_reserved_bytes: NonNegativeInt | None = None
    """Highest the caching allocator held; None where there is none (CPU)."""
    process_bytes: NonNegativeInt | None = None
    """CUDA: of this process, as the driver says (NVML). CPU: the largest resident set."""
    context_bytes: int | None = None
    """CUDA: what the process holds beside the caching allocator; the driver's context and libraries' own workspaces."""
    warm_peak_allocated_bytes: NonNegativeInt | None = None
    """CUDA: highest over a step after several more, when libraries have settled on their algorithms."""
    at_peak: Contents | None = None
    """What the highest point is made of; None where the probe cannot tell blocks apart."""
    certainty: dict[str, Certainty] | None = None
    """Of predicted figures, by field; None for measured ones."""
    scratch: list[str] = []
    """Of predicted figures: operators whose scratch memory is not in them."""


class TimeFigures(Schema):
    """Raw samples in seconds, in the order in which they were taken."""

    clock: str
    """`cuda events` or `monotonic`."""
    warmup_steps: int
    """Steps before the first sample."""
    train_step_seconds: list[NonNegativeFloat]
    """Forward, loss, backward, optimizer."""
    forward_seconds: list[NonNegativeFloat]
    """Forward and loss of the same steps."""
    inference_seconds: list[NonNegativeFloat]
    """Forward under inference mode."""
    yardstick_seconds: list[NonNegativeFloat] = []
    """A product of two matrices, the same on every machine, timed between the samples: what the machine did meanwhile."""
    yardstick_flops: int | None = None
    """Floating-point operations of the yardstick."""
    noise: list[str] = []
    """Why these samples are not to be trusted, if so: names of `NOISES` in `measure.noise`."""


class StepFigures(Schema):
    """What a trace of the step says without running it."""

    retained_by_module: dict[str, int]
    """Retained bytes by the module that keeps them (its name in the network); what no module keeps is under the empty name."""
    retained_bytes: int | None = None
    """Retained bytes of the traced step, as the allocator of its device would count them. None in records before version 4."""
    agrees: bool | None = None
    """Whether a measured step retained just these bytes. If not, what was counted is believed, and nothing of the trace. None in
    predictions, where nothing was counted, and in records before version 4."""
    flops: int | None = None
    """Floating-point operations of forward and backward, as torch counts them; element-wise work counts nothing."""
    floor_flops: int | None = None
    """The same for what the step cannot do without: nothing evaluated twice."""
    floor_bytes: int | None = None
    """Memory that no way of computing the step can do without: weights, their gradients, the optimizer's state and the batch."""
    notes: list[str] = []
    """What the trace had to assume."""


class Record(Schema):
    """What one cell said."""

    schema_version: int = SCHEMA_VERSION
    """Of the capsbench that wrote it."""
    kind: Literal["measured", "predicted"] = "measured"
    """Whether the step was run, or traced on shapes alone."""
    cell: Cell
    """What was measured."""
    status: Status
    """How it ended; `oom` and `skipped` are results, `timeout` and `error` faults."""
    message: str | None = None
    """Why it is not `ok`."""
    data_source: str | None = None
    """`real`, `sample`, or `stand-in`: the sample in the named set's shape."""
    environment: str | None = None
    """Key into environment.json."""
    started_at: str | None = None
    """UTC, ISO 8601."""
    duration_seconds: float | None = None
    """Wall time of all the cell's processes."""
    memory: MemoryFigures | None = None
    """Bytes; None where they were not counted."""
    time: TimeFigures | None = None
    """Seconds; None where nothing was timed."""
    step: StepFigures | None = None
    """What a trace says; None where there is none."""
    notes: list[str] = []
    """What else a reader must know: other processes on the device, for one."""

    def believed_step(self) -> StepFigures | None:
        """What a trace says, if the bytes that were counted bear it out: a trace that retains others followed another step."""
        if self.step is None or self.kind == "predicted" or self.memory is None or self.step.agrees:
            return self.step
        # Records before version 4 do not say: their modules do.
        unsaid = self.step.agrees is None
        kind = self.cell.configuration.device_kind()
        borne_out = self.schema_version > 3 or adds_up(self.step.retained_by_module, self.memory.retained_bytes, kind)
        return self.step if unsaid and borne_out else None

    def settles(self, passes: Sequence[Pass]) -> bool:
        """Whether a cell needs no further measuring: it ended for good, with all that was asked."""
        if self.status != "ok":
            return self.status in FINAL
        if self.kind == "predicted":
            return True
        return all(getattr(self, what) is not None for what in passes)


def adds_up(retained_by_module: Mapping[str, int], retained_bytes: int, device_kind: str) -> bool:
    """Whether modules account for the retained bytes; on CUDA, whose allocator rounds up, whether they account for no more."""
    total = sum(retained_by_module.values())
    return total == retained_bytes if device_kind == "cpu" else total <= retained_bytes


class Plan(Schema):
    """What was asked for: plan.json."""

    schema_version: int = SCHEMA_VERSION
    """Of the capsbench that wrote it."""
    command: str
    """The command that made it, as it would be typed again."""
    passes: list[Pass] = list(BOTH)
    """What is measured of each cell."""
    samples: int = Field(default=5, ge=5)
    """Fewest samples of every time."""
    budget_seconds: float = Field(default=10, ge=0)
    """How long each cell is sampled, beyond the fewest samples, while its time is not yet known within 2 %."""
    timeout_seconds: float = Field(default=1800, gt=0)
    """For each process."""
    strict: bool = False
    """Whether a cell is refused while other processes are on its CUDA device."""
    experiment: str | None = None
    """The paper's name of what is reproduced, if any: it says how the report is drawn."""
    cells: list[Cell]
    """In the order in which they are measured."""


def newer_than_known(data: Any) -> int | None:
    """The schema version of this JSON object, if it is newer than this capsbench understands."""
    version = data.get("schema_version") if isinstance(data, dict) else None
    return version if isinstance(version, int) and version > SCHEMA_VERSION else None
