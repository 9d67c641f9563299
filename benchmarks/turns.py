"""Cells that take turns in one process, compared with cells in processes of their own: the step itself, and its slope.

    python -m benchmarks.turns [--depth 1,4,8] [--write]

Times ResCapsNet and MoCapsNet in processes of their own, then in turn, then in processes of their own again, within a quarter of
an hour, with the time budget that a user has without options. Prints of every cell the median training step by each way and their
ratio, and of each network the time of a block with its 95 % interval. `--write` writes them to benchmarks/turns.md. Run nothing
else meanwhile.
"""

import platform
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch

import capsbench
from benchmarks.command_line import parser_of, print_page
from capsbench.axes import parse_depths
from capsbench.measure.cell import measure_cell
from capsbench.records import Cell, Plan
from capsbench.report import Report
from capsbench.sweep.asked import Sweep
from capsbench.sweep.plan import expand

MODELS = ("rescapsnet", "mocapsnet")
TARGET = Path(__file__).with_suffix(".md")


def alone(cells: list[Cell], name: str) -> Report:
    """A report of cells that were timed one after the other, each in a process of its own."""
    plan = Plan(command=name, cells=cells, passes=["time"])
    return Report.of([measure_cell(cell, plan, environment="here") for cell in cells], name)


def steps(report: Report) -> dict[tuple[str, int], float]:
    """Median training steps in seconds by network and depth."""
    found = {}
    for record in report.records:
        if record.time is None:
            raise SystemExit(f"{record.cell.label()} ended in {record.status}: {record.message}")
        found[record.cell.configuration.model, record.cell.configuration.blocks] = median(record.time.train_step_seconds)
    return found


def ratios(before: Report, turns: Report, after: Report) -> list[str]:
    """Rows of each cell's steps, and the mean of their ratios with its 95 % interval."""
    sides = [steps(one) for one in (before, turns, after)]
    rows = ["| cell | alone, before | in turn | alone, after | in turn / alone |", "| --- | --- | --- | --- | --- |"]
    logs = []
    for (model, blocks), in_turn in sides[1].items():
        one, other = (side[model, blocks] for side in (sides[0], sides[2]))
        logs.append(float(np.log(in_turn / fmean((one, other)))))
        milliseconds = " | ".join(f"{1e3 * value:.1f} ms" for value in (one, in_turn, other))
        rows.append(f"| {model}, {blocks} blocks | {milliseconds} | {np.exp(logs[-1]):.3f} |")
    half = 2.0 * float(np.std(logs, ddof=1)) / len(logs) ** 0.5
    middle = float(np.mean(logs))
    rows += ["", f"Mean ratio {np.exp(middle):.3f} ({np.exp(middle - half):.3f} to {np.exp(middle + half):.3f})."]
    return rows


def slopes(reports: dict[str, Report]) -> list[str]:
    """Rows of the time of a block by each way."""
    rows = ["| network | way | seconds of a block | 95 % interval | half-width |", "| --- | --- | --- | --- | --- |"]
    for model in MODELS:
        for way, report in reports.items():
            table: Any = report.slopes
            row = table[(table["model"] == model) & (table["metric"] == "train")].iloc[0]
            slope, low, high = (1e3 * float(row[name]) for name in ("slope", "slope_low", "slope_high"))
            share = f"{(high - low) / 2 / abs(slope):.0%}" if slope else "-"
            rows.append(f"| {model} | {way} | {slope:.2f} ms | {low:.2f} to {high:.2f} ms | {share} |")
    return rows


def main() -> None:
    """The command line."""
    parser = parser_of(__doc__, TARGET)
    parser.add_argument("--depth", default="1,4,8")
    given = parser.parse_args()
    depths, threads = parse_depths(given.depth), torch.get_num_threads()
    cells = expand(Sweep(MODELS, depths, "cpu", threads=threads))
    before = alone(cells, "before")
    with tempfile.TemporaryDirectory() as scratch:
        turns = capsbench.run(MODELS, depths=depths, only="time", device="cpu", threads=threads, out=Path(scratch) / "turns")
        _ = turns.records
    after = alone(cells, "after")
    page = [
        "# Cells in turn, compared with cells in processes of their own",
        "",
        f"`python -m benchmarks.turns --depth {given.depth} --write`, {datetime.now(UTC).date()}, {threads} threads, "
        f"{platform.machine()}, torch {torch.__version__}. Training steps are medians.",
        "",
        *ratios(before, turns, after),
        "",
        *slopes({"alone, before": before, "in turn": turns, "alone, after": after}),
    ]
    print_page(page, TARGET, write=given.write)


if __name__ == "__main__":
    main()
