"""Script that writes the tables of docs/record-schema.md from the docstrings of the package's classes.

    python tools/record_schema.py [--check]

The text above its mark stays. With `--check` nothing is written, and the exit status is 1 if the file is out of date.
"""

import ast
import inspect
import re
import sys
import textwrap
from functools import reduce
from itertools import pairwise
from operator import or_
from pathlib import Path
from textwrap import dedent
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from capsbench import options, records, timeline
from capsbench.training import bundles, log, result, settings

TARGET = Path(__file__).parent.parent / "docs" / "record-schema.md"
MARK = "<!-- Below: made by `python tools/record_schema.py`. -->\n"
WIDTH = 148
"""Largest width of a line of prose."""
CLASSES: tuple[type, ...] = (
    records.Record,
    records.Cell,
    records.Configuration,
    records.MemoryFigures,
    records.Contents,
    records.TimeFigures,
    records.GrowingFigures,
    records.Round,
    records.Turn,
    records.StepFigures,
    records.Plan,
    timeline.Timeline,
    timeline.StepPhase,
    timeline.StepPeak,
    settings.TrainingSettings,
    result.Result,
    result.EpochFigures,
    log.TrainingStep,
    bundles.BlockDiagnostics,
)


def text() -> str:
    """The whole page."""
    written = TARGET.read_text(encoding="utf-8")
    if written.count(MARK) != 1:
        raise SystemExit(f"{TARGET.name} does not have its mark once.\nPut this line above the tables: {MARK.strip()}")
    before, _, _ = written.partition(MARK)
    return "\n".join([before + MARK, *map(section, CLASSES)])


def section(kind: type) -> str:
    """One class as a table: its fields with their types and docstrings."""
    said = sayings(kind)
    prose = " ".join((inspect.getdoc(kind) or "").split())
    lines_of_prose = textwrap.wrap(prose, WIDTH, break_long_words=False, break_on_hyphens=False)
    lines = [f"## {kind.__name__}", "", *lines_of_prose, ""]
    lines += ["| field | type | content |", "| --- | --- | --- |"]
    for name, annotation in fields_of(kind).items():
        declared = name_of(annotation)
        lines.append(f"| `{name}` | {declared} | {said.get(name, '')}{asked_by(kind, name)} |")
    return "\n".join([*lines, ""])


def asked_by(kind: type, name: str) -> str:
    """The flag and the default of an option of a cell; empty for other fields."""
    if kind is not records.Configuration:
        return ""
    if name not in options.OPTIONS:
        return f" Flag `{options.SETTINGS_FLAG}`."
    option = options.OPTIONS[name]
    default = "" if option.default is None else f", by default `{option.default}`"
    return f" Flag `{option.flag}`{default}."


def fields_of(kind: type) -> dict[str, object]:
    """The fields with their types."""
    if issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    return dict(get_type_hints(kind))


def sayings(kind: type) -> dict[str, str]:
    """The docstring under each field."""
    found: dict[str, str] = {}
    statements = [
        one for body in ast.parse(dedent(inspect.getsource(kind))).body if isinstance(body, ast.ClassDef) for one in body.body
    ]
    for field, under in pairwise(statements):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(under, ast.Expr):
            words = ast.literal_eval(under.value)
            found[field.target.id] = re.sub(r"\s+", " ", str(words)).replace("|", "\\|")
    return found


def name_of(annotation: object) -> str:
    """Name of a type: `list[float]`, `str or null`, `"ok", "oom"`."""
    if annotation == options.Configuration.model_fields["settings"].annotation:
        return "object or null"
    annotation = without_bounds(annotation)
    plain = annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    plain = re.sub(r"typing\.|\b(?:\w+\.)+(?=[A-Za-z])", "", plain)
    plain = re.sub(r"Literal\[([^\]]*)\]", lambda match: match[1].replace("'", '"'), plain)
    return plain.replace(" | None", " or null").replace(" | ", " or ")


def without_bounds(annotation: Any) -> Any:
    """A type in plain form; pydantic keeps a number's bounds in it."""
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        return without_bounds(parts[0])
    if kind in (Union, UnionType):
        return reduce(or_, map(without_bounds, parts))
    return kind[tuple(map(without_bounds, parts))] if kind in (list, dict) else annotation


def main() -> int:
    """The command line."""
    if "--check" in sys.argv[1:]:
        if TARGET.read_text(encoding="utf-8") == text():
            return 0
        print(f"{TARGET.name} is out of date.\nRun python tools/record_schema.py", file=sys.stderr)
        return 1
    TARGET.write_text(text(), encoding="utf-8")
    print(TARGET.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
