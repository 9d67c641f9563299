"""The command line that the benchmarks share: help from the module's docstring, and a page that is printed and can be written."""

import argparse
from collections.abc import Iterable
from pathlib import Path


def parser_of(description: str | None, target: Path | None = None) -> argparse.ArgumentParser:
    """Return a parser whose help is a benchmark's docstring; with a target it takes `--write`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if target is not None:
        parser.add_argument("--write", action="store_true", help=f"write benchmarks/{target.name}")
    return parser


def print_page(lines: Iterable[str], target: Path, *, write: bool) -> None:
    """Print lines as they come, and write them to the target at the end if that was asked for."""
    page = []
    for line in lines:
        print(line, flush=True)
        page.append(line)
    if write:
        target.write_text("\n".join(page) + "\n", encoding="utf-8")
