"""False alarms and missed regressions of the gate: real runs of the command line, compared with the first of them.

    python -m benchmarks.gate [--unchanged 20] [--slower 2] [--slower-block 10] [--fatter 1] [--samples 40] [--out FOLDER]

All runs are `capsbench run --models all --depth 1,2,8 --batch-size 8`. *Slower* runs are of a copy of the package whose forward,
backward and optimizer each take 30 % longer; *slower-block* ones of a copy whose blocks alone take 10 % longer in forward and
backward; *fatter* ones of a copy whose capsule layers keep one more tensor. Prints the verdict of each check, and exits with 1
if an unchanged run failed or a changed one passed. A run takes about two minutes on two cores. Run nothing beside it, although
the gate has to bear other load.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "capsbench"
RUN = ["run", "--models", "all", "--depth", "1,2,8", "--batch-size", "8", "--device", "cpu", "--time-budget", "2"]
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
SLOWER_BLOCK = """

def _slower(forward):
    import time

    def spin(began):
        end = time.perf_counter() + 0.1 * (time.perf_counter() - began)
        while time.perf_counter() < end:
            pass

    class Begin(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, began):
            ctx.began = began
            return x.view_as(x)

        @staticmethod
        def backward(ctx, gradient):
            spin(ctx.began[0])
            return gradient, None

    class End(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, began):
            ctx.began = began
            return x.view_as(x)

        @staticmethod
        def backward(ctx, gradient):
            ctx.began.append(time.perf_counter())
            return gradient, None

    def slow(self, x, *context, **named):
        began, start = [], time.perf_counter()
        found = End.apply(forward(self, Begin.apply(x, began), *context, **named), began)
        spin(start)
        return found

    return slow


BlockStack.forward = _slower(BlockStack.forward)
MomentumStack.forward = _slower(MomentumStack.forward)
"""
FATTER = """

_plain = CapsuleLayer.forward
CapsuleLayer.forward = lambda self, x: (out := _plain(self, x)) * out.detach().sign().abs()
"""
CHANGES = {
    "unchanged": ("", ""),
    "slower": ("workload.py", SLOWER),
    "slower-block": ("models/networks.py", SLOWER_BLOCK),
    "fatter": ("models/layers.py", FATTER),
}


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
    for change, count in (("unchanged", 20), ("slower", 2), ("slower-block", 10), ("fatter", 1)):
        parser.add_argument(f"--{change}", type=int, default=count, help=f"how many {change} runs")
    parser.add_argument("--samples", type=int, default=40, help="least number of rounds of all cells")
    parser.add_argument("--out", type=Path, help="where the reports stay; by default they are thrown away")
    given = vars(parser.parse_args())
    run = [*RUN, "--samples", str(given["samples"])]
    counts = {change: given[change.replace("-", "_")] for change in CHANGES}
    with tempfile.TemporaryDirectory() as scratch:
        copies = {change: make_copy(Path(scratch), change) for change in CHANGES}
        out = given["out"] or Path(scratch) / "reports"
        baseline, plain = str(out / "baseline.json"), copies["unchanged"]
        first = capsbench(plain, *run, "--out", str(out / "first"))
        if first.returncode:
            sys.exit(f"the first run ended with {first.returncode}.\n{first.stderr}")
        capsbench(plain, "check", str(out / "first"), "--baseline", baseline, "--update")
        wrong = 0
        for change, copy in copies.items():
            for number in range(1, counts[change] + 1):
                report = str(out / f"{change}{number}")
                capsbench(copy, *run, "--out", report)
                checked = capsbench(plain, "check", report, "--baseline", baseline)
                wrong += checked.returncode != (change != "unchanged")
                said = (checked.stdout + checked.stderr).strip().replace("\n", "\n    ")
                print(f"{change} {number}: exit status {checked.returncode}\n    {said}", flush=True)
    print(f"{wrong} of {sum(given[change.replace('-', '_')] for change in CHANGES)} runs were judged wrongly")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
