"""The time that a launcher adds to each cell of a sweep.

    python -m benchmarks.launchers [--cells 200] [--workers 4] [--write]

Cells that take a tenth of a second and measure nothing are measured by the launcher ray on this machine, by a number of workers.
What they take together, less the tenths of a second, is the launcher's own time: that of the driver, its records on the disk,
Ray's queue, and the processes in between. The workers have been started before. `--write` writes it to benchmarks/launchers.md.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.command_line import parser_of, print_page
from capsbench.records import Cell, Configuration, Plan
from capsbench.report import Report
from capsbench.sweep.launchers.belongings import packed
from capsbench.sweep.launchers.driver import Driver
from capsbench.sweep.local import Sources

TARGET = Path(__file__).with_suffix(".md")
CELL_SECONDS = 0.1
TESTS = Path(__file__).parents[1] / "tests"


def sweep_seconds(cells: int, folder: Path) -> float:
    """The seconds of a sweep over this many cells, on workers of a Ray that runs already."""
    from capsbench.sweep.launchers.ray import RayEngine

    found = [
        Cell(
            configuration=Configuration(
                model="rescapsnet", blocks=1 + number, dataset="sample", batch_size=4, device="cpu", threads=1
            )
        )
        for number in range(cells)
    ]
    plan = Plan(command="", cells=found, passes=["memory"])
    folder.mkdir()
    report = Report(folder)
    engine = RayEngine(packed([]), module="helpers.fake_station")
    began = time.monotonic()
    Driver(plan, report, engine, Sources(plan.model_copy(update={"cells": []}))).run()
    seconds = time.monotonic() - began
    if [record.status for record in report.records] != ["ok"] * cells:
        raise RuntimeError("a cell failed, so that nothing was timed")
    return seconds


def page(cells: int, workers: int) -> Iterator[str]:
    """Lines of the page."""
    import ray

    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    ray.init(num_cpus=workers, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    with tempfile.TemporaryDirectory() as folder:
        sweep_seconds(4 * workers, Path(folder) / "warm")
        seconds = sweep_seconds(cells, Path(folder) / "timed")
    ray.shutdown()
    added = (seconds * workers - cells * CELL_SECONDS) / cells
    yield "# The time that a launcher adds"
    yield ""
    yield (
        f"Made by `python -m benchmarks.launchers --write`, {datetime.now(UTC):%Y-%m-%d}, Ray {ray.__version__}, "
        f"{os.cpu_count()} cores: {cells} cells of {CELL_SECONDS:g} s that measure nothing."
    )
    yield ""
    yield "| workers | seconds of the sweep | seconds that a worker spends on a cell beyond its own |"
    yield "| ---: | ---: | ---: |"
    yield f"| {workers} | {seconds:.1f} | {added:.3f} |"


def main() -> None:
    """Print the page, and write it if that was asked for."""
    parser = parser_of(__doc__, TARGET)
    parser.add_argument("--cells", type=int, default=200, help="number of cells")
    parser.add_argument("--workers", type=int, default=4, help="number of workers")
    asked = parser.parse_args()
    print_page(page(asked.cells, asked.workers), TARGET, write=asked.write)


if __name__ == "__main__":
    main()
