"""`capsbench env`: this machine."""

import click

from capsbench.cli.command import Command, echo, echo_json


@click.command("env", cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as in environment.json.")
def command(as_json: bool) -> None:
    """Describe this machine as reports do."""
    from capsbench.measure.environment import describe

    machine = describe()
    if as_json:
        echo_json(machine)
        return
    for name, value in machine.items():
        parts = [f"{key} {item}" for key, item in value.items()] if isinstance(value, dict) else value
        text = ", ".join(parts) if isinstance(parts, list) else parts
        echo(f"{name:<10} {text}")
