"""The request that a worker reads and the reply that it writes, as lines of JSON."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from capsbench.records import Configuration, MemoryFigures, Pass, Status, StepFigures, TimeFigures
from capsbench.timeline import Timeline


class Request(BaseModel):
    """The request of the parent."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    configuration: Configuration
    what: Pass
    samples: int
    budget_seconds: float = 10.0
    """Time of sampling, beyond the fewest samples, while the time is not yet known within 2 %."""
    data_directory: Path | None = None
    timeline: bool = False
    """True if the memory pass is to report one step allocation by allocation, instead of its figures."""
    snapshot: Path | None = None
    """File for the timeline pass's account of a CUDA device's own allocator."""
    strict: bool = False
    """True if nothing is to be measured while other processes use the CUDA device."""
    rank: int | None = None
    """Number of the process among those that train together; None for one that is alone, or that starts them."""
    turn: int | None = None
    """A socket's descriptor: the worker reports there that its workload is built, and learns there when it may be timed."""


class Reply(BaseModel):
    """The findings of the child."""

    model_config = ConfigDict(extra="forbid")

    status: Status
    message: str | None = None
    data_source: str | None = None
    memory: MemoryFigures | None = None
    mean_memory: MemoryFigures | None = None
    """Mean over processes that trained together."""
    time: TimeFigures | None = None
    step: StepFigures | None = None
    timeline: Timeline | None = None
    notes: list[str] = []
    tf32: bool | None = None
    """True if the step was allowed to use TF32; None on a CPU."""
    waited_seconds: float = 0.0
    """Seconds that the pass waited for other sweeps on its device."""
