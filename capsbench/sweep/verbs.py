"""The verbs `capsbench.run` and `capsbench.predict`, which make a report from their arguments.

    report = capsbench.run(["rescapsnet", "mocapsnet"], depths=range(1, 9), out="reports/mine")
    report = capsbench.predict("mocapsnet", depths=range(1, 9), gpu="h100")

The command line makes a plan of its own from its options, and passes it to `measure` as `run` does.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from inspect import signature
from typing import Any, Literal

from pydantic import ValidationError

from capsbench.axes import declared_forms, parse_depths
from capsbench.cases.factories import name_of
from capsbench.cases.foreign import refuse_while_importing
from capsbench.catalog import STACKED
from capsbench.errors import ConfigurationError, suggesting
from capsbench.measure.group import check_measurable
from capsbench.options import PREDICTED, SWEPT_OPTIONS
from capsbench.records import BOTH, Pass, Plan, axes_of
from capsbench.report import Report
from capsbench.sweep.asked import QUICK, Sweep
from capsbench.sweep.launchers.options import Launching
from capsbench.sweep.machine import machine_options
from capsbench.sweep.measuring import measure, traced
from capsbench.sweep.plan import axes_asked, expand
from capsbench.sweep.session import check_data, choose_report
from capsbench.sweep.watcher import Logged, Watcher
from capsbench.system.paths import absolute
from capsbench.typed_values import several

_ARGUMENTS = {"budget_seconds": "time_budget", "timeout_seconds": "timeout", "passes": "only"}
"""Fields of a plan by the arguments that fill them, where these have another name."""

_NOT_SAID = {"models", "depths", "watcher", "options", "resume"}
"""Arguments of a verb that its call in a plan names first, or leaves out."""

_OTHER_NAMES = {"shape": "image_shape"}
"""Options of a cell by the names that their flags have on the command line, where these are other names."""

USUAL_DEPTHS = range(1, 9)
"""Blocks of a sweep that names none: those of the paper."""

USUAL_TIME_BUDGET = 20.0
"""Seconds of sampling per cell of a sweep that names none."""

Model = str | Callable[..., Any]
"""A built-in name, an entry point, `package.module:name`, or a function, which may be of a script or a notebook."""


def run(
    models: Model | Iterable[Model],
    *,
    depths: int | str | Iterable[int] | None = None,
    vary: Mapping[str, Any] | None = None,
    basis: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    only: Pass | None = None,
    device: str = "auto",
    gpu: str | None = None,
    threads: int | None = None,
    repeats: int = 1,
    samples: int = 3,
    time_budget: float | None = None,
    slope_share: float = 0.2,
    processes: int = 1,
    timeout: float = 1800.0,
    quick: bool = False,
    strict: bool = False,
    wait: float | None = None,
    launcher: str = "local",
    address: str | None = None,
    slurm: Mapping[str, Any] | None = None,
    exclusive_node: bool = False,
    data_dir: str | os.PathLike[str] | None = None,
    watcher: Watcher | None = None,
    **options: Any,
) -> Report:
    """Measure memory and time of networks over depth, and return the report.

    Every cell is measured by fresh processes and is on the disk before the next one starts. Ctrl-C keeps what was measured;
    the same call with `resume=True` measures the rest.

    Args:
        models: networks, by name; `all` stands for those of the paper.
        depths: blocks: 3, `range(1, 9)` or "1-8"; by default 1 to 8, or, with `vary`, a case's own and 1 of any other network.
        vary: axes over which slopes are fitted in place of depth, by name, each with its values (numbers, or a text such as
            "128-1024:128"): `batch_size`, `capsules`, `image_size`, `classes`, a number that a case takes … Several make a grid.
        basis: terms of costs over an axis, such as `{"length": "1,n,n²"}`; by default those that fit.
        settings: values of what cases take by name, each a value or a list of values.
        out: folder of the report; by default reports/ and the time.
        resume: add to the report that is there; without `out`, to the newest unfinished one with these cells.
        only: measure `memory` or `time` alone.
        device: `auto`, `cpu`, `cuda`, `cuda:N`; `cpu:predicted` or `cuda:predicted`.
        gpu: the GPU that `cuda:predicted` is for.
        threads: threads of a CPU run; by default torch's own number.
        repeats: replicates of every cell.
        samples: least number of samples of each time.
        time_budget: seconds of sampling per cell while a slope is not known within its share, or a lone cell's time within
            2 %; by default 20.
        slope_share: width of the slopes' 95 % intervals, as a share of the slope, at which timing ends.
        processes: number of processes that take the rounds, at least six each; several average out differences between them.
        timeout: seconds per process.
        quick: take about a minute: depths 1 to 3, batch 16 and 2 seconds of sampling per cell, where none is given.
        strict: measure nothing while other processes use the CUDA device.
        wait: longest wait for another sweep on the device, in seconds; None for no limit.
        launcher: `local` measures one cell at a time here; `ray` and `slurm` measure many at once, each on a device of its own.
        address: address of a Ray cluster; by default the one that this machine belongs to, or else this machine alone.
        slurm: parameters of Slurm jobs, as sbatch has them: `{"partition": "gpu", "time": 60}`.
        exclusive_node: let nothing else run on a node while times are taken there.
        data_dir: folder of the real data sets; by default $CAPSBENCH_DATA.
        watcher: object that is informed of the progress; by default the log `capsbench`.
        options: any option of a cell (`batch_size`, `kernel`, `memory` …; `shape` is `image_shape`), a value or a list of values
            that multiplies the sweep.

    Raises:
        ConfigurationError: an argument is unknown or out of range, or the folder holds a report without `resume`.
        StoreError: the folder cannot be read or written.
    """
    given = locals() | {"options": _options(run, options)}
    refuse_while_importing()
    launching = Launching(launcher, address, slurm or {}, exclusive_node, device)
    launching.check()
    machine = machine_options(device, gpu, threads, vary or (), here=launching.is_local())
    usual_budget = QUICK["time_budget"] if quick else USUAL_TIME_BUDGET
    seconds = usual_budget if time_budget is None else time_budget
    plan = _plan(
        run, given, machine | {"repeats": repeats},
        passes=BOTH if only is None else [only], samples=samples, budget_seconds=seconds, slope_share=slope_share,
        timeout_seconds=timeout, strict=strict, processes=processes,
    )  # fmt: skip
    folder, data = (None if one is None else absolute(one) for one in (out, data_dir))
    check_measurable(plan)
    check_data(plan.cells, data)
    watcher = watcher or Logged()
    report = choose_report(plan, folder, resume=resume, now=datetime.now(), make=True, notify=watcher.notify)
    measure(plan, report, resume=resume, data_directory=data, wait=wait, watcher=watcher, launching=launching)
    return report


def predict(
    models: Model | Iterable[Model],
    *,
    depths: int | str | Iterable[int] | None = None,
    vary: Mapping[str, Any] | None = None,
    basis: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    device: Literal["cuda", "cpu", "cuda:predicted", "cpu:predicted"] = "cuda",
    gpu: str | None = None,
    threads: int | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    quick: bool = False,
    watcher: Watcher | None = None,
    **options: Any,
) -> Report:
    """Predict the memory figures of networks over depth without their device, and return the report.

    Args:
        models: networks, by name; `all` stands for those of the paper.
        depths: blocks: 3, `range(1, 9)` or "1-8"; by default 1 to 8, or, with `vary`, a case's own and 1 of any other network.
        vary: axes over which slopes are fitted in place of depth, by name, each with its values (numbers, or a text such as
            "128-1024:128"): `batch_size`, `capsules`, `image_size`, `classes`, a number that a case takes … Several make a grid.
        basis: terms of costs over an axis, such as `{"length": "1,n,n²"}`; by default those that fit.
        settings: values of what cases take by name, each a value or a list of values.
        device: the kind of device to predict for, with or without the ending that `run` needs.
        gpu: the GPU to predict for, by default an H100.
        threads: threads of the CPU to predict for, by default torch's own number.
        out: folder of the report; by default it is in memory alone.
        resume: add to the report that is there.
        quick: predict depths 1 to 3 and batch 16, where none is given.
        watcher: object that is informed of the progress; by default the log `capsbench`.
        options: any option of a cell (`batch_size`, `capacity`, `memory` …; `shape` is `image_shape`), a value or several.

    Raises:
        ConfigurationError: an argument is unknown or out of range, or the folder holds a report without `resume`.
        StoreError: the folder cannot be read or written.
    """
    given = locals() | {"options": _options(predict, options)}
    refuse_while_importing()
    machine = machine_options(f"{str(device).removesuffix(PREDICTED)}{PREDICTED}", gpu, threads, vary or ())
    plan = _plan(predict, given, machine, passes=["memory"], budget_seconds=0)
    if out is None:
        return traced(plan, watcher)
    watcher = watcher or Logged()
    report = choose_report(plan, absolute(out), resume=resume, now=datetime.now(), notify=watcher.notify)
    measure(plan, report, resume=resume, only_these=True, watcher=watcher)
    return report


def _options(verb: Callable[..., Report], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a cell by the names of their fields.

    Args:
        verb: `run` or `predict`.
        options: the keyword arguments of its call that it does not name itself.

    Raises:
        ConfigurationError: one is no option of a cell, or an option is given by both of its names.
    """
    arguments = [name for name in signature(verb).parameters if name != "options"]
    known = (*arguments, *SWEPT_OPTIONS, *_OTHER_NAMES)
    for name in options:
        if name in known:
            continue
        what, right = f"capsbench.{verb.__name__} takes no argument `{name}`", f"it takes {', '.join(dict.fromkeys(known))}"
        if name in signature(run).parameters:
            raise ConfigurationError(f"{what}: it measures nothing", f"leave it out, or measure with capsbench.run; {right}")
        raise ConfigurationError(what, suggesting(name, known, right))
    for name, field in _OTHER_NAMES.items():
        if name in options and field in options:
            raise ConfigurationError(f"`{name}` and `{field}` are two names of one option", "leave one of the two out")
    return {_OTHER_NAMES.get(name, name): value for name, value in options.items()}


def _names(models: Model | Iterable[Model]) -> list[str]:
    """The names by which other processes find networks."""
    listed: list[Any] = [models] if callable(models) else list(several(models))
    if not listed:
        raise ConfigurationError("`models` names no network", "give one or several, such as 'mocapsnet'")
    found: dict[str, Model] = {}
    for one in listed:
        name = one if isinstance(one, str) else name_of(one)
        if found.setdefault(name, one) is not one and callable(one):
            raise ConfigurationError(
                f"`models` has two networks of the name {name}", "rename one: records call them by their names"
            )
    return list(dict.fromkeys(name for one in found for name in (STACKED if one == "all" else (one,))))


def _plan(verb: Callable[..., Report], given: dict[str, Any], machine: Mapping[str, Any], **fields: Any) -> Plan:
    """The plan of a call.

    Args:
        verb: `run` or `predict`.
        given: its arguments by name.
        machine: options of the sweep from `machine_options`, and its number of repetitions.
        fields: further fields of the plan.

    Raises:
        ConfigurationError: an argument is unknown or out of range.
    """
    depths, vary = given["depths"], given["vary"]
    names = _names(given["models"])
    usual_depths: Any = QUICK["depth"] if given["quick"] else USUAL_DEPTHS
    usual = {"batch_size": QUICK["batch_size"]} if given["quick"] else {}
    blocks = parse_depths(",".join(map(str, several(usual_depths if depths is None else depths))))
    more = {**machine, **given["options"]}
    chosen = depths is not None
    cells = expand(Sweep(names, blocks, depths_chosen=chosen, vary=vary, settings=given["settings"], usual=usual, **more))
    axes = axes_of(cells, axes_asked(vary or ()))
    command, bases = _call(verb, names, blocks, given), declared_forms(given["basis"], axes)
    try:
        return Plan(command=command, cells=cells, axes=axes, bases=bases, **fields)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = str(fault["loc"][0])
        wrong = f"`{_ARGUMENTS.get(name, name)}` {fault['input']!r}"
        raise ConfigurationError(f"{wrong} cannot be used: {fault['msg']}", "give another value, or leave it out") from None


def _call(verb: Callable[..., Report], names: list[str], depths: tuple[int, ...], given: dict[str, Any]) -> str:
    """The call of a verb as it would be written again, without arguments that have their defaults."""
    usual = {name: one.default for name, one in signature(verb).parameters.items()}
    more = {name: value for name, value in given.items() if name not in usual or value != usual[name]} | given.get("options", {})
    words = [repr(names if len(names) > 1 else names[0])]
    words += [] if given["depths"] is None else [f"depths={list(depths)}"]
    words += [f"{name}={value!r}" for name, value in more.items() if name not in _NOT_SAID]
    return f"capsbench.{verb.__name__}({', '.join(words)})"
