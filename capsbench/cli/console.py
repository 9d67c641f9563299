"""The consoles on which tables are printed."""

from typing import Any

from rich.console import Console
from rich.text import Text

from capsbench.cli.streams import signs_of


class _Readable(Console):
    """A console that lays tables out with the signs of its encoding, since a later replacement would move columns."""

    def render_str(self, text: str, **more: Any) -> Text:
        """A text of a cell or a title."""
        return super().render_str(signs_of(text, self.encoding), **more)


def console(*, err: bool = False, width: int | None = None) -> Console:
    """The console of standard output, or of standard error.

    Args:
        err: use standard error.
        width: columns; by default the terminal's, or 80 if there is no terminal.
    """
    # Names of models hold colons, which would be read as emoji.
    return _Readable(stderr=err, width=width, highlight=False, emoji=False)
