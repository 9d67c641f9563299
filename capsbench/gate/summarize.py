"""The summary of reports, made of their records."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from capsbench.axes import AxisForm
from capsbench.frame import along, to_frame
from capsbench.gate.summary import (
    COMPARED_BYTES,
    COMPARED_TIMES,
    CPU_PEAKS,
    CellSummary,
    CurveSummary,
    ScatterSummary,
    SeriesSummary,
    SlopeSummary,
    Summary,
    TimeSummary,
    machine_parts,
)
from capsbench.records import MemoryFigures, Record, TimeFigures
from capsbench.stats.line_fit import fit_bytes
from capsbench.stats.median import is_host_bound
from capsbench.stats.metrics import QUANTITIES
from capsbench.stats.processes import PooledCentre, equal_processes
from capsbench.stats.turn_times import fit_turns, turn_times

if TYPE_CHECKING:
    from capsbench.report import Report

_DIGITS = 6
"""Significant digits of a time: clocks are no more precise, and a baseline stays readable."""


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
        for name in CPU_PEAKS:
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
