"""The group of all commands. The module of a command is imported when the command is looked up."""

from importlib import import_module

import click

from capsbench.cli.command import Group, echo
from capsbench.errors import ConfigurationError

_SECTIONS = {
    "Measure": ("run", "predict", "timeline"),
    "Read": ("show", "slopes", "plot", "report", "compare"),
    "Guard": ("check", "init-ci"),
    "Train": ("train", "classify", "figure"),
    "Reproduce the paper": ("reproduce",),
    "This machine": ("list", "env", "completion"),
}
"""Sections of --help, each with its commands."""

SUMMARIES = {
    "check": "Fail if memory or time grew since a baseline.",
    "classify": "Classify images with a trained network.",
    "compare": "Compare two reports: difference, interval and verdict.",
    "completion": "Print a script that completes names in a shell.",
    "env": "Describe this machine as reports do.",
    "figure": "Draw figures of a trained network.",
    "init-ci": "Write a workflow that checks every pull request.",
    "list": "List the models, data sets and names that options take.",
    "plot": "Draw figures 3 and 4 of reports again, and their pages.",
    "predict": "Predict the memory of a step on a GPU that you do not have.",
    "report": "Write reports as one self-contained HTML page.",
    "reproduce": "Reproduce the paper's figures and tables.",
    "run": "Measure memory and time over depth or another axis.",
    "show": "Draw the slopes of a report on the terminal.",
    "slopes": "Print what one more block costs, or one more sample.",
    "timeline": "Show the memory inside one training step, and its purpose.",
    "train": "Train a network to accuracy.",
}
"""First sentences of the commands, so that help needs no module of a command; each fits into a line of 80 columns.

Each command is `command` in the module of its name."""


class LazyGroup(Group):
    """A group whose commands are imported when they are looked up."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is none of this name."""
        if cmd_name not in SUMMARIES:
            return None
        found: click.Command = import_module(f"capsbench.cli.{cmd_name.replace('-', '_')}").command
        return found

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that was typed; a function that Python alone has is named as such."""
        if args and args[0] == "estimate":
            raise ConfigurationError(
                "capsbench has no command 'estimate', but a function: capsbench.estimate(model, inputs) in Python",
                "'capsbench predict' predicts the memory of networks that are named with --models",
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the names and first sentences of the commands, section by section."""
        width = max(map(len, SUMMARIES))
        room = formatter.width - 6 - width
        for head, names in _SECTIONS.items():
            with formatter.section(head):
                # Names of one width, so that the columns of all sections begin at one place.
                formatter.write_dl([(f"{name:<{width}}", self.commands[name].get_short_help_str(room)) for name in names])


def _version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if not asked or context.resilient_parsing:
        return
    from importlib import metadata

    try:
        version = metadata.version("capsbench")
    except Exception:  # a copy without an installation, or with half of one
        version = "unknown"
    echo(f"capsbench, version {version}")
    context.exit()


@click.group(
    cls=LazyGroup,
    # Their names and summaries alone, for help and for suggestions where a name is misspelt.
    commands=[click.Command(name, help=text) for name, text in SUMMARIES.items()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version and exit.")
def cli() -> None:
    """Measure what one more block of a network costs, in bytes and milliseconds.

    \b
    Examples, the quickest first:
      capsbench predict --models all --depth 1,8    # seconds: memory of a GPU
      capsbench run --models all --quick            # a minute, on this machine
      capsbench run --models all --depth 1-8        # ten minutes, more precise
      capsbench show reports/
    """
