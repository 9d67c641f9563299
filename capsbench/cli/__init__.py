"""The command line; thin."""

import sys

import click

from capsbench.cli.commands import cli
from capsbench.errors import CapsbenchError, Interrupted


def main() -> None:
    """Entry point: errors become two lines on standard error and an exit status."""
    try:
        status = cli.main(standalone_mode=False)
    except CapsbenchError as error:
        status = _complain(error.what, error.hint, error.exit_status)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "")
        status = 0
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "capsbench"
        # click lists choices on lines of their own.
        what = " ".join(error.format_message().split())
        status = _complain(what, f"'{where} --help' shows what it takes", 2)
    except click.ClickException as error:
        status = _complain(error.format_message(), "", error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        status = _complain("interrupted", "what was measured before is kept; --resume goes on with it", Interrupted.exit_status)
    except SystemExit:
        # Commands return their status; click and rich exit where whoever reads their output has seen enough.
        status = 0
    sys.exit(status if isinstance(status, int) else 0)


def _complain(what: str, hint: str, status: int) -> int:
    from capsbench.report.terminal import printable

    what, hint = printable(what), printable(hint)
    click.echo(f"error: {what}" + (f"\n{hint}" if hint else ""), err=True)
    return status
