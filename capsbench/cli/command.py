"""The common base of all commands: paths that keep their meaning, and text that any encoding can show."""

import functools
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from capsbench.errors import CapsbenchError, with_flags
from capsbench.options import OPTIONS
from capsbench.paths import as_typed, typed

_LIBRARY_NAMES = {"data_directory": "data_dir"}
"""Parameters of the library that a command calls by another name."""

STANDARD_OUTPUT = Path("-")
"""Name of standard output in place of a file."""


class Command(click.Command):
    """A command whose paths keep their meaning, even if modules that it imports change the working directory."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command on absolute paths."""
        ctx.params = {name: _placed(value) for name, value in ctx.params.items()}
        try:
            return super().invoke(ctx)
        except CapsbenchError as error:
            error.what, error.hint = (with_flags(text, _flags(ctx)) for text in (error.what, error.hint))
            raise


command = functools.partial(click.command, cls=Command)
"""Decorator that makes every command of the program."""


class Group(click.Group):
    """Commands of one kind."""

    command_class = Command


def typed_command() -> str:
    """Return the command that runs, as it would be typed again."""
    return shlex.join(["capsbench", *sys.argv[1:]])


def echo(text: object, *, err: bool = False, nl: bool = True) -> None:
    """Print words for a person: paths as they were typed, fields by their flags."""
    click.echo(in_words_of_command(str(text)), err=err, nl=nl)


def in_words_of_command(text: str) -> str:
    """Return a text with paths as they were typed, and with the flags of the running command for the names of fields."""
    context = click.get_current_context(silent=True)
    return as_typed(with_flags(text, _flags(context)) if context else text)


def _flags(context: click.Context) -> dict[str, str]:
    """Flags of a command by the names of their parameters; those of other commands for names that it lacks."""
    found = {name: option.flag for name, option in OPTIONS.items()}
    for command in (*_commands(context.find_root().command), context.command):
        found |= {it.name: it.opts[0] for it in command.params if isinstance(it, click.Option) and it.name}
    return found | {name: found[own] for name, own in _LIBRARY_NAMES.items() if own in found}


def _commands(command: click.Command) -> Iterator[click.Command]:
    """A command, and all below it where it is a group."""
    yield command
    for one in command.commands.values() if isinstance(command, click.Group) else ():
        yield from _commands(one)


def echo_json(data: object, indent: int | None = 1) -> None:
    """Print JSON, which holds no sign that an encoding might not have."""
    click.echo(json.dumps(data, indent=indent))


def _placed(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_placed, value))
    return typed(value) if isinstance(value, Path) and value != STANDARD_OUTPUT else value
