"""Texts of records for a terminal: a name may hold escape sequences, which would move its cursor or colour the text after it."""

from rich.markup import escape


def printable(text: str) -> str:
    r"""A text with every unprintable sign written out: `\x1b[31m`; line breaks and tabs as well.

    Unprintable are control characters, marks that change the direction of writing, and halves of characters.
    """
    return text if text.isprintable() else "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def printable_lines(text: str) -> str:
    """A printable form of one of our own texts, which keeps its line breaks."""
    return "\n".join(map(printable, text.split("\n")))


def cell(text: str) -> str:
    """A text as a cell of a rich table, in which no sign acts as a command or as markup."""
    return escape(printable(text))
