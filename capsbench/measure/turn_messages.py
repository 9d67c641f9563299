"""The messages between a process of cells that take turns and its parent, as lines of JSON."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from capsbench.records import Configuration, Round, Status


class TurnsRequest(BaseModel):
    """The cells that are to take turns."""

    model_config = ConfigDict(extra="forbid")

    cells: dict[str, Configuration]
    """Configurations by the keys of their cells. All have one device and one number of threads."""
    axes: tuple[str, ...] = ("blocks",)
    """Axes along which the parts that grow are looked for, the most important first."""
    data_directory: Path | None = None
    strict: bool = False
    """True if nothing is to be measured while other processes use the CUDA device."""
    channel: int
    """Descriptor of the socket to the parent."""
    process: int
    """Number of this process in the report."""
    shared: bool = False
    """True if other work had much of the cores before: threads of this process sleep while they wait, and rounds are marked."""


class RoundRequest(BaseModel):
    """A round to take."""

    number: int
    cells: list[str]
    """Keys of the cells, in the order of their turns."""


class Built(BaseModel):
    """A cell that is ready."""

    cell: str
    data_source: str | None
    notes: list[str]
    tf32: bool | None = None
    """True if the step was allowed to use TF32; None on a CPU."""


class Failed(BaseModel):
    """A cell that cannot take turns."""

    cell: str
    status: Status
    message: str


class Message(BaseModel):
    """A message to the parent; one of its fields is filled."""

    model_config = ConfigDict(extra="forbid")

    active: str | None = None
    """Key of the cell that is being built, or has its turn."""
    built: Built | None = None
    failed: Failed | None = None
    ready: bool = False
    """True once all cells are built, and after each round without a turn."""
    round: Round | None = None
