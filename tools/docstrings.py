"""A check that no docstring begins as half a sentence: with a relative clause, a preposition, or a verb without a subject.

    python tools/docstrings.py [FILE OR FOLDER ...]

A docstring's first line begins with its noun ("Indices of the two ends ...") or a verb in the imperative ("Return ..."). The
strings beneath fields are held to the same rule. Exit status 1 if one of them breaks it.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

REFUSED = re.compile(
    r"""(
    What|Whatever|Whether|How|Where|When|Whenever|While|Who|Whose|Whoever|Whom|Which|Why|That|If|The\ same|
    Of|By|From|For|In|On|At|To|Into|Over|Inside|Outside|Before|After|Since|Until|With|Without|Within|Per|Along|As|Than|Beside|
    It|Its|Is|Are|Was|Were|Does|This|Those|These|They|Them|See|Likewise|Also|Once|So|Not|Only|Because|And|Or|But|
    Refuses|Returns|Writes|Puts|Runs|Starts|Keeps|Takes|Sets|Holds|Reads|Makes|Looks|Gives|Says|Lets|Ends|Draws|Follows|Shows
    )\b | \W*$""",
    re.VERBOSE,
)
FOLDERS = ("capsbench", "tools", "benchmarks", "tests")


def refused(source: str) -> Iterator[tuple[int, str]]:
    """Line number and text of each docstring in a source that begins as it must not."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for body in [node.body for node in ast.walk(ast.parse(source)) if isinstance(node, documented)]:
        for statement in body:
            match statement:
                case ast.Expr(value=ast.Constant(value=str(text))) if REFUSED.match(text.strip()):
                    yield statement.lineno, text.strip()


def main(named: list[str]) -> int:
    """Print the refused docstrings of these files and folders, and return the exit status."""
    paths = [Path(name) for name in named or FOLDERS]
    files = sorted(file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path]))
    found = [(file, line, text) for file in files for line, text in refused(file.read_text(encoding="utf-8"))]
    for file, line, text in found:
        print(f"{file}:{line}: {text.partition(chr(10))[0]}")
    if found:
        print(f"{len(found)} docstrings are half a sentence.\nBegin with a noun or a verb in the imperative.", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
