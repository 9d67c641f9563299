"""The errors that a user sees.

The first line says what was wrong and with which value, the second what would be right.
A name in backticks is that of a field or a parameter (`batch_size`); the command line prints its flag in that place.
The command line prints exactly these lines and ends with `exit_status`.
"""

import errno
import os
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

_DASH = " - "
"""Sign between what was wrong and what would be right, in an error on one line."""
_BRIEF = 60
"""Most characters of the brief reason of a failure."""


class CapsbenchError(Exception):
    """An error that a user can put right.

    Args:
        what: first line: what was wrong, with the value.
        hint: second line: what would be right.
    """

    exit_status = 2

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what, hint)
        self.what, self.hint = what, hint

    def __str__(self) -> str:
        return f"{self.what}\n{self.hint}" if self.hint else self.what


class ConfigurationError(CapsbenchError, ValueError):
    """A request that cannot be met: an unknown name, a value out of range, an impossible combination."""


class ShapeError(CapsbenchError, ValueError):
    """Tensors whose shapes do not fit together."""


class StoreError(CapsbenchError):
    """Records on disk that cannot be read or written."""


class LostWorkError(StoreError):
    """A measurement that could not be written to where it belongs."""

    exit_status = 1


class BusyDeviceError(CapsbenchError):
    """A device that another sweep did not release in time. Earlier measurements are kept."""

    exit_status = 1


class EndedProcessError(CapsbenchError):
    """A network that ended the process that ran it, or did not answer in time."""

    exit_status = 1


class TrainingError(CapsbenchError):
    """Training that cannot continue: a loss or gradient that is not finite, or no memory. The last good checkpoint is kept."""

    exit_status = 1


class Interrupted(CapsbenchError):
    """An interruption by Ctrl-C. Earlier measurements are kept."""

    exit_status = 130


def unknown_name(what: str, name: object, known: Iterable[str], more: str = "") -> ConfigurationError:
    """Return the error of a name that is not known, whose hint begins with the nearest one that is.

    Args:
        what: what has the name: a field in backticks, or a noun.
        name: the name.
        known: the names that would be right.
        more: what else would be right, to follow the names.
    """
    names = list(known)
    hint = suggesting(name, names, f"choose among {', '.join(names)}{more}")
    return ConfigurationError(f"{what} '{name}' is not known", hint)


def suggesting(name: object, known: Iterable[str], hint: str) -> str:
    """Return the hint of an error of a name that is not known, which begins with the nearest one that is.

    Args:
        name: the name.
        known: the names that would be right.
        hint: what would be right, in words.
    """
    by_plain = {_plain(one): one for one in known}
    near = get_close_matches(_plain(str(name)), by_plain, n=1)
    return f"did you mean {by_plain[near[0]]}? If not, {hint}" if near else hint


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def unwritable(path: Path, error: OSError) -> StoreError:
    """Return the error of a file or folder that cannot be written."""
    hint = "make room" if error.errno == errno.ENOSPC else "choose an `out` that you may write to"
    return StoreError(f"{path} cannot be written: {error.strerror}", hint)


def error_line(error: BaseException, most: int | None = None) -> str:
    """Return an error on one line: its type, and the first line of its message, of at most `most` characters."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0][:most]}"


def one_line(error: CapsbenchError) -> str:
    """Return an error of this package on one line: what was wrong, and after a dash what would be right."""
    return _DASH.join(str(error).splitlines())


def step_failure(model: str) -> str:
    """Return the beginning of the error of a network whose step raised one."""
    return f"model '{model}' fails in a step: "


def making_failure(model: str) -> str:
    """Return the beginning of the error of a network that could not be made."""
    return f"model '{model}' cannot be made: "


def brief_reason(model: str, message: str) -> str:
    """Return a message of `one_line` in a few words: without its network, the place of the error and what would be right."""
    what = message.removeprefix(step_failure(model)).removeprefix(making_failure(model))
    # The place of the error ends what was wrong; a dash before it is part of the message.
    place = re.search(r" \([^()]*:\d+ in [^()]*\)(?= - |$)", what)
    what = what[: place.start()] if place else what.partition(_DASH)[0]
    return what if len(what) <= _BRIEF else f"{what[: _BRIEF - 1].rstrip()}…"


def error_place(error: BaseException) -> str:
    """Return the innermost place of an error, `model.py:7 in forward`; empty if unknown.

    It is in torch if no other code is there, and then in one of its layers if it can be: a step that is followed fails further in
    than one that is run.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    for name in ("capsbench", "torch"):
        library = getattr(sys.modules.get(name), "__file__", None)
        inside = f"{Path(library).parent}{os.sep}" if library else "<"
        frames = [frame for frame in frames if not frame.filename.startswith(inside)] or frames
    frames = [frame for frame in frames if ("torch", "nn") in pairwise(Path(frame.filename).parts)] or frames
    return "".join(f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in frames[-1:])


def with_flags(text: str, flags: Mapping[str, str]) -> str:
    """Return a text in which the fields that have a flag are named by it."""
    return re.sub(r"`(\w+)`", lambda name: flags.get(name[1], name[0]), text)
