"""Sweeps on Ray whose nodes are killed at random moments.

    python -m benchmarks.kills [--sweeps 20] [--seed 0] [--cells 60] [--nodes 3] [--write]

Each sweep counts the memory of many cells of a tiny case on a cluster of several nodes with a core each, all on this machine.
Nodes are killed at random moments, and new ones added; in half of the sweeps the driver is killed as well, and started again
with `resume`. A killed node loses its raylet and its workers by SIGKILL, and in half of all cases everything that these had
started. Every cell must then have one record, equal to that of a sweep without a cluster to the byte. A line names the seed
of each sweep, with which it can be repeated; the first fault ends the command. `--write` puts the table into benchmarks/kills.md,
where rows of smaller seeds stay, so that `--seed` continues a table.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import psutil

from benchmarks.command_line import parser_of, print_page
from capsbench.records import MemoryFigures
from capsbench.report import Report

TARGET = Path(__file__).with_suffix(".md")

CASE = """
import torch
from torch import nn

from capsbench import Case


def tiny(width=4):
    return Case(nn.Linear(width, width), inputs={"input": torch.ones(8, width)}, loss=lambda out: out.sum())
"""

SWEEP = """
import json
import logging
import sys

import capsbench

logging.basicConfig(level=logging.INFO)

capsbench.run("case.py:tiny", only="memory", device="cpu", threads=1, **json.loads(sys.argv[1]))
"""

OBJECT_BYTES = 80 * 2**20
"""Memory of each node for Ray's objects, which are small here; by default it is a third of the machine's."""

LONGEST_SECONDS = 400.0
"""Time after which a sweep is taken to hang."""

LEFT_SECONDS = 60.0
"""Time in which everything that a killed node had started must end by itself."""


class FaultError(Exception):
    """A sweep has lost a cell, measured one twice, or did not end."""


@dataclass(frozen=True)
class Outcome:
    """The kills in a sweep, and the seconds that it took."""

    seed: int
    nodes: int
    drivers: int
    seconds: float


class Nodes:
    """The nodes of a cluster on this machine, which can be killed.

    Args:
        count: number of nodes with a core, in addition to the head, which has none.
    """

    def __init__(self, count: int) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": OBJECT_BYTES}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self.address: str = self._cluster.address
        self._nodes: list[Any] = []
        self._orphans: list[psutil.Process] = []
        for _ in range(count):
            self.add()

    def add(self) -> None:
        """Add a node."""
        self._nodes.append(self._cluster.add_node(num_cpus=1, object_store_memory=OBJECT_BYTES))

    def kill(self, chance: random.Random) -> None:
        """Kill a node by SIGKILL, with its workers, and perhaps with all that these have started."""
        node = self._nodes.pop(chance.randrange(len(self._nodes)))
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        below = raylet.children(recursive=True)
        workers = raylet.children() if chance.random() < 0.5 else below
        for one in (raylet, *workers):
            _kill(one)
        self._orphans += below
        self._cluster.remove_node(node, allow_graceful=False)

    def wait_for_orphans(self) -> None:
        """Wait until nothing is left of the nodes that were killed.

        Raises:
            FaultError: something is.
        """
        _, alive = psutil.wait_procs(self._orphans, timeout=LEFT_SECONDS)
        self._orphans = []
        if alive:
            raise FaultError(f"processes of a killed node live on: {[one.pid for one in alive]}")

    def close(self) -> None:
        """End the cluster."""
        self._cluster.shutdown()


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


def measured(folder: Path, cells: int, **options: Any) -> subprocess.Popen[bytes]:
    """Start a sweep into the folder `report` of a folder, whose files `log` and `printed` have its output."""
    given = {"vary": {"width": list(range(4, 4 + cells))}, "out": "report", **options}
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TARGET.parents[1]), os.environ.get("PYTHONPATH", "")])}
    folder.mkdir(exist_ok=True)
    (folder / "case.py").write_text(CASE, encoding="utf-8")
    with (folder / "log").open("ab") as log, (folder / "printed").open("ab") as printed:
        command = [sys.executable, "-c", SWEEP, json.dumps(given)]
        return subprocess.Popen(command, cwd=folder, env=variables, stdin=subprocess.DEVNULL, stdout=printed, stderr=log)


def figures(folder: Path) -> dict[str, MemoryFigures]:
    """The memory of each cell of a sweep, but for the resident set, which is never the same twice.

    Raises:
        FaultError: a line is damaged, or a cell failed or has several records.
    """
    report = Report(folder / "report")
    lines = [json.loads(line) for line in report.path.read_text(encoding="utf-8").splitlines()]
    keys = Counter(record.cell.key() for record in report.records)
    found = {one.cell.key(): one.memory.model_copy(update={"process_bytes": None}) for one in report.records if one.memory}
    if report.damages or len(lines) != len(keys):
        raise FaultError(f"{len(lines)} lines for {len(keys)} cells, and {len(report.damages)} damages")
    failed = [record for record in report.records if record.status != "ok"]
    if failed:
        raise FaultError(f"{failed[0].cell.label()}: {failed[0].status}, {failed[0].message}")
    return found


def killed_sweep(folder: Path, nodes: Nodes, cells: int, seed: int) -> Outcome:
    """Run a sweep and kill nodes, and its driver, at moments that follow from the seed.

    Raises:
        FaultError: it did not end, or ended with an error.
    """
    chance, began = random.Random(seed), time.monotonic()
    victims = ["node"] * chance.randint(1, 4) + ["driver"] * chance.choice((0, 0, 1, 2))
    chance.shuffle(victims)
    moments = sorted(chance.randrange(cells) for _ in victims)
    records, options = folder / "report" / "records.jsonl", {"launcher": "ray", "address": nodes.address}
    driver = measured(folder, cells, **options)
    for victim, moment in zip(victims, moments, strict=True):
        while driver.poll() is None and (not records.exists() or records.read_bytes().count(b"\n") < moment):
            if time.monotonic() - began > LONGEST_SECONDS:
                driver.kill()
                raise FaultError(f"no end after {LONGEST_SECONDS:g} s")
            time.sleep(0.02)
        time.sleep(chance.random())  # so that a cell, a station or a survey is at any point
        if victim == "node":
            nodes.kill(chance)
            nodes.add()
        elif driver.poll() is None:
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            driver = measured(folder, cells, resume=True, **options)
    try:
        status = driver.wait(max(0.0, began + LONGEST_SECONDS - time.monotonic()))
    except subprocess.TimeoutExpired:
        driver.kill()
        raise FaultError(f"no end after {LONGEST_SECONDS:g} s") from None
    if status:
        raise FaultError(f"status {status}: {(folder / 'log').read_text(encoding='utf-8')[-500:]}")
    if printed := (folder / "printed").read_text(encoding="utf-8"):
        raise FaultError(f"standard output is not empty: {printed[:500]}")
    return Outcome(seed, victims.count("node"), victims.count("driver"), time.monotonic() - began)


def heading(cells: int, count: int) -> list[str]:
    """First lines of the page."""
    import ray

    return [
        "# Sweeps whose nodes are killed",
        "",
        f"Made by `python -m benchmarks.kills --write`, {datetime.now(UTC):%Y-%m-%d}, Ray {ray.__version__}, {os.cpu_count()} "
        f"cores: sweeps of {cells} cells on {count} nodes with a core each, which are killed at random moments and replaced.",
        "",
        "| seed | nodes killed | drivers killed | seconds | cells with one record, equal to that of `local` |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]


def earlier_rows(first_seed: int) -> list[str]:
    """Rows of the page that an earlier command wrote for smaller seeds."""
    lines = TARGET.read_text(encoding="utf-8").splitlines() if TARGET.exists() else []
    return [
        line for line in lines if (words := line.split("|"))[1:] and words[1].strip().isdecimal() and int(words[1]) < first_seed
    ]


def rows(seeds: range, cells: int, count: int, folder: Path) -> Iterator[str]:
    """Rows of the page, one for each sweep.

    Raises:
        FaultError: a sweep has one.
    """
    if measured(folder / "local", cells).wait():
        raise FaultError((folder / "local" / "log").read_text(encoding="utf-8"))
    wanted = figures(folder / "local")
    nodes = Nodes(count)
    try:
        for seed in seeds:
            try:
                done = killed_sweep(folder / str(seed), nodes, cells, seed)
                found = figures(folder / str(seed))
                nodes.wait_for_orphans()
            except FaultError as fault:
                raise FaultError(f"seed {seed}: {fault}") from None
            same = sum(found.get(key) == memory for key, memory in wanted.items())
            if same < cells or found.keys() != wanted.keys():
                raise FaultError(f"seed {seed}: {same} of {cells} cells are as they are locally")
            yield f"| {seed} | {done.nodes} | {done.drivers} | {done.seconds:.0f} | {same} of {cells} |"
    finally:
        nodes.close()


def main() -> None:
    """Print the page, and write it if that was asked for."""
    parser = parser_of(__doc__, TARGET)
    parser.add_argument("--sweeps", type=int, default=20, help="number of sweeps")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first sweep; each further one has the next")
    parser.add_argument("--cells", type=int, default=60, help="number of cells of a sweep")
    parser.add_argument("--nodes", type=int, default=3, help="number of nodes")
    asked = parser.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")  # as where capsbench starts Ray
    folder = Path(tempfile.mkdtemp(prefix="capsbench-kills-"))
    try:
        first = [*heading(asked.cells, asked.nodes), *earlier_rows(asked.seed)]
        found = rows(range(asked.seed, asked.seed + asked.sweeps), asked.cells, asked.nodes, folder)
        print_page(chain(first, found), TARGET, write=asked.write)
    except FaultError as fault:
        sys.exit(f"{fault}\nthe reports are in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
