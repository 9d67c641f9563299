"""Writes docs/record-schema.md from what the package's own classes say of their fields: `python tools/record_schema.py [--check]`.

With `--check` nothing is written; exit status 1 where the file is not what it would be.
"""

import ast
import inspect
import re
import sys
from pathlib import Path
from textwrap import dedent

from pydantic import BaseModel

from capsbench import records
from capsbench.training import result, settings

TARGET = Path(__file__).parent.parent / "docs" / "record-schema.md"
HEAD = f"""# What is written to disk

Made by `python tools/record_schema.py` from the classes themselves (`capsbench/records.py`, `capsbench/training/`).

Bytes are bytes and seconds are seconds; MiB appears only where a person reads. There is no infinity and no NaN: what is not
known is `null` or left out. Unknown fields are refused.

| file | what it holds | written |
| --- | --- | --- |
| `reports/NAME/plan.json` | a `Plan`: what was asked, every cell in its order | before the first cell |
| `reports/NAME/environment.json` | machine, versions, commit and clocks, by the short key that records name; no path and no user | before a cell that needs a new one |
| `reports/NAME/records.jsonl` | a `Record` a line | appended and flushed to the disk before the next cell starts |
| `reports/NAME/slopes.csv`, `figure3.*`, `figure4.*`, `index.html` | what can be drawn again from the records | at the end |
| `timeline.json` | a `Timeline` (`capsbench timeline`) | at once |
| `runs/NAME/settings.json`, `result.json` | `TrainingSettings` and a `Result` (`capsbench train`) | at the beginning, at the end |
| `runs/NAME/metrics.jsonl` | a line of `"kind": "step"` per step, and one of `"kind": "epoch"` (`EpochFigures`) per epoch | appended |
| `runs/NAME/checkpoint.pt`, `best.pt` | weights, optimizer, random states; read with `weights_only=True` | beside, then renamed |

The last lines of `records.jsonl` win: a cell that is measured again is a further line. A damaged line costs that line, and is told
with its number. `kind` is `measured` or `predicted`; both lie in the same files.

`schema_version` is {records.SCHEMA_VERSION}. It is raised when an older capsbench could not understand a new record; a newer record is refused with the version
that is needed, an older one is read. A new field that may be missing does not raise it.
"""
CLASSES: tuple[type[BaseModel], ...] = (
    records.Record,
    records.Cell,
    records.Configuration,
    records.MemoryFigures,
    records.Contents,
    records.TimeFigures,
    records.StepFigures,
    records.Plan,
    records.Timeline,
    records.StepPhase,
    records.StepPeak,
    settings.TrainingSettings,
    result.Result,
    result.EpochFigures,
)


def text() -> str:
    """The whole page."""
    return "\n".join([HEAD, *map(section, CLASSES)])


def section(kind: type[BaseModel]) -> str:
    """One class as a table: its fields with their types and what it says of them."""
    said = sayings(kind)
    lines = [f"## {kind.__name__}", "", re.sub(r"\s+", " ", inspect.getdoc(kind) or ""), ""]
    lines += ["| field | type | what it is |", "| --- | --- | --- |"]
    for name, field in kind.model_fields.items():
        declared = name_of(field.annotation)
        lines.append(f"| `{name}` | {declared} | {said.get(name, '')} |")
    return "\n".join([*lines, ""])


def sayings(kind: type[BaseModel]) -> dict[str, str]:
    """The line of text under each field."""
    (body,) = ast.parse(dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for field, under in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(under, ast.Expr):
            words = ast.literal_eval(under.value)
            found[field.target.id] = re.sub(r"\s+", " ", str(words)).replace("|", "\\|")
    return found


def name_of(annotation: object) -> str:
    """`list[float]`, `str or null`, `"ok", "oom"`."""
    plain = annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    plain = re.sub(r"typing\.|\b(?:\w+\.)+(?=[A-Za-z])", "", plain)
    plain = re.sub(r"Literal\[([^\]]*)\]", lambda match: match[1].replace("'", '"'), plain)
    return plain.replace(" | None", " or null").replace(" | ", " or ")


def main() -> int:
    """The command line."""
    if "--check" in sys.argv[1:]:
        return int(TARGET.read_text(encoding="utf-8") != text())
    TARGET.write_text(text(), encoding="utf-8")
    print(TARGET.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
