"""A summary of a report, and the content of a baseline file: the figures of each series and cell by which runs are compared."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator

from capsbench.axes import AxisForm
from capsbench.frame import AXIS_COLUMN, SERIES_COLUMNS, along, to_frame
from capsbench.records import Configuration, MemoryFigures, Record, Status, TimeFigures
from capsbench.stats.bases import Form
from capsbench.stats.median import is_host_bound
from capsbench.stats.metrics import QUANTITIES
from capsbench.stats.processes import PooledCentre, equal_processes
from capsbench.stats.slopes import fit_bytes
from capsbench.stats.turn_times import fit_turns, turn_times

if TYPE_CHECKING:
    from capsbench.report import Report

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

COMPARED_TIMES = {name: QUANTITIES[name].column for name in ("train", "inference")}
"""Times that are compared, with the field that holds their samples."""

_DIGITS = 6
"""Significant digits of a time: clocks are no more precise, and a baseline stays readable."""


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


def summarize(reports: Sequence["Report"]) -> tuple[Summary, list[str]]:
    """A summary of reports, with notes for the reader.

    If several reports hold one series, the latest counts; an earlier one adds the cells that it alone has only if it shares
    none with a later one. If a network's source was changed, the latest source counts: its cells are never mixed with those
    of another one.

    Args:
        reports: those with records.
    """
    latest_first = sorted(reports, key=lambda report: (report.ended, report.place()), reverse=True)
    all_series: dict[_SeriesKey, dict[_CellKey, Record]] = {}
    passed_over: dict[str, int] = {}
    for report in latest_first:
        for key, cells in _by_series(report.records, report.axes).items():
            taken = all_series.setdefault(key, {})
            if taken.keys() & cells.keys() or (taken and _source(taken.values()) != _source(cells.values())):
                passed_over[report.name] = passed_over.get(report.name, 0) + 1
            else:
                taken.update(cells)
    forms = {axis: form for report in reversed(latest_first) for axis, form in report.bases.items()}
    environments = {key: entry for report in reports for key, entry in report.environments.items()}
    used = {record.environment for cells in all_series.values() for record in cells.values()}
    summary = Summary(
        measured_by=list(dict.fromkeys(report.plan.command for report in reports if report.plan is not None)),
        environments={key: machine_parts(environments[key]) for key in sorted(environments) if key in used},
        lines=[
            _series_summary(all_series[key], key, forms.get(key.axis))
            for key in sorted(all_series, key=lambda key: (key.further, key.series))
        ],
    )
    count = ((name, f"{number} line{'s' if number > 1 else ''}") for name, number in passed_over.items())
    notes = [f"{text} of report {name} were measured again by a later report, which counts" for name, text in count]
    for report in reports:
        earlier = len(report.records) - sum(len(cells) for cells in _by_series(report.records, report.axes[:1]).values())
        if earlier:
            notes.append(f"{earlier} records of report {report.name} are of an earlier source of their network, and left out")
    return summary, notes


class _SeriesKey(NamedTuple):
    """A series of a report along an axis."""

    series: str
    axis: str
    further: bool


_CellKey = tuple[float, int]
"""Position and replicate."""


def _by_series(records: Iterable[Record], axes: Sequence[str]) -> dict[_SeriesKey, dict[_CellKey, Record]]:
    """The records of each series by position and replicate, for the latest source of its network alone."""
    all_series: dict[_SeriesKey, list[tuple[_CellKey, Record]]] = {}
    for record in records:
        for number, axis in enumerate(axes):
            it = record.cell.configuration
            at = it.position(axis)
            # A network that lacks the first axis has no others, and is compared all the same.
            if at is not None or not number:
                key = _SeriesKey(f"{record.kind} {it.series(axis)}", axis, number > 0)
                all_series.setdefault(key, []).append(((at or 0.0, record.cell.replicate), record))
    latest = {key: _source(record for _, record in found) for key, found in all_series.items()}
    return {key: {at: it for at, it in found if it.cell.source == latest[key]} for key, found in all_series.items()}


def _source(series: Iterable[Record]) -> str | None:
    """The latest source of a series' network."""
    # If the records have no dates, the last one is the latest.
    return max(reversed(list(series)), key=lambda record: record.started_at or "").cell.source


def _series_summary(cells: Mapping[_CellKey, Record], key: _SeriesKey, declared: AxisForm | None) -> SeriesSummary:
    some = next(iter(cells.values()))
    listed = [_cell(cells[at], at[0]) for at in sorted(cells)]
    return SeriesSummary(
        kind=some.kind,
        configuration=some.cell.configuration.without(key.axis),
        axis=key.axis,
        further=key.further,
        cells=listed,
        slopes=_slopes(cells.values(), key.axis),
        curves=_curves(listed, key.axis, some.cell.configuration.device, declared),
    )


def _curves(cells: Sequence[CellSummary], axis: str, device: str, declared: AxisForm | None) -> dict[str, CurveSummary]:
    """Terms of the bytes that are no line over an axis."""
    found = {}
    for name in COMPARED_BYTES:
        known = [(cell.position, cell.bytes[name]) for cell in cells if cell.status == "ok" and name in cell.bytes]
        curve = curve_of(name, [place for place, _ in known], [value for _, value in known], axis, device, declared)
        if curve is not None:
            found[name] = curve
    return found


def curve_of(
    name: str, places: Sequence[float], nbytes: Sequence[int], axis: str, device: str, declared: AxisForm | None = None
) -> CurveSummary | None:
    """The terms of bytes that are no line over an axis; None for a line, for too few positions, and if a declared form is off.

    Args:
        name: a name of `COMPARED_BYTES`.
        places: positions on the axis.
        nbytes: as many numbers of bytes.
        axis: name of the axis.
        device: name of the device, on which the rounding of its allocator depends.
        declared: form that they are to have, if any.
    """
    if len(set(places)) < 2:
        return None
    fit = fit_bytes(places, nbytes, QUANTITIES[name], axis, device=device, declared=declared)
    if fit.curve is None or fit.misfit is not None:
        return None
    return CurveSummary(form=fit.curve.form, slope=fit.curve.slope, term=fit.curve.term)


def _slopes(records: Iterable[Record], axis: str) -> dict[str, SlopeSummary]:
    """Slopes over an axis of times of cells that took turns."""
    good = [record for record in records if record.status == "ok" and record.time is not None and record.time.rounds]
    frame = along(to_frame((("", record) for record in good), [(axis,)] * len(good)))
    yardsticks = [one for record in good if record.time for one in record.time.yardstick_seconds]
    found = {}
    for name, column in COMPARED_TIMES.items():
        times = turn_times(frame, column) if good else None
        fit = fit_turns(times) if times is not None else None
        # The rest of the step may grow by chance; a check compares the parts that are known to.
        slope = (fit.growing or fit.slope) if fit is not None else None
        if fit is not None and slope is not None and slope.of_rounds is not None:
            numbers = dict(zip(("seconds", "low", "high"), (slope.value, *slope.of_rounds), strict=True))
            of_rest_scatter = None
            if fit.of_rest is not None and fit.of_rest.of_rounds is not None:
                shares = (fit.rest_seconds, fit.of_rest.value, *fit.of_rest.of_rounds)
                numbers |= dict(zip(("rest", "of_rest", "of_rest_low", "of_rest_high"), shares, strict=True))
                of_rest_scatter = _scatter(fit.of_rest)
            if yardsticks:
                numbers["yardstick"] = median(yardsticks)
            launches = [_launches(record.time, column) for record in good if record.time]
            if all(launches):
                numbers["launches"] = median(one for one in launches if one)
            rounded = {name: _rounded(value) for name, value in numbers.items()}
            more = {
                "basis": "edges" if fit.growing else "turns",
                "rounds": len(fit.slopes),
                "processes": _rounded(equal_processes(list(fit.processes.values()))),
                "scatter": _scatter(slope),
                "of_rest_scatter": of_rest_scatter,
            }
            found[name] = SlopeSummary.model_validate(rounded | more)
    return found


def _scatter(centre: PooledCentre) -> ScatterSummary | None:
    deviation, degrees = map(_rounded, centre.scatter)
    return ScatterSummary(deviation=deviation, degrees=degrees) if degrees else None


def _cell(record: Record, position: float) -> CellSummary:
    step, memory, time = record.believed_step(), record.memory, record.time
    return CellSummary(
        position=int(position) if position.is_integer() else position, replicate=record.cell.replicate,
        status=record.status, message=record.message, environment=record.environment,
        probe=memory.probe if memory else None, bytes=_bytes(record, memory) if memory else {},
        times=_times(time) if time else {}, noise=time.noise if time else [], tf32=record.tf32,
        retained_by_module=step.retained_by_module if step else {},
    )  # fmt: skip


def _bytes(record: Record, memory: MemoryFigures) -> dict[str, int]:
    found = {name: value for name, field in COMPARED_BYTES.items() if (value := getattr(memory, field)) is not None}
    if record.kind == "predicted" and record.cell.configuration.device_kind() == "cpu":
        for name in ("peak", "inference-peak"):  # they contain the scratch memory of the libraries of the predicting machine
            found.pop(name, None)
    return found


def _times(time: TimeFigures) -> dict[str, TimeSummary]:
    yardstick = median(time.yardstick_seconds) if time.yardstick_seconds else None
    found = {}
    for name, field in COMPARED_TIMES.items():
        samples = getattr(time, field)
        if samples:
            low, middle, high = np.percentile(samples, (25, 50, 75))
            launches = _launches(time, field)
            found[name] = TimeSummary(
                seconds=_rounded(middle),
                samples=len(samples),
                spread=round(float((high - low) / middle), 3) if middle else 0.0,
                relative=_rounded(middle / yardstick) if yardstick else None,
                of_launches=_rounded(middle / launches) if launches else None,
            )
    return found


def _launches(time: TimeFigures, field: str) -> float | None:
    """Seconds of a hundred launches, if this time of a device is the host's; None if it is not."""
    of_host = is_host_bound(getattr(time, field), getattr(time, f"device_{field}"))
    return median(time.launch_yardstick_seconds) if of_host and time.launch_yardstick_seconds else None


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
