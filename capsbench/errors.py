"""The errors that a user sees.

Each one says in its first line what was wrong and with which value, and in its second what would be right.
A name in backticks is that of a field or a parameter (`batch_size`); the command line prints its flag in that place.
The command line prints exactly these lines and ends with `exit_status`.
"""

import re
from collections.abc import Mapping


class CapsbenchError(Exception):
    """Something that a user can put right.

    Args:
        what: what was wrong, with the value.
        hint: what would be right.
    """

    exit_status = 2

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what, hint)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}\n{self.hint}" if self.hint else self.what


class ConfigurationError(CapsbenchError, ValueError):
    """What was asked for makes no sense: an unknown name, a value out of range, a combination that cannot be."""


class ShapeError(CapsbenchError, ValueError):
    """Tensors whose shapes do not fit together."""


class StoreError(CapsbenchError):
    """Records on disk that cannot be read or written."""


class LostWorkError(StoreError):
    """Something that was measured could not be kept where it belongs."""

    exit_status = 1


class BusyDeviceError(CapsbenchError):
    """A device that another sweep did not let go of in time. All that was measured before is kept."""

    exit_status = 1


class EndedProcessError(CapsbenchError):
    """A network that ended the process that ran it, or did not answer in time."""

    exit_status = 1


class TrainingError(CapsbenchError):
    """Training that cannot go on: a loss or gradient that is not finite, no memory. The last good checkpoint is kept."""

    exit_status = 1


class Interrupted(CapsbenchError):
    """Ctrl-C; what was measured is kept."""

    exit_status = 130


def with_flags(text: str, flags: Mapping[str, str]) -> str:
    """Return a text in which the fields that have a flag are named by it."""
    return re.sub(r"`(\w+)`", lambda name: flags.get(name[1], name[0]), text)
