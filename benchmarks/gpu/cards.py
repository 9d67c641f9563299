"""The page `benchmarks/gpu.md`, from the results of every card: what was found and what was expected. Needs no GPU."""

import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.card import CARD
from benchmarks.gpu.day import ROOT
from benchmarks.gpu.expected import MIB, all_expectations
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.results import Found, PartResults, replace

PAGE, RESULTS, REPORTS = "benchmarks/gpu.md", "benchmarks/gpu/results", "reports"
"""Paths of the page, of the cards' results and of the reports, from the project's root."""

HEAD = """# What a GPU showed

Made by `python -m benchmarks.gpu --write` from the results in `benchmarks/gpu/results`; `CONTRIBUTING.md` says how a day with a
GPU goes. An item in *italics* failed or was cut off. A step that is limited by the host waits for the launch of its kernels, not
for the device.
"""

NO_CARD = """No card has been met yet: every part has been tried on a CPU alone, and nothing below is measured. What follows is
expected of an H100 or H200.
"""

LONGEST = 160
"""Most characters of a text in a table."""


def write(out: Path, project: Path = ROOT) -> int:
    """Put the results of a folder into the project, write the page, and return the exit status.

    Args:
        out: folder of a day; without results, the page is written anew from those that the project has.
        project: the project's root.
    """
    path = out / CARD
    if path.exists():
        card = json.loads(path.read_text(encoding="utf-8"))
        if card["device"] != "cuda":
            print(f"--out {out} holds results of a CPU\nname the folder of a day with a GPU", file=sys.stderr)
            return 2
        _keep(card, out, project)
    cards = [json.loads(one.read_text(encoding="utf-8")) for one in sorted((project / RESULTS).glob("*.json"))]
    target = project / PAGE
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join(page(cards)), encoding="utf-8")
    print(f"{PAGE}: {len(cards)} cards")
    return 0


def _keep(card: dict[str, Any], out: Path, project: Path) -> None:
    """Put a day's parts into the file of its card, with earlier ones, and its reports into the project."""
    target = project / RESULTS / f"{re.sub(r'[^a-z0-9]+', '-', card['card'].lower()).strip('-')}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {"parts": {}}
    found = {part.name: PartResults(out, part.name).read() for part in PARTS}
    replace(target, card | {"parts": known["parts"] | {name: results for name, results in found.items() if results}})
    for folder in sorted((out / "reports").glob("*/")):
        into = project / REPORTS / folder.name
        shutil.copytree(folder, into, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.lock", ".*", "*.new", "index.html"))
        _draw(into)


def _draw(folder: Path) -> None:
    """Draw a report anew; cells of the paper's data sets are drawn with its values."""
    from capsbench.report import Report

    report = Report(folder)
    if report.records:
        report.draw(folder, with_paper="published" in folder.name)


def page(cards: list[dict[str, Any]]) -> Iterator[str]:
    """The page, line by line.

    Args:
        cards: results of each card.
    """
    yield HEAD
    if not cards:
        yield NO_CARD
        yield from _expected({})
    for card in cards:
        yield from _card(card)


def _card(card: Mapping[str, Any]) -> Iterator[str]:
    environment = card["environment"]
    packages, cuda = environment["packages"], environment["cuda"]
    versions = {
        "driver": cuda.get("driver"), "CUDA": cuda.get("runtime"), "cuDNN": cuda.get("cudnn"), "torch": packages.get("torch"),
        "Triton": packages.get("triton"), "Python": environment.get("python"),
    }  # fmt: skip
    yield f"## {card['card']}"
    yield ""
    yield f"{card['date']}; " + ", ".join(f"{name} {version or 'unknown'}" for name, version in versions.items()) + "."
    yield ""
    parts = {name: results["items"] for name, results in card["parts"].items()}
    yield from _expected(parts)
    for part in PARTS:
        results = card["parts"].get(part.name)
        yield f"### {part.title}"
        yield ""
        if results is None:
            yield "Not begun.\n"
            continue
        message = f" ({_text(results['message'])})" if results["message"] else ""
        yield f"Part `{part.name}`: {results['status']}{message}, {results['seconds']:.0f} s."
        yield ""
        yield from table(results["items"])


def _expected(parts: Mapping[str, Mapping[str, Found]]) -> Iterator[str]:
    yield "### Expected and found"
    yield ""
    yield "| figure | expected | found | came true | by |"
    yield "| --- | ---: | ---: | --- | --- |"
    for one in all_expectations():
        value = one.find(parts)
        unit = f" {one.unit}" if one.unit else ""
        found = "not measured" if value is None else f"{value:,.4g}{unit}"
        verdict = "" if value is None else "yes" if one.came_true(value) else "**no**"
        yield f"| {one.words} | {one.range()}{unit} | {found} | {verdict} | {one.source} |"
    yield ""


def table(items: Mapping[str, Found]) -> Iterator[str]:
    """A table with a row an item and a column a figure; times of cells stand in the rows of their cells."""
    rows: dict[str, dict[str, Any]] = {}
    for name, found in items.items():
        if name.startswith("times") and "error" not in found:
            for cell, value in found.items():
                rows.setdefault(cell, {})["step_ms"] = value
        else:
            rows[name] = {key: value for key, value in found.items() if key != "call"} | rows.get(name, {})
    columns = list(dict.fromkeys(key for found in rows.values() for key in found))
    if not columns:
        yield "No item was begun.\n"
        return
    yield f"| | {' | '.join(map(_column, columns))} |"
    yield f"| --- |{' ---: |' * len(columns)}"
    for name, found in rows.items():
        shown = f"*{name}*" if "error" in found else name
        yield f"| {shown} | {' | '.join(_value(key, found.get(key)) for key in columns)} |"
    yield ""


def _column(name: str) -> str:
    """Words of a column, with its unit."""
    for ending, unit in (("_bytes", ", MiB"), ("_ms", ", ms")):
        if name.endswith(ending):
            name = name.removesuffix(ending) + unit
    return name.replace("_", " ")


def _value(name: str, value: Any) -> str:
    """A figure as it stands in a table: bytes in MiB, both values of a predicted figure with its error and certainty."""
    if value is None:
        return ""
    if isinstance(value, dict):
        foretold, seen = value["predicted"], value["measured"]
        error = f"{100 * (foretold / seen - 1):+.2f} %" if seen else f"{foretold - seen:+,} B"
        return f"{foretold / MIB:,.2f} / {seen / MIB:,.2f} MiB ({error}), {value['certainty']}"
    if name.endswith("_bytes"):
        return f"{value / MIB:,.2f}"
    return f"{value:,.4g}" if isinstance(value, float) else _text(value)


def _text(value: object) -> str:
    text = " ".join(str(value).split()).replace("|", "\\|")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


if __name__ == "__main__":
    sys.exit(write(Path(sys.argv[1]), *map(Path, sys.argv[2:])))
