"""Made-up runs: straight lines with a test's additions, as records, summaries and reports on disk."""

from pathlib import Path

import numpy as np

from capsbench.gate.summarize import summarize
from capsbench.gate.summary import CellSummary, SeriesSummary, Summary, TimeSummary
from capsbench.records import Plan, StepFigures
from capsbench.report import Report
from helpers.made import MIB, make_configuration, make_record

MACHINE = {
    "capsbench": "1.0",
    "packages": {"torch": "2.14.1", "numpy": "2.0"},
    "cpu": {"model": "Some CPU", "physical_cores": 2, "logical_cores": 2, "instructions": "AVX2", "megahertz": 2300},
    "cuda": {"available": False},
}
ELSEWHERE = {**MACHINE, "cpu": {**MACHINE["cpu"], "model": "Another CPU"}}
DEPTHS = range(1, 5)
YARDSTICK = 0.01


def seeded_record(model="rescapsnet", blocks=1, *, modules=None, extra=None, slower=1.0, pace=1.0, yardstick=True, **fields):
    """A record with modules and a yardstick.

    Args:
        model: of `make_record`.
        blocks: depth.
        modules: bytes that modules retain in addition to what they did; `{block}` in a name stands for each block's number.
        extra: bytes to add to other figures, by name.
        slower: factor on the step alone.
        pace: factor on all times: the machine's.
        yardstick: whether there is one.
        fields: of the cell.
    """
    record = make_record(model, blocks, **fields)
    if record.memory is None:
        return record
    per_block = (record.memory.retained_bytes - MIB) // blocks
    kept = {"front.conv1": MIB, "": 0}
    kept |= {f"blocks.{block}.{layer}": per_block // 2 for block in range(blocks) for layer in (0, 1)}
    for name, nbytes in (modules or {}).items():
        for each in sorted({name.format(block=block) for block in range(blocks)}):
            kept[each] = kept.get(each, 0) + nbytes
    grown = sum(kept.values()) - record.memory.retained_bytes
    figures = {
        "retained_bytes": record.memory.retained_bytes + grown,
        "peak_allocated_bytes": record.memory.peak_allocated_bytes + grown,
    }
    for name, nbytes in (extra or {}).items():
        figures[name] = figures.get(name, getattr(record.memory, name)) + nbytes
    times = {
        name: [sample * slower * pace for sample in getattr(record.time, name)]
        for name in ("train_step_seconds", "forward_seconds", "inference_seconds")
    }
    times["yardstick_seconds"] = [YARDSTICK * pace] * 5 if yardstick else []
    return record.model_copy(
        update={
            "memory": record.memory.model_copy(update=figures),
            "time": record.time.model_copy(update=times),
            "step": StepFigures(retained_by_module=kept),
        }
    )


def seeded_run(models=("rescapsnet", "mocapsnet"), depths=DEPTHS, **seeds):
    """A record per model and depth."""
    return [seeded_record(model, blocks, **seeds) for blocks in depths for model in models]


def write_report(folder: Path, records, machine=MACHINE, key="abcd"):
    """A report on disk."""
    store = Report(folder)
    folder.mkdir(parents=True, exist_ok=True)
    store.add_environment(key, machine)
    store.write_plan(Plan(command="capsbench run --made-up", cells=[record.cell for record in records]))
    for record in records:
        store.append(record)
    return folder


def noisy_run(random, lines=3, depths=range(1, 9), slower=(), between=0.05, within=0.03, outliers=0.03, drift=0.15):
    """A run of a noisy machine in brief: processes differ, some by half, and the whole machine is fast or slow that day.

    Args:
        random: where noise comes from.
        lines: how many.
        depths: of each.
        slower: factor on the steps of line 0, 1 …; 1 where it has no entry.
        between: standard deviation of the logarithm of processes.
        within: of samples.
        outliers: probability that a process takes half as long again.
        drift: of the machine between runs.
    """
    speed = np.exp(random.normal(0, drift))
    found = []
    for line in range(lines):
        factor = slower[line] if line < len(slower) else 1.0
        cells = []
        for blocks in depths:
            process = np.exp(random.normal(0, between)) * (1.5 if random.random() < outliers else 1.0)
            yardstick = speed * YARDSTICK * np.median(np.exp(random.normal(0, within, 20)))
            times = {}
            for name, base in (("train", 0.1), ("inference", 0.03)):
                samples = base * (1 + 0.2 * blocks) * speed * process * factor * np.exp(random.normal(0, within, 5))
                middle = float(np.median(samples))
                times[name] = TimeSummary(seconds=middle, samples=5, spread=0.03, relative=middle / yardstick)
            cells.append(CellSummary(blocks=blocks, status="ok", environment="abcd", times=times))
        configuration = make_configuration("rescapsnet", 0, batch_size=line + 1)
        found.append(SeriesSummary(kind="measured", configuration=configuration, cells=cells))
    return Summary(environments={"abcd": {"CPU": "Some CPU"}}, lines=found)


def in_brief(records, machine=MACHINE, report="made"):
    return summarize([Report.of(records, report, environments={"abcd": machine})])[0]
