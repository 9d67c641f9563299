"""The command line, which only parses, calls and prints."""

import os
import sys

import click

from capsbench.cli.command import Argument, echo, example_of
from capsbench.cli.group import SUMMARIES, cli
from capsbench.cli.streams import Streams, steady_streams
from capsbench.errors import CapsbenchError, Interrupted
from capsbench.system.paths import starting_here

_WITH_ANOTHER_PRODUCT = frozenset({"check", "figure", "plot", "report", "reproduce", "run", "timeline", "train"})
"""Commands whose product is a verdict, or lies on the disk, so that losing their printed words is no failure."""

_FEW = 3
"""Most commands that the hint of an unknown option names, since they have it."""


def main() -> None:
    """Run the command line; errors become two lines on standard error and an exit status."""
    with steady_streams() as streams, starting_here():
        status = _run()
        status = _report_loss(streams, status)
    sys.exit(status)


def _run() -> int:
    try:
        status = cli.main(standalone_mode=False)
    except CapsbenchError as error:
        return _complain(error.what, error.hint, error.exit_status)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "")
        return 0
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "capsbench"
        # click prints choices on lines of their own.
        what = " ".join(error.format_message().split())
        others = _commands_with(error.option_name) if isinstance(error, click.NoSuchOption) else []
        hint = f"{' and '.join(others)} {'has' if len(others) == 1 else 'have'} one; " if 0 < len(others) <= _FEW else ""
        hint += _on_missing(error) if isinstance(error, click.MissingParameter) else ""
        return _complain(what, f"{hint}'{where} --help' shows what it takes", 2)
    except click.ClickException as error:
        return _complain(error.format_message(), "", error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _complain("interrupted", "what was measured before is kept; --resume continues it", Interrupted.exit_status)
    except SystemExit as error:
        if "_CAPSBENCH_COMPLETE" in os.environ:  # click ends the program when it has completed a word
            return error.code if isinstance(error.code, int) else 0
        # Commands return their status, so something else ends the program early.
        return _complain(f"a module ended the program with sys.exit({error.code!r})", "it must raise an error instead", 1)
    return status if isinstance(status, int) else 0


def _on_missing(error: click.MissingParameter) -> str:
    """The meaning of an argument that is missing, and an example of the command with all that it needs."""
    param = error.param
    meaning = f"{param.human_readable_name.upper()} stands for {param.meaning}; " if isinstance(param, Argument) else ""
    return meaning + (f"for example: {example_of(error.ctx)}; " if error.ctx else "")


def _commands_with(option: str) -> list[str]:
    """The commands that have an option of exactly this name, in quotation marks."""
    commands = {name: cli.get_command(click.Context(cli), name) for name in SUMMARIES}
    return [f"'capsbench {name}'" for name, one in commands.items() if one and any(option in it.opts for it in one.params)]


def _report_loss(streams: Streams, status: int) -> int:
    """The exit status, given that standard output may not have been written."""
    lost = streams.lost()
    if lost is None:
        return status
    _complain(f"standard output could not be written: {lost.strerror}", "make room, or write it elsewhere", 1)
    words = sys.argv[1:]
    named = next((word for word in words if not word.startswith("-")), "")
    asked = {"-h", "--help"} if named == "check" else {"-h", "--help", "--json"}  # a verdict in JSON is a verdict
    kept = named in _WITH_ANOTHER_PRODUCT and not asked & set(words)
    return status if kept else status or 1


def _complain(what: str, hint: str, status: int) -> int:
    from capsbench.words.printable import printable

    what, hint = printable(what), printable(hint)
    echo(f"error: {what}" + (f"\n{hint}" if hint else ""), err=True)
    return status
