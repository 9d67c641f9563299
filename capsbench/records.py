"""What one measurement says: the only schema of the project, versioned.

A `Cell` is what is measured (a configuration and a replicate), a `Record` what came of it. Bytes are bytes, seconds are
seconds. Nothing here measures, stores or draws.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 2
"""Raised whenever an older capsbench could not understand a new record."""

Status = Literal["ok", "oom", "timeout", "error", "skipped"]
"""How a cell ended; `oom` and `skipped` are results, `timeout` and `error` are faults."""

Pass = Literal["time", "memory"]
"""One process's part of a measurement."""

BOTH: tuple[Pass, ...] = ("time", "memory")

FINAL: frozenset[Status] = frozenset({"ok", "oom", "skipped"})
"""The outcomes that `--resume` does not try again."""


class _Schema(BaseModel):
    # "model" is this field's word for a network: let pydantic keep none of its own.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Configuration(_Schema):
    """Everything that decides what a step computes. Options of capsule networks are None for a user's own model."""

    model: str
    """A built-in name, an entry point, or `package.module:name`."""
    blocks: int = Field(ge=0)
    """Depth."""
    dataset: str
    """Whose shape and classes the model gets."""
    batch_size: int = Field(ge=1)
    """Images per step."""
    kernel: str | None = None
    """How routing is computed; never `auto`."""
    routing: str | None = None
    """Routing algorithm."""
    iterations: int | None = None
    """Rounds of routing."""
    capsules: int | None = None
    """Capsules per hidden layer."""
    front: str | None = None
    """How the two convolutions are computed; never `auto`. None in records of version 1, whose front was plain."""
    memory: str | None = None
    """Memory strategy of the stack."""
    inverse: str | None = None
    """How a reversible stack inverts; never `auto`."""
    rule: str | None = None
    """MoCapsNet's rule."""
    gamma: float | None = None
    """MoCapsNet's momentum term."""
    optimizer_step: str | None = None
    """`backward`: the optimizer steps for each parameter as its gradient arrives. None: after backward."""
    precision: str = "fp32"
    """`fp32`, or autocast to `bf16` or `fp16`."""
    device: str
    """`cpu`, `cuda`, `cuda:1`."""
    threads: int | None = None
    """Threads of a CPU run; None elsewhere."""
    capacity: int | None = None
    """A limit on the memory of the device in bytes, or None."""

    def line(self) -> str:
        """What all depths of one line share, as a key."""
        return self.model_copy(update={"blocks": 0}).model_dump_json()


class Cell(_Schema):
    """One configuration, once."""

    configuration: Configuration
    replicate: int = Field(default=0, ge=0)

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


class MemoryFigures(_Schema):
    """Bytes of one training step, once weights, gradients and optimizer state have been made."""

    probe: str
    """Who counted: `profiler` (a CPU's allocation events) or `cuda`."""
    state_bytes: int
    """Parameters and buffers."""
    gradient_bytes: int
    """Gradients of the parameters that are alive after backward; 0 where the optimizer steps inside backward."""
    optimizer_bytes: int
    """The optimizer's state."""
    retained_bytes: int
    """Alive after forward, minus before: what backward will need."""
    peak_forward_bytes: int
    """Highest during forward and loss; like the next two, with weights, optimizer state and the batch in it."""
    peak_backward_bytes: int
    """Highest during backward, and the optimizer's steps that are part of it."""
    peak_allocated_bytes: int
    """Highest over the whole step, the optimizer's part included."""
    peak_reserved_bytes: int | None = None
    """Highest the caching allocator held; None where there is none (CPU)."""
    process_bytes: int | None = None
    """CUDA: of this process, as the driver says (NVML). CPU: the largest resident set."""


class TimeFigures(_Schema):
    """Raw samples in seconds, in the order in which they were taken."""

    clock: str
    """`cuda events` or `monotonic`."""
    warmup_steps: int
    """Steps before the first sample."""
    train_step_seconds: list[float]
    """Forward, loss, backward, optimizer."""
    forward_seconds: list[float]
    """Forward and loss of the same steps."""
    inference_seconds: list[float]
    """Forward under inference mode."""


class Record(_Schema):
    """What one cell said."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["measured"] = "measured"
    cell: Cell
    status: Status
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
    time: TimeFigures | None = None

    def settles(self, passes: Sequence[Pass]) -> bool:
        """Whether a cell needs no further measuring: it ended for good, with all that was asked."""
        if self.status != "ok":
            return self.status in FINAL
        return all(getattr(self, what) is not None for what in passes)


class Plan(_Schema):
    """What was asked for: plan.json."""

    schema_version: int = SCHEMA_VERSION
    command: str
    """The command that made it, as it would be typed again."""
    passes: list[Pass] = list(BOTH)
    """What is measured of each cell."""
    samples: int = Field(default=5, ge=5)
    """Fewest samples of every time."""
    timeout_seconds: float = Field(default=1800, gt=0)
    """For each process."""
    experiment: str | None = None
    """The paper's name of what is reproduced, if any: it says how the report is drawn."""
    cells: list[Cell]
    """In the order in which they are measured."""


def newer_than_known(data: Any) -> int | None:
    """The schema version of this JSON object, if it is newer than this capsbench understands."""
    version = data.get("schema_version") if isinstance(data, dict) else None
    return version if isinstance(version, int) and version > SCHEMA_VERSION else None
