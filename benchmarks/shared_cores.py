"""Training steps whose threads wait in different ways, on a quiet machine and while other work takes a core.

    python -m benchmarks.shared_cores [--rounds 3] [--write]

A thread that waits for the other threads of an operator spins, or sleeps. Times a training step of ResCapsNet with 4 blocks by
each setting, in processes of their own, first with no other work and then while another process keeps a core busy. Prints the
median step of each, over that of OpenMP's default on the quiet machine in the same round. `--write` writes them to
benchmarks/shared_cores.md. Run nothing else meanwhile; takes some three minutes on two cores.
"""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch

from benchmarks.command_line import parser_of, print_page
from capsbench.measure.variables import QUIET_MALLOC, SLEEPING
from capsbench.records import Configuration
from capsbench.workload import Workload

TARGET = Path(__file__).with_suffix(".md")
WAITS: dict[str, dict[str, str]] = {
    "spin (OpenMP's default)": {},
    "sleep (`" + " ".join(f"{name}={value}" for name, value in SLEEPING.items()) + "`)": SLEEPING,
}
BUSY = "while True: pass"
BATCH_SIZE, STEPS, WARM_UP = 32, 12, 2


def step_seconds() -> float:
    """The median training step of this process."""
    workload = Workload(
        Configuration(model="rescapsnet", blocks=4, dataset="sample", batch_size=BATCH_SIZE, device="cpu", routing="rba")
    )
    taken = []
    for turn in range(WARM_UP + STEPS):
        began = time.perf_counter()
        workload.train_step()
        if turn >= WARM_UP:
            taken.append(time.perf_counter() - began)
    return median(taken)


def apart(settings: dict[str, str]) -> float:
    """The median training step of a process with these settings."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    command = [sys.executable, "-m", "benchmarks.shared_cores", "--step"]
    return float(subprocess.run(command, env=own | QUIET_MALLOC | settings, check=True, capture_output=True, text=True).stdout)


@contextmanager
def busy_core() -> Iterator[None]:
    """A process that keeps a core busy meanwhile."""
    with subprocess.Popen([sys.executable, "-c", BUSY]) as other:
        try:
            yield
        finally:
            other.kill()


def page(rounds: int) -> Iterator[str]:
    """Lines of the page."""
    yield "# Cores that are shared with other work"
    yield ""
    yield (
        f"Made by `python -m benchmarks.shared_cores --write`, {datetime.now(UTC):%Y-%m-%d}, {torch.get_num_threads()} threads, "
        f"{platform.machine()}, torch {torch.__version__}: the training step of ResCapsNet with 4 blocks at batch {BATCH_SIZE}, "
        f"over that with OpenMP's default on the quiet machine; median of {rounds} rounds (smallest to largest)."
    )
    yield ""
    yield "| threads that wait for others | no other work | one core is busy |"
    yield "| --- | --- | --- |"
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in WAITS}
    for _ in range(rounds):
        quiet = {name: apart(settings) for name, settings in WAITS.items()}
        with busy_core():
            shared = {name: apart(settings) for name, settings in WAITS.items()}
        (default, *_) = quiet.values()
        for name, sides in found.items():
            for side, seconds in zip(sides, (quiet[name], shared[name]), strict=True):
                side.append(seconds / default)
    for name, sides in found.items():
        cells = [f"{median(side):.2f} ({min(side):.2f}–{max(side):.2f})" for side in sides]
        yield f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print the page, and write it if that was asked for."""
    parser = parser_of(__doc__, TARGET)
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of every step, in turn")
    parser.add_argument("--step", action="store_true", help="print the seconds of a step of this process, and nothing else")
    asked = parser.parse_args()
    if asked.step:
        print(step_seconds())
    else:
        print_page(page(asked.rounds), TARGET, write=asked.write)


if __name__ == "__main__":
    main()
