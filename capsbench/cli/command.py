"""What all commands have in common: paths that stay where they are, and words that anybody can read."""

import functools
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from capsbench.paths import as_typed, typed

STANDARD_OUTPUT = Path("-")
"""What stands for standard output where a file is named."""


class Command(click.Command):
    """A command whose paths mean the same until it ends, wherever the modules that it imports take the process."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command on absolute paths."""
        ctx.params = {name: _placed(value) for name, value in ctx.params.items()}
        return super().invoke(ctx)


command = functools.partial(click.command, cls=Command)
"""`click.command`, as every command of the program is made."""


class Group(click.Group):
    """Commands of one kind."""

    command_class = Command


def typed_command() -> str:
    """Return the command that runs, as it would be typed again."""
    return shlex.join(["capsbench", *sys.argv[1:]])


def echo(text: object, *, err: bool = False, nl: bool = True) -> None:
    """Print words for a person: paths as they were typed."""
    click.echo(as_typed(str(text)), err=err, nl=nl)


def echo_json(data: object, indent: int | None = 1) -> None:
    """Print JSON, which holds no sign that an encoding might not have."""
    click.echo(json.dumps(data, indent=indent))


def _placed(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_placed, value))
    return typed(value) if isinstance(value, Path) and value != STANDARD_OUTPUT else value
