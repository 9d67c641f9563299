"""False alarms and missed regressions of the gate: real runs of the command line, compared with the first of them.

    python -m benchmarks.gate [--unchanged 10] [--slower 2] [--fatter 1] [--out FOLDER]

All runs are `capsbench run --models all --depth 1-3 --batch-size 8`, as in the workflow of `capsbench init-ci`. *Slower* runs
are of a copy of the package whose forward, backward and optimizer each take 30 % longer; *fatter* ones of a copy whose capsule
layers keep one more tensor. Prints the verdict of each check, and exits with 1 if an unchanged run failed or a changed one
passed. A run takes two minutes on two cores. Run nothing beside it, although the gate has to bear other load.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "capsbench"
RUN = ["run", "--models", "all", "--depth", "1-3", "--batch-size", "8", "--device", "cpu", "--samples", "5", "--time-budget", "2"]
SLOWER = """

def _slower(function):
    import time

    def slow(*arguments):
        began = time.perf_counter()
        found = function(*arguments)
        end = time.perf_counter() + 0.3 * (time.perf_counter() - began)
        while time.perf_counter() < end:
            pass
        return found

    return slow


for _name in ("forward", "backward", "optimize"):
    setattr(Workload, _name, _slower(getattr(Workload, _name)))
"""
FATTER = """

_plain = CapsuleLayer.forward
CapsuleLayer.forward = lambda self, x: (out := _plain(self, x)) * out.detach().sign().abs()
"""
CHANGES = {"unchanged": ("", ""), "slower": ("workload.py", SLOWER), "fatter": ("models/layers.py", FATTER)}


def capsbench(copy: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command line of a copy of the package."""
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    command = [sys.executable, "-P", "-m", "capsbench.cli", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def make_copy(folder: Path, change: str) -> Path:
    """A copy of the package with a change at the end of one file."""
    file, text = CHANGES[change]
    shutil.copytree(PACKAGE, folder / change / "capsbench", ignore=shutil.ignore_patterns("__pycache__"))
    if file:
        with (folder / change / "capsbench" / file).open("a", encoding="utf-8") as source:
            source.write(text)
    return folder / change


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for change, count in (("unchanged", 10), ("slower", 2), ("fatter", 1)):
        parser.add_argument(f"--{change}", type=int, default=count, help=f"how many {change} runs")
    parser.add_argument("--out", type=Path, help="where the reports stay; by default they are thrown away")
    given = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as scratch:
        copies = {change: make_copy(Path(scratch), change) for change in CHANGES}
        out = given["out"] or Path(scratch) / "reports"
        baseline, plain = str(out / "baseline.json"), copies["unchanged"]
        first = capsbench(plain, *RUN, "--out", str(out / "first"))
        if first.returncode:
            sys.exit(f"the first run ended with {first.returncode}.\n{first.stderr}")
        capsbench(plain, "check", str(out / "first"), "--baseline", baseline, "--update")
        wrong = 0
        for change, copy in copies.items():
            for number in range(1, given[change] + 1):
                report = str(out / f"{change}{number}")
                capsbench(copy, *RUN, "--out", report)
                checked = capsbench(plain, "check", report, "--baseline", baseline)
                wrong += checked.returncode != (change != "unchanged")
                said = (checked.stdout + checked.stderr).strip().replace("\n", "\n    ")
                print(f"{change} {number}: exit status {checked.returncode}\n    {said}", flush=True)
    print(f"{wrong} of {sum(given[change] for change in CHANGES)} runs were judged wrongly")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
