"""The common base of all commands: options in sections, paths that keep their meaning, and text that any encoding can show."""

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capsbench.errors import CapsbenchError, with_flags
from capsbench.system.paths import typed, with_typed_paths

if TYPE_CHECKING:
    import pandas as pd

STANDARD_OUTPUT = Path("-")
"""Name of standard output in place of a file."""


class Argument(click.Argument):
    """An argument that --help describes, and whose meaning answers a command that lacks it.

    Args:
        meaning: its meaning, a noun with an article: `a report, or a folder of reports`.
        example: words that can be typed for it.
    """

    def __init__(self, *args: Any, meaning: str, example: str, **more: Any) -> None:
        super().__init__(*args, **more)
        self.meaning, self.example = meaning, example


class RequiredOption(click.Option):
    """An option that must be typed.

    Args:
        example: a value for it.
    """

    def __init__(self, *args: Any, example: str, **more: Any) -> None:
        super().__init__(*args, required=True, **more)
        self.example = f"{self.opts[0]} {example}"


def example_of(context: click.Context) -> str:
    """Return a command with all that it needs, and no more: `capsbench check reports/ --baseline baselines/ci.json`."""
    words = [it.example for it in context.command.params if isinstance(it, Argument | RequiredOption) and it.required]
    # The program itself may have another name, as under python -m.
    path = context.command_path.removeprefix(context.find_root().command_path).split()
    return " ".join(["capsbench", *path, *words])


class Command(click.Command):
    """A command whose paths keep their meaning, even if modules that it imports change the working directory.

    Args:
        sections: names of parameters under the heads of their sections in --help; the others follow.
    """

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]] | None = None, **more: Any) -> None:
        super().__init__(*args, **more)
        self._sections = sections or {}

    def get_help_option_names(self, ctx: click.Context) -> list[str]:
        """Names of the option for help, whoever asks first: click keeps the option that it makes, also one without a group."""
        return ["-h", "--help"]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the arguments, and the options section by section."""
        named = [(it.make_metavar(ctx), it.meaning) for it in self.get_params(ctx) if isinstance(it, Argument)]
        if named:
            with formatter.section("Arguments"):
                formatter.write_dl(named)
        # Newer releases of click list arguments too, which the line of usage and the text above name already.
        options = [param for param in self.get_params(ctx) if not isinstance(param, click.Argument)]
        left = {param.name: line for param in options if (line := param.get_help_record(ctx)) is not None}
        for head, names in self._sections.items():
            lines = [left.pop(name) for name in names if name in left]
            if lines:
                with formatter.section(head):
                    formatter.write_dl(lines)
        with formatter.section("Other options" if self._sections else "Options"):
            formatter.write_dl(list(left.values()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command on absolute paths."""
        ctx.params = {name: _placed(value) for name, value in ctx.params.items()}
        try:
            return super().invoke(ctx)
        except CapsbenchError as error:
            error.what, error.hint = (_naming_flags(text, ctx) for text in (error.what, error.hint))
            raise


class Group(click.Group):
    """Commands of one kind."""

    command_class = Command


def typed_command(*more: str) -> str:
    """Return the command that runs, as it would be typed again, with more words at its end."""
    return shlex.join(["capsbench", *sys.argv[1:], *more])


def command_to_resume(folder: Path, *, named: bool, resumed: bool) -> str:
    """Return the hint of an interruption: the command that runs, with the options that find its folder again.

    Args:
        folder: folder of the report or run.
        named: whether it was named with --out.
        resumed: whether --resume was given.
    """
    return f"resume with: {typed_command(*(() if named else ('--out', str(folder))), *(() if resumed else ('--resume',)))}"


def echo(text: object, *, err: bool = False, nl: bool = True) -> None:
    """Print words for a person: paths as they were typed, fields by their flags."""
    click.echo(in_words_of_command(str(text)), err=err, nl=nl)


def echo_json(data: object, indent: int | None = 1) -> None:
    """Print JSON with all digits, which holds no sign that an encoding might not have.

    A number that is not known, or not finite, is null: JSON has no NaN.
    """
    click.echo(json.dumps(_in_json(data), indent=indent, allow_nan=False))


def echo_rows(table: "pd.DataFrame") -> None:
    """Print the rows of a table as JSON, an object each."""
    echo_json(table.to_dict("records"))


def _in_json(value: object) -> object:
    """A value with null for each number that JSON has not."""
    if isinstance(value, Mapping):
        return {name: _in_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_in_json(one) for one in value]
    if callable(item := getattr(value, "item", None)):  # a number of NumPy
        value = item()
    return None if isinstance(value, float) and not isfinite(value) else value


def in_words_of_command(text: str) -> str:
    """Return a text with paths as they were typed, and with the flags of the running command for the names of fields."""
    context = click.get_current_context(silent=True)
    return with_typed_paths(_naming_flags(text, context) if context else text)


def _naming_flags(text: str, context: click.Context) -> str:
    """A text with flags for fields: those of a command's parameters, and those of other commands for names that it lacks."""
    if "`" not in text:  # so that the other commands need not be imported
        return text
    from capsbench.options import FLAGS

    found = dict(FLAGS)
    for command in (*_commands(context.find_root().command, context), context.command):
        found |= {it.name: it.opts[0] for it in command.params if isinstance(it, click.Option) and it.name}
    # A parameter of the library that commands call by another name.
    return with_flags(text, found | {"data_directory": "--data-dir"})


def _commands(command: click.Command, context: click.Context) -> Iterator[click.Command]:
    """A command, and all below it where it is a group."""
    yield command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            yield from _commands(below, context) if below else ()


def _placed(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_placed, value))
    return typed(value) if isinstance(value, Path) and value != STANDARD_OUTPUT else value
