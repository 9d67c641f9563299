"""A summary of a report, and the content of a baseline file: the figures of each series and cell by which runs are compared."""

from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator

from capsbench.catalog import MODELS
from capsbench.frame import AXIS_COLUMN, SERIES_COLUMNS
from capsbench.records import Configuration, Status
from capsbench.stats.bases import Form
from capsbench.stats.metrics import QUANTITIES

BASELINE_VERSION = 5
"""Version of the format, raised whenever an older capsbench could not understand a new baseline."""

READABLE_VERSIONS = (1, 2, 3, 4, 5)
"""Versions of the format that can be read; series of version 1 have no slopes, cells before version 3 no `tf32`, and before
version 4 slopes have no `scatter`, and series no axis: they lie along blocks. Before version 5 series have no `curves`, which are
then found in their cells."""

PROGRAM: Literal["capsbench baseline"] = "capsbench baseline"

COMPARED_BYTES = {
    name: QUANTITIES[name].column
    for name in ("retained", "peak", "reserved", "state", "gradient", "optimizer", "inference-peak", "inference-kept")
}
"""Bytes that are compared, with the field of a record that holds them."""

CPU_PEAKS = ("peak", "inference-peak")
"""Bytes that are not compared where they are predicted for a CPU: they contain memory of the predicting machine's libraries."""

COMPARED_TIMES = {name: QUANTITIES[name].column for name in ("train", "inference")}
"""Times that are compared, with the field that holds their samples."""


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TimeSummary(_Schema):
    """A summary of the samples of one time."""

    seconds: float
    """Median of the samples."""
    samples: int
    """Number of samples."""
    spread: float
    """Range of the middle half over the median."""
    relative: float | None = None
    """The median over that of the yardstick, which was timed between the samples; None if none was timed."""
    of_launches: float | None = None
    """The median over that of a hundred launches, if the device waits for the host; None if it does not."""


class ScatterSummary(_Schema):
    """The scatter of a slope among the processes of a run, which a slope of whole steps also shows by its cells."""

    deviation: float
    """Standard deviation in the unit of the slope, beyond what the scatter of rounds explains."""
    degrees: float
    """Degrees of freedom of this estimate, not always a whole number."""


class SlopeSummary(_Schema):
    """The slope of a time over an axis, of cells that took turns."""

    seconds: float
    """Seconds per unit of the axis."""
    low: float
    """Lower end of its 95 % interval from the scatter of rounds."""
    high: float
    """Upper end."""
    basis: Literal["edges", "turns"]
    """The part of the step that it is the slope of: that which grows along the axis, or all."""
    rounds: int
    """Number of rounds."""
    processes: float = 1
    """Number of processes that took them, in equal parts; processes with few rounds count for less than one."""
    scatter: ScatterSummary | None = None
    """Scatter of the slope among them; None where they agree, or there is one."""
    rest: float | None = None
    """Seconds of the rest of the step, which does not grow along it; None if it is not known."""
    of_rest: float | None = None
    """The slope as a share of the rest, round by round, so that the speed of the machine drops out."""
    of_rest_low: float | None = None
    """Lower end of its 95 % interval from the scatter of rounds."""
    of_rest_high: float | None = None
    """Upper end."""
    of_rest_scatter: ScatterSummary | None = None
    """Scatter of this share among processes."""
    yardstick: float | None = None
    """Seconds of the yardstick in these rounds; None if none was timed."""
    launches: float | None = None
    """Seconds of a hundred launches in these rounds, if the device waits for the host in all cells; None if it does not."""


class CurveSummary(_Schema):
    """The terms of bytes that are no line over an axis."""

    form: Form
    """Their form: `quadratic` for 1, n and n², `inverse` for 1 and 1/n."""
    slope: float
    """Bytes per unit of the axis; 0 where the form is `inverse`."""
    term: float
    """Bytes per pair of units, or those that the axis divides."""


class CellSummary(_Schema):
    """One cell."""

    position: int | float
    """Position on the axis of its series."""
    replicate: int = 0
    status: Status
    message: str | None = None
    """Reason that the status is not `ok`."""
    environment: str | None = None
    """Key into `Summary.environments`."""
    probe: str | None = None
    """Name of the probe that counted its memory."""
    bytes: dict[str, int] = {}
    """Bytes by the names of `COMPARED_BYTES`."""
    times: dict[str, TimeSummary] = {}
    """Times by the names of `COMPARED_TIMES`."""
    noise: list[str] = []
    """Reasons not to trust its times: names of `NOISES`."""
    tf32: bool | None = None
    """True if the step was allowed to use TF32; None if that is not known, or there is none."""
    retained_by_module: dict[str, int] = {}
    """Retained bytes by module; empty if the record has none."""

    @model_validator(mode="before")
    @classmethod
    def _at_its_depth(cls, data: Any) -> Any:
        """Read a cell from before version 4, which lies at its number of blocks."""
        if isinstance(data, dict) and "blocks" in data and "position" not in data:
            return {"position": data["blocks"], **{name: value for name, value in data.items() if name != "blocks"}}
        return data


def _without_blocks(value: Any) -> Any:
    return {"blocks": 0, "batch_size": None, **value} if isinstance(value, dict) else value


class SeriesSummary(_Schema):
    """All cells of one configuration at any position on an axis."""

    kind: Literal["measured", "predicted"]
    configuration: Annotated[Configuration, BeforeValidator(_without_blocks), AfterValidator(Configuration.with_known_values)]
    """The configuration that its cells share: at 0 blocks, or without a value on the axis."""
    axis: str = "blocks"
    """Name of the axis along which it lies."""
    further: bool = False
    """True along a further axis of a grid: its slopes alone are compared, as its cells belong to series along the first."""
    cells: list[CellSummary]
    """Cells by position and replicate."""
    slopes: dict[str, SlopeSummary] = {}
    """Slopes by the names of `COMPARED_TIMES`, if its cells took turns."""
    curves: dict[str, CurveSummary] = {}
    """Terms of bytes by the names of `COMPARED_BYTES`, of those that are no line."""

    def options(self) -> dict[str, object]:
        """Values that distinguish this series from another, as columns of `load`."""
        known = self.configuration.options() | {"blocks": None if self.axis == "blocks" else self.configuration.blocks}
        return {AXIS_COLUMN: self.axis} | {name: known[name] for name in SERIES_COLUMNS} | {"kind": self.kind}

    def named(self, model: str) -> "SeriesSummary":
        """Return this series under another name of its network."""
        return self.model_copy(update={"configuration": self.configuration.model_copy(update={"model": model})})

    def key(self) -> str:
        """A key that is equal for series that are one series on one machine."""
        return f"{self.kind} {self.axis} {self.configuration.series(self.axis)}"

    def key_across(self, names: Collection[str]) -> str:
        """A key that is equal for series that differ in these columns of `load` alone.

        A prediction names its GPU, and a measurement does not, so that across `kind` this distinguishes nothing.
        """
        ignored = {*names} | ({"gpu"} if "kind" in names else set())
        kept = {name: value for name, value in self.options().items() if name not in ignored}
        return repr(sorted((name, str(value)) for name, value in kept.items()))

    def portable_key_across(self, names: Collection[str]) -> str:
        """A key that is equal for series that differ in these columns of `load`, or in the machine alone."""
        elsewhere = self.configuration.model_copy(update={"threads": None, "device": self.configuration.device_kind()})
        return self.model_copy(update={"configuration": elsewhere}).key_across(names)

    def portable_key(self) -> str:
        """A key that is equal for series that differ in the machine alone: number of threads, and index of the GPU."""
        device = self.configuration.device
        general = "cuda" if device.removeprefix("cuda:").isdecimal() else device
        elsewhere = self.configuration.model_copy(update={"threads": None, "device": general})
        return f"{self.kind} {self.axis} {elsewhere.series(self.axis)}"


def _module_and_function(model: str) -> tuple[str, str] | None:
    """The module and the function in the name of a user's network; None for any other name."""
    module, _, function = model.rpartition(":")
    is_named = module.endswith(".py") or all(part.isidentifier() for part in module.split("."))
    return (module, function) if is_named else None


def network_name(model: str) -> str:
    """The name of a network by which runs are matched: `nets:unet` for `path/to/nets.py:unet`, `package.nets:unet` and itself.

    A function that is given to `run` is recorded by its module, and one that is named on the command line by its file.
    """
    found = _module_and_function(model)
    if found is None:
        return model
    module, function = found
    stem = PurePath(module).stem if module.endswith(".py") else module.rpartition(".")[2]
    return f"{stem}:{function}"


def function_name(model: str) -> str:
    """The function alone in the name of a network, as a function of a script or a notebook is recorded: `unet`."""
    found = _module_and_function(model)
    return model if found is None else found[1]


def same_network(one: str, other: str) -> bool:
    """Return whether two names can be of one network: of one function, in modules that can be one file.

    Two modules of packages with different names are two files, and no function of a user's is a network of capsbench.
    """
    if one == other:
        return True
    if one in MODELS or other in MODELS:
        return False
    known = [found for found in map(_module_and_function, (one, other)) if found is not None]
    if len(known) < 2:
        return function_name(one) == function_name(other)
    two_modules = all("." in module and not module.endswith(".py") for module, _ in known)
    return network_name(one) == network_name(other) and not two_modules


class Summary(_Schema):
    """A report, or a baseline."""

    program: Literal["capsbench baseline"] = PROGRAM
    schema_version: int = BASELINE_VERSION
    command: str | None = None
    """The command that wrote this baseline."""
    measured_by: list[str] = []
    """The commands that measured it."""
    environments: dict[str, dict[str, str]] = {}
    """The parts of each machine that peaks and times depend on."""
    lines: list[SeriesSummary]

    def as_json(self) -> dict[str, Any]:
        """The summary as JSON data, without unknown or empty parts."""
        data = self.model_dump(mode="json", exclude_none=True)
        for series in data["lines"]:
            if series["axis"] == "blocks":
                del series["configuration"]["blocks"], series["axis"]
            if not series["further"]:
                del series["further"]
            for name in ("slopes", "curves"):
                if not series[name]:
                    del series[name]
            series["cells"] = [{name: value for name, value in cell.items() if value not in ([], {})} for cell in series["cells"]]
        return data


def mapping(value: object) -> Mapping[str, Any]:
    """A part of an environment, which may hold anything; empty if it is no mapping."""
    return value if isinstance(value, Mapping) else {}


HARDWARE = ("CPU", "physical cores", "logical cores", "instructions", "torch", "GPU", "driver")
"""Parts that every machine has. All others are settings, which count as unset if an environment does not name them."""


def machine_parts(environment: Mapping[str, Any]) -> dict[str, str]:
    """The parts of an entry of environment.json that peaks and times depend on; parts that it lacks are left out.

    They are `HARDWARE`, limits on the cores that a process may use, and variables of the environment by their own names.
    """
    known = mapping(environment)
    cpu, cuda = mapping(known.get("cpu")), mapping(known.get("cuda"))
    devices = cuda.get("devices")
    parts = {
        "CPU": cpu.get("model"),
        "physical cores": cpu.get("physical_cores"),
        "logical cores": cpu.get("logical_cores"),
        "instructions": cpu.get("instructions"),
        "torch": mapping(known.get("packages")).get("torch"),
        "GPU": ", ".join(str(mapping(one).get("name")) for one in devices) if isinstance(devices, list) else None,
        "driver": cuda.get("driver"),
        "CPU quota": cpu.get("quota_cores"),
        # A quota of all cores is no limit, and earlier versions did not count cores.
        "allowed cores": allowed if (allowed := cpu.get("allowed_cores")) != cpu.get("logical_cores") else None,
        **mapping(known.get("settings")),
    }
    return {name: str(value) for name, value in parts.items() if value not in (None, "")}
