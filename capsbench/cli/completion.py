"""`capsbench completion`: completion of commands in a shell."""

import click
from click.shell_completion import get_completion_class

from capsbench.cli.command import Argument, Command, echo
from capsbench.cli.types import OneOf
from capsbench.errors import ConfigurationError


@click.command("completion", cls=Command)
@click.argument("shell", cls=Argument, type=OneOf(["bash", "zsh", "fish"]), meaning="the name of your shell", example="bash")
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print a script that completes names in a shell.

    \b
    Examples:
      eval "$(capsbench completion bash)"
      eval "$(capsbench completion zsh)"
      capsbench completion fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise ConfigurationError(f"shell '{shell}' is not known", "choose bash, zsh or fish")
    echo(kind(context.find_root().command, {}, "capsbench", "_CAPSBENCH_COMPLETE").source())
