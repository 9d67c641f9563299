"""The command `python -m benchmarks.gpu`. It needs Python alone; the processes that it starts need the packages."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import benchmarks.gpu
from benchmarks.gpu.day import ROOT, Day
from benchmarks.gpu.packages import unpack
from benchmarks.gpu.parts import PARTS, SIZES, Part

OUT = Path("runs/gpu")


class Refused(Exception):
    """A request that makes no sense; its text has two lines."""


def main(words: Sequence[str] | None = None, parts: Sequence[Part] = PARTS, least: float | None = None) -> int:
    """Run the command, and return its exit status.

    Args:
        words: arguments; by default those that were typed.
        parts: the parts of the day.
        least: seconds below which no part begins, if not those of `day`.
    """
    began = time.monotonic()
    given = _parser(parts).parse_args(words)
    out, data = given.out.absolute(), given.data_dir and given.data_dir.absolute()
    try:
        if given.write:
            return subprocess.call([sys.executable, "-m", "benchmarks.gpu.cards", str(out)], cwd=ROOT)
        chosen = _chosen(given.only, parts)
        if not given.budget > 0:
            raise Refused(f"--budget {given.budget:g} is no time\ngive the seconds within which the command ends, such as 520")
        with _packages(given.wheels and given.wheels.absolute()) as packed:
            # The card is described first, so that results of two cards cannot meet in one folder.
            status = subprocess.call([sys.executable, "-m", "benchmarks.gpu.card", str(out), given.device], cwd=ROOT)
            if status:
                return status
            more = {} if least is None else {"least": least}
            day = Day(out, given.device, given.budget - (time.monotonic() - began), data=data or packed, **more)
            return int(not day.run(chosen, again=given.only is not None))
    except Refused as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: what was measured is kept, and the same command resumes", file=sys.stderr)
        return 130


def _parser(parts: Sequence[Part]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=benchmarks.gpu.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=520, help="seconds within which the command ends (520)")
    parser.add_argument("--only", help="a comma list of " + ", ".join(part.name for part in parts))
    parser.add_argument("--device", default="cuda", choices=SIZES, help="cpu tries the parts at tiny sizes")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder of the results ({OUT})")
    parser.add_argument("--wheels", type=Path, help="folder of the wheels that this machine lacks, from benchmarks.gpu.packages")
    parser.add_argument("--data-dir", type=Path, help="folder of the real data sets, as of capsbench train")
    parser.add_argument("--write", action="store_true", help="run nothing: put the results into the project, and write the page")
    return parser


def _chosen(only: str | None, parts: Sequence[Part]) -> list[Part]:
    """The parts that were named, in their order of worth; all by default."""
    names = [part.name for part in parts] if only is None else [name.strip() for name in only.split(",")]
    known = {part.name for part in parts}
    for name in names:
        if name not in known:
            raise Refused(f"--only '{name}' is no part of the day\nchoose among {', '.join(part.name for part in parts)}")
    return [part for part in parts if part.name in names]


@contextmanager
def _packages(wheels: Path | None) -> Iterator[Path | None]:
    """Unpack wheels into a folder on the path of all processes that are started, for as long as they run.

    Yields:
        The folder of the data sets that lay next to the wheels, if any did.
    """
    if wheels is None:
        yield None
        return
    if not wheels.is_dir() or not any(wheels.glob("*.whl")):
        raise Refused(f"--wheels {wheels} holds no wheels\nmake them with 'python -m benchmarks.gpu.packages {wheels}'")
    before = os.environ.get("PYTHONPATH", "")
    with tempfile.TemporaryDirectory() as folder:
        data = unpack(wheels, Path(folder))
        # The working tree comes first, before a wheel that was made of it.
        os.environ["PYTHONPATH"] = os.pathsep.join(part for part in (str(ROOT), folder, before) if part)
        yield data


if __name__ == "__main__":
    sys.exit(main())
