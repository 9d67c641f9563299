"""Records that nobody measured: straight lines over blocks."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from capsbench.frame import to_frame
from capsbench.records import (
    Cell,
    Configuration,
    Contents,
    GrowingFigures,
    MemoryFigures,
    Plan,
    Record,
    StepPeak,
    StepPhase,
    TimeFigures,
    Timeline,
)
from capsbench.report import Report
from capsbench.sizes import MIB

# What a block adds, and what there is without one.
RETAINED_PER_BLOCK = {"capsnet": 10 * MIB, "rescapsnet": 10 * MIB, "mocapsnet": 0}

SECONDS_PER_BLOCK = {"capsnet": 0.02, "rescapsnet": 0.02, "mocapsnet": 0.03}

STATE_PER_BLOCK = 131072 * 4


def make_configuration(model: str = "rescapsnet", blocks: int = 1, **fields: Any) -> Configuration:
    """A configuration as `expand` would make it, on one thread: several would wait actively for the cores of another test."""
    momentum = model == "mocapsnet"
    usual: dict[str, Any] = {"dataset": "sample", "batch_size": 4, "device": "cpu", "threads": 1}
    if model in RETAINED_PER_BLOCK:
        usual |= {"kernel": "recompute", "routing": "rba", "iterations": 3, "capsules": 32, "front": "plain"}
        usual |= {"memory": "reversible" if momentum else "stored"}
        usual |= {"rule": "paper", "gamma": 0.9, "inverse": "float"} if momentum else {}
    return Configuration(model=model, blocks=blocks, **(usual | fields))


def make_record(model: str = "rescapsnet", blocks: int = 1, *, replicate: int = 0, status: str = "ok", **fields: Any) -> Record:
    """A record whose figures are straight lines over blocks; only an `ok` one has figures."""
    cell = Cell(configuration=make_configuration(model, blocks, **{"threads": 2, **fields}), replicate=replicate)
    if status != "ok":
        return Record(cell=cell, status=status, message=f"it was {status}", environment=None if status == "skipped" else "abcd")
    state = 40 * MIB + blocks * STATE_PER_BLOCK
    retained = MIB + blocks * RETAINED_PER_BLOCK.get(model, 5 * MIB)
    memory = MemoryFigures(
        probe="profiler",
        state_bytes=state,
        gradient_bytes=state,
        optimizer_bytes=2 * state,
        retained_bytes=retained,
        peak_forward_bytes=4 * state + retained,
        peak_backward_bytes=4 * state + 2 * retained,
        peak_allocated_bytes=4 * state + 2 * retained,
        process_bytes=900 * MIB + retained,
    )
    step = 0.1 + blocks * SECONDS_PER_BLOCK.get(model, 0.01) + 0.001 * replicate
    time = TimeFigures(
        clock="monotonic",
        warmup_steps=2,
        # The outlier distinguishes the median from the mean, and is too rare to be the median of a resample.
        train_step_seconds=[step] * 8 + [100 * step],
        forward_seconds=[step / 3] * 9,
        inference_seconds=[step / 4] * 9,
    )
    return Record(cell=cell, status="ok", data_source="sample", environment="abcd", memory=memory, time=time)


def make_turns(
    models: Sequence[str] = ("rescapsnet", "mocapsnet"), depths: Sequence[int] = (1, 2, 3, 4), *, full: int = 8, ends: int = 16,
    noise: float = 0.02, rest: float = 0.8, rest_per_block: float = 0.0, growing: bool = True, slower: float = 1.0,
    pace: float = 1.0, seed: int = 0, first_round: int = 0, process: int = 0, **fields: Any,
) -> list[Record]:  # fmt: skip
    """Records of cells that took turns on a machine that drifts, in rounds of all depths and then of the first and last alone.

    Args:
        models: models of the series.
        depths: depths of each.
        full: number of rounds of all depths.
        ends: number of rounds of the first and last depth.
        noise: standard deviation of the rest of a step, as a share; that of the parts that grow is a tenth of it.
        rest_per_block: seconds that each block adds to the rest.
        growing: whether the parts that grow are known.
        slower: factor of the seconds of a block.
        pace: factor of all seconds, those of the yardstick included.
        rest: seconds of the rest of a step.
        seed: seed of the noise.
        first_round: number of the first round.
        process: number of the process that took them.
        fields: further fields of all configurations.
    """
    random = np.random.default_rng(seed)
    numbers = np.arange(full + ends)
    drift = pace * (1 + 0.1 * np.sin(numbers / 4) + 0.02 * random.standard_normal(full + ends))
    found = []
    for model, blocks in itertools.product(models, depths):
        taken = numbers if blocks in (depths[0], depths[-1]) else numbers[:full]
        noisy = [np.exp(share * noise * random.standard_normal(taken.size)) for share in (1.0, 0.1)]
        remaining = drift[taken] * (rest + rest_per_block * blocks) * noisy[0]
        part = drift[taken] * slower * SECONDS_PER_BLOCK[model] * blocks * noisy[1]
        times = {name: (part / share).tolist() for name, share in (("train", 1), ("forward", 3), ("inference", 4))}
        whole = {name: ((remaining + part) / share).tolist() for name, share in (("train", 1), ("forward", 3), ("inference", 4))}
        record = make_record(model, blocks, **fields)
        parts = GrowingFigures(
            modules=["blocks"], train_step_seconds=times["train"], forward_seconds=times["forward"],
            inference_seconds=times["inference"], edges_seconds=1e-5,
        )  # fmt: skip
        time = TimeFigures(
            clock="monotonic", warmup_steps=2, train_step_seconds=whole["train"], forward_seconds=whole["forward"],
            inference_seconds=whole["inference"], yardstick_seconds=(0.01 * drift[taken]).tolist(), yardstick_flops=10**9,
            rounds=(first_round + taken).tolist(), processes=[process] * taken.size, growing=parts if growing else None,
        )  # fmt: skip
        found.append(record.model_copy(update={"time": time}))
    return found


def make_varied(
    retained: Callable[[dict[str, int]], int], seconds: Callable[[dict[str, int]], float] | None = None, *,
    status: Callable[[dict[str, int]], str] = lambda at: "ok", **values: Sequence[int],
) -> Report:  # fmt: skip
    """A report in memory of a case over a grid, whose costs are functions of the position.

    Args:
        retained: retained bytes at a position.
        seconds: seconds of a training step there; by default proportional to the retained bytes.
        status: status of the cell.
        values: positions on each axis: `length`, `batch_size`, `blocks` or `world_size`.
    """
    records = []
    for numbers in itertools.product(*values.values()):
        at = dict(zip(values, numbers, strict=True))
        own = {"length": 16, "batch_size": 4, "blocks": 2} | at
        made = make_record(
            "cases:gpt2", own["blocks"], dataset="own", batch_size=own["batch_size"], status=status(at),
            settings={"length": own["length"], "width": 8}, world_size=own.get("world_size"),
        )  # fmt: skip
        if made.memory is not None and made.time is not None:
            nbytes = retained(at)
            step = seconds(at) if seconds else 1e-9 * nbytes
            memory = made.memory.model_copy(update={"retained_bytes": nbytes, "peak_allocated_bytes": 4 * MIB + 2 * nbytes})
            times = {"train_step_seconds": step, "forward_seconds": step / 3, "inference_seconds": step / 4}
            time = made.time.model_copy(update={name: [value] * 9 for name, value in times.items()})
            made = made.model_copy(update={"memory": memory, "time": time})
        records.append(made)
    plan = Plan(command="capsbench run --vary", cells=[record.cell for record in records], axes=tuple(values))
    return Report.of(records, "varied", plan=plan)


def make_grid_in_turn(
    seconds: Callable[[dict[str, int]], float], *, rounds: int = 12, noise: float = 0.02, drift: float = 0.1, cells: float = 0.0,
    replicates: int = 1, processes: int = 1, between: float = 0.0, seed: int = 0, growth: Callable[[int], float] = lambda _: 1.0,
    **values: Sequence[int],
) -> Report:  # fmt: skip
    """A report of a case over a grid whose cells took turns, on a machine that drifts from round to round.

    Args:
        seconds: seconds of a training step at a position.
        rounds: number of rounds of each replicate.
        noise: standard deviation of a sample, as a share.
        drift: standard deviation of a round, as a share, which all its cells have.
        cells: standard deviation of a cell in all rounds, as a share.
        replicates: number of replicates, with rounds of their own.
        processes: number of processes among which the rounds of a replicate are divided.
        between: standard deviation of a process, as a share.
        seed: seed of the noise.
        growth: pace of the machine in each replicate.
        values: positions on each axis: `length`, `batch_size`, `blocks` or `world_size`.
    """
    random, records = np.random.default_rng(seed), []
    for replicate in range(replicates):
        of = np.arange(rounds) * processes // rounds
        pace = growth(replicate) * np.exp(
            drift * random.standard_normal(rounds) + (between * random.standard_normal(processes))[of]
        )
        for record in make_varied(lambda at: at.get("length", 16), seconds, **values).records:
            assert record.time is not None
            truth = record.time.train_step_seconds[0] * np.exp(cells * random.standard_normal())
            taken = (truth * pace * np.exp(noise * random.standard_normal(rounds))).tolist()
            times = dict.fromkeys(("train_step_seconds", "forward_seconds", "inference_seconds"), taken)
            time = record.time.model_copy(update=times | {"rounds": list(range(rounds)), "processes": of.tolist()})
            cell = record.cell.model_copy(update={"replicate": replicate})
            records.append(record.model_copy(update={"time": time, "cell": cell}))
    plan = Plan(command="capsbench run --vary", cells=[record.cell for record in records], axes=tuple(values))
    return Report.of(records, "grid", plan=plan)


def make_timeline(configuration: Configuration, operator: str = "aten::convolution_backward") -> Timeline:
    """A look inside a step whose peak is 7 MiB."""
    names = ("state", "gradient", "optimizer", "batch", "retained", "temporary", "other")
    contents = Contents(phase="backward", **{f"{name}_bytes": MIB for name in names})
    phases = {
        name: StepPhase(first_event=first, last_event=first + 2, start_bytes=0, end_bytes=0, peak_bytes=0)
        for name, first in (("forward", 0), ("backward", 2), ("optimizer", 4))
    }
    return Timeline(
        kind="measured",
        configuration=configuration,
        probe="profiler",
        phases=phases,
        bytes_by_category={name: [0, 1, 2, MIB, 1, 0, 0] for name in names},
        peak=StepPeak(
            event=3, allocated_bytes=7 * MIB, operator=operator, module="primary", contents=contents, left_over_bytes=0
        ),
        retained_by_module={"first": 5 * MIB},
    )


def make_frame(records: Iterable[Record], report: str = "made") -> pd.DataFrame:
    """The frame that `load` would make of these records."""
    return to_frame((Path(report).name, record) for record in records)


def write_report(made: Report, folder: Path) -> Path:
    """Write the records and the plan of a report in memory into a new folder, and return the folder."""
    report = Report(folder)
    folder.mkdir()
    for record in made.records:
        report.append(record)
    if made.plan is not None:
        report.write_plan(made.plan)
    return folder
