"""Texts of records on a terminal: a name may hold escape sequences, which would move its cursor or colour what follows."""

from rich.markup import escape


def printable(text: str) -> str:
    r"""A text with everything that is no sign of its own written out: `\x1b[31m`; line breaks and tabs as well.

    Beside control characters these are marks that change the direction of writing, and halves of characters.
    """
    return text if text.isprintable() else "".join(sign if sign.isprintable() else _written_out(sign) for sign in text)


def printable_lines(text: str) -> str:
    """The same of a text of our own that has several lines."""
    return "\n".join(map(printable, text.split("\n")))


def cell(text: str) -> str:
    """A text as a cell of a rich table: no sign of it is a command, or markup."""
    return escape(printable(text))


def _written_out(sign: str) -> str:
    return ascii(sign)[1:-1]
