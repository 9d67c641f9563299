"""A sweep on the command line: announced, measured under a progress display, drawn and printed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console

from capsbench.axes import AxisForm, declared_forms, parse_depths
from capsbench.catalog import STACKED
from capsbench.cli.command import command_to_resume, in_words_of_command, typed_command
from capsbench.cli.flags import machine_of
from capsbench.cli.output import console_of, files_line, open_in_browser, print_faults, print_slopes, say, warn_of_damages
from capsbench.cli.typed import refuse_for_own, was_left_out
from capsbench.cli.types import once
from capsbench.drawing import SLOPES
from capsbench.errors import Interrupted, StoreError, with_flags
from capsbench.measure.group import check_measurable
from capsbench.options import SETTINGS_FLAG, SWEPT_OPTIONS
from capsbench.records import BOTH, Cell, Pass, Plan, axes_of
from capsbench.report import Report
from capsbench.sweep.asked import QUICK, Sweep
from capsbench.sweep.estimate import Estimate
from capsbench.sweep.forecast import MOST_TRACED, Forecast, cells_by_series, forecast
from capsbench.sweep.inside import add_timelines
from capsbench.sweep.launchers.options import Launching
from capsbench.sweep.measuring import measure
from capsbench.sweep.plan import axes_asked, expand
from capsbench.sweep.runner import Observer, remaining
from capsbench.sweep.session import check_data, choose_report
from capsbench.terminal.grid import grid_table
from capsbench.terminal.progress import Progress
from capsbench.terminal.sentences import cost_sentences
from capsbench.terminal.table4 import table4, table4_slopes, time_ratios
from capsbench.words.along import over_text
from capsbench.words.faults import faults_of
from capsbench.words.units import duration_range
from capsbench.workload import without_effect

LONG_SECONDS = 60.0
"""Duration of a sweep from which on the seconds that predicted timelines take do not matter."""


def quick_values() -> dict[str, Any]:
    """Return the values of --quick for parameters of this command that were not typed."""
    return {name: value for name, value in QUICK.items() if was_left_out(name)}


def asked_cells(given: dict[str, Any], usual: Mapping[str, object] | None = None, *, searched: str | None = None) -> list[Cell]:
    """Return the cells that a command's options ask for.

    Args:
        given: the command's options.
        usual: values of options that were not typed, in place of their defaults.
        searched: axis of a case whose largest value is searched for; networks then have one depth, unless depths were typed.
    """
    refuse_for_own(given["models"])
    models = dict.fromkeys(name for asked in given["models"] for name in (STACKED if asked == "all" else (asked,)))
    vary = once(given.get("vary", ()), "--vary")
    # Options that were not typed are left to the sweep, since a case has defaults of its own, and an axis has its values.
    left = {name: None for name in ("dataset", "batch_size", *vary) if name in SWEPT_OPTIONS and was_left_out(name)}
    options = {name: given[name] for name in SWEPT_OPTIONS} | machine_of(given) | left
    chosen = not was_left_out("depth")
    depths = None if searched is not None and not chosen else parse_depths(given["depth"])
    settings = once(given["settings"], SETTINGS_FLAG)
    usual = {name: value for name, value in (usual or {}).items() if name in SWEPT_OPTIONS}
    return expand(Sweep(tuple(models), depths, depths_chosen=chosen, settings=settings, vary=vary, usual=usual, **options))


def typed_axes(cells: Sequence[Cell], given: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the axes of these cells, which a command's options ask for."""
    return axes_of(cells, axes_asked(name for name, _ in given.get("vary", ())))


def typed_forms(axes: Sequence[str], given: Mapping[str, Any]) -> dict[str, AxisForm]:
    """Return the forms of costs over these axes that a command's options declare."""
    return declared_forms(once(given.get("basis", ()), "--basis", "1,n,n²"), axes)


def sweep_as_typed(
    cells: list[Cell], given: dict[str, Any], *, passes: Sequence[Pass] = BOTH, experiment: str | None = None
) -> int:
    """Sweep over cells by a command's options, and return the exit status.

    Args:
        cells: cells to measure.
        given: the command's options, those of `SWEEP_OPTIONS` among them.
        passes: measurements of each cell.
        experiment: the paper's name of the figure or table that is reproduced, if any.
    """
    axes = typed_axes(cells, given)
    launching = Launching(
        given["launcher"], given["address"], once(given["slurm"], "--slurm"), given["exclusive_node"], given["device"]
    )
    plan = Plan(
        command=typed_command(), cells=cells, passes=list(passes), samples=given["samples"], strict=given["strict"],
        budget_seconds=given["time_budget"], slope_share=given["slope_share"], timeout_seconds=given["timeout"],
        processes=given["processes"], experiment=experiment, axes=axes,
        bases=typed_forms(axes, given),
    )  # fmt: skip
    more = {name: given[name] for name in ("out", "resume", "as_json", "dry_run", "data_dir", "wait")}
    return sweep(plan, **more, open_page=given.get("open_page", False), launching=launching)


def sweep(
    plan: Plan, *, out: Path | None, resume: bool, as_json: bool, dry_run: bool = False, only_these: bool = False,
    data_dir: Path | None = None, wait: float | None = None, open_page: bool = False, launching: Launching | None = None,
) -> int:  # fmt: skip
    """Measure a plan into a report, draw it, print its slopes, and return the exit status.

    Args:
        plan: plan of the sweep.
        out: report folder, or None for one named after the time.
        resume: add to a report that was cut off.
        as_json: slopes as JSON.
        dry_run: announce, print the grid of cells, and stop.
        only_these: do not measure other cells of the report's plan.
        data_dir: folder of the real data sets.
        wait: seconds that a cell waits for other sweeps on its device; None for no limit.
        open_page: open the page in a browser.
        launching: where cells are measured; by default here, one at a time.

    Raises:
        Interrupted: Ctrl-C, after what was measured has been drawn.
    """
    check_measurable(plan)
    launching = launching or Launching()
    launching.check(installed=not dry_run)
    console = console_of(err=True)
    screen = Screen(console, check_data(plan.cells, data_dir), several=not launching.is_local())
    report = choose_report(plan, out, resume=resume, now=datetime.now(), make=not dry_run, notify=screen.notify)
    if dry_run:
        screen.announce(plan, report, remaining(plan, report))
        if not as_json:
            _print_grid(plan)
        return 0
    again = command_to_resume(report.folder, named=out is not None, resumed=resume)
    go_on = Interrupted("interrupted; all that was measured is kept", again)
    interrupted, began = False, monotonic()
    with report.lock(screen.notify):
        try:
            measure(
                plan, report, resume=resume, only_these=only_these, data_directory=data_dir, wait=wait, watcher=screen,
                launching=launching,
            )  # fmt: skip
        except KeyboardInterrupt:
            screen.notify("interrupted; what was measured is drawn, which a second Ctrl-C leaves out")
            interrupted = True
        try:
            if not interrupted and monotonic() - began > LONG_SECONDS:
                with suppress(OSError):
                    add_timelines(report)
            status = _conclude(console, report, as_json=as_json, open_page=open_page)
        except KeyboardInterrupt:
            if interrupted:
                raise go_on from None
            hint = f"draw with: capsbench plot {report.folder}"
            raise Interrupted("interrupted while drawing; all cells are kept", hint) from None
    if interrupted:
        raise go_on
    return status


class Screen:
    """A watcher that shows a sweep on the terminal.

    Args:
        console: console to draw on.
        data: source of each data set, in words; None not to announce the sweep.
        several: True if several cells may be measured at once.
    """

    def __init__(self, console: Console, data: Sequence[str] | None, *, several: bool = False) -> None:
        self._console = console
        self._data, self._several = data, several

    def notify(self, text: str) -> None:
        """Print a text that a person should know."""
        say(self._console, with_flags(text, {"time_budget": "--time-budget", "device": "--device"}))

    def announce(self, plan: Plan, report: Report, left: Sequence[Cell]) -> Estimate:
        """Announce the work, and return the estimate that was printed."""
        estimate = Estimate(plan, left)
        asked = [cell.configuration for cell in plan.cells]
        devices = ", ".join(dict.fromkeys(one.device + (f" ({one.gpu})" if one.gpu else "") for one in asked))
        done = len(plan.cells) - len(left)
        predicted = all(cell.configuration.is_predicted() for cell in left)
        cells = f"{len(left)} cell{'' if len(left) == 1 else 's'} to {'predict' if predicted and left else 'measure'}"
        if plan.axes != ("blocks",):
            cells += f" over {' and '.join(over_text(axis).removeprefix('over ') for axis in plan.axes)}"
        memory = len(report.settled(["memory"]) & {cell.key() for cell in left}) if "time" in plan.passes else 0
        known = [f"{done} already measured"] * (done > 0) + [f"memory of {memory} already measured"] * (memory > 0)
        self.notify(", ".join([cells, *known]) + f" on {devices}")
        for text in self._data or ():
            self.notify(f"data {text}")
        for text in dict.fromkeys(text for one in asked for text in without_effect(one)):
            self.notify(f"note: {text}")
        alone = " if one device measured all of them" if self._several else ""
        self.notify(f"{duration_range(*estimate.seconds_left())}{alone}; records go to {report.path}")
        return estimate

    @contextmanager
    def measuring(self, plan: Plan, report: Report, left: Sequence[Cell]) -> Iterator[Sequence[Observer]]:
        """Announce the remaining cells, and show the progress."""
        estimate = Estimate(plan, left) if self._data is None else self.announce(plan, report, left)
        follow, left_of = "time" in plan.passes, estimate.seconds_left
        shown = Progress(self._console, estimate.cells_left(), left_of, times_follow=follow, worded=in_words_of_command)
        with shown as progress:
            yield estimate, progress


def _print_grid(plan: Plan) -> None:
    """Print which cells a plan has, and how much memory they will take, on standard output."""
    groups = cells_by_series(plan)
    traced = MOST_TRACED // 2
    forecasts = [forecast(group) for group in groups[:traced]] + [Forecast()] * len(groups[traced:])
    console_of().print(grid_table(groups, plan.axes, [one.peaks for one in forecasts]))
    for text in dict.fromkeys(text for one in forecasts for text in one.failures):
        say(console_of(err=True), f"not predicted: {text}")


def _conclude(console: Console, report: Report, *, as_json: bool, open_page: bool) -> int:
    """Draw figures, print slopes, answers and faults, and return the exit status."""
    if not report.records:
        return 0
    warn_of_damages([report])
    known = report.drawings()
    try:
        # Draw first, so that figures are kept even if printing fails.
        paths = known or report.write()
    except StoreError:
        print_slopes(report.frame, report.slopes, as_json=as_json)
        raise
    print_slopes(report.frame, report.slopes, as_json=as_json)
    if report.plan is not None and report.plan.experiment is not None and not as_json:
        console.print(table4_slopes(table4(report.frame)))
        say(console, "the paper's values are nvidia-smi readings at batch 128: context, cache and fragmentation included")
        if "time" in report.plan.passes:
            console.print(time_ratios(report.slopes))
    if not as_json:
        for sentence in cost_sentences(report.slopes):
            say(console_of(), sentence)
    *others, page = paths
    # A table of slopes without a row is no result.
    shown = files_line(page, [path for path in others if path.name != SLOPES or len(report.slopes)], written=not known)
    say(console, shown)
    if open_page:
        open_in_browser(page)
    print_faults([report], console)
    return 1 if faults_of(report) else 0
