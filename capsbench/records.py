"""The only schema of the project, versioned: everything that is known of one measurement.

A `Cell` is a configuration and a replicate that is measured, a `Record` the result. Bytes are bytes, seconds are
seconds. Nothing here measures, stores or draws.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, model_validator

from capsbench.axes import AxisForm
from capsbench.catalog import MODELS, OWN_INPUTS
from capsbench.options import AXES_OF_FIELDS, OPTIONS, SWEPT_OPTIONS, WRITTEN, noun_of, type_of, value_in_words
from capsbench.options import PREDICTED as PREDICTED
from capsbench.options import Configuration as Configuration
from capsbench.typed_values import as_typed

SCHEMA_VERSION = 7
"""Version of the schema, raised whenever an older capsbench could not understand a new record."""

Status = Literal["ok", "oom", "timeout", "error", "skipped"]
"""Outcome of a cell; `oom` and `skipped` are results, `timeout` and `error` are faults."""

FAULTS: frozenset[Status] = frozenset({"error", "timeout"})
"""Outcomes that are no result: the cell failed."""

Pass = Literal["time", "memory"]
"""One process's part of a measurement."""

BOTH: tuple[Pass, ...] = ("time", "memory")

_USUAL = {"memory": "stored", "device": "cpu"}
"""Values that a label leaves out, of options whose default depends on the network or the machine."""

FINAL: frozenset[Status] = frozenset({"ok", "oom", "skipped"})
"""Outcomes that a resumed sweep does not try again."""


class Schema(BaseModel):
    """Base of everything that is written to disk."""

    model_config = WRITTEN


class Cell(Schema):
    """One configuration, measured once."""

    configuration: Configuration
    """The configuration that is measured."""
    replicate: int = Field(default=0, ge=0)
    """Number of the repetition, from 0."""
    source: str | None = None
    """Digest of the source of a user's own network; None for those of the package, and in records of version 3 and before."""

    def key(self) -> str:
        """A short name of this cell that is the same in every process and version."""
        known = self.model_dump(mode="json", exclude_none=True)
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]

    def label(self) -> str:
        """A label for people: `mocapsnet 4, sample, batch 32, recompute #2`; all options are named that differ from the usual.

        Of a case all settings are named: `my_cases.py:gpt2 4, batch 8, length 256`.
        """
        it = self.configuration
        words = [f"{it.model} {it.blocks}" if it.blocks or it.model in MODELS else it.model]
        words += [it.dataset] if it.dataset != OWN_INPUTS else []
        for name in (name for name in SWEPT_OPTIONS if name != "dataset"):
            value, option = getattr(it, name), OPTIONS[name]
            if value not in (None, option.default, option.before, option.unwritten, _USUAL.get(name)):
                words.append(value_in_words(name, value))
        words += [f"{noun_of(name)} {as_typed(value)}" for name, value in it.settings or ()]
        return ", ".join(words) + (f" #{self.replicate + 1}" if self.replicate else "")


class Contents(Schema):
    """Memory alive at the highest point of the step; the bytes add up to all that was counted there."""

    phase: str
    """Phase of the highest point: `forward`, `backward` or `optimizer`."""
    state_bytes: int
    """Bytes of parameters and buffers."""
    gradient_bytes: int
    """Bytes that are or become the gradient of a parameter."""
    optimizer_bytes: int
    """Bytes of the optimizer's state."""
    batch_bytes: int
    """Bytes of images and labels."""
    retained_bytes: int
    """Bytes made in forward and alive at its end."""
    temporary_bytes: int
    """Bytes made in this step that are none of the others."""
    other_bytes: int
    """Bytes left over from before this step that are none of the others."""
    communication_bytes: int | None = None
    """Bytes of gathered parameters, and of buffers that are sent and received.

    None in a step of one process."""

    def total(self) -> int:
        """Sum of all bytes."""
        return sum(value for value in self.model_dump().values() if isinstance(value, int))


Certainty = Literal["exact", "modelled", "guessed"]
"""Certainty of a predicted figure: counted from the step's tensors, modelled by PyTorch's allocator rules, or a guess."""

LOWER_BOUND = "the bytes are a lower bound"
"""Words that are part of a note if sizes of tensors depend on values, so that a step may take more than is predicted."""


class MemoryFigures(Schema):
    """Bytes of one training step, once weights, gradients and optimizer state have been made, and of an inference step after it.

    Bytes on CUDA are those of the blocks that its caching allocator hands out, which are larger than what was asked for: by up to
    512 bytes, and up to 1 MiB where the rest of a block is not worth a block of its own. Fields with `requested` in their names
    have what was asked for, as do the retained bytes of a prediction. Retained bytes and peaks are None if the allocator does not
    count, as CUDA's with its cache turned off.
    """

    probe: str
    """Name of the probe: `allocator` (our own around a CPU's), `profiler` (torch's events), `cuda`, or `trace` (predicted)."""
    state_bytes: NonNegativeInt
    """Bytes of parameters and buffers."""
    gradient_bytes: NonNegativeInt
    """Bytes of the parameters' gradients that are alive after backward; 0 if the optimizer steps inside backward."""
    optimizer_bytes: NonNegativeInt
    """Bytes of the optimizer's state."""
    retained_bytes: int | None
    """Bytes alive after forward minus those before, which backward will need."""
    peak_forward_bytes: NonNegativeInt | None
    """Highest bytes during forward and loss; like the next two, with weights, optimizer and batch included."""
    peak_backward_bytes: NonNegativeInt | None
    """Highest bytes during backward, and the optimizer's steps that are part of it."""
    peak_allocated_bytes: NonNegativeInt | None
    """Highest bytes over the whole step, the optimizer's part included."""
    retained_requested_bytes: int | None = None
    """Retained bytes on CUDA as requested; None on a CPU, and if the allocator does not report it."""
    peak_requested_bytes: NonNegativeInt | None = None
    """Highest bytes on CUDA over the whole step as requested."""
    peak_reserved_bytes: NonNegativeInt | None = None
    """Highest bytes that the caching allocator held so far, its cache from earlier steps included; None on a CPU."""
    step_reserved_bytes: NonNegativeInt | None = None
    """Highest bytes that it held over a further step, which began with an empty cache."""
    process_bytes: NonNegativeInt | None = None
    """Bytes of this process: on CUDA as the driver reports them (NVML), on a CPU the largest resident set."""
    context_bytes: int | None = None
    """Bytes of the process on CUDA outside the allocator after two steps: the driver's context, and loaded kernels."""
    warm_peak_allocated_bytes: NonNegativeInt | None = None
    """Highest bytes on CUDA over a step after several more, when libraries have settled on their algorithms."""
    at_peak: Contents | None = None
    """Contents of the highest point; None if the probe cannot distinguish blocks."""
    inference_peak_bytes: NonNegativeInt | None = None
    """Highest bytes during an inference step, without the optimizer's state. None before version 7."""
    inference_kept_bytes: int | None = None
    """Bytes alive after an inference step minus those before: its outputs, a cache of keys and values among them."""
    certainty: dict[str, Certainty] | None = None
    """Certainty of predicted figures, by field; None for measured ones."""
    scratch: list[str] = []
    """Operators whose scratch memory is not in predicted figures."""

    @model_validator(mode="after")
    def _is_counted(self) -> "MemoryFigures":
        """Refuse bytes that are unknown though their probe always counts them, and those of which some alone are unknown."""
        known = {
            getattr(self, f"{name}_bytes") is not None for name in ("retained", "peak_forward", "peak_backward", "peak_allocated")
        }
        if known != {True} and (self.probe != "cuda" or len(known) > 1):
            raise ValueError("retained and peak bytes are not known")
        return self


class GrowingFigures(Schema):
    """Seconds of the parts of a step that grow along an axis, in the order of the samples.

    A block may be half a percent of a step, and is lost in the noise of the rest; so the clock is read where these parts begin
    and end, too.
    """

    modules: list[str]
    """The modules at whose edges the clock was read."""
    axis: str = "blocks"
    """Name of the axis along which they grow, and the rest of the step does not; before version 7 always `blocks`."""
    train_step_seconds: list[NonNegativeFloat]
    """Seconds inside these modules in forward and backward, and their share of the optimizer's."""
    forward_seconds: list[NonNegativeFloat]
    """Seconds inside these modules in the forward pass of a training step."""
    inference_seconds: list[NonNegativeFloat]
    """Seconds inside these modules under inference mode; empty if reading the clock there would change what is run."""
    edges_seconds: NonNegativeFloat
    """Seconds that reading the clock at the edges adds to a training step, measured by itself."""


class TimeFigures(Schema):
    """Raw samples in seconds, in the order in which they were taken.

    On CUDA the device is timed alone too: all of a step is in its queue beforehand, so that it never waits for the host. These
    times are missing if the step itself waits for the device, or has more launches than a queue holds.
    """

    clock: str
    """Name of the clock: `cuda events` or `monotonic`."""
    warmup_steps: int
    """Number of steps before the first sample."""
    train_step_seconds: list[NonNegativeFloat]
    """Seconds of forward, loss, backward and optimizer."""
    forward_seconds: list[NonNegativeFloat]
    """Seconds of forward and loss of the same steps."""
    inference_seconds: list[NonNegativeFloat]
    """Seconds of forward under inference mode."""
    yardstick_seconds: list[NonNegativeFloat] = []
    """Seconds of a product of two matrices, timed between the samples: the speed of the machine meanwhile."""
    yardstick_flops: int | None = None
    """Floating-point operations of the yardstick."""
    launch_yardstick_seconds: list[NonNegativeFloat] = []
    """Seconds of a hundred launches of the smallest kernel: the speed of the host. Empty on a CPU."""
    device_train_step_seconds: list[NonNegativeFloat] = []
    """Seconds that the device alone takes for a training step; empty on a CPU, and if not known."""
    device_inference_seconds: list[NonNegativeFloat] = []
    """Seconds that the device alone takes for an inference step."""
    noise: list[str] = []
    """Reasons not to trust these samples, if any: names of `NOISES` in `measure.noise`."""
    rounds: list[NonNegativeInt] = []
    """Number of the round of each sample, in which the cells of a report that have it took turns; empty if timed alone."""
    processes: list[NonNegativeInt] = []
    """Number of the process of each sample; a sweep that was resumed has several. Empty where `rounds` is."""
    growing: GrowingFigures | None = None
    """Times of the parts that grow along an axis; None if they are not known, or the cell was timed alone."""

    @model_validator(mode="after")
    def _has_a_round_for_each_sample(self) -> "TimeFigures":
        """Refuse lists of different lengths, whose samples could not be paired."""
        counts = {len(self.train_step_seconds), len(self.forward_seconds), len(self.inference_seconds)}
        counts |= {len(self.rounds), len(self.processes)} if self.rounds or self.processes else set()
        if self.growing is not None:
            parts = self.growing
            counts |= {len(parts.train_step_seconds), len(parts.forward_seconds)}
            counts |= {len(parts.inference_seconds)} if parts.inference_seconds else set()
        if (self.rounds or self.growing) and len(counts) > 1:
            raise ValueError("samples, rounds and processes have lists of different lengths")
        return self


class Turn(Schema):
    """A cell's turn in a round: one training step and one inference. Seconds are those of the fields of `TimeFigures`."""

    cell: str
    """Key of the cell."""
    train_step_seconds: NonNegativeFloat
    forward_seconds: NonNegativeFloat
    inference_seconds: NonNegativeFloat
    growing_train_step_seconds: NonNegativeFloat | None = None
    """The part that grows, as in `GrowingFigures`; None where it is not known."""
    growing_forward_seconds: NonNegativeFloat | None = None
    growing_inference_seconds: NonNegativeFloat | None = None


class Round(Schema):
    """One round of cells that take turns: a line of rounds.jsonl, which holds them until all their turns are in records."""

    schema_version: int = SCHEMA_VERSION
    """Version of the schema that the writing capsbench had."""
    number: NonNegativeInt
    """Number of the round, which no other round of the report has."""
    process: NonNegativeInt
    """Number of the process that took it."""
    clock: str
    """Name of the clock, as in `TimeFigures`."""
    warmup_steps: int
    """Steps of each cell before its first turn."""
    turns: list[Turn]
    """Turns in the order in which they were taken."""
    yardstick_seconds: list[NonNegativeFloat] = []
    """Seconds of the yardstick before the round."""
    yardstick_flops: int | None = None
    """Floating-point operations of the yardstick."""
    launch_yardstick_seconds: list[NonNegativeFloat] = []
    """Seconds of a hundred launches before the round; empty on a CPU."""
    device_train_step_seconds: dict[str, list[float]] = {}
    """Seconds of the device alone by the key of the cell, taken before the first round."""
    device_inference_seconds: dict[str, list[float]] = {}
    """Seconds of the device alone for an inference step."""
    noise: list[str] = []
    """Reasons not to trust the round, seen on the machine: names of `NOISES` in `measure.noise`."""
    modules: dict[str, list[str]] = {}
    """The modules at whose edges the clock was read, by the key of the cell."""
    growing_along: dict[str, str] = {}
    """The axis along which these modules grow, by the key of the cell."""
    edges_seconds: NonNegativeFloat = 0.0
    """Seconds that reading the clock at the edges adds to a training step."""


class StepFigures(Schema):
    """The figures that a trace of the step gives without running it."""

    retained_by_module: dict[str, int]
    """Retained bytes by the module that keeps them; bytes that no module keeps are under the empty name."""
    retained_bytes: int | None = None
    """Retained bytes of the traced step, as its device's allocator would count them. None in records before version 4."""
    agrees: bool | None = None
    """True if a measured step retained these bytes; if not, the trace is not believed. None if predicted, or before version 4."""
    flops: int | None = None
    """Floating-point operations of forward and backward, as torch counts them; element-wise work counts nothing."""
    floor_flops: int | None = None
    """Floating-point operations that the step cannot do without: nothing evaluated twice."""
    floor_bytes: int | None = None
    """Memory that any computation of the step needs: weights, their gradients, the optimizer's state and the batch."""
    modelled_train_step_seconds: float | None = None
    """Seconds of a training step by a model of its operators; None if it is run, and before version 7."""
    modelled_forward_seconds: float | None = None
    """Seconds of its forward pass and loss by the same model."""
    notes: list[str] = []
    """Assumptions of the trace."""


class Record(Schema):
    """The result of one cell."""

    schema_version: int = SCHEMA_VERSION
    """Version of the schema that the writing capsbench had."""
    kind: Literal["measured", "predicted"] = "measured"
    """Origin of the figures: a step that was run, or one traced on shapes alone."""
    cell: Cell
    """The cell that was measured."""
    status: Status
    """Outcome of the cell; `oom` and `skipped` are results, `timeout` and `error` are faults."""
    message: str | None = None
    """Reason that the status is not `ok`."""
    data_source: str | None = None
    """Source of the images: `real`, `sample`, `stand-in` for the sample in the named set's shape, or `random`."""
    environment: str | None = None
    """Key into environment.json."""
    started_at: str | None = None
    """Start of the measurement in UTC, ISO 8601."""
    duration_seconds: float | None = None
    """Wall time of all the cell's processes."""
    memory: MemoryFigures | None = None
    """Bytes; None if there was no memory pass. Of several processes they are those of the one with the highest peak."""
    mean_memory: MemoryFigures | None = None
    """Mean over processes that trained together; None for one process, and in a prediction."""
    time: TimeFigures | None = None
    """Seconds; None if nothing was timed."""
    step: StepFigures | None = None
    """Figures of a trace; None if there is none."""
    tf32: bool | None = None
    """True if the step was allowed to use TF32; None if not on CUDA, and before version 6."""
    notes: list[str] = []
    """Further remarks for the reader, such as other processes on the device."""

    def believed_step(self) -> StepFigures | None:
        """The figures of the trace, if the counted bytes confirm it: a trace that retains others followed another step."""
        if self.step is None or self.kind == "predicted" or self.memory is None or self.step.agrees:
            return self.step
        # Records before version 4 have no flag, but their modules add up or not.
        unsaid = self.step.agrees is None
        kind = self.cell.configuration.device_kind()
        retained = self.memory.retained_bytes
        borne_out = self.schema_version > 3 or (retained is not None and adds_up(self.step.retained_by_module, retained, kind))
        return self.step if unsaid and borne_out else None

    def settles(self, passes: Sequence[Pass]) -> bool:
        """Return whether a cell needs no further measuring, because it ended for good with all that was asked."""
        if self.status != "ok":
            return self.status in FINAL
        if self.kind == "predicted":
            return True
        return all(getattr(self, what) is not None for what in passes)


def adds_up(retained_by_module: Mapping[str, int], retained_bytes: int, device_kind: str) -> bool:
    """Return whether modules account for the retained bytes; on CUDA, whose allocator rounds up, whether for no more."""
    total = sum(retained_by_module.values())
    return total == retained_bytes if device_kind == "cpu" else total <= retained_bytes


class Plan(Schema):
    """The request of a sweep: plan.json."""

    schema_version: int = SCHEMA_VERSION
    """Version of the schema that the writing capsbench had."""
    command: str
    """Command that made the plan, as it would be typed again."""
    passes: list[Pass] = list(BOTH)
    """Measurements of each cell."""
    samples: int = Field(default=5, ge=3)
    """Least number of samples of every time."""
    budget_seconds: float = Field(default=10, ge=0)
    """Seconds of sampling a cell while its time is not known within 2 %; of cells in turn, together, while a slope is not."""
    slope_share: float = Field(default=0.2, gt=0)
    """Width of the slopes' 95 % intervals, as a share of the slope, at which cells in turn are timed no longer."""
    processes: int = Field(default=1, ge=1)
    """Least number of processes among which the rounds of cells in turn are divided; versions before 6 had one."""
    timeout_seconds: float = Field(default=1800, gt=0)
    """Time limit of each process."""
    strict: bool = False
    """True if a cell is refused while other processes are on its CUDA device."""
    experiment: str | None = None
    """Name of the paper's figure or table that is reproduced, if any, which decides how the report is drawn."""
    axes: tuple[str, ...] = ("blocks",)
    """Names of what the sweep varies: `blocks`, `batch_size`, another numeric option, `image_shape`, or a setting of a case."""
    bases: dict[str, AxisForm] = {}
    """Declared forms of costs over axes: `line`, `inverse` or `quadratic`; others are found."""
    cells: list[Cell]
    """Cells in the order in which they are measured."""

    def was_typed(self) -> bool:
        """Return whether a command made the plan; else a call in Python did."""
        return self.command.startswith("capsbench ")


def axes_of(cells: Iterable[Cell], axes: Iterable[str]) -> tuple[str, ...]:
    """The axes along which cells of one series differ.

    These are some of the given axes. Cells that differ along none of them, as those of one depth, may differ in options that are
    whole numbers, such as the world size: then these are the axes. Cells that differ in nothing have the first axis that one has.

    Args:
        cells: cells of a sweep.
        axes: axes that were asked for.
    """
    configurations = [cell.configuration for cell in cells]
    known = [axis for axis in axes if any(it.position(axis) is not None for it in configurations)]
    found = [axis for axis in known if _differ_along(axis, configurations)]
    found = found or [axis for axis in AXES_OF_FIELDS if type_of(axis) is int and _differ_along(axis, configurations)]
    return tuple(found or known[:1] or ["blocks"])


def _differ_along(axis: str, configurations: Iterable[Configuration]) -> bool:
    """Return whether configurations of one series differ in their positions on an axis."""
    positions: dict[str, set[float | None]] = {}
    for it in configurations:
        positions.setdefault(it.series(axis), set()).add(it.position(axis))
    return any(len(several) > 1 for several in positions.values())


def newer_than_known(data: Any) -> int | None:
    """The schema version of this JSON object, if it is newer than this capsbench understands."""
    version = data.get("schema_version") if isinstance(data, dict) else None
    return version if isinstance(version, int) and version > SCHEMA_VERSION else None
