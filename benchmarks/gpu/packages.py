"""Wheels for a bare machine with a GPU, which has Python, torch, Triton, numpy, scipy, pandas and matplotlib, and no network.

    python -m benchmarks.gpu.packages FOLDER [--python 3.12] [--also torchvision==0.26.*] [--data]

downloads the wheels of all that capsbench and its tests need and such a machine lacks, in the releases that are installed here,
and makes one of capsbench itself, for its version and entry points. `--also` names what must fit the machine's torch; `--data`
puts Fashion-MNIST next to the wheels, if it is installed (Debian's package dataset-fashion-mnist). The folder then travels with
the working tree to the machine, where `python3 -m benchmarks.gpu --wheels FOLDER --out OUT` unpacks it.
"""

import argparse
import gzip
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

from benchmarks.gpu.day import ROOT

THERE = {"torch", "torchvision", "triton", "numpy", "scipy", "pandas", "matplotlib"}
"""Large packages that the machine has, or that must fit its torch; nothing that they alone need is taken along."""

NEEDED = ("capsbench[train]", "pytest", "pytest-xdist", "hypothesis")
"""Packages that the parts use."""

DEBIAN_DATA = Path("/usr/share/datasets/fashion-mnist")

DATA = "FashionMNIST/raw"
"""Place of Fashion-MNIST below a folder of data sets."""

_GLIBC = ("2_28", "2_27", "2_24", "2_17", "2_12", "2_5")
"""Releases of glibc that a wheel may be made for."""


def missing(needed: tuple[str, ...] = NEEDED) -> dict[str, str]:
    """Packages that are needed and not there, with their dependencies, and the releases that are installed here."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    # The project's own needs are those of its file: what is installed of it may be older.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = {"": project["dependencies"], **project["optional-dependencies"]}
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    todo = [(Requirement(text), "") for text in needed]
    while todo:
        requirement, extra = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in THERE or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
            continue
        found[name] = metadata.version(name)
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                needs = own[wanted] if name == "capsbench" else metadata.requires(name) or ()
                todo += [(Requirement(text), wanted) for text in needs]
    return dict(sorted(found.items()))


def unpack(wheels: Path, folder: Path) -> Path | None:
    """Unpack wheels into a folder that is then put on the path, and return the folder of the data sets among them, if any."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    for kind in ("purelib", "platlib"):  # modules that a wheel keeps aside
        for aside in folder.glob(f"*.data/{kind}"):
            shutil.copytree(aside, folder, dirs_exist_ok=True)
    packed = list(wheels.glob("*-ubyte.gz"))
    if not packed:
        return None
    data = folder / "data"
    (data / DATA).mkdir(parents=True)
    for path in packed:
        (data / DATA / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    return data


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="Python of the machine (3.12)")
    parser.add_argument("--also", nargs="*", default=[], help="further packages, as pip takes them")
    parser.add_argument("--data", action="store_true", help="take Fashion-MNIST along")
    given = parser.parse_args()
    if not re.fullmatch(r"3\.\d+", given.python):
        sys.exit(f"--python {given.python} is no release of Python\ngive one such as 3.12")
    pip = [sys.executable, "-m", "pip"]
    shutil.rmtree(given.folder, ignore_errors=True)
    given.folder.mkdir(parents=True)
    wanted = [f"{name}=={version}" for name, version in missing().items() if name != "capsbench"]
    platforms = [word for glibc in _GLIBC for word in ("--platform", f"manylinux_{glibc}_x86_64")]
    older = [word for name in ("2014", "2010", "1") for word in ("--platform", f"manylinux{name}_x86_64")]
    at = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", given.python, *platforms, *older]
    subprocess.run([*pip, "download", "-q", *at, "-d", given.folder, *wanted, *given.also], check=True)
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", given.folder, "."], check=True)
    if given.data:
        if not DEBIAN_DATA.is_dir():
            sys.exit(f"--data: {DEBIAN_DATA} is not here\ninstall dataset-fashion-mnist, or leave it out")
        for path in DEBIAN_DATA.glob("*.gz"):
            shutil.copy(path, given.folder)
    size = sum(path.stat().st_size for path in given.folder.iterdir()) / 2**20
    print(f"{size:.0f} MiB. On the machine, in the project's root:\npython3 -m benchmarks.gpu --wheels {given.folder} --out $OUT")


if __name__ == "__main__":
    main()
