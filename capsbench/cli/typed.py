"""Options that were typed, and those that were left to their defaults."""

from collections.abc import Sequence

import click
from click.core import ParameterSource

from capsbench.catalog import MODELS
from capsbench.errors import ConfigurationError
from capsbench.options import NETWORK_OPTIONS, OPTIONS


def was_typed(name: str) -> bool:
    """Return whether the option of a parameter was typed, with its default value or another."""
    source = click.get_current_context().get_parameter_source(name)
    return source not in (None, ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)


def was_left_out(name: str) -> bool:
    """Return whether a command that is running has its own default for the option of a parameter."""
    return click.get_current_context(silent=True) is not None and not was_typed(name)


def refuse_for_own(models: Sequence[str]) -> None:
    """Refuse options of capsbench's own networks that were typed for another network.

    Args:
        models: names of networks.

    Raises:
        ConfigurationError: one was typed.
    """
    own = next((model for model in models if model not in ("all", *MODELS)), None)
    not_had = [name for name in NETWORK_OPTIONS if not OPTIONS[name].networks.have(own)]
    typed = next((name for name in not_had if was_typed(name)), None) if own else None
    if own is not None and typed is not None:
        from capsbench.sweep.checks import no_effect

        raise no_effect(OPTIONS[typed].flag, own)


def refuse_given(name: str, other: str, why: str) -> None:
    """Refuse an option that was typed and has no effect with another.

    Args:
        name: name of its parameter.
        other: the other option.
        why: reason that it has no effect.

    Raises:
        ConfigurationError: it was typed.
    """
    if was_typed(name):
        raise ConfigurationError(f"`{name}` has no effect with {other}: {why}", f"leave `{name}` out")


def require_command(context: click.Context) -> None:
    """Refuse a group of commands without the name of one.

    Raises:
        ConfigurationError: there is none.
    """
    if context.invoked_subcommand is None and isinstance(context.command, click.Group):
        name = context.command.name
        raise ConfigurationError(f"'{name}' alone has no effect", f"choose one of {', '.join(context.command.commands)}")
