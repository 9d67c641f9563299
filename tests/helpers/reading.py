"""A literal reader of README and docs, who checks and runs their code.

**What is run, and how long.** Every document is read from top to bottom in a folder of its own, which holds what a reader has:
the reports of the repository, and two images. A Python block is saved, under its name if it begins with one (`# net.py`), and
run as a script. A line of shell is run as a process. What is written must make sense as it is written (a command is first taken
by the command line, or does a dry run, so that names and values are checked too), and is run with these substitutions:

- `SHORTER`: options that make a command short, unless it varies what they set; `shorten_calls` does the same for
  `capsbench.run` and `predict` in Python;
- a comma list of names is cut to the first, and `all` to `mocapsnet`;
- where no device is named, `run` and `timeline` are traced for a CPU: the same command in a fraction of the time. The first `run`
  of the README, which is the first that anybody types, is measured, and so is what Python measures.

`NOT_RUN` says what is not run at all, and why. Whatever is in none of these rules is an error: a block that nobody checks is
wrong sooner or later.
"""

import ast
import contextlib
import io
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import NamedTuple

import click
from markdown_it import MarkdownIt
from markdown_it.token import Token

from capsbench.cli.group import cli
from capsbench.cli.types import NameList
from capsbench.errors import CapsbenchError
from capsbench.records import Cell, Plan, Record
from capsbench.timeline import Timeline
from helpers import ROOT
from helpers.commands import subcommands
from helpers.forked import Server

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

SHORTER = {
    "run": {"--depth": "1", "--batch-size": "4", "--samples": "5", "--time-budget": "0.1"},
    "predict": {"--depth": "1", "--batch-size": "4"},
    "timeline": {"--depth": "1", "--batch-size": "4"},
    "train": {"--depth": "1", "--epochs": "1", "--batch-size": "8", "--scale": "0.03"},
}
"""Options that replace those of the line, by command."""

NOT_RUN = {
    "--download": "needs the network",
    "--fit": "searches, which takes minutes",
    "train --dataset": "needs a data set that is not in the repository",
    "reproduce": "takes hours at the paper's sizes; a dry run expands all of it",
    "pip": "installs; its extras are looked up",
    "npm": "needs the network; its scripts are looked up",
    "pre-commit": "changes the repository that it is run in",
    "tox": "runs these tests; its environments are looked up",
    "torchrun": "several processes; test_train_cli.py runs it",
    "srun": "needs a cluster; the torchrun that it starts is looked at",
    "benchmarks": "take up to an hour; their options are looked up",
    "--launcher": "needs a cluster; tests/sweep/launchers has them, and a dry run takes its options",
    "ray": "starts a cluster",
    "kubectl": "needs a cluster; its file is looked up",
    "sky": "rents machines; its file is looked up",
}
"""Commands of which only names, options and values are checked, with the reason."""

_UNTRACED = "import capsbench.cli.sweeps; capsbench.cli.sweeps.forecast = lambda cells: capsbench.cli.sweeps.Forecast()"
"""A line that leaves the predicted peaks out of a dry run, which takes seconds for them; test_cli.py has one with them."""

OPTIONS_OF_OTHERS = {"--nproc-per-node", "--write", "--std", "--benchmark-compare-fail", "--index-url", "--down", "--exclusive"}
"""Options in running text that are not the command line's."""


class Wrong(AssertionError):
    """A statement of a document that the program does not fulfil."""


class Block(NamedTuple):
    """Code in a document."""

    language: str
    """Language of the fence; `bash` for indented code."""
    text: str
    line: int
    """Number of its first line, from 1."""


# What is in a document.


def tokens(text: str) -> list[Token]:
    """Markdown, parsed."""
    return MarkdownIt("commonmark").enable("table").parse(text)


def inline(text: str) -> Iterator[Token]:
    """Tokens of running text and of tables."""
    for token in tokens(text):
        yield from token.children or ()


def blocks(text: str) -> list[Block]:
    """Fenced and indented code, in order."""
    found = []
    for token in tokens(text):
        if token.type in ("fence", "code_block"):
            language = token.info.strip() if token.type == "fence" else "bash"
            found.append(Block(language, token.content, (token.map or [0])[0] + 1))
    return found


def shell_lines(block: Block) -> list[str]:
    """Typed lines; in a console's block those that follow a prompt."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def commands(line: str) -> list[list[str]]:
    """The commands of a line, joined by `&&`, as words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if word == "&&":
            found.append([])
        elif set(word) <= set("();<>|&"):
            raise Wrong(f"'{word}' in '{line}' is shell that nobody checks")
        else:
            found[-1].append(word)
    return found


# What is in the program.


def check(words: list[str], *, complete: bool = True) -> None:
    """Check that a command and its options exist.

    Args:
        words: as typed.
        complete: whether nothing may be missing; in running text a command stands for itself.

    Raises:
        Wrong: there is no such program, command, option or value.
    """
    program, *rest = words
    if program == "python" and rest[:1] == ["-m"] and len(rest) > 1:
        program, *rest = rest[1:]
        program = "capsbench" if program == "capsbench.cli" else program
    if program == "capsbench":
        parsed(rest, complete=complete)
    elif program.startswith("benchmarks."):
        _check_benchmark(program, rest)
    elif program in _OTHERS:
        _OTHERS[program](rest)
    else:
        raise Wrong(f"'{program}' is no program that the documents may name")


def parsed(words: list[str], *, complete: bool = True) -> tuple[list[str], click.Command, click.Context | None]:
    """The command's path, the command, and its options as the command line understands them.

    Raises:
        Wrong: it does not understand them.
    """
    asked = [word for word in words if word not in ("…", "--help", "-h", "--version")]
    path: list[str] = []
    command: click.Command = cli
    while isinstance(command, click.Group) and asked:
        name, *asked = asked
        if name.isupper() and not complete:
            return path, command, None
        if name not in (below := subcommands(command)):
            raise Wrong(f"there is no command 'capsbench {' '.join([*path, name])}'")
        path.append(name)
        command = below[name]
    if isinstance(command, click.Group):
        if complete and len(path) + len(asked) == len(words):  # it does not ask for help
            raise Wrong(f"'capsbench {' '.join(words)}' names no command")
        return path, command, None
    if complete and len(asked) < len(words) - len(path):
        return path, command, None  # it asks for help
    try:
        return path, command, command.make_context(path[-1], list(asked))
    except click.MissingParameter as error:
        if complete:
            raise Wrong(f"'capsbench {' '.join(words)}': {error.format_message()}") from None
        return path, command, None
    except (click.UsageError, CapsbenchError) as error:
        raise Wrong(f"'capsbench {' '.join(words)}': {error}") from None


def options() -> set[str]:
    """Every option of every command."""
    return {option for command in _leaves(cli) for param in command.params for option in param.opts} | {"--help", "--version"}


def _leaves(command: click.Command) -> Iterator[click.Command]:
    if isinstance(command, click.Group):
        for one in subcommands(command).values():
            yield from _leaves(one)
    else:
        yield command


def _check_benchmark(module: str, words: list[str]) -> None:
    folder = ROOT.joinpath(*module.split("."))
    path = folder / "__main__.py" if folder.is_dir() else folder.with_suffix(".py")
    if not path.exists():
        raise Wrong(f"there is no module {module}")
    source = path.read_text(encoding="utf-8")
    constants = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    if re.search(r"parser_of\(__doc__, \w+\)", source):  # benchmarks/command_line.py
        constants.add("--write")
    for word in words:
        if word.startswith("--") and word not in constants:
            raise Wrong(f"{module} has no option {word}")


def _check_pip(words: list[str]) -> None:
    action, *rest = words
    if action != "install":
        raise Wrong(f"'pip {action}' is not what the documents may ask for")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for word in rest:
        own = re.fullmatch(r"(?:capsbench|\.)\[(.+)\]", word)
        for extra in own[1].split(",") if own else ():
            if extra not in extras:
                raise Wrong(f"pyproject.toml has no extra '{extra}'")
        if word.startswith("-") and word not in ("-e", "--editable", "--quiet", "--index-url"):
            raise Wrong(f"'pip install {word}' is not known here")


def _check_tox(words: list[str]) -> None:
    config = ConfigParser()
    config.read(ROOT / "tox.ini", encoding="utf-8")
    mine = words[: words.index("--")] if "--" in words else words
    if mine and (mine[0] != "-e" or len(mine) != 2):
        raise Wrong(f"'tox {' '.join(mine)}' is not known here")
    for name in mine[1].split(",") if mine else ():
        if f"testenv:{name}" not in config:
            raise Wrong(f"tox.ini has no environment '{name}'")


def _check_npm(words: list[str]) -> None:
    folder, action = words[1:2], words[2:]
    package = ROOT.joinpath(*folder, "package.json")
    scripts = json.loads(package.read_text(encoding="utf-8"))["scripts"] if words[:1] == ["--prefix"] and package.exists() else {}
    if not scripts or action not in (["ci"], *(["run", name] for name in scripts)):
        raise Wrong(f"'npm {' '.join(words)}' is not known here")


def _check_pre_commit(words: list[str]) -> None:
    if words != ["install"] or not (ROOT / ".pre-commit-config.yaml").exists():
        raise Wrong(f"'pre-commit {' '.join(words)}' is not known here")


def _check_torchrun(words: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    if "-m" not in words or words[words.index("-m") + 1 :][:1] != ["capsbench.cli"]:
        raise Wrong("torchrun runs '-m capsbench.cli'")
    place = words.index("-m")
    parser = get_args_parser()
    parser.allow_abbrev = False
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            parser.parse_args([*words[:place], "script"])
        except SystemExit:
            raise Wrong(f"torchrun does not take '{' '.join(words[:place])}'") from None
    parsed(words[place + 2 :], complete="…" not in words)


def _check_srun(words: list[str]) -> None:
    if "torchrun" not in words:
        raise Wrong("srun starts torchrun")
    _check_torchrun(words[words.index("torchrun") + 1 :])


def _check_pytest(words: list[str]) -> None:
    own = (ROOT / "capsbench" / "pytest_plugin.py").read_text(encoding="utf-8")
    if any(word.startswith("-") and f'"{word}"' not in own for word in words):
        raise Wrong(f"'pytest {' '.join(words)}' is not known here")


def _check_cluster(words: list[str]) -> None:
    for word in words:
        if word.endswith(".yaml") and not (ROOT / word).is_file():
            raise Wrong(f"there is no {word}")


_OTHERS: dict[str, Callable[[list[str]], None]] = {
    "pip": _check_pip,
    "npm": _check_npm,
    "tox": _check_tox,
    "pre-commit": _check_pre_commit,
    "torchrun": _check_torchrun,
    "srun": _check_srun,
    "pytest": _check_pytest,
    **dict.fromkeys(("ray", "kubectl", "sky"), _check_cluster),
}


# What stands in running text.


def check_inline(text: str) -> None:
    """Commands and options that are named in running text and tables.

    Raises:
        Wrong: one of them is not there.
    """
    known = options() | OPTIONS_OF_OTHERS
    programs = ("capsbench ", "tox ", "torchrun ", "pre-commit ", "pip ", "python -m ")
    for token in inline(text):
        code = token.content
        if token.type != "code_inline":
            continue
        for one in re.findall(r"\$\((.*?)\)", code) or ([code] if code.startswith(programs) else []):
            for words in commands(one):
                check(words, complete=False)
        if re.match(r"--[a-z]", code):
            for word in re.findall(r"--[a-z][a-z-]*", code):
                if word not in known:
                    raise Wrong(f"no command has the option {word}")


def check_links(text: str, folder: Path) -> None:
    """Links and pictures in the repository.

    Args:
        text: of a document.
        folder: where it lies.

    Raises:
        Wrong: a file, or a heading in it, is not there.
    """
    for token in inline(text):
        target = str(token.attrs.get("href") or token.attrs.get("src") or "")
        if not target or re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = folder / name
        if name and not path.exists():
            raise Wrong(f"there is no {name}")
        there = path.read_text(encoding="utf-8") if name and anchor else text
        if anchor and anchor not in headings(there):
            raise Wrong(f"there is no heading #{anchor} in {name or 'this document'}")


def headings(text: str) -> list[str]:
    """The anchors that a page of GitHub has for its headings."""
    found, heading = [], False
    for token in tokens(text):
        if token.type == "inline" and heading:
            words = "".join(child.content for child in token.children or ())
            found.append(re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-"))
        heading = token.type == "heading_open"
    return found


# Following it.


class Reader:
    """Somebody who does what a document says, in a folder of their own.

    Args:
        folder: folder that is filled with what a reader of the repository has.
        server: the process whose forks are the commands.
        measures: whether the first `run` is measured, and not traced.
    """

    def __init__(self, folder: Path, server: Server, *, measures: bool = False) -> None:
        self.folder = folder
        self._server = server
        self._measures = measures
        shutil.copytree(ROOT / "reports", folder / "reports")
        _write_images(folder)

    def follow(self, text: str) -> list[str]:
        """Follow a document in order, and return the commands as they were run.

        Raises:
            Wrong: something does not work; it says where.
        """
        done = []
        for block in blocks(text):
            try:
                done += self._block(block)
            except Wrong as error:
                raise Wrong(f"line {block.line}: {error}") from None
        return done

    def _block(self, block: Block) -> list[str]:
        if block.language == "python":
            self._python(block.text)
            return ["python"]
        if block.language in ("bash", "console"):
            return [ran for line in shell_lines(block) for words in commands(line) if (ran := self._command(words))]
        if block.language == "json":
            check_json(block.text)
        elif block.language == "toml":
            _check_toml(block.text)
        elif block.language != "bibtex":  # test_packaging.py checks what it cites
            raise Wrong(f"a block of '{block.language}' is nothing that is checked")
        return []

    def _python(self, source: str) -> None:
        name = re.match(r"# (\w+\.py)\n", source)
        script = self.folder / (name[1] if name else "example.py")
        script.write_text(source, encoding="utf-8")
        self._process("python", [script.name], source, setup="from helpers.reading import shorten_calls; shorten_calls()")

    def _command(self, words: list[str]) -> str:
        """Checks a command, and runs it as the rules at the top say; what was run, or nothing."""
        check(words)
        if words[0] == "pytest":
            self._process("pytest", words[1:])
            return shlex.join(words)
        if words[0] != "capsbench":
            return ""  # of NOT_RUN, or `check` would have refused it
        path, _, context = parsed(words[1:])
        if context is None:
            return ""  # help
        if "dry_run" in context.params:
            self._process("capsbench", [*words[1:], *([] if context.params["dry_run"] else ["--dry-run"])], setup=_UNTRACED)
        if context.params.get("dry_run") or why_not_run(path, words, context):
            return ""
        shorter = shortened(words[1:], traced=path != ["run"] or not self._measures)
        self._measures &= path != ["run"]
        self._process("capsbench", shorter)
        return shlex.join(["capsbench", *shorter])

    def _process(self, program: str, words: list[str], source: str = "", setup: str = "") -> None:
        """Run a program in the folder, as a fork of the process that has torch imported already."""
        done = self._server(self.folder, *words, program=program, setup=setup, forks=True)
        if done.status:
            named = source or f"'{shlex.join([program, *words])}'"
            raise Wrong(f"{named} ended with {done.status}:\n{done.stdout}{done.stderr}")


def why_not_run(path: list[str], words: list[str], context: click.Context) -> str:
    """The reason in `NOT_RUN` for a command of capsbench; empty if it is run."""
    holding = [name for name in (*words, path[0]) if name in NOT_RUN]
    if path == ["train"] and context.params["dataset"] != "sample":
        holding.append("train --dataset")
    return NOT_RUN[holding[0]] if holding else ""


def shortened(words: list[str], *, traced: bool) -> list[str]:
    """A command of capsbench that does the same in seconds.

    Args:
        words: after `capsbench`.
        traced: whether a `run` or `timeline` that names no device is traced for a CPU.
    """
    path, command, _ = parsed(words)
    name = path[0]
    if name not in SHORTER:
        return words
    known = {option: param for param in command.params for option in param.opts}
    found = list(words)
    for place, word in enumerate(found[:-1]):
        param = known.get(word)
        if param is not None and isinstance(param.type, NameList):
            first = found[place + 1].split(",")[0]
            found[place + 1] = "mocapsnet" if first == "all" else first
    varied = {found[place + 1].partition("=")[0] for place, word in enumerate(found) if word == "--vary"}
    replaced = {option: value for option, value in SHORTER[name].items() if option[2:] not in varied}
    if name in ("run", "timeline") and "--device" not in words and traced:
        replaced["--device"] = "cpu:predicted"
    if name in ("run", "predict") and "--models" not in words:
        replaced["--models"] = "mocapsnet"
    if "--depth" not in found and any(":" in word for word in found):  # a network of others, which may have no blocks
        replaced.pop("--depth", None)
    for option, value in replaced.items():
        if option in found:
            found[found.index(option) + 1] = value
        else:
            found += [option, value]
    return found


def shorten_calls() -> None:
    """Let `capsbench.run` and `predict` measure the first of their cells alone, with one block and a small batch."""
    import capsbench
    from capsbench.sweep import verbs

    def shorter(sweep: verbs.Sweep) -> list[Cell]:
        first = expand(sweep)[0]
        return [first.model_copy(update={"configuration": first.configuration.model_copy(update={"blocks": 1, "batch_size": 4})})]

    expand, run = verbs.expand, verbs.run
    verbs.expand = shorter
    capsbench.run = lambda *models, **options: run(*models, **{**options, "time_budget": 0.1})


def check_json(text: str) -> None:
    """An example of a file: what looks like a record, a plan or a timeline must be one.

    Raises:
        Wrong: it is not.
    """
    try:
        data = json.loads(text)
        kinds = {"cell": Record, "cells": Plan, "phases": Timeline}
        for key, kind in kinds.items():
            if key in data:
                kind.model_validate(data)
    except ValueError as error:
        raise Wrong(f"JSON that is none, or not of its schema: {error}") from None


def _check_toml(text: str) -> None:
    from capsbench.cases.factories import ENTRY_POINTS

    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Wrong(f"TOML that is none: {error}") from None
    groups = data.get("project", {}).get("entry-points", {})
    if list(groups) != [ENTRY_POINTS]:
        raise Wrong(f"entry points {list(groups)}, and the group is {ENTRY_POINTS}")


def _write_images(folder: Path) -> None:
    """`boot.png` and `bag.png`, from the packaged sample."""
    from capsbench.data.datasets import load_images
    from capsbench.data.images import to_picture

    images = load_images("sample").images
    for name, image in zip(("boot.png", "bag.png"), images, strict=False):
        to_picture(image / 255).save(folder / name)
